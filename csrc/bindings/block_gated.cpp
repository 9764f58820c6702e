#include <nanobind/stl/unique_ptr.h>

#include "bindings/block.h"
#include "bindings/ops.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// hidden += factor * down(silu(gate(x)) * up(x)), x the normed hidden.
class GatedBlock final : public Block {
 public:
  GatedBlock(const Norm& norm, const LinearWeight& gate, const LinearWeight& up, const LinearWeight& down, float factor,
             nb::object kept)
      : norm_(norm), gate_(gate), up_(up), down_(down), factor_(factor), kept_(kept) {}

  void check(const BlockStep& step) const override { expect_size("hidden", up_.cols, step.hidden.cols); }

  bool run(const BlockStep& step, BlockMemory& memory) const override {
    const std::int64_t tokens = step.hidden.rows;
    const DType dtype = step.hidden.dtype;
    Activations parts;
    const std::int64_t inner_at = parts.add(tokens * up_.rows, dtype);
    parts.place(memory.activations);
    const Matrix inner = adjacent(parts.at(inner_at), dtype, tokens, up_.rows);
    memory.linear.add({step.hidden, &up_, &gate_, inner, {}, 1.0f, norm_});
    memory.linear.run(memory.scratch);
    add_to_hidden(step, memory, inner, down_, factor_);
    return true;
  }

 private:
  Norm norm_;
  LinearWeight gate_, up_, down_;
  float factor_;
  nb::object kept_;
};

std::unique_ptr<Block> gated_block(nb::object norm, float eps, nb::object gate, nb::object up, nb::object down,
                                   float factor) {
  const LinearWeight &first = map_of(gate), &second = map_of(up), &last = map_of(down);
  check_gate(second, first);
  expect_size("inputs of down", second.rows, last.cols);
  expect_size("outputs of down", second.cols, last.rows);
  return std::make_unique<GatedBlock>(norm_of(norm, "norm", second.cols, eps), first, second, last, factor,
                                      nb::make_tuple(norm, gate, up, down));
}

}  // namespace

void bind_gated_block(nb::module_& module) {
  module.def("gated_block", &gated_block, nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"),
             nb::arg("down"), nb::arg("factor"));
}

}  // namespace latentkv
