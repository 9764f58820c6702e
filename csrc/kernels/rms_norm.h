// RMSNorm, on its own and as the way another kernel reads its rows. Reference:
// src/latentkv/ops/norm.py.
#pragma once

#include "parallel.h"
#include "vec.h"

namespace latentkv::LATENTKV_ISA {

template <int W, typename T>
float square_sum(const T* x, std::int64_t n) {
  using S = Simd<W>;
  typename S::F even = S::zero(), odd = S::zero();
  std::int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    const auto a = S::load(x + i), b = S::load(x + i + W);
    even = S::fma(a, a, even);
    odd = S::fma(b, b, odd);
  }
  for (; i + W <= n; i += W) {
    const auto a = S::load(x + i);
    even = S::fma(a, a, even);
  }
  if (i < n) {
    const auto value = S::load_part(x + i, n - i);
    odd = S::fma(value, value, odd);
  }
  return S::sum(even + odd);
}

template <int W, typename T, typename G>
void scale_row(const T* x, const G* weight, T* out, float inverse, std::int64_t n) {
  using S = Simd<W>;
  const auto factor = S::broadcast(inverse);
  std::int64_t i = 0;
  for (; i + W <= n; i += W) S::store(out + i, S::load(x + i) * factor * S::load(weight + i));
  if (i < n) {
    const auto value = S::load_part(x + i, n - i) * factor * S::load_part(weight + i, n - i);
    S::store_part(out + i, value, n - i);
  }
}

inline float inverse_rms(float squares, std::int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
}

template <int W, typename T, typename G>
void rms_norm_typed(const RmsNormParams& p) {
  const std::int64_t n = p.x.cols;
  for_each_row(p.x.rows, p.x.rows * n, [&](std::int64_t row) {
    const T* x = static_cast<const T*>(p.x.data) + row * p.x.stride;
    T* out = static_cast<T*>(p.out.data) + row * p.out.stride;
    scale_row<W>(x, static_cast<const G*>(p.weight), out, inverse_rms(square_sum<W>(x, n), n, p.eps), n);
  });
}

template <int W, typename T>
void rms_norm_weighted(const RmsNormParams& p) {
  p.weight_dtype == DType::f32 ? rms_norm_typed<W, T, float>(p) : rms_norm_typed<W, T, bf16>(p);
}

template <int W>
void rms_norm(const RmsNormParams& p) {
  p.x.dtype == DType::f32 ? rms_norm_weighted<W, float>(p) : rms_norm_weighted<W, bf16>(p);
}

// A row as its kernel reads it: normed, if it has a norm, and in any case float32. The weight's type is looked at for
// each vector; one more template for each would cost more code than that costs time.
template <int W, typename T>
struct NormedRow {
  using S = Simd<W>;
  const T* x;
  Norm norm;
  typename S::F factor;

  typename S::F load(std::int64_t i) const {
    const auto value = S::load(x + i);
    if (norm.weight == nullptr) return value;
    if (norm.dtype == DType::f32) return value * factor * S::load(static_cast<const float*>(norm.weight) + i);
    return value * factor * S::load(static_cast<const bf16*>(norm.weight) + i);
  }

  typename S::F load_part(std::int64_t i, std::int64_t count) const {
    const auto value = S::load_part(x + i, count);
    if (norm.weight == nullptr) return value;
    if (norm.dtype == DType::f32) {
      return value * factor * S::load_part(static_cast<const float*>(norm.weight) + i, count);
    }
    return value * factor * S::load_part(static_cast<const bf16*>(norm.weight) + i, count);
  }
};

template <int W, typename T>
NormedRow<W, T> normed_row(const T* x, const Norm& norm, std::int64_t n) {
  NormedRow<W, T> row{x, norm, Simd<W>::zero()};
  if (norm.weight == nullptr || n == 0) return row;
  const float squares = square_sum<W>(x, n);
  row.factor = Simd<W>::broadcast(inverse_rms(squares, n, norm.eps));
  return row;
}

}  // namespace latentkv::LATENTKV_ISA
