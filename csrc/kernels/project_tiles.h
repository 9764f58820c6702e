// Per-head products with columns of w, for more than a few tokens: outputs in the lanes, straight from rows of w, the sums of
// some tokens in registers from the first input to the last. Nothing is widened into memory and nothing transposed; a head's
// columns are in the second cache when their turn comes.
#pragma once

#include <omp.h>

#include "kernels/attention_rows.h"
#include "kernels/linear_input.h"
#include "kernels/shares.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// A pair of vectors from rows of w, parted like rows of T.
template <int W>
struct WholePair {
  using F = typename Simd<W>::F;

  template <typename T>
  [[gnu::always_inline]] static void load(const T* from, F& a, F& b) {
    load_two<W>(from, a, b);
  }

  template <typename T, typename To>
  [[gnu::always_inline]] static void store(To* to, F a, F b) {
    if constexpr (kParted<T>) join<W>(a, b);
    Simd<W>::store(to, a);
    Simd<W>::store(to + W, b);
  }
};

// The last columns, fewer than that, in order.
template <int W>
struct LastPair {
  using F = typename Simd<W>::F;
  std::int64_t count;

  template <typename T>
  void load(const T* from, F& a, F& b) const {
    a = count < W ? Simd<W>::load_part(from, count) : Simd<W>::load(from);
    b = count > W ? Simd<W>::load_part(from + W, count - W) : Simd<W>::zero();
  }

  template <typename T, typename To>
  void store(To* to, F a, F b) const {
    count < W ? Simd<W>::store_part(to, a, count) : Simd<W>::store(to, a);
    if (count > W) Simd<W>::store_part(to + W, b, count - W);
  }
};

// One call's products, one item after the other: some columns of a head, for so many tokens that their x stays in the second
// cache. T of w, To of out.
template <int W, typename T, typename To>
class ColumnTiles {
  using S = Simd<W>;
  using F = typename S::F;
  static constexpr std::int64_t kItemColumns = 512, kItemTokens = 96, kPair = 2 * W, kBytes = sizeof(T);
  static constexpr int kTileTokens = W == 16 ? 12 : 6;

 public:
  // x: floats() of scratch.
  ColumnTiles(const ProjectParams& p, float* x)
      : p_(p), x_(x), x_stride_(round_up(p.x.width, 16)), strips_(strips(p)) {}

  static std::int64_t floats(const ProjectParams& p) {
    return smaller(p.tokens, kItemTokens) * round_up(p.x.width, 16);
  }

  static std::int64_t items(const ProjectParams& p) {
    return (p.tokens + kItemTokens - 1) / kItemTokens * p.heads * strips(p);
  }

  void run(std::int64_t item) const {
    const Part part = part_of(item);
    for (std::int64_t t = 0; t < part.tokens; ++t) {
      scale_part<W>(p_.x, part.token + t, part.head, 1.0f, x_ + t * x_stride_);
    }
    const RowTiles tiles(part.tokens, kTileTokens);
    Ahead ahead = after(item, tiles.count);
    To* out = static_cast<To*>(p_.out) + part.token * p_.out_token_stride + part.head * p_.out_head_stride + part.column;
    std::int64_t j = 0;
    for (; j + kPair <= part.columns; j += kPair) columns(tiles, WholePair<W>{}, part.w + j, out + j, ahead);
    if (j < part.columns) columns(tiles, LastPair<W>{part.columns - j}, part.w + j, out + j, ahead);
  }

 private:
  // What an item multiplies.
  struct Part {
    std::int64_t token, tokens, head, column, columns;
    const T* w;
  };

  // Another item's columns, and how many lines of them to ask for in a tile of this one.
  struct Ahead {
    WeightAhead weights;
    std::int64_t lines;
  };

  static std::int64_t strips(const ProjectParams& p) { return (p.out_width + kItemColumns - 1) / kItemColumns; }

