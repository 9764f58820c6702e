// The queries of one item as words, for rows of codes: in units of their own for each row and span of columns.
#pragma once

#include "kernels/attention_code_words.h"
#include "kernels/attention_query.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class CodeQuery : public PackedQuery<W> {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;
  using Base = PackedQuery<W>;

 public:
  static std::int64_t spans(const AttentionParams& p) { return 2 * words_of_row(p) / span_of(p.codes); }
  static std::int64_t words_of_row(const AttentionParams& p) { return round_up(p.codes.width, kCodeUnit) / 2; }
  static std::int64_t floats(const AttentionParams& p) {
    return Base::floats(p) + kRows * words_of_row(p) + spans(p) * kRows;
  }

  CodeQuery(const AttentionParams& p, float* memory)
      : Base(p, memory),
        width_(p.codes.width),
        row_words_(words_of_row(p)),
        span_(span_of(p.codes)),
        spans_(p.a.width > 0 ? spans(p) : 0),
        most_(most_word(p.codes)),
        words_(reinterpret_cast<std::uint32_t*>(memory + Base::floats(p))),
        units_(memory + Base::floats(p) + kRows * row_words_) {}

  // Columns of one; how many: none where no query looks at the codes.
  std::int64_t span() const { return span_; }
  std::int64_t spans() const { return spans_; }

  // Pairs of columns [row_words()][vectors * W] of a panel with rows in the lanes, else [rows][row_words()].
  const std::uint32_t* words(const Panel& panel) const { return words_ + panel.first_row * row_words_; }
  std::int64_t row_words() const { return row_words_; }

  // [kRows]
  const float* units(std::int64_t span) const { return units_ + span * kRows; }

  void pack(const RowNames& names, std::int64_t row_count) {
    Base::pack(names, row_count);
    for (const Panel& panel : *this) {
      for (std::int64_t span = 0; span < spans_; ++span) {
        if (panel.vectors > 0) {
          cut_lanes(panel, span);
        } else {
          for (std::int64_t row = 0; row < panel.rows; ++row) cut_row(panel, row, span);
        }
      }
      if (panel.vectors > 0) continue;
      for (std::int64_t row = 0; row < panel.rows; ++row) Base::part_row(panel.q + row * Base::stride(), width_);
    }
  }

 private:
  void cut_lanes(const Panel& panel, std::int64_t span) {
    const std::int64_t lanes = panel.vectors * W, first = span * span_, left = width_ - first;
    for (std::int64_t lane = 0; lane < lanes; lane += W) {
      const float* q = panel.q + first * lanes + lane;
      std::uint32_t* to = words_ + panel.first_row * row_words_ + first / 2 * lanes + lane;
      // After the codes the RoPE part begins.
      const auto of = [&](std::int64_t i) { return i < left ? S::load(q + i * lanes) : S::zero(); };
      const WordUnit<W> unit(most_, span_, of);
      S::store(units_ + span * kRows + panel.first_row + lane, unit.unit());
      for (std::int64_t i = 0; i < span_; i += 2) {
        const U both = unit.words(of(i), of(i + 1));
        __builtin_memcpy(to + i / 2 * lanes, &both, sizeof both);
      }
    }
  }

  void cut_row(const Panel& panel, std::int64_t row, std::int64_t span) {
    const std::int64_t first = span * span_, left = width_ - first;
    const float* q = panel.q + row * Base::stride() + first;
    std::uint32_t* to = words_ + (panel.first_row + row) * row_words_ + first / 2;
    const auto of = [&](std::int64_t i) { return S::first(left - i * W, S::load(q + i * W), S::zero()); };
    const auto unit = WordUnit<W>::of_all(most_, span_ / W, of);
    units_[span * kRows + panel.first_row + row] = unit.unit()[0];
    for (std::int64_t i = 0; i < span_ / W; i += 2) {
      F a = of(i), b = of(i + 1);
      part<W>(a, b);
      const U both = unit.words(a, b);
      __builtin_memcpy(to + i * W / 2, &both, sizeof both);
    }
  }

  const std::int64_t width_, row_words_, span_, spans_;
  const float most_;
  std::uint32_t* words_;
  float* units_;
};

}  // namespace latentkv::LATENTKV_ISA
