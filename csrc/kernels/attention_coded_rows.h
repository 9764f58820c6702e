// Rows of keys and values that are codes, each with scales of its own: as float32. Layout: src/latentkv/cache/layout.py.
#pragma once

#include "kernels/attention_codes.h"

namespace latentkv::LATENTKV_ISA {

// Stands where other rows have the type of their elements, which are counted over both parts.
struct CodedParts {
  std::uint8_t byte;
};

template <>
constexpr bool kCoded<CodedParts> = true;

template <typename T>
constexpr bool kInParts = false;
template <>
constexpr bool kInParts<CodedParts> = true;

// `width` (at most kStrip) elements of each row's part, from any element `first` on, into a strip.
template <int W>
void widen_part(const CodedPart& part, const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width,
                float* strip) {
  using S = Simd<W>;
  static_assert(kStrip == kCodeUnit);
  const CodeReader<W> reader(part.codes);
  const std::int64_t skipped = first % kCodeUnit;
  for (std::int64_t unit = first - skipped; unit < first + width; unit += kCodeUnit) {
    const std::int64_t group = unit / part.codes.group, from = unit < first ? skipped : 0, at = unit + from - first;
    const std::int64_t left = width - at, taken = left < kCodeUnit - from ? left : kCodeUnit - from;
    for (std::int64_t t = 0; t < count; ++t) {
      const char* row = rows[t] + part.begin;
      const auto factor = S::broadcast(reader.scale_of(row, group));
      float numbers[kCodeUnit], *to = skipped == 0 ? strip + t * kStrip : numbers;
      reader.codes(row, unit, [&](int i, typename S::F code) { S::store(to + i, code * factor); });
      if (skipped != 0) __builtin_memcpy(strip + t * kStrip + at, numbers + from, taken * sizeof(float));
    }
  }
}

template <int W>
void widen_parts(const AttentionParams& p, const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width,
                 float* strip) {
  first < p.value_offset ? widen_part<W>({p.codes, 0}, rows, count, first, width, strip)
                         : widen_part<W>(p.values, rows, count, first - p.value_offset, width, strip);
}

// Bytes of a row.
struct ByteRange {
  std::int64_t from, to;
};

// Where a group's key lies. Of a latent in codes, the whole row; of int6, the lower bits.
template <typename T>
ByteRange key_bytes(const AttentionParams& p, std::int64_t group) {
  if (kCoded<T> && !kInParts<T>) return {0, p.codes.row_bytes};
  const bool packed = kInParts<T> && (p.codes.format == CodeFormat::int6 || p.codes.format == CodeFormat::int4);
  const std::int64_t first = group * p.key_step, last = first + p.key_width, size = sizeof(T);
  return packed ? ByteRange{first / 2, (last + 1) / 2} : ByteRange{first * size, last * size};
}

}  // namespace latentkv::LATENTKV_ISA
