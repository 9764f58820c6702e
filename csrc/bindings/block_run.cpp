#include <new>
#include <vector>

#include "bindings/block.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

Array storage_of(nb::handle object, bool coded) {
  const Array all = array_of(object, "storage");
  check_dtype(all, "storage", coded ? kCodes : kStored);
  if (all.ndim != 4) refuse("storage", "[layers, pages, page_tokens, elements]", std::to_string(all.ndim) + " dimensions");
  const bool whole = all.stride[3] == 1 && all.stride[2] == all.shape[3] && all.stride[1] == all.shape[2] * all.stride[2];
  if (!whole) throw Declined("storage: strided");
  return all;
}

// Where memory runs out, the block's hidden is as it was: op by op it may do, or else raises as ever.
bool runs_well(const Block& block, const BlockStep& step, BlockMemory& memory) {
  try {
    return block.run(step, memory);
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// The first block that does not end well, or their number. No Python runs here.
std::size_t run_all(const std::vector<const Block*>& blocks, const BlockStep& step, BlockMemory& memory) {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (!runs_well(*blocks[i], step, memory)) return i;
  }
  return blocks.size();
}

nb::tuple run_blocks(const Isa& isa, nb::tuple blocks, nb::handle hidden, nb::handle storage, nb::object codes,
                     nb::object parts, bool rotated, nb::handle slots, nb::tuple angles, nb::handle page_table, nb::tuple plan,
                     std::int64_t projected_tokens, bool integer, bool narrow, bool integer_attention, int threads) {
  const Array all = storage_of(storage, !codes.is_none() || !parts.is_none());
  BlockStep step{isa, matrix_of(hidden, "hidden", kFloats), all, {}, {}, rotated, nullptr, {}, AttentionPlan(plan, page_table),
                 projected_tokens, integer, narrow, integer_attention, threads < 1 ? 1 : threads};
  const std::int64_t tokens = step.hidden.rows;
  if (!codes.is_none()) step.codes = codes_of(nb::cast<nb::tuple>(codes), all.shape[3]);
  if (!parts.is_none()) step.coded_row = coded_row_of(nb::cast<nb::tuple>(parts), all.shape[3]);
  if (projected_tokens < tokens) refuse("projected_tokens", "all tokens", std::to_string(projected_tokens));
  step.angles = angles_of(angles, tokens);
  step.slots = slots_of(slots, tokens, layer_rows(step, 0));
  std::vector<const Block*> chosen;
  for (const nb::handle block : blocks) {
    chosen.push_back(&nb::cast<const Block&>(block));
    chosen.back()->check(step);
  }
  BlockMemory memory(step);
  std::size_t done = chosen.size();
  if (tokens > 0) {
    nb::gil_scoped_release unlocked;
    done = run_all(chosen, step, memory);
  }
  return nb::make_tuple(done, nb::make_tuple(memory.seconds[0], memory.seconds[1], memory.seconds[2]));
}

}  // namespace

void bind_blocks(nb::module_& module, nb::class_<Isa>& isa) {
  nb::class_<Block>(module, "Block");
  bind_gated_block(module);
  bind_grouped_block(module);
  bind_latent_block(module);
  bind_routed_block(module);
  isa.def("run_blocks", &run_blocks, nb::arg("blocks"), nb::arg("hidden"), nb::kw_only(), nb::arg("storage"),
          nb::arg("codes").none(), nb::arg("parts").none(), nb::arg("rotated"), nb::arg("slots"), nb::arg("angles"), nb::arg("page_table"),
          nb::arg("plan"), nb::arg("projected_tokens"), nb::arg("integer"), nb::arg("narrow"),
          nb::arg("integer_attention"), nb::arg("threads"),
          "Runs blocks one after the other over `hidden`, in place; how many ended well, and (weights, attention, rows) "
          "seconds.");
}

}  // namespace latentkv
