#include "bindings/array.h"

#include <nanobind/ndarray.h>

namespace latentkv {
namespace nb = nanobind;
namespace {

// DLPack 1.2's table of C functions, as far as it is used here; found on the type as a capsule.
struct ExchangeTable {
  std::uint32_t major_version;
  std::uint32_t minor_version;
  void* older_table;
  void* unused[3];
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
};

constexpr std::uint32_t kKnownMajorVersion = 1;

// The table that `object`'s type publishes, or null.
const ExchangeTable* exchange_table(nb::handle object) {
  static PyObject* const attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* capsule = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())), attribute);
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const auto* table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (table == nullptr) PyErr_Clear();
  const bool usable = table != nullptr && table->major_version == kKnownMajorVersion && table->tensor_from_object;
  return usable ? table : nullptr;
}

DType dtype_of(const nb::dlpack::dtype& dtype, const char* name) {
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(nb::dlpack::dtype_code::Float, 32)) return DType::f32;
  if (is(nb::dlpack::dtype_code::Bfloat, 16)) return DType::bf16;
  if (is(nb::dlpack::dtype_code::Float, 16)) return DType::f16;
  if (is(nb::dlpack::dtype_code::Int, 8)) return DType::i8;
  if (is(nb::dlpack::dtype_code::UInt, 8)) return DType::u8;
  if (is(nb::dlpack::dtype_code::Int, 32)) return DType::i32;
  if (is(nb::dlpack::dtype_code::Int, 64)) return DType::i64;
  throw Declined(std::string(name) + ": no native kernel for this dtype");
}

void check_place(int device_type, int ndim, const char* name) {
  if (device_type != nb::device::cpu::value) throw Declined(std::string(name) + ": not in CPU memory");
  if (ndim > kMaxDims) throw Declined(std::string(name) + ": more than 4 dimensions");
}

Array from_exchange(const ExchangeTable& table, nb::handle object, const char* name) {
  nb::dlpack::dltensor tensor;
  if (table.tensor_from_object(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    throw Declined(std::string(name) + ": has no memory that can be read");
  }
  check_place(tensor.device.device_type, tensor.ndim, name);
  Array array{static_cast<char*>(tensor.data) + tensor.byte_offset, dtype_of(tensor.dtype, name), tensor.ndim, {}, {}};
  std::int64_t adjacent = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    array.shape[i] = tensor.shape[i];
    array.stride[i] = tensor.strides == nullptr ? adjacent : tensor.strides[i];
    adjacent *= tensor.shape[i];
  }
  return array;
}

Array from_dlpack(nb::handle object, const char* name) {
  nb::ndarray<> tensor;
  if (!nb::try_cast(object, tensor)) {
    throw nb::type_error((std::string(name) + ": expected a writable array").c_str());
  }
  check_place(tensor.device_type(), static_cast<int>(tensor.ndim()), name);
  const int ndim = static_cast<int>(tensor.ndim());
  Array array{tensor.data(), dtype_of(tensor.dtype(), name), ndim, {}, {}};
  for (int i = 0; i < ndim; ++i) {
    array.shape[i] = static_cast<std::int64_t>(tensor.shape(i));
    array.stride[i] = tensor.stride(i);
  }
  return array;
}

}  // namespace

Array array_of(nb::handle object, const char* name) {
  const ExchangeTable* table = exchange_table(object);
  return table != nullptr ? from_exchange(*table, object, name) : from_dlpack(object, name);
}

void check_dtype(const Array& array, const char* name, std::initializer_list<DType> dtypes) {
  for (const DType dtype : dtypes) {
    if (array.dtype == dtype) return;
  }
  throw Declined(std::string(name) + ": no native kernel for this dtype");
}

Matrix matrix_of(nb::handle object, const char* name, std::initializer_list<DType> dtypes) {
  const Array array = array_of(object, name);
  check_dtype(array, name, dtypes);
  if (array.ndim == 0) refuse(name, "[..., n]", "a scalar");
  const int last = array.ndim - 1;
  Matrix matrix{array.data, array.dtype, 1, array.shape[last], array.shape[last]};
  for (int i = last - 1; i >= 0; --i) {
    if (array.shape[i] == 1) continue;
    if (matrix.rows == 1) matrix.stride = array.stride[i];
    if (matrix.rows > 1 && array.stride[i] != matrix.stride * matrix.rows) {
      throw Declined(std::string(name) + ": rows without a common stride");
    }
    matrix.rows *= array.shape[i];
  }
  if (matrix.cols > 1 && array.stride[last] != 1) throw Declined(std::string(name) + ": last dimension is strided");
  return matrix;
}

Array vector_of(nb::handle object, const char* name, std::initializer_list<DType> dtypes) {
  const Array array = array_of(object, name);
  check_dtype(array, name, dtypes);
  if (array.ndim != 1) refuse(name, "1 dimension", std::to_string(array.ndim));
  return array;
}

void refuse(const std::string& what, const std::string& expected, const std::string& got) {
  throw ShapeError(what + ": expected " + expected + ", got " + got + ".");
}

void expect_size(const char* what, std::int64_t expected, std::int64_t got) {
  if (expected != got) refuse(what, std::to_string(expected), std::to_string(got));
}

}  // namespace latentkv
