// Many rows of x in int8 against int8 or int4 weights: tiles of dot products, one set of whole-number sums per group.
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/linear_input.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
struct DotTile {
  using D = Dot<W>;
  using I = typename D::I;
  using F = typename Simd<W>::F;
  static constexpr std::int64_t kRows = 6;
  static constexpr int kVectors = 2;
  static constexpr std::int64_t kOutputs = kVectors * W;

  // values[Rows][stride] of outputs output ... output + kOutputs - 1.
  template <int Rows>
  static void multiply(const LinearWeight& weight, std::int64_t output, const CodeRow* x, float* values,
                       std::int64_t stride) {
    using S = Simd<W>;
    // Beyond the last panel the last one is computed again.
    const std::int64_t second = smaller(output + W, padded(weight.rows, kPanelRows) - W);
    const CodePanel<W> panels[kVectors] = {{weight, output}, {weight, second}};
    F acc[Rows][kVectors] = {};
    for (std::int64_t g = 0; g < weight.cols / weight.group; ++g) {
      I sums[Rows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums[r][v] = -dot_zero<W>(weight) * x[r].code_sums[g] - I{};
      }
      weight.format == WeightFormat::int8 ? group8<Rows>(panels, g * weight.group, weight.group, x, sums)
                                          : group4<Rows>(panels, g * weight.group, weight.group, x, sums);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const F scale = panels[v].scale(g);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          acc[r][v] = S::fma(__builtin_convertvector(sums[r][v], F), scale * S::broadcast(x[r].scales[g]), acc[r][v]);
        }
        if (weight.minima == nullptr) continue;
        const F least = panels[v].minimum(g);
        for (int r = 0; r < Rows; ++r) acc[r][v] = S::fma(least, S::broadcast(x[r].sums[g]), acc[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < kVectors; ++v) S::store(values + r * stride + v * W, acc[r][v]);
    }
  }

  template <int Rows>
  [[gnu::always_inline]] static void group8(const CodePanel<W>* panels, std::int64_t first, std::int64_t count,
                                            const CodeRow* x, I (*sums)[kVectors]) {
    for (std::int64_t k = first; k < first + count; k += 4) {
      typename D::U codes[kVectors];
      for (int v = 0; v < kVectors; ++v) codes[v] = panels[v].bytes(k);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto four = D::broadcast(x[r].codes + k);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = D::add8(sums[r][v], codes[v], four);
      }
    }
  }

  template <int Rows>
  [[gnu::always_inline]] static void group4(const CodePanel<W>* panels, std::int64_t first, std::int64_t count,
                                            const CodeRow* x, I (*sums)[kVectors]) {
    for (std::int64_t k = first; k < first + count; k += 8) {
      typename D::U low[kVectors], high[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const auto codes = panels[v].bytes(k);
        low[v] = panels[v].low(codes);
        high[v] = panels[v].high(codes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto four = D::broadcast(x[r].codes + k), next = D::broadcast(x[r].codes + k + 4);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = D::add4(sums[r][v], low[v], four);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = D::add4(sums[r][v], high[v], next);
      }
    }
  }
};

template <int W>
void dot_rows(std::int64_t rows, const LinearWeight& weight, std::int64_t output, const CodeRow* x, float* values,
              std::int64_t stride) {
  switch (rows) {
    case 1: return DotTile<W>::template multiply<1>(weight, output, x, values, stride);
    case 2: return DotTile<W>::template multiply<2>(weight, output, x, values, stride);
    case 3: return DotTile<W>::template multiply<3>(weight, output, x, values, stride);
    case 4: return DotTile<W>::template multiply<4>(weight, output, x, values, stride);
    case 5: return DotTile<W>::template multiply<5>(weight, output, x, values, stride);
    default: return DotTile<W>::template multiply<6>(weight, output, x, values, stride);
  }
}

}  // namespace latentkv::LATENTKV_ISA
