// One chunk of context whose latents are codes that bf16 holds exactly, on matrix tiles of bf16: what TileChunk computes. For fp8, and
// for int6 and int4 where nothing may be rounded.
//
//   scores: codes (16 tokens x 32 columns) x queries (32 columns x 16 rows), group by group, times the group's scales
//   sums:   weights times scales (16 rows x 32 tokens) x codes (32 tokens x 16 columns, pairs of tokens side by side)
//
// All codes of a chunk become bf16 once, in scratch. Float32 numbers are cut into three terms, which is all of them, or
// into two where they may be rounded.
#pragma once

#include "kernels/attention_tile_numbers.h"
#include "kernels/attention_tile_scales.h"
#include "kernels/attention_tile_sums.h"

namespace latentkv::LATENTKV_ISA {

class TileCodeChunk : private TileSums {
 public:
  using TileSums::kTokens;

  static bool suits(const AttentionParams& p) {
    return p.row_dtype == DType::u8 && p.codes.format != CodeFormat::int8 && p.codes.width % kCodeUnit == 0 &&
           p.value_width == p.codes.width && (p.key_width - p.codes.width) % kTileDepth == 0;
  }

  static std::int64_t floats(const AttentionParams& p) {
    return kFixed + Scales::floats(p.codes) + (groups_of(p.codes) + 1) * kSums + kTokens * p.key_width / 2;
  }

  TileCodeChunk(const AttentionParams& p, float* memory)
      : TileSums(words(memory), words(memory) + kWeightWords),
        codes_(p.codes),
        scale_(p.scale_log2),
        rounds_(p.integer),
        row_bytes_(p.key_width * 2),
        reader_(p.codes),
        scores_(memory),
        shrink_(scores_ + kTokens * kRows),
        turned_(memory + kFixed - kRows * kTokens),
        sums_(memory + kFixed + Scales::floats(p.codes)),
        staged_(reinterpret_cast<char*>(sums_ + (groups_of(p.codes) + 1) * kSums)),
        scales_(p.codes, memory + kFixed) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const TileQuery& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t width,
           Ahead& ahead) {
    reader_.with_format([&]<CodeFormat Format>() { stage<Format>(rows, count, width); });
    scales_.take(rows, count);
    ahead.spread(kAskedByDot, query.row_tiles() * (width / kTileDepth) * query.terms());
    std::int64_t tile = 0;
    for (; tile + 2 <= query.row_tiles(); tile += 2) dot_tiles<2>(query, tile, count, width, ahead);
    if (tile < query.row_tiles()) dot_tiles<1>(query, tile, count, width, ahead);
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const*, std::int64_t count, std::int64_t,
           std::int64_t, Ahead& ahead) {
    shrink_rows<W>(result, row_count, shrink_);
    const std::int64_t row_tiles = (row_count + kTileRows - 1) / kTileRows;
    for (std::int64_t tile = 0; tile < row_tiles; ++tile) turn_weights(tile, count);
    if (rounds_) return sum_strips<kRoundedTerms>(result, row_tiles, count, ahead);
    sum_strips<kMostTerms>(result, row_tiles, count, ahead);
  }

 private:
  static constexpr int kRoundedTerms = TileQuery::kRoundedTerms;
  static constexpr std::int64_t kFixed = kTokens * kRows + kRows + kWeightWords + kValueWords + kRows * kTokens;

  static constexpr std::int64_t kSums = 4 * kTileWords;  // of one group

  // Percent of the next chunk's lines; the sums ask for the others.
  static constexpr std::int64_t kAskedByDot = 50;

  static std::uint32_t* words(float* memory) {
    return reinterpret_cast<std::uint32_t*>(memory + kTokens * kRows + kRows);
  }
  using Scales = TileScales<kTokens>;

  std::int64_t end_of(std::int64_t group) const {
    const std::int64_t end = (group + 1) * codes_.group;
    return end < codes_.width ? end : codes_.width;
  }

  // Beyond the context, to the end of a step, the last token is repeated.
  template <CodeFormat Format>
  void stage(const char* const* rows, std::int64_t count, std::int64_t width) const {
    char unused[kCodeUnit];
    for (std::int64_t t = 0; t < round_up(count, kTileDepth); ++t) {
      const char* row = rows[t < count ? t : count - 1];
      char* to = staged_ + t * row_bytes_;
      for (std::int64_t d = 0; d < codes_.width; d += kCodeUnit) write_numbers<Format>(reader_.find<Format>(row, d, unused), to + 2 * d);
      __builtin_memcpy(to + 2 * codes_.width, row + codes_.rope_offset, 2 * (width - codes_.width));
    }
  }

  // The scores of `Rows` row tiles, four tiles of sums at once.
  template <int Rows>
  void dot_tiles(const TileQuery& query, std::int64_t row_tile, std::int64_t count, std::int64_t width, Ahead& ahead) {
    constexpr std::int64_t tokens = kTokens / Rows;
    for (std::int64_t first = 0; first < count; first += tokens) {
      for (std::int64_t group = 0; group < groups_of(codes_); ++group) {
        dot_columns<Rows>(query, row_tile, first, group * codes_.group, end_of(group), sums_ + group * kSums, ahead);
      }
      dot_columns<Rows>(query, row_tile, first, codes_.width, width, sums_ + groups_of(codes_) * kSums, ahead);
      for (std::int64_t row = 0; row < Rows; ++row) {
        scale_sums(sums_ + row * tokens * W, row_tile + row, first, first + tokens < count ? first + tokens : count);
      }
    }
  }

