#include "bindings/arguments.h"
#include "bindings/memory.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr std::int64_t kTileRows = 64;  // kRows of kernels/attention_tiles.h

QueryPart query_part(nb::handle object, const char* name, const Array& out) {
  if (object.is_none()) return {};
  const Array array = cube_of(object, name);
  expect_size("tokens of a query part", out.shape[0], array.shape[0]);
  expect_size("heads of a query part", out.shape[1], array.shape[1]);
  return {array.data, array.dtype, array.shape[2], array.stride[0], array.stride[1]};
}

// A table of records of int64: [count, sizeof(Record) / 8].
template <typename Record>
const Record* records_of(nb::handle object, const char* name, std::int64_t& count) {
  const Matrix matrix = matrix_of(object, name, {DType::i64});
  expect_size(name, sizeof(Record) / sizeof(std::int64_t), matrix.cols);
  if (matrix.rows > 1 && matrix.stride != matrix.cols) refuse(name, "adjacent records", "strided ones");
  count = matrix.cols == 0 ? 0 : matrix.rows;
  return static_cast<const Record*>(matrix.data);
}

// Only slots of the table that the contexts use are looked at.
void check_pages(const AttentionParams& p, std::int64_t sequences, const Array& table, std::int64_t pages) {
  if (table.ndim != 2 || table.dtype != DType::i32) refuse("page_table", "[B, pages] int32", "another shape or dtype");
  if (table.shape[1] > 1 && table.stride[1] != 1) throw Declined("page_table: last dimension is strided");
  expect_size("rows of page_table", sequences, table.shape[0]);
  for (std::int64_t s = 0; s < sequences; ++s) {
    const AttentionSequence& sequence = p.sequences[s];
    const std::int64_t used = sequence.query_len == 0 ? 0 : (sequence.context_len + p.page_tokens - 1) / p.page_tokens;
    const std::string name = "page_table[" + std::to_string(s) + "]";
    if (used > table.shape[1]) {
      refuse(name, std::to_string(used) + " pages for the context", std::to_string(table.shape[1]));
    }
    const std::int32_t* row = p.page_table + s * p.table_stride;
    for (std::int64_t i = 0; i < used; ++i) {
      if (row[i] >= 0 && row[i] < pages) continue;
      refuse(name, "pages 0 to " + std::to_string(pages - 1),
             std::to_string(row[i]) + " at position " + std::to_string(i));
    }
  }
}

// Key and value stretches of every group within a row; query parts within the key.
void check_sizes(const AttentionParams& p, std::int64_t row_elements) {
  const std::int64_t key_end = (p.groups - 1) * p.key_step + p.key_width;
  if (p.groups < 1 || p.heads % p.groups != 0) refuse("groups", "a divisor of the heads", std::to_string(p.groups));
  if (key_end > row_elements) refuse("rows", std::to_string(key_end) + " elements", std::to_string(row_elements));
  const std::int64_t value_end =
      p.value_offset < 0 ? p.value_width : p.value_offset + (p.groups - 1) * p.value_step + p.value_width;
  const std::int64_t value_room = p.value_offset < 0 ? p.key_width : row_elements;
  if (value_end > value_room) refuse("value", "at most " + std::to_string(value_room), std::to_string(value_end));
  if (p.a.width + p.b_blocks * p.b.width > p.key_width) {
    refuse("query", "parts within the key's " + std::to_string(p.key_width),
           std::to_string(p.a.width) + " and " + std::to_string(p.b_blocks) + " of " + std::to_string(p.b.width));
  }
}

// Rows of one record within its sequence and KV group.
bool rows_fit(const AttentionParams& p, std::int64_t sequences, std::int64_t sequence, std::int64_t group,
              std::int64_t first_row, std::int64_t row_count) {
  if (sequence < 0 || sequence >= sequences || group < 0 || group >= p.groups) return false;
  const std::int64_t rows = p.heads / p.groups * p.sequences[sequence].query_len;
  return first_row >= 0 && row_count >= 0 && row_count <= kTileRows && first_row + row_count <= rows;
}

// Plans come from backends/native_plan.py and not from users: only what would make a kernel write astray is looked at.
void check_plan(const AttentionParams& p, std::int64_t sequences, std::int64_t slots, std::int64_t tokens) {
  for (std::int64_t i = 0; i < sequences; ++i) {
    const AttentionSequence& sequence = p.sequences[i];
    if (sequence.query_start < 0 || sequence.query_len < 0 || sequence.query_start + sequence.query_len > tokens) {
      refuse("sequences", "rows of the query", "others at position " + std::to_string(i));
    }
  }
  for (std::int64_t i = 0; i < p.item_count; ++i) {
    const AttentionItem& item = p.items[i];
    if (!rows_fit(p, sequences, item.sequence, item.group, item.first_row, item.row_count) || item.context_begin < 0 ||
        item.context_end > p.sequences[item.sequence].context_len || item.load_slot >= slots ||
        item.store_slot >= slots) {
      refuse("items", "records of this batch's plan", "another at position " + std::to_string(i));
    }
  }
  for (std::int64_t i = 0; i < p.merge_count; ++i) {
    const AttentionMerge& merge = p.merges[i];
    if (!rows_fit(p, sequences, merge.sequence, merge.group, merge.first_row, merge.row_count) ||
        merge.first_slot < 0 || merge.slot_count < 0 || merge.first_slot + merge.slot_count > slots) {
      refuse("merges", "records of this batch's plan", "another at position " + std::to_string(i));
    }
  }
}

