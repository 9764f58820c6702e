// Many rows of x: weights are unpacked to float, outputs in the lanes, kDepth inputs at a time, and used by every row while
// they are in the first cache. Bound by the multipliers.
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/linear_input.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// Weights of inputs first ... first + depth - 1 and outputs from `output` on, as float [depth][kOutputs]. Lanes beyond the
// last output repeat it; nobody looks at their sums.
template <int W>
class Unpacker {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;
  static constexpr std::int64_t kOutputs = LinearTile<W>::kOutputs;

 public:
  Unpacker(const LinearWeight& weight, std::int64_t output, float* panel)
      : weight_(weight), output_(output), panel_(panel) {}

  void run(std::int64_t first, std::int64_t depth) const {
    for (std::int64_t lane = 0; lane < kOutputs && output_ + lane < padded_rows(); lane += W) {
      if (is_grouped(weight_)) {
        codes(lane, first, depth);
      } else {
        weight_.format == WeightFormat::f32 ? rows<float>(lane, first, depth) : rows<bf16>(lane, first, depth);
      }
    }
  }

 private:
  std::int64_t padded_rows() const { return padded(weight_.rows, W); }
  float* at(std::int64_t k, std::int64_t lane) const { return panel_ + k * kOutputs + lane; }

  void codes(std::int64_t lane, std::int64_t first, std::int64_t depth) const {
    const CodePanel<W> panel(weight_, output_ + lane);
    for (std::int64_t k = 0; k < depth; k += weight_.group) {
      panel.for_each_weight((first + k) / weight_.group, [&](std::int64_t i, int, F w) {
        S::store(at(k + i, lane), w);
      });
    }
  }

  // W rows of W words each: one float or two bf16.
  template <typename T>
  void rows(std::int64_t lane, std::int64_t first, std::int64_t depth) const {
    constexpr std::int64_t kWords = W * 4 / sizeof(T);
    const T* from[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      const std::int64_t output = smaller(output_ + lane + i, weight_.rows - 1);
      from[i] = static_cast<const T*>(weight_.data) + output * weight_.row_stride + first;
    }
    for (std::int64_t k = 0; k < depth; k += kWords) {
      F words[W] = {};
      const std::int64_t count = smaller(kWords, depth - k);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (count == kWords) {
          __builtin_memcpy(&words[i], from[i] + k, sizeof words[i]);
        } else {
          words[i] = words_of(from[i] + k, count);
        }
      }
      transpose<W>(words);
      store_block(words, at(k, lane), from[0], count);
    }
  }

  template <typename T>
  static F words_of(const T* from, std::int64_t count) {
    T rest[sizeof(F) / sizeof(T)] = {};
    for (std::int64_t i = 0; i < count; ++i) rest[i] = from[i];
    F words;
    __builtin_memcpy(&words, rest, sizeof words);
    return words;
  }

  // Conditions stand inside of the loops: with one in its head GCC 12 does not unroll, and words then go through the stack.
  static void store_block(const F* words, float* to, const float*, std::int64_t count) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (i < count) S::store(to + i * kOutputs, words[i]);
    }
  }

  static void store_block(const F* words, float* to, const bf16*, std::int64_t count) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (2 * i < count) S::store(to + 2 * i * kOutputs, (F)((U)words[i] << 16));
      if (2 * i + 1 < count) S::store(to + (2 * i + 1) * kOutputs, (F)((U)words[i] & 0xffff0000u));
    }
  }

  const LinearWeight& weight_;
  std::int64_t output_;
  float* panel_;
};

// sums[Rows][stride] (+)= x[Rows][depth] times panel[depth][kOutputs]. Meanwhile the next x and weights are asked for, a few
// lines at a time.
template <int W, int Rows>
void multiply_tile(const float* x, const float* panel, std::int64_t depth, float* sums, std::int64_t stride, bool add,
                   WeightAhead& ahead, std::int64_t lines) {
  using S = Simd<W>;
  using T = LinearTile<W>;
  constexpr std::int64_t kBetween = 16;
  typename S::F acc[Rows][T::kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < T::kVectors; ++v) acc[r][v] = S::zero();
  }
  for (std::int64_t k = 0; k < depth;) {
    const std::int64_t stop = smaller(k + kBetween, depth);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) __builtin_prefetch(x + (T::kRows + r) * T::kDepth + k, 0, 3);
    ahead.step(lines);
    for (; k < stop; ++k) {
      typename S::F w[T::kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < T::kVectors; ++v) w[v] = S::load(panel + k * T::kOutputs + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto value = S::broadcast(x[r * T::kDepth + k]);
#pragma GCC unroll 8
        for (int v = 0; v < T::kVectors; ++v) acc[r][v] = S::fma(value, w[v], acc[r][v]);
      }
    }
  }
  // Added at the end: a choice of where to start would send the accumulators through memory.
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < T::kVectors; ++v) {
      float* to = sums + r * stride + v * W;
      S::store(to, add ? S::load(to) + acc[r][v] : acc[r][v]);
    }
  }
}

