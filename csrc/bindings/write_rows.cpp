#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

constexpr int kMaxParts = 4;
constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::bf16};

// Pages [pages, page_tokens, row_elements] as one matrix of rows.
Matrix cache_rows(nb::handle object) {
  const Matrix rows = matrix_of(object, "rows", kFloats);
  if (rows.stride < rows.cols) refuse("rows", "rows that do not overlap", "a stride of " + std::to_string(rows.stride));
  return rows;
}

// Checked before the first row is written: a bad slot leaves the cache as it was.
void check_slots(const Array& slots, const Matrix& cache) {
  const auto* slot = static_cast<const std::int64_t*>(slots.data);
  for (std::int64_t t = 0; t < slots.shape[0]; ++t) {
    if (slot[t] >= 0 && slot[t] < cache.rows) continue;
    const std::string message = "slots: expected 0 to " + std::to_string(cache.rows - 1) + ", got " +
                                std::to_string(slot[t]) + " at position " + std::to_string(t) + ".";
    throw nb::index_error(message.c_str());
  }
}

void write_rows(const Isa& isa, nb::handle rows, nb::handle slots, nb::tuple parts) {
  Matrix part_list[kMaxParts];
  WriteRowsParams p{part_list, static_cast<int>(parts.size()), nullptr, cache_rows(rows)};
  if (p.part_count < 1 || p.part_count > kMaxParts) refuse("parts", "1 to 4 arrays", std::to_string(p.part_count));
  const Array slot_list = vector_of(slots, "slots", {DType::i64});
  const std::int64_t tokens = slot_list.shape[0];
  if (tokens > 1 && slot_list.stride[0] != 1) throw Declined("slots: strided");
  std::int64_t width = 0;
  for (int i = 0; i < p.part_count; ++i) {
    part_list[i] = matrix_of(parts[i], "part", kFloats);
    expect_size("rows of a part", tokens, part_list[i].rows);
    width += part_list[i].cols;
  }
  expect_size("elements of all parts", p.cache.cols, width);
  check_slots(slot_list, p.cache);
  p.slots = static_cast<const std::int64_t*>(slot_list.data);
  if (tokens == 0) return;
  nb::gil_scoped_release unlocked;
  isa.kernels->write_rows(p);
}

}  // namespace

void bind_write_rows(nb::class_<Isa>& isa) {
  isa.def("write_rows", &write_rows, nb::arg("rows"), nb::arg("slots"), nb::arg("parts"),
          "Row slots[t] of the cache pages `rows` = the t-th rows of all parts side by side.");
}

}  // namespace latentkv
