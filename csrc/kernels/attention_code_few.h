// Few rows against a chunk of codes: columns in the lanes, words straight from codes.
#pragma once

#include "kernels/attention_code_rows.h"
#include "kernels/attention_code_tiles.h"
#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class FewRows {
  using S = Simd<W>;
  using F = typename S::F;
  using D = Dot<W>;

 public:
  static constexpr std::int64_t kMostSummed = 2;
  static constexpr std::int64_t kFloats = kMostSummed * (kMostTokens + kMostTokens / 2);

  FewRows(const AttentionParams& p, const CodeRows<W>& codes, float* memory)
      : layout_(p.codes),
        codes_(codes),
        turned_(memory),
        weights_(reinterpret_cast<std::uint32_t*>(turned_ + kMostSummed * kMostTokens)) {}

  // scores[token][row] of a panel without rows in the lanes.
  void dot(const CodeQuery<W>& query, const Panel& panel, const char* const* rows, std::int64_t count, std::int64_t width,
           float* scores, Ahead& ahead) const {
    with_rows<4>(panel.rows, [&]<bool AreLong, int Rows>() {
      const bool is_single = query.span() == kCodeUnit;
      for (std::int64_t t = 0; t < count; ++t) {
        F sum[Rows] = {};
        AreLong || is_single ? dot_codes<AreLong, kCodeUnit>(query, panel, t, sum)
                             : dot_codes<AreLong, 2 * kCodeUnit>(query, panel, t, sum);
        dot_rope<Rows>(panel.q, query.stride(), rows[t], width, sum);
        for (int r = 0; r < Rows; ++r) scores[t * kRows + panel.first_row + r] = S::sum(sum[r]);
        ahead.step();
      }
    });
  }

  // That are summed at once.
  static constexpr int columns(std::int64_t row_count) { return row_count == 1 || W == 16 ? kStrip : kStrip / 2; }

  // result = result * shrink + weights · codes, of 1 or 2 rows; weights are [token][kRows].
  void sum(const Partial& result, std::int64_t row_count, const float* weights, std::int64_t count, const float* shrink,
           Ahead& ahead) {
    for (std::int64_t r = 0; r < row_count; ++r) {
      for (std::int64_t t = 0; t < kChunk; ++t) turned_[r * kMostTokens + t] = t < count ? weights[t * kRows + r] : 0.0f;
    }
    with_rows<kMostSummed>(row_count, [&]<bool AreLong, int Rows>() {
      constexpr int wide = columns(Rows);
      const std::int64_t span = span_of(layout_);
      for (std::int64_t d = 0; d < codes_.padded(); d += kStrip) {
        if (d % layout_.group == 0) {
          for (int r = 0; r < Rows; ++r) cut_weights(r, codes_.scales(d / span));
        }
        for (int i = 0; i < kStrip; i += wide) sum_columns<AreLong, Rows, wide>(result, d, i, (count + 1) / 2, shrink, ahead);
      }
    });
  }

 private:
  // `use` with whether words are long and the number of rows (a power of two) as its template arguments.
  template <int Most, typename Use>
  void with_rows(std::int64_t row_count, Use use) const {
    if constexpr (Most > 1) {
      if (row_count < Most) return with_rows<Most / 2>(row_count, use);
    }
    layout_.format == CodeFormat::fp8 ? use.template operator()<true, Most>() : use.template operator()<false, Most>();
  }

  template <bool AreLong, int Span, int Rows>
  [[gnu::always_inline]] void dot_codes(const CodeQuery<W>& query, const Panel& panel, std::int64_t t, F (&sum)[Rows]) const {
    const std::uint32_t* q = query.words(panel);
    const float *units = query.units(0) + panel.first_row, *scale = codes_.scales(0) + t;
    for (std::int64_t d = 0; d < query.spans() * Span; d += Span, q += Span / 2, units += kRows, scale += kChunk) {
      typename D::I part[Rows] = {};
#pragma GCC unroll 16
      for (int i = 0; i < Span; i += 2 * W) {
        const auto key = (typename D::U)codes_.template words<AreLong>(t, d, i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) add_now<W>(part[r], key, load_words<W>(q + r * query.row_words() + i / 2));
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r] = S::fma(number_of<W>(part[r]), S::broadcast(*scale * units[r]), sum[r]);
    }
  }

  template <int Rows>
  [[gnu::always_inline]] void dot_rope(const float* q, std::int64_t stride, const char* row, std::int64_t width,
                                       F (&sum)[Rows]) const {
    const auto* key = reinterpret_cast<const bf16*>(row + layout_.rope_offset) - layout_.width;
    for (std::int64_t d = layout_.width; d < width; d += 2 * W) {
#pragma GCC unroll 2
      for (int i = 0; i < 2 * W; i += W) {
        const F value = S::load(key + d + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sum[r] = S::fma(value, S::load(q + r * stride + d + i), sum[r]);
      }
    }
  }

  // Of one row, times the scales of a group: pairs of tokens.
  void cut_weights(std::int64_t row, const float* scales) {
    const float* weights = turned_ + row * kMostTokens;
    const auto of = [&](std::int64_t t) { return t < kChunk ? S::load(weights + t) * S::load(scales + t) : S::zero(); };
    const auto unit = WordUnit<W>::of_all(most_word(layout_), kChunk / W, [&](std::int64_t i) { return of(i * W); });
    units_[row] = unit.unit()[0];
    for (std::int64_t t = 0; t < kChunk; t += 2 * W) {
      F even = of(t), odd = of(t + W);
      part<W>(even, odd);
      const auto both = unit.words(even, odd);
      __builtin_memcpy(weights_ + row * kMostTokens / 2 + t / 2, &both, sizeof both);
    }
  }

  // Columns d + first ... d + first + Columns - 1.
  template <bool AreLong, int Rows, int Columns>
  void sum_columns(const Partial& result, std::int64_t d, int first, std::int64_t pairs, const float* shrink,
                   Ahead& ahead) const {
    typename D::I sum[Rows][Columns / W] = {};
    for (std::int64_t pair = 0; pair < pairs;) {
      for (const std::int64_t stop = pair + kStepTerms < pairs ? pair + kStepTerms : pairs; pair < stop; ++pair) {
#pragma GCC unroll 8
        for (int i = 0; i < Columns; i += 2 * W) {
          auto low = codes_.template words<AreLong>(2 * pair, d, first + i);
          auto high = codes_.template words<AreLong>(2 * pair + 1, d, first + i);
          interleave<W>(low, high);
#pragma GCC unroll 2
          for (int r = 0; r < Rows; ++r) {
            const auto weight = spread_word<W>(weights_ + r * kMostTokens / 2 + pair);
            add_now<W>(sum[r][i / W], weight, (typename D::U)low);
            add_now<W>(sum[r][i / W + 1], weight, (typename D::U)high);
          }
        }
      }
      ahead.step();
    }
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      float* out = result.at(r, d) + first;
#pragma GCC unroll 8
      for (int i = 0; i < Columns; i += 2 * W) add_sums<W>(sum[r][i / W], sum[r][i / W + 1], units_[r], shrink[r], out + i);
    }
  }

  const RowCodes& layout_;
  const CodeRows<W>& codes_;
  float* turned_;           // weights [kMostSummed][kMostTokens]
  std::uint32_t* weights_;  // words of a group [kMostSummed][pairs of tokens]
  float units_[kMostSummed] = {};
};

}  // namespace latentkv::LATENTKV_ISA
