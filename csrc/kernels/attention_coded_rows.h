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

constexpr std::int64_t kNothing = -1;

// `width` (at most kStrip) elements of each row's part, from any element `first` on, into a strip. Meanwhile each row's byte
// `asked` is asked for: all at once they would wait for each other.
template <int W>
void widen_part(const CodedPart& part, const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width,
                std::int64_t asked, float* strip) {
  using S = Simd<W>;
  static_assert(kStrip == kCodeUnit);
  const CodeReader<W> reader(part.codes);
  const std::int64_t skipped = first % kCodeUnit;
  for (std::int64_t unit = first - skipped; unit < first + width; unit += kCodeUnit) {
    const std::int64_t group = unit / part.codes.group, from = unit < first ? skipped : 0, at = unit + from - first;
    const std::int64_t left = width - at, taken = left < kCodeUnit - from ? left : kCodeUnit - from;
    for (std::int64_t t = 0; t < count; ++t) {
      if (asked != kNothing) __builtin_prefetch(rows[t] + asked, 0, 2);
      const char* row = rows[t] + part.begin;
      const auto factor = S::broadcast(reader.scale_of(row, group));
      float numbers[kCodeUnit], *to = skipped == 0 ? strip + t * kStrip : numbers;
      reader.codes(row, unit, [&](int i, typename S::F code) { S::store(to + i, code * factor); });
      if (skipped != 0) __builtin_memcpy(strip + t * kStrip + at, numbers + from, taken * sizeof(float));
    }
  }
}

// Bytes of a row.
struct ByteRange {
  std::int64_t from, to;
};

// Where elements of a part lie; of int6, their lower bits.
inline ByteRange bytes_of(const CodedPart& part, std::int64_t first, std::int64_t width) {
  const bool packed = part.codes.format == CodeFormat::int6 || part.codes.format == CodeFormat::int4;
  const int per_byte = packed ? 2 : 1;
  return {part.begin + first / per_byte, part.begin + (first + width + per_byte - 1) / per_byte};
}

template <int W>
void widen_parts(const AttentionParams& p, const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width,
                 float* strip) {
  if (first >= p.value_offset) {
    return widen_part<W>(p.values, rows, count, first - p.value_offset, width, kNothing, strip);
  }
  // The values that belong to these keys: Ahead asks for keys alone.
  const std::int64_t value = first / p.key_step * p.value_step + first % p.key_step;
  widen_part<W>({p.codes, 0}, rows, count, first, width, bytes_of(p.values, value, 1).from, strip);
}

// Where a group's key lies; of a latent in codes, the whole row.
template <typename T>
ByteRange key_bytes(const AttentionParams& p, std::int64_t group) {
  const std::int64_t first = group * p.key_step, size = sizeof(T);
  if constexpr (kInParts<T>) return bytes_of({p.codes, 0}, first, p.key_width);
  if constexpr (kCoded<T>) return {0, p.codes.row_bytes};
  return {first * size, (first + p.key_width) * size};
}

}  // namespace latentkv::LATENTKV_ISA
