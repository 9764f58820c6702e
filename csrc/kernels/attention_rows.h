// What attention's tiles read, made from what the caller has: context rows widened into strips, queries scaled and packed.
#pragma once

#include "kernels/attention_coded_rows.h"

namespace latentkv::LATENTKV_ISA {

inline std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Rows that lie as strips already: those of a chunk follow each other, and a chunk is a page. Only a chunk's first row is
// looked at.
struct Expanded {
  float value;
};
template <typename T>
constexpr bool kExpanded = false;
template <>
constexpr bool kExpanded<Expanded> = true;

// Where the rows of one sequence lie.
class ContextRows {
 public:
  ContextRows(const AttentionParams& p, std::int64_t sequence)
      : p_(p), pages_(p.page_table + sequence * p.table_stride) {}

  // The addresses of rows begin ... end - 1, in elements of `element_bytes`.
  void find(std::int64_t begin, std::int64_t end, std::int64_t element_bytes, const char** rows) const {
    const std::int64_t step = p_.row_stride * element_bytes;
    while (begin < end) {
      const std::int64_t page = begin / p_.page_tokens, offset = begin % p_.page_tokens;
      const std::int64_t left = p_.page_tokens - offset, count = end - begin < left ? end - begin : left;
      const char* at = static_cast<const char*>(p_.rows) + pages_[page] * p_.page_stride * element_bytes + offset * step;
      for (std::int64_t i = 0; i < count; ++i, at += step) *rows++ = at;
      begin += count;
    }
  }

 private:
  const AttentionParams& p_;
  const std::int32_t* pages_;
};

// 2 * W elements as float32, parted like rows of T.
template <int W, typename T>
[[gnu::always_inline]] inline void widen_pair(const T* from, float* to) {
  typename Simd<W>::F a, b;
  load_two<W>(from, a, b);
  Simd<W>::store(to, a);
  Simd<W>::store(to + W, b);
}

// `width` (at most kStrip) elements of each row, from element `first` on, as float32 into a strip; parted like rows of T.
template <int W, typename T>
void widen_rows(const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width, float* strip) {
  if (width == kStrip) {
    for (std::int64_t token = 0; token < count; ++token, strip += kStrip) {
      const T* from = reinterpret_cast<const T*>(rows[token]) + first;
#pragma GCC unroll 8
      for (int d = 0; d < kStrip; d += 2 * W) widen_pair<W>(from + d, strip + d);
    }
    return;
  }
  for (std::int64_t token = 0; token < count; ++token, strip += kStrip) {
    const T* from = reinterpret_cast<const T*>(rows[token]) + first;
    std::int64_t d = 0;
    for (; d + 2 * W <= width; d += 2 * W) widen_pair<W>(from + d, strip + d);
    if (d < width) convert<W>(from + d, strip + d, width - d);
  }
}

// One query part of one row, times `factor`, as float32.
template <int W, typename T>
void scale_part(const QueryPart& part, std::int64_t token, std::int64_t head, float factor, float* to) {
  using S = Simd<W>;
  const T* from = static_cast<const T*>(part.data) + token * part.token_stride + head * part.head_stride;
  const auto factors = S::broadcast(factor);
  std::int64_t d = 0;
  for (; d + W <= part.width; d += W) S::store(to + d, S::load(from + d) * factors);
  if (d < part.width) S::store_part(to + d, S::load_part(from + d, part.width - d) * factors, part.width - d);
}

template <int W>
void scale_part(const QueryPart& part, std::int64_t token, std::int64_t head, float factor, float* to) {
  if (part.width == 0) return;
  part.dtype == DType::f32 ? scale_part<W, float>(part, token, head, factor, to)
                           : scale_part<W, bf16>(part, token, head, factor, to);
}

}  // namespace latentkv::LATENTKV_ISA
