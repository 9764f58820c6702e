// The one way kernels use threads. Like vec.h, one copy per instruction set.
#pragma once

#include <cstdint>

namespace latentkv::LATENTKV_ISA {

// Below this many elements one core is done before a second has woken up.
constexpr std::int64_t kParallelElements = 1 << 16;

// body(row) for every row; over all of OpenMP's threads (torch.set_num_threads governs them) when the work is big enough.
template <typename Body>
void for_each_row(std::int64_t rows, std::int64_t elements, Body body) {
  if (rows < 2 || elements < kParallelElements) {
    for (std::int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) body(row);
}

}  // namespace latentkv::LATENTKV_ISA
