// What this core can do at best, for benchmarks to compare with: multiply-adds in registers, and reading memory.
#pragma once

#include "vec.h"

namespace latentkv::LATENTKV_ISA {

// `rounds` of independent multiply-adds on as many registers as the attention tiles use. Returns their sum, so that the
// compiler keeps them; fma_burst_flops() of them are floating-point operations.
template <int W>
constexpr int kBurst = W == 16 ? 24 : 12;

template <int W>
float fma_burst(std::int64_t rounds) {
  using S = Simd<W>;
  typename S::F value[kBurst<W>];
  const auto factor = S::broadcast(0.999f), term = S::broadcast(1e-3f);
#pragma GCC unroll 32
  for (int i = 0; i < kBurst<W>; ++i) value[i] = S::broadcast(1e-3f * i);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < kBurst<W>; ++i) value[i] = S::fma(value[i], factor, term);
  }
  auto total = S::zero();
#pragma GCC unroll 32
  for (int i = 0; i < kBurst<W>; ++i) total += value[i];
  return S::sum(total);
}

template <int W>
std::int64_t fma_burst_flops(std::int64_t rounds) {
  return rounds * kBurst<W> * W * 2;
}

// Reads `count` floats (a multiple of 8 * W is read) and returns their sum.
template <int W>
float read_burst(const float* from, std::int64_t count) {
  using S = Simd<W>;
  constexpr int kStreams = 8;
  typename S::F total[kStreams] = {};
  for (std::int64_t i = 0; i + kStreams * W <= count; i += kStreams * W) {
#pragma GCC unroll 32
    for (int s = 0; s < kStreams; ++s) total[s] += S::load(from + i + s * W);
  }
#pragma GCC unroll 32
  for (int s = 1; s < kStreams; ++s) total[0] += total[s];
  return S::sum(total[0]);
}

}  // namespace latentkv::LATENTKV_ISA
