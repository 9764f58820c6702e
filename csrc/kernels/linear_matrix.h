// More than a few rows of x on matrix tiles (tile.h): sums in float32 of bf16 products, which are exact. A float32 x is three bf16
// terms (next_term), so nothing is rounded that float32 multiply-adds would not round; a bf16 x is one.
//
//   bf16 weights lie in memory as an A tile wants them, so they are A and x is B: sums come out transposed.
//   Codes lie as a B tile wants them, and are whole numbers that bf16 holds; one product for each group, scaled into the sums.
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/linear_matrix_input.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// Outputs computed together: two tiles.
constexpr std::int64_t kMatrixOutputs = 2 * kTileRows;

// Sums of rows of x against some outputs: [rows padded to tiles][stride].
struct MatrixSums {
  std::int64_t first, count;  // outputs
  float* values;
  std::int64_t stride;

  float* at(std::int64_t row_tile, std::int64_t output) const { return values + row_tile * kTileRows * stride + output; }
};

// C (sums, transposed) [2 tiles of outputs][RowTiles tiles of rows] += A (weights) times B (terms of x).
template <int Terms, int RowTiles>
[[gnu::always_inline]] inline void multiply_pairs(Tiles& t, const char* weights, const char* const* x, std::int64_t depth,
                                                  WeightAhead& ahead, std::int64_t lines) {
  for (std::int64_t k = 0; k < depth; ++k) {
    t.load<4>(weights, kTileRowBytes);
    t.load<5>(weights + kTileBytes, kTileRowBytes);
    weights += 2 * kTileBytes;
#pragma GCC unroll 3
    for (int term = 0; term < Terms; ++term) {
      const std::int64_t at = (k * Terms + term) * kTileBytes;
      t.load<6>(x[0] + at, kTileRowBytes);
      t.dot<0, 4, 6>();
      t.dot<1, 5, 6>();
      if constexpr (RowTiles == 2) {
        t.load<7>(x[1] + at, kTileRowBytes);
        t.dot<2, 4, 7>();
        t.dot<3, 5, 7>();
      }
    }
    ahead.step(lines);
  }
}

// bf16 weights.
template <int Terms>
class MatrixRows {
  using Input = MatrixInput<Terms>;

 public:
  // `panel`: kMatrixPanelFloats of scratch.
  MatrixRows(const LinearWeight& weight, const Input& x, float* panel)
      : weight_(weight), x_(x), panel_(reinterpret_cast<char*>(panel)) {}

  void run(const MatrixSums& out) const {
    Tiles tiles;
    for (std::int64_t step = 0; step < x_.steps; ++step) {
      for (std::int64_t n = 0; n < out.count; n += kMatrixOutputs) {
        pack(out.first + n, step);
        WeightAhead ahead = next(out, n, step);
        multiply(tiles, out, n, step, ahead);
      }
    }
    for (std::int64_t tile = 0; tile < x_.row_tiles; ++tile) {
      for (std::int64_t n = 0; n < out.count; n += kTileRows) turn_tile(out.at(tile, n), out.stride);
    }
  }

 private:
  const char* row(std::int64_t output, std::int64_t step) const {
    return static_cast<const char*>(weight_.data) + (output * weight_.row_stride + step * kStepInputs) * 2;
  }

  // The panel that follows this one, of this item or the one beside it.
  WeightAhead next(const MatrixSums& out, std::int64_t n, std::int64_t step) const {
    const bool last = n + kMatrixOutputs >= out.count;
    const std::int64_t output = last && step + 1 == x_.steps ? out.first + out.count : last ? out.first : out.first + n + kMatrixOutputs;
    const std::int64_t at = !last ? step : step + 1 < x_.steps ? step + 1 : 0;
    const std::int64_t rows = smaller(kMatrixOutputs, weight_.rows - output);
    return {row(output, at), weight_.row_stride * 2, rows, smaller(kStepInputs, weight_.cols - at * kStepInputs) * 2};
  }

  // Weights of two tiles of outputs, tile by tile: reading them in place would crowd a few sets of the first cache, and
  // reach beyond the last input.
  void pack(std::int64_t output, std::int64_t step) const {
    const std::int64_t inputs = smaller(kStepInputs, weight_.cols - step * kStepInputs);
    for (std::int64_t i = 0; i < kMatrixOutputs; ++i) {
      char* to = panel_ + i / kTileRows * kTileBytes + i % kTileRows * kTileRowBytes;
      if (output + i >= weight_.rows) {
        for (std::int64_t k = 0; k < inputs; k += kTileDepth) __builtin_memset(to + k / kTileDepth * 2 * kTileBytes, 0, kTileRowBytes);
        continue;
      }
      const char* from = row(output + i, step);
      std::int64_t k = 0;
      for (; k + kTileDepth <= inputs; k += kTileDepth) copy_line(from + k * 2, to + k / kTileDepth * 2 * kTileBytes);
      if (k == inputs) continue;
      __builtin_memset(to + k / kTileDepth * 2 * kTileBytes, 0, kTileRowBytes);
      __builtin_memcpy(to + k / kTileDepth * 2 * kTileBytes, from + k * 2, (inputs - k) * 2);
    }
  }

