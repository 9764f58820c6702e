#include "bindings/arguments.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

void write_latent(const Isa& isa, nb::handle rows, nb::handle slots, nb::handle kv, std::int64_t latent_width,
                  nb::handle latent_norm, float latent_eps, nb::handle rope_norm, float rope_eps, nb::tuple angles,
                  std::int64_t groups, bool interleaved, nb::object codes, bool rotated) {
  WriteLatentParams p{};
  p.cache = cache_rows(rows, codes.is_none() ? kStored : kCodes);
  p.kv = matrix_of(kv, "kv", kFloats);
  const std::int64_t rope_width = p.kv.cols - latent_width;
  if (latent_width < 0 || rope_width < 0) {
    refuse("latent_width", "0 to " + std::to_string(p.kv.cols), std::to_string(latent_width));
  }
  if (!codes.is_none()) p.codes = codes_of(nb::cast<nb::tuple>(codes), p.cache.cols);
  check_latent_row(p.codes, latent_width, rope_width, p.cache.cols, rotated);
  p.rotated = rotated;
  if (groups < 1 || rope_width % groups != 0) {
    refuse("groups", "a divisor of the " + std::to_string(rope_width) + " RoPE elements", std::to_string(groups));
  }
  p.angles = angles_of(angles, p.kv.rows, pairs_of(rope_width / groups) * groups);
  p.latent_norm = norm_of(latent_norm, "latent_norm", latent_width, latent_eps);
  p.rope_norm = norm_of(rope_norm, "rope_norm", rope_width / groups, rope_eps);
  p.slots = slots_of(slots, p.kv.rows, p.cache);
  p.latent_width = latent_width;
  p.groups = groups;
  p.interleaved = interleaved;
  if (p.kv.rows == 0) return;
  nb::gil_scoped_release unlocked;
  isa.kernels->write_latent(p);
}

}  // namespace

void bind_write_latent(nb::class_<Isa>& isa) {
  isa.def("write_latent", &write_latent, nb::arg("rows"), nb::arg("slots"), nb::arg("kv"), nb::kw_only(),
          nb::arg("latent_width"), nb::arg("latent_norm").none(), nb::arg("latent_eps"), nb::arg("rope_norm").none(),
          nb::arg("rope_eps"), nb::arg("angles"), nb::arg("groups"), nb::arg("interleaved"),
          nb::arg("codes").none() = nb::none(), nb::arg("rotated") = false,
          "Row slots[t] of the pages `rows` = kv's row t, its latent normed, its RoPE blocks normed and rotated.");
}

}  // namespace latentkv
