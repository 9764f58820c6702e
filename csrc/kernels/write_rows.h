// Encoding row parts and scattering them to cache rows by slot. Reference: src/latentkv/cache/codec.py and latent.py.
#pragma once

#include "kernels/write_coded.h"
#include "parallel.h"

namespace latentkv::LATENTKV_ISA {

template <int W, typename From, typename To>
void convert(const From* from, To* to, std::int64_t n) {
  using S = Simd<W>;
  std::int64_t i = 0;
  for (; i + W <= n; i += W) S::store(to + i, S::load(from + i));
  if (i < n) S::store_part(to + i, S::load_part(from + i, n - i), n - i);
}

// Equal types are copied bit by bit, NaN payloads included.
template <int W, typename T>
void convert(const T* from, T* to, std::int64_t n) {
  __builtin_memcpy(to, from, n * sizeof(T));
}

template <int W, typename To>
void write_row(const WriteRowsParams& p, std::int64_t token) {
  To* to = static_cast<To*>(p.cache.data) + p.slots[token] * p.cache.stride;
  for (int part = 0; part < p.part_count; ++part) {
    const Matrix& from = p.parts[part];
    const std::int64_t start = token * from.stride;
    if (from.dtype == DType::f32) {
      convert<W>(static_cast<const float*>(from.data) + start, to, from.cols);
    } else {
      convert<W>(static_cast<const bf16*>(from.data) + start, to, from.cols);
    }
    to += from.cols;
  }
}

template <int W>
void write_coded_parts(const WriteRowsParams& p, std::int64_t token) {
  char* row = static_cast<char*>(p.cache.data) + p.slots[token] * p.cache.stride;
  __builtin_memset(row, 0, p.cache.cols);
  for (int part = 0; part < p.part_count; ++part) {
    const Matrix& from = p.parts[part];
    const std::int64_t start = token * from.stride;
    float numbers[kMostWritten];
    if (from.dtype == DType::f32) {
      convert<W>(static_cast<const float*>(from.data) + start, numbers, from.cols);
    } else {
      convert<W>(static_cast<const bf16*>(from.data) + start, numbers, from.cols);
    }
    CodeWriter(p.codes[part].codes).write(numbers, row + p.codes[part].begin);
  }
}

template <int W>
void write_rows(const WriteRowsParams& p) {
  const std::int64_t tokens = p.parts[0].rows;
  for_each_row(tokens, tokens * p.cache.cols, [&](std::int64_t token) {
    p.cache.dtype == DType::u8     ? write_coded_parts<W>(p, token)
    : p.cache.dtype == DType::f32  ? write_row<W, float>(p, token)
    : p.cache.dtype == DType::bf16 ? write_row<W, bf16>(p, token)
                                   : write_row<W, f16>(p, token);
  });
}

}  // namespace latentkv::LATENTKV_ISA
