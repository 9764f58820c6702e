// Few rows against a chunk of codes: columns in the lanes, codes widened to float32 in registers, straight from the cache. Scales
// are applied to the scores of a group, and to the weights before the sum. Packed codes become bytes first, once.
#pragma once

#include "kernels/attention_code_words.h"
#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

// The numbers of 64 packed codes as bytes: odd, -63 to 63 or -15 to 15.
template <CodeFormat Format>
[[gnu::always_inline]] inline void unpack_codes(CodeUnit unit, char* to) {
  using Half = Lanes<std::uint8_t, 32>::type;
  using HalfWords = Lanes<std::uint16_t, 16>::type;
  using Shifts = Lanes<std::uint32_t, 8>::type;
  constexpr std::uint8_t middle = Format == CodeFormat::int6 ? 63 : 15;
  constexpr Shifts up{4, 4, 4, 4, 2, 2, 2, 2}, down{0, 0, 0, 0, 2, 2, 2, 2};
  Half both, twice{};
  __builtin_memcpy(&both, unit.codes, sizeof both);
  if constexpr (Format == CodeFormat::int6) {
    char pairs[32];
    __builtin_memcpy(pairs, unit.high, 16);
    __builtin_memcpy(pairs + 16, unit.high, 16);
    __builtin_memcpy(&twice, pairs, sizeof twice);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {  // what a shift brings in from the neighbouring byte is masked
    Half code = (half == 0 ? both : (Half)((HalfWords)both >> 4)) & 15;
    if constexpr (Format == CodeFormat::int6) code |= (Half)(half == 0 ? (Shifts)twice << up : (Shifts)twice >> down) & 0x30;
    code = code + code - middle;
    __builtin_memcpy(to + half * 32, &code, sizeof code);
  }
}

template <int W>
class FewRows {
  using S = Simd<W>;
  using F = typename S::F;

 public:
  static constexpr std::int64_t kMostSummed = 2;

  static std::int64_t floats(const AttentionParams& p) {
    return groups(p.codes) * kChunk + kMostSummed * kChunk + kChunk * round_up(p.codes.width, kCodeUnit) / 4;
  }

  FewRows(const AttentionParams& p, const WordReader<W>& reader, float* memory)
      : layout_(p.codes),
        reader_(reader),
        padded_(round_up(p.codes.width, kCodeUnit)),
        scales_(memory),
        weights_(scales_ + groups(p.codes) * kChunk),
        staged_(reinterpret_cast<char*>(weights_ + kMostSummed * kChunk)) {}

  // The rows that scores and sums are of.
  void take(const char* const* rows, std::int64_t count) {
    rows_ = rows;
    count_ = count;
    reader_.with_format([&]<CodeFormat Format>() {
      for (std::int64_t t = 0; t < count; ++t) take_row<Format>(t);
    });
  }

  // scores[token][row] of `row_count` (1, 2 or 4) rows; q is [rows][stride].
  void dot(const float* q, std::int64_t stride, std::int64_t row_count, bool sees_codes, std::int64_t width, float* scores,
           Ahead& ahead) const {
    if (row_count == 4) return dot_rows<4>(q, stride, sees_codes, width, scores, ahead);
    row_count == 2 ? dot_rows<2>(q, stride, sees_codes, width, scores, ahead)
                   : dot_rows<1>(q, stride, sees_codes, width, scores, ahead);
  }

  // result = result * shrink + weights · codes, of 1 or 2 rows; weights are [token][kRows].
  void sum(const Partial& result, std::int64_t row_count, const float* weights, const float* shrink, Ahead& ahead) const {
    row_count == 2 ? sum_rows<2>(result, weights, shrink, ahead) : sum_rows<1>(result, weights, shrink, ahead);
  }

 private:
  static std::int64_t groups(const RowCodes& codes) { return (codes.width + codes.group - 1) / codes.group; }

  template <CodeFormat Format>
  void take_row(std::int64_t t) {
    const char* row = rows_[t];
    char* staged = staged_ + t * padded_;
    constexpr bool packed = Format == CodeFormat::int6 || Format == CodeFormat::int4;
    codes_[t] = packed || padded_ != layout_.width ? staged : row;
    for (std::int64_t group = 0; group < groups(layout_); ++group) {
      const float scale = reader_.stored_scale(row, group);
      scales_[group * kChunk + t] = Format == CodeFormat::fp8 ? scale * 256.0f : scale;
    }
    if (Format == CodeFormat::int8 && codes_[t] == row) return;
    for (std::int64_t first = 0; first < padded_; first += kCodeUnit) {
      if constexpr (packed) {
        char unused[kCodeUnit];
        unpack_codes<Format>(reader_.find(row, first, unused), staged + first);
      } else if (codes_[t] == staged) {
        __builtin_memset(staged + first, 0, kCodeUnit);
        const std::int64_t left = layout_.width - first;
        __builtin_memcpy(staged + first, row + first, left < kCodeUnit ? left : kCodeUnit);
      }
      if constexpr (Format == CodeFormat::fp8) {
        if (WordReader<W>::has_nan(codes_[t] + first)) scales_[first / layout_.group * kChunk + t] = __builtin_nanf("");
      }
    }
    // Packed codes have none for zero, and beyond the width queries have their RoPE part.
    if constexpr (packed) __builtin_memset(staged + layout_.width, 0, padded_ - layout_.width);
  }

  // W numbers, of fp8 2**8 times smaller: float16 has its bits, further up.
  template <bool IsFloat>
  [[gnu::always_inline]] static F number(const char* from) {
    if constexpr (IsFloat) return S::widen_f16((signed_halves(from) << 7) & 0xbfff);
    typename Lanes<std::int8_t, W>::type bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
    if constexpr (W == 16) return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) {
      return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
#endif
    return __builtin_convertvector(bytes, F);
  }

  [[gnu::always_inline]] static typename S::H signed_halves(const char* from) {
#if defined(__AVX512BW__)
    if constexpr (W == 16) return (typename S::H)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (typename S::H)_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#endif
    typename Lanes<std::int8_t, W>::type bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
    return (typename S::H)__builtin_convertvector(bytes, typename Lanes<std::int16_t, W>::type);
  }

  template <int Rows>
  void dot_rows(const float* q, std::int64_t stride, bool sees_codes, std::int64_t width, float* scores, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count_; ++t, scores += kRows) {
      F sum[Rows] = {};
      if (sees_codes) {
        layout_.format == CodeFormat::fp8 ? dot_codes<true, Rows>(q, stride, t, sum) : dot_codes<false, Rows>(q, stride, t, sum);
      }
      const auto* key = reinterpret_cast<const bf16*>(rows_[t] + layout_.rope_offset) - layout_.width;
      for (std::int64_t d = layout_.width; d < width; d += W) {
        const F value = S::load(key + d);
        for (int r = 0; r < Rows; ++r) sum[r] = S::fma(value, S::load(q + r * stride + d), sum[r]);
      }
      for (int r = 0; r < Rows; ++r) scores[r] = S::sum(sum[r]);
      ahead.step();
    }
  }

  template <bool IsFloat, int Rows>
  [[gnu::always_inline]] void dot_codes(const float* q, std::int64_t stride, std::int64_t t, F (&sum)[Rows]) const {
    const char* codes = codes_[t];
    const char* const end = codes + padded_;
    for (const float* scale = scales_ + t; codes < end; scale += kChunk) {
      const char* const group_end = end - codes < layout_.group ? end : codes + layout_.group;
      for (; codes < group_end; codes += kCodeUnit, q += kCodeUnit) {
        F part[Rows] = {};
#pragma GCC unroll 16
        for (int i = 0; i < kCodeUnit; i += W) {
          const F value = number<IsFloat>(codes + i);
          for (int r = 0; r < Rows; ++r) part[r] = S::fma(value, S::load(q + r * stride + i), part[r]);
        }
        for (int r = 0; r < Rows; ++r) sum[r] = S::fma(part[r], S::broadcast(*scale), sum[r]);
      }
    }
  }

  template <int Rows>
  void sum_rows(const Partial& result, const float* weights, const float* shrink, Ahead& ahead) const {
    constexpr int most = kStrip / W, wanted = Rows == 1 ? 8 : 4, vectors = wanted < most ? wanted : most;
    for (std::int64_t d = 0; d < padded_; d += vectors * W) {
      if (d % layout_.group == 0) scale_weights(weights, Rows, d / layout_.group);
      layout_.format == CodeFormat::fp8 ? sum_columns<true, Rows, vectors>(result, d, shrink, ahead)
                                        : sum_columns<false, Rows, vectors>(result, d, shrink, ahead);
    }
  }

  // weights_ [row][kChunk]
  void scale_weights(const float* weights, int row_count, std::int64_t group) const {
    for (int r = 0; r < row_count; ++r) {
      for (std::int64_t t = 0; t < count_; ++t) weights_[r * kChunk + t] = weights[t * kRows + r] * scales_[group * kChunk + t];
    }
  }

  template <bool IsFloat, int Rows, int Vectors>
  void sum_columns(const Partial& result, std::int64_t d, const float* shrink, Ahead& ahead) const {
    F sum[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) sum[r][v] = S::load(result.at(r, d) + v * W) * S::broadcast(shrink[r]);
    }
    const float* weight = weights_;
    for (std::int64_t t = 0; t < count_;) {
      const std::int64_t stop = t + kStepTerms < count_ ? t + kStepTerms : count_;
      for (; t < stop; ++t, ++weight) {
        const char* codes = codes_[t] + d;
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
          const F value = number<IsFloat>(codes + v * W);
#pragma GCC unroll 2
          for (int r = 0; r < Rows; ++r) sum[r][v] = S::fma(value, S::broadcast(weight[r * kChunk]), sum[r][v]);
        }
      }
      ahead.step();
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) S::store(result.at(r, d) + v * W, sum[r][v]);
    }
  }

  const RowCodes& layout_;
  const WordReader<W>& reader_;
  const std::int64_t padded_;
  float *scales_, *weights_;  // [groups][kChunk]; of the group that is summed
  char* staged_;              // [kChunk][padded_]
  const char* const* rows_ = nullptr;
  const char* codes_[kChunk];
  std::int64_t count_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
