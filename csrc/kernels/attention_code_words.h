// Codes as int16 words, whose products with other words are exact. Layout: src/latentkv/cache/layout.py.
//
//   int8, int6, int4   word * scale is the element
//   fp8                word * scale / 8 is the element, to nearest: 2**-4 of a scale off at most, 1.4e-4 of the largest element
//
// Numbers that are multiplied with them become words too, of 15 bits and a sign; with fp8, whose words are longer, of 13.
// Then 64 products, of bytes 128, summed in 32 bits, cannot overflow.
#pragma once

#include "dot.h"
#include "kernels/attention_codes.h"
#include "kernels/attention_rows.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kStripWords = kStrip / 2;  // in 32 bits two words
constexpr std::int64_t kCodeChunk = 96;  // context tokens at once: a multiple of every tile of words

// What becomes of a code: a byte where it is one or fits one, a word, or float16.
enum class CodeForm { byte, word, half };

template <CodeFormat Format>
constexpr bool kPacked = Format == CodeFormat::int6 || Format == CodeFormat::int4;

inline std::int64_t groups_of(const RowCodes& codes) { return (codes.width + codes.group - 1) / codes.group; }

// The scales of rows 0 ... count - 1, W tokens and W groups at a time: use(first group, groups, first token, square) up to
// `tokens` tokens; the square is [group][token], 0 beyond the rows.
template <int W, typename Scale, typename Use>
[[gnu::always_inline]] inline void each_scales(const RowCodes& codes, const char* const* rows, std::int64_t count,
                                               std::int64_t tokens, Use use) {
  using S = Simd<W>;
  for (std::int64_t first = 0; first < groups_of(codes); first += W) {
    const std::int64_t offset = codes.scale_offset + first * sizeof(Scale), groups = groups_of(codes) - first;
    const std::int64_t left = groups < W ? groups : W;
    const bool has_room = offset + W * static_cast<std::int64_t>(sizeof(Scale)) <= codes.row_bytes;
    for (std::int64_t t = 0; t < tokens; t += W) {
      typename S::F square[W];
      const auto at = [&](int i) { return reinterpret_cast<const Scale*>(rows[t + i] + offset); };
      if (has_room && t + W <= count) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) square[i] = S::load(at(i));
      } else {
        for (int i = 0; i < W; ++i) square[i] = t + i < count ? S::load_part(at(i), left) : S::zero();
      }
      transpose<W>(square);
      use(first, left, t, square);
    }
  }
}

template <int W, typename Use>
void each_scales(const RowCodes& codes, const char* const* rows, std::int64_t count, std::int64_t tokens, Use use) {
  codes.short_scales ? each_scales<W, bf16>(codes, rows, count, tokens, use)
                     : each_scales<W, float>(codes, rows, count, tokens, use);
}

template <int W>
class WordReader {
  using B = typename Lanes<std::uint8_t, 2 * W>::type;

 public:
  using I16 = typename Lanes<std::int16_t, 2 * W>::type;
  using U16 = typename Lanes<std::uint16_t, 2 * W>::type;

  explicit WordReader(const RowCodes& codes)
      : codes_(codes),
        is_whole_(codes.width % kCodeUnit == 0),
        high_(round_up(codes.width, kCodeUnit) / 2) {}

  // `use` with the format as its template argument.
  template <typename Use>
  [[gnu::always_inline]] void with_format(Use use) const {
    switch (codes_.format) {
      case CodeFormat::int8: return use.template operator()<CodeFormat::int8>();
      case CodeFormat::int6: return use.template operator()<CodeFormat::int6>();
      case CodeFormat::int4: return use.template operator()<CodeFormat::int4>();
      default: return use.template operator()<CodeFormat::fp8>();
    }
  }

  // Codes from `first` on, a multiple of 64. What is not whole is copied: after its codes the row may end.
  template <CodeFormat Format>
  [[gnu::always_inline]] CodeUnit find(const char* row, std::int64_t first, char (&copied)[kCodeUnit]) const {
    if constexpr (kPacked<Format>) return {row + (first >> 1), row + high_ + (first >> 2)};
    if (is_whole_ || first + kCodeUnit <= codes_.width) return {row + first, nullptr};
    __builtin_memset(copied, 0, kCodeUnit);
    __builtin_memcpy(copied, row + first, codes_.width - first);
    return {copied, nullptr};
  }