  // sums [row tile][token][row] = the products of columns from ... to - 1 of 4 / Rows token tiles.
  template <int Rows>
  void dot_columns(const TileQuery& query, std::int64_t row_tile, std::int64_t token, std::int64_t from, std::int64_t to,
                   float* sums, Ahead& ahead) {
    constexpr int tokens = 4 / Rows;
    each<4>([&]<int I>() { tiles_.zero<I>(); });
    const char *keys = staged_ + token * row_bytes_ + 2 * from, *end = keys + 2 * (to - from);
    const std::uint32_t *q = query.tile(row_tile, from / kTileDepth), *q2 = query.tile(row_tile + Rows - 1, from / kTileDepth);
    for (; keys < end; keys += kTileRowBytes) {
      for (std::int64_t term = 0; term < query.terms(); ++term, q += kTileWords, q2 += kTileWords) {
        tiles_.load<6>(q, kTileRowBytes);
        if constexpr (Rows == 2) tiles_.load<7>(q2, kTileRowBytes);
        each<tokens>([&]<int I>() {
          tiles_.load<4 + I % 2>(keys + I * kTileRows * row_bytes_, row_bytes_);
          tiles_.dot<I, 4 + I % 2, 6>();
          if constexpr (Rows == 2) tiles_.dot<I + tokens, 4 + I % 2, 7>();
        });
        for (int row = 0; row < Rows; ++row) ahead.step();
      }
    }
    each<4>([&]<int I>() { tiles_.store<I>(sums + I * kTileWords, kTileRowBytes); });
  }

  // The sums of all groups and of the RoPE part together: scores of tokens first ... end - 1.
  void scale_sums(const float* sums, std::int64_t row_tile, std::int64_t first, std::int64_t end) const {
    const auto factor = S::broadcast(scale_);
    for (std::int64_t t = first; t < end; ++t, sums += W) {
      auto score = S::load(sums + groups_of(codes_) * kSums);
      for (std::int64_t group = 0; group < groups_of(codes_); ++group) {
        score = S::fma(S::load(sums + group * kSums), S::broadcast(scales_.of(group)[t]), score);
      }
      S::store(scores_ + t * kRows + row_tile * kTileRows, score * factor);
    }
  }

  // turned_ [row][kTokens], 0 beyond `count`.
  void turn_weights(std::int64_t row_tile, std::int64_t count) const {
    for (std::int64_t first = 0; first < kTokens; first += W) {
      S::F rows[W];
      for (int i = 0; i < W; ++i) {
        rows[i] = first + i < count ? S::load(scores_ + (first + i) * kRows + row_tile * kTileRows) : S::zero();
      }
      transpose<W>(rows);
      for (int i = 0; i < W; ++i) S::store(turned_ + (row_tile * kTileRows + i) * kTokens + first, rows[i]);
    }
  }

  template <int Terms>
  void sum_strips(const Partial& result, std::int64_t row_tiles, std::int64_t count, Ahead& ahead) {
    const std::int64_t steps = (count + kTileDepth - 1) / kTileDepth;
    ahead.spread(100 - kAskedByDot, codes_.width / kStrip * row_tiles * steps * Terms);
    for (std::int64_t d = 0; d < codes_.width; d += kStrip) {
      if (d % codes_.group == 0) {
        for (std::int64_t tile = 0; tile < row_tiles; ++tile) cut_weights<Terms>(tile, d / codes_.group, steps);
      }
      pair_values(d, steps);
      sum_strip<Terms>(result.at(0, d), row_tiles, kStrip / W, steps, ahead);
    }
  }

  // Weights of 16 rows times the scales of a group; tokens i and i + 16 of a step side by side.
  template <int Terms>
  void cut_weights(std::int64_t row_tile, std::int64_t group, std::int64_t steps) const {
    for (std::int64_t step = 0; step < steps; ++step) {
      const float* scales = scales_.of(group) + step * kTileDepth;
      const auto low_scales = S::load(scales), high_scales = S::load(scales + W);
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const float* weight = turned_ + (row_tile * kTileRows + i) * kTokens + step * kTileDepth;
        auto low = S::load(weight) * low_scales, high = S::load(weight + W) * high_scales;
        std::uint32_t* to = weights<Terms>(row_tile, step) + i * W;
#pragma GCC unroll 3
        for (int term = 0; term < Terms; ++term, to += kTileWords) {
          const bool rounds = Terms == kRoundedTerms && term + 1 == Terms;
          const auto first = rounds ? rounded_term<W>(low) : (S::U)low & 0xffff0000u;
          const auto second = rounds ? rounded_term<W>(high) : (S::U)high & 0xffff0000u;
          const auto both = (first >> 16) | second;
          low -= (S::F)first;  // of an infinity leaves NaN, as its product with a weight of 0 is
          high -= (S::F)second;
          __builtin_memcpy(to, &both, sizeof both);
        }
      }
    }
  }

  // Tokens i and i + 16 of a step side by side, column by column.
  void pair_values(std::int64_t first, std::int64_t steps) const {
    for (std::int64_t step = 0; step < steps; ++step) {
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const char* even = staged_ + (step * kTileDepth + i) * row_bytes_ + 2 * first;
        const char* odd = even + kTileRows * row_bytes_;
        std::uint32_t* to = values(step, 0) + i * W;
        pair_numbers(even, odd, to, to + kTileWords);
        pair_numbers(even + kTileRowBytes, odd + kTileRowBytes, to + 2 * kTileWords, to + 3 * kTileWords);
      }
    }
  }

  const RowCodes& codes_;
  const float scale_;
  const bool rounds_;
  const std::int64_t row_bytes_;  // of staged rows
  const WordReader<W> reader_;
  float *scores_, *shrink_, *turned_, *sums_;
  char* staged_;
  const Scales scales_;
};

}  // namespace latentkv::LATENTKV_ISA
