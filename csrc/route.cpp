#include "route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace latentkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Keeps the division of normalised weights finite when every chosen score underflowed to zero.
constexpr float kTiny = 1e-20f;

void softmax(const float* logits, std::vector<float>& scores) {
  const std::int64_t count = static_cast<std::int64_t>(scores.size());
  const float top = *std::max_element(logits, logits + count);
  float sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - top);
  for (float& score : scores) score /= sum;
}

void sigmoid(const float* logits, std::vector<float>& scores) {
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = 1.0f / (1.0f + std::exp(-logits[i]));
}

// Indices of the `count` largest, the largest first, of equal ones the lower. A NaN ranks highest, as torch sorts it: no order
// would be one otherwise.
void best(const float* values, std::int64_t size, std::int64_t count, std::vector<std::int64_t>& order) {
  const auto rank = [values](std::int64_t i) { return std::isnan(values[i]) ? kInfinity : values[i]; };
  order.resize(size);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](std::int64_t a, std::int64_t b) {
    return rank(a) != rank(b) ? rank(a) > rank(b) : a < b;
  });
}

// One token after the other, with the memory of the one before.
class Router {
 public:
  Router(const Routing& routing, std::int64_t experts) : routing_(routing), scores_(experts), ranked_(experts) {}

  void run(const float* logits, std::int64_t* chosen, float* weights) {
    routing_.sigmoid ? sigmoid(logits, scores_) : softmax(logits, scores_);
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      ranked_[i] = scores_[i] + (routing_.bias == nullptr ? 0.0f : routing_.bias[i]);
    }
    if (routing_.best_groups < routing_.groups) drop_other_groups();
    best(ranked_.data(), static_cast<std::int64_t>(ranked_.size()), routing_.chosen, order_);
    std::copy_n(order_.begin(), routing_.chosen, chosen);
    weigh(chosen, weights);
  }

 private:
  // Ranks of experts outside of the best groups become -inf.
  void drop_other_groups() {
    const std::int64_t size = static_cast<std::int64_t>(ranked_.size()) / routing_.groups;
    group_scores_.resize(routing_.groups);
    for (std::int64_t group = 0; group < routing_.groups; ++group) {
      const float* of_group = ranked_.data() + group * size;
      best(of_group, size, routing_.group_terms, order_);
      group_scores_[group] = 0;
      for (std::int64_t i = 0; i < routing_.group_terms; ++i) group_scores_[group] += of_group[order_[i]];
    }
    best(group_scores_.data(), routing_.groups, routing_.best_groups, order_);
    for (auto dropped = order_.begin() + routing_.best_groups; dropped != order_.end(); ++dropped) {
      std::fill_n(ranked_.begin() + *dropped * size, size, -kInfinity);
    }
  }

  void weigh(const std::int64_t* chosen, float* weights) const {
    float sum = 0;
    for (std::int64_t i = 0; i < routing_.chosen; ++i) sum += weights[i] = scores_[chosen[i]];
    for (std::int64_t i = 0; i < routing_.chosen; ++i) {
      if (routing_.normalised) weights[i] /= sum + kTiny;
      weights[i] *= routing_.factor;
    }
  }

  const Routing& routing_;
  std::vector<float> scores_, ranked_, group_scores_;
  std::vector<std::int64_t> order_;
};

}  // namespace

void route(const float* logits, std::int64_t tokens, std::int64_t experts, const Routing& routing, std::int64_t* chosen,
           float* weights) {
  Router router(routing, experts);
  for (std::int64_t t = 0; t < tokens; ++t) {
    router.run(logits + t * experts, chosen + t * routing.chosen, weights + t * routing.chosen);
  }
}

}  // namespace latentkv
