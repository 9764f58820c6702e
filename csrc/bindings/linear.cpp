#include "bindings/linear.h"

#include "bindings/arguments.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

void set_bias(LinearWeight& weight, nb::handle bias) {
  if (bias.is_none()) return;
  const Array array = weight_of(bias, "bias", weight.rows);
  weight.bias = array.data;
  weight.bias_dtype = array.dtype;
}

// data [out, in], the last dimension adjacent.
Weight float_weight(nb::object data, nb::object bias) {
  const Matrix matrix = matrix_of(data, "weight", kFloats);
  LinearWeight map{};
  map.format = matrix.dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
  map.rows = matrix.rows;
  map.cols = matrix.cols;
  map.data = matrix.data;
  map.row_stride = matrix.stride;
  set_bias(map, bias);
  return {map, nb::make_tuple(data, bias)};
}

// One value for each output (padded) and group: [panels, groups, 16], adjacent.
Array group_values(nb::handle object, const char* name, const LinearWeight& weight) {
  const Array array = array_of(object, name);
  const bool known = array.dtype == DType::f32 || array.dtype == DType::bf16 || array.dtype == DType::f16;
  if (!known) throw Declined(std::string(name) + ": no native kernel for this dtype");
  const std::int64_t panels = (weight.rows + kPanelRows - 1) / kPanelRows, groups = weight.cols / weight.group;
  const bool fits = array.ndim == 3 && array.shape[0] == panels && array.shape[1] == groups && array.shape[2] == kPanelRows;
  const bool adjacent = fits && array.stride[2] == 1 && (groups == 1 || array.stride[1] == kPanelRows) &&
                        (panels == 1 || array.stride[0] == groups * kPanelRows);
  if (!adjacent) refuse(name, "[panels, groups, 16], adjacent", "another");
  return array;
}

Weight grouped_weight(nb::object codes, nb::object scales, nb::object minima, nb::object bias, std::int64_t rows,
                      std::int64_t cols, std::int64_t group, int zero) {
  const Array array = array_of(codes, "codes");
  if (array.dtype != DType::i8 && array.dtype != DType::u8) refuse("codes", "int8 (int8) or uint8 (int4)", "another dtype");
  LinearWeight map{};
  map.format = array.dtype == DType::i8 ? WeightFormat::int8 : WeightFormat::int4;
  map.rows = rows;
  map.cols = cols;
  map.group = group;
  map.zero = zero;
  if ((group != 16 && group != 32 && group != 64 && group != 128) || cols % group != 0) {
    refuse("group", "16, 32, 64 or 128 and a divisor of the inputs", std::to_string(group));
  }
  std::int64_t elements = array.ndim == 0 ? 0 : 1;
  for (int i = array.ndim - 1; i >= 0; --i) {
    if (array.shape[i] > 1 && array.stride[i] != elements) refuse("codes", "an adjacent array", "a strided one");
    elements *= array.shape[i];
  }
  const std::int64_t all = (rows + kPanelRows - 1) / kPanelRows * kPanelRows * cols;
  expect_size("bytes of codes", array.dtype == DType::i8 ? all : all / 2, elements);
  const Array scale = group_values(scales, "scales", map);
  map.data = array.data;
  map.scales = scale.data;
  map.scale_dtype = scale.dtype;
  if (!minima.is_none()) {
    const Array least = group_values(minima, "minima", map);
    if (least.dtype != scale.dtype) refuse("minima", "the dtype of scales", "another");
    map.minima = least.data;
  }
  set_bias(map, bias);
  return {map, nb::make_tuple(codes, scales, minima, bias)};
}

void run(LinearCall& call) {
  nb::gil_scoped_release unlocked;
  Buffer scratch;
  call.run(scratch);
}

