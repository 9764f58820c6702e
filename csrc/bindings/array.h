// Arrays from Python, and the checks on them. Any object with DLPack is taken (torch tensors, NumPy arrays); types that
// publish DLPack's C exchange table (torch 2.10 and newer) take 0.1 microseconds instead of four.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "params.h"

namespace latentkv {

// The kernels do not compute on such an array (dtype, device or strides), though the reference does: DeclinedError in Python.
struct Declined : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// No implementation could take these arguments: latentkv.errors.ShapeError in Python.
struct ShapeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What is computed with, and what the cache's rows can be.
constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::bf16};
constexpr std::initializer_list<DType> kStored = {DType::f32, DType::bf16, DType::f16};
constexpr std::initializer_list<DType> kCodes = {DType::u8};

constexpr int kMaxDims = 4;

// A view of an array in CPU memory. Valid as long as the Python object is, so for the length of a call.
struct Array {
  void* data;
  DType dtype;
  int ndim;
  std::int64_t shape[kMaxDims];
  std::int64_t stride[kMaxDims];
};

// `name` is what messages call the argument. Throws Declined for another device, dtype or more than kMaxDims dimensions.
Array array_of(nanobind::handle object, const char* name);

// Throws Declined for another dtype.
void check_dtype(const Array& array, const char* name, std::initializer_list<DType> dtypes);

// [..., n] as rows of n. Throws Declined unless the last dimension is adjacent and the others have one common stride.
Matrix matrix_of(nanobind::handle object, const char* name, std::initializer_list<DType> dtypes);

// [n]; the caller looks at the stride. Throws ShapeError for another number of dimensions.
Array vector_of(nanobind::handle object, const char* name, std::initializer_list<DType> dtypes);

// Throws ShapeError: `what: expected …, got ….`
[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& got);
void expect_size(const char* what, std::int64_t expected, std::int64_t got);

}  // namespace latentkv
