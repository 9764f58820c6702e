// The register tiles of attention over words: those of attention_tiles.h on pairs of int16, twice as much in an instruction.
//
//   keys:    [tokens][kStripWords], two columns in each word
//   values:  [pairs of tokens][kStrip], two tokens in each word; of 2 * W columns in the order in which pair_up() gives them
//   weights: [pairs of tokens][kRows]
#pragma once

#include "kernels/attention_code_query.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kChunkPairs = kChunk / 2;

// Words of two rows side by side, W columns each: within 128 bits the first four columns and the last four.
template <int W, int... I>
[[gnu::always_inline]] inline void pair_up(typename WordReader<W>::I16 a, typename WordReader<W>::I16 b, std::uint32_t* to,
                                           Numbers<I...>) {
  const auto low = __builtin_shufflevector(a, b, (I / 8 * 8 + I % 8 / 2 + I % 2 * 2 * W)...);
  const auto high = __builtin_shufflevector(a, b, (I / 8 * 8 + 4 + I % 8 / 2 + I % 2 * 2 * W)...);
  __builtin_memcpy(to, &low, sizeof low);
  __builtin_memcpy(to + W, &high, sizeof high);
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

// scores[token][row] += unit[row] * scales[token] * (keys[token] · q[row]) for `Tokens` tokens and Vectors * W rows; q is
// [kStripWords][Vectors * W].
template <int W, int Tokens, int Vectors>
void dot_words(const std::uint32_t* q, const std::uint32_t* keys, const float* units, const float* scales,
               float* scores, Ahead& ahead) {
  using S = Simd<W>;
  using D = Dot<W>;
  typename D::I sum[Tokens][Vectors] = {};
  for (std::int64_t k = 0; k < kStripWords;) {
    for (const std::int64_t stop = k + kStepColumns; k < stop; ++k) {
      typename D::U lanes[Vectors];
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) lanes[v] = load_words<W>(q + (k * Vectors + v) * W);
#pragma GCC unroll 32
      for (int t = 0; t < Tokens; ++t) {
        const auto key = spread_word<W>(keys + t * kStripWords + k);
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) sum[t][v] = D::add_pairs(sum[t][v], key, lanes[v]);
      }
    }
    ahead.step();
  }
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
// Vectors * W columns; rows of out are kStrip apart.
template <int W, int Rows, int Vectors>
void sum_words(const std::uint32_t* weights, const std::uint32_t* values, std::int64_t pairs, const float* units,
               const float* shrink, float* out, Ahead& ahead) {
  using S = Simd<W>;
  using D = Dot<W>;
  static_assert(Vectors % 2 == 0);
  typename D::I sum[Rows][Vectors] = {};
  for (std::int64_t pair = 0; pair < pairs;) {
    const std::int64_t stop = pair + kStepTerms < pairs ? pair + kStepTerms : pairs;
    for (; pair < stop; ++pair, weights += kRows, values += kStrip) {
      typename D::U value[Vectors];
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) value[v] = load_words<W>(values + v * W);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const auto weight = spread_word<W>(weights + r);
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) sum[r][v] = D::add_pairs(sum[r][v], weight, value[v]);
      }
    }
    ahead.step();
  }
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
    const auto unit = S::broadcast(units[r]), factor = S::broadcast(shrink[r]);
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; v += 2) {
      auto low = number_of<W>(sum[r][v]), high = number_of<W>(sum[r][v + 1]);
      in_order<W>(low, high, typename Counting<W>::type{});
      float* to = out + r * kStrip + v * W;
      S::store(to, S::fma(low, unit, S::load(to) * factor));
      S::store(to + W, S::fma(high, unit, S::load(to + W) * factor));
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
