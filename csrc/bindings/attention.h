// A call of attention: its plan, the checks on it, and its scratch.
#pragma once

#include "bindings/array.h"
#include "bindings/memory.h"
#include "dispatch.h"

namespace latentkv {

// The records of backends/native_plan.py and the pages they are about: valid as long as the Python objects are.
struct AttentionPlan {
  AttentionPlan(nanobind::tuple plan, nanobind::handle page_table);

  void set(AttentionParams& p) const;

  // Throws ShapeError unless all sizes fit a row, all pages of contexts are within `pages`, and all records within p.
  void check(const AttentionParams& p, std::int64_t row_elements, std::int64_t pages, std::int64_t tokens) const;

  Array table;
  AttentionParams records{};  // of which only the plan's own fields mean anything
  std::int64_t sequences = 0, slots = 0;
};

// Runs the kernel; `slots` results are kept in the scratch meanwhile.
void run_attention(const Isa& isa, AttentionParams& p, std::int64_t slots, int threads, Buffer& scratch);

}  // namespace latentkv
