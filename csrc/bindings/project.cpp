#include "bindings/project.h"

#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// w is [H, w_rows, w_columns].
void project(const Isa& isa, ProjectKernel kernel, const Array& out, const Array& x, const Array& w, std::int64_t w_rows,
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
  run_project(isa, kernel, p, scratch);
}

void project_rows(const Isa& isa, nb::handle out, nb::handle x, nb::handle w, int threads) {
  const Array to = cube_of(out, "out"), from = cube_of(x, "x");
  project(isa, &Kernels::project_rows, to, from, cube_of(w, "w"), to.shape[2], from.shape[2], threads);
}

void project_columns(const Isa& isa, nb::handle out, nb::handle x, nb::handle w, int threads) {
  const Array to = cube_of(out, "out"), from = cube_of(x, "x");
  project(isa, &Kernels::project_columns, to, from, cube_of(w, "w"), from.shape[2], to.shape[2], threads);
}

}  // namespace

void run_project(const Isa& isa, ProjectKernel kernel, ProjectParams& p, Buffer& scratch) {
  if (p.tokens == 0 || p.heads == 0 || p.out_width == 0) return;
  p.scratch = scratch.floats(isa.kernels->project_scratch(p) * p.threads);
  (isa.kernels->*kernel)(p);
}

void bind_project(nb::class_<Isa>& isa) {
  isa.def("project_rows", &project_rows, nb::arg("out"), nb::arg("x"), nb::arg("w"), nb::arg("threads"),
          "out [T, H, J] = x [T, H, K] times w [H, J, K] transposed, for each head.");
  isa.def("project_columns", &project_columns, nb::arg("out"), nb::arg("x"), nb::arg("w"), nb::arg("threads"),
          "out [T, H, J] = x [T, H, K] times w [H, K, J], for each head.");
}

}  // namespace latentkv
