// One chunk of context whose latents are codes of whole numbers, on matrix tiles of int8: what TileChunk computes.
//
//   scores: codes (16 tokens x 64 columns) x queries (64 columns x 16 rows), group by group, times the group's scales
//   sums:   weights times scales (16 rows x 64 tokens) x codes (64 tokens x 16 columns, four tokens side by side)
//
// Queries, and weights times scales, come as words of 16 bits cut into two bytes; products and sums are exact. The RoPE part is
// bf16 as it is. A tile's sums become float32 while the next products run: they would wait for each other.
#pragma once

#include "kernels/attention_partial.h"
#include "kernels/attention_tile_byte_query.h"
#include "kernels/attention_tile_byte_rows.h"

namespace latentkv::LATENTKV_ISA {

class TileByteChunk {
  static constexpr int W = 16;
  using S = Simd<W>;
  using F = S::F;
  using Query = TileByteQuery;
  using Rows = TileByteRows;

 public:
  static constexpr std::int64_t kTokens = Rows::kTokens;

  // Whose query fits the registers.
  static constexpr std::int64_t kMostGroup = 2 * kByteDepth;

  static bool suits(const AttentionParams& p) {
    return p.integer && p.row_dtype == DType::u8 && Rows::suits(p.codes) && p.codes.group <= kMostGroup &&
           p.value_width == p.codes.width && (p.key_width - p.codes.width) % kTileDepth == 0;
  }

  static std::int64_t floats(const AttentionParams& p) {
    return kFixed + groups_of(p.codes) * kRows + Rows::floats(p);
  }

