#include "bindings/routing.h"

#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

const float* bias_of(nb::handle object, std::int64_t experts) {
  if (object.is_none()) return nullptr;
  const Array bias = vector_of(object, "bias", {DType::f32});
  expect_size("elements of bias", experts, bias.shape[0]);
  if (experts > 1 && bias.stride[0] != 1) throw Declined("bias: strided");
  return static_cast<const float*>(bias.data);
}

RoutingRule routing_rule(std::int64_t experts, std::int64_t chosen, std::int64_t groups, std::int64_t best_groups,
                         std::int64_t group_terms, bool sigmoid, bool normalised, float factor, nb::object bias) {
  if (groups < 1 || experts % groups != 0) refuse("groups", "a divisor of the experts", std::to_string(groups));
  const std::int64_t size = experts / groups;
  if (best_groups < 1 || best_groups > groups) refuse("best_groups", "1 to groups", std::to_string(best_groups));
  if (group_terms < 1 || group_terms > size) refuse("group_terms", "1 to a group's experts", std::to_string(group_terms));
  if (chosen < 1 || chosen > best_groups * size) refuse("chosen", "experts in reach", std::to_string(chosen));
  return {{chosen, groups, best_groups, group_terms, sigmoid, normalised, factor, bias_of(bias, experts)}, experts, bias};
}

// [tokens, cols] without gaps.
Matrix whole(nb::handle object, const char* name, DType dtype, std::int64_t tokens, std::int64_t cols) {
  const Matrix matrix = matrix_of(object, name, {dtype});
  expect_size(name, tokens, matrix.rows);
  expect_size(name, cols, matrix.cols);
  if (tokens > 1 && matrix.stride != cols) throw Declined(std::string(name) + ": strided");
  return matrix;
}

void route_tokens(const RoutingRule& rule, nb::handle logits, nb::handle experts, nb::handle weights) {
  const std::int64_t tokens = matrix_of(logits, "logits", {DType::f32}).rows;
  const Matrix from = whole(logits, "logits", DType::f32, tokens, rule.experts);
  const Matrix chosen = whole(experts, "experts", DType::i64, tokens, rule.routing.chosen);
  const Matrix weighed = whole(weights, "weights", DType::f32, tokens, rule.routing.chosen);
  nb::gil_scoped_release unlocked;
  route(static_cast<const float*>(from.data), tokens, rule.experts, rule.routing, static_cast<std::int64_t*>(chosen.data),
        static_cast<float*>(weighed.data));
}

}  // namespace

void bind_route(nb::module_& module) {
  nb::class_<RoutingRule>(module, "RoutingRule");
  module.def("routing_rule", &routing_rule, nb::kw_only(), nb::arg("experts"), nb::arg("chosen"), nb::arg("groups"),
             nb::arg("best_groups"), nb::arg("group_terms"), nb::arg("sigmoid"), nb::arg("normalised"), nb::arg("factor"),
             nb::arg("bias").none());
  module.def("route", &route_tokens, nb::arg("rule"), nb::arg("logits"), nb::arg("experts"), nb::arg("weights"),
             "Chooses experts [T, chosen] int64 and their weights [T, chosen] float32 from logits [T, experts] float32.");
}

}  // namespace latentkv