  static void copy_line(const char* from, char* to) {
    Simd<16>::F line;
    __builtin_memcpy(&line, from, sizeof line);
    __builtin_memcpy(to, &line, sizeof line);
  }

  void multiply(Tiles& t, const MatrixSums& out, std::int64_t n, std::int64_t step, WeightAhead& ahead) const {
    const std::int64_t depth = x_.depth(step), pairs = (x_.row_tiles + 1) / 2;
    const std::int64_t lines = (kMatrixPanelLines + pairs * depth - 1) / (pairs * depth);
    for (std::int64_t tile = 0; tile < x_.row_tiles; tile += 2) {
      const bool both = tile + 1 < x_.row_tiles;
      const char* x[2] = {x_.tile(step, tile), x_.tile(step, tile + both)};
      float *c0 = out.at(tile, n), *c1 = out.at(tile + both, n);
      const std::int64_t stride = out.stride * 4;
      start(t, c0, c1, stride, both, step > 0);
      both ? multiply_pairs<Terms, 2>(t, panel_, x, depth, ahead, lines)
           : multiply_pairs<Terms, 1>(t, panel_, x, depth, ahead, lines);
      t.store<0>(c0, stride);
      t.store<1>(c0 + kTileRows, stride);
      if (!both) continue;
      t.store<2>(c1, stride);
      t.store<3>(c1 + kTileRows, stride);
    }
  }

  static void start(Tiles& t, const float* c0, const float* c1, std::int64_t stride, bool both, bool add) {
    if (!add) {
      t.zero<0>();
      t.zero<1>();
      t.zero<2>();
      t.zero<3>();
      return;
    }
    t.load<0>(c0, stride);
    t.load<1>(c0 + kTileRows, stride);
    if (!both) return;
    t.load<2>(c1, stride);
    t.load<3>(c1 + kTileRows, stride);
  }

  const LinearWeight& weight_;
  const Input& x_;
  char* panel_;
};

// int8 and int4 weights in groups of 32 or more. With Rounded, x is one term of whole numbers and a scale for each group.
template <int Terms, bool Rounded>
class MatrixCodes {
  using S = Simd<16>;
  using F = S::F;
  using U = S::U;
  using I = Lanes<std::int32_t, 16>::type;
  using Input = MatrixInput<Terms>;

 public:
  MatrixCodes(const LinearWeight& weight, const Input& x, float* panel)
      : weight_(weight), x_(x), panel_(reinterpret_cast<char*>(panel)), products_(panel + kMatrixPanelFloats) {}

  void run(const MatrixSums& out) const {
    Tiles tiles;
    for (std::int64_t step = 0; step < x_.steps; ++step) {
      for (std::int64_t n = 0; n < out.count; n += kMatrixOutputs) {
        for (std::int64_t half = 0; half < 2; ++half) pack(panel_of(out, n + half * kTileRows), step, half);
        multiply(tiles, out, n, step);
      }
    }
  }

 private:
  // Beyond the last panel the last one is computed again.
  std::int64_t panel_of(const MatrixSums& out, std::int64_t n) const {
    return smaller(out.first + n, padded(weight_.rows, kPanelRows) - kPanelRows);
  }

  // Codes less their zero, as B tiles of bf16.
  void pack(std::int64_t output, std::int64_t step, std::int64_t half) const {
    const CodePanel<16> panel(weight_, output);
    const std::int64_t first = step * kStepInputs, inputs = smaller(kStepInputs, weight_.cols - first);
    const bool wide = weight_.format == WeightFormat::int8;
    for (std::int64_t k = 0; k < inputs; k += 8) {
      char* to = panel_ + (k / kTileDepth * 2 + half) * kTileBytes + k % kTileDepth / 2 * kTileRowBytes;
      if (wide) {
        store_four(panel.bytes(first + k), to);
        store_four(panel.bytes(first + k + 4), to + 2 * kTileRowBytes);
      } else {
        const U eight = panel.bytes(first + k);
        store_four(CodePanel<16>::low(eight), to);
        store_four(CodePanel<16>::high(eight), to + 2 * kTileRowBytes);
      }
    }
  }

