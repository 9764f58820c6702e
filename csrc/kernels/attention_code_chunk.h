// One chunk of context whose latents are codes, on products of int16: what Chunk computes. The scales are applied apart: to
// the scores of 64 columns, and to the weights before they become words. Only the RoPE part is float32.
#pragma once

#include <omp.h>

#include "kernels/attention_code_tiles.h"
#include "kernels/attention_partial.h"

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

  static std::int64_t floats(const AttentionParams&) {
    return kChunk * kStrip + kChunk * kRows + kRows + kChunk * kStripWords + kChunkPairs * kRows + kRows + kChunk;
  }

  CodeChunk(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        reader_(p.codes),
        strip_(memory),
        scores_(strip_ + kChunk * kStrip),
        shrink_(scores_ + kChunk * kRows),
        words_(reinterpret_cast<std::uint32_t*>(shrink_ + kRows)),
        weights_(words_ + kChunk * kStripWords),
        units_(reinterpret_cast<float*>(weights_ + kChunkPairs * kRows)),
        scales_(units_ + kRows) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const CodeQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t width,
           Ahead& ahead) const {
    ahead.spread(kAskedByDot, steps(query, width));
    const bool is_wide = query.begin()->vectors > 0;
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
    for (const Panel& panel : query) {
      if (panel.vectors > 0) continue;
      reader_.with_format([&]<CodeFormat Format>() { dot_narrow_panel<Format>(query, panel, width, rows, count, ahead); });
    }
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const* rows, std::int64_t count, std::int64_t,
           std::int64_t width, Ahead& ahead) const {
    const std::int64_t blocks = (row_count + Tile<W>::sum_rows - 1) / Tile<W>::sum_rows;
    ahead.spread(100 - kAskedByDot, blocks * result.strips * (kChunkPairs / kStepTerms));
    if (row_count <= kFew) gather_weights(row_count, count);
    for (std::int64_t d = 0; d < width; d += kStrip) {
      reader_.with_format([&]<CodeFormat Format>() { pair_values<Format>(rows, count, d); });
      if (d % codes_.group == 0 || codes_.format == CodeFormat::fp8) {
        row_count <= kFew ? cut_few_weights(row_count, count) : cut_weights(row_count, count);
      }
      sum_strip(result.at(0, d), row_count, (count + 1) / 2, ahead);
    }
  }

 private:
  // Percent of the next chunk's lines.
  static constexpr std::int64_t kAskedByDot = 55;

  // Rows whose weights become words with tokens in the lanes.
  static constexpr std::int64_t kFew = 2;

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

  template <CodeFormat Format>
  void dot_narrow_panel(const CodeQuery<W>& query, const Panel& panel, std::int64_t width, const char* const* rows,
                        std::int64_t count, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; ++t) {
      float* scores = scores_ + t * kRows + panel.first_row;
      if (panel.rows == 4) dot_narrow<Format, 4>(query, panel, width, rows[t], scores);
      if (panel.rows == 2) dot_narrow<Format, 2>(query, panel, width, rows[t], scores);
      if (panel.rows == 1) dot_narrow<Format, 1>(query, panel, width, rows[t], scores);
      ahead.step();
    }
  }

  // Few rows: columns in the lanes, straight from the cache.
  template <CodeFormat Format, int Rows>
  void dot_narrow(const CodeQuery<W>& query, const Panel& panel, std::int64_t width, const char* row,
                  float* scores) const {
    F sum[Rows] = {};
    char copied[kCodeUnit];
    std::int64_t group = 0, group_end = codes_.group;
    for (std::int64_t strip = 0; strip < query.code_strips(); ++strip) {
      if (strip * kStrip == group_end) {
        ++group;
        group_end += codes_.group;
      }
      const CodeUnit unit = reader_.find(row, strip * kStrip, copied);
      const std::uint32_t* q = query.words(panel, strip);
      typename Dot<W>::I whole[Rows] = {};
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; i += 2 * W) {
        const I16 words = WordReader<W>::template words<Format>(unit, i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          whole[r] = Dot<W>::add_pairs(whole[r], (U)words, load_words<W>(q + r * query.row_words() + i / 2));
        }
      }
      const float scale = reader_.template scale<Format>(row, group, unit);
      const float* units = query.units(strip) + panel.first_row;
      for (int r = 0; r < Rows; ++r) sum[r] = S::fma(number_of<W>(whole[r]), S::broadcast(units[r] * scale), sum[r]);
    }
    const bf16* key = rope(row);
    for (std::int64_t d = codes_.width; d < width; d += W) {
      const F value = S::load(key + d - codes_.width);
      for (int r = 0; r < Rows; ++r) sum[r] = S::fma(value, S::load(panel.q + r * query.stride() + d), sum[r]);
    }
    for (int r = 0; r < Rows; ++r) scores[r] = S::sum(sum[r]);
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

  // Of few rows: [row][kChunk], so that tokens are in the lanes.
  void gather_weights(std::int64_t row_count, std::int64_t count) const {
    for (std::int64_t row = 0; row < row_count; ++row) {
      for (std::int64_t t = 0; t < kChunk; ++t) strip_[row * kChunk + t] = t < count ? scores_[t * kRows + row] : 0.0f;
    }
  }

  void cut_few_weights(std::int64_t row_count, std::int64_t count) const {
    for (std::int64_t row = 0; row < row_count; ++row) {
      const float* weights = strip_ + row * kChunk;
      const auto of = [&](std::int64_t i) { return S::load(weights + i * W) * S::load(scales_ + i * W); };
      WordUnit<W> unit(most_word(codes_), kChunk / W, of);
      unit.unite(most_word(codes_));
      units_[row] = unit.unit()[0];
      std::uint32_t words[kChunk];
      for (std::int64_t i = 0; i < kChunk / W; ++i) {
        const U word = unit.words(of(i), S::zero());
        __builtin_memcpy(words + i * W, &word, sizeof word);
      }
      for (std::int64_t t = 0; t < count; t += 2) weights_[t / 2 * kRows + row] = words[t] | words[t + 1] << 16;
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
};

}  // namespace latentkv::LATENTKV_ISA
