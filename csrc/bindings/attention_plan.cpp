#include "bindings/attention.h"

#include "bindings/paged.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

constexpr std::int64_t kTileRows = 64;  // kRows of kernels/attention_tiles.h

// A table of records of int64: [count, sizeof(Record) / 8].
template <typename Record>
const Record* records_of(nb::handle object, const char* name, std::int64_t& count) {
  const Matrix matrix = matrix_of(object, name, {DType::i64});
  expect_size(name, sizeof(Record) / sizeof(std::int64_t), matrix.cols);
  if (matrix.rows > 1 && matrix.stride != matrix.cols) refuse(name, "adjacent records", "strided ones");
  count = matrix.cols == 0 ? 0 : matrix.rows;
  return static_cast<const Record*>(matrix.data);
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

}  // namespace

AttentionPlan::AttentionPlan(nb::tuple plan, nb::handle page_table) : table(array_of(page_table, "page_table")) {
  records.sequences = records_of<AttentionSequence>(plan[0], "sequences", sequences);
  records.items = records_of<AttentionItem>(plan[1], "items", records.item_count);
  records.merges = records_of<AttentionMerge>(plan[2], "merges", records.merge_count);
  slots = nb::cast<std::int64_t>(plan[3]);
  check_table(table);
  expect_size("rows of page_table", sequences, table.shape[0]);
}

void AttentionPlan::set(AttentionParams& p) const {
  p.page_table = static_cast<const std::int32_t*>(table.data);
  p.table_stride = table.stride[0];
  p.sequences = records.sequences;
  p.items = records.items;
  p.item_count = records.item_count;
  p.merges = records.merges;
  p.merge_count = records.merge_count;
}

void AttentionPlan::check(const AttentionParams& p, std::int64_t row_elements, std::int64_t pages,
                          std::int64_t tokens) const {
  check_sizes(p, row_elements);
  for (std::int64_t i = 0; i < sequences; ++i) {
    const AttentionSequence& sequence = p.sequences[i];
    check_pages(table, i, sequence.query_len == 0 ? 0 : sequence.context_len, p.page_tokens, pages);
  }
  check_plan(p, sequences, slots, tokens);
}

void run_attention(const Isa& isa, AttentionParams& p, std::int64_t slots, int threads, Buffer& scratch) {
  if (p.item_count == 0) return;
  p.threads = static_cast<int>(threads < p.item_count ? threads : p.item_count);
  if (p.threads < 1) p.threads = 1;
  const std::int64_t own = isa.kernels->attention_scratch(p) * p.threads;
  p.scratch = scratch.floats(own + isa.kernels->attention_slot(p) * slots);
  p.slots = p.scratch + own;
  isa.kernels->attention(p);
}

}  // namespace latentkv
