#include "bindings/arguments.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

constexpr int kMaxParts = 4;

void write_rows(const Isa& isa, nb::handle rows, nb::handle slots, nb::tuple parts, nb::object codes) {
  Matrix part_list[kMaxParts];
  WriteRowsParams p{part_list, static_cast<int>(parts.size()), nullptr,
                    cache_rows(rows, codes.is_none() ? kStored : kCodes), nullptr};
  if (p.part_count < 1 || p.part_count > kMaxParts) refuse("parts", "1 to 4 arrays", std::to_string(p.part_count));
  const std::int64_t tokens = vector_of(slots, "slots", {DType::i64}).shape[0];
  std::int64_t width = 0;
  for (int i = 0; i < p.part_count; ++i) {
    part_list[i] = matrix_of(parts[i], "part", kFloats);
    expect_size("rows of a part", tokens, part_list[i].rows);
    width += part_list[i].cols;
  }
  CodedRow coded{};
  if (codes.is_none()) {
    expect_size("elements of all parts", p.cache.cols, width);
  } else {
    coded = coded_row_of(nb::cast<nb::tuple>(codes), p.cache.cols);
    expect_size("parts", kCodedParts, p.part_count);
    check_coded_row(coded, part_list[0].cols, part_list[1].cols);
    p.codes = coded.parts;
  }
  p.slots = slots_of(slots, tokens, p.cache);
  if (tokens == 0) return;
  nb::gil_scoped_release unlocked;
  isa.kernels->write_rows(p);
}

}  // namespace

void bind_write_rows(nb::class_<Isa>& isa) {
  isa.def("write_rows", &write_rows, nb::arg("rows"), nb::arg("slots"), nb::arg("parts"), nb::arg("codes").none() = nb::none(),
          "Row slots[t] of the cache pages `rows` = the t-th rows of all parts side by side.");
}

}  // namespace latentkv
