// Linear maps: weights as Python holds them, and a call on its way to the kernel.
#pragma once

#include <vector>

#include "bindings/array.h"
#include "bindings/memory.h"
#include "dispatch.h"

namespace latentkv {

// A checked weight that keeps its arrays alive: what Python hands over with every call.
struct Weight {
  LinearWeight map;
  nanobind::object kept;
};

// The map of a Python `Weight`, valid as long as that is.
const LinearWeight& map_of(nanobind::handle object);

// Throws ShapeError for a gate of another shape than the weight, Declined for one of another format.
void check_gate(const LinearWeight& weight, const LinearWeight& gate);

// Rows first ... first + count - 1.
Matrix rows_of(const Matrix& matrix, std::int64_t first, std::int64_t count);

// Jobs of as many rows as the kernel wants, all with one rounding of x: to whole numbers where that is faster (`integer`), or
// to bf16 (`narrow`). After a run it is as new, and keeps its memory.
class LinearCall {
 public:
  LinearCall(const Isa& isa, bool integer, bool narrow, int threads)
      : isa_(isa), integer_(integer), narrow_(narrow), threads_(threads < 1 ? 1 : threads) {}

  // Throws ShapeError for sizes that do not fit together, Declined for a gate of another format than the weight.
  void add(const LinearJob& job);
  void run(Buffer& scratch);

 private:
  const Isa& isa_;
  bool integer_, narrow_;
  int threads_;
  std::vector<LinearJob> jobs_;
};

}  // namespace latentkv
