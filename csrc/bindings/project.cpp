#include "bindings/project.h"

#include "bindings/linear.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// Of the linear kernel's streams: with more tokens than these it too has tiles.
constexpr std::int64_t kStreamTokens = 4;

using Run = void (*)(const Isa&, ProjectParams&, Buffer&);

Matrix head_of(const void* data, DType dtype, std::int64_t head_stride, std::int64_t head, std::int64_t rows, std::int64_t cols,
               std::int64_t stride) {
  const std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
  return {static_cast<char*>(const_cast<void*>(data)) + head * head_stride * bytes, dtype, rows, cols, stride};
}

void run_as_linear(const Isa& isa, const ProjectParams& p, Buffer& scratch) {
  std::vector<LinearWeight> maps(p.heads);
  LinearCall call(isa, false, false, p.threads);
  for (std::int64_t h = 0; h < p.heads; ++h) {
    const Matrix w = head_of(p.w, p.w_dtype, p.w_head_stride, h, p.out_width, p.x.width, p.w_row_stride);
    maps[h].format = w.dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
    maps[h].rows = w.rows;
    maps[h].cols = w.cols;
    maps[h].data = w.data;
    maps[h].row_stride = w.stride;
    const Matrix x = head_of(p.x.data, p.x.dtype, p.x.head_stride, h, p.tokens, p.x.width, p.x.token_stride);
    const Matrix out = head_of(p.out, p.out_dtype, p.out_head_stride, h, p.tokens, p.out_width, p.out_token_stride);
    call.add({x, &maps[h], nullptr, out, {}, 1.0f, {}, false});
  }
  call.run(scratch);
}

// w is [H, w_rows, w_columns].
void project(const Isa& isa, Run run, const Array& out, const Array& x, const Array& w, std::int64_t w_rows,
             std::int64_t w_columns, int threads) {
  expect_size("tokens of x", out.shape[0], x.shape[0]);
  expect_size("heads of x", out.shape[1], x.shape[1]);
  expect_size("heads of w", out.shape[1], w.shape[0]);
  expect_size("rows of w", w_rows, w.shape[1]);
  expect_size("columns of w", w_columns, w.shape[2]);
  ProjectParams p{};
  p.x = {x.data, x.dtype, x.shape[2], x.stride[0], x.stride[1]};
  p.tokens = out.shape[0];
  p.heads = out.shape[1];
  p.out_width = out.shape[2];
  p.w = w.data;
  p.w_dtype = w.dtype;
  p.w_head_stride = w.stride[0];
  p.w_row_stride = w.stride[1];
  p.out = out.data;
  p.out_dtype = out.dtype;
  p.out_token_stride = out.stride[0];
  p.out_head_stride = out.stride[1];
  p.threads = threads < 1 ? 1 : threads;
  nb::gil_scoped_release unlocked;
  Buffer scratch;
  run(isa, p, scratch);
}

void project_rows(const Isa& isa, nb::handle out, nb::handle x, nb::handle w, int threads) {
  const Array to = cube_of(out, "out"), from = cube_of(x, "x");
  project(isa, &run_project_rows, to, from, cube_of(w, "w"), to.shape[2], from.shape[2], threads);
}

void project_columns(const Isa& isa, nb::handle out, nb::handle x, nb::handle w, int threads) {
  const Array to = cube_of(out, "out"), from = cube_of(x, "x");
  project(isa, &run_project_columns, to, from, cube_of(w, "w"), from.shape[2], to.shape[2], threads);
}

}  // namespace

void run_project_columns(const Isa& isa, ProjectParams& p, Buffer& scratch) {
  if (p.tokens == 0 || p.heads == 0 || p.out_width == 0) return;
  p.scratch = scratch.floats(isa.kernels->project_scratch(p) * p.threads);
  isa.kernels->project_columns(p);
}

void run_project_rows(const Isa& isa, ProjectParams& p, Buffer& scratch) {
  if (p.tokens == 0 || p.heads == 0 || p.out_width == 0) return;
  if (p.tokens <= kStreamTokens) return run_as_linear(isa, p, scratch);
  p.scratch = scratch.floats(isa.kernels->project_scratch(p) * p.threads);
  isa.kernels->project_rows(p);
}

void bind_project(nb::class_<Isa>& isa) {
  isa.def("project_rows", &project_rows, nb::arg("out"), nb::arg("x"), nb::arg("w"), nb::arg("threads"),
          "out [T, H, J] = x [T, H, K] times w [H, J, K] transposed, for each head.");
  isa.def("project_columns", &project_columns, nb::arg("out"), nb::arg("x"), nb::arg("w"), nb::arg("threads"),
          "out [T, H, J] = x [T, H, K] times w [H, K, J], for each head.");
}

}  // namespace latentkv
