// Scratch memory for kernels, and the three-dimensional arrays they share.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "bindings/array.h"

namespace latentkv {

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float, Free>;

// Uninitialised, at the start of a cache line.
Floats allocate(std::int64_t floats);

// Scratch for one kernel after the other. What was in it is lost when it is asked for anew.
class Buffer {
 public:
  float* floats(std::int64_t count);

 private:
  Floats memory_;
  std::int64_t size_ = 0;
};

// [a, b, c] of these dtypes whose last dimension is adjacent. Throws Declined for others.
Array cube_of(nanobind::handle object, const char* name, std::initializer_list<DType> dtypes = kFloats);

}  // namespace latentkv
