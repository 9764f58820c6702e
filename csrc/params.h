// What a kernel is given: plain structs of pointers, sizes and strides. Strides count elements, not bytes. Whoever
// fills one in (bindings/) has checked it; kernels trust it. Pointers marked "or null" may be null, no others.
#pragma once

#include <cstdint>

namespace latentkv {

enum class DType : std::uint8_t { f32, bf16, i64 };

struct bf16 {
  std::uint16_t bits;
};

// `rows` rows of `cols` adjacent elements; `stride` elements from one row to the next.
struct Matrix {
  void* data;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t stride;
};

// out = rms_norm(x) * weight; with a residual: sum = x + residual (rounded to x's dtype), out = rms_norm(sum) * weight.
// x, residual, out and sum have one dtype and one shape [rows, n]; weight is [n] adjacent elements of its own dtype.
struct RmsNormParams {
  Matrix x;
  Matrix residual;  // data or null
  const void* weight;
  DType weight_dtype;
  float eps;
  Matrix out;
  Matrix sum;  // data or null, together with residual
};

// cache row slots[t] = the t-th rows of all parts side by side, converted to the cache's dtype.
struct WriteRowsParams {
  const Matrix* parts;
  int part_count;
  const std::int64_t* slots;  // parts[0].rows of them, each inside the cache and all different
  Matrix cache;
};

}  // namespace latentkv
