#include <omp.h>

#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// Runs `rounds` multiply-add rounds on each of `threads` threads; returns the floating-point operations of all.
std::int64_t fma_burst(const Isa& isa, std::int64_t rounds, int threads) {
  nb::gil_scoped_release unlocked;
  float sum = 0.0f;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  sum += isa.kernels->fma_burst(rounds);
  // A sum that is not a number would mean that the burst did not compute.
  return sum == sum ? isa.kernels->fma_burst_flops(rounds) * threads : 0;
}

// Reads an array of float32 once, in one stretch per thread; returns its sum.
double read_burst(const Isa& isa, nb::handle array, int threads) {
  const Array from = vector_of(array, "array", {DType::f32});
  const std::int64_t share = from.shape[0] / threads;
  nb::gil_scoped_release unlocked;
  double sum = 0.0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  sum += isa.kernels->read_burst(static_cast<const float*>(from.data) + omp_get_thread_num() * share, share);
  return sum;
}

}  // namespace

void bind_ceiling(nb::class_<Isa>& isa) {
  isa.def("fma_burst", &fma_burst, nb::arg("rounds"), nb::arg("threads"),
          "Multiply-adds in registers for benchmarks; returns the number of floating-point operations done.");
  isa.def("read_burst", &read_burst, nb::arg("array"), nb::arg("threads"),
          "Reads a float32 array once, for benchmarks; returns its sum.");
}

}  // namespace latentkv
