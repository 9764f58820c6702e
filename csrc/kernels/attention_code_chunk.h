// One chunk of context whose latents are codes, on products of int16: what Chunk computes. The scales are applied apart: to
// the scores of 64 columns, and to the weights before they become words. Only the RoPE part is float32.
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
  using I16 = typename WordReader<W>::I16;

 public:
  static constexpr std::int64_t kTokens = kChunk;

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

  static std::int64_t floats(const AttentionParams& p) { return kOwn + FewRows<W>::floats(p); }

  CodeChunk(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        reader_(p.codes),
        strip_(memory),
        scores_(strip_ + kChunk * kStrip),
        shrink_(scores_ + kChunk * kRows),
        words_(reinterpret_cast<std::uint32_t*>(shrink_ + kRows)),
        weights_(words_ + kChunk * kStripWords),
        units_(reinterpret_cast<float*>(weights_ + kChunkPairs * kRows)),
        scales_(units_ + kRows),
        few_(p, reader_, memory + kOwn) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const CodeQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t width,
           Ahead& ahead) {
    ahead.spread(kAskedByDot, steps(query, width));
    const bool is_wide = query.begin()->vectors > 0;
    goes_narrow_ = !is_wide;
    for (std::int64_t t = 0; t < kChunk; ++t) __builtin_memset(scores_ + t * kRows, 0, (is_wide ? kRows : W) * sizeof(float));
    if (is_wide) {
      for (std::int64_t strip = 0; strip < query.code_strips(); ++strip) {
        reader_.with_format([&]<CodeFormat Format>() { write_words<Format>(strip, rows, count); });
        dot_codes(query, strip, count, ahead);
      }
      for (std::int64_t from = codes_.width; from < width; from += kStrip) {
        dot_rope(query, from, from + kStrip < width ? from + kStrip : width, rows, count, ahead);
      }
    }
    if ((query.end() - 1)->vectors > 0) return;
    few_.take(rows, count);
    for (const Panel& panel : query) {
      if (panel.vectors > 0) continue;
      few_.dot(panel.q, query.stride(), panel.rows, query.code_strips() > 0, width, scores_ + panel.first_row, ahead);
    }
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const* rows, std::int64_t count, std::int64_t,
           std::int64_t width, Ahead& ahead) const {
    const std::int64_t blocks = (row_count + Tile<W>::sum_rows - 1) / Tile<W>::sum_rows;
    if (goes_narrow_ && row_count <= FewRows<W>::kMostSummed) {
      ahead.spread(100 - kAskedByDot, result.strips * (kChunk / kStepTerms));
      return few_.sum(result, row_count, scores_, shrink_, ahead);
    }
    ahead.spread(100 - kAskedByDot, blocks * result.strips * (kChunkPairs / kStepTerms));
    for (std::int64_t d = 0; d < width; d += kStrip) {
      reader_.with_format([&]<CodeFormat Format>() { pair_values<Format>(rows, count, d); });
      if (d % codes_.group == 0 || codes_.format == CodeFormat::fp8) {
        cut_weights(row_count, count);
      }
      sum_strip(result.at(0, d), row_count, (count + 1) / 2, ahead);
    }
  }

 private:
  // Percent of the next chunk's lines.
  static constexpr std::int64_t kAskedByDot = 55;

  static constexpr std::int64_t kOwn =
      kChunk * kStrip + kChunk * kRows + kRows + kChunk * kStripWords + kChunkPairs * kRows + kRows + kChunk;

  std::int64_t steps(const CodeQuery<W>& query, std::int64_t width) const {
    std::int64_t steps = 0;
    for (const Panel& panel : query) {
      const std::int64_t strips = (width + kStrip - 1) / kStrip;
      steps += panel.vectors == 0 ? kChunk : kChunk / tokens_of(panel) * strips * (kStripWords / kStepColumns);
    }
    return steps;
  }

  static int tokens_of(const Panel& panel) { return panel.vectors == 2 ? Tile<W>::pair_tokens : Tile<W>::single_tokens; }

  // The words of columns 64 * strip ... + 63 and their scales, those beyond `count` 0.
  template <CodeFormat Format>
  void write_words(std::int64_t strip, const char* const* rows, std::int64_t count) const {
    const std::int64_t first = strip * kStrip, group = first / codes_.group;
    char copied[kCodeUnit];
    for (std::int64_t t = 0; t < count; ++t) {
      const CodeUnit unit = reader_.find(rows[t], first, copied);
      scales_[t] = reader_.template scale<Format>(rows[t], group, unit);
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; i += 2 * W) {
        const I16 words = WordReader<W>::template words<Format>(unit, i);
        __builtin_memcpy(words_ + t * kStripWords + i / 2, &words, sizeof words);
      }
    }
    for (std::int64_t t = count; t < kChunk; ++t) scales_[t] = 0.0f;
  }

  void dot_codes(const CodeQuery<W>& query, std::int64_t strip, std::int64_t count, Ahead& ahead) const {
    for (const Panel& panel : query) {
      const std::uint32_t* q = query.words(panel, strip);
      const float* units = query.units(strip) + panel.first_row;
      if (panel.vectors == 2) dot_panel<Tile<W>::pair_tokens, 2>(panel, q, units, count, ahead);
      if (panel.vectors == 1) dot_panel<Tile<W>::single_tokens, 1>(panel, q, units, count, ahead);
    }
  }

  template <int Tokens, int Vectors>
  void dot_panel(const Panel& panel, const std::uint32_t* q, const float* units, std::int64_t count,
                 Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; t += Tokens) {
      float* scores = scores_ + t * kRows + panel.first_row;
      dot_words<W, Tokens, Vectors>(q, words_ + t * kStripWords, units, scales_ + t, scores, ahead);
    }
  }

  // The key's columns from ... to, of the RoPE part.
  void dot_rope(const CodeQuery<W>& query, std::int64_t from, std::int64_t to, const char* const* rows,
                std::int64_t count, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; ++t) convert<W>(rope(rows[t]) + from - codes_.width, strip_ + t * kStrip, to - from);
    for (const Panel& panel : query) {
      for (int i = 0; panel.vectors > 0 && i < panel.range_count; ++i) {
        const Range own = panel.ranges[i];
        const Range range{(own.from > from ? own.from : from) - from, (own.to < to ? own.to : to) - from};
        if (range.from >= range.to) continue;
        const float* q = panel.q + from * panel.vectors * W;
        if (panel.vectors == 2) dot_wide_panel<Tile<W>::pair_tokens, 2>(panel, q, range, count, ahead);
        if (panel.vectors == 1) dot_wide_panel<Tile<W>::single_tokens, 1>(panel, q, range, count, ahead);
      }
    }
  }

  template <int Tokens, int Vectors>
  void dot_wide_panel(const Panel& panel, const float* q, Range range, std::int64_t count, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; t += Tokens) {
      dot_wide<W, Tokens, Vectors>(q, strip_ + t * kStrip, range, scores_ + t * kRows + panel.first_row, ahead);
    }
  }

  const bf16* rope(const char* row) const { return reinterpret_cast<const bf16*>(row + codes_.rope_offset); }

  // Weights times scales, as words in a unit for each row.
  void cut_weights(std::int64_t row_count, std::int64_t count) const {
    for (std::int64_t row = 0; row < row_count; row += W) {
      const float* weights = scores_ + row;
      const auto of = [&](std::int64_t t) { return S::load(weights + t * kRows) * S::broadcast(scales_[t]); };
      const WordUnit<W> unit(most_word(codes_), count, of);
      S::store(units_ + row, unit.unit());
      for (std::int64_t t = 0; t < count; t += 2) {
        const U both = unit.words(of(t), t + 1 < count ? of(t + 1) : S::zero());
        __builtin_memcpy(weights_ + t / 2 * kRows + row, &both, sizeof both);
      }
    }
  }

  // The words of columns `first` ... + 63, of two tokens side by side, and their scales, those beyond `count` 0.
  template <CodeFormat Format>
  void pair_values(const char* const* rows, std::int64_t count, std::int64_t first) const {
    const std::int64_t group = first / codes_.group;
    char copied[2][kCodeUnit];
    std::uint32_t* to = words_;
    for (std::int64_t t = 0; t < count; t += 2, to += kStrip) {
      const char* odd_row = rows[t + 1 < count ? t + 1 : t];
      const CodeUnit even = reader_.find(rows[t], first, copied[0]), odd = reader_.find(odd_row, first, copied[1]);
      scales_[t] = reader_.template scale<Format>(rows[t], group, even);
      scales_[t + 1] = reader_.template scale<Format>(odd_row, group, odd);
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; i += 2 * W) {
        pair_up<W>(WordReader<W>::template words<Format>(even, i), WordReader<W>::template words<Format>(odd, i), to + i,
                   typename Counting<2 * W>::type{});
      }
    }
    for (std::int64_t t = count; t < kChunk; ++t) scales_[t] = 0.0f;
  }

  void sum_strip(float* out, std::int64_t row_count, std::int64_t pairs, Ahead& ahead) const {
    std::int64_t row = 0;
    for (; row + Tile<W>::sum_rows <= row_count; row += Tile<W>::sum_rows) {
      sum_rows<Tile<W>::sum_rows>(row, out, pairs, ahead);
    }
    switch (row_count - row) {
      case 5: return sum_rows<5>(row, out, pairs, ahead);
      case 4: return sum_rows<4>(row, out, pairs, ahead);
      case 3: return sum_rows<3>(row, out, pairs, ahead);
      case 2: return sum_rows<2>(row, out, pairs, ahead);
      case 1: return sum_rows<1>(row, out, pairs, ahead);
      default: return;
    }
  }

  template <int Rows>
  void sum_rows(std::int64_t row, float* out, std::int64_t pairs, Ahead& ahead) const {
    constexpr int most = kStrip / W;
    constexpr int wanted = Rows == 1 ? 8 : Rows == 2 ? 4 : Tile<W>::sum_vectors;
    constexpr int vectors = wanted < most ? wanted : most;
    out += row * kStrip;
    for (std::int64_t d = 0; d < kStrip; d += vectors * W) {
      sum_words<W, Rows, vectors>(weights_ + row, words_ + d, pairs, units_ + row, shrink_ + row, out + d, ahead);
    }
  }

  const RowCodes& codes_;
  const WordReader<W> reader_;
  float *strip_, *scores_, *shrink_;
  std::uint32_t *words_, *weights_;
  float *units_, *scales_;
  FewRows<W> few_;
  bool goes_narrow_ = false;
};

}  // namespace latentkv::LATENTKV_ISA
