#include <cstdlib>
#include <memory>
#include <vector>

#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::bf16};
// A job's sums stay in a core's cache: longer inputs are several jobs.
constexpr std::int64_t kJobRows = 384;

// A checked weight that keeps its arrays alive: what Python hands over with every call.
struct Weight {
  LinearWeight first;       // the first of `count` equal maps
  std::int64_t count;       // 1, or one for each head
  std::int64_t step;        // elements from one map to the next
  nb::object kept;

  LinearWeight at(std::int64_t index) const {
    LinearWeight weight = first;
    weight.data = static_cast<const char*>(first.data) + index * step * (first.format == WeightFormat::f32 ? 4 : 2);
    return weight;
  }
};

void set_bias(LinearWeight& weight, nb::handle bias) {
  if (bias.is_none()) return;
  const Array array = vector_of(bias, "bias", kFloats);
  expect_size("bias", weight.rows, array.shape[0]);
  if (array.shape[0] > 1 && array.stride[0] != 1) throw Declined("bias: strided");
  weight.bias = array.data;
  weight.bias_dtype = array.dtype;
}

// [out, in] or [heads, out, in]; with `transposed`, [.., in, out].
Weight float_weight(nb::object data, nb::object bias, bool transposed) {
  const Array array = array_of(data, "weight");
  if (array.ndim != 2 && array.ndim != 3) refuse("weight", "2 or 3 dimensions", std::to_string(array.ndim));
  if (array.dtype != DType::f32 && array.dtype != DType::bf16) throw Declined("weight: no native kernel for this dtype");
  const int out = array.ndim - (transposed ? 1 : 2), in = array.ndim - (transposed ? 2 : 1);
  Weight weight{};
  weight.first.format = array.dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
  weight.first.rows = array.shape[out];
  weight.first.cols = array.shape[in];
  weight.first.data = array.data;
  weight.first.row_stride = array.stride[out];
  weight.first.col_stride = array.stride[in];
  // A dimension of one element may have any stride.
  if (weight.first.cols <= 1) weight.first.col_stride = 1;
  if (weight.first.rows <= 1 && weight.first.col_stride != 1) weight.first.row_stride = 1;
  if (weight.first.row_stride != 1 && weight.first.col_stride != 1) throw Declined("weight: strided both ways");
  weight.count = array.ndim == 3 ? array.shape[0] : 1;
  weight.step = array.ndim == 3 ? array.stride[0] : 0;
  set_bias(weight.first, bias);
  weight.kept = nb::make_tuple(data, bias);
  return weight;
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
  Weight weight{};
  weight.count = 1;
  LinearWeight& first = weight.first;
  first.format = array.dtype == DType::i8 ? WeightFormat::int8 : WeightFormat::int4;
  first.rows = rows;
  first.cols = cols;
  first.group = group;
  first.zero = zero;
  if (group < 16 || group > 128 || group % 16 != 0 || cols % group != 0) {
    refuse("group", "16, 32, 64 or 128 and a divisor of the inputs", std::to_string(group));
  }
  std::int64_t elements = array.ndim == 0 ? 0 : 1;
  for (int i = array.ndim - 1; i >= 0; --i) {
    if (array.shape[i] > 1 && array.stride[i] != elements) refuse("codes", "an adjacent array", "a strided one");
    elements *= array.shape[i];
  }
  const std::int64_t all = (rows + kPanelRows - 1) / kPanelRows * kPanelRows * cols;
  expect_size("bytes of codes", array.dtype == DType::i8 ? all : all / 2, elements);
  const Array scale = group_values(scales, "scales", first);
  first.data = array.data;
  first.scales = scale.data;
  first.scale_dtype = scale.dtype;
  if (!minima.is_none()) {
    const Array least = group_values(minima, "minima", first);
    if (least.dtype != scale.dtype) refuse("minima", "the dtype of scales", "another");
    first.minima = least.data;
  }
  set_bias(first, bias);
  weight.kept = nb::make_tuple(codes, scales, minima, bias);
  return weight;
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

void run(const Isa& isa, const std::vector<LinearJob>& jobs, bool integer, int threads) {
  LinearParams p{jobs.data(), static_cast<std::int64_t>(jobs.size()), integer, threads < 1 ? 1 : threads, nullptr};
  if (jobs.empty()) return;
  nb::gil_scoped_release unlocked;
  const std::int64_t bytes = (isa.kernels->linear_scratch(p) + 63) / 64 * 64;
  const std::unique_ptr<char, Free> scratch(static_cast<char*>(std::aligned_alloc(64, bytes)));
  if (scratch == nullptr) throw std::bad_alloc();
  p.scratch = scratch.get();
  isa.kernels->linear(p);
}

char* row_of(const Matrix& matrix, std::int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.stride * (matrix.dtype == DType::f32 ? 4 : 2);
}

Matrix rows_of(const Matrix& matrix, std::int64_t first, std::int64_t count) {
  return {row_of(matrix, first), matrix.dtype, count, matrix.cols, matrix.stride};
}

void check_job(const LinearJob& job) {
  expect_size("inputs", job.weight->cols, job.x.cols);
  expect_size("outputs", job.weight->rows, job.out.cols);
  expect_size("rows of out", job.x.rows, job.out.rows);
  if (job.gate != nullptr) {
    const LinearWeight &a = *job.weight, &b = *job.gate;
    expect_size("outputs of the gate", a.rows, b.rows);
    expect_size("inputs of the gate", a.cols, b.cols);
    const bool alike = a.format == b.format && a.group == b.group && (a.col_stride == 1) == (b.col_stride == 1);
    if (!alike) throw Declined("gate: another format than the weight");
  }
  if (job.residual.data != nullptr) {
    expect_size("rows of the residual", job.out.rows, job.residual.rows);
    expect_size("columns of the residual", job.out.cols, job.residual.cols);
  }
}

// The job in parts of kJobRows rows.
void add_job(std::vector<LinearJob>& jobs, const LinearJob& job) {
  check_job(job);
  if (job.out.cols == 0) return;
  for (std::int64_t row = 0; row < job.x.rows; row += kJobRows) {
    const std::int64_t count = job.x.rows - row < kJobRows ? job.x.rows - row : kJobRows;
    LinearJob part = job;
    part.x = rows_of(job.x, row, count);
    part.out = rows_of(job.out, row, count);
    if (job.residual.data != nullptr) part.residual = rows_of(job.residual, row, count);
    jobs.push_back(part);
  }
}

const LinearWeight* weight_of(nb::handle object) {
  const Weight& weight = nb::cast<const Weight&>(object);
  expect_size("maps in a weight", 1, weight.count);
  return &weight.first;
}

void set_norm(LinearJob& job, nb::handle norm, float eps) {
  if (norm.is_none()) return;
  const Array array = vector_of(norm, "norm", kFloats);
  expect_size("norm", job.x.cols, array.shape[0]);
  if (array.shape[0] > 1 && array.stride[0] != 1) throw Declined("norm: strided");
  job.norm = array.data;
  job.norm_dtype = array.dtype;
  job.eps = eps;
}

// outs[i] = factor * (x weights[i]ᵀ + bias) + residual.
void linear(const Isa& isa, nb::handle x, nb::tuple weights, nb::tuple outs, nb::handle residual, float factor,
            nb::handle norm, float eps, bool integer, int threads) {
  if (weights.size() != outs.size()) refuse("outs", std::to_string(weights.size()), std::to_string(outs.size()));
  LinearJob job{};
  job.x = matrix_of(x, "x", kFloats);
  job.factor = factor;
  set_norm(job, norm, eps);
  if (!residual.is_none()) job.residual = matrix_of(residual, "residual", kFloats);
  std::vector<LinearJob> jobs;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    job.weight = weight_of(weights[i]);
    job.out = matrix_of(outs[i], "out", kFloats);
    add_job(jobs, job);
  }
  run(isa, jobs, integer, threads);
}

