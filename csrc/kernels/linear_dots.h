// Some rows of x against f32 or bf16 weights, for 16 registers of 8 floats: inputs in the lanes as in a stream, so that nothing
// is transposed, but one step of inputs at a time as in tiles, so that x stays in the first cache. Bound by the multipliers.
#pragma once

#include "kernels/linear_input.h"
#include "kernels/linear_stream.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// What is to be asked for while multiplying: rows in order, `call_bytes` in each call.
struct RowsAhead {
  const char* row;
  std::int64_t row_stride, row_bytes, call_bytes, at = 0;

  const char* take() {
    const char* from = row + at;
    at += call_bytes;
    if (at >= row_bytes) {
      at -= row_bytes;
      row += row_stride;
    }
    return from;
  }
};

// sum += a * b, in place: GCC 12 otherwise lets sums change places with x and runs out of registers, of which the loop below
// takes all 16.
template <int W>
[[gnu::always_inline]] inline void accumulate(typename Simd<W>::F& sum, typename Simd<W>::F a, typename Simd<W>::F b) {
#if defined(__FMA__)
  if constexpr (W == 8) {
    __asm__("vfmadd231ps %1, %2, %0" : "+x"(sum) : "x"(a), "x"(b));
    return;
  }
#endif
  sum = Simd<W>::fma(a, b, sum);
}

// A zero that the compiler makes here and does not keep.
template <int W>
[[gnu::always_inline]] inline typename Simd<W>::F passing_zero() {
#if defined(__AVX2__)
  if constexpr (W == 8) {
    typename Simd<W>::F zero;
    __asm__ volatile("vpxor %0, %0, %0" : "=x"(zero));
    return zero;
  }
#endif
  return Simd<W>::zero();
}

// Half of 2 * W inputs, as part_fours() parts them. One shuffle: shifts take the ports of multiply-adds.
template <int W, int Half>
[[gnu::always_inline]] inline typename Simd<W>::F load_half(const float* from, typename Simd<W>::F) {
  return Simd<W>::load(from + Half * W);
}

template <int W, int Half>
[[gnu::always_inline]] inline typename Simd<W>::F load_half(const bf16* from, typename Simd<W>::F zero) {
  using Words = typename Lanes<std::uint16_t, 2 * W>::type;
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return (typename Simd<W>::F)join_fours<Half>((Words)zero, words, typename Counting<2 * W>::type{});
}

// acc[kOutputs][Rows] += x[Rows] times weights, W inputs: two to a vector of weights.
template <int W, int Half, int Rows, typename T>
[[gnu::always_inline]] inline void multiply_half(const float* x, const T* const* weights, std::int64_t k,
                                                 typename Simd<W>::F (*acc)[Rows]) {
  using F = typename Simd<W>::F;
  using D = DotTile<W>;
  const F zero = passing_zero<W>();
  F w[D::kOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < D::kOutputs; ++o) w[o] = load_half<W, Half>(weights[o] + k, zero);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const F value = Simd<W>::load(x + r * D::kDepth + k + Half * W);
#pragma GCC unroll 8
    for (int o = 0; o < D::kOutputs; ++o) accumulate<W>(acc[o][r], value, w[o]);
  }
  // Loads stay where they are: there is no register to load something early into.
  __asm__ volatile("" ::: "memory");
}

// sums[Rows][kItemOutputs] of vectors (+)= x[Rows][depth] times kOutputs rows of weights; `depth` is whole units. Meanwhile
// memory from `ahead` on is asked for.
template <int W, int Rows, typename T>
[[gnu::noinline]] void multiply_dots(const float* x, const T* const* rows, std::int64_t depth, float* sums, bool add,
                                     const char* ahead, std::int64_t ahead_bytes) {
  using S = Simd<W>;
  using D = DotTile<W>;
  constexpr int kAsks = sizeof(T) / 2;  // in a turn of the loop, of a line at most each
  const std::int64_t ask_bytes = ahead_bytes * D::kUnit / (depth * kAsks);
  const T* weights[D::kOutputs];
  typename S::F acc[D::kOutputs][Rows];
#pragma GCC unroll 8
  for (int o = 0; o < D::kOutputs; ++o) {
    weights[o] = rows[o];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[o][r] = S::zero();
  }
  for (std::int64_t k = 0; k < depth; k += D::kUnit) {
#pragma GCC unroll 2
    for (int i = 0; i < kAsks; ++i, ahead += ask_bytes) __builtin_prefetch(ahead, 0, 2);
    multiply_half<W, 0, Rows>(x, weights, k, acc);
    multiply_half<W, 1, Rows>(x, weights, k, acc);
  }
#pragma GCC unroll 8
  for (int o = 0; o < D::kOutputs; ++o) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      float* to = sums + (r * D::kItemOutputs + o) * W;
      S::store(to, add ? S::load(to) + acc[o][r] : acc[o][r]);
    }
  }
}

