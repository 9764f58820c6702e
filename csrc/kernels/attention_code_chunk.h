// One chunk of context whose latents are codes, on products of int16: what Chunk computes. The scales are applied apart: to
// the scores of a span of columns, and to the weights before they become words. Only the RoPE part is float32.
#pragma once

#include <omp.h>

#include "kernels/attention_code_few.h"
#include "kernels/attention_code_tiles.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class CodeChunk {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;

 public:
  static constexpr std::int64_t kTokens = kCodeChunk;

  // fp8 too only where a product of words is rounded by one instruction.
  static bool suits(const AttentionParams& p) {
#if defined(__AVX2__)
    constexpr bool reads_fp8 = true;
#else
    constexpr bool reads_fp8 = false;
#endif
    return Dot<W>::kPairs && p.integer && p.row_dtype == DType::u8 && p.value_width == p.codes.width &&
           (reads_fp8 || p.codes.format != CodeFormat::fp8);
  }

  static std::int64_t floats(const AttentionParams& p) {
    return kOwn + FewRows<W>::floats(p) + CodeRows<W>::floats(p.codes);
  }

  CodeChunk(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        strip_(memory),
        scores_(strip_ + kCodeChunk * kStrip),
        shrink_(scores_ + kCodeChunk * kRows),
        words_(reinterpret_cast<std::uint32_t*>(shrink_ + kRows)),
        weights_(words_ + kWidened * kCodeUnit),
        units_(reinterpret_cast<float*>(weights_ + kChunkPairs * kRows)),
        rows_(p.codes, memory + kOwn + FewRows<W>::floats(p)),
        few_(p, rows_, memory + kOwn) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  // Of few rows scores and weights stand in lines, [row][kCodeChunk]; of others, none.
  float* lines() const { return is_few_ ? few_.lines() : nullptr; }

  template <typename T>
  void dot(const CodeQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t width,
           Ahead& ahead) {
    ahead.spread(kAskedByDot, steps(query, width));
    const bool goes_narrow = query.begin()->vectors == 0;
    is_few_ = goes_narrow && query.count() == 1 && query.begin()->rows <= FewRows<W>::kMostSummed;
    form_ = codes_.format != CodeFormat::fp8 ? CodeForm::byte : is_few_ ? CodeForm::half : CodeForm::word;
    rows_.take_scales(rows, count, form_);
    if (is_few_) return few_.dot_lines(query, *query.begin(), rows, count, width, form_, ahead);
    if (!goes_narrow) {
      take_codes(rows, count);
      clear_scores(query, 0, count);
      for (std::int64_t span = 0; span < query.spans(); ++span) dot_span(query, span, count, ahead);
      for (std::int64_t from = codes_.width; from < width; from += kStrip) {
        dot_rope(query, from, from + kStrip < width ? from + kStrip : width, rows, count, ahead);
      }
    }
    for (const Panel& panel : query) {
      const bool takes = panel.first_row == 0;
      if (panel.vectors == 0) few_.dot(query, panel, rows, count, width, form_, takes, scores_, ahead);
    }
    clear_scores(query, count, round_up(count, 2 * kStepTerms));  // no weights beyond the context
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const*, std::int64_t count, std::int64_t,
           std::int64_t width, Ahead& ahead) {
    if (is_few_) return few_.sum_lines(result, row_count, count, form_, shrink_, ahead);
    shrink_rows<W>(result, row_count, shrink_);
    const std::int64_t blocks = (row_count + WordTile<W>::sum_rows - 1) / WordTile<W>::sum_rows;
    ahead.spread(100 - kAskedByDot, blocks * result.strips * (kStrip / (WordTile<W>::sum_vectors * W)));
    form_ == CodeForm::word ? sum_strips<CodeForm::word>(result, row_count, count, width, ahead)
                            : sum_strips<CodeForm::byte>(result, row_count, count, width, ahead);
  }

 private:
  static constexpr std::int64_t kWidened = kCodeChunk / 2;

  // Percent of the next chunk's lines.
  static constexpr std::int64_t kAskedByDot = 55;

  static constexpr std::int64_t kOwn =
      kCodeChunk * kStrip + kCodeChunk * kRows + kRows + kWidened * kCodeUnit + kChunkPairs * kRows + kRows;

  void clear_scores(const CodeQuery<W>& query, std::int64_t begin, std::int64_t end) const {
    const Panel& last = *(query.end() - 1);
    const std::int64_t lanes = round_up(last.first_row + last.rows, W);
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t row = 0; row < lanes; row += W) S::store(scores_ + t * kRows + row, S::zero());
    }
  }

  std::int64_t steps(const CodeQuery<W>& query, std::int64_t width) const {
    std::int64_t steps = 0;
    for (const Panel& panel : query) {
      const std::int64_t steps_of_rope = (width - codes_.width) / kStepColumns;
      steps += panel.vectors == 0 ? kCodeChunk : kCodeChunk / tokens_of(panel) * (query.spans() + steps_of_rope);
    }
    return steps;
  }

  static int tokens_of(const Panel& panel) {
    return panel.vectors == 2 ? WordTile<W>::pair_tokens : WordTile<W>::single_tokens;
  }

  void take_codes(const char* const* rows, std::int64_t count) {
    rows_.with_format([&]<CodeFormat Format>() {
      constexpr CodeForm form = Format == CodeFormat::fp8 ? CodeForm::word : CodeForm::byte;
      typename CodeRows<W>::NanWatch watch;
      for (std::int64_t t = 0; t < count; ++t) rows_.template take_codes<Format, form>(rows[t], t, watch);
      for (std::int64_t t = 0; Format == CodeFormat::fp8 && watch.found() && t < count; ++t) rows_.mark_nan(rows[t], t);
    });
    rows_.end(count);
  }

  void dot_span(const CodeQuery<W>& query, std::int64_t span, std::int64_t count, Ahead& ahead) const {
    if (form_ == CodeForm::word) {
      dot_codes<kCodeUnit>(query, span, rows_.words_of_all(span * kCodeUnit), {0, count}, ahead);
    } else {
      query.span() == kCodeUnit ? dot_bytes<kCodeUnit>(query, span, count, ahead)
                                : dot_bytes<2 * kCodeUnit>(query, span, count, ahead);
    }
  }

  // By so many tokens as leave room in a first-level cache for queries and scores.
  template <int Span>
  void dot_bytes(const CodeQuery<W>& query, std::int64_t span, std::int64_t count, Ahead& ahead) const {
    for (std::int64_t first = 0; first < count; first += kWidened) {
      const Range tokens{first, first + kWidened < count ? first + kWidened : count};
      widen_bytes<Span>(span * Span, tokens);
      dot_codes<Span>(query, span, words_, tokens, ahead);
    }
  }

  template <int Span>
  void widen_bytes(std::int64_t d, Range tokens) const {
    std::uint32_t* to = words_;
    for (std::int64_t t = tokens.from; t < tokens.to; ++t, to += Span / 2) {
      const char* from = rows_.template at<CodeForm::byte>(t, d);
#pragma GCC unroll 8
      for (int i = 0; i < Span; i += 2 * W) {
        const auto words = CodeRows<W>::template words<CodeForm::byte>(from, i);
        __builtin_memcpy(to + i / 2, &words, sizeof words);
      }
    }
  }

  // `keys` are those of the first of these tokens and of the others.
  template <int Span>
  void dot_codes(const CodeQuery<W>& query, std::int64_t span, const std::uint32_t* keys, Range tokens, Ahead& ahead) const {
    for (const Panel& panel : query) {
      if (panel.vectors == 2) dot_panel<Span, WordTile<W>::pair_tokens, 2>(query, panel, span, keys, tokens, ahead);
      if (panel.vectors == 1) dot_panel<Span, WordTile<W>::single_tokens, 1>(query, panel, span, keys, tokens, ahead);
    }
  }

  template <int Span, int Tokens, int Vectors>
  void dot_panel(const CodeQuery<W>& query, const Panel& panel, std::int64_t span, const std::uint32_t* keys, Range tokens,
                 Ahead& ahead) const {
    constexpr std::int64_t kWords = Span / 2;
    const std::uint32_t* q = query.words(panel) + span * kWords * Vectors * W;
    for (std::int64_t t = tokens.from; t < tokens.to; t += Tokens, keys += Tokens * kWords) {
      dot_words<W, kWords, Tokens, Vectors>(q, keys, kWords, query.units(span) + panel.first_row, rows_.scales(span) + t,
                                            scores_ + t * kRows + panel.first_row, ahead);
    }
  }

  // The key's columns from ... to, of the RoPE part.
  void dot_rope(const CodeQuery<W>& query, std::int64_t from, std::int64_t to, const char* const* rows,
                std::int64_t count, Ahead& ahead) const {
    widen_rope(rows, count, from - codes_.width, to - from);
    for (const Panel& panel : query) {
      for (int i = 0; panel.vectors > 0 && i < panel.range_count; ++i) {
        const Range own = panel.ranges[i];
        const Range range{(own.from > from ? own.from : from) - from, (own.to < to ? own.to : to) - from};
        if (range.from >= range.to) continue;
        const float* q = panel.q + from * panel.vectors * W;
        if (panel.vectors == 2) dot_wide_panel<WordTile<W>::pair_tokens, 2>(panel, q, range, count, ahead);
        if (panel.vectors == 1) dot_wide_panel<WordTile<W>::single_tokens, 1>(panel, q, range, count, ahead);
      }
    }
  }

  void widen_rope(const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width) const {
    float* to = strip_;
    for (std::int64_t t = 0; t < count; ++t, to += kStrip) {
      const bf16* from = rope(rows[t]) + first;
      if (width != kStrip) {
        convert<W>(from, to, width);
        continue;
      }
#pragma GCC unroll 16
      for (int i = 0; i < kStrip; i += W) S::store(to + i, S::load(from + i));
    }
  }

  template <int Tokens, int Vectors>
  void dot_wide_panel(const Panel& panel, const float* q, Range range, std::int64_t count, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; t += Tokens) {
      dot_wide<W, Tokens, Vectors>(q, strip_ + t * kStrip, range, scores_ + t * kRows + panel.first_row, ahead);
    }
  }

  const bf16* rope(const char* row) const { return reinterpret_cast<const bf16*>(row + codes_.rope_offset); }

  // Weights times the scales of a group, as words in a unit for each row; whole steps of pairs.
  void cut_weights(std::int64_t row_count, std::int64_t count, const float* scales) const {
    const std::int64_t end = round_up(count, 2 * kStepTerms);
    for (std::int64_t row = 0; row < row_count; row += W) {
      const float* weights = scores_ + row;
      const auto of = [&](std::int64_t t) { return S::load(weights + t * kRows) * S::broadcast(scales[t]); };
      const WordUnit<W> unit(most_word(codes_), count, of);
      S::store(units_ + row, unit.unit());
      std::uint32_t* to = weights_ + row;
#pragma GCC unroll 4
      for (std::int64_t t = 0; t < end; t += 2, to += kRows) {
        const U both = unit.words(of(t), of(t + 1));
        __builtin_memcpy(to, &both, sizeof both);
      }
    }
  }

  template <CodeForm Form>
  void sum_strips(const Partial& result, std::int64_t row_count, std::int64_t count, std::int64_t width, Ahead& ahead) const {
    for (std::int64_t d = 0; d < width; d += kStrip) {
      pair_values<Form>(d, count);
      if (d % codes_.group == 0) cut_weights(row_count, count, rows_.scales(d / span_of(codes_)));
      sum_strip<Form>(result.at(0, d), row_count, (count + 1) / 2, ahead);
    }
  }

  // The words of columns d ... + 63, of two tokens side by side; bytes in the order of pair_words().
  template <CodeForm Form>
  void pair_values(std::int64_t d, std::int64_t count) const {
    constexpr int columns = Form == CodeForm::byte ? 4 * W : 2 * W;
    std::uint32_t* to = words_;
    for (std::int64_t t = 0; t < count; t += 2, to += kStrip) {
      const char *first = rows_.template at<Form>(t, d), *second = rows_.template at<Form>(t + 1, d);
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; i += columns) {
        const std::int64_t at = Form == CodeForm::byte ? i : 2 * i;
        pair_words<Form, W>(first + at, second + at, to + i);
      }
    }
  }

  template <CodeForm Form>
  void sum_strip(float* out, std::int64_t row_count, std::int64_t pairs, Ahead& ahead) const {
    std::int64_t row = 0;
    for (; row + WordTile<W>::sum_rows <= row_count; row += WordTile<W>::sum_rows) {
      sum_rows<Form, WordTile<W>::sum_rows>(row, out, pairs, ahead);
    }
    switch (row_count - row) {
      case 5: return sum_rows<Form, 5>(row, out, pairs, ahead);
      case 4: return sum_rows<Form, 4>(row, out, pairs, ahead);
      case 3: return sum_rows<Form, 3>(row, out, pairs, ahead);
      case 2: return sum_rows<Form, 2>(row, out, pairs, ahead);
      case 1: return sum_rows<Form, 1>(row, out, pairs, ahead);
      default: return;
    }
  }

  template <CodeForm Form, int Rows>
  void sum_rows(std::int64_t row, float* out, std::int64_t pairs, Ahead& ahead) const {
    constexpr int most = kStrip / W;
    constexpr int wanted = Rows == 1 ? 8 : Rows == 2 ? 4 : WordTile<W>::sum_vectors;
    constexpr int vectors = wanted < most ? wanted : most;
    out += row * kStrip;
    for (std::int64_t v = 0; v < most; v += vectors) {
      float* to = out + column_of<Form, W>(v);
      sum_words<Form, W, Rows, vectors>(weights_ + row, words_ + v * W, pairs, units_ + row, to, ahead);
    }
  }

  const RowCodes& codes_;
  float *strip_, *scores_, *shrink_;
  std::uint32_t *words_, *weights_;  // words_: keys of a span, or values
  float* units_;
  CodeRows<W> rows_;
  FewRows<W> few_;
  CodeForm form_ = CodeForm::byte;
  bool is_few_ = false;
};

}  // namespace latentkv::LATENTKV_ISA