// Unfinished results that outlive the call.
float* slots_of(nb::handle object, std::int64_t floats) {
  const Array array = vector_of(object, "slots", {DType::f32});
  if (array.shape[0] < floats) refuse("slots", std::to_string(floats) + " floats", std::to_string(array.shape[0]));
  return static_cast<float*>(array.data);
}

void attention(const Isa& isa, nb::handle out, nb::handle lse, nb::handle a, nb::handle b, nb::handle rows,
               nb::handle page_table, nb::tuple plan, nb::tuple key, nb::tuple value, std::int64_t groups,
               std::int64_t b_blocks, double scale, bool causal, int threads, nb::handle slot_memory, nb::object codes) {
  const Array result = cube_of(out, "out"), table = array_of(page_table, "page_table");
  const Array pages = cube_of(rows, "rows", codes.is_none() ? kStored : kCodes), sums = array_of(lse, "lse");
  if (sums.ndim != 2 || sums.dtype != DType::f32 || sums.shape[0] != result.shape[0] ||
      sums.shape[1] != result.shape[1] || (sums.shape[0] > 1 && sums.stride[0] != sums.shape[1])) {
    refuse("lse", "[T, H] float32, adjacent", "another");
  }
  AttentionParams p{};
  p.a = query_part(a, "query", result);
  p.b = query_part(b, "query's RoPE part", result);
  p.heads = result.shape[1];
  p.groups = groups;
  p.b_blocks = b_blocks;
  p.rows = pages.data;
  p.row_dtype = pages.dtype;
  p.page_tokens = pages.shape[1];
  p.page_stride = pages.stride[0];
  p.row_stride = pages.stride[1];
  p.key_width = nb::cast<std::int64_t>(key[0]);
  p.key_step = nb::cast<std::int64_t>(key[1]);
  p.value_width = result.shape[2];
  p.value_offset = nb::cast<std::int64_t>(value[0]);
  p.value_step = nb::cast<std::int64_t>(value[1]);
  p.page_table = static_cast<const std::int32_t*>(table.data);
  p.table_stride = table.stride[0];
  p.scale_log2 = static_cast<float>(scale * kLog2E);
  p.causal = causal;
  p.out = result.data;
  p.out_dtype = result.dtype;
  p.out_token_stride = result.stride[0];
  p.out_head_stride = result.stride[1];
  p.lse = static_cast<float*>(sums.data);
  std::int64_t sequences = 0;
  p.sequences = records_of<AttentionSequence>(plan[0], "sequences", sequences);
  p.items = records_of<AttentionItem>(plan[1], "items", p.item_count);
  p.merges = records_of<AttentionMerge>(plan[2], "merges", p.merge_count);
  const auto slots = nb::cast<std::int64_t>(plan[3]);
  if (!codes.is_none()) {
    p.codes = codes_of(nb::cast<nb::tuple>(codes), p.b_blocks * p.b.width, pages.shape[2]);
    if (p.groups != 1 || p.value_offset >= 0 || p.value_width > p.codes.width || p.key_step != 0) {
      throw Declined("rows of codes: only those of a latent and a RoPE part");
    }
    expect_size("key elements of rows of codes", p.codes.width + p.b_blocks * p.b.width, p.key_width);
  }
  check_sizes(p, codes.is_none() ? pages.shape[2] : p.key_width);
  check_pages(p, sequences, table, pages.shape[0]);
  check_plan(p, sequences, slots, result.shape[0]);
  if (p.item_count == 0) return;
  p.threads = static_cast<int>(threads < p.item_count ? threads : p.item_count);
  if (p.threads < 1) p.threads = 1;
  const std::int64_t slot_floats = isa.kernels->attention_slot(p) * slots;
  float* const kept = slot_memory.is_none() ? nullptr : slots_of(slot_memory, slot_floats);
  nb::gil_scoped_release unlocked;
  const Floats scratch = allocate(isa.kernels->attention_scratch(p) * p.threads);
  const Floats memory = allocate(kept == nullptr ? slot_floats : 0);
  p.scratch = scratch.get();
  p.slots = kept == nullptr ? memory.get() : kept;
  isa.kernels->attention(p);
}

}  // namespace

void bind_attention(nb::class_<Isa>& isa) {
  isa.def("attention", &attention, nb::arg("out"), nb::arg("lse"), nb::arg("a").none(), nb::arg("b").none(),
          nb::arg("rows"), nb::arg("page_table"), nb::arg("plan"), nb::arg("key"), nb::arg("value"), nb::arg("groups"),
          nb::arg("b_blocks"), nb::arg("scale"), nb::arg("causal"), nb::arg("threads"),
          nb::arg("slots").none() = nb::none(), nb::arg("codes").none() = nb::none(),
          "Attention over paged rows; see backends/native.py, which alone calls it.");
}

}  // namespace latentkv
