#include "bindings/arguments.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// Written in place, so no element may be two heads' or tokens'.
void check_heads(const Array& query) {
  const std::int64_t *shape = query.shape, *stride = query.stride;
  const bool heads_apart = shape[1] < 2 || stride[1] >= shape[2];
  const bool tokens_apart = shape[0] < 2 || stride[0] >= (shape[1] - 1) * stride[1] + shape[2];
  if (!heads_apart || !tokens_apart) throw Declined("query: heads overlap or are not in order");
  if (shape[2] > 1 && stride[2] != 1) throw Declined("query: last dimension is strided");
}

void rotate_query(const Isa& isa, nb::handle query, nb::handle norm, float eps, nb::tuple angles, std::int64_t groups,
                  bool interleaved, std::int64_t nope) {
  const Array x = array_of(query, "query");
  if (x.ndim != 3) refuse("query", "[T, H, N+Rq]", std::to_string(x.ndim) + " dimensions");
  if (x.dtype != DType::f32 && x.dtype != DType::bf16) throw Declined("query: no native kernel for this dtype");
  check_heads(x);
  const std::int64_t tokens = x.shape[0], heads = x.shape[1], width = x.shape[2] - nope;
  if (nope < 0 || width < 0) refuse("nope", "0 to " + std::to_string(x.shape[2]), std::to_string(nope));
  if (groups < 1 || heads % groups != 0) refuse("groups", "a divisor of the heads", std::to_string(groups));
  RotateQueryParams p{};
  p.angles = angles_of(angles, tokens, pairs_of(width) * groups);
  p.norm = norm_of(norm, "norm", width, eps);
  p.query = x.data;
  p.dtype = x.dtype;
  p.tokens = tokens;
  p.heads = heads;
  p.nope = nope;
  p.groups = groups;
  p.token_stride = x.stride[0];
  p.head_stride = x.stride[1];
  p.interleaved = interleaved;
  if (tokens == 0 || heads == 0 || width == 0) return;
  nb::gil_scoped_release unlocked;
  isa.kernels->rotate_query(p);
}

}  // namespace

void bind_rotate_query(nb::class_<Isa>& isa) {
  isa.def("rotate_query", &rotate_query, nb::arg("query"), nb::kw_only(), nb::arg("norm").none(), nb::arg("eps"),
          nb::arg("angles"), nb::arg("groups"), nb::arg("interleaved"), nb::arg("nope"),
          "In query [T, H, nope + Rq], in place: every head's last Rq elements normed and rotated.");
}

}  // namespace latentkv
