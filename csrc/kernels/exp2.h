// 2 to the power of x, for the softmax: what it needs and no more.
#pragma once

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

// 2**x for x <= 0, relative error below 2 ** -23; exactly 1 at 0, exactly 0 below -127 (so -inf too), NaN for NaN.
// x = n + f with n whole and |f| <= 1/2; a polynomial of degree 6 for 2**f (minimax, relative error 2e-9), n into the
// exponent. Adding 1.5 * 2**23 leaves n in the low bits of the sum; at n = -127 the exponent's bits are those of zero.
template <int W>
[[gnu::always_inline]] inline typename Simd<W>::F exp2_nonpositive(typename Simd<W>::F x) {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;
  constexpr float kRound = 12582912.0f;
  const F lowest = S::broadcast(-127.0f);
  x = x < lowest ? lowest : x;
  const F shifted = x + kRound;
  const F f = x - (shifted - kRound);
  const U exponent = ((U)shifted + 127u) << 23;
  F power = S::broadcast(1.5345811586551782e-4f);
  constexpr float kTerms[] = {1.3399931215828712e-3f, 9.618488958659655e-3f, 5.5503287769755466e-2f,
                              2.4022646890630834e-1f, 6.931472057372616e-1f, 1.0f};
  for (const float term : kTerms) {
    power = S::fma(power, f, S::broadcast(term));
  }
  return power * (F)exponent;
}

}  // namespace latentkv::LATENTKV_ISA
