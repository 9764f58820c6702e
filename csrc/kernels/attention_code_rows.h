// The rows of codes of one chunk, made ready once for scores and sums: codes that are bytes or become bytes, those of fp8 as
// words; scales group by group.
#pragma once

#include "kernels/attention_code_words.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class CodeRows {
  using Reader = WordReader<W>;

 public:
  using Words = typename Reader::I16;

  static std::int64_t floats(const RowCodes& codes) {
    const std::int64_t bytes = codes.format == CodeFormat::fp8 ? 2 : 1;
    return kChunk * (spans(codes) + round_up(codes.width, kCodeUnit) * bytes / 4);
  }

  CodeRows(const RowCodes& codes, float* memory)
      : codes_(codes),
        reader_(codes),
        padded_(round_up(codes.width, kCodeUnit)),
        span_(span_of(codes)),
        groups_(groups(codes)),
        spans_of_group_(codes.group / span_),
        scales_(memory),
        staged_(reinterpret_cast<char*>(memory + kChunk * spans(codes))) {}

  void take(const char* const* rows, std::int64_t count) {
    reader_.with_format([&]<CodeFormat Format>() {
      for (std::int64_t t = 0; t < count; ++t) take_row<Format>(rows[t], t);
    });
    for (std::int64_t t = count; t < kChunk; ++t) {
      places_[t] = places_[count - 1];
      for (std::int64_t span = 0; span < spans(codes_); ++span) scales_[span * kChunk + t] = 0.0f;
    }
  }

  // Columns with those that fill the last 64.
  std::int64_t padded() const { return padded_; }

  // What words of a span are to be multiplied with, [kChunk]: 0 beyond the rows taken, NaN where a code of the group is.
  const float* scales(std::int64_t span) const { return scales_ + span * kChunk; }

  // Columns d + i ... d + i + 2 * W - 1 of a row, d a multiple of 64; beyond the rows taken those of the last. AreLong: of fp8.
  template <bool AreLong>
  [[gnu::always_inline]] Words words(std::int64_t t, std::int64_t d, int i) const {
    if constexpr (!AreLong) return Reader::signed_words(places_[t] + d + i);
    Words words;
    __builtin_memcpy(&words, places_[t] + d * (2 * kChunk) + 2 * i, sizeof words);
    return words;
  }

  // The long words of columns d ... d + 63 of all tokens, one after the other.
  const std::uint32_t* long_words(std::int64_t d) const {
    return reinterpret_cast<const std::uint32_t*>(staged_ + d * (2 * kChunk));
  }

 private:
  static std::int64_t groups(const RowCodes& codes) { return (codes.width + codes.group - 1) / codes.group; }
  static std::int64_t spans(const RowCodes& codes) { return groups(codes) * (codes.group / span_of(codes)); }

  template <CodeFormat Format>
  void take_row(const char* row, std::int64_t t) {
    constexpr bool is_long = Format == CodeFormat::fp8;
    take_scales(row, t, is_long ? 1.0f / 8.0f : 1.0f);
    if (Format == CodeFormat::int8 && padded_ == codes_.width) {
      places_[t] = row;
      return;
    }
    char* to = staged_ + (is_long ? kCodeUnit * 2 : padded_) * t;
    places_[t] = to;
    for (std::int64_t d = 0; d < padded_; d += kCodeUnit) stage<Format>(row, d, to + d * (is_long ? 2 * kChunk : 1));
    if (is_long && Reader::has_nan(row, codes_.width)) mark_nan(row, t);
  }

  void take_scales(const char* row, std::int64_t t, float factor) {
    float* to = scales_ + t;
    for (std::int64_t group = 0; group < groups_; ++group) {
      const float scale = reader_.stored_scale(row, group) * factor;
      for (std::int64_t span = 0; span < spans_of_group_; ++span, to += kChunk) *to = scale;
    }
  }

  void mark_nan(const char* row, std::int64_t t) {
    for (std::int64_t first = 0; first < codes_.width; first += codes_.group) {
      const std::int64_t left = codes_.width - first, count = left < codes_.group ? left : codes_.group;
      if (!Reader::has_nan(row + first, count)) continue;
      float* to = scales_ + first / span_ * kChunk + t;
      for (std::int64_t span = 0; span < spans_of_group_; ++span) to[span * kChunk] = __builtin_nanf("");
    }
  }

  // 64 codes from d on.
  template <CodeFormat Format>
  [[gnu::always_inline]] void stage(const char* row, std::int64_t d, char* to) const {
    char copied[kCodeUnit];
    const CodeUnit unit = reader_.find(row, d, copied);
    if constexpr (Format == CodeFormat::fp8) {
      Reader::write_long_words(unit.codes, to);
    } else if constexpr (Format == CodeFormat::int8) {
      __builtin_memcpy(to, unit.codes, kCodeUnit);
    } else {
      unpack_codes<Format>(unit, to);
    }
  }

  const RowCodes& codes_;
  const Reader reader_;
  const std::int64_t padded_, span_, groups_, spans_of_group_;
  float* scales_;  // [spans][kChunk]
  char* staged_;   // bytes [kChunk][padded], or words [padded / 64][kChunk][64]
  const char* places_[kChunk];
};

}  // namespace latentkv::LATENTKV_ISA
