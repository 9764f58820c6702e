// A few rows of x: every weight is read once, straight from memory, and used for all rows. Bound by the memory's speed; up to
// some rows more, float weights are used so too, several times while they are in the second cache.
// All functions compute rows x[Rows] against outputs first ... first + count - 1, into values[row * stride + output - first].
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/linear_input.h"

namespace latentkv::LATENTKV_ISA {

// How far ahead of use memory is asked for, in bytes.
constexpr std::int64_t kAheadBytes = 1024;

constexpr std::int64_t kAheadGroups = 8;

struct Outputs {
  std::int64_t first, count;
  float* values;
  std::int64_t stride;
  const char* next;  // what will be read after them
};

// f32 or bf16 weights: sums over the lanes, for a few outputs at once. These lie far apart, so that each goes on through memory
// from one row to the next: rows side by side would be short pieces, at whose ends the processor's own prefetching stops.
template <int W, int Rows, typename T>
class RowStream {
  using S = Simd<W>;
  using F = typename S::F;
  // As many sums as registers hold beside the weights and one vector of x; eight of them keep both multipliers busy.
  static constexpr int kOutputs = Rows <= 2 ? 4 : W == 16 ? 4 : 3;
  static constexpr int kSums = kOutputs * Rows < 8 ? 2 : 1;
  static constexpr bool kPairs = sizeof(T) == 2;

 public:
  RowStream(const LinearWeight& weight, const float* x, std::int64_t x_stride)
      : weight_(weight), x_(x), x_stride_(x_stride) {}

  void run(const Outputs& out) const {
    const std::int64_t each = (out.count + kOutputs - 1) / kOutputs;
    for (std::int64_t n = 0; n < each; ++n) {
      // Past the last output the last one is computed again.
      const T* rows[kOutputs];
      for (int o = 0; o < kOutputs; ++o) rows[o] = row(out.first + smaller(o * each + n, out.count - 1));
      float sums[kOutputs][Rows];
      block(rows, each, n + 1 < each ? rows[0] + weight_.row_stride : reinterpret_cast<const T*>(out.next), sums);
      for (int o = 0; o < kOutputs && o * each + n < out.count; ++o) {
        for (int r = 0; r < Rows; ++r) out.values[r * out.stride + o * each + n] = sums[o][r];
      }
    }
  }

 private:
  const T* row(std::int64_t output) const { return reinterpret_cast<const T*>(weight_row(weight_, output)); }

  // The rows are `apart` rows from each other, and so are those after them, the first of which is `next`.
  [[gnu::always_inline]] void block(const T* const* rows, std::int64_t apart, const T* next, float (*sums)[Rows]) const {
    constexpr std::int64_t kAhead = kAheadBytes / sizeof(T);
    const std::int64_t cols = weight_.cols, ahead_stride = apart * weight_.row_stride;
    F acc[kOutputs][Rows][kSums] = {};
    std::int64_t k = 0;
    for (; k + 2 * W <= cols; k += 2 * W) {
      const T* ahead = k + kAhead < cols ? rows[0] + k + kAhead : next + (k + kAhead - cols);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        __builtin_prefetch(ahead + o * ahead_stride);
        F even, odd;
        load(rows[o] + k, even, odd);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const float* x = x_ + r * x_stride_ + k;
          acc[o][r][0] = S::fma(even, S::load(x), acc[o][r][0]);
          acc[o][r][kSums - 1] = S::fma(odd, S::load(x + W), acc[o][r][kSums - 1]);
        }
      }
    }
    for (; k < cols; k += W) {
      const std::int64_t count = smaller(W, cols - k);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const F w = count == W ? S::load(rows[o] + k) : S::load_part(rows[o] + k, count);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const float* x = x_ + r * x_stride_ + k;
          acc[o][r][0] = S::fma(w, count == W ? S::load(x) : S::load_part(x, count), acc[o][r][0]);
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        sums[o][r] = S::sum(kSums == 1 ? acc[o][r][0] : acc[o][r][0] + acc[o][r][kSums - 1]);
      }
    }
  }

  static void load(const T* from, F& even, F& odd) {
    if constexpr (kPairs) {
      S::load_pairs(from, even, odd);
    } else {
      even = S::load(from);
      odd = S::load(from + W);
    }
  }

  const LinearWeight& weight_;
  const float* x_;
  std::int64_t x_stride_;
};

// int8 or int4 weights, widened: exact to float's rounding.
template <int W, int Rows>
void code_stream(const LinearWeight& weight, const float* x, std::int64_t x_stride, const Outputs& out) {
  using S = Simd<W>;
  for (std::int64_t n = 0; n < out.count; n += W) {
    const CodePanel<W> panel(weight, out.first + n);
    typename S::F acc[Rows][4] = {};
    for (std::int64_t g = 0; g < weight.cols / weight.group; ++g) {
      const float* at = x + g * weight.group;
      panel.prefetch(g, kAheadGroups);
      panel.for_each_weight(g, [&](std::int64_t k, int byte, typename S::F w) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) acc[r][byte] = S::fma(w, S::broadcast(at[r * x_stride + k]), acc[r][byte]);
      });
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      S::store(out.values + r * out.stride + n, (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]));
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
