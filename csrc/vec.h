// Vectors of W floats on GCC's and Clang's vector extensions: load and store with conversion from and to bfloat16, fused
// multiply-add, horizontal sum. No intrinsics: the file that includes this decides by its flags what the code becomes.
// Only isa_*.cpp may include it, with LATENTKV_ISA naming their namespace: one copy of every function per instruction set.
#pragma once

#ifndef LATENTKV_ISA
#error "vec.h is for isa_*.cpp files, which define LATENTKV_ISA"
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

  // Exact for every number; infinities and NaN become large numbers (scales, the only ones read so, are finite).
  static F load(const f16* from) {
    H half;
    __builtin_memcpy(&half, from, sizeof half);
    const U wide = extend(half);
    const U magnitude = (wide & 0x7fffu) << 13;
    const U size = (U)((F)magnitude * 0x1p112f);
    return (F)(size | (wide & 0x8000u) << 16);
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

  // The first `count` (< W) elements; writes nothing beyond.
  template <typename T>
  static void store_part(T* to, F value, std::int64_t count) {
    T padded[W];
    store(padded, value);
    for (std::int64_t i = 0; i < count; ++i) to[i] = padded[i];
  }

  // What a load gives after `value` was stored as T.
  static F rounded(F value, const float*) { return value; }
  static F rounded(F value, const bf16*) { return widen(narrow(value)); }

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

  // To nearest, ties to even. NaN becomes a quiet NaN of the same sign: rounding its bits could make it an infinity.
  static H narrow(F value) {
    const U bits = (U)value;
    const U round_up = 0x7fffu + ((bits >> 16) & 1u);
    const U is_nan = (U)(value != value);
    const U rounded = (bits + round_up) >> 16;
    const U quiet = (bits >> 16) | 0x40u;
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), H);
  }
};

}  // namespace latentkv::LATENTKV_ISA
