// Which experts a token goes to. Reference: `choose` in src/latentkv/ops/moe.py. A few hundred scores for a token: nothing
// here depends on the instruction set.
#pragma once

#include <cstdint>

namespace latentkv {

struct Routing {
  std::int64_t chosen;               // experts of a token
  std::int64_t groups, best_groups;  // equal where groups restrict nothing
  std::int64_t group_terms;          // so many of a group's best scores, added up, rank it
  bool sigmoid;                      // scores; else softmax
  bool normalised;                   // weights are divided by their sum
  float factor;                      // on every weight, last
  const float* bias;                 // [experts], of ranks and not of weights, or null
};

// logits [tokens, experts]; chosen and weights [tokens, routing.chosen], by falling rank, of equal ones the lower first.
void route(const float* logits, std::int64_t tokens, std::int64_t experts, const Routing& routing, std::int64_t* chosen,
           float* weights);

}  // namespace latentkv
