#include "bindings/arguments.h"
#include "bindings/memory.h"
#include "bindings/ops.h"
#include "bindings/paged.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// [H, width, L].
UpMatrix up_matrix(const Array& array, const char* name, const HeadFormParams& p) {
  expect_size((std::string("heads of ") + name).c_str(), p.attention.heads, array.shape[0]);
  expect_size((std::string("columns of ") + name).c_str(), p.latent_width, array.shape[2]);
  if (array.dtype != p.up_dtype) throw Declined("w_uk and w_uv: of two dtypes");
  return {array.data, array.shape[1], array.stride[0], array.stride[1]};
}

void head_form(const Isa& isa, nb::handle out, nb::handle lse, nb::handle query, nb::handle rows, nb::handle page_table,
               std::int64_t index, std::int64_t context_len, nb::handle w_uk, nb::handle w_uv, std::int64_t rope_blocks, double scale,
               bool causal, int threads, std::int64_t stretch_bytes, nb::object codes) {
  const Array result = cube_of(out, "out"), table = array_of(page_table, "page_table");
  const Array pages = cube_of(rows, "rows", codes.is_none() ? kStored : kCodes);
  const Array key = cube_of(w_uk, "w_uk"), value = cube_of(w_uv, "w_uv");
  HeadFormParams p{};
  AttentionParams& attention = p.attention;
  take_results(result, lse, attention);
  take_rows(pages, table, attention);
  attention.a = query_part(query, "query", result);
  attention.key_width = attention.a.width;
  attention.scale_log2 = scale_log2(scale);
  attention.causal = causal;
  p.stretch_bytes = stretch_bytes;
  p.latent_width = value.shape[2];
  p.up_dtype = key.dtype;
  p.key = up_matrix(key, "w_uk", p);
  p.value = up_matrix(value, "w_uv", p);
  expect_size("values of out", p.value.width, attention.value_width);
  if (rope_blocks < 1 || attention.heads % rope_blocks != 0) {
    refuse("rope_blocks", "a divisor of the heads", std::to_string(rope_blocks));
  }
  attention.b.width = attention.key_width - p.key.width;
  attention.b_blocks = rope_blocks;
  if (attention.b.width < 0) refuse("query", "w_uk's rows and the RoPE part", std::to_string(attention.key_width));
  const std::int64_t elements = p.latent_width + rope_blocks * attention.b.width;
  if (codes.is_none()) {
    if (elements > pages.shape[2]) refuse("rows", std::to_string(elements) + " elements", std::to_string(pages.shape[2]));
  } else {
    attention.codes = codes_of(nb::cast<nb::tuple>(codes), pages.shape[2]);
    check_codes(attention.codes, rope_blocks * attention.b.width);
    expect_size("codes of rows", attention.codes.width, p.latent_width);
  }
  const AttentionSequence sequence{0, result.shape[0], context_len};
  if (context_len < 0) refuse("context_len", "0 or more", std::to_string(context_len));
  attention.sequences = &sequence;
  check_table(table);
  if (index < 0 || index >= table.shape[0]) refuse("index", "a row of page_table", std::to_string(index));
  check_pages(table, index, context_len, attention.page_tokens, pages.shape[0]);
  attention.page_table += index * attention.table_stride;
  if (result.shape[0] == 0 || attention.heads == 0 || attention.value_width == 0) return;
  attention.threads = threads < 1 ? 1 : threads;
  nb::gil_scoped_release unlocked;
  const Floats scratch = allocate(isa.kernels->head_form_scratch(p) * attention.threads);
  attention.scratch = scratch.get();
  isa.kernels->head_form(p);
}

}  // namespace

void bind_head_form(nb::class_<Isa>& isa) {
  isa.def("head_form", &head_form, nb::arg("out"), nb::arg("lse"), nb::arg("query"), nb::arg("rows"),
          nb::arg("page_table"), nb::arg("index"), nb::arg("context_len"), nb::arg("w_uk"), nb::arg("w_uv"), nb::arg("rope_blocks"),
          nb::arg("scale"), nb::arg("causal"), nb::arg("threads"), nb::arg("stretch_bytes"),
          nb::arg("codes").none() = nb::none(),
          "MLA's head form for one sequence; see backends/native_head.py, which alone calls it.");
}

}  // namespace latentkv
