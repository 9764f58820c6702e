// From sums to the result: bias, gate, factor, residual, and the dtype of the output.
#pragma once

#include "kernels/exp2.h"
#include "kernels/linear_types.h"

namespace latentkv::LATENTKV_ISA {

// g / (1 + e**-g), from the side where nothing overflows.
template <int W>
typename Simd<W>::F silu(typename Simd<W>::F g) {
  using S = Simd<W>;
  using F = typename S::F;
  const F zero = S::zero(), one = S::broadcast(1.0f);
  const F power = exp2_nonpositive<W>((g < zero ? g : -g) * 1.44269504088896341f);
  return g * ((g < zero ? power : one) / (one + power));
}

// Outputs first ... first + count - 1 of row `row`, from their sums (padded to whole vectors).
template <int W>
void finish_row(const LinearJob& job, std::int64_t row, std::int64_t first, std::int64_t count, const float* sums,
                const float* gate_sums) {
  using S = Simd<W>;
  const auto with_bias = [&](const LinearWeight& weight, typename S::F value, std::int64_t n) {
    return weight.bias == nullptr ? value : value + load_any<W>(weight.bias, weight.bias_dtype, first + n, count - n);
  };
  for (std::int64_t n = 0; n < count; n += W) {
    auto value = with_bias(*job.weight, S::load(sums + n), n);
    if (job.gate != nullptr) value = silu<W>(with_bias(*job.gate, S::load(gate_sums + n), n)) * value;
    if (job.factor != 1.0f) value = value * S::broadcast(job.factor);
    if (job.residual.data != nullptr) {
      const std::int64_t at = row * job.residual.stride + first + n;
      value = value + load_any<W>(job.residual.data, job.residual.dtype, at, count - n);
    }
    store_any<W>(job.out.data, job.out.dtype, row * job.out.stride + first + n, value, count - n);
  }
}

}  // namespace latentkv::LATENTKV_ISA
