// Weighted sums on matrix tiles of bf16, for whatever the values come from:
//
//   weights (16 rows x 32 tokens) x values (32 tokens x 16 columns, pairs of tokens side by side), in float32
//
// Weights come in bf16 terms, whose tiles follow each other: [16 rows][32 tokens of a step][term].
#pragma once

#include "kernels/attention_partial.h"
#include "kernels/attention_tile_query.h"

namespace latentkv::LATENTKV_ISA {

class TileSums {
 public:
  static constexpr std::int64_t kTokens = 64;  // of a chunk

 protected:
  static constexpr int W = 16;
  using S = Simd<W>;

  static constexpr std::int64_t kTokenTiles = kTokens / kTileRows;
  static constexpr std::int64_t kTokenSteps = kTokens / kTileDepth;
  static constexpr std::int64_t kTileWords = TileQuery::kTileWords;
  static constexpr std::int64_t kMostTerms = TileQuery::kTerms;
  static constexpr std::int64_t kWeightWords = TileQuery::kMostRowTiles * kTokenSteps * kMostTerms * kTileWords;
  static constexpr std::int64_t kValueWords = kTokenSteps * (kStrip / W) * kTileWords;

  TileSums(std::uint32_t* weights, std::uint32_t* values) : weights_(weights), values_(values) {}

  template <int Terms>
  std::uint32_t* weights(std::int64_t row_tile, std::int64_t step) const {
    return weights_ + (row_tile * kTokenSteps + step) * Terms * kTileWords;
  }

  // Pairs of tokens of 16 columns.
  std::uint32_t* values(std::int64_t step, std::int64_t column) const {
    return values_ + (step * (kStrip / W) + column) * kTileWords;
  }

  // Four accumulators at once, so that products need not wait for each other: two row tiles if there are, else columns.
  // `column_tiles` is even.
  template <int Terms>
  void sum_strip(float* out, std::int64_t row_tiles, std::int64_t column_tiles, std::int64_t steps, Ahead& ahead) {
    std::int64_t row = 0, column = 0;
    for (; row + 2 <= row_tiles; row += 2) {
      for (std::int64_t pair = 0; pair < column_tiles; pair += 2) sum_block<Terms, 2, 2>(out, row, pair, steps, ahead);
    }
    if (row == row_tiles) return;
    for (; column + 4 <= column_tiles; column += 4) sum_block<Terms, 1, 4>(out, row, column, steps, ahead);
    if (column < column_tiles) sum_block<Terms, 1, 2>(out, row, column, steps, ahead);
  }

  Tiles tiles_;

 private:
  // Loading a tile takes half as long as a product: values are loaded once for all terms, weights for two products.
  template <int Terms, int Rows, int Columns>
  void sum_block(float* out, std::int64_t row, std::int64_t column, std::int64_t steps, Ahead& ahead) {
    out += row * kTileRows * kStrip + column * W;
    constexpr std::int64_t stride = kStrip * sizeof(float);
    each<Rows * Columns>([&]<int I>() { tiles_.load<I>(out + I % Rows * kTileRows * kStrip + I / Rows * W, stride); });
    for (std::int64_t step = 0; step < steps; ++step) {
      each<Columns / 2>([&]<int Pair>() {
        const std::uint32_t *value = values(step, column + 2 * Pair), *weight = weights<Terms>(row, step);
        tiles_.load<6>(value, kTileRowBytes);
        tiles_.load<7>(value + kTileWords, kTileRowBytes);
#pragma GCC unroll 3
        for (int term = 0; term < Terms; ++term, weight += kTileWords) {
          ahead.step();
          each<Rows>([&]<int R>() {
            constexpr int a = Rows == 1 ? 4 : 4 + R, first = 2 * Pair * Rows + R;
            tiles_.load<a>(weight + R * kTokenSteps * Terms * kTileWords, kTileRowBytes);
            tiles_.dot<first, a, 6>();
            tiles_.dot<first + Rows, a, 7>();
          });
        }
      });
    }
    each<Rows * Columns>([&]<int I>() { tiles_.store<I>(out + I % Rows * kTileRows * kStrip + I / Rows * W, stride); });
  }

  std::uint32_t *weights_, *values_;
};

}  // namespace latentkv::LATENTKV_ISA