// out = silu(x gateᵀ) * (x upᵀ).
void linear_gated(const Isa& isa, nb::handle x, nb::handle gate, nb::handle up, nb::handle out, nb::handle norm,
                  float eps, bool integer, int threads) {
  LinearJob job{};
  job.x = matrix_of(x, "x", kFloats);
  job.factor = 1.0f;
  job.weight = weight_of(up);
  job.gate = weight_of(gate);
  job.out = matrix_of(out, "out", kFloats);
  set_norm(job, norm, eps);
  std::vector<LinearJob> jobs;
  add_job(jobs, job);
  run(isa, jobs, integer, threads);
}

// [tokens, heads, n] with an adjacent last dimension: the rows of one head.
Matrix head_rows(const Array& array, const char* name, std::int64_t head) {
  if (array.dtype != DType::f32 && array.dtype != DType::bf16) {
    throw Declined(std::string(name) + ": no native kernel for this dtype");
  }
  if (array.shape[2] > 1 && array.stride[2] != 1) throw Declined(std::string(name) + ": last dimension is strided");
  char* data = static_cast<char*>(array.data) + head * array.stride[1] * (array.dtype == DType::f32 ? 4 : 2);
  return {data, array.dtype, array.shape[0], array.shape[2], array.stride[0]};
}

