// Per-head products with columns of w, for a few tokens: every weight is read once, in the order of memory, and its product
// added to sums that stay in the first cache. Attention's tiles, which more tokens go through, would be nearly empty.
#pragma once

#include "kernels/attention_rows.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kFewTokens = 4;
constexpr std::int64_t kFewColumns = 512;  // of an item
constexpr int kFewRows = 4;                // of w at once

// sums += x[0] * w's first row + ... over `count` columns; sums are padded to whole vectors.
template <int W, int Rows, typename T>
void add_rows(const T* w, std::int64_t stride, const float* x, float* sums, std::int64_t count) {
  using S = Simd<W>;
  typename S::F factors[Rows];
  for (int r = 0; r < Rows; ++r) factors[r] = S::broadcast(x[r]);
  std::int64_t d = 0;
  for (; d + W <= count; d += W) {
    auto sum = S::load(sums + d);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      __builtin_prefetch(w + (r + Rows) * stride + d);
      sum = S::fma(S::load(w + r * stride + d), factors[r], sum);
    }
    S::store(sums + d, sum);
  }
  if (d == count) return;
  auto sum = S::load(sums + d);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) sum = S::fma(S::load_part(w + r * stride + d, count - d), factors[r], sum);
  S::store(sums + d, sum);
}

template <int W, typename To>
void store_sums(const float* sums, To* to, std::int64_t count) {
  using S = Simd<W>;
  std::int64_t d = 0;
  for (; d + W <= count; d += W) S::store(to + d, S::load(sums + d));
  if (d < count) S::store_part(to + d, S::load(sums + d), count - d);
}

// One head and some columns; `x` is memory for few_floats().
template <int W, typename T>
class FewTokens {
 public:
  FewTokens(const ProjectParams& p, float* x) : p_(p), x_(x), x_stride_(round_up(p.x.width, 16)) {}

  static std::int64_t floats(const ProjectParams& p) { return kFewTokens * round_up(p.x.width, 16); }

  void run(std::int64_t head, std::int64_t first, std::int64_t count) {
    for (std::int64_t t = 0; t < p_.tokens; ++t) scale_part<W>(p_.x, t, head, 1.0f, x_ + t * x_stride_);
    alignas(64) float sums[kFewTokens * kFewColumns] = {};
    const T* w = static_cast<const T*>(p_.w) + head * p_.w_head_stride + first;
    std::int64_t k = 0;
    for (; k + kFewRows <= p_.x.width; k += kFewRows) add<kFewRows>(w, k, sums, count);
    for (; k < p_.x.width; ++k) add<1>(w, k, sums, count);
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      const std::int64_t at = t * p_.out_token_stride + head * p_.out_head_stride + first;
      p_.out_dtype == DType::f32 ? store_sums<W>(sums + t * kFewColumns, static_cast<float*>(p_.out) + at, count)
                                 : store_sums<W>(sums + t * kFewColumns, static_cast<bf16*>(p_.out) + at, count);
    }
  }

 private:
  template <int Rows>
  void add(const T* w, std::int64_t k, float* sums, std::int64_t count) const {
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      add_rows<W, Rows>(w + k * p_.w_row_stride, p_.w_row_stride, x_ + t * x_stride_ + k, sums + t * kFewColumns, count);
    }
  }

  const ProjectParams& p_;
  float* x_;
  std::int64_t x_stride_;
};

template <int W, typename T>
void project_few_columns(const ProjectParams& p) {
  const std::int64_t strips = (p.out_width + kFewColumns - 1) / kFewColumns;
#pragma omp parallel num_threads(p.threads)
  {
    FewTokens<W, T> worker(p, p.scratch + omp_get_thread_num() * FewTokens<W, T>::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < strips * p.heads; ++i) {
      const std::int64_t first = i % strips * kFewColumns, left = p.out_width - first;
      worker.run(i / strips, first, left < kFewColumns ? left : kFewColumns);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
