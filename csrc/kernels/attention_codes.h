// Rows whose latent is codes that share scales: as float32. Layout: src/latentkv/cache/layout.py; reference:
// src/latentkv/cache/codes.py.
#pragma once

#include "kernels/attention_tiles.h"
#include "kernels/write_rows.h"

namespace latentkv::LATENTKV_ISA {

// Stands where other rows have the type of their elements.
struct Coded {
  std::uint8_t byte;
};

template <typename T>
constexpr bool kCoded = false;
template <>
constexpr bool kCoded<Coded> = true;

// 64 codes of one row.
struct CodeUnit {
  const char* codes;
  const char* high;  // the high bits of int6
};

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
class CodeReader {
  using S = Simd<W>;
  using F = typename S::F;
  using B = typename Lanes<std::uint8_t, W>::type;
  using U = typename S::U;

 public:
  explicit CodeReader(const RowCodes& codes) : codes_(codes) {}

  // The scale of the group that element `first` belongs to.
  float scale(const char* row, std::int64_t first) const { return scale_of(row, first / codes_.group); }

  float scale_of(const char* row, std::int64_t group) const {
    const char* scales = row + codes_.scale_offset;
    if (codes_.short_scales) return widen(reinterpret_cast<const bf16*>(scales)[group]);
    float scale;
    __builtin_memcpy(&scale, scales + group * sizeof scale, sizeof scale);
    return scale;
  }

  // 64 elements from `first` on (a multiple of 64), those beyond the row's width of any value: numbers that times
  // scale() are the elements. store(i, F) gets them W at a time.
  template <typename Store>
  [[gnu::always_inline]] void codes(const char* row, std::int64_t first, Store store) const {
    switch (codes_.format) {
      case CodeFormat::fp8: return bytes(row, first, [&](int i, B eight) { store(i, e4m3(eight)); });
      case CodeFormat::int8: return bytes(row, first, [&](int i, B eight) { store(i, signed_byte(eight)); });
      case CodeFormat::int6: return packed<CodeFormat::int6>(row, first, store);
      default: return packed<CodeFormat::int4>(row, first, store);
    }
  }

 private:
  // Nothing is read beyond the codes: after them the row may end.
  template <typename Each>
  [[gnu::always_inline]] void bytes(const char* row, std::int64_t first, Each each) const {
    const std::int64_t left = codes_.width - first;
    const char* from = row + first;
    char copied[kCodeUnit];
    if (left < kCodeUnit) {
      __builtin_memset(copied, 0, sizeof copied);
      __builtin_memcpy(copied, from, left);
      from = copied;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCodeUnit; i += W) {
      B some;
      __builtin_memcpy(&some, from + i, W);
      each(i, some);
    }
  }

  template <CodeFormat Format, typename Store>
  [[gnu::always_inline]] void packed(const char* row, std::int64_t first, Store store) const {
    const std::int64_t high = (codes_.width + kCodeUnit - 1) / kCodeUnit * (kCodeUnit / 2);
    char numbers[kCodeUnit];
    unpack_codes<Format>({row + first / 2, row + high + first / 4}, numbers);
    for (int i = 0; i < kCodeUnit; i += W) {
      B some;
      __builtin_memcpy(&some, numbers + i, W);
      store(i, signed_byte(some));
    }
  }

  static F signed_byte(B code) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)code));
#endif
#if defined(__AVX2__)
    if constexpr (W == 8) return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low_half(code)));
#endif
    const auto number = __builtin_convertvector(code ^ 0x80, U);
    return __builtin_convertvector((typename Lanes<std::int32_t, W>::type)number, F) - S::broadcast(128.0f);
  }

  // As float16 with the same bits: 2**8 times smaller. NaN, all bits of a code but the sign, would become a number.
  static F e4m3(B code) {
    using H = typename S::H;
    const H bits = signed_word(code), is_nan = (H)((bits & 0x7f) == 0x7f);
    return S::widen_f16(((bits << 7) & 0xbfff) | (is_nan & 0x7e00)) * S::broadcast(256.0f);
  }

  static typename S::H signed_word(B code) {
#if defined(__AVX2__)
    if constexpr (W == 8) return (typename S::H)_mm_cvtepi8_epi16(low_half(code));
#endif
    return (typename S::H)__builtin_convertvector((typename Lanes<std::int8_t, W>::type)code,
                                                  typename Lanes<std::int16_t, W>::type);
  }

#if defined(__AVX2__)
  // GCC keeps eight bytes in a general register.
  static __m128i low_half(B code) {
    std::int64_t eight;
    __builtin_memcpy(&eight, &code, sizeof eight);
    return _mm_cvtsi64_si128(eight);
  }
#endif

  static float widen(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof wide);
    return wide;
  }

  const RowCodes& codes_;
};

// `width` (at most kStrip) elements of each row, from element `first` on (a multiple of kStrip), as float32 into a strip.
template <int W>
void widen_coded(const RowCodes& layout, const char* const* rows, std::int64_t count, std::int64_t first,
                 std::int64_t width, float* strip) {
  using S = Simd<W>;
  static_assert(kStrip == kCodeUnit);
  const CodeReader<W> reader(layout);
  const std::int64_t coded = layout.width - first;
  for (std::int64_t token = 0; token < count; ++token, strip += kStrip) {
    if (coded > 0) {
      const auto factor = S::broadcast(reader.scale(rows[token], first));
      reader.codes(rows[token], first, [&](int i, typename S::F code) { S::store(strip + i, code * factor); });
    }
    if (coded >= width) continue;
    // The RoPE part, or where it begins within this strip.
    const std::int64_t from = coded > 0 ? coded : 0, skipped = coded > 0 ? 0 : -coded;
    const auto* rope = reinterpret_cast<const bf16*>(rows[token] + layout.rope_offset) + skipped;
    convert<W>(rope, strip + from, width - from);
  }
}

}  // namespace latentkv::LATENTKV_ISA
