// The scales of one chunk's rows of codes, group by group, as matrix tiles' sums need them.
#pragma once

#include "kernels/attention_code_words.h"

namespace latentkv::LATENTKV_ISA {

template <std::int64_t Tokens>
class TileScales {
  static constexpr int W = 16;
  using S = Simd<W>;

 public:
  static std::int64_t floats(const RowCodes& codes) { return groups_of(codes) * Tokens; }

  TileScales(const RowCodes& codes, float* memory) : codes_(codes), scales_(memory) {}

  void take(const char* const* rows, std::int64_t count) const {
    each_scales<W>(codes_, rows, count, Tokens, [&](std::int64_t first, std::int64_t groups, std::int64_t t, auto& square) {
      for (std::int64_t i = 0; i < groups; ++i) S::store(scales_ + (first + i) * Tokens + t, square[i]);
    });
  }

  // Of all tokens, 0 beyond those taken.
  const float* of(std::int64_t group) const { return scales_ + group * Tokens; }

 private:
  const RowCodes& codes_;
  float* scales_;  // [groups][Tokens]
};

}  // namespace latentkv::LATENTKV_ISA
