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
        // What the next step unpacks arrives during this step's multiplications.
        __builtin_prefetch(from[i] + k + LinearTile<W>::kDepth, 0, 2);
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

  static void store_block(const F* words, float* to, const float*, std::int64_t count) {
#pragma GCC unroll 16
    for (int i = 0; i < W && i < count; ++i) S::store(to + i * kOutputs, words[i]);
  }

  static void store_block(const F* words, float* to, const bf16*, std::int64_t count) {
#pragma GCC unroll 16
    for (int i = 0; i < W && 2 * i < count; ++i) {
      S::store(to + 2 * i * kOutputs, (F)((U)words[i] << 16));
      if (2 * i + 1 < count) S::store(to + (2 * i + 1) * kOutputs, (F)((U)words[i] & 0xffff0000u));
    }
  }

  const LinearWeight& weight_;
  std::int64_t output_;
  float* panel_;
};

// sums[Rows][kOutputs] (+)= x[Rows][depth] times panel[depth][kOutputs].
template <int W, int Rows>
void multiply_tile(const float* x, const float* panel, std::int64_t depth, float* sums, bool add) {
  using S = Simd<W>;
  using T = LinearTile<W>;
  typename S::F acc[Rows][T::kVectors] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    typename S::F w[T::kVectors];
    for (int v = 0; v < T::kVectors; ++v) w[v] = S::load(panel + k * T::kOutputs + v * W);
    for (int r = 0; r < Rows; ++r) {
      const auto value = S::broadcast(x[r * T::kDepth + k]);
      for (int v = 0; v < T::kVectors; ++v) acc[r][v] = S::fma(value, w[v], acc[r][v]);
    }
  }
  // Added at the end: a choice of where to start would send the accumulators through memory.
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < T::kVectors; ++v) {
      float* to = sums + r * T::kOutputs + v * W;
      S::store(to, add ? S::load(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <int W>
void multiply_rows(std::int64_t rows, const float* x, const float* panel, std::int64_t depth, float* sums, bool add) {
  switch (rows) {
    case 1: return multiply_tile<W, 1>(x, panel, depth, sums, add);
    case 2: return multiply_tile<W, 2>(x, panel, depth, sums, add);
    case 3: return multiply_tile<W, 3>(x, panel, depth, sums, add);
    case 4: return multiply_tile<W, 4>(x, panel, depth, sums, add);
    case 5: return multiply_tile<W, 5>(x, panel, depth, sums, add);
    default: return multiply_tile<W, 6>(x, panel, depth, sums, add);
  }
}

// All rows of x against kOutputs outputs: sums [rows][kOutputs]. `panel` is scratch of kDepth * kOutputs floats.
template <int W>
void multiply_panel(const LinearWeight& weight, std::int64_t output, std::int64_t rows, char* x, float* panel,
                    float* sums) {
  using T = LinearTile<W>;
  const RowTiles<W> tiles(rows);
  const Unpacker<W> unpacker(weight, output, panel);
  for (std::int64_t k = 0; k < weight.cols; k += T::kDepth) {
    const std::int64_t depth = smaller(T::kDepth, weight.cols - k);
    unpacker.run(k, depth);
    for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
      const float* from = tile_row<W>(x, tiles, k / T::kDepth, tile, 0);
      // The next tile's x, which may come from the third cache.
      for (std::int64_t at = 0; at < T::kRows * T::kDepth; at += 16) {
        __builtin_prefetch(from + T::kRows * T::kDepth + at, 0, 3);
      }
      multiply_rows<W>(tiles.rows(tile), from, panel, depth, sums + tiles.first(tile) * T::kOutputs, k > 0);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
