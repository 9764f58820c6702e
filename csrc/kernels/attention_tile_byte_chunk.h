// One chunk of context whose latents are codes of int8, on matrix tiles of int8: what TileChunk computes.
//
//   scores: codes (16 tokens x 64 columns, int8 straight from the cache) x queries (64 columns x 16 rows)
//   sums:   weights (16 rows x 64 tokens) x codes (64 tokens x 16 columns, four tokens side by side)
//
// Queries, and weights times scales, come as words of 16 bits cut into two bytes; products and sums are exact. The scales of
// keys are applied to the sums of a group of columns. The RoPE part is bf16 as it is.
#pragma once

#include "kernels/attention_partial.h"
#include "kernels/attention_tile_byte_query.h"

namespace latentkv::LATENTKV_ISA {

class TileByteChunk {
  static constexpr int W = 16;
  using S = Simd<W>;
  using F = S::F;
  using Query = TileByteQuery;

 public:
  static constexpr std::int64_t kTokens = kMostTokens;

  // Sums of a group's products must fit 32 bits.
  static constexpr std::int64_t kMostGroup = 256;

  static bool suits(const AttentionParams& p) {
    return p.integer && p.row_dtype == DType::u8 && p.codes.format == CodeFormat::int8 && p.codes.group <= kMostGroup &&
           p.codes.width % kByteDepth == 0 && p.value_width == p.codes.width &&
           (p.key_width - p.codes.width) % kTileDepth == 0;
  }

  static std::int64_t floats(const AttentionParams& p) {
    return kTokens * kRows + kRows + kWeightWords + kValueWords + kSumWords + kRows + Query::groups(p) * kTokens +
           kTokens * (p.key_width - p.codes.width) / 2 + kTokens * p.codes.width / 4;
  }

  TileByteChunk(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        scale_(p.scale_log2),
        rope_width_(p.key_width - p.codes.width),
        row_bytes_(p.row_stride),
        reader_(p.codes),
        scores_(memory),
        shrink_(scores_ + kTokens * kRows),
        weights_(reinterpret_cast<std::uint32_t*>(shrink_ + kRows)),
        values_(weights_ + kWeightWords),
        sums_(values_ + kValueWords),
        units_(reinterpret_cast<float*>(sums_ + kSumWords)),
        scales_(units_ + kRows),
        staged_rope_(reinterpret_cast<char*>(scales_ + Query::groups(p) * kTokens)),
        staged_codes_(staged_rope_ + kTokens * rope_width_ * 2) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const Query& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t, Ahead& ahead) {
    find_keys(rows, count);
    find_scales(rows, count);
    const std::int64_t pairs = (count + 2 * kTileRows - 1) / (2 * kTileRows);
    ahead.spread(kAskedByDot, query.row_tiles() * pairs * groups());
    for (std::int64_t tile = 0; tile < query.row_tiles(); ++tile) {
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        dot_rope(query, tile, 2 * pair);
        for (std::int64_t group = 0; group < groups(); ++group, ahead.step()) dot_group(query, tile, 2 * pair, group);
      }
    }
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const*, std::int64_t count, std::int64_t,
           std::int64_t, Ahead& ahead) {
    shrink_rows<W>(result, row_count, shrink_);
    const std::int64_t row_tiles = (row_count + kTileRows - 1) / kTileRows;
    const std::int64_t steps = (count + kByteDepth - 1) / kByteDepth;
    // No weights beyond the context, whatever lay there.
    for (std::int64_t t = count; t < steps * kByteDepth; ++t) __builtin_memset(scores_ + t * kRows, 0, kRows * sizeof(float));
    ahead.spread(100 - kAskedByDot, codes_.width / kStrip * row_tiles);
    for (std::int64_t d = 0; d < codes_.width; d += kStrip) {
      if (d % codes_.group == 0) {
        for (std::int64_t tile = 0; tile < row_tiles; ++tile) cut_weights(tile, d / codes_.group, steps);
      }
      quad_values(d, steps);
      for (std::int64_t tile = 0; tile < row_tiles; ++tile, ahead.step()) {
        sum_columns<0>(result.at(tile * kTileRows, d), tile, steps);
        sum_columns<2>(result.at(tile * kTileRows, d), tile, steps);
      }
    }
  }

  // While sums grow, blocks of four columns lie in the order in which quads() leaves them: 4 * i + j of a strip as 4 * j + i.
  // Twice gives the first order again.
  void settle(const Partial& result, std::int64_t row_count) const {
    for (std::int64_t d = 0; d < codes_.width; d += kStrip) {
      for (std::int64_t row = 0; row < row_count; ++row) {
        float* strip = result.at(row, d);
        float turned[kStrip];
        for (int column = 0; column < kStrip; column += 4) {
          __builtin_memcpy(turned + column / 4 % 4 * 16 + column / 16 * 4, strip + column, 4 * sizeof(float));
        }
        __builtin_memcpy(strip, turned, sizeof turned);
      }
    }
  }

