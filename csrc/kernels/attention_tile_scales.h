// The scales of one chunk's rows of codes, group by group, as matrix tiles' sums need them.
#pragma once

#include "kernels/attention_code_words.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

inline std::int64_t groups_of(const RowCodes& codes) { return (codes.width + codes.group - 1) / codes.group; }

template <std::int64_t Tokens>
class TileScales {
  static constexpr int W = 16;
  using S = Simd<W>;

 public:
  static std::int64_t floats(const RowCodes& codes) { return groups_of(codes) * Tokens; }

  TileScales(const RowCodes& codes, float* memory) : codes_(codes), scales_(memory) {}

  void take(const char* const* rows, std::int64_t count) const {
    codes_.short_scales ? take_all<bf16>(rows, count) : take_all<float>(rows, count);
  }

  // Of all tokens, 0 beyond those taken.
  const float* of(std::int64_t group) const { return scales_ + group * Tokens; }

 private:
  // 16 tokens and 16 groups at a time.
  template <typename Scale>
  void take_all(const char* const* rows, std::int64_t count) const {
    for (std::int64_t first = 0; first < groups_of(codes_); first += W) {
      const std::int64_t offset = codes_.scale_offset + first * sizeof(Scale), left = groups_of(codes_) - first;
      const bool has_room = offset + W * static_cast<std::int64_t>(sizeof(Scale)) <= codes_.row_bytes;
      for (std::int64_t t = 0; t < Tokens; t += W) {
        S::F square[W];
        for (std::int64_t i = 0; i < W; ++i) {
          const auto* from = reinterpret_cast<const Scale*>(rows[t + i < count ? t + i : count - 1] + offset);
          square[i] = has_room ? S::load(from) : S::load_part(from, left < W ? left : W);
          if (t + i >= count) square[i] = S::zero();
        }
        transpose<W>(square);
        for (std::int64_t i = 0; i < W && i < left; ++i) S::store(scales_ + (first + i) * Tokens + t, square[i]);
      }
    }
  }

  const RowCodes& codes_;
  float* scales_;  // [groups][Tokens]
};

}  // namespace latentkv::LATENTKV_ISA
