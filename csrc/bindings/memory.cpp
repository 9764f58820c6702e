#include "bindings/memory.h"

#include <new>

namespace latentkv {

Floats allocate(std::int64_t floats) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t bytes = (floats * static_cast<std::int64_t>(sizeof(float)) + kLine - 1) / kLine * kLine;
  auto* memory = static_cast<float*>(std::aligned_alloc(kLine, bytes));
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  return Floats(memory);
}

float* Buffer::floats(std::int64_t count) {
  if (count > size_) {
    memory_ = allocate(count);
    size_ = count;
  }
  return memory_.get();
}

Array cube_of(nanobind::handle object, const char* name, std::initializer_list<DType> dtypes) {
  const Array array = array_of(object, name);
  if (array.ndim != 3) refuse(name, "3 dimensions", std::to_string(array.ndim));
  check_dtype(array, name, dtypes);
  if (array.shape[2] > 1 && array.stride[2] != 1) throw Declined(std::string(name) + ": last dimension is strided");
  return array;
}

}  // namespace latentkv
