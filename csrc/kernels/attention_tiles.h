// The three register tiles of attention: dot products with rows in the lanes, dot products with columns in the lanes, and
// weighted sums. They work on scratch laid out in strips, so that every address is one register plus constants.
//
//   strip s of a chunk:  [kChunk tokens][kStrip columns], columns s * kStrip and on
//   scores:              [kChunk tokens][kRows rows]
#pragma once

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kStrip = 64;  // columns
constexpr std::int64_t kChunk = 48;  // context tokens: a multiple of every tile's
constexpr std::int64_t kRows = 64;   // pairs of a new token and a head
constexpr std::int64_t kChunkStrip = kChunk * kStrip;

// Columns [from, to).
struct Range {
  std::int64_t from, to;
};

// What a dot product runs over: one or two ranges of columns.
struct Columns {
  Range ranges[2];
  int count;
};

// Asks for the cache lines of the next chunk's rows, a few at a time, while this chunk is computed.
struct Ahead {
  const char* rows[kChunk];
  std::int64_t row_count = 0, row_bytes = 0, row = 0, byte = 0;

  [[gnu::always_inline]] void step(int lines) {
    for (; lines > 0 && row < row_count; --lines) {
      __builtin_prefetch(rows[row] + byte);
      byte += 64;
      if (byte >= row_bytes) {
        byte = 0;
        ++row;
      }
    }
  }
};

// scores[token][row] = keys[token] · q[row] for `Tokens` tokens and Vectors * W rows; q is [columns][Vectors * W].
template <int W, int Tokens, int Vectors>
void dot_wide(const float* q, const float* keys, const Columns& columns, float* scores, Ahead& ahead, int lines) {
  using S = Simd<W>;
  typename S::F sum[Tokens][Vectors] = {};
  for (int range = 0; range < columns.count; ++range) {
    std::int64_t d = columns.ranges[range].from;
    const std::int64_t end = columns.ranges[range].to;
    while (d < end) {
      const float* key = keys + d / kStrip * kChunkStrip + d % kStrip;
      const std::int64_t strip_end = (d / kStrip + 1) * kStrip;
      const std::int64_t stop = strip_end < end ? strip_end : end;
      const float* query = q + d * Vectors * W;
      for (; d < stop; ++d, ++key, query += Vectors * W) {
        typename S::F lanes[Vectors];
        #pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) lanes[v] = S::load(query + v * W);
        #pragma GCC unroll 32
        for (int t = 0; t < Tokens; ++t) {
          const auto value = S::broadcast(key[t * kStrip]);
          #pragma GCC unroll 32
          for (int v = 0; v < Vectors; ++v) sum[t][v] = S::fma(value, lanes[v], sum[t][v]);
        }
      }
      ahead.step(lines);
    }
  }
  #pragma GCC unroll 32
  for (int t = 0; t < Tokens; ++t) {
    #pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) S::store(scores + t * kRows + v * W, sum[t][v]);
  }
}

// The same for `Rows` < W rows, columns in the lanes; q is [rows][q_stride], zero where a range's last vector goes beyond
// it, and ranges start at multiples of W.
template <int W, int Tokens, int Rows>
void dot_narrow(const float* q, std::int64_t q_stride, const float* keys, const Columns& columns, float* scores,
                Ahead& ahead, int lines) {
  using S = Simd<W>;
  typename S::F sum[Tokens][Rows] = {};
  for (int range = 0; range < columns.count; ++range) {
    std::int64_t d = columns.ranges[range].from;
    const std::int64_t end = columns.ranges[range].to;
    while (d < end) {
      const float* key = keys + d / kStrip * kChunkStrip + d % kStrip;
      const std::int64_t strip_end = (d / kStrip + 1) * kStrip;
      const std::int64_t stop = strip_end < end ? strip_end : end;
      for (; d < stop; d += W, key += W) {
        typename S::F lanes[Rows];
        #pragma GCC unroll 32
        for (int r = 0; r < Rows; ++r) lanes[r] = S::load(q + r * q_stride + d);
        #pragma GCC unroll 32
        for (int t = 0; t < Tokens; ++t) {
          const auto value = S::load(key + t * kStrip);
          #pragma GCC unroll 32
          for (int r = 0; r < Rows; ++r) sum[t][r] = S::fma(value, lanes[r], sum[t][r]);
        }
      }
      ahead.step(lines);
    }
  }
  #pragma GCC unroll 32
  for (int t = 0; t < Tokens; ++t) {
    #pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) scores[t * kRows + r] = S::sum(sum[t][r]);
  }
}

// out[row] = out[row] * shrink[row] + sum over terms of weight(row, term) * values[term], for `Rows` rows and Vectors * W
// columns; the weight stands at weights[row * RowStep + term * TermStep], rows of values and of out are kStrip apart.
template <int W, int Rows, int Vectors, std::int64_t RowStep, std::int64_t TermStep>
void sum_tile(const float* weights, const float* values, std::int64_t terms, const float* shrink, float* out) {
  using S = Simd<W>;
  typename S::F sum[Rows][Vectors];
  #pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
    const auto factor = S::broadcast(shrink[r]);
    #pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) sum[r][v] = S::load(out + r * kStrip + v * W) * factor;
  }
  for (std::int64_t term = 0; term < terms; ++term, weights += TermStep, values += kStrip) {
    typename S::F value[Vectors];
    #pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) value[v] = S::load(values + v * W);
    #pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const auto weight = S::broadcast(weights[r * RowStep]);
      #pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) sum[r][v] = S::fma(weight, value[v], sum[r][v]);
    }
  }
  #pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
    #pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) S::store(out + r * kStrip + v * W, sum[r][v]);
  }
}

// Tiles that fill the registers without spilling: 32 of them at width 16, else 16.
template <int W>
struct Tile {
  static constexpr int pair_tokens = W == 16 ? 12 : 6;     // rows in two vectors
  static constexpr int single_tokens = W == 16 ? 24 : 12;  // rows in one vector
  static constexpr int narrow_tokens = 4;
  static constexpr int sum_rows = 6;
  static constexpr int sum_vectors = W == 16 ? 4 : 2;
};

}  // namespace latentkv::LATENTKV_ISA