// All rows of x against the outputs of an item.
template <int W, typename T>
class DotMultiplier {
  using S = Simd<W>;
  using D = DotTile<W>;
  static constexpr std::int64_t kBytes = sizeof(T);

 public:
  // `x`: prepared (tile_row); `sums`: rows * kItemOutputs * W floats of scratch.
  DotMultiplier(const LinearWeight& weight, std::int64_t rows, char* x, float* sums)
      : weight_(weight), tiles_(rows, D::kRows), rows_(rows), x_(x), sums_(sums) {}

  // values [rows][stride], padded to whole vectors.
  void run(const Outputs& out) const {
    const std::int64_t steps = (weight_.cols + D::kDepth - 1) / D::kDepth;
    const std::int64_t calls = steps * ((out.count + D::kOutputs - 1) / D::kOutputs) * tiles_.count;
    const std::int64_t row_bytes = weight_.cols * kBytes;
    RowsAhead ahead{out.next, weight_.row_stride * kBytes, row_bytes, out.count * row_bytes / calls};
    for (std::int64_t k = 0; k < weight_.cols; k += D::kDepth) {
      const std::int64_t depth = smaller(D::kDepth, weight_.cols - k), rest = depth % D::kUnit;
      if (depth > rest) step(out, k, depth - rest, ahead);
      if (rest > 0) step(out, k + depth - rest, rest, ahead);
    }
    finish(out);
  }

 private:
  float* sums(std::int64_t row, std::int64_t output) const { return sums_ + (row * D::kItemOutputs + output) * W; }

  // Inputs k ... k + depth - 1: whole units, or less than one.
  void step(const Outputs& out, std::int64_t k, std::int64_t depth, RowsAhead& ahead) const {
    for (std::int64_t first = 0; first < tiles_.count; first += D::kTiles) {
      const std::int64_t end = smaller(first + D::kTiles, tiles_.count);
      for (std::int64_t n = 0; n < out.count; n += D::kOutputs) {
        const T* rows[D::kOutputs];
        T rest[D::kOutputs][D::kUnit];
        for (int o = 0; o < D::kOutputs; ++o) {
          // Past the last output the last one is computed again.
          const std::int64_t output = out.first + smaller(n + o, out.count - 1);
          rows[o] = reinterpret_cast<const T*>(weight_row(weight_, output)) + k;
          if (depth < D::kUnit) rows[o] = filled(rows[o], depth, rest[o]);
        }
        for (std::int64_t tile = first; tile < end; ++tile) multiply(rows, k, padded(depth, D::kUnit), n, tile, ahead);
      }
    }
  }

  // `count` weights and zeros after them.
  static const T* filled(const T* from, std::int64_t count, T* to) {
    for (std::int64_t i = 0; i < D::kUnit; ++i) to[i] = i < count ? from[i] : T{};
    return to;
  }

  void multiply(const T* const* rows, std::int64_t k, std::int64_t depth, std::int64_t n, std::int64_t tile, RowsAhead& ahead) const {
    const float* x = tile_row<D>(x_, tiles_, k / D::kDepth, tile, 0) + k % D::kDepth;
    float* to = sums(tiles_.first(tile), n);
    const char* next = ahead.take();
    // More than four rows are tiles of at least two.
    switch (tiles_.rows(tile)) {
      case 2: return multiply_dots<W, 2>(x, rows, depth, to, k > 0, next, ahead.call_bytes);
      case 3: return multiply_dots<W, 3>(x, rows, depth, to, k > 0, next, ahead.call_bytes);
      default: return multiply_dots<W, 4>(x, rows, depth, to, k > 0, next, ahead.call_bytes);
    }
  }

  void finish(const Outputs& out) const {
    for (std::int64_t row = 0; row < rows_; ++row) {
      for (std::int64_t n = 0; n < out.count; n += W) {
        typename S::F vectors[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) vectors[i] = S::load(sums(row, n + i));
        S::store(out.values + row * out.stride + n, sum_each<W>(vectors));
      }
    }
  }

  const LinearWeight& weight_;
  RowTiles tiles_;
  std::int64_t rows_;
  char* x_;
  float* sums_;
};

}  // namespace latentkv::LATENTKV_ISA
