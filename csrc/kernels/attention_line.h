// Softmax of one row whose scores stand side by side, tokens in the lanes: where rows are too few to fill a vector.
#pragma once

#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

// The scores of `count` tokens, of which the row sees the first `seen`, become weights 2**(score - top), up to a whole vector;
// top and total go on with them, shrink is what earlier weights are to be multiplied with.
template <int W>
void weigh_line(float* line, std::int64_t count, std::int64_t seen, float& top, float& total, float& shrink) {
  using S = Simd<W>;
  using F = typename S::F;
  const std::int64_t end = round_up(count, W);
  for (std::int64_t t = seen < 0 ? 0 : seen < count ? seen : count; t < end; ++t) line[t] = -kInfinity;
  F most = S::broadcast(top);
  for (std::int64_t t = 0; t < end; t += W) {
    const F scores = S::load(line + t);
    most = scores > most ? scores : most;
  }
  const float largest = S::largest(most), base = largest == -kInfinity ? 0.0f : largest;
  F sum{};
  for (std::int64_t t = 0; t < end; t += W) {
    const F weights = exp2_nonpositive<W>(S::load(line + t) - S::broadcast(base));
    sum += weights;
    S::store(line + t, weights);
  }
  shrink = exp2_nonpositive<W>(S::broadcast(top - base))[0];
  total = total * shrink + S::sum(sum);
  top = largest;
}

}  // namespace latentkv::LATENTKV_ISA
