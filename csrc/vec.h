// Vectors of W floats on GCC's and Clang's vector extensions: load and store with conversion from and to bfloat16 and
// float16, fused multiply-add, horizontal sum. Intrinsics only with a plain twin: the flags of the file that includes this
// decide what the code becomes.
// Only for kernels/*.cpp, with LATENTKV_ISA naming their namespace: one copy of every function per instruction set.
#pragma once

#ifndef LATENTKV_ISA
#error "vec.h is for kernels, compiled once for each instruction set (kernels.cmake), which LATENTKV_ISA names"
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "params.h"

namespace latentkv::LATENTKV_ISA {

// GCC takes a vector's size from a template argument only where the element type comes from one too.
template <typename T, int W>
struct Lanes {
  using type [[gnu::vector_size(W * sizeof(T))]] = T;
};

template <int W>
struct Simd {
  static_assert(W == 4 || W == 8 || W == 16);
  using F = typename Lanes<float, W>::type;
  using U = typename Lanes<std::uint32_t, W>::type;
  using H = typename Lanes<std::uint16_t, W>::type;

  static F zero() { return F{}; }

  // `value - 0` is the identity, so that a load from memory becomes one broadcast; `0 + value` would cost an addition.
  static F broadcast(float value) { return value - F{}; }

  static F load(const float* from) {
    F value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }

  static F load(const bf16* from) {
    H half;
    __builtin_memcpy(&half, from, sizeof half);
    return widen(half);
  }

  static F load(const f16* from) {
    H half;
    __builtin_memcpy(&half, from, sizeof half);
    return widen_f16(half);
  }

  // 2 * W neighbours: those at even places and those at odd ones, two instructions each where load() twice takes four.
  static void load_pairs(const bf16* from, F& even, F& odd) {
    U both;
    __builtin_memcpy(&both, from, sizeof both);
    even = (F)(both << 16);
    odd = (F)(both & 0xffff0000u);
  }

  // The first `count` (< W) elements, zeros after them; reads nothing beyond.
  template <typename T>
  static F load_part(const T* from, std::int64_t count) {
    T padded[W] = {};
    for (std::int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
  }

  static void store(float* to, F value) { __builtin_memcpy(to, &value, sizeof value); }

  static void store(bf16* to, F value) {
    const H half = narrow(value);
    __builtin_memcpy(to, &half, sizeof half);
  }

  static void store(f16* to, F value) {
    const H half = narrow_f16(value);
    __builtin_memcpy(to, &half, sizeof half);
  }

  // The first `count` (< W) elements; writes nothing beyond.
  template <typename T>
  static void store_part(T* to, F value, std::int64_t count) {
    T padded[W];
    store(padded, value);
    for (std::int64_t i = 0; i < count; ++i) to[i] = padded[i];
  }

  // a * b + c; one instruction where the machine has it (-ffp-contract=fast).
  static F fma(F a, F b, F c) { return a * b + c; }

  // Always in the same order, by halves: lane i with lane i + W/2, and so on.
  static float sum(F value) {
    if constexpr (W == 4) {
      return (value[0] + value[2]) + (value[1] + value[3]);
    } else if constexpr (W == 8) {
      return Simd<4>::sum(__builtin_shufflevector(value, value, 0, 1, 2, 3) +
                          __builtin_shufflevector(value, value, 4, 5, 6, 7));
    } else {
      return Simd<8>::sum(__builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
                          __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15));
    }
  }

  static bool any_above(F a, F b) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#endif
    const U above = (U)(a > b);
    std::uint32_t any = 0;
    for (int i = 0; i < W; ++i) any |= above[i];
    return any != 0;
  }

  // The first `count` lanes of `a` (none if it is negative), the others of `b`.
  static F first(std::int64_t count, F a, F b) {
    U lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    const auto most = static_cast<std::uint32_t>(count < 0 ? 0 : count < W ? count : W);
    return lane < most ? a : b;
  }

  // The largest of numbers that are not NaN.
  static float largest(F value) {
    if constexpr (W == 4) {
      const float a = value[0] > value[2] ? value[0] : value[2], b = value[1] > value[3] ? value[1] : value[3];
      return a > b ? a : b;
    } else {
      using Half = Simd<W / 2>;
      typename Half::F halves[2];
      __builtin_memcpy(halves, &value, sizeof value);
      return Half::largest(halves[0] > halves[1] ? halves[0] : halves[1]);
    }
  }

  static F widen(H half) { return (F)(extend(half) << 16); }

  // One instruction each; what GCC 12 makes of __builtin_convertvector takes five and is bound by one port.
  static U extend(H half) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return (U)_mm512_cvtepu16_epi32((__m256i)half);
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (U)_mm256_cvtepu16_epi32((__m128i)half);
#endif
    return __builtin_convertvector(half, U);
  }

  // The nearest bf16, ties to even. NaN becomes a quiet NaN of the same sign: rounding its bits could make it an infinity.
  static F round_bf16(F value) {
    const U bits = (U)value;
    const U rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (F)(choose((U)(value != value), bits | 0x400000u, rounded) & 0xffff0000u);
  }

  static H narrow(F value) { return __builtin_convertvector((U)round_bf16(value) >> 16, H); }

  static F widen_f16(H half) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return (F)_mm512_cvtph_ps((__m256i)half);
#endif
#if defined(__F16C__)
    if constexpr (W == 8) return (F)_mm256_cvtph_ps((__m128i)half);
#endif
    return widen_f16_plain(half);
  }

  // To nearest, ties to even; beyond 65504 and its half step an infinity.
  static H narrow_f16(F value) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return (H)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#endif
#if defined(__F16C__)
    if constexpr (W == 8) return (H)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#endif
    return narrow_f16_plain(value);
  }

 private:
  static U choose(U mask, U yes, U no) { return (mask & yes) | (~mask & no); }

  // Exponents move by 127 - 15; subnormal numbers count in steps of 2**-24.
  static F widen_f16_plain(H half) {
    const U bits = extend(half), magnitude = bits & 0x7fffu;
    const U normal = (magnitude << 13) + (112u << 23);
    const U special = (magnitude << 13) | 0x7f800000u;
    const U subnormal = (U)(__builtin_convertvector(magnitude, F) * broadcast(0x1p-24f));
    const U finite = choose((U)(magnitude < 0x400u), subnormal, normal);
    return (F)(choose((U)(magnitude >= 0x7c00u), special, finite) | ((bits & 0x8000u) << 16));
  }

  static H narrow_f16_plain(F value) {
    const U bits = (U)value, magnitude = bits & 0x7fffffffu;
    const U rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const U normal = choose((U)(rounded > 0x7c00u), U{} + 0x7c00u, rounded);
    // The steps of float32 at 0.5 are those of subnormal float16.
    const U subnormal = (U)((F)magnitude + broadcast(0.5f)) - 0x3f000000u;
    const U quiet = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    const U number = choose((U)(magnitude < 0x38800000u), subnormal, normal);
    const U chosen = choose((U)(magnitude > 0x7f800000u), quiet, number);
    return __builtin_convertvector(chosen | ((bits >> 16) & 0x8000u), H);
  }
};

}  // namespace latentkv::LATENTKV_ISA
