// Bytes for matrix tiles of int8: four tokens side by side, words cut into two bytes. Intrinsics and plain twins.
#pragma once

#include "kernels/attention_code_words.h"
#include "tile.h"

namespace latentkv::LATENTKV_ISA {

using Bytes64 = Lanes<std::int8_t, 64>::type;
using Words16 = Lanes<std::uint32_t, 16>::type;

constexpr std::int64_t kTileWords = kTileBytes / 4;
constexpr std::int64_t kByteDepth = 64;  // int8 in a row of A

// A word is 256 * high + low, both int8: 127 * 256 + 127 is the largest of which that is true with both signs.
constexpr float kMostCut = 32639.0f;

// A word of what is never negative is 256 * high + low, both uint8.
constexpr float kMostUnsigned = 65535.0f;

inline Bytes64 load_bytes(const char* from) {
  Bytes64 bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

// Four rows of 64 columns side by side, four bytes in a word. Word 4 * i + w of result j is of column 16 * i + 4 * j + w.
[[gnu::always_inline]] inline void quads(const Bytes64 (&rows)[4], Words16 (&to)[4]) {
#if defined(__AVX512BW__)
  const __m512i a = (__m512i)rows[0], b = (__m512i)rows[1], c = (__m512i)rows[2], d = (__m512i)rows[3];
  const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
  const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
  to[0] = (Words16)_mm512_unpacklo_epi16(ab0, cd0);
  to[1] = (Words16)_mm512_unpackhi_epi16(ab0, cd0);
  to[2] = (Words16)_mm512_unpacklo_epi16(ab1, cd1);
  to[3] = (Words16)_mm512_unpackhi_epi16(ab1, cd1);
#else
  std::uint8_t from[4][64], words[64][4];
  __builtin_memcpy(from, rows, sizeof from);
#pragma GCC unroll 1
  for (int column = 0; column < 64; ++column) {
    const int place = column / 4 % 4 * 16 + column / 16 * 4 + column % 4;
    for (int i = 0; i < 4; ++i) words[place][i] = from[i][column];
  }
  __builtin_memcpy(to, words, sizeof words);
#endif
}

// Words of four rows, two in each lane of `first` and two of `second`, as their lower and their upper bytes side by side: of
// rows 0, 2, 1, 3.
inline void cut(Words16 first, Words16 second, Words16& low, Words16& high) {
  using Halves = Lanes<std::uint16_t, 32>::type;
  constexpr std::uint32_t kEven = 0x00ff00ffu;
  low = (first & kEven) | (second << 8 & ~kEven);
  const auto up = (Words16)((Halves)first + 0x80), up2 = (Words16)((Halves)second + 0x80);
  high = (up >> 8 & kEven) | (up2 & ~kEven);
}

// The same of words that are never negative.
[[gnu::always_inline]] inline void cut_unsigned(Words16 first, Words16 second, Words16& low, Words16& high) {
  constexpr std::uint32_t kEven = 0x00ff00ffu;
  low = (first & kEven) | (second << 8 & ~kEven);
  high = (first >> 8 & kEven) | (second & ~kEven);
}

// The numbers of packed codes, by their low 6 bits.
template <CodeFormat Format>
struct ByteTable {
  alignas(64) std::int8_t numbers[64];

  constexpr ByteTable() : numbers() {
    for (int i = 0; i < 64; ++i) numbers[i] = static_cast<std::int8_t>(Format == CodeFormat::int6 ? 2 * i - 63 : i % 16 * 2 - 15);
  }
};

template <CodeFormat Format>
constexpr ByteTable<Format> kByteNumbers{};

// 64 packed codes as the numbers they stand for, in order.
template <CodeFormat Format>
[[gnu::always_inline]] inline Bytes64 unpack_unit(CodeUnit unit) {
#if defined(__AVX512VBMI__)
  const __m512i shifts = _mm512_setr_epi64(0, 0, 0, 0, 0x400000004, 0x400000004, 0x400000004, 0x400000004);
  const __m256i nibbles = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit.codes));
  __m512i places = _mm512_srlv_epi32(_mm512_broadcast_i64x4(nibbles), shifts);
  if constexpr (Format == CodeFormat::int6) {
    const __m512i turns = _mm512_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, 30, 30, 30, 30);
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(unit.high));
    const __m512i high = _mm512_rolv_epi32(_mm512_broadcast_i32x4(pairs), turns);
    places = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), places, high, 0xca);  // the low four bits, and what is above
  }
  return (Bytes64)_mm512_permutexvar_epi8(places, _mm512_load_si512(kByteNumbers<Format>.numbers));
#else
  constexpr std::uint32_t kMiddle = Format == CodeFormat::int6 ? 0x3f3f3f3fu : 0x0f0f0f0fu;
  constexpr Words16 kShifts{0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
  Lanes<std::uint32_t, 8>::type nibbles;
  __builtin_memcpy(&nibbles, unit.codes, sizeof nibbles);
  const Words16 both = __builtin_shufflevector(nibbles, nibbles, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
  Words16 codes = both >> kShifts & 0x0f0f0f0fu;
  if constexpr (Format == CodeFormat::int6) {
    constexpr Words16 kUp{4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0}, kDown{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2};
    Lanes<std::uint32_t, 4>::type pairs;
    __builtin_memcpy(&pairs, unit.high, sizeof pairs);
    // At once GCC 12 goes through memory.
    const auto two = __builtin_shufflevector(pairs, pairs, 0, 1, 2, 3, 0, 1, 2, 3);
    const Words16 four = __builtin_shufflevector(two, two, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    codes |= four << kUp >> kDown & 0x30303030u;
  }
  return (Bytes64)(codes + codes) - (Bytes64)(Words16{} + kMiddle);
#endif
}

inline Lanes<std::int32_t, 16>::type load_whole(const std::uint32_t* from) {
  Lanes<std::int32_t, 16>::type whole;
  __builtin_memcpy(&whole, from, sizeof whole);
  return whole;
}

// 256 * high + low, as float32.
inline Simd<16>::F join_terms(const std::uint32_t* high, const std::uint32_t* low) {
  return __builtin_convertvector(load_whole(high) * 256 + load_whole(low), Simd<16>::F);
}

}  // namespace latentkv::LATENTKV_ISA
