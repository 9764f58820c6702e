// Dot products of small whole numbers, which vector extensions cannot express: intrinsics behind the compiler's macros, and a
// plain twin. Like vec.h, one copy per instruction set.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

// Lanes of 32 bits that hold four bytes or two 16-bit numbers each.
template <int W>
struct Dot {
  using I = typename Lanes<std::int32_t, W>::type;
  using U = typename Lanes<std::uint32_t, W>::type;
  using Halves = typename Lanes<std::int16_t, 2 * W>::type;
  using Bytes = typename Lanes<std::int8_t, W>::type;

  // Up to how many rows of x dot products as exact as floats beat widening; whether those of rounded numbers do for any rows;
  // whether products of any int8 add up.
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
  static constexpr std::int64_t kTermRows = 12;
  static constexpr bool kRounded = true, kBytes = true;
#elif defined(__AVX2__)
  static constexpr std::int64_t kTermRows = 6;
  static constexpr bool kRounded = true, kBytes = false;
#else
  static constexpr std::int64_t kTermRows = 0;
  static constexpr bool kRounded = false, kBytes = false;
#endif

  // The four bytes at `from` in every lane.
  static U broadcast(const char* from) {
    std::uint32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return four - U{};
  }

  // sum[lane] + the four products of weights[lane], bytes that offset_bytes() has made ready, and x[lane], int8. kOffset
  // times the sum of x has to be taken away. Without kBytes two neighbours of x may be 128 together, whatever their signs:
  // 255 times that is what 16 bits hold.
#if defined(__AVX2__)
  static constexpr std::int32_t kOffset = 128;
  static U offset_bytes(U bytes) { return bytes ^ 0x80808080u; }
  static I add_bytes(I sum, U weights, U x) {
#if defined(__AVX512VNNI__)
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)x);
#else
    return add_pairs(sum, (U)multiply_bytes(weights, x), U{} + 0x00010001u);
#endif
  }
#else
  static constexpr std::int32_t kOffset = 0;
  static U offset_bytes(U bytes) { return bytes; }
  static I add_bytes(I sum, U weights, U x) {
#if defined(__ARM_FEATURE_DOTPROD)
    if constexpr (W == 4) return (I)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)x);
#endif
    for (int byte = 0; byte < 4; ++byte) {
      const int up = 24 - 8 * byte;
      sum += ((I)(weights << up) >> 24) * ((I)(x << up) >> 24);
    }
    return sum;
  }
#endif

  // The same for codes of 0 to 15, at most eight times before total(), `factor` (below 256) times what was added: AVX2 then widens
  // its sums once.
#if defined(__AVX512VNNI__) || !defined(__AVX2__)
  static constexpr bool kNarrowSums = false;
  using Partial = I;
  static Partial add_codes(Partial sum, U codes, U x) { return add_bytes(sum, codes, x); }
  static I total(Partial sum, std::int32_t factor = 1) { return sum * factor; }
#else
  static constexpr bool kNarrowSums = true;
  using Partial = Halves;
  static I total(Partial sum, std::uint32_t factor = 1) { return add_pairs(I{}, (U)sum, U{} + 0x00010001u * factor); }
  static Partial add_codes(Partial sum, U codes, U x) { return sum + multiply_bytes(codes, x); }

  // Each two products of neighbours, uint8 and int8, added up.
  static Halves multiply_bytes(U codes, U x) {
#if defined(__AVX512BW__)
    return (Halves)_mm512_maddubs_epi16((__m512i)codes, (__m512i)x);
#else
    if constexpr (W == 8) return (Halves)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
    return (Halves)(codes & 0x00ff00ffu) * ((Halves)((Halves)x << 8) >> 8) + (Halves)(codes >> 8 & 0x00ff00ffu) * ((Halves)x >> 8);
#endif
  }
#endif

  // Whether products of pairs of int16 beat float's: twice as many in an instruction, and a sum that is separate but here and
  // there.
#if defined(__AVX512VNNI__) || (defined(__SSE2__) && !defined(__AVX512F__))
  static constexpr bool kPairs = true;
#else
  static constexpr bool kPairs = false;
#endif

  // sum[lane] + the two products of weights[lane] and x[lane], two int16 each; what overflows wraps around.
  [[gnu::always_inline]] static I add_pairs(I sum, U weights, U x) {
#if defined(__AVX512VNNI__)
    if constexpr (W == 16) return (I)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)weights, (__m512i)x);
#elif defined(__AVX512BW__)
    if constexpr (W == 16) return (I)((U)sum + (U)_mm512_madd_epi16((__m512i)weights, (__m512i)x));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (I)((U)sum + (U)_mm256_madd_epi16((__m256i)weights, (__m256i)x));
#endif
#if defined(__SSE2__)
    if constexpr (W == 4) return (I)((U)sum + (U)_mm_madd_epi16((__m128i)weights, (__m128i)x));
#endif
    return (I)((U)sum + (U)(((I)(weights << 16) >> 16) * ((I)(x << 16) >> 16)) + (U)(((I)weights >> 16) * ((I)x >> 16)));
  }

  // The same in the register that the sum is in: GCC 12 would move tiles of sums from one to the other and through memory.
  [[gnu::always_inline]] static void add_pairs_to(I& sum, U weights, U x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (W == 8) {
      const __m256i products = _mm256_madd_epi16((__m256i)weights, (__m256i)x);
      __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
      return;
    }
#endif
    sum = add_pairs(sum, weights, x);
    settle(sum);
  }

  // Bytes 0 and 2 of each lane, 1 and 3, as 16-bit numbers.
  static U even_bytes(U bytes) { return (U)((Halves)((Halves)bytes << 8) >> 8); }
  static U odd_bytes(U bytes) { return (U)((Halves)bytes >> 8); }

  // The low byte of each lane; what GCC 12 makes of __builtin_convertvector takes ten instructions.
  static Bytes low_bytes(I numbers) {
#if defined(__AVX512F__)
    return (Bytes)_mm512_cvtepi32_epi8((__m512i)numbers);
#else
#if defined(__AVX2__)
    if constexpr (W == 8) {
      const __m256i order = _mm256_setr_epi32(0x0c080400, -1, -1, -1, 0x0c080400, -1, -1, -1);
      const __m256i fours = _mm256_shuffle_epi8((__m256i)numbers, order);
      const __m128i all = _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
      Bytes bytes;
      __builtin_memcpy(&bytes, &all, sizeof bytes);
      return bytes;
    }
#endif
    return __builtin_convertvector(numbers, Bytes);
#endif
  }

  // Makes the compiler have this sum now: GCC 12 would first compute all products of a tile and then, through the stack, add
  // them.
  template <typename V>
  [[gnu::always_inline]] static void settle([[maybe_unused]] V& sum) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(sum));
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32) __asm__("" : "+x"(sum));
#endif
  }
};

}  // namespace latentkv::LATENTKV_ISA
