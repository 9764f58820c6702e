// Rotary position embedding of heads, with an RMSNorm before it where there is one. References:
// src/latentkv/ops/rotate_query.py and rope.py.
#pragma once

#include "kernels/rms_norm.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// One token's angles for one head.
struct Angles {
  const float *cos, *sin;
};

// From pair `first` on.
inline Angles angles_of(const AngleTable& table, std::int64_t token, std::int64_t first) {
  return {table.cos + token * table.cos_stride + first, table.sin + token * table.sin_stride + first};
}

template <int W>
struct Turned {
  typename Simd<W>::F first, second;
};

template <int W>
Turned<W> turn(typename Simd<W>::F first, typename Simd<W>::F second, typename Simd<W>::F cos,
               typename Simd<W>::F sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}

// Pairs (i, i + pairs).
template <int W, typename T, typename To>
void rotate_halves(const NormedRow<W, T>& x, const Angles& angles, To* out, std::int64_t pairs) {
  using S = Simd<W>;
  std::int64_t i = 0;
  for (; i + W <= pairs; i += W) {
    const auto turned = turn<W>(x.load(i), x.load(pairs + i), S::load(angles.cos + i), S::load(angles.sin + i));
    S::store(out + i, turned.first);
    S::store(out + pairs + i, turned.second);
  }
  if (i == pairs) return;
  const std::int64_t left = pairs - i;
  const auto turned = turn<W>(x.load_part(i, left), x.load_part(pairs + i, left), S::load_part(angles.cos + i, left),
                              S::load_part(angles.sin + i, left));
  S::store_part(out + i, turned.first, left);
  S::store_part(out + pairs + i, turned.second, left);
}

// Pairs (2i, 2i + 1).
template <int W, typename T, typename To>
void rotate_neighbours(const NormedRow<W, T>& x, const Angles& angles, To* out, std::int64_t pairs) {
  using S = Simd<W>;
  std::int64_t i = 0;
  for (; i + W <= pairs; i += W) {
    auto a = x.load(2 * i), b = x.load(2 * i + W);
    part<W>(a, b);
    auto turned = turn<W>(a, b, S::load(angles.cos + i), S::load(angles.sin + i));
    join<W>(turned.first, turned.second);
    S::store(out + 2 * i, turned.first);
    S::store(out + 2 * i + W, turned.second);
  }
  if (i == pairs) return;
  const std::int64_t left = pairs - i, in_a = 2 * left < W ? 2 * left : W, in_b = 2 * left - in_a;
  auto a = x.load_part(2 * i, in_a), b = x.load_part(2 * i + W, in_b);
  part<W>(a, b);
  auto turned = turn<W>(a, b, S::load_part(angles.cos + i, left), S::load_part(angles.sin + i, left));
  join<W>(turned.first, turned.second);
  S::store_part(out + 2 * i, turned.first, in_a);
  S::store_part(out + 2 * i + W, turned.second, in_b);
}

// One head of 2 * pairs elements; `out` may be x itself.
template <int W, typename T, typename To>
void rotate_head(const T* x, const Norm& norm, const Angles& angles, To* out, std::int64_t pairs, bool interleaved) {
  const NormedRow<W, T> row = normed_row<W>(x, norm, 2 * pairs);
  interleaved ? rotate_neighbours(row, angles, out, pairs) : rotate_halves(row, angles, out, pairs);
}

template <int W, typename T>
void rotate_query_typed(const RotateQueryParams& p) {
  const std::int64_t pairs = p.angles.pairs / p.groups;
  for_each_row(p.tokens, p.tokens * p.heads * pairs, [&](std::int64_t token) {
    T* head = static_cast<T*>(p.query) + token * p.token_stride + p.nope;
    for (std::int64_t h = 0; h < p.heads; ++h, head += p.head_stride) {
      const Angles angles = angles_of(p.angles, token, h * p.groups / p.heads * pairs);
      rotate_head<W>(head, p.norm, angles, head, pairs, p.interleaved);
    }
  });
}

template <int W>
void rotate_query(const RotateQueryParams& p) {
  p.dtype == DType::f32 ? rotate_query_typed<W, float>(p) : rotate_query_typed<W, bf16>(p);
}

}  // namespace latentkv::LATENTKV_ISA