  // Four inputs in the bytes of a word: two rows of pairs.
  void store_four(U four, char* to) const {
    const bool wide = weight_.format == WeightFormat::int8;
    const auto word = [&](int byte) {
      const I code = wide ? (I)(four << (24 - 8 * byte)) >> 24 : (I)(four >> 8 * byte & 15u) - weight_.zero;
      return (U)__builtin_convertvector(code, F);
    };
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
      const U pairs = word(2 * row) >> 16 | (word(2 * row + 1) & 0xffff0000u);
      __builtin_memcpy(to + row * kTileRowBytes, &pairs, sizeof pairs);
    }
  }

  void multiply(Tiles& t, const MatrixSums& out, std::int64_t n, std::int64_t step) const {
    const std::int64_t group = weight_.group, inputs = smaller(kStepInputs, weight_.cols - step * kStepInputs);
    const std::int64_t outputs[2] = {panel_of(out, n), panel_of(out, n + kTileRows)};
    const CodePanel<16> panels[2] = {{weight_, outputs[0]}, {weight_, outputs[1]}};
    for (std::int64_t tile = 0; tile < x_.row_tiles; tile += 2) {
      const bool both = tile + 1 < x_.row_tiles;
      const char* x[2] = {x_.tile(step, tile), x_.tile(step, tile + both)};
      for (std::int64_t k = 0; k < inputs; k += group) {
        const std::int64_t g = (step * kStepInputs + k) / group;
        multiply_group(t, x, k / kTileDepth, group / kTileDepth, both);
        for (int i = 0; i < 1 + both; ++i) {
          add_scaled(panels, g, tile + i, out.at(tile + i, n), out.stride, products_ + i * 2 * kTileRows * kTileRows, g == 0);
        }
      }
    }
  }

  // products_ [2 tiles of rows][16][2 tiles of outputs]
  void multiply_group(Tiles& t, const char* const* x, std::int64_t first, std::int64_t depth, bool both) const {
    constexpr std::int64_t kStride = 2 * kTileRowBytes;
    t.zero<0>();
    t.zero<1>();
    t.zero<2>();
    t.zero<3>();
    for (std::int64_t k = first; k < first + depth; ++k) {
      t.load<4>(panel_ + 2 * k * kTileBytes, kTileRowBytes);
      t.load<5>(panel_ + (2 * k + 1) * kTileBytes, kTileRowBytes);
#pragma GCC unroll 3
      for (int term = 0; term < Terms; ++term) {
        const std::int64_t at = (k * Terms + term) * kTileBytes;
        t.load<6>(x[0] + at, kTileRowBytes);
        t.dot<0, 6, 4>();
        t.dot<1, 6, 5>();
        if (!both) continue;
        t.load<7>(x[1] + at, kTileRowBytes);
        t.dot<2, 7, 4>();
        t.dot<3, 7, 5>();
      }
    }
    t.store<0>(products_, kStride);
    t.store<1>(products_ + kTileRows, kStride);
    if (!both) return;
    t.store<2>(products_ + 2 * kTileRows * kTileRows, kStride);
    t.store<3>(products_ + 2 * kTileRows * kTileRows + kTileRows, kStride);
  }

  void add_scaled(const CodePanel<16>* panels, std::int64_t g, std::int64_t tile, float* sums, std::int64_t stride,
                  const float* products, bool first) const {
    const F scales[2] = {panels[0].scale(g), panels[1].scale(g)};
    const float* group = x_.group(tile, g);
    const std::int64_t rows = smaller(kTileRows, x_.rows - tile * kTileRows);
    const bool minima = weight_.minima != nullptr;
    const F least[2] = {minima ? panels[0].minimum(g) : F{}, minima ? panels[1].minimum(g) : F{}};
    for (std::int64_t row = 0; row < rows; ++row) {
      const F x_scale = S::broadcast(group[row]), x_sum = S::broadcast(group[kTileRows + row]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* to = sums + row * stride + half * kTileRows;
        F sum = first ? F{} : S::load(to);
        const F product = S::load(products + row * 2 * kTileRows + half * kTileRows);
        sum = S::fma(product, Rounded ? scales[half] * x_scale : scales[half], sum);
        if (minima) sum = S::fma(least[half], x_sum, sum);
        S::store(to, sum);
      }
    }
  }

  const LinearWeight& weight_;
  const Input& x_;
  char* panel_;
  float* products_;
};

}  // namespace latentkv::LATENTKV_ISA