// All rows of x against the outputs of an item.
template <int W>
class TileMultiplier {
  using T = LinearTile<W>;

 public:
  // `x`: prepared (tile_row); `panel`: kDepth * kOutputs floats of scratch.
  TileMultiplier(const LinearWeight& weight, std::int64_t rows, char* x, float* panel)
      : weight_(weight), tiles_(rows, T::kRows), x_(x), panel_(panel) {}

  // values [rows][stride], padded to whole panels.
  void run(std::int64_t first, std::int64_t count, float* values, std::int64_t stride) const {
    for (std::int64_t k = 0; k < weight_.cols; k += T::kDepth) {
      const std::int64_t depth = smaller(T::kDepth, weight_.cols - k);
      for (std::int64_t n = 0; n < count; n += T::kOutputs) {
        Unpacker<W>(weight_, first + n, panel_).run(k, depth);
        const bool last = n + T::kOutputs >= count;
        WeightAhead ahead = last ? weights(first, k + T::kDepth) : weights(first + n + T::kOutputs, k);
        multiply(k, depth, values + n, stride, ahead);
      }
    }
  }

 private:
  void multiply(std::int64_t k, std::int64_t depth, float* values, std::int64_t stride, WeightAhead& ahead) const {
    const std::int64_t visits = tiles_.count * ((depth + 15) / 16);
    const std::int64_t lines = (ahead.rows * ((ahead.line_bytes + 63) / 64) + visits - 1) / visits;
    for (std::int64_t tile = 0; tile < tiles_.count; ++tile) {
      const float* x = tile_row<T>(x_, tiles_, k / T::kDepth, tile, 0);
      float* to = values + tiles_.first(tile) * stride;
      switch (tiles_.rows(tile)) {
        case 1: multiply_tile<W, 1>(x, panel_, depth, to, stride, k > 0, ahead, lines); break;
        case 2: multiply_tile<W, 2>(x, panel_, depth, to, stride, k > 0, ahead, lines); break;
        case 3: multiply_tile<W, 3>(x, panel_, depth, to, stride, k > 0, ahead, lines); break;
        case 4: multiply_tile<W, 4>(x, panel_, depth, to, stride, k > 0, ahead, lines); break;
        case 5: multiply_tile<W, 5>(x, panel_, depth, to, stride, k > 0, ahead, lines); break;
        default: multiply_tile<W, 6>(x, panel_, depth, to, stride, k > 0, ahead, lines);
      }
    }
  }

  // The weights of one step and panel; none beyond the last.
  WeightAhead weights(std::int64_t output, std::int64_t k) const {
    const std::int64_t inputs = smaller(T::kDepth, weight_.cols - k), outputs = smaller(T::kOutputs, weight_.rows - output);
    if (inputs <= 0) return {nullptr, 0, 0, 0};
    if (is_grouped(weight_)) {
      const std::int64_t step_bytes = code_bytes(weight_, kPanelRows) * inputs / weight_.cols;
      return {CodePanel<W>(weight_, output).address(k), code_bytes(weight_, kPanelRows),
              (outputs + kPanelRows - 1) / kPanelRows, step_bytes};
    }
    const std::int64_t bytes = weight_.format == WeightFormat::f32 ? 4 : 2;
    const char* from = static_cast<const char*>(weight_.data) + (output * weight_.row_stride + k) * bytes;
    return {from, weight_.row_stride * bytes, outputs, inputs * bytes};
  }

  const LinearWeight& weight_;
  RowTiles tiles_;
  char* x_;
  float* panel_;
};

}  // namespace latentkv::LATENTKV_ISA
