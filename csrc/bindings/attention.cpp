#include "bindings/attention.h"

#include "bindings/arguments.h"
#include "bindings/ops.h"
#include "bindings/paged.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

void attention(const Isa& isa, nb::handle out, nb::handle lse, nb::handle a, nb::handle b, nb::handle rows,
               nb::handle page_table, nb::tuple plan, nb::tuple key, nb::tuple value, std::int64_t groups,
               std::int64_t b_blocks, double scale, bool causal, int threads, nb::object codes, nb::object parts, bool integer) {
  const Array result = cube_of(out, "out");
  const Array pages = cube_of(rows, "rows", codes.is_none() && parts.is_none() ? kStored : kCodes);
  AttentionParams p{};
  take_results(result, lse, p);
  p.a = query_part(a, "query", result);
  p.b = query_part(b, "query's RoPE part", result);
  p.groups = groups;
  p.b_blocks = b_blocks;
  p.integer = integer;
  p.key_width = nb::cast<std::int64_t>(key[0]);
  p.key_step = nb::cast<std::int64_t>(key[1]);
  p.value_offset = nb::cast<std::int64_t>(value[0]);
  p.value_step = nb::cast<std::int64_t>(value[1]);
  p.scale_log2 = scale_log2(scale);
  p.causal = causal;
  const AttentionPlan work(plan, page_table);
  take_rows(pages, work.table, p);
  work.set(p);
  if (!codes.is_none()) {
    p.codes = codes_of(nb::cast<nb::tuple>(codes), pages.shape[2]);
    check_codes(p.codes, p.b_blocks * p.b.width);
    if (p.groups != 1 || p.value_offset >= 0 || p.value_width > p.codes.width || p.key_step != 0) {
      throw Declined("rows of codes: only those of a latent and a RoPE part");
    }
    expect_size("key elements of rows of codes", p.codes.width + p.b_blocks * p.b.width, p.key_width);
  }
  std::int64_t row_elements = codes.is_none() ? pages.shape[2] : p.key_width;
  if (!parts.is_none()) {
    const CodedRow row = coded_row_of(nb::cast<nb::tuple>(parts), pages.shape[2]);
    take_parts(row, p);
    row_elements = row.keys().codes.width + row.values().codes.width;
  }
  work.check(p, row_elements, pages.shape[0], result.shape[0]);
  nb::gil_scoped_release unlocked;
  Buffer scratch;
  run_attention(isa, p, work.slots, threads, scratch);
}

}  // namespace

void bind_attention(nb::class_<Isa>& isa) {
  isa.def("attention", &attention, nb::arg("out"), nb::arg("lse"), nb::arg("a").none(), nb::arg("b").none(),
          nb::arg("rows"), nb::arg("page_table"), nb::arg("plan"), nb::arg("key"), nb::arg("value"), nb::arg("groups"),
          nb::arg("b_blocks"), nb::arg("scale"), nb::arg("causal"), nb::arg("threads"),
          nb::arg("codes").none() = nb::none(), nb::arg("parts").none() = nb::none(), nb::arg("integer") = true,
          "Attention over paged rows; see backends/native.py, which alone calls it.");
}

}  // namespace latentkv