// outs[i] = factor * (x weights[i]ᵀ + bias) + residual.
void linear(const Isa& isa, nb::handle x, nb::tuple weights, nb::tuple outs, nb::handle residual, float factor,
            nb::handle norm, float eps, bool integer, bool narrow, int threads) {
  if (weights.size() != outs.size()) refuse("outs", std::to_string(weights.size()), std::to_string(outs.size()));
  LinearJob job{};
  job.x = matrix_of(x, "x", kFloats);
  job.factor = factor;
  job.norm = norm_of(norm, "norm", job.x.cols, eps);
  if (!residual.is_none()) job.residual = matrix_of(residual, "residual", kFloats);
  LinearCall call(isa, integer, narrow, threads);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    job.weight = &map_of(weights[i]);
    job.out = matrix_of(outs[i], "out", kFloats);
    call.add(job);
  }
  run(call);
}

// out = silu(x gateᵀ) * (x upᵀ).
void linear_gated(const Isa& isa, nb::handle x, nb::handle gate, nb::handle up, nb::handle out, nb::handle norm,
                  float eps, bool integer, bool narrow, int threads) {
  LinearJob job{};
  job.x = matrix_of(x, "x", kFloats);
  job.factor = 1.0f;
  job.weight = &map_of(up);
  job.gate = &map_of(gate);
  job.out = matrix_of(out, "out", kFloats);
  job.norm = norm_of(norm, "norm", job.x.cols, eps);
  LinearCall call(isa, integer, narrow, threads);
  call.add(job);
  run(call);
}

// Rows of x in stretches, counts[i] of them for weights[i]: out = x weightᵀ, or silu(x gateᵀ) * (x weightᵀ).
void linear_groups(const Isa& isa, nb::handle x, nb::tuple counts, nb::tuple weights, nb::handle gates, nb::handle out,
                   bool integer, bool narrow, int threads) {
  const Matrix from = matrix_of(x, "x", kFloats), to = matrix_of(out, "out", kFloats);
  if (weights.size() != counts.size()) refuse("counts", std::to_string(weights.size()), std::to_string(counts.size()));
  LinearCall call(isa, integer, narrow, threads);
  std::int64_t row = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto count = nb::cast<std::int64_t>(counts[i]);
    if (count < 0 || row + count > from.rows || row + count > to.rows) refuse("counts", "the rows of x", "more");
    LinearJob job{};
    job.x = rows_of(from, row, count);
    job.out = rows_of(to, row, count);
    job.weight = &map_of(weights[i]);
    if (!gates.is_none()) job.gate = &map_of(nb::borrow<nb::tuple>(gates)[i]);
    job.factor = 1.0f;
    call.add(job);
    row += count;
  }
  expect_size("rows of x", row, from.rows);
  run(call);
}

}  // namespace

const LinearWeight& map_of(nb::handle object) { return nb::cast<const Weight&>(object).map; }

void bind_linear(nb::module_& module, nb::class_<Isa>& isa) {
  nb::class_<Weight>(module, "Weight")
      .def_prop_ro("rows", [](const Weight& self) { return self.map.rows; })
      .def_prop_ro("cols", [](const Weight& self) { return self.map.cols; });
  module.def("float_weight", &float_weight, nb::arg("data"), nb::arg("bias").none());
  module.def("grouped_weight", &grouped_weight, nb::arg("codes"), nb::arg("scales"), nb::arg("minima").none(),
             nb::arg("bias").none(), nb::arg("rows"), nb::arg("cols"), nb::arg("group"), nb::arg("zero"));
  isa.def("linear", &linear, nb::arg("x"), nb::arg("weights"), nb::arg("outs"), nb::arg("residual").none(),
          nb::arg("factor"), nb::arg("norm").none(), nb::arg("eps"), nb::arg("integer"), nb::arg("narrow"), nb::arg("threads"));
  isa.def("linear_gated", &linear_gated, nb::arg("x"), nb::arg("gate"), nb::arg("up"), nb::arg("out"),
          nb::arg("norm").none(), nb::arg("eps"), nb::arg("integer"), nb::arg("narrow"), nb::arg("threads"));
  isa.def("linear_groups", &linear_groups, nb::arg("x"), nb::arg("counts"), nb::arg("weights"), nb::arg("gates").none(),
          nb::arg("out"), nb::arg("integer"), nb::arg("narrow"), nb::arg("threads"));
}

}  // namespace latentkv
