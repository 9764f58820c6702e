// The three register tiles of attention: dot products with rows in the lanes, dot products with columns in the lanes, and
// weighted sums. They work on scratch laid out in strips, so that every address is one register plus constants.
//
//   strip of a chunk: [kChunk tokens][kStrip columns], widened to float32; it stays in the first-level cache
//   scores:           [kChunk tokens][kRows rows]
#pragma once

#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kStrip = 64;  // columns
constexpr std::int64_t kChunk = 48;  // context tokens: a multiple of every tile's
constexpr std::int64_t kRows = 64;   // pairs of a new token and a head
constexpr std::int64_t kMostTokens = 64;  // of a chunk of numbers on matrix tiles
constexpr std::int64_t kLongestChunk = 128;  // of any: of whole numbers there

// Columns [from, to).
struct Range {
  std::int64_t from, to;
};

// Asks for the cache lines of the next chunk's rows, a few at a time, while this chunk is computed. Many at once would
// wait for each other, and the arithmetic with them.
struct Ahead {
  const char* rows[kLongestChunk] = {};
  std::int64_t row_count = 0, first_byte = 0, end_byte = 0, row = 0;
  const char *line = nullptr, *end = nullptr;  // of rows that follow each other; after the last row, none
  int lines = 0;                               // to ask for at each step

  // Bytes `first` ... `last` - 1 of `count` rows that are in `rows`.
  void start(std::int64_t count, std::int64_t first, std::int64_t last) {
    row_count = count;
    first_byte = first;
    end_byte = last;
    take_rows();
  }

  // Some more than there are do no harm.
  [[gnu::always_inline]] void step() {
    if (lines == 0) return;
    for (int i = lines; i > 0; --i, line += kLine) __builtin_prefetch(line, 0, 2);
    if (line >= end) take_rows();
  }

  // The same where the number of lines follows from what was read: neither loop nor counter.
  template <int Lines>
  [[gnu::always_inline]] void ask() {
    if (line == nullptr) return;
#pragma GCC unroll 32
    for (int i = 0; i < Lines; ++i) __builtin_prefetch(line + i * kLine, 0, 2);
    line += Lines * kLine;
    if (line >= end) take_rows();
  }

  // Lines per step, so that `steps` of them ask for this share of all.
  void spread(std::int64_t share_percent, std::int64_t steps) {
    const std::int64_t all = row_count * ((end_byte - first_byte + kLine - 1) / kLine);
    lines = steps == 0 || line == nullptr ? 0 : static_cast<int>((all * share_percent / 100 + steps - 1) / steps);
  }

  static constexpr std::int64_t kLine = 64;

 private:
  void take_rows() {
    if (row == row_count) {
      line = end = nullptr;
      lines = 0;
      return;
    }
    line = rows[row] + first_byte;
    do {
      end = rows[row++] + end_byte;
    } while (row < row_count && rows[row] + first_byte == end);
  }
};

// What inner loops do without counting and between two steps of `ahead`: with a counter for every column, a seventh of all
// instructions were not arithmetic.
constexpr std::int64_t kStepColumns = 8;
constexpr std::int64_t kStepTerms = 8;

// For eight lines that few rows read of a chunk, so many of the next chunk are asked for.
constexpr std::int64_t kFewAskedByDot = 4, kFewAskedBySum = 5;

// `share` eighths of the lines of `elements` elements of T.
template <typename T>
constexpr int lines_of(std::int64_t elements, std::int64_t share) {
  return elements * sizeof(T) * share / (8 * Ahead::kLine);
}

// scores[token][row] += keys[token] · q[row] over the columns of `range` for `Tokens` tokens and
// Vectors * W rows; q is [columns][Vectors * W].
template <int W, int Tokens, int Vectors>
void dot_wide(const float* q, const float* keys, Range range, float* scores, Ahead& ahead) {
  using S = Simd<W>;
  typename S::F sum[Tokens][Vectors];
#pragma GCC unroll 32
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) sum[t][v] = S::load(scores + t * kRows + v * W);
  }
  const auto add = [&](std::int64_t d) [[gnu::always_inline]] {
    typename S::F lanes[Vectors];
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) lanes[v] = S::load(q + (d * Vectors + v) * W);
#pragma GCC unroll 32
    for (int t = 0; t < Tokens; ++t) {
      const auto value = S::broadcast(keys[t * kStrip + d]);
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) sum[t][v] = S::fma(value, lanes[v], sum[t][v]);
    }
  };
  std::int64_t d = range.from;
  for (; d + kStepColumns <= range.to; d += kStepColumns) {
#pragma GCC unroll 32
    for (int i = 0; i < kStepColumns; ++i) add(d + i);
    ahead.step();
  }
  for (; d < range.to; ++d) add(d);
#pragma GCC unroll 32
  for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) S::store(scores + t * kRows + v * W, sum[t][v]);
  }
}

// Rows whose columns are read and summed in another order: of every whole pair of vectors those at even places, then those at
// odd ones, which costs half as much. Columns after the last whole pair stay as they lie.
template <typename T>
constexpr bool kParted = false;
template <>
constexpr bool kParted<bf16> = true;

// Elements 0 ... 2 * W - 1 of a row, parted or as they lie.
template <int W, typename T>
[[gnu::always_inline]] inline void load_two(const T* from, typename Simd<W>::F& a, typename Simd<W>::F& b) {
  if constexpr (kParted<T>) {
    Simd<W>::load_pairs(from, a, b);
  } else {
    a = Simd<W>::load(from);
    b = Simd<W>::load(from + W);
  }
}

// Sums that one step against few rows keeps: enough not to wait for each other, and a whole vector of results at its end.
template <int W>
constexpr int kNarrowSums = W < 8 ? 8 : W;

