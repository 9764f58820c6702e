// The register tiles of attention over words: those of attention_tiles.h on pairs of int16, twice as much in an instruction.
//
//   keys:    [tokens][words of a span], two columns in each word
//   values:  [pairs of tokens][kStrip], two tokens in each word, in the order in which pair_words() gives them
//   weights: [pairs of tokens][kRows]
#pragma once

#include "kernels/attention_code_query.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kChunkPairs = kCodeChunk / 2;

// Twelve sums, two vectors of the others' words, one word of theirs and a product: all registers of AVX2.
template <int W>
struct WordTile {
  static constexpr int pair_tokens = W == 16 ? 8 : 6;      // rows in two vectors
  static constexpr int single_tokens = W == 16 ? 16 : 12;  // rows in one vector
  static constexpr int sum_rows = 6;
  static constexpr int sum_vectors = W == 16 ? 4 : 2;
};

// Words of two rows side by side: within 128 bits the first four and the last four.
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

// Bytes of two rows, 4 * W columns of each, or words, 2 * W columns, as words side by side. Of bytes two neighbours are taken
// as one word, and parted afterwards: those at even columns, then those at odd ones. Shifts do that, where widening would
// need the port that shuffles need.
template <CodeForm Form, int W>
[[gnu::always_inline]] inline void pair_words(const char* first, const char* second, std::uint32_t* to) {
  typename WordReader<W>::I16 low, high;
  __builtin_memcpy(&low, first, sizeof low);
  __builtin_memcpy(&high, second, sizeof high);
  interleave<W>(low, high);
  const auto store = [&](int v, typename WordReader<W>::I16 words) { __builtin_memcpy(to + v * W, &words, sizeof words); };
  if constexpr (Form == CodeForm::byte) {
    store(0, low << 8 >> 8);
    store(1, low >> 8);
    store(2, high << 8 >> 8);
    store(3, high >> 8);
  } else {
    store(0, low);
    store(1, high);
  }
}

// The first column of a strip whose sums stand in vector v or, once in order, v and v + 1.
template <CodeForm Form, int W>
constexpr std::int64_t column_of(std::int64_t v) {
  return Form == CodeForm::byte ? v / 4 * 4 * W + v % 4 / 2 * 8 : v * W;
}

// Lanes of words that were interleaved back in their own order.
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

// Vectors of sums that are brought in order together.
template <CodeForm Form, int W>
constexpr int kJoined = Form == CodeForm::byte && W == 16 ? 4 : 2;

// to += unit * vector
template <int W>
[[gnu::always_inline]] inline void add_to(float* to, typename Simd<W>::F vector, typename Simd<W>::F unit) {
  Simd<W>::store(to, Simd<W>::fma(vector, unit, Simd<W>::load(to)));
}

// out += unit * sums, kJoined vectors of them.
template <CodeForm Form, int W>
[[gnu::always_inline]] inline void add_sums(const typename Dot<W>::I* sums, float unit, float* out) {
  const auto units = Simd<W>::broadcast(unit);
  auto low = number_of<W>(sums[0]), high = number_of<W>(sums[1]);
  if constexpr (Form != CodeForm::byte) {
    in_order<W>(low, high, typename Counting<W>::type{});
  } else {
    join<W>(low, high);
  }
  if constexpr (Form == CodeForm::byte && W == 16) {
    auto next = number_of<W>(sums[2]), last = number_of<W>(sums[3]);
    join<W>(next, last);
    exchange<W, W / 2>(low, next, typename Counting<W>::type{});
    exchange<W, W / 2>(high, last, typename Counting<W>::type{});
    add_to<W>(out + W, next, units);
    add_to<W>(out + 3 * W, last, units);
  }
  add_to<W>(out, low, units);
  add_to<W>(out + (Form == CodeForm::byte && W > 4 ? 2 * W : W), high, units);
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

// out[row] += units[row] * sum over pairs of weights(row, pair) · values[pair], for `Rows` rows and Vectors * W columns; rows
// of out are kStrip apart. Whole steps of pairs are summed.
template <CodeForm Form, int W, int Rows, int Vectors>
void sum_words(const std::uint32_t* weights, const std::uint32_t* values, std::int64_t pairs, const float* units, float* out,
               Ahead& ahead) {
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
    for (int v = 0; v < Vectors; v += kJoined<Form, W>) {
      add_sums<Form, W>(sum[r] + v, units[r], out + r * kStrip + column_of<Form, W>(v));
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
