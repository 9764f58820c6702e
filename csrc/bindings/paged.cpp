#include "bindings/paged.h"

#include "bindings/memory.h"

namespace latentkv {
namespace nb = nanobind;

QueryPart query_part(nb::handle object, const char* name, const Array& out) {
  if (object.is_none()) return {};
  const Array array = cube_of(object, name);
  expect_size("tokens of a query part", out.shape[0], array.shape[0]);
  expect_size("heads of a query part", out.shape[1], array.shape[1]);
  return {array.data, array.dtype, array.shape[2], array.stride[0], array.stride[1]};
}

void take_results(const Array& out, nb::handle lse, AttentionParams& p) {
  const Array sums = array_of(lse, "lse");
  if (sums.ndim != 2 || sums.dtype != DType::f32 || sums.shape[0] != out.shape[0] ||
      sums.shape[1] != out.shape[1] || (sums.shape[0] > 1 && sums.stride[0] != sums.shape[1])) {
    refuse("lse", "[T, H] float32, adjacent", "another");
  }
  p.out = out.data;
  p.out_dtype = out.dtype;
  p.out_token_stride = out.stride[0];
  p.out_head_stride = out.stride[1];
  p.lse = static_cast<float*>(sums.data);
  p.heads = out.shape[1];
  p.value_width = out.shape[2];
}

void take_rows(const Array& pages, const Array& table, AttentionParams& p) {
  p.rows = pages.data;
  p.row_dtype = pages.dtype;
  p.page_tokens = pages.shape[1];
  p.page_stride = pages.stride[0];
  p.row_stride = pages.stride[1];
  p.page_table = static_cast<const std::int32_t*>(table.data);
  p.table_stride = table.stride[0];
}

void take_parts(const CodedRow& row, AttentionParams& p) {
  p.codes = row.keys().codes;
  p.values = row.values();
  expect_size("key elements of rows of codes", p.codes.width, (p.groups - 1) * p.key_step + p.key_width);
  expect_size("where values in codes begin", p.codes.width, p.value_offset);
}

void check_table(const Array& table) {
  if (table.ndim != 2 || table.dtype != DType::i32) refuse("page_table", "[B, pages] int32", "another shape or dtype");
  if (table.shape[1] > 1 && table.stride[1] != 1) throw Declined("page_table: last dimension is strided");
}

void check_pages(const Array& table, std::int64_t index, std::int64_t context_len, std::int64_t page_tokens,
                 std::int64_t pages) {
  const std::int64_t used = (context_len + page_tokens - 1) / page_tokens;
  const std::string name = "page_table[" + std::to_string(index) + "]";
  if (used > table.shape[1]) {
    refuse(name, std::to_string(used) + " pages for the context", std::to_string(table.shape[1]));
  }
  const std::int32_t* row = static_cast<const std::int32_t*>(table.data) + index * table.stride[0];
  for (std::int64_t i = 0; i < used; ++i) {
    if (row[i] >= 0 && row[i] < pages) continue;
    refuse(name, "pages 0 to " + std::to_string(pages - 1), std::to_string(row[i]) + " at position " + std::to_string(i));
  }
}

float scale_log2(double scale) {
  constexpr double kLog2E = 1.4426950408889634;
  return static_cast<float>(scale * kLog2E);
}

}  // namespace latentkv
