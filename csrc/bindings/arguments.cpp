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

CodeFormat code_format(const std::string& name) {
  if (name == "fp8") return CodeFormat::fp8;
  if (name == "int8") return CodeFormat::int8;
  if (name == "int6") return CodeFormat::int6;
  if (name == "int4") return CodeFormat::int4;
  refuse("codes", "fp8, int8, int6 or int4", name);
}

}  // namespace

RowCodes codes_of(nb::tuple codes, std::int64_t row_bytes) {
  const auto number = [&](std::size_t i) { return nb::cast<std::int64_t>(codes[i]); };
  const CodeFormat format = code_format(nb::cast<nb::str>(codes[0]).c_str());
  return {format, number(1), number(2), number(3) == 2, number(4), number(5), row_bytes};
}

CodedRow coded_row_of(nb::tuple parts, std::int64_t row_bytes) {
  expect_size("parts of a row of keys and values in codes", kCodedParts, static_cast<std::int64_t>(parts.size()));
  CodedRow row{};
  for (int i = 0; i < kCodedParts; ++i) {
    const auto part = nb::cast<nb::tuple>(parts[i]);
    const auto begin = nb::cast<std::int64_t>(part[0]);
    if (begin < 0 || begin > row_bytes || (i == 0 && begin != 0)) {
      refuse("parts", "keys, then values, within a row of " + std::to_string(row_bytes) + " bytes", std::to_string(begin));
    }
    row.parts[i] = {codes_of(nb::cast<nb::tuple>(part[1]), row_bytes - begin), begin};
    check_codes(row.parts[i].codes, 0);
  }
  return row;
}

void check_coded_row(const CodedRow& row, std::int64_t key_width, std::int64_t value_width) {
  expect_size("codes of the keys", row.keys().codes.width, key_width);
  expect_size("codes of the values", row.values().codes.width, value_width);
  if (key_width > kMostWritten || value_width > kMostWritten) {
    throw Declined("keys or values of more than " + std::to_string(kMostWritten) + " codes");
  }
}

void check_codes(const RowCodes& codes, std::int64_t rope_width) {
  const std::int64_t scales = codes.group > 0 ? (codes.width + codes.group - 1) / codes.group : 0;
  const std::int64_t units = (codes.width + kCodeUnit - 1) / kCodeUnit;
  const std::int64_t code_bytes = codes.format == CodeFormat::int6   ? units * 48
                                  : codes.format == CodeFormat::int4 ? units * 32
                                                                     : codes.width;
  const bool fits = codes.width >= 0 && codes.group > 0 && codes.group % kCodeUnit == 0 && code_bytes <= codes.scale_offset &&
                    codes.scale_offset + scales * (codes.short_scales ? 2 : 4) <= codes.rope_offset &&
                    codes.rope_offset + rope_width * 2 <= codes.row_bytes;
  if (!fits) refuse("codes", "parts within a row of " + std::to_string(codes.row_bytes) + " bytes", "others");
}

void check_latent_row(const RowCodes& codes, std::int64_t latent_width, std::int64_t rope_width, std::int64_t row_elements,
                      bool rotated) {
  if (codes.format == CodeFormat::none) {
    expect_size("elements of kv", row_elements, latent_width + rope_width);
    if (rotated) throw Declined("a rotated latent that is not stored as codes");
    return;
  }
  check_codes(codes, rope_width);
  expect_size("codes of a row", latent_width, codes.width);
  if (latent_width > kMostWritten) throw Declined("a latent of more than " + std::to_string(kMostWritten) + " codes");
}

Matrix cache_rows(nb::handle object, std::initializer_list<DType> dtypes) {
  const Matrix rows = matrix_of(object, "rows", dtypes);
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

AngleTable angles_of(nb::tuple cos_sin, std::int64_t tokens) {
  expect_size("angles", 2, static_cast<std::int64_t>(cos_sin.size()));
  return angles_of(cos_sin, tokens, matrix_of(cos_sin[0], "cosine", {DType::f32}).cols);
}

std::int64_t pairs_of(std::int64_t width) {
  if (width < 0 || width % 2 != 0) refuse("elements to rotate", "an even number", std::to_string(width));
  return width / 2;
}

}  // namespace latentkv