 private:
  static constexpr std::int64_t kMostSteps = kTokens / kByteDepth;
  static constexpr std::int64_t kTerms = Query::kTerms;
  static constexpr std::int64_t kWeightWords = Query::kMostRowTiles * kMostSteps * kTerms * kTileWords;
  static constexpr std::int64_t kValueWords = kMostSteps * (kStrip / W) * kTileWords;
  static constexpr std::int64_t kSumWords = 4 * kTileWords;
  static constexpr std::int64_t kTokenTiles = kTokens / kTileRows;

  // Percent of the next chunk's lines asked for in each part.
  static constexpr std::int64_t kAskedByDot = 50;

  struct Keys {
    const char *codes, *rope;
    std::int64_t codes_stride, rope_stride;
  };

  std::int64_t groups() const { return (codes_.width + codes_.group - 1) / codes_.group; }

  // 16 tokens at a time where they lie; copied where pages or the context end between them. Beyond the context
  // the last token is repeated.
  void find_keys(const char* const* rows, std::int64_t count) {
    for (std::int64_t tile = 0; tile < kTokenTiles && tile * kTileRows < round_up(count, kByteDepth); ++tile) {
      const char* tokens[kTileRows];
      bool adjacent = true;
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const std::int64_t token = tile * kTileRows + i;
        tokens[i] = rows[token < count ? token : count - 1];
        adjacent &= i == 0 || tokens[i] - tokens[i - 1] == row_bytes_;
      }
      if (adjacent) {
        keys_[tile] = {tokens[0], tokens[0] + codes_.rope_offset, row_bytes_, row_bytes_};
        continue;
      }
      char* codes = staged_codes_ + tile * kTileRows * codes_.width;
      char* rope = staged_rope_ + tile * kTileRows * rope_width_ * 2;
      keys_[tile] = {codes, rope, codes_.width, rope_width_ * 2};
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        __builtin_memcpy(rope + i * rope_width_ * 2, tokens[i] + codes_.rope_offset, rope_width_ * 2);
        __builtin_memcpy(codes + i * codes_.width, tokens[i], codes_.width);
      }
    }
  }

  // [groups][kTokens], 0 beyond `count`.
  void find_scales(const char* const* rows, std::int64_t count) const {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t group = 0; group < groups(); ++group) {
        scales_[group * kTokens + t] = t < count ? reader_.stored_scale(rows[t], group) : 0.0f;
      }
    }
  }

  // The RoPE part's share of the scores of 32 tokens.
  void dot_rope(const Query& query, std::int64_t row_tile, std::int64_t token_tile) {
    tiles_.zero<0>();
    tiles_.zero<1>();
    const Keys &a = keys_[token_tile], &b = keys_[token_tile + 1];
    for (std::int64_t step = 0; step < rope_width_ / kTileDepth; ++step) {
      const std::uint32_t* q = query.rope(row_tile, step);
      tiles_.load<4>(a.rope + step * kTileRowBytes, a.rope_stride);
      tiles_.load<5>(b.rope + step * kTileRowBytes, b.rope_stride);
      for (std::int64_t term = 0; term < query.rope_terms(); ++term, q += kTileWords) {
        tiles_.load<6>(q, kTileRowBytes);
        tiles_.dot<0, 4, 6>();
        tiles_.dot<1, 5, 6>();
      }
    }
    float* to = scores_ + token_tile * kTileRows * kRows + row_tile * kTileRows;
    tiles_.store<0>(to, kRows * sizeof(float));
    tiles_.store<1>(to + kTileRows * kRows, kRows * sizeof(float));
  }

  void dot_group(const Query& query, std::int64_t row_tile, std::int64_t token_tile, std::int64_t group) {
    const std::int64_t end = (group + 1) * codes_.group < codes_.width ? (group + 1) * codes_.group : codes_.width;
    const Keys &a = keys_[token_tile], &b = keys_[token_tile + 1];
    tiles_.zero<0>();
    tiles_.zero<1>();
    tiles_.zero<2>();
    tiles_.zero<3>();
    for (std::int64_t d = group * codes_.group; d < end; d += kByteDepth) {
      const std::uint32_t* q = query.codes(row_tile, d / kByteDepth);
      tiles_.load<6>(q, kTileRowBytes);
      tiles_.load<4>(a.codes + d, a.codes_stride);
      tiles_.dot_bytes<0, 4, 6>();
      tiles_.load<5>(b.codes + d, b.codes_stride);
      tiles_.dot_bytes<1, 5, 6>();
      tiles_.load<7>(q + kTileWords, kTileRowBytes);
      tiles_.dot_bytes<2, 4, 7>();
      tiles_.dot_bytes<3, 5, 7>();
    }
    tiles_.store<0>(sums_, kTileRowBytes);
    tiles_.store<1>(sums_ + kTileWords, kTileRowBytes);
    tiles_.store<2>(sums_ + 2 * kTileWords, kTileRowBytes);
    tiles_.store<3>(sums_ + 3 * kTileWords, kTileRowBytes);
    const float* scales = scales_ + group * kTokens + token_tile * kTileRows;
    float* scores = scores_ + token_tile * kTileRows * kRows + row_tile * kTileRows;
    const F unit = S::load(query.units(row_tile, group)) * S::broadcast(scale_);
    const F before = S::broadcast(group == 0 ? scale_ : 1.0f);
    for (std::int64_t t = 0; t < 2 * kTileRows; ++t) {
      const F sum = join_terms(sums_ + t * W, sums_ + 2 * kTileWords + t * W);
      float* to = scores + t * kRows;
      S::store(to, S::fma(sum, unit * S::broadcast(scales[t]), S::load(to) * before));
    }
  }

  // Weights of 16 rows times the scales of a group: bytes of tokens side by side, as cut() orders them.
  void cut_weights(std::int64_t row_tile, std::int64_t group, std::int64_t steps) const {
    const float *weights = scores_ + row_tile * kTileRows, *scales = scales_ + group * kTokens;
    const auto of = [&](std::int64_t t) { return S::load(weights + t * kRows) * S::broadcast(scales[t]); };
    const WordUnit<W> unit(kMostCut, steps * kByteDepth, of);
    S::store(units_ + row_tile * kTileRows, unit.unit());
    for (std::int64_t step = 0; step < steps; ++step) {
      F low[W], high[W];
      for (int i = 0; i < W; ++i) {
        const std::int64_t t = step * kByteDepth + 4 * i;
        Words16 lower, upper;
        cut(unit.words(of(t), of(t + 1)), unit.words(of(t + 2), of(t + 3)), lower, upper);
        low[i] = (F)lower;
        high[i] = (F)upper;
      }
      transpose<W>(high);
      transpose<W>(low);
      std::uint32_t* to = weights_ + (row_tile * kMostSteps + step) * kTerms * kTileWords;
      for (int i = 0; i < W; ++i) {
        __builtin_memcpy(to + i * W, &high[i], sizeof high[i]);
        __builtin_memcpy(to + kTileWords + i * W, &low[i], sizeof low[i]);
      }
    }
  }

  void quad_values(std::int64_t first, std::int64_t steps) const {
    for (std::int64_t t = 0; t < steps * kByteDepth; t += 4) {
      const Keys& keys = keys_[t / kTileRows];
      const char* codes = keys.codes + t % kTileRows * keys.codes_stride + first;
      const std::int64_t stride = keys.codes_stride;
      Words16 four[4];
      // In the order of cut().
      quads({load_bytes(codes), load_bytes(codes + 2 * stride), load_bytes(codes + stride), load_bytes(codes + 3 * stride)},
            four);
      std::uint32_t* to = values_ + t / kByteDepth * (kStrip / W) * kTileWords + t % kByteDepth / 4 * W;
      for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * kTileWords, &four[i], sizeof four[i]);
    }
  }

  // Tiles `Column` and Column + 1 of a strip, for 16 rows.
  template <int Column>
  void sum_columns(float* out, std::int64_t row_tile, std::int64_t steps) {
    tiles_.zero<0>();
    tiles_.zero<1>();
    tiles_.zero<2>();
    tiles_.zero<3>();
    const std::uint32_t* weights = weights_ + row_tile * kMostSteps * kTerms * kTileWords;
    const std::uint32_t* values = values_ + Column * kTileWords;
    for (std::int64_t step = 0; step < steps; ++step) {
      tiles_.load<4>(weights, kTileRowBytes);
      tiles_.load<6>(values, kTileRowBytes);
      tiles_.dot_bytes<0, 4, 6>();
      tiles_.load<7>(values + kTileWords, kTileRowBytes);
      tiles_.dot_bytes<1, 4, 7>();
      tiles_.load<5>(weights + kTileWords, kTileRowBytes);
      tiles_.dot_bytes<2, 5, 6>();
      tiles_.dot_bytes<3, 5, 7>();
      weights += kTerms * kTileWords;
      values += kStrip / W * kTileWords;
    }
    tiles_.store<0>(sums_, kTileRowBytes);
    tiles_.store<1>(sums_ + kTileWords, kTileRowBytes);
    tiles_.store<2>(sums_ + 2 * kTileWords, kTileRowBytes);
    tiles_.store<3>(sums_ + 3 * kTileWords, kTileRowBytes);
    const float* units = units_ + row_tile * kTileRows;
    for (int tile = 0; tile < 2; ++tile) {
      for (std::int64_t row = 0; row < kTileRows; ++row) {
        const std::uint32_t* sum = sums_ + tile * kTileWords + row * W;
        float* to = out + row * kStrip + (Column + tile) * W;
        S::store(to, S::fma(join_terms(sum, sum + 2 * kTileWords), S::broadcast(units[row]), S::load(to)));
      }
    }
  }

  const RowCodes& codes_;
  const float scale_;
  const std::int64_t rope_width_, row_bytes_;
  const WordReader<W> reader_;
  float *scores_, *shrink_;
  std::uint32_t *weights_, *values_, *sums_;
  float *units_, *scales_;
  char *staged_rope_, *staged_codes_;
  Keys keys_[kTokenTiles];
  Tiles tiles_;
};

}  // namespace latentkv::LATENTKV_ISA
