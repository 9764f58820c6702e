// Few rows against a chunk of codes: columns in the lanes. Codes are made ready right before they are first multiplied, while
// their lines are near. One or two rows over fp8 go by float16, exactly; all others by words.
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
  static constexpr std::int64_t kMostRows = 4;  // of a panel

  static std::int64_t floats(const AttentionParams& p) {
    return kMostSummed * (kCodeChunk + kCodeChunk / 2) + kMostRows * kCodeChunk * CodeQuery<W>::spans(p);
  }

  FewRows(const AttentionParams& p, CodeRows<W>& codes, float* memory)
      : layout_(p.codes),
        codes_(codes),
        lines_(memory),
        weights_(reinterpret_cast<std::uint32_t*>(lines_ + kMostSummed * kCodeChunk)),
        factors_(lines_ + kMostSummed * (kCodeChunk + kCodeChunk / 2)) {}

  // Scores of a panel without rows in the lanes, [token][kRows]; after take_scales(). Takes the codes, too, unless they are.
  void dot(const CodeQuery<W>& query, const Panel& panel, const char* const* rows, std::int64_t count, std::int64_t width,
           CodeForm form, bool takes, float* scores, Ahead& ahead) {
    find_factors(query, panel);
    const Call call{query, panel, rows, count, width, scores + panel.first_row, kRows, 1, ahead};
    with_rows<kMostRows>(panel.rows, [&]<int Rows>() {
      if (takes) return dot_taking<CodeForm::word, Rows>(call);
      form == CodeForm::word ? dot_taken<CodeForm::word, Rows>(call) : dot_taken<CodeForm::byte, Rows>(call);
    });
  }

  // [kMostSummed][kCodeChunk]: scores, and what has become of them.
  float* lines() const { return lines_; }

  // The same of one or two rows, into lines().
  void dot_lines(const CodeQuery<W>& query, const Panel& panel, const char* const* rows, std::int64_t count,
                 std::int64_t width, CodeForm form, Ahead& ahead) {
    if (form != CodeForm::half) find_factors(query, panel);
    const Call call{query, panel, rows, count, width, lines_, 1, kCodeChunk, ahead};
    with_rows<kMostSummed>(panel.rows, [&]<int Rows>() { dot_taking<CodeForm::half, Rows>(call); });
  }

  // That are summed at once.
  static constexpr int columns(std::int64_t row_count) { return row_count == 1 || W == 16 ? kStrip : kStrip / 2; }

  // result = result * shrink + weights in lines() · codes.
  void sum_lines(const Partial& result, std::int64_t row_count, std::int64_t count, CodeForm form, const float* shrink,
                 Ahead& ahead) {
    for (std::int64_t r = 0; r < row_count; ++r) {
      for (std::int64_t t = count; t < kCodeChunk; ++t) lines_[r * kCodeChunk + t] = 0.0f;
    }
    shrink_rows<W>(result, row_count, shrink);
    with_rows<kMostSummed>(row_count, [&]<int Rows>() {
      form == CodeForm::half ? sum_halves<Rows>(result, count, ahead) : sum_bytes<Rows>(result, count, ahead);
    });
  }

 private:
  // Lines of the next chunk that are asked for: at each token's scores, and at every two steps of a strip's sums.
  template <CodeFormat Format>
  static constexpr int kAskedByDot = Format == CodeFormat::int6 ? 5 : Format == CodeFormat::int4 ? 3 : 7;
  static constexpr int kAskedBySum = 8;

  struct Call {
    const CodeQuery<W>& query;
    const Panel& panel;
    const char* const* rows;
    std::int64_t count, width;
    float* scores;
    std::int64_t token_step, row_step;
    Ahead& ahead;
  };

  // `use` with the number of rows, a power of two, as its template argument.
  template <int Most, typename Use>
  static void with_rows(std::int64_t row_count, Use use) {
    if constexpr (Most > 1) {
      if (row_count < Most) return with_rows<Most / 2>(row_count, use);
    }
    use.template operator()<Most>();
  }

  // Scales times units: factors_ [row][span][kCodeChunk].
  void find_factors(const CodeQuery<W>& query, const Panel& panel) {
    float* to = factors_;
    for (std::int64_t r = 0; r < panel.rows; ++r) {
      for (std::int64_t span = 0; span < query.spans(); ++span, to += kCodeChunk) {
        const F unit = S::broadcast(query.units(span)[panel.first_row + r]);
        for (std::int64_t t = 0; t < kCodeChunk; t += W) S::store(to + t, S::load(codes_.scales(span) + t) * unit);
      }
    }
  }

  template <CodeForm Form, int Rows>
  void dot_taken(const Call& call) const {
    const DotInput in = input(call);
    dot_all<Rows>(call, [&](std::int64_t t, F (&sum)[Rows]) [[gnu::always_inline]] {
      dot_token<Form, Rows>(in, t, call.rows[t], sum);
      call.ahead.step();
    });
  }

  // Form is that of fp8.
  template <CodeForm Form, int Rows>
  void dot_taking(const Call& call) {
    codes_.with_format([&]<CodeFormat Format>() {
      dot_taking<Format, Format == CodeFormat::fp8 ? Form : CodeForm::byte, Rows>(call);
    });
    codes_.end(call.count);
  }

  template <CodeFormat Format, CodeForm Form, int Rows>
  void dot_taking(const Call& call) {
    const DotInput in = input(call);
    typename CodeRows<W>::NanWatch watch;
    dot_all<Rows>(call, [&](std::int64_t t, F (&sum)[Rows]) [[gnu::always_inline]] {
      codes_.template take_codes<Format, Form>(call.rows[t], t, watch);
      dot_token<Form, Rows>(in, t, call.rows[t], sum);
      call.ahead.template ask<kAskedByDot<Format>>();
    });
    if (Format == CodeFormat::fp8 && watch.found()) mark_nan<Rows>(call);
    // Whole steps are summed, and what lay there before need not be numbers.
    for (std::int64_t t = call.count; Form == CodeForm::half && t < round_up(call.count, kStepTerms); ++t) {
      codes_.template take_codes<Format, Form>(call.rows[call.count - 1], t, watch);
    }
  }

  template <int Rows>
  void mark_nan(const Call& call) {
    for (std::int64_t t = 0; t < call.count; ++t) {
      if (!codes_.mark_nan(call.rows[t], t)) continue;
      for (int r = 0; r < Rows; ++r) call.scores[t * call.token_step + r * call.row_step] = __builtin_nanf("");
    }
  }

  // The scores of all tokens, whose sums one(t, sums) finds; the lanes are added up for W tokens at once.
  template <int Rows, typename One>
  [[gnu::always_inline]] static void dot_all(const Call& call, One one) {
    for (std::int64_t t = 0; t < call.count; t += W) {
      const std::int64_t count = call.count - t < W ? call.count - t : W;
      F sums[Rows][W] = {};
      for (std::int64_t i = 0; i < count; ++i) {
        F sum[Rows] = {};
        one(t + i, sum);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sums[r][i] = sum[r];
      }
      for (int r = 0; r < Rows; ++r) {
        const F scores = sum_each<W>(sums[r]);
        float* to = call.scores + t * call.token_step + r * call.row_step;
        for (std::int64_t i = 0; i < count; ++i) to[i * call.token_step] = scores[i];
      }
    }
  }

  // What each token is multiplied with: in a place of its own, which no store to scratch can change.
  struct DotInput {
    const std::uint32_t* words;
    const float *numbers, *factors, *scales;
    std::int64_t row_words, stride, spans, span;
    Range rope;
    std::int64_t rope_offset;
  };

  DotInput input(const Call& call) const {
    const CodeQuery<W>& query = call.query;
    return {query.words(call.panel), call.panel.q,   factors_,      codes_.scales(0),
            query.row_words(),       query.stride(), query.spans(), query.span(),
            {layout_.width, call.width}, layout_.rope_offset};
  }

  template <CodeForm Form, int Rows>
  [[gnu::always_inline]] void dot_token(const DotInput& in, std::int64_t t, const char* row, F (&sum)[Rows]) const {
    if constexpr (Form == CodeForm::half) {
      dot_halves<Rows>(in, t, sum);
    } else if (Form == CodeForm::word || in.span == kCodeUnit) {
      dot_words<Form, kCodeUnit, Rows>(in, t, sum);
    } else {
      dot_words<Form, 2 * kCodeUnit, Rows>(in, t, sum);
    }
    dot_rope<Rows>(in, row, sum);
  }

  template <CodeForm Form, int Span, int Rows>
  [[gnu::always_inline]] void dot_words(const DotInput& in, std::int64_t t, F (&sum)[Rows]) const {
    const std::uint32_t* q = in.words;
    const float* factor = in.factors + t;
    const char* from = codes_.template at<Form>(t, 0);
    const std::int64_t step = codes_.template unit_step<Form>() * (Span / kCodeUnit);
    for (std::int64_t span = in.spans; span > 0; --span, from += step, q += Span / 2, factor += kCodeChunk) {
      typename D::I part[Rows];
#pragma GCC unroll 16
      for (int i = 0; i < Span; i += 2 * W) {
        const auto key = (typename D::U)CodeRows<W>::template words<Form>(from, i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const auto words = load_words<W>(q + r * in.row_words + i / 2);
          if (i == 0) {
            part[r] = D::add_pairs(typename D::I{}, key, words);
          } else {
            D::add_pairs_to(part[r], key, words);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        sum[r] = S::fma(number_of<W>(part[r]), S::broadcast(factor[r * in.spans * kCodeChunk]), sum[r]);
      }
    }
  }

  template <int Rows>
  [[gnu::always_inline]] void dot_halves(const DotInput& in, std::int64_t t, F (&sum)[Rows]) const {
    const float *q = in.numbers, *scale = in.scales + t;
    const char* units = codes_.template at<CodeForm::half>(t, 0);
    const std::int64_t step = codes_.template unit_step<CodeForm::half>();
    for (std::int64_t left = codes_.padded(); left > 0; left -= kCodeUnit, units += step, q += kCodeUnit, scale += kCodeChunk) {
      const auto* from = reinterpret_cast<const f16*>(units);
      F part[Rows] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kCodeUnit; i += W) {
        const F key = S::load(from + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) part[r] = S::fma(key, S::load(q + r * in.stride + i), part[r]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r] = S::fma(part[r], S::broadcast(*scale), sum[r]);
    }
  }

  // The query's columns stand parted. In sums of their own: one sum would wait for itself.
  template <int Rows>
  [[gnu::always_inline]] static void dot_rope(const DotInput& in, const char* row, F (&sum)[Rows]) {
    const auto* key = reinterpret_cast<const bf16*>(row + in.rope_offset) - in.rope.from;
    F part[Rows][2] = {};
    const auto add = [&](std::int64_t d) [[gnu::always_inline]] {
      F columns[2];
      S::load_pairs(key + d, columns[0], columns[1]);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const float* q = in.numbers + r * in.stride + d;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) part[r][i] = S::fma(columns[i], S::load(q + i * W), part[r][i]);
      }
    };
    std::int64_t d = in.rope.from;
    for (; d + kStrip <= in.rope.to; d += kStrip) {
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; i += 2 * W) add(d + i);
    }
    for (; d < in.rope.to; d += 2 * W) add(d);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sum[r] += part[r][0] + part[r][1];
  }

  template <int Rows>
  void sum_bytes(const Partial& result, std::int64_t count, Ahead& ahead) {
    constexpr int wide = columns(Rows);
    const std::int64_t span = span_of(layout_);
    for (std::int64_t d = 0; d < codes_.padded(); d += kStrip) {
      if (d % layout_.group == 0) {
        for (int r = 0; r < Rows; ++r) cut_weights(r, codes_.scales(d / span));
      }
      for (int v = 0; v < kStrip / W; v += wide / W) {
        sum_columns<Rows, wide>(result.at(0, d) + column_of<CodeForm::byte, W>(v), d + v * W, (count + 1) / 2, ahead);
      }
    }
  }

  // Of one row, times the scales of a group: pairs of tokens.
  void cut_weights(std::int64_t row, const float* scales) {
    const float* weights = lines_ + row * kCodeChunk;
    const auto of = [&](std::int64_t t) { return S::load(weights + t) * S::load(scales + t); };
    const auto unit = WordUnit<W>::of_all(most_word(layout_), kCodeChunk / W, [&](std::int64_t i) { return of(i * W); });
    units_[row] = unit.unit()[0];
    typename D::I total{};
    for (std::int64_t t = 0; t < kCodeChunk; t += 2 * W) {
      F even = of(t), odd = of(t + W);
      part<W>(even, odd);
      const auto both = unit.words(even, odd);
      total = D::add_pairs(total, both, typename D::U{} + 0x00010001u);
      __builtin_memcpy(weights_ + row * kCodeChunk / 2 + t / 2, &both, sizeof both);
    }
    totals_[row] = 0;
    for (int i = 0; i < W; ++i) totals_[row] += total[i];
  }

  // `Columns` columns from d on; whole steps of pairs. Two neighbouring bytes are one word, 256 * odd + even, and without its
  // lower byte the odd one: the sums of both, which may overflow, give those of the even ones, which do not. The even ones
  // are made positive for it, 128 more than they were.
  template <int Rows, int Columns>
  void sum_columns(float* out, std::int64_t d, std::int64_t pairs, Ahead& ahead) const {
    using Words = typename CodeRows<W>::Words;
    typename D::I sum[Rows][Columns / W] = {};
    const std::uint32_t* weights = weights_;
    const auto of = [&](std::int64_t t, int i) [[gnu::always_inline]] {
      Words words;
      __builtin_memcpy(&words, codes_.template at<CodeForm::byte>(t, d) + i, sizeof words);
      return words ^ 0x80;
    };
    for (std::int64_t t = 0; t < 2 * pairs; t += 2 * kStepTerms, weights += kStepTerms) {
#pragma GCC unroll 8
      for (int pair = 0; pair < kStepTerms; ++pair) {
#pragma GCC unroll 8
        for (int i = 0; i < Columns; i += 4 * W) {
          Words low = of(t + 2 * pair, i), high = of(t + 2 * pair + 1, i);
          interleave<W>(low, high);
          const Words odd_low = low >> 8, odd_high = high >> 8;
#pragma GCC unroll 2
          for (int r = 0; r < Rows; ++r) {
            const auto weight = spread_word<W>(weights + r * kCodeChunk / 2 + pair);
            auto* to = sum[r] + i / W;
            D::add_pairs_to(to[0], weight, (typename D::U)low);
            D::add_pairs_to(to[1], weight, (typename D::U)odd_low);
            D::add_pairs_to(to[2], weight, (typename D::U)high);
            D::add_pairs_to(to[3], weight, (typename D::U)odd_high);
          }
        }
      }
      ahead.ask<kAskedBySum * Columns / kStrip>();
    }
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < Columns / W; v += 2) {
        const auto odd = (typename D::U)sum[r][v + 1] << 8;
        sum[r][v] = (typename D::I)((typename D::U)sum[r][v] - odd - 128 * static_cast<std::uint32_t>(totals_[r]));
      }
