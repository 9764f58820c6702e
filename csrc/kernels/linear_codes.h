// Panels of int8 and int4 codes: how they lie in memory, as floats and as bytes. Layout: src/latentkv/ops/quantized.py.
#pragma once

#include "dot.h"
#include "kernels/linear_types.h"

namespace latentkv::LATENTKV_ISA {

// The codes of one panel, from its output `first_output` on (a multiple of W), W outputs in the lanes.
template <int W>
class CodePanel {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;
  using I = typename Lanes<std::int32_t, W>::type;
  static constexpr std::int64_t kBytes = 4 * kPanelRows;

 public:
  CodePanel(const LinearWeight& weight, std::int64_t first_output)
      : weight_(weight),
        codes_(static_cast<const char*>(weight.data) + code_bytes(weight, first_output / kPanelRows * kPanelRows) +
               first_output % kPanelRows * 4),
        scale_at_(first_output / kPanelRows * (weight.cols / weight.group) * kPanelRows + first_output % kPanelRows) {}

  F scale(std::int64_t group) const { return load_any<W>(weight_.scales, weight_.scale_dtype, scale_at_ + group * 16); }

  F minimum(std::int64_t group) const {
    return load_any<W>(weight_.minima, weight_.scale_dtype, scale_at_ + group * 16);
  }

  // What a code of zero is worth.
  F base(std::int64_t group) const {
    const F least = weight_.minima == nullptr ? S::zero() : minimum(group);
    return S::fma(scale(group), S::broadcast(static_cast<float>(-weight_.zero)), least);
  }

  const char* address(std::int64_t input) const {
    return codes_ + (weight_.format == WeightFormat::int4 ? input / 8 : input / 4) * kBytes;
  }

  // Asks for the memory of the group that will be used `ahead` groups from now.
  void prefetch(std::int64_t group, std::int64_t ahead) const {
    const char* from = address((group + ahead) * weight_.group);
    const std::int64_t bytes = address(weight_.group) - address(0);
    for (std::int64_t at = 0; at < bytes; at += kBytes) __builtin_prefetch(from + at);
    __builtin_prefetch(element(weight_.scales, weight_.scale_dtype, scale_at_ + (group + ahead) * kPanelRows));
  }

  // Four inputs' int8 in each lane.
  U bytes(std::int64_t input, std::int64_t later_output = 0) const {
    U four;
    __builtin_memcpy(&four, address(input) + later_output * 4, sizeof four);
    return four;
  }

  // Eight inputs' int4: four in the low halves of the bytes, the next four in the high ones.
  static U low(U both) { return both & 0x0f0f0f0fu; }
  static U high(U both) { return both >> 4 & 0x0f0f0f0fu; }

  // body(k, byte, F weight) for every input k of one group, counted within the group; byte = k % 4.
  template <typename Body>
  [[gnu::always_inline]] void for_each_weight(std::int64_t group, Body body) const {
    const F factor = scale(group), least = base(group);
    const std::int64_t first = group * weight_.group;
    const auto one = [&](std::int64_t k, int byte, I code) __attribute__((always_inline)) {
      body(k + byte, byte % 4, S::fma(factor, __builtin_convertvector(code, F), least));
    };
    if (weight_.format == WeightFormat::int8) {
      for (std::int64_t k = 0; k < weight_.group; k += 4) {
        const U four = bytes(first + k);
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) one(k, byte, (I)(four << (24 - 8 * byte)) >> 24);
      }
    } else {
      for (std::int64_t k = 0; k < weight_.group; k += 8) {
        const U eight = bytes(first + k);
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) one(k, byte, (I)(eight >> 8 * byte & 15u));
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) one(k + 4, byte, (I)(eight >> (8 * byte + 4) & 15u));
      }
    }
  }

 private:
  const LinearWeight& weight_;
  const char* codes_;
  std::int64_t scale_at_;
};

}  // namespace latentkv::LATENTKV_ISA
