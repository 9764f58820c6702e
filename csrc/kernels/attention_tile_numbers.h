// Codes as the bf16 numbers they stand for, in units of their scale, which are exact: for matrix tiles of bf16. By tables of
// bytes where the machine can look up 64 at once; a plain twin.
#pragma once

#include "kernels/attention_code_words.h"
#include "tile.h"

namespace latentkv::LATENTKV_ISA {

// In bits of bf16, of a code without its sign if it has one.
template <CodeFormat Format>
constexpr std::uint16_t number_bits(int code) {
  float number = static_cast<float>(2 * code - (Format == CodeFormat::int6 ? 63 : 15));
  if constexpr (Format == CodeFormat::fp8) {
    if (code == 0x7f) return 0x7fc0;
    const int exponent = code >> 3, fraction = code & 7;
    number = static_cast<float>(exponent == 0 ? 2 * fraction : (8 + fraction) << exponent) / 1024.0f;
  }
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, number) >> 16);
}

// Lower and upper bytes of the numbers of all codes.
template <CodeFormat Format>
struct NumberTable {
  static constexpr int kCodes = Format == CodeFormat::fp8 ? 128 : Format == CodeFormat::int6 ? 64 : 16;
  alignas(64) std::uint8_t low[128], high[128];

  constexpr NumberTable() : low(), high() {
    for (int i = 0; i < 128; ++i) {
      const std::uint16_t bits = number_bits<Format>(i % kCodes);
      low[i] = static_cast<std::uint8_t>(bits);
      high[i] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
};

template <CodeFormat Format>
constexpr NumberTable<Format> kNumbers{};

// Where element `column` of 32 stands: four of the first half and four of the second in turns. Two tokens side by side are then
// one instruction for 16 columns, in order.
constexpr std::int64_t staged_place(std::int64_t column) { return column % 16 / 4 * 8 + column / 16 * 4 + column % 4; }

#if defined(__AVX512VBMI__)

// A code in each byte, in some formats below bits of no meaning: of columns 4 * i ... + 3, 16 + 4 * i, 32 + 4 * i and 48 + 4 * i
// within 128 bits.
template <CodeFormat Format>
[[gnu::always_inline]] inline __m512i spread_codes(CodeUnit unit) {
  if constexpr (Format == CodeFormat::fp8) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(unit.codes));
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
  const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4);
  const __m256i nibbles = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit.codes));
  const __m512i low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(order, _mm512_castsi256_si512(nibbles)), shifts);
  const __m512i four = _mm512_set1_epi8(15);
  if constexpr (Format == CodeFormat::int4) return _mm512_and_si512(low, four);
  const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512i turns = _mm512_setr_epi32(4, 2, 0, 30, 4, 2, 0, 30, 4, 2, 0, 30, 4, 2, 0, 30);
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(unit.high));
  const __m512i high = _mm512_rolv_epi32(_mm512_permutexvar_epi32(fours, _mm512_castsi128_si512(pairs)), turns);
  return _mm512_ternarylogic_epi32(four, low, high, 0xca);  // low where a bit of `four` is set
}

template <CodeFormat Format>
[[gnu::always_inline]] inline __m512i look_up(const std::uint8_t (&table)[128], __m512i codes) {
  const __m512i first = _mm512_load_si512(table);
  if constexpr (Format == CodeFormat::int4) return _mm512_shuffle_epi8(first, codes);
  if constexpr (Format == CodeFormat::int6) return _mm512_permutexvar_epi8(codes, first);
  return _mm512_permutex2var_epi8(first, codes, _mm512_load_si512(table + 64));
}

// 64 numbers, 32 by 32 as staged_place() has them.
template <CodeFormat Format>
[[gnu::always_inline]] inline void write_numbers(CodeUnit unit, char* to) {
  const __m512i codes = spread_codes<Format>(unit), low = look_up<Format>(kNumbers<Format>.low, codes);
  __m512i high = look_up<Format>(kNumbers<Format>.high, codes);
  const __m512i sign = _mm512_set1_epi8(-128);
  if constexpr (Format == CodeFormat::fp8) high = _mm512_ternarylogic_epi32(high, codes, sign, 0xf8);  // high | codes & sign
  _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi8(low, high));
}

#else

template <CodeFormat Format>
inline void write_numbers(CodeUnit unit, char* to) {
  for (int column = 0; column < kCodeUnit; ++column) {
    const auto byte = static_cast<std::uint8_t>(unit.codes[Format == CodeFormat::fp8 ? column : column % 32]);
    const int sign = Format == CodeFormat::fp8 ? byte & 0x80 : 0;
    int code = Format == CodeFormat::fp8 ? byte & 0x7f : column < 32 ? byte & 15 : byte >> 4;
    if constexpr (Format == CodeFormat::int6) {
      code |= (static_cast<std::uint8_t>(unit.high[column % 16]) >> column / 16 * 2 & 3) << 4;
    }
    const auto bits = static_cast<std::uint16_t>(number_bits<Format>(code) | sign << 8);
    __builtin_memcpy(to + 2 * (column / 32 * 32 + staged_place(column % 32)), &bits, sizeof bits);
  }
}

#endif

// Staged numbers of two tokens side by side, 32 columns of each: columns 0 ... 15 and 16 ... 31.
[[gnu::always_inline]] inline void pair_numbers(const char* first, const char* second, std::uint32_t* low, std::uint32_t* high) {
  using Numbers32 = Lanes<std::uint16_t, 32>::type;
  Numbers32 a, b;
  __builtin_memcpy(&a, first, sizeof a);
  __builtin_memcpy(&b, second, sizeof b);
  const Numbers32 lower = __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17,
                                                  49, 18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
  const Numbers32 upper = __builtin_shufflevector(a, b, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52, 21,
                                                  53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
  __builtin_memcpy(low, &lower, sizeof lower);
  __builtin_memcpy(high, &upper, sizeof upper);
}

}  // namespace latentkv::LATENTKV_ISA
