// Arguments of attention over rows in pages: queries, results, rows and their page table.
#pragma once

#include "bindings/arguments.h"

namespace latentkv {

// [T, H, width] with the tokens and heads of `out`; None is a part of no width.
QueryPart query_part(nanobind::handle object, const char* name, const Array& out);

// Output [T, H, V] and LSE [T, H].
void take_results(const Array& out, nanobind::handle lse, AttentionParams& p);

void take_rows(const Array& pages, const Array& table, AttentionParams& p);

// Rows of keys and values in codes. Throws ShapeError unless the keys of p are those of all groups.
void take_parts(const CodedRow& row, AttentionParams& p);

// [B, pages] int32.
void check_table(const Array& table);

// As many pages in row `index` as the context needs, each in the cache. Nothing else of the table is looked at.
void check_pages(const Array& table, std::int64_t index, std::int64_t context_len, std::int64_t page_tokens,
                 std::int64_t pages);

// The kernels count in powers of 2.
float scale_log2(double scale);

}  // namespace latentkv