  Part part_of(std::int64_t item) const {
    const std::int64_t column = item % strips_ * kItemColumns, head = item / strips_ % p_.heads;
    const std::int64_t token = item / strips_ / p_.heads * kItemTokens;
    const T* w = static_cast<const T*>(p_.w) + head * p_.w_head_stride + column;
    return {token, smaller(kItemTokens, p_.tokens - token), head, column, smaller(kItemColumns, p_.out_width - column), w};
  }

  Ahead after(std::int64_t item, std::int64_t tiles) const {
    if (item + 1 >= items(p_)) return {{nullptr, 0, 0, 0}, 0};
    const Part next = part_of(item + 1);
    const std::int64_t lines = p_.x.width * ((next.columns * kBytes + 63) / 64);
    const std::int64_t pairs = larger(1, smaller(kItemColumns, p_.out_width) / kPair);
    return {{reinterpret_cast<const char*>(next.w), p_.w_row_stride * kBytes, p_.x.width, next.columns * kBytes},
            lines / (pairs * tiles) + 1};
  }

  template <typename Pair>
  void columns(const RowTiles& tiles, const Pair& pair, const T* w, To* out, Ahead& ahead) const {
    for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
      const float* x = x_ + tiles.first(tile) * x_stride_;
      multiply_rows<kTileTokens>(tiles.rows(tile), pair, w, x, out + tiles.first(tile) * p_.out_token_stride, ahead);
    }
  }

  template <int Most, typename Pair>
  void multiply_rows(std::int64_t rows, const Pair& pair, const T* w, const float* x, To* out, Ahead& ahead) const {
    if (rows == Most) return multiply<Most>(pair, w, x, out, ahead);
    if constexpr (Most > 1) multiply_rows<Most - 1>(rows, pair, w, x, out, ahead);
  }

  // out [Rows][a pair of vectors] = x [Rows] times w.
  template <int Rows, typename Pair>
  void multiply(const Pair& pair, const T* w, const float* x, To* out, Ahead& ahead) const {
    constexpr std::int64_t kBetween = 16;
    const std::int64_t depth = p_.x.width, w_stride = p_.w_row_stride, x_stride = x_stride_;
    const std::int64_t lines = (ahead.lines * kBetween + depth - 1) / depth;
    F sums[Rows][2];
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = S::zero();
    for (std::int64_t k = 0; k < depth;) {
      const std::int64_t stop = smaller(k + kBetween, depth);
      ahead.weights.step(lines);
      for (; k < stop; ++k, w += w_stride) {
        F a, b;
        pair.load(w, a, b);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) {
          const F value = S::broadcast(x[r * x_stride + k]);
          sums[r][0] = S::fma(value, a, sums[r][0]);
          sums[r][1] = S::fma(value, b, sums[r][1]);
        }
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) pair.template store<T>(out + r * p_.out_token_stride, sums[r][0], sums[r][1]);
  }

  const ProjectParams& p_;
  float* x_;
  std::int64_t x_stride_, strips_;
};

// Floats of scratch for each thread.
template <int W>
std::int64_t project_tiles_scratch(const ProjectParams& p) {
  return ColumnTiles<W, float, float>::floats(p) + Shares::bytes(1) / static_cast<std::int64_t>(sizeof(float));
}

template <int W, typename T, typename To>
void project_column_tiles(const ProjectParams& p) {
  using Worker = ColumnTiles<W, T, To>;
  const std::int64_t own = Worker::floats(p);
  const Shares shares(reinterpret_cast<char*>(p.scratch + p.threads * own), Worker::items(p), p.threads);
#pragma omp parallel num_threads(p.threads)
  {
    const int thread = omp_get_thread_num();
    const Worker worker(p, p.scratch + thread * own);
    shares.run(thread, [&](std::int64_t item) { worker.run(item); });
  }
}

template <int W>
void project_column_tiles(const ProjectParams& p) {
  const bool f32 = p.out_dtype == DType::f32;
  if (p.w_dtype == DType::f32) return f32 ? project_column_tiles<W, float, float>(p) : project_column_tiles<W, float, bf16>(p);
  f32 ? project_column_tiles<W, bf16, float>(p) : project_column_tiles<W, bf16, bf16>(p);
}

}  // namespace latentkv::LATENTKV_ISA