// sums[row][token] = keys[token] · q[row], kNarrowSums / Rows tokens at once. For few rows: columns in the lanes, straight from
// rows of T, since widening them first would cost more than it saves.
// q is [rows][q_stride], parted like rows of T, zero beyond the range; the range is whole pairs of vectors.
template <int W, int Rows, typename T>
void dot_direct(const float* q, std::int64_t q_stride, const T* const* keys, Range range, float* sums, Ahead& ahead) {
  using S = Simd<W>;
  constexpr int tokens = kNarrowSums<W> / Rows;
  typename S::F sum[kNarrowSums<W>] = {};
  const T* key[tokens];
  for (int t = 0; t < tokens; ++t) key[t] = keys[t];
  const auto add = [&](std::int64_t d) [[gnu::always_inline]] {
#pragma GCC unroll 32
    for (int t = 0; t < tokens; ++t) {
      typename S::F a, b;
      load_two<W>(key[t] + d, a, b);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        auto& one = sum[r * tokens + t];
        one = S::fma(a, S::load(q + r * q_stride + d), one);
        one = S::fma(b, S::load(q + r * q_stride + d + W), one);
      }
    }
  };
  std::int64_t d = range.from;
  for (; d + kStrip <= range.to; d += kStrip) {
#pragma GCC unroll 32
    for (int column = 0; column < kStrip; column += 2 * W) add(d + column);
    ahead.ask<lines_of<T>(tokens * kStrip, kFewAskedByDot)>();
  }
  for (; d < range.to; d += 2 * W) add(d);
#pragma GCC unroll 2
  for (int i = 0; i < kNarrowSums<W>; i += W) {
    typename S::F part[W];
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane) part[lane] = sum[i + lane];
    S::store(sums + i, sum_each<W>(part));
  }
}

// out[row] = out[row] * shrink[row] + sum over terms of weight(row, term) * values[term], for `Rows` rows and Vectors * W
// columns; the weight stands at weights[term * kRows + row], rows of values and of out are kStrip apart.
template <int W, int Rows, int Vectors>
void sum_tile(const float* weights, const float* values, std::int64_t terms, const float* shrink, float* out,
              Ahead& ahead) {
  using S = Simd<W>;
  typename S::F sum[Rows][Vectors];
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
    const auto factor = S::broadcast(shrink[r]);
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) sum[r][v] = S::load(out + r * kStrip + v * W) * factor;
  }
  const auto add = [&](std::int64_t term) [[gnu::always_inline]] {
    typename S::F value[Vectors];
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) value[v] = S::load(values + term * kStrip + v * W);
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const auto weight = S::broadcast(weights[term * kRows + r]);
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) sum[r][v] = S::fma(weight, value[v], sum[r][v]);
    }
  };
  std::int64_t term = 0;
  for (; term + kStepTerms <= terms; term += kStepTerms) {
#pragma GCC unroll 32
    for (int i = 0; i < kStepTerms; ++i) add(term + i);
    ahead.step();
  }
  for (; term < terms; ++term) add(term);
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) S::store(out + r * kStrip + v * W, sum[r][v]);
  }
}

// The same of one or two rows straight from rows of T, for Pairs * 2 * W columns from `first` on; `out` is strips, parted like
// rows of T, and the weights of a row are kChunk from those of the next.
template <int W, int Rows, int Pairs, typename T>
void sum_direct(const float* weights, const T* const* values, std::int64_t first, std::int64_t terms,
                const float* shrink, float* out, Ahead& ahead) {
  using S = Simd<W>;
  typename S::F sum[Rows][2 * Pairs];
  const auto at = [&](int r, int pair) {
    const std::int64_t d = first + pair * 2 * W;
    return out + (d / kStrip * kRows + r) * kStrip + d % kStrip;
  };
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
    const auto factor = S::broadcast(shrink[r]);
#pragma GCC unroll 32
    for (int p = 0; p < Pairs; ++p) {
      typename S::F &a = sum[r][2 * p], &b = sum[r][2 * p + 1];
      a = S::load(at(r, p)) * factor;
      b = S::load(at(r, p) + W) * factor;
    }
  }
  const auto add = [&](std::int64_t term) [[gnu::always_inline]] {
    const T* from = values[term] + first;
#pragma GCC unroll 32
    for (int p = 0; p < Pairs; ++p) {
      typename S::F a, b;
      load_two<W>(from + p * 2 * W, a, b);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const auto weight = S::broadcast(weights[r * kChunk + term]);
        sum[r][2 * p] = S::fma(weight, a, sum[r][2 * p]);
        sum[r][2 * p + 1] = S::fma(weight, b, sum[r][2 * p + 1]);
      }
    }
  };
  std::int64_t term = 0;
  for (; term + kStepTerms <= terms; term += kStepTerms) {
#pragma GCC unroll 32
    for (int i = 0; i < kStepTerms; ++i) add(term + i);
    ahead.ask<lines_of<T>(kStepTerms * Pairs * 2 * W, kFewAskedBySum)>();
  }
  for (; term < terms; ++term) add(term);
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int p = 0; p < Pairs; ++p) {
      S::store(at(r, p), sum[r][2 * p]);
      S::store(at(r, p) + W, sum[r][2 * p + 1]);
    }
  }
}

// Tiles that fill the registers without spilling: 32 of them at width 16, else 16.
template <int W>
struct Tile {
  static constexpr int pair_tokens = W == 16 ? 12 : 6;     // rows in two vectors
  static constexpr int single_tokens = W == 16 ? 24 : 12;  // rows in one vector
  static constexpr int sum_rows = 6;
  static constexpr int sum_vectors = W == 16 ? 4 : 2;
};

}  // namespace latentkv::LATENTKV_ISA
