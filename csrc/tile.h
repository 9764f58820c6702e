// Matrix tiles: 16 rows of 64 bytes, and the product of two of them. AMX where the flags of the including file have it, and
// a plain twin for tests (LATENTKV_PLAIN_TILES); kHasTiles says whether kernels should use them. Needs vectors of 16 floats.
// Like vec.h, one copy per instruction set.
//
// dot<C, A, B>:  C[i][j] += sum over k < 32 of A[i][k] * B[k][j], in float32
//   A: 16 rows of 32 bf16;  C: 16 rows of 16 float32
//   B: 16 rows of 16 pairs: (B[2r][j], B[2r + 1][j]) stands at row r, word j
// dot_bytes: the same of 64 int8 in a row of A and four in a word of B; C is int32
// dot_unsigned: dot_bytes with uint8 in A
//
// AMX takes subnormal bf16 for zero and returns zero for subnormal results (below 1.2e-38), whatever the thread's
// rounding mode; NaN and infinity are kept.
#pragma once

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

#if defined(__AMX_BF16__) || defined(LATENTKV_PLAIN_TILES)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileRowBytes = 64;
constexpr std::int64_t kTileDepth = 32;  // bf16 in a row of A
constexpr std::int64_t kTileBytes = kTileRows * kTileRowBytes;

#if defined(__AMX_BF16__)

// The tile registers 0 ... 7 of this thread, configured as long as it lives. Released afterwards: the operating system
// would save 8 KB at every switch. Assembly, because GCC's intrinsics take no template argument for a register.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kTileRowBytes;
      config.rows[tile] = kTileRows;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { __asm__ volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int T>
  [[gnu::always_inline]] void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }

  // Rows `stride` bytes apart.
  template <int T>
  [[gnu::always_inline]] void load(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }

  template <int T>
  [[gnu::always_inline]] void store(void* to, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }

  template <int C, int A, int B>
  [[gnu::always_inline]] void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

  template <int C, int A, int B>
  [[gnu::always_inline]] void dot_bytes() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

  template <int C, int A, int B>
  [[gnu::always_inline]] void dot_unsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#else

class Tiles {
  using S = Simd<16>;
  using F = S::F;
  using U = S::U;

 public:
  template <int T>
  void zero() {
    __builtin_memset(tiles_[T], 0, kTileBytes);
  }

  template <int T>
  void load(const void* from, std::int64_t stride) {
    for (int row = 0; row < kTileRows; ++row) {
      __builtin_memcpy(tiles_[T][row], static_cast<const char*>(from) + row * stride, kTileRowBytes);
    }
  }

  template <int T>
  void store(void* to, std::int64_t stride) {
    for (int row = 0; row < kTileRows; ++row) {
      __builtin_memcpy(static_cast<char*>(to) + row * stride, tiles_[T][row], kTileRowBytes);
    }
  }

  template <int C, int A, int B>
  void dot() {
    for (int i = 0; i < kTileRows; ++i) {
      F sum = S::load(reinterpret_cast<const float*>(tiles_[C][i]));
      for (int k = 0; k < kTileRows; ++k) {
        F even, odd;
        S::load_pairs(reinterpret_cast<const bf16*>(tiles_[B][k]), even, odd);
        const std::uint32_t pair = tiles_[A][i][k];
        sum = S::fma(even, (F)((pair << 16) - U{}), sum);
        sum = S::fma(odd, (F)((pair & 0xffff0000u) - U{}), sum);
      }
      S::store(reinterpret_cast<float*>(tiles_[C][i]), sum);
    }
  }

  template <int C, int A, int B>
  void dot_bytes() {
    dot_whole<C, A, B, std::int8_t>();
  }

  template <int C, int A, int B>
  void dot_unsigned() {
    dot_whole<C, A, B, std::uint8_t>();
  }

 private:
  template <int C, int A, int B, typename Byte>
  void dot_whole() {
    using I = Lanes<std::int32_t, 16>::type;
    for (int i = 0; i < kTileRows; ++i) {
      I sum;
      __builtin_memcpy(&sum, tiles_[C][i], sizeof sum);
      for (int k = 0; k < kTileRows; ++k) {
        I words;
        __builtin_memcpy(&words, tiles_[B][k], sizeof words);
        for (int byte = 0; byte < 4; ++byte) {
          const auto one = static_cast<Byte>(tiles_[A][i][k] >> 8 * byte);
          sum += ((I)((U)words << (24 - 8 * byte)) >> 24) * static_cast<std::int32_t>(one);
        }
      }
      __builtin_memcpy(tiles_[C][i], &sum, sizeof sum);
    }
  }

  alignas(64) std::uint32_t tiles_[8][kTileRows][kTileRowBytes / 4];
};

#endif

// f<0>(), f<1>(), ... f<Count - 1>(): registers have to be named.
template <int Count, int I = 0, typename F>
[[gnu::always_inline]] inline void each(F&& f) {
  if constexpr (I < Count) {
    f.template operator()<I>();
    each<Count, I + 1>(f);
  }
}

// The next term of `rest`: its first 8 bits, as float32 whose lower half is zero; `rest` is left without them. Three terms are
// all of a float32 number. An infinity is its own first term and leaves nothing.
template <int W>
[[gnu::always_inline]] inline typename Simd<W>::U next_term(typename Simd<W>::F& rest) {
  using F = typename Simd<W>::F;
  using U = typename Simd<W>::U;
  const U term = (U)rest & 0xffff0000u;
  rest = rest == (F)term ? F{} : rest - (F)term;
  return term;
}

// What is left, to nearest, as the last term: of two terms 2**-17 of the number are lost.
template <int W>
[[gnu::always_inline]] inline typename Simd<W>::U rounded_term(typename Simd<W>::F rest) {
  return ((typename Simd<W>::U)rest + 0x8000u) & 0xffff0000u;
}

}  // namespace latentkv::LATENTKV_ISA
