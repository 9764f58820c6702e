// Floats rearranged in registers: W vectors of W transposed; neighbours parted and joined.
#pragma once

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

template <int... I>
struct Numbers {};

template <int N, int... I>
struct Counting : Counting<N - 1, N - 1, I...> {};

template <int... I>
struct Counting<0, I...> {
  using type = Numbers<I...>;
};

// Lanes l of a and l ^ Step of b (and the other way around) change places where bit Step of the result's lane asks for it.
template <int W, int Step, int... I>
[[gnu::always_inline]] inline void exchange(typename Simd<W>::F& a, typename Simd<W>::F& b, Numbers<I...>) {
  const auto low = __builtin_shufflevector(a, b, ((I & Step) ? W + I - Step : I)...);
  const auto high = __builtin_shufflevector(a, b, ((I & Step) ? W + I : I + Step)...);
  a = low;
  b = high;
}

template <int W, int Step = 1>
[[gnu::always_inline]] inline void transpose(typename Simd<W>::F (&rows)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (!(i & Step)) exchange<W, Step>(rows[i], rows[i + Step], typename Counting<W>::type{});
  }
  if constexpr (2 * Step < W) transpose<W, 2 * Step>(rows);
}

// The sum of all lanes of vectors[i] in lane i.
template <int W, int Step = 1>
[[gnu::always_inline]] inline typename Simd<W>::F sum_each(typename Simd<W>::F (&vectors)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i += 2 * Step) {
    exchange<W, Step>(vectors[i], vectors[i + Step], typename Counting<W>::type{});
    vectors[i] += vectors[i + Step];
  }
  if constexpr (2 * Step < W) return sum_each<W, 2 * Step>(vectors);
  return vectors[0];
}

template <int W, int... I>
[[gnu::always_inline]] inline void part(typename Simd<W>::F& a, typename Simd<W>::F& b, Numbers<I...>) {
  const auto even = __builtin_shufflevector(a, b, (2 * I)...);
  b = __builtin_shufflevector(a, b, (2 * I + 1)...);
  a = even;
}

template <int W, int... I>
[[gnu::always_inline]] inline void join(typename Simd<W>::F& a, typename Simd<W>::F& b, Numbers<I...>) {
  const auto first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * W)...);
  b = __builtin_shufflevector(a, b, (W / 2 + I / 2 + I % 2 * W)...);
  a = first;
}

template <int W, int... I>
[[gnu::always_inline]] inline typename Simd<W>::F swap_neighbours(typename Simd<W>::F value, Numbers<I...>) {
  return __builtin_shufflevector(value, value, (I ^ 1)...);
}

// Lanes 1, 0, 3, 2, and so on.
template <int W>
[[gnu::always_inline]] inline typename Simd<W>::F swap_neighbours(typename Simd<W>::F value) {
  return swap_neighbours<W>(value, typename Counting<W>::type{});
}

// 2 * W neighbours, a and then b, become those at even places and those at odd ones.
template <int W>
[[gnu::always_inline]] inline void part(typename Simd<W>::F& a, typename Simd<W>::F& b) {
  part<W>(a, b, typename Counting<W>::type{});
}

// The way back.
template <int W>
[[gnu::always_inline]] inline void join(typename Simd<W>::F& a, typename Simd<W>::F& b) {
  join<W>(a, b, typename Counting<W>::type{});
}

template <int W, int... I>
[[gnu::always_inline]] inline void part_fours(typename Simd<W>::F& a, typename Simd<W>::F& b, Numbers<I...>) {
  const auto first = __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4)...);
  b = __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4 + 4)...);
  a = first;
}

// Of each eight of 2 * W neighbours, a and then b, the first four and the last four.
template <int W>
[[gnu::always_inline]] inline void part_fours(typename Simd<W>::F& a, typename Simd<W>::F& b) {
  part_fours<W>(a, b, typename Counting<W>::type{});
}

// Those four (Half: the last four) of each eight words of b, every word behind one of a: within 128 bits, so one instruction.
template <int Half, typename Words, int... I>
[[gnu::always_inline]] inline Words join_fours(Words a, Words b, Numbers<I...>) {
  constexpr int kWords = sizeof...(I);
  return __builtin_shufflevector(a, b, (I / 8 * 8 + Half * 4 + I % 8 / 2 + I % 2 * kWords)...);
}

}  // namespace latentkv::LATENTKV_ISA