  // use(unit) for all of a row.
  template <CodeFormat Format, typename Use>
  [[gnu::always_inline]] void each_unit(const char* row, Use use) const {
    const std::int64_t whole = kPacked<Format> || is_whole_ ? 2 * high_ : codes_.width / kCodeUnit * kCodeUnit;
    CodeUnit unit{row, row + high_};
    for (std::int64_t left = whole; left > 0; left -= kCodeUnit) {
      use(unit);
      unit.codes += kPacked<Format> ? kCodeUnit / 2 : kCodeUnit;
      unit.high += kCodeUnit / 4;
    }
    if (kPacked<Format> || is_whole_) return;
    char copied[kCodeUnit];
    use(find<Format>(row, whole, copied));
  }

  // Words and float16 of fp8 times these are the elements in units of their scale.
  static constexpr float kWordUnit = 1.0f / 8.0f, kHalfUnit = 256.0f;

  // 64 codes of fp8 as words.
  [[gnu::always_inline]] static void write_long_words(const char* codes, char* to) {
#pragma GCC unroll 8
    for (int i = 0; i < kCodeUnit; i += 2 * W) {
      const I16 words = e4m3(codes + i);
      __builtin_memcpy(to + 2 * i, &words, sizeof words);
    }
  }

  // The same as float16.
  [[gnu::always_inline]] static void write_halves(const char* codes, char* to) {
#pragma GCC unroll 8
    for (int i = 0; i < kCodeUnit; i += 2 * W) {
      const I16 halves = half_bits(codes + i);
      __builtin_memcpy(to + 2 * i, &halves, sizeof halves);
    }
  }

  // 2 * W bytes.
  [[gnu::always_inline]] static I16 signed_words(const char* from) {
    typename Lanes<std::int8_t, 2 * W>::type narrow;
    __builtin_memcpy(&narrow, from, sizeof narrow);
#if defined(__AVX512BW__)
    if constexpr (W == 16) return (I16)_mm512_cvtepi8_epi16((__m256i)narrow);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (I16)_mm256_cvtepi8_epi16((__m128i)narrow);
#endif
    return __builtin_convertvector(narrow, I16);
  }

  // Looks for codes of fp8 that are no number: the largest of either sign.
  class NanWatch {
    using Bytes = typename Lanes<std::int8_t, 4 * W>::type;
    using Codes = typename Lanes<std::uint8_t, 4 * W>::type;

   public:
    // 64 codes.
    [[gnu::always_inline]] void see(const char* codes) {
#pragma GCC unroll 8
      for (int i = 0; i < kCodeUnit; i += 4 * W) {
        Codes some;
        __builtin_memcpy(&some, codes + i, sizeof some);
        least_ = some > least_ ? some : least_;
        most_ = (Bytes)some > most_ ? (Bytes)some : most_;
      }
    }

    bool found() const {
      const Codes nan = (Codes)(least_ == 0xff) | (Codes)(most_ == 0x7f);
      std::uint64_t words[sizeof nan / 8], any = 0;
      __builtin_memcpy(words, &nan, sizeof nan);
      for (const std::uint64_t word : words) any |= word;
      return any != 0;
    }

   private:
    Codes least_{};  // of the negative ones, without their order
    Bytes most_{};
  };

  static bool has_nan(const char* codes, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      if ((codes[i] & 0x7f) == 0x7f) return true;
    }
    return false;
  }

 private:
  // 8 times the numbers that codes stand for, to nearest: (8 + fraction) * 2**(exponent - 7), where exponents of 0 have no 8
  // and count as 1. AVX2 has no shifts by words: it goes by float16 and float32.
  [[gnu::always_inline]] static I16 e4m3(const char* from) {
#if defined(__AVX2__)
    if constexpr (W == 8) return e4m3_by_floats(from);
#endif
    const U16 code = unsigned_words(from), exponent = code >> 3 & 15, is_normal = (U16)(exponent != 0);
    const U16 size = ((code & 7) | (is_normal & 8)) << 9, power = (U16{} + 1) << (exponent - (is_normal & 1));
    const I16 number = round_product((I16)size, (I16)power);
    const I16 sign = (I16)(code << 8) >> 15;
    return (number ^ sign) - sign;
  }

  // float16 has the bits of fp8 further up, for numbers 2**8 times smaller.
  [[gnu::always_inline]] static I16 half_bits(const char* from) {
    return (signed_words(from) << 7) & static_cast<std::int16_t>(0xbfff);
  }

