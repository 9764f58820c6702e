// The register tiles of attention over words: those of attention_tiles.h on pairs of int16, twice as much in an instruction.
//
//   keys:    [tokens][words of a span], two columns in each word
//   values:  [pairs of tokens][kStrip], two tokens in each word; of 2 * W columns in the order in which interleave() gives them
//   weights: [pairs of tokens][kRows]
#pragma once

#include "kernels/attention_code_query.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kChunkPairs = kCodeChunk / 2;

// Tiles as large as GCC 12 keeps in registers: one that fills them has its sums in memory between two steps.
template <int W>
struct WordTile {
  static constexpr int pair_tokens = W == 16 ? 8 : 4;      // rows in two vectors
  static constexpr int single_tokens = W == 16 ? 16 : 8;   // rows in one vector
  static constexpr int sum_rows = W == 16 ? 6 : 4;
  static constexpr int sum_vectors = W == 16 ? 4 : 2;
};

// Words of two rows side by side, W columns each: within 128 bits the first four columns and the last four.
template <int W, int... I>
[[gnu::always_inline]] inline void interleave(typename WordReader<W>::I16& a, typename WordReader<W>::I16& b, Numbers<I...>) {
  const auto low = __builtin_shufflevector(a, b, (I / 8 * 8 + I % 8 / 2 + I % 2 * 2 * W)...);
  b = __builtin_shufflevector(a, b, (I / 8 * 8 + 4 + I % 8 / 2 + I % 2 * 2 * W)...);
  a = low;
}

template <int W>
[[gnu::always_inline]] inline void interleave(typename WordReader<W>::I16& a, typename WordReader<W>::I16& b) {
  interleave<W>(a, b, typename Counting<2 * W>::type{});
}

// Lanes in that order back in their own.
template <int W, int... I>
[[gnu::always_inline]] inline void in_order(typename Simd<W>::F& low, typename Simd<W>::F& high, Numbers<I...>) {
  if constexpr (W == 4) return;
  const auto first = __builtin_shufflevector(low, high, (I / 8 * 4 + I % 4 + I / 4 % 2 * W)...);
  high = __builtin_shufflevector(low, high, (W / 2 + I / 8 * 4 + I % 4 + I / 4 % 2 * W)...);
  low = first;
}

template <int W>
[[gnu::always_inline]] inline typename Dot<W>::U spread_word(const std::uint32_t* word) {
  return *word - typename Dot<W>::U{};
}

template <int W>
[[gnu::always_inline]] inline typename Dot<W>::U load_words(const void* from) {
  typename Dot<W>::U words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}

template <int W>
[[gnu::always_inline]] inline typename Simd<W>::F number_of(typename Dot<W>::I sum) {
  return __builtin_convertvector(sum, typename Simd<W>::F);
}

template <int W>
[[gnu::always_inline]] inline void add_now(typename Dot<W>::I& sum, typename Dot<W>::U a, typename Dot<W>::U b) {
  Dot<W>::add_pairs_to(sum, a, b);
}

// out = out * shrink + unit * sums of interleaved columns, 2 * W of them.
template <int W>
[[gnu::always_inline]] inline void add_sums(typename Dot<W>::I first, typename Dot<W>::I last, float unit, float shrink,
                                            float* out) {
  using S = Simd<W>;
  auto low = number_of<W>(first), high = number_of<W>(last);
  in_order<W>(low, high, typename Counting<W>::type{});
  const auto units = S::broadcast(unit), factor = S::broadcast(shrink);
  S::store(out, S::fma(low, units, S::load(out) * factor));
  S::store(out + W, S::fma(high, units, S::load(out + W) * factor));
}

// scores[token][row] += unit[row] * scales[token] * (keys[token] · q[row]) for `Tokens` tokens, `Stride` words apart, and
// Vectors * W rows; q is [words][Vectors * W]. GCC 12 copies all sums at every turn of a loop whose length it knows: `words`,
// whole steps, is no template argument.
template <int W, int Stride, int Tokens, int Vectors>
void dot_words(const std::uint32_t* q, const std::uint32_t* keys, std::int64_t words, const float* units,
               const float* scales, float* scores, Ahead& ahead) {
  using S = Simd<W>;
  using D = Dot<W>;
  typename D::I sum[Tokens][Vectors] = {};
  for (; words > 0; words -= kStepColumns, keys += kStepColumns, q += kStepColumns * Vectors * W) {
#pragma GCC unroll 8
    for (int i = 0; i < kStepColumns; ++i) {
      typename D::U lanes[Vectors];
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) lanes[v] = load_words<W>(q + (i * Vectors + v) * W);
#pragma GCC unroll 32
      for (int t = 0; t < Tokens; ++t) {
        const auto key = spread_word<W>(keys + t * Stride + i);
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) add_now<W>(sum[t][v], key, lanes[v]);
      }
    }
  }
  ahead.step();
#pragma GCC unroll 32
  for (int t = 0; t < Tokens; ++t) {
    const auto scale = S::broadcast(scales[t]);
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) {
      float* to = scores + t * kRows + v * W;
      S::store(to, S::fma(number_of<W>(sum[t][v]), S::load(units + v * W) * scale, S::load(to)));
    }
  }
}

// out[row] = out[row] * shrink[row] + units[row] * sum over pairs of weights(row, pair) · values[pair], for `Rows` rows and
// Vectors * W columns; rows of out are kStrip apart. Whole steps of pairs are summed.
template <int W, int Rows, int Vectors>
void sum_words(const std::uint32_t* weights, const std::uint32_t* values, std::int64_t pairs, const float* units,
               const float* shrink, float* out, Ahead& ahead) {
  using D = Dot<W>;
  static_assert(Vectors % 2 == 0);
  typename D::I sum[Rows][Vectors] = {};
  for (; pairs > 0; pairs -= kStepTerms, weights += kStepTerms * kRows, values += kStepTerms * kStrip) {
#pragma GCC unroll 8
    for (int i = 0; i < kStepTerms; ++i) {
      typename D::U value[Vectors];
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) value[v] = load_words<W>(values + i * kStrip + v * W);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const auto weight = spread_word<W>(weights + i * kRows + r);
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) add_now<W>(sum[r][v], weight, value[v]);
      }
    }
  }
  ahead.step();
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; v += 2) add_sums<W>(sum[r][v], sum[r][v + 1], units[r], shrink[r], out + r * kStrip + v * W);
  }
}

}  // namespace latentkv::LATENTKV_ISA
