// A call of per-head products and its scratch.
#pragma once

#include "bindings/memory.h"
#include "dispatch.h"

namespace latentkv {

void run_project_columns(const Isa& isa, ProjectParams& p, Buffer& scratch);

// For a few tokens, whose weights' reading is what it costs, every head is a linear map of its own.
void run_project_rows(const Isa& isa, ProjectParams& p, Buffer& scratch);

}  // namespace latentkv
