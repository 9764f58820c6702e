// Arguments that several ops have: cache rows, slots, norms and rotation angles.
#pragma once

#include "bindings/array.h"

namespace latentkv {

// Pages [pages, page_tokens, row_elements] as one matrix of rows that do not overlap.
Matrix cache_rows(nanobind::handle object, std::initializer_list<DType> dtypes = kStored);

// (format, codes, group, bytes of a scale, offset of the scales, offset of the RoPE part) of rows of so many bytes.
RowCodes codes_of(nanobind::tuple codes, std::int64_t row_bytes);

// The parts of a row of keys and values in codes, each (its first byte, what codes_of takes), in order.
constexpr int kCodedParts = 2;
struct CodedRow {
  CodedPart parts[kCodedParts];

  const CodedPart& keys() const { return parts[0]; }
  const CodedPart& values() const { return parts[1]; }
};

// Throws ShapeError unless each part lies within a row of so many bytes.
CodedRow coded_row_of(nanobind::tuple parts, std::int64_t row_bytes);

// That keys and values of these widths are what the row holds, and can be written. Throws ShapeError, and Declined for
// what only the reference writes.
void check_coded_row(const CodedRow& row, std::int64_t key_width, std::int64_t value_width);

// Throws ShapeError unless codes, scales and a RoPE part of this width lie one behind the other within the row.
void check_codes(const RowCodes& codes, std::int64_t rope_width);

// That a row holds a latent and a RoPE part of these widths, in codes or (CodeFormat::none) as numbers, and can be
// written. Throws ShapeError, and Declined for what only the reference writes.
void check_latent_row(const RowCodes& codes, std::int64_t latent_width, std::int64_t rope_width, std::int64_t row_elements,
                      bool rotated);

// [tokens] int64 inside the cache. Throws nanobind::index_error, before anything is written, for one outside.
const std::int64_t* slots_of(nanobind::handle object, std::int64_t tokens, const Matrix& cache);

// [n] adjacent floats.
Array weight_of(nanobind::handle object, const char* name, std::int64_t n);

// The same or None, with its epsilon.
Norm norm_of(nanobind::handle weight, const char* name, std::int64_t n, float eps);

// (cosine, sine), each [tokens, pairs] float32; of so many pairs, or of any number.
AngleTable angles_of(nanobind::tuple cos_sin, std::int64_t tokens);
AngleTable angles_of(nanobind::tuple cos_sin, std::int64_t tokens, std::int64_t pairs);

// The pairs in a rotated head or block of `width` elements. Throws ShapeError when one would be left over.
std::int64_t pairs_of(std::int64_t width);

}  // namespace latentkv
