// One chunk of context on matrix tiles: what Chunk computes, for rows of bf16 whose widths are whole tiles.
//
//   scores: keys (16 tokens x 32 columns, straight from the cache) x queries (32 columns x 16 rows)
//   sums:   weights (16 rows x 32 tokens) x values (32 tokens x 16 columns, pairs of tokens side by side)
//
// Queries and weights come in three bf16 terms, so that every product is that of float32 numbers.
#pragma once

#include "kernels/attention_tile_sums.h"

namespace latentkv::LATENTKV_ISA {

class TileChunk : private TileSums {
  using Pairs = Lanes<std::uint16_t, 2 * W>::type;

 public:
  using TileSums::kTokens;

  // Fewer rows would leave most of a tile empty, and wait for memory all the same.
  static constexpr std::int64_t kLeastRows = 3;

  static bool suits(const AttentionParams& p) {
    return p.row_dtype == DType::bf16 && p.key_width % kTileDepth == 0 && p.value_width % kTileDepth == 0;
  }

  static std::int64_t floats(const AttentionParams& p) {
    return kTokens * kRows + kRows + kWeightWords + kValueWords + kTokens * p.key_width / 2;
  }

  TileChunk(const AttentionParams& p, float* memory)
      : TileSums(words(memory), words(memory) + kWeightWords),
        scale_(p.scale_log2),
        row_bytes_(p.row_stride * 2),
        scores_(memory),
        shrink_(scores_ + kTokens * kRows),
        staged_(reinterpret_cast<bf16*>(words(memory) + kWeightWords + kValueWords)) {}

  float* scores() const { return scores_; }
  float* shrink() const { return shrink_; }

  template <typename T>
  void dot(const TileQuery& query, const char* const* rows, std::int64_t count, std::int64_t first,
           std::int64_t width, Ahead& ahead) {
    find_keys(rows, count, first, width);
    ahead.spread(kAskedByDot, query.row_tiles() * (width / kTileDepth) * query.terms());
    for (std::int64_t tile = 0; tile < query.row_tiles(); ++tile) {
      query.terms() == 1 ? dot_tile<1>(query, tile, width, ahead) : dot_tile<TileQuery::kTerms>(query, tile, width, ahead);
      scale(count, tile * kTileRows);
    }
  }

  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const* rows, std::int64_t count,
           std::int64_t first, std::int64_t width, Ahead& ahead) {
    const std::int64_t row_tiles = (row_count + kTileRows - 1) / kTileRows;
    for (std::int64_t tile = 0; tile < row_tiles; ++tile) cut_weights(tile, count);
    shrink_rows<W>(result, row_count, shrink_);
    const std::int64_t steps = (count + kTileDepth - 1) / kTileDepth;
    const std::int64_t strips = (width + kStrip - 1) / kStrip;
    for (std::int64_t d = 0; d < width; d += kStrip) {
      const std::int64_t columns = width - d < kStrip ? width - d : kStrip;
      ahead.spread(kAskedByPairs, strips * kTokens / 2);
      pair_values(rows, count, first + d, columns, ahead);
      ahead.spread(100 - kAskedByDot - kAskedByPairs, strips * row_tiles * steps * kTerms);
      sum_strip<kTerms>(result.at(0, d), row_tiles, columns / W, steps, ahead);
    }
  }

 private:
  static constexpr int kTerms = kMostTerms;

  // Percent of the next chunk's lines asked for in each part; the sums ask for the others.
  static constexpr std::int64_t kAskedByDot = 40, kAskedByPairs = 20;

  static std::uint32_t* words(float* memory) {
    return reinterpret_cast<std::uint32_t*>(memory + kTokens * kRows + kRows);
  }

  struct Keys {
    const char* data;
    std::int64_t stride;
  };

  // 16 tokens at a time where they lie; copied where pages or the context end between them.
  void find_keys(const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width) {
    for (std::int64_t tile = 0; tile < kTokenTiles; ++tile) {
      const char* const* own = rows + tile * kTileRows;
      const std::int64_t left = count - tile * kTileRows;
      if (left <= 0) {
        keys_[tile] = keys_[0];
      } else if (left >= kTileRows && adjacent(own)) {
        keys_[tile] = {own[0] + first * 2, row_bytes_};
      } else {
        bf16* to = staged_ + tile * kTileRows * width;
        keys_[tile] = {reinterpret_cast<const char*>(to), width * 2};
        for (std::int64_t i = 0; i < kTileRows; ++i) {
          __builtin_memcpy(to + i * width, own[i < left ? i : left - 1] + first * 2, width * 2);
        }
      }
    }
  }

