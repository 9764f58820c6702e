// A call of per-head products and its scratch.
#pragma once

#include "bindings/memory.h"
#include "dispatch.h"

namespace latentkv {

using ProjectKernel = void (*Kernels::*)(const ProjectParams&);

void run_project(const Isa& isa, ProjectKernel kernel, ProjectParams& p, Buffer& scratch);

}  // namespace latentkv
