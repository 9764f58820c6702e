// Per-head products with columns of w, for a few tokens: every weight is read once, several rows at a time from parts of w
// that lie apart, and its product added to sums that stay in the first cache. Attention's tiles, which more tokens go
// through, would be nearly empty.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/shares.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kFewTokens = 4;
constexpr std::int64_t kFewColumns = 512;  // of an item
constexpr int kFewRows = 4;                // of w at once

// Rows of w `step` apart, and what of x they are multiplied with.
template <typename T>
struct RowsApart {
  const T* w;
  const float* x;
  std::int64_t step, row_stride;
};

// sums += x[0] * w's first row + x[step] * its next + ... over `count` columns. Sums are padded to whole vectors and parted
// like rows of T.
template <int W, int Rows, typename T>
void add_rows(const RowsApart<T>& rows, float* sums, std::int64_t count) {
  using S = Simd<W>;
  using F = typename S::F;
  const std::int64_t stride = rows.step * rows.row_stride;
  F factors[Rows];
  for (int r = 0; r < Rows; ++r) factors[r] = S::broadcast(rows.x[r * rows.step]);
  std::int64_t d = 0;
  for (; d + 2 * W <= count; d += 2 * W) {
    F sum = S::load(sums + d), other = S::load(sums + d + W);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const T* from = rows.w + r * stride + d;
      __builtin_prefetch(from + rows.row_stride);
      F a, b;
      load_two<W>(from, a, b);
      sum = S::fma(a, factors[r], sum);
      other = S::fma(b, factors[r], other);
    }
    S::store(sums + d, sum);
    S::store(sums + d + W, other);
  }
  for (; d < count; d += W) {
    const std::int64_t width = count - d < W ? count - d : W;
    F sum = S::load(sums + d);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const T* from = rows.w + r * stride + d;
      sum = S::fma(width == W ? S::load(from) : S::load_part(from, width), factors[r], sum);
    }
    S::store(sums + d, sum);
  }
}

// In order.
template <int W, typename T, typename To>
void store_sums(const float* sums, To* to, std::int64_t count) {
  using S = Simd<W>;
  std::int64_t d = 0;
  for (; kParted<T> && d + 2 * W <= count; d += 2 * W) {
    auto a = S::load(sums + d), b = S::load(sums + d + W);
    join<W>(a, b);
    S::store(to + d, a);
    S::store(to + d + W, b);
  }
  for (; d + W <= count; d += W) S::store(to + d, S::load(sums + d));
  if (d < count) S::store_part(to + d, S::load(sums + d), count - d);
}

// One head and some columns; `x` is memory for floats().
template <int W, typename T>
class FewTokens {
 public:
  FewTokens(const ProjectParams& p, float* x) : p_(p), x_(x), x_stride_(round_up(p.x.width, 16)) {}

  static std::int64_t floats(const ProjectParams& p) { return kFewTokens * round_up(p.x.width, 16); }

  void run(std::int64_t head, std::int64_t first, std::int64_t count) {
    for (std::int64_t t = 0; t < p_.tokens; ++t) scale_part<W>(p_.x, t, head, 1.0f, x_ + t * x_stride_);
    alignas(64) float sums[kFewTokens * kFewColumns] = {};
    const T* w = static_cast<const T*>(p_.w) + head * p_.w_head_stride + first;
    // Each of the rows goes on through its own part of w, in the order of memory.
    const std::int64_t each = p_.x.width / kFewRows;
    for (std::int64_t k = 0; k < each; ++k) add<kFewRows>(w, k, each, sums, count);
    for (std::int64_t k = each * kFewRows; k < p_.x.width; ++k) add<1>(w, k, each, sums, count);
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      const std::int64_t at = t * p_.out_token_stride + head * p_.out_head_stride + first;
      p_.out_dtype == DType::f32 ? store_sums<W, T>(sums + t * kFewColumns, static_cast<float*>(p_.out) + at, count)
                                 : store_sums<W, T>(sums + t * kFewColumns, static_cast<bf16*>(p_.out) + at, count);
    }
  }

 private:
  template <int Rows>
  void add(const T* w, std::int64_t k, std::int64_t step, float* sums, std::int64_t count) const {
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      const RowsApart<T> rows{w + k * p_.w_row_stride, x_ + t * x_stride_ + k, step, p_.w_row_stride};
      add_rows<W, Rows>(rows, sums + t * kFewColumns, count);
    }
  }

  const ProjectParams& p_;
  float* x_;
  std::int64_t x_stride_;
};

// Floats of scratch for each thread.
template <int W>
std::int64_t project_few_scratch(const ProjectParams& p) {
  return FewTokens<W, float>::floats(p) + Shares::bytes(1) / static_cast<std::int64_t>(sizeof(float));
}

template <int W, typename T>
void project_few_columns(const ProjectParams& p) {
  const std::int64_t strips = (p.out_width + kFewColumns - 1) / kFewColumns;
  const std::int64_t own = FewTokens<W, T>::floats(p);
  const Shares shares(reinterpret_cast<char*>(p.scratch + p.threads * own), strips * p.heads, p.threads);
#pragma omp parallel num_threads(p.threads)
  {
    const int thread = omp_get_thread_num();
    FewTokens<W, T> worker(p, p.scratch + thread * own);
    shares.run(thread, [&](std::int64_t i) {
      const std::int64_t first = i % strips * kFewColumns, left = p.out_width - first;
      worker.run(i / strips, first, left < kFewColumns ? left : kFewColumns);
    });
  }
}

}  // namespace latentkv::LATENTKV_ISA
