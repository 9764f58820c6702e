#include <algorithm>
#include <cstring>
#include <nanobind/stl/unique_ptr.h>
#include <numeric>
#include <vector>

#include "bindings/block.h"
#include "bindings/ops.h"
#include "bindings/routing.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// One SwiGLU block.
struct Gated {
  LinearWeight gate, up, down;
};

// The parts of one layer's experts; models/feedforward.py says what they are.
struct RoutedParts {
  Norm norm;
  LinearWeight router;
  Routing routing;
  std::vector<Gated> experts;
  bool has_shared;
  Gated shared;
  float factor;
};

// One call's matrices. A pair is a token and one of its experts; pairs lie sorted by expert.
struct RoutedPlaces {
  Matrix normed, logits, taken, inner, out, shared_inner, shared_out;
  std::int64_t *chosen, *pairs;  // pairs: token * routing.chosen + which of its experts
  float *weights, *total;
};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float widened(float value) { return value; }
float widened(bf16 value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

void store(float value, float* to) { *to = value; }
// The nearest, ties to even. A NaN stays one: rounding its bits could make it an infinity.
void store(float value, bf16* to) {
  const std::uint32_t bits = bits_of(value);
  to->bits = static_cast<std::uint16_t>((value != value ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename T>
float rounded(float value) {
  T result;
  store(value, &result);
  return widened(result);
}

template <typename T>
T* row_of(const Matrix& matrix, std::int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.stride;
}

// A mixture of experts: hidden += factor * (what a token's experts make of it, weighted, and the shared one).
class RoutedBlock final : public Block {
 public:
  RoutedBlock(RoutedParts parts, nb::object kept) : p_(std::move(parts)), kept_(kept) {}

  void check(const BlockStep& step) const override { expect_size("hidden", p_.router.cols, step.hidden.cols); }

  bool run(const BlockStep& step, BlockMemory& memory) const override {
    const RoutedPlaces at = place(step, memory);
    normalise(step, at);
    choose(memory, at);
    memory.lap(BlockPart::weights);
    take(at);
    memory.lap(BlockPart::rows);
    multiply(memory, at);
    memory.lap(BlockPart::weights);
    step.hidden.dtype == DType::f32 ? add<float>(step.hidden, at) : add<bf16>(step.hidden, at);
    memory.lap(BlockPart::rows);
    return true;
  }

 private:
  RoutedPlaces place(const BlockStep& step, BlockMemory& memory) const {
    const std::int64_t tokens = step.hidden.rows, cols = step.hidden.cols, pairs = tokens * p_.routing.chosen;
    const std::int64_t experts = p_.router.rows, width = p_.experts.front().up.rows;
    const std::int64_t shared = p_.has_shared ? p_.shared.up.rows : 0;
    const DType dtype = step.hidden.dtype;
    Activations parts;
    const auto part = [&](std::int64_t rows, std::int64_t width, DType type) { return parts.add(rows * width, type); };
    const std::int64_t normed = part(tokens, cols, dtype), logits = part(tokens, experts, DType::f32),
                       taken = part(pairs, cols, dtype), inner = part(pairs, width, dtype), out = part(pairs, cols, dtype),
                       shared_inner = part(tokens, shared, dtype), shared_out = part(tokens, shared > 0 ? cols : 0, dtype),
                       chosen = part(pairs, 1, DType::i64), order = part(pairs, 1, DType::i64),
                       weights = part(pairs, 1, DType::f32), total = part(1, cols, DType::f32);
    parts.place(memory.activations);
    return {adjacent(parts.at(normed), dtype, tokens, cols),
            adjacent(parts.at(logits), DType::f32, tokens, experts),
            adjacent(parts.at(taken), dtype, pairs, cols),
            adjacent(parts.at(inner), dtype, pairs, width),
            adjacent(parts.at(out), dtype, pairs, cols),
            adjacent(parts.at(shared_inner), dtype, tokens, shared),
            adjacent(parts.at(shared_out), dtype, tokens, cols),
            static_cast<std::int64_t*>(parts.at(chosen)),
            static_cast<std::int64_t*>(parts.at(order)),
            static_cast<float*>(parts.at(weights)),
            static_cast<float*>(parts.at(total))};
  }

  void normalise(const BlockStep& step, const RoutedPlaces& at) const {
    RmsNormParams p{};
    p.x = step.hidden;
    p.weight = p_.norm.weight;
    p.weight_dtype = p_.norm.dtype;
    p.eps = p_.norm.eps;
    p.out = at.normed;
    step.isa.kernels->rms_norm(p);
  }

  // The shared expert's first half reads the same x as the router.
  void choose(BlockMemory& memory, const RoutedPlaces& at) const {
    memory.linear.add({at.normed, &p_.router, nullptr, at.logits, {}, 1.0f, {}});
    if (p_.has_shared) memory.linear.add({at.normed, &p_.shared.up, &p_.shared.gate, at.shared_inner, {}, 1.0f, {}});
    memory.linear.run(memory.scratch);
    route(row_of<float>(at.logits, 0), at.normed.rows, p_.router.rows, p_.routing, at.chosen, at.weights);
  }

  // Each pair's x, sorted by expert and within one by token.
  void take(const RoutedPlaces& at) const {
    const std::int64_t pairs = at.taken.rows, row_bytes = at.normed.cols * bytes_of(at.normed.dtype);
    std::iota(at.pairs, at.pairs + pairs, std::int64_t{0});
    std::sort(at.pairs, at.pairs + pairs, [&](std::int64_t a, std::int64_t b) {
      return at.chosen[a] != at.chosen[b] ? at.chosen[a] < at.chosen[b] : a < b;
    });
    for (std::int64_t i = 0; i < pairs; ++i) {
      std::memcpy(rows_of(at.taken, i, 1).data, rows_of(at.normed, at.pairs[i] / p_.routing.chosen, 1).data, row_bytes);
    }
  }

  // Experts that no token chose are not touched: they may not be in memory.
  void multiply(BlockMemory& memory, const RoutedPlaces& at) const {
    for_each_expert(at, [&](const Gated& expert, std::int64_t first, std::int64_t count) {
      memory.linear.add({rows_of(at.taken, first, count), &expert.up, &expert.gate, rows_of(at.inner, first, count), {}, 1.0f, {}});
    });
    memory.linear.run(memory.scratch);
    for_each_expert(at, [&](const Gated& expert, std::int64_t first, std::int64_t count) {
      memory.linear.add({rows_of(at.inner, first, count), &expert.down, nullptr, rows_of(at.out, first, count), {}, 1.0f, {}});
    });
    if (p_.has_shared) memory.linear.add({at.shared_inner, &p_.shared.down, nullptr, at.shared_out, {}, 1.0f, {}});
    memory.linear.run(memory.scratch);
  }

  template <typename Body>
  void for_each_expert(const RoutedPlaces& at, Body body) const {
    const auto expert_of = [&](std::int64_t pair) { return at.chosen[at.pairs[pair]]; };
    for (std::int64_t first = 0, last; first < at.taken.rows; first = last) {
      for (last = first + 1; last < at.taken.rows && expert_of(last) == expert_of(first);) ++last;
      body(p_.experts[expert_of(first)], first, last - first);
    }
  }

  // Sums in float32, by rising expert, the shared one last. `at.chosen` is no longer needed: it holds where a pair lies.
  template <typename T>
  void add(const Matrix& hidden, const RoutedPlaces& at) const {
    const std::int64_t chosen = p_.routing.chosen;
    for (std::int64_t i = 0; i < at.taken.rows; ++i) at.chosen[at.pairs[i]] = i;
    for (std::int64_t token = 0; token < hidden.rows; ++token) {
      std::int64_t* of_token = at.chosen + token * chosen;
      std::sort(of_token, of_token + chosen);
      std::fill_n(at.total, hidden.cols, 0.0f);
      for (std::int64_t i = 0; i < chosen; ++i) {
        add_row<T>(at.total, at.out, of_token[i], at.weights[at.pairs[of_token[i]]]);
      }
      if (p_.has_shared) add_row<T>(at.total, at.shared_out, token, 1.0f);
      T* to = row_of<T>(hidden, token);
      for (std::int64_t c = 0; c < hidden.cols; ++c) {
        store(widened(to[c]) + rounded<T>(rounded<T>(at.total[c]) * p_.factor), to + c);
      }
    }
  }

  template <typename T>
  static void add_row(float* total, const Matrix& from, std::int64_t row, float weight) {
    const T* values = row_of<T>(from, row);
    for (std::int64_t c = 0; c < from.cols; ++c) total[c] += widened(values[c]) * weight;
  }

  RoutedParts p_;
  nb::object kept_;
};

Gated gated_of(nb::handle object, std::int64_t hidden, std::int64_t width) {
  const auto parts = nb::cast<nb::tuple>(object);
  const Gated block{map_of(parts[0]), map_of(parts[1]), map_of(parts[2])};
  check_gate(block.up, block.gate);
  expect_size("inputs of an expert", hidden, block.up.cols);
  expect_size("inputs of down", block.up.rows, block.down.cols);
  expect_size("outputs of down", hidden, block.down.rows);
  if (width > 0) expect_size("outputs of an expert's up", width, block.up.rows);
  return block;
}

std::unique_ptr<Block> routed_block(nb::object norm, float eps, nb::object router, const RoutingRule& rule, nb::tuple experts,
                                    nb::object shared, float factor) {
  RoutedParts parts{};
  parts.router = map_of(router);
  const std::int64_t hidden = parts.router.cols;
  expect_size("experts", parts.router.rows, static_cast<std::int64_t>(experts.size()));
  expect_size("experts of the rule", parts.router.rows, rule.experts);
  parts.norm = norm_of(norm, "norm", hidden, eps);
  parts.routing = rule.routing;
  for (const nb::handle expert : experts) {
    const std::int64_t width = parts.experts.empty() ? 0 : parts.experts.front().up.rows;
    parts.experts.push_back(gated_of(expert, hidden, width));
  }
  parts.has_shared = !shared.is_none();
  if (parts.has_shared) parts.shared = gated_of(shared, hidden, 0);
  parts.factor = factor;
  return std::make_unique<RoutedBlock>(std::move(parts), nb::make_tuple(norm, router, rule.kept, experts, shared));
}

}  // namespace

void bind_routed_block(nb::module_& module) {
  module.def("routed_block", &routed_block, nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("router"), nb::arg("rule"),
             nb::arg("experts"), nb::arg("shared").none(), nb::arg("factor"));
}

}  // namespace latentkv