#if defined(__AVX2__)
  [[gnu::always_inline]] static I16 e4m3_by_floats(const char* from) {
    const auto half = (__m256i)half_bits(from);
    const __m256 unit = _mm256_set1_ps(8 * 256.0f);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(half)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    const __m256i first = _mm256_cvtps_epi32(low * unit), last = _mm256_cvtps_epi32(high * unit);
    return (I16)_mm256_permute4x64_epi64(_mm256_packs_epi32(first, last), 0xd8);
  }
#endif

  // a * b / 2**15, to nearest.
  static I16 round_product(I16 a, I16 b) {
#if defined(__AVX512BW__)
    if constexpr (W == 16) return (I16)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
#endif
    std::int16_t left[2 * W], right[2 * W];
    __builtin_memcpy(left, &a, sizeof left);
    __builtin_memcpy(right, &b, sizeof right);
#pragma GCC unroll 1
    for (int i = 0; i < 2 * W; ++i) left[i] = static_cast<std::int16_t>((left[i] * right[i] + 0x4000) >> 15);
    __builtin_memcpy(&a, left, sizeof a);
    return a;
  }

  static U16 unsigned_words(const char* from) {
    B narrow;
    __builtin_memcpy(&narrow, from, sizeof narrow);
#if defined(__AVX512BW__)
    if constexpr (W == 16) return (U16)_mm512_cvtepu8_epi16((__m256i)narrow);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (U16)_mm256_cvtepu8_epi16((__m128i)narrow);
#endif
    return __builtin_convertvector(narrow, U16);
  }

  const RowCodes& codes_;
  const bool is_whole_;
  const std::int64_t high_;
};

// Largest word of the numbers that are multiplied with codes.
inline float most_word(const RowCodes& codes) { return codes.format == CodeFormat::fp8 ? 8191.0f : 32767.0f; }

// Columns whose products with a query have one unit and one scale, so that they are summed in 32 bits: 64, or 128.
inline std::int64_t span_of(const RowCodes& codes) {
  const bool is_long = codes.format == CodeFormat::fp8;
  return is_long || codes.group % (2 * kCodeUnit) != 0 || codes.width % (2 * kCodeUnit) != 0 ? kCodeUnit : 2 * kCodeUnit;
}

// Numbers as words, in units that make the largest `most`.
template <int W>
class WordUnit {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;
  using I = typename Dot<W>::I;

 public:
  // The largest of `of(0)`, ... `of(count - 1)`, vectors of W numbers: in each lane, or of all lanes.
  template <typename Of>
  WordUnit(float most, std::int64_t count, Of of) : WordUnit(largest_of(count, of), most) {}

  template <typename Of>
  static WordUnit of_all(float most, std::int64_t count, Of of) {
    const I lanes = largest_of(count, of);
    std::int32_t largest = 0;
    for (int i = 0; i < W; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    return {largest - I{}, most};
  }

  F unit() const { return unit_; }

  // How many units.
  F count(F number) const { return number * inverse_; }

  // Two words in each lane. Adding 1.5 * 2**23 leaves the rounded number in the low bits of the sum.
  [[gnu::always_inline]] U words(F low, F high) const {
    const F round = S::broadcast(12582912.0f);
    return ((U)S::fma(low, inverse_, round) & 0xffffu) | (U)S::fma(high, inverse_, round) << 16;
  }

 private:
  // What is not finite makes the unit NaN.
  WordUnit(I largest, float most)
      : unit_((F)largest * S::broadcast(1.0f / most) + ((F)largest - (F)largest)),
        inverse_(unit_ < S::broadcast(__FLT_MIN__) ? S::zero() : S::broadcast(1.0f) / unit_) {}

  // Bits of numbers without their signs are in the numbers' order, infinities and NaN above all.
  template <typename Of>
  static I largest_of(std::int64_t count, Of of) {
    I largest{};
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < count; ++i) {
      const I size = (I)((U)of(i) & 0x7fffffffu);
      largest = size > largest ? size : largest;
    }
    return largest;
  }

  F unit_, inverse_;
};

}  // namespace latentkv::LATENTKV_ISA
