// Unfinished results: how they are kept, merged and turned into output.
#pragma once

#include "kernels/attention_query.h"
#include "kernels/exp2.h"

namespace latentkv::LATENTKV_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kLn2 = 0.693147180559945309f;

inline std::int64_t value_strips(const AttentionParams& p) { return round_up(p.value_width, kStrip) / kStrip; }

// Up to kRows rows. out: strips of [kRows][kStrip], each row to be divided by its `total`, the sum of
// 2**(score - top), where scores count in powers of 2 and top is the largest.
struct Partial {
  float *out, *top, *total;
  std::int64_t strips;

  Partial(float* memory, std::int64_t strip_count)
      : out(memory), top(memory + strip_count * kRows * kStrip), total(top + kRows), strips(strip_count) {}

  static std::int64_t floats(std::int64_t strips) { return strips * kRows * kStrip + 2 * kRows; }

  float* at(std::int64_t row, std::int64_t d) const { return out + (d / kStrip * kRows + row) * kStrip + d % kStrip; }

  void clear(std::int64_t rows) const {
    for (std::int64_t row = 0; row < kRows; ++row) {
      top[row] = -kInfinity;
      total[row] = 0.0f;
    }
    for (std::int64_t strip = 0; strip < strips; ++strip) {
      __builtin_memset(at(0, strip * kStrip), 0, rows * kStrip * sizeof(float));
    }
  }
};

inline Partial slot(const AttentionParams& p, std::int64_t index) {
  const std::int64_t strips = value_strips(p);
  return {p.slots + index * Partial::floats(strips), strips};
}

// Sums that lie in memory, made to count from a new top.
template <int W>
void shrink_rows(const Partial& result, std::int64_t row_count, const float* shrink) {
  using S = Simd<W>;
  for (std::int64_t row = 0; row < row_count; ++row) {
    if (shrink[row] == 1.0f) continue;
    const auto factor = S::broadcast(shrink[row]);
    for (std::int64_t d = 0; d < result.strips * kStrip; d += W) {
      S::store(result.at(row, d), S::load(result.at(row, d)) * factor);
    }
  }
}

// One row's `width` columns, `Parted` or as they lie, times `share`, in order.
template <int W, bool Parted, typename T>
void write_out(const Partial& from, std::int64_t row, float share, std::int64_t width, T* to) {
  using S = Simd<W>;
  const auto factor = S::broadcast(share);
  std::int64_t d = 0;
  for (; Parted && d + 2 * W <= width; d += 2 * W) {
    auto a = S::load(from.at(row, d)), b = S::load(from.at(row, d + W));
    join<W>(a, b);
    S::store(to + d, a * factor);
    S::store(to + d + W, b * factor);
  }
  for (; d + W <= width; d += W) S::store(to + d, S::load(from.at(row, d)) * factor);
  if (d < width) S::store_part(to + d, S::load(from.at(row, d)) * factor, width - d);
}

// One row's output and LSE: zeros and -inf where nothing was seen.
template <int W, bool Parted>
void finish_row(const AttentionParams& p, const RowNames& names, const Partial& from, std::int64_t row) {
  const std::int64_t token = names.token(row), head = names.head(row);
  const float total = from.total[row];
  const bool empty = total == 0.0f;
  const float share = empty ? 0.0f : 1.0f / total;
  p.lse[token * p.heads + head] = empty ? -kInfinity : from.top[row] * kLn2 + __builtin_logf(total);
  const std::int64_t start = token * p.out_token_stride + head * p.out_head_stride;
  if (p.out_dtype == DType::f32) {
    write_out<W, Parted>(from, row, share, p.value_width, static_cast<float*>(p.out) + start);
  } else {
    write_out<W, Parted>(from, row, share, p.value_width, static_cast<bf16*>(p.out) + start);
  }
}

// One row of all slots of `merge` together, in their order, into `result`.
template <int W>
void merge_row(const AttentionParams& p, const AttentionMerge& merge, std::int64_t row, const Partial& result) {
  using S = Simd<W>;
  float top = -kInfinity, total = 0.0f;
  for (std::int64_t i = 0; i < merge.slot_count; ++i) {
    const float other = slot(p, merge.first_slot + i).top[row];
    top = other > top ? other : top;
  }
  const float base = top == -kInfinity ? 0.0f : top;
  for (std::int64_t d = 0; d < result.strips * kStrip; d += W) S::store(result.at(row, d), S::zero());
  for (std::int64_t i = 0; i < merge.slot_count; ++i) {
    const Partial other = slot(p, merge.first_slot + i);
    const auto share = exp2_nonpositive<W>(S::broadcast(other.top[row] - base));
    total += other.total[row] * share[0];
    for (std::int64_t d = 0; d < result.strips * kStrip; d += W) {
      S::store(result.at(row, d), S::fma(S::load(other.at(row, d)), share, S::load(result.at(row, d))));
    }
  }
  result.top[row] = top;
  result.total[row] = total;
}

}  // namespace latentkv::LATENTKV_ISA
