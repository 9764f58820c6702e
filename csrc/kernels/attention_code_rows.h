// The rows of codes of one chunk as what they are multiplied with, made once for scores and sums; scales group by group.
#pragma once

#include "kernels/attention_code_words.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class CodeRows {
  using Reader = WordReader<W>;

 public:
  using Words = typename Reader::I16;
  using NanWatch = typename Reader::NanWatch;

  static std::int64_t floats(const RowCodes& codes) {
    return kCodeChunk * spans(codes) + round_up(codes.width, kCodeUnit) / kCodeUnit * unit_bytes(codes) / 4;
  }

  CodeRows(const RowCodes& codes, float* memory)
      : codes_(codes),
        reader_(codes),
        padded_(round_up(codes.width, kCodeUnit)),
        unit_bytes_(unit_bytes(codes)),
        span_(span_of(codes)),
        spans_of_group_(codes.group / span_),
        reads_in_place_(codes.format == CodeFormat::int8 && padded_ == codes.width),
        scales_(memory),
        staged_(reinterpret_cast<char*>(memory + kCodeChunk * spans(codes))) {}

  // `use` with the format as its template argument.
  template <typename Use>
  void with_format(Use use) const {
    reader_.with_format(use);
  }

  // The scales of rows 0 ... count - 1 for codes of that form. take_codes() of each row and end() have to follow.
  void take_scales(const char* const* rows, std::int64_t count, CodeForm form) {
    const float unit = form == CodeForm::byte ? 1.0f : form == CodeForm::word ? Reader::kWordUnit : Reader::kHalfUnit;
    using S = Simd<W>;
    each_scales<W>(codes_, rows, count, kCodeChunk, [&](std::int64_t first, std::int64_t groups, std::int64_t t, auto& square) {
      float* to = scales_ + first * spans_of_group_ * kCodeChunk + t;
      for (int i = 0; i < groups; ++i) {
        const auto scales = square[i] * S::broadcast(unit);
        for (std::int64_t span = 0; span < spans_of_group_; ++span, to += kCodeChunk) S::store(to, scales);
      }
    });
  }

  // fp8 has codes that are no number: when all of a chunk are taken, mark_nan() has to follow if `watch` found one.
  template <CodeFormat Format, CodeForm Form>
  [[gnu::always_inline]] void take_codes(const char* row, std::int64_t t, NanWatch& watch) {
    if (Format == CodeFormat::int8 && reads_in_place_) {
      places_[t] = row;
      return;
    }
    char* to = staged_ + (Form == CodeForm::byte ? padded_ * t : kCodeUnit * 2 * t);
    places_[t] = to;
    const std::int64_t step = unit_step<Form>();
    reader_.template each_unit<Format>(row, [&](CodeUnit unit) [[gnu::always_inline]] {
      if constexpr (Format == CodeFormat::fp8) watch.see(unit.codes);
      stage<Format, Form>(unit, to);
      to += step;
    });
  }

  // The scales of groups with a code that is no number; whether there is one.
  bool mark_nan(const char* row, std::int64_t t) {
    bool any = false;
    for (std::int64_t first = 0; first < codes_.width; first += codes_.group) {
      const std::int64_t left = codes_.width - first, count = left < codes_.group ? left : codes_.group;
      if (!Reader::has_nan(row + first, count)) continue;
      any = true;
      float* to = scales_ + first / span_ * kCodeChunk + t;
      for (std::int64_t span = 0; span < spans_of_group_; ++span) to[span * kCodeChunk] = __builtin_nanf("");
    }
    return any;
  }

  // Beyond rows 0 ... count - 1 the last one is repeated.
  void end(std::int64_t count) {
    for (std::int64_t t = count; t < kCodeChunk; ++t) places_[t] = places_[count - 1];
  }

  // Columns with those that fill the last 64.
  std::int64_t padded() const { return padded_; }

  // What codes of a span are to be multiplied with, [kCodeChunk]: 0 beyond the rows taken, NaN where a code of the group is.
  const float* scales(std::int64_t span) const { return scales_ + span * kCodeChunk; }

  // Columns from d on, a multiple of 64, of which 64 follow each other; beyond the rows taken those of the last.
  template <CodeForm Form>
  [[gnu::always_inline]] const char* at(std::int64_t t, std::int64_t d) const {
    return places_[t] + (Form == CodeForm::byte ? d : d / kCodeUnit * unit_bytes_);
  }

  // From one unit of 64 columns to the next.
  template <CodeForm Form>
  [[gnu::always_inline]] std::int64_t unit_step() const {
    return Form == CodeForm::byte ? kCodeUnit : unit_bytes_;
  }

  // From at(), 2 * W columns from `i` on.
  template <CodeForm Form>
  [[gnu::always_inline]] static Words words(const char* from, int i) {
    if constexpr (Form == CodeForm::byte) return Reader::signed_words(from + i);
    Words words;
    __builtin_memcpy(&words, from + 2 * i, sizeof words);
    return words;
  }

  // Words of columns d ... d + 63 of all tokens, one after the other.
  const std::uint32_t* words_of_all(std::int64_t d) const {
    return reinterpret_cast<const std::uint32_t*>(staged_ + d / kCodeUnit * unit_bytes_);
  }

 private:
  static std::int64_t spans(const RowCodes& codes) { return groups_of(codes) * (codes.group / span_of(codes)); }

  // 64 columns of all tokens. A line more for words: in steps of a power of two they would all be in the same sets of a cache.
  static std::int64_t unit_bytes(const RowCodes& codes) {
    return codes.format == CodeFormat::fp8 ? kCodeChunk * kCodeUnit * 2 + Ahead::kLine : kCodeChunk * kCodeUnit;
  }

  // 64 codes.
  template <CodeFormat Format, CodeForm Form>
  [[gnu::always_inline]] static void stage(CodeUnit unit, char* to) {
    if constexpr (Form == CodeForm::half) {
      Reader::write_halves(unit.codes, to);
    } else if constexpr (Format == CodeFormat::fp8) {
      Reader::write_long_words(unit.codes, to);
    } else if constexpr (Format == CodeFormat::int8) {
      __builtin_memcpy(to, unit.codes, kCodeUnit);
    } else {
      unpack_codes<Format>(unit, to);
    }
  }

  const RowCodes& codes_;
  const Reader reader_;
  const std::int64_t padded_, unit_bytes_, span_, spans_of_group_;
  const bool reads_in_place_;
  float* scales_;  // [spans][kCodeChunk]
  char* staged_;   // bytes [kCodeChunk][padded], or words or float16 [padded / 64][kCodeChunk][64]
  const char* places_[kCodeChunk];
};

}  // namespace latentkv::LATENTKV_ISA