#pragma GCC unroll 8
      for (int v = 0; v < Columns / W; v += kJoined<CodeForm::byte, W>) {
        add_sums<CodeForm::byte, W>(sum[r] + v, units_[r], out + r * kStrip + column_of<CodeForm::byte, W>(v));
      }
    }
  }

  template <int Rows>
  void sum_halves(const Partial& result, std::int64_t count, Ahead& ahead) const {
    constexpr int wide = columns(Rows);
    for (std::int64_t d = 0; d < codes_.padded(); d += kStrip) {
      for (int i = 0; i < kStrip; i += wide) sum_half_columns<Rows, wide>(result, d, i, count, ahead);
    }
  }

  // Columns d + first ... d + first + Columns - 1; whole steps of tokens.
  template <int Rows, int Columns>
  void sum_half_columns(const Partial& result, std::int64_t d, int first, std::int64_t count, Ahead& ahead) const {
    const float *weights = lines_, *scales = codes_.scales(d / kCodeUnit);
    const char* values = codes_.template at<CodeForm::half>(0, d) + 2 * first;
    F sum[Rows][Columns / W] = {};
    for (std::int64_t t = 0; t < count; t += kStepTerms, values += kStepTerms * kCodeUnit * 2) {
#pragma GCC unroll 8
      for (int i = 0; i < kStepTerms; ++i) {
        const auto* from = reinterpret_cast<const f16*>(values) + i * kCodeUnit;
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) {
          const F weight = S::broadcast(weights[r * kCodeChunk + t + i] * scales[t + i]);
#pragma GCC unroll 8
          for (int v = 0; v < Columns; v += W) sum[r][v / W] = S::fma(weight, S::load(from + v), sum[r][v / W]);
        }
      }
      ahead.ask<kAskedBySum / 2 * Columns / kStrip>();
    }
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      float* out = result.at(r, d) + first;
#pragma GCC unroll 8
      for (int v = 0; v < Columns; v += W) S::store(out + v, S::load(out + v) + sum[r][v / W]);
    }
  }

  const RowCodes& layout_;
  CodeRows<W>& codes_;
  float* lines_;
  std::uint32_t* weights_;  // words of a group [kMostSummed][pairs of tokens]
  float* factors_;
  float units_[kMostSummed] = {};
  std::int32_t totals_[kMostSummed] = {};  // of weights' words
};

}  // namespace latentkv::LATENTKV_ISA
