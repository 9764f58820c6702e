// Bytes for matrix tiles of int8: codes as bytes, four tokens side by side, words cut into two bytes. Intrinsics and plain twins.
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

inline Bytes64 load_bytes(const char* from) {
  Bytes64 bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

// The numbers of a unit of int6 or int4 codes: odd, -63 to 63 or -15 to 15.
template <CodeFormat Format>
inline Bytes64 code_bytes(CodeUnit unit) {
#if defined(__AVX512BW__)
  const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit.codes)));
  const __m512i nibbles = _mm512_inserti64x4(twice, _mm512_castsi512_si256(_mm512_srli_epi16(twice, 4)), 1);
  __m512i code = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
  if constexpr (Format == CodeFormat::int6) {
    const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(unit.high)));
    const __m512i shifts = _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004, 0x0004000400040004,
                                            0x0002000200020002, 0x0002000200020002, 0, 0);
    const __m512i two = _mm512_and_si512(_mm512_srlv_epi16(high, shifts), _mm512_set1_epi8(3));
    code = _mm512_or_si512(code, _mm512_slli_epi16(two, 4));
  }
  const __m512i middle = _mm512_set1_epi8(Format == CodeFormat::int6 ? 63 : 15);
  return (Bytes64)_mm512_sub_epi8(_mm512_add_epi8(code, code), middle);
#else
  char bytes[64];
#pragma GCC unroll 1
  for (int i = 0; i < 64; ++i) {
    const auto both = static_cast<std::uint8_t>(unit.codes[i % 32]);
    int code = i < 32 ? both & 15 : both >> 4;
    if constexpr (Format == CodeFormat::int6) code |= (static_cast<std::uint8_t>(unit.high[i % 16]) >> i / 16 * 2 & 3) << 4;
    bytes[i] = static_cast<char>(2 * code - (Format == CodeFormat::int6 ? 63 : 15));
  }
  return load_bytes(bytes);
#endif
}

// Four rows of 64 columns side by side, four bytes in a word. Word 4 * i + w of result j is of column 16 * i + 4 * j + w.
inline void quads(const Bytes64 (&rows)[4], Words16 (&to)[4]) {
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