  TileByteChunk(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        scale_(p.scale_log2),
        scores_(memory),
        shrink_(scores_ + kTokens * kRows),
        turned_(shrink_ + kRows),
        weights_(reinterpret_cast<std::uint32_t*>(turned_ + kTokens * kRows)),
        values_(weights_ + kWeightWords),
        sums_(values_ + Rows::kValueWords),
        units_(memory + kFixed),
        rope_steps_((p.key_width - p.codes.width) / kTileDepth),
        rows_(p, units_ + groups_of(p.codes) * kRows) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const Query& query, const char* const* rows, std::int64_t count, std::int64_t, std::int64_t, Ahead& ahead) {
    rows_.take(rows, count);
    const std::int64_t token_tiles = (count + kTileRows - 1) / kTileRows;
    ahead.spread(kAskedByDot, query.row_tiles() * token_tiles * groups());
    Last<Dots> last;
    // A few at a time: then their codes stay in the first-level cache.
    for (std::int64_t first = 0; first < token_tiles; first += kTileBatch) {
      const std::int64_t end = first + kTileBatch < token_tiles ? first + kTileBatch : token_tiles;
      for (std::int64_t tile = 0; tile < query.row_tiles(); ++tile) {
        dot_rope(query, tile, first);
        for (std::int64_t group = 0; group < groups(); ++group) {
          Rows::units(codes_, group) == 1 ? dot_group<1>(query, tile, group, {first, end}, last, ahead)
                                          : dot_group<2>(query, tile, group, {first, end}, last, ahead);
        }
      }
    }
    last.end([&](const Dots& dots) { add_scores(dots); });
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const*, std::int64_t count, std::int64_t,
           std::int64_t, Ahead& ahead) {
    shrink_rows<W>(result, row_count, shrink_);
    const std::int64_t row_tiles = (row_count + kTileRows - 1) / kTileRows;
    // No weights beyond the context, whatever lay there.
    for (std::int64_t t = count; t < padded(); ++t) __builtin_memset(scores_ + t * kRows, 0, kRows * sizeof(float));
    for (std::int64_t tile = 0; tile < row_tiles; ++tile) turn_weights(tile);
    ahead.spread(100 - kAskedByDot, codes_.width / W * row_tiles);
    Last<Sums> last;
    for (std::int64_t d = 0; d < codes_.width; d += kStrip) {
      for (std::int64_t step = 0; step < rows_.steps(); ++step) {
        if (d % codes_.group == 0) {
          for (std::int64_t tile = 0; tile < row_tiles; ++tile) cut_weights(tile, step, d / codes_.group);
        }
        rows_.quad(d, step, values_ + step * Rows::kStepWords);
      }
      for (std::int64_t tile = 0; tile < row_tiles; ++tile) {
        const Sums next{result.at(tile * kTileRows, d), units_ + d / codes_.group * kRows + tile * kTileRows, nullptr};
        rows_.steps() == 1 ? sum_strip<1>(tile, next, last, ahead) : sum_strip<2>(tile, next, last, ahead);
      }
    }
    last.end([&](const Sums& sums) { add_sums(sums); });
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
  static constexpr std::int64_t kTerms = Query::kTerms;
  static constexpr std::int64_t kTileBatch = 4;  // of tokens, at once
  static constexpr std::int64_t kWeightWords = Query::kMostRowTiles * Rows::kSteps * kTerms * kTileWords;
  static constexpr std::int64_t kSumWords = kTerms * kTileWords;  // of upper bytes, then of lower ones
  static constexpr std::int64_t kLast = 2;
  static constexpr std::int64_t kFixed = 2 * kTokens * kRows + kRows + kWeightWords + Rows::kValueWords + kLast * kSumWords;

  // Percent of the next chunk's lines asked for in each part.
  static constexpr std::int64_t kAskedByDot = 50;

  // The last few tiles' sums, which have yet to be added: what was just stored would be waited for.
  template <typename Part>
  struct Last {
    Part parts[kLast];
    std::int64_t count = 0;

    bool is_full() const { return count >= kLast; }
    std::int64_t place() const { return count % kLast; }
    const Part& oldest() const { return parts[place()]; }
    void add(const Part& part) { parts[count++ % kLast] = part; }

    template <typename Use>
    void end(Use use) const {
      for (std::int64_t i = is_full() ? count - kLast : 0; i < count; ++i) use(parts[i % kLast]);
    }
  };

  // Sums of one tile that lie in memory, and where they go: to scores of 16 tokens, or to 16 columns of results.
  struct Dots {
    float* scores;
    const float *units, *scales;
    float before;  // what the scores so far are to be multiplied with
    std::uint32_t* sums;
  };
  struct Sums {
    float* out;
    const float* units;
    std::uint32_t* sums;
  };

  std::int64_t groups() const { return groups_of(codes_); }
  std::int64_t padded() const { return rows_.steps() * kByteDepth; }

  // The RoPE part's share of the scores of 64 tokens.
  void dot_rope(const Query& query, std::int64_t row_tile, std::int64_t token_tile) {
    each<kTileBatch>([&]<int I>() { tiles_.zero<I>(); });
    const std::uint32_t* q = query.rope(row_tile, 0);
    for (std::int64_t step = 0; step < rope_steps_; ++step) {
      for (std::int64_t term = 0; term < query.rope_terms(); ++term, q += kTileWords) {
        tiles_.load<6>(q, kTileRowBytes);
        each<kTileBatch>([&]<int I>() {
          const Rows::Keys& keys = rows_.rope(token_tile + I);
          tiles_.load<4 + I % 2>(keys.at(step), keys.stride);
          tiles_.dot<I, 4 + I % 2, 6>();
        });
      }
    }
    float* to = scores_ + token_tile * kTileRows * kRows + row_tile * kTileRows;
    each<kTileBatch>([&]<int I>() { tiles_.store<I>(to + I * kTileRows * kRows, kRows * sizeof(float)); });
  }

  // `Units` of 64 columns: the query's tiles are loaded once for all tokens.
  template <int Units>
  void dot_group(const Query& query, std::int64_t row_tile, std::int64_t group, Range token_tiles, Last<Dots>& last, Ahead& ahead) {
    const std::int64_t first = group * codes_.group / kByteDepth;
    const std::uint32_t* q = query.codes(row_tile, first);
    each<Units * kTerms>([&]<int I>() { tiles_.load<4 + I>(q + I * kTileWords, kTileRowBytes); });
    for (std::int64_t tile = token_tiles.from; tile < token_tiles.to; ++tile) {
      const Rows::Keys& keys = rows_.codes(tile);
      tiles_.zero<0>();
      tiles_.zero<1>();
      each<Units>([&]<int I>() {
        tiles_.load<2 + I>(keys.at(first + I), keys.stride);
        tiles_.dot_bytes<0, 2 + I, 4 + 2 * I>();
        tiles_.dot_bytes<1, 2 + I, 5 + 2 * I>();
      });
      if (last.is_full()) add_scores(last.oldest());
      ahead.step();
      // To the first group's share the RoPE part's is added.
      std::uint32_t* sums = sums_ + last.place() * kSumWords;
      last.add({scores_ + tile * kTileRows * kRows + row_tile * kTileRows, query.units(row_tile, group),
                rows_.scales(group) + tile * kTileRows, group == 0 ? scale_ : 1.0f, sums});
      store_sums(sums);
    }
  }

  [[gnu::always_inline]] void add_scores(const Dots& dots) const {
    const F unit = S::load(dots.units) * S::broadcast(scale_), before = S::broadcast(dots.before);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      float* to = dots.scores + i * kRows;
      const F sum = join_terms(dots.sums + i * W, dots.sums + kTileWords + i * W);
      S::store(to, S::fma(sum, unit * S::broadcast(dots.scales[i]), S::load(to) * before));
    }
  }