  bool adjacent(const char* const* rows) const {
    for (std::int64_t i = 1; i < kTileRows; ++i) {
      if (rows[i] - rows[i - 1] != row_bytes_) return false;
    }
    return true;
  }

  template <int Terms>
  void dot_tile(const TileQuery& query, std::int64_t row_tile, std::int64_t width, Ahead& ahead) {
    tiles_.zero<0>();
    tiles_.zero<1>();
    tiles_.zero<2>();
    tiles_.zero<3>();
    const std::uint32_t* q = query.tile(row_tile, 0);
    for (std::int64_t byte = 0; byte < width * 2; byte += kTileRowBytes) {
#pragma GCC unroll 3
      for (int term = 0; term < Terms; ++term, q += kTileWords) {
        tiles_.load<6>(q, kTileRowBytes);
        tiles_.load<4>(keys_[0].data + byte, keys_[0].stride);
        tiles_.dot<0, 4, 6>();
        tiles_.load<5>(keys_[1].data + byte, keys_[1].stride);
        tiles_.dot<1, 5, 6>();
        tiles_.load<4>(keys_[2].data + byte, keys_[2].stride);
        tiles_.dot<2, 4, 6>();
        tiles_.load<5>(keys_[3].data + byte, keys_[3].stride);
        tiles_.dot<3, 5, 6>();
        ahead.step();
      }
    }
    float* to = scores_ + row_tile * kTileRows;
    constexpr std::int64_t stride = kRows * sizeof(float);
    tiles_.store<0>(to, stride);
    tiles_.store<1>(to + kTileRows * kRows, stride);
    tiles_.store<2>(to + 2 * kTileRows * kRows, stride);
    tiles_.store<3>(to + 3 * kTileRows * kRows, stride);
  }

  void scale(std::int64_t count, std::int64_t row) const {
    const auto factor = S::broadcast(scale_);
    for (std::int64_t t = 0; t < count; ++t) {
      float* to = scores_ + t * kRows + row;
      S::store(to, S::load(to) * factor);
    }
  }

  // Weights of 16 rows, tokens in the lanes; none beyond `count`.
  void cut_weights(std::int64_t row_tile, std::int64_t count) {
    for (std::int64_t first = 0; first < kTokens; first += W) {
      typename S::F rows[W];
      for (int i = 0; i < W; ++i) {
        rows[i] = first + i < count ? S::load(scores_ + (first + i) * kRows + row_tile * kTileRows) : S::zero();
      }
      transpose<W>(rows);
      auto* to = reinterpret_cast<char*>(weights<kTerms>(row_tile, first / kTileDepth)) +
                 first % kTileDepth * 2;
      for (int i = 0; i < W; ++i, to += kTileRowBytes) {
        for (int term = 0; term < kTerms; ++term) {
          const auto half = __builtin_convertvector(next_term<W>(rows[i]) >> 16, typename S::H);
          __builtin_memcpy(to + term * kTileBytes, &half, sizeof half);
        }
      }
    }
  }

  // Tokens 2i and 2i + 1 side by side, column by column; zeros beyond `count`.
  void pair_values(const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t columns,
                   Ahead& ahead) const {
    for (std::int64_t token = 0; token < kTokens; token += 2) {
      std::uint32_t* to = values(token / kTileDepth, 0) + token % kTileDepth / 2 * W;
      ahead.step();
      for (std::int64_t d = 0; d < columns; d += 2 * W, to += 2 * kTileWords) {
        Pairs even{}, odd{};
        if (token < count) __builtin_memcpy(&even, rows[token] + (first + d) * 2, sizeof even);
        if (token + 1 < count) __builtin_memcpy(&odd, rows[token + 1] + (first + d) * 2, sizeof odd);
        const Pairs low = __builtin_shufflevector(even, odd, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8,
                                                  40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
        const Pairs high = __builtin_shufflevector(even, odd, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54,
                                                   23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
        __builtin_memcpy(to, &low, sizeof low);
        __builtin_memcpy(to + kTileWords, &high, sizeof high);
      }
    }
  }

  const float scale_;
  const std::int64_t row_bytes_;
  float *scores_, *shrink_;
  bf16* staged_;
  Keys keys_[kTokenTiles];
};

}  // namespace latentkv::LATENTKV_ISA
