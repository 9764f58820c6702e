#include "bindings/arguments.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// A matrix of x's shape and dtype.
Matrix like(const Matrix& x, nb::handle object, const char* name) {
  const Matrix matrix = matrix_of(object, name, kFloats);
  if (matrix.dtype != x.dtype) throw Declined(std::string(name) + ": dtype differs from x");
  if (matrix.rows != x.rows || matrix.cols != x.cols) refuse(name, "the shape of x", "another");
  return matrix;
}

void rms_norm(const Isa& isa, nb::handle x, nb::handle weight, float eps, nb::handle out) {
  RmsNormParams p{};
  p.x = matrix_of(x, "x", kFloats);
  p.out = like(p.x, out, "out");
  const Array w = weight_of(weight, "weight", p.x.cols);
  p.weight = w.data;
  p.weight_dtype = w.dtype;
  p.eps = eps;
  if (p.x.rows == 0 || p.x.cols == 0) return;
  nb::gil_scoped_release unlocked;
  isa.kernels->rms_norm(p);
}

}  // namespace

void bind_rms_norm(nb::class_<Isa>& isa) {
  isa.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
          "out = rms_norm(x) * weight.");
}

}  // namespace latentkv