  // turned_ [row][kTokens]: weights of 16 rows in units that make the largest of them times their scales a whole word.
  void turn_weights(std::int64_t row_tile) const {
    const float *weights = scores_ + row_tile * kTileRows, *shares = rows_.largest_shares();
    const WordUnit<W> unit(kMostUnsigned, padded(),
                           [&](std::int64_t t) { return S::load(weights + t * kRows) * S::broadcast(shares[t]); });
    for (std::int64_t group = 0; group < groups(); ++group) {
      S::store(units_ + group * kRows + row_tile * kTileRows, unit.unit() * S::broadcast(rows_.largest(group)));
    }
    for (std::int64_t first = 0; first < padded(); first += W) {
      F rows[W];
      for (int i = 0; i < W; ++i) rows[i] = unit.count(S::load(weights + (first + i) * kRows));
      transpose<W>(rows);
      for (int i = 0; i < W; ++i) S::store(turned_ + (row_tile * kTileRows + i) * kTokens + first, rows[i]);
    }
  }

  // Weights of 16 rows times the scales of a group: bytes of tokens side by side, as TileByteRows::quad() has them.
  void cut_weights(std::int64_t row_tile, std::int64_t step, std::int64_t group) const {
    // Adding 2**23 leaves the rounded number in the low bits of the sum.
    const F round = S::broadcast(8388608.0f);
    const float* shares = rows_.shares(group) + step * kByteDepth;
    const float* turned = turned_ + row_tile * kTileRows * kTokens + step * kByteDepth;
    const F share[] = {S::load(shares), S::load(shares + W), S::load(shares + 2 * W), S::load(shares + 3 * W)};
    std::uint32_t* to = weights(row_tile, step);
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kTileRows; ++i, turned += kTokens, to += W) {
      const auto word = [&](int quarter) { return (Words16)S::fma(S::load(turned + quarter * W), share[quarter], round); };
      Words16 low, high;
      cut_unsigned((word(0) & 0xffffu) | word(1) << 16, (word(2) & 0xffffu) | word(3) << 16, low, high);
      __builtin_memcpy(to, &high, sizeof high);
      __builtin_memcpy(to + kTileWords, &low, sizeof low);
    }
  }

  std::uint32_t* weights(std::int64_t row_tile, std::int64_t step) const {
    return weights_ + (row_tile * Rows::kSteps + step) * kTerms * kTileWords;
  }

  // The columns of a strip, for 16 rows: the weights are loaded once.
  template <int Steps>
  void sum_strip(std::int64_t row_tile, const Sums& strip, Last<Sums>& last, Ahead& ahead) {
    each<Steps * kTerms>([&]<int I>() { tiles_.load<4 + I>(weights(row_tile, 0) + I * kTileWords, kTileRowBytes); });
    for (std::int64_t column = 0; column < kStrip / W; ++column) {
      for (int row = 0; row < kTileRows; ++row) __builtin_prefetch(strip.out + row * kStrip + column * W, 1, 3);
      tiles_.zero<0>();
      tiles_.zero<1>();
      each<Steps>([&]<int I>() {
        tiles_.load<2 + I>(values_ + I * Rows::kStepWords + column * kTileWords, kTileRowBytes);
        tiles_.dot_unsigned<0, 4 + 2 * I, 2 + I>();
        tiles_.dot_unsigned<1, 5 + 2 * I, 2 + I>();
      });
      if (last.is_full()) add_sums(last.oldest());
      ahead.step();
      std::uint32_t* sums = sums_ + last.place() * kSumWords;
      last.add({strip.out + column * W, strip.units, sums});
      store_sums(sums);
    }
  }

  [[gnu::always_inline]] void add_sums(const Sums& done) const {
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row) {
      float* to = done.out + row * kStrip;
      const F sum = join_terms(done.sums + row * W, done.sums + kTileWords + row * W);
      S::store(to, S::fma(sum, S::broadcast(done.units[row]), S::load(to)));
    }
  }

  void store_sums(std::uint32_t* to) {
    tiles_.store<0>(to, kTileRowBytes);
    tiles_.store<1>(to + kTileWords, kTileRowBytes);
  }

  const RowCodes& codes_;
  const float scale_;
  float *scores_, *shrink_, *turned_;
  std::uint32_t *weights_, *values_, *sums_;
  float* units_;  // [group][kRows]
  const std::int64_t rope_steps_;
  TileByteRows rows_;
  Tiles tiles_;
};

}  // namespace latentkv::LATENTKV_ISA
