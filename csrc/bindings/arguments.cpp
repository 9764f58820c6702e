#include "bindings/arguments.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// The cosine or the sine.
Matrix angle_part(nb::handle object, const char* name, std::int64_t tokens, std::int64_t pairs) {
  const Matrix part = matrix_of(object, name, {DType::f32});
  if (part.rows != tokens || part.cols != pairs) {
    refuse(name, "[" + std::to_string(tokens) + ", " + std::to_string(pairs) + "]",
           "[" + std::to_string(part.rows) + ", " + std::to_string(part.cols) + "]");
  }
  return part;
}

}  // namespace

Matrix cache_rows(nb::handle object) {
  const Matrix rows = matrix_of(object, "rows", kStored);
  if (rows.stride < rows.cols) refuse("rows", "rows that do not overlap", "a stride of " + std::to_string(rows.stride));
  return rows;
}

const std::int64_t* slots_of(nb::handle object, std::int64_t tokens, const Matrix& cache) {
  const Array array = vector_of(object, "slots", {DType::i64});
  expect_size("slots", tokens, array.shape[0]);
  if (tokens > 1 && array.stride[0] != 1) throw Declined("slots: strided");
  const auto* slots = static_cast<const std::int64_t*>(array.data);
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (slots[t] >= 0 && slots[t] < cache.rows) continue;
    const std::string message = "slots: expected 0 to " + std::to_string(cache.rows - 1) + ", got " +
                                std::to_string(slots[t]) + " at position " + std::to_string(t) + ".";
    throw nb::index_error(message.c_str());
  }
  return slots;
}

Array weight_of(nb::handle object, const char* name, std::int64_t n) {
  const Array array = vector_of(object, name, kFloats);
  expect_size(name, n, array.shape[0]);
  if (n > 1 && array.stride[0] != 1) throw Declined(std::string(name) + ": strided");
  return array;
}

Norm norm_of(nb::handle weight, const char* name, std::int64_t n, float eps) {
  if (weight.is_none()) return {nullptr, DType::f32, eps};
  const Array array = weight_of(weight, name, n);
  return {array.data, array.dtype, eps};
}

AngleTable angles_of(nb::tuple cos_sin, std::int64_t tokens, std::int64_t pairs) {
  expect_size("angles", 2, static_cast<std::int64_t>(cos_sin.size()));
  const Matrix cos = angle_part(cos_sin[0], "cosine", tokens, pairs);
  const Matrix sin = angle_part(cos_sin[1], "sine", tokens, pairs);
  return {static_cast<const float*>(cos.data), static_cast<const float*>(sin.data), pairs, cos.stride, sin.stride};
}

std::int64_t pairs_of(std::int64_t width) {
  if (width < 0 || width % 2 != 0) refuse("elements to rotate", "an even number", std::to_string(width));
  return width / 2;
}

}  // namespace latentkv
