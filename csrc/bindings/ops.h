// One function per op: it adds a method to the Python class `Isa`, which checks the arguments and calls the kernel.
#pragma once

#include "bindings/array.h"
#include "dispatch.h"

namespace latentkv {

void bind_attention(nanobind::class_<Isa>& isa);
void bind_blocks(nanobind::module_& module, nanobind::class_<Isa>& isa);
void bind_ceiling(nanobind::class_<Isa>& isa);
void bind_gated_block(nanobind::module_& module);
void bind_grouped_block(nanobind::module_& module);
void bind_head_form(nanobind::class_<Isa>& isa);
void bind_latent_block(nanobind::module_& module);
void bind_linear(nanobind::module_& module, nanobind::class_<Isa>& isa);
void bind_project(nanobind::class_<Isa>& isa);
void bind_rms_norm(nanobind::class_<Isa>& isa);
void bind_rotate_query(nanobind::class_<Isa>& isa);
void bind_route(nanobind::module_& module);
void bind_routed_block(nanobind::module_& module);
void bind_write_latent(nanobind::class_<Isa>& isa);
void bind_write_rows(nanobind::class_<Isa>& isa);

}  // namespace latentkv
