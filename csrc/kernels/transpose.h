// W vectors of W floats, transposed in registers.
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

}  // namespace latentkv::LATENTKV_ISA
