// Dot products of int8 and int16, which vector extensions cannot express: intrinsics behind the compiler's macros, and a
// plain twin.
// Like vec.h, one copy per instruction set.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

// Four bytes in each lane. Weights: codes of 0 to 15, or int8. x: int8 of -127 to 127.
template <int W>
struct Dot {
  using I = typename Lanes<std::int32_t, W>::type;
  using U = typename Lanes<std::uint32_t, W>::type;

  // Whether dot products of int8 beat widening to float: for few rows of x, for many.
#if defined(__AVX512VNNI__)
  static constexpr bool kStreams = true, kTiles = true;
#elif defined(__AVX2__)
  static constexpr bool kStreams = true, kTiles = false;
#else
  static constexpr bool kStreams = false, kTiles = false;
#endif

  // The four int8 at `from` in every lane.
  static U broadcast(const std::int8_t* from) {
    std::uint32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return four - U{};
  }

  // sum[lane] + the four products of weights[lane] and x[lane]. The int8 product is offset: 128 times the sum of x has to
  // be taken away wherever kOffset says so.
#if defined(__AVX512VNNI__)
  static constexpr std::int32_t kOffset = 128;
  static I add4(I sum, U codes, U x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x); }
  static I add8(I sum, U codes, U x) { return add4(sum, codes ^ 0x80808080u, x); }
#else
  static constexpr std::int32_t kOffset = 0;

  static I add4(I sum, U codes, U x) {
#if defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, (__m512i)x);
    return sum + (I)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    if constexpr (W == 8) {
      const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
      return sum + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    } else {
      return plain(sum, codes, x);
    }
#else
    return plain(sum, codes, x);
#endif
  }

  // |weight| * (x with the weight's sign): at most 128 * 127 twice, which fits 16 bits.
  static I add8(I sum, U codes, U x) {
#if defined(__AVX512BW__)
    const __mmask64 negative = _mm512_movepi8_mask((__m512i)codes);
    const __m512i size = _mm512_abs_epi8((__m512i)codes);
    return add4(sum, (U)size, (U)_mm512_mask_sub_epi8((__m512i)x, negative, _mm512_setzero_si512(), (__m512i)x));
#elif defined(__AVX2__)
    if constexpr (W == 8) {
      const __m256i size = _mm256_abs_epi8((__m256i)codes);
      return add4(sum, (U)size, (U)_mm256_sign_epi8((__m256i)x, (__m256i)codes));
    } else {
      return plain(sum, codes, x);
    }
#else
    return plain(sum, codes, x);
#endif
  }
#endif

  static I plain(I sum, U codes, U x) {
    for (int byte = 0; byte < 4; ++byte) {
      const int up = 24 - 8 * byte;
      sum += ((I)(codes << up) >> 24) * ((I)(x << up) >> 24);
    }
    return sum;
  }

  // Whether products of pairs of int16 beat float's: twice as many in an instruction, and a sum that is separate but here and
  // there.
#if defined(__AVX512VNNI__) || (defined(__SSE2__) && !defined(__AVX512F__))
  static constexpr bool kPairs = true;
#else
  static constexpr bool kPairs = false;
#endif

  // sum[lane] + the two products of a[lane] and b[lane], two int16 each; what overflows wraps around.
  [[gnu::always_inline]] static I add2(I sum, U a, U b) {
#if defined(__AVX512VNNI__)
    if constexpr (W == 16) return (I)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    if constexpr (W == 16) return (I)((U)sum + (U)_mm512_madd_epi16((__m512i)a, (__m512i)b));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (I)((U)sum + (U)_mm256_madd_epi16((__m256i)a, (__m256i)b));
#endif
#if defined(__SSE2__)
    if constexpr (W == 4) return (I)((U)sum + (U)_mm_madd_epi16((__m128i)a, (__m128i)b));
#endif
    return (I)((U)sum + (U)(((I)(a << 16) >> 16) * ((I)(b << 16) >> 16)) + (U)(((I)a >> 16) * ((I)b >> 16)));
  }
};

}  // namespace latentkv::LATENTKV_ISA