// out[:, h] = x[:, h] weight[h]ᵀ for every head h.
void linear_heads(const Isa& isa, nb::handle x, nb::handle weight, nb::handle out, int threads) {
  const Weight& maps = nb::cast<const Weight&>(weight);
  const Array from = array_of(x, "x"), to = array_of(out, "out");
  if (from.ndim != 3 || to.ndim != 3) refuse("x and out", "[tokens, heads, n]", "another number of dimensions");
  expect_size("heads of x", maps.count, from.shape[1]);
  expect_size("heads of out", maps.count, to.shape[1]);
  std::vector<LinearWeight> weights;
  for (std::int64_t head = 0; head < maps.count; ++head) weights.push_back(maps.at(head));
  std::vector<LinearJob> jobs;
  for (std::int64_t head = 0; head < maps.count; ++head) {
    LinearJob job{};
    job.x = head_rows(from, "x", head);
    job.out = head_rows(to, "out", head);
    job.weight = &weights[static_cast<std::size_t>(head)];
    job.factor = 1.0f;
    add_job(jobs, job);
  }
  run(isa, jobs, false, threads);
}

// Rows of x in stretches, counts[i] of them for weights[i]: out = x weightᵀ, or silu(x gateᵀ) * (x weightᵀ).
void linear_groups(const Isa& isa, nb::handle x, nb::tuple counts, nb::tuple weights, nb::handle gates, nb::handle out,
                   bool integer, int threads) {
  const Matrix from = matrix_of(x, "x", kFloats), to = matrix_of(out, "out", kFloats);
  if (weights.size() != counts.size()) refuse("counts", std::to_string(weights.size()), std::to_string(counts.size()));
  std::vector<LinearJob> jobs;
  std::int64_t row = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto count = nb::cast<std::int64_t>(counts[i]);
    if (count < 0 || row + count > from.rows || row + count > to.rows) refuse("counts", "the rows of x", "more");
    LinearJob job{};
    job.x = rows_of(from, row, count);
    job.out = rows_of(to, row, count);
    job.weight = weight_of(weights[i]);
    if (!gates.is_none()) job.gate = weight_of(nb::borrow<nb::tuple>(gates)[i]);
    job.factor = 1.0f;
    add_job(jobs, job);
    row += count;
  }
  expect_size("rows of x", row, from.rows);
  run(isa, jobs, integer, threads);
}

}  // namespace

void bind_linear(nb::module_& module, nb::class_<Isa>& isa) {
  nb::class_<Weight>(module, "Weight")
      .def_prop_ro("rows", [](const Weight& self) { return self.first.rows; })
      .def_prop_ro("cols", [](const Weight& self) { return self.first.cols; });
  module.def("float_weight", &float_weight, nb::arg("data"), nb::arg("bias").none() = nb::none(),
             nb::arg("transposed") = false);
  module.def("grouped_weight", &grouped_weight, nb::arg("codes"), nb::arg("scales"), nb::arg("minima").none(),
             nb::arg("bias").none(), nb::arg("rows"), nb::arg("cols"), nb::arg("group"), nb::arg("zero"));
  isa.def("linear", &linear, nb::arg("x"), nb::arg("weights"), nb::arg("outs"), nb::arg("residual").none(),
          nb::arg("factor"), nb::arg("norm").none(), nb::arg("eps"), nb::arg("integer"), nb::arg("threads"));
  isa.def("linear_gated", &linear_gated, nb::arg("x"), nb::arg("gate"), nb::arg("up"), nb::arg("out"),
          nb::arg("norm").none(), nb::arg("eps"), nb::arg("integer"), nb::arg("threads"));
  isa.def("linear_heads", &linear_heads, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("threads"));
  isa.def("linear_groups", &linear_groups, nb::arg("x"), nb::arg("counts"), nb::arg("weights"), nb::arg("gates").none(),
          nb::arg("out"), nb::arg("integer"), nb::arg("threads"));
}

}  // namespace latentkv
