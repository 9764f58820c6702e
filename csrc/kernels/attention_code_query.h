// The queries of one item as words where rows are in the lanes, for rows of codes: in units of their own for each row and 64
// columns.
#pragma once

#include "kernels/attention_code_words.h"
#include "kernels/attention_query.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class CodeQuery : public PackedQuery<W> {
  using S = Simd<W>;
  using U = typename S::U;
  using Base = PackedQuery<W>;

 public:
  static std::int64_t strips(const AttentionParams& p) { return round_up(p.codes.width, kStrip) / kStrip; }
  static std::int64_t floats(const AttentionParams& p) {
    return Base::floats(p) + strips(p) * (kRows * kStripWords + kRows);
  }

  CodeQuery(const AttentionParams& p, float* memory)
      : Base(p, memory),
        strips_(strips(p)),
        width_(p.codes.width),
        most_(most_word(p.codes)),
        sees_codes_(p.a.width > 0),
        words_(reinterpret_cast<std::uint32_t*>(memory + Base::floats(p))),
        units_(memory + Base::floats(p) + strips_ * kRows * kStripWords) {}

  // 0 where no query looks at the codes.
  std::int64_t code_strips() const { return sees_codes_ ? strips_ : 0; }

  // Pairs of columns [kStripWords][vectors * W] of a panel with rows in the lanes.
  const std::uint32_t* words(const Panel& panel, std::int64_t strip) const {
    return words_ + (panel.first_row * strips_ + strip * panel.vectors * W) * kStripWords;
  }

  // [kRows]
  const float* units(std::int64_t strip) const { return units_ + strip * kRows; }

  void pack(const RowNames& names, std::int64_t row_count) {
    Base::pack(names, row_count);
    for (const Panel& panel : *this) {
      for (std::int64_t strip = 0; strip < code_strips(); ++strip) {
        if (panel.vectors > 0) cut(panel, strip);
      }
    }
  }

 private:
  // Columns of codes in a strip: after them the RoPE part begins.
  std::int64_t columns(std::int64_t strip) const {
    const std::int64_t left = width_ - strip * kStrip;
    return left < kStrip ? left : kStrip;
  }

  void cut(const Panel& panel, std::int64_t strip) const {
    const std::int64_t lanes = panel.vectors * W, count = columns(strip);
    for (std::int64_t lane = 0; lane < lanes; lane += W) {
      const float* q = panel.q + strip * kStrip * lanes + lane;
      auto* to = const_cast<std::uint32_t*>(words(panel, strip)) + lane;
      const auto of = [&](std::int64_t i) { return i < count ? S::load(q + i * lanes) : S::zero(); };
      const WordUnit<W> unit(most_, count, of);
      S::store(units_ + strip * kRows + panel.first_row + lane, unit.unit());
      for (std::int64_t i = 0; i < kStripWords; ++i) {
        const U both = unit.words(of(2 * i), of(2 * i + 1));
        __builtin_memcpy(to + i * lanes, &both, sizeof both);
      }
    }
  }

  const std::int64_t strips_, width_;
  const float most_;
  const bool sees_codes_;
  std::uint32_t* words_;
  float* units_;
};

}  // namespace latentkv::LATENTKV_ISA
