#include <nanobind/stl/unique_ptr.h>

#include "bindings/block.h"
#include "bindings/ops.h"
#include "bindings/paged.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// The parts of one layer's attention; models/attention.py says what they are. Heads and groups follow from the widths.
struct GroupedParts {
  std::int64_t layer, width, value_width;
  Norm norm, query_norm, key_norm;
  LinearWeight query, key, value, output;
  bool interleaved;
  double scale;
  float factor;

  std::int64_t heads() const { return query.rows / width; }
  std::int64_t groups() const { return key.rows / width; }
};

struct GroupedPlaces {
  Matrix query, key, value, out;
  float* lse;
};

// Grouped-query attention over rows of keys and values.
class GroupedBlock final : public Block {
 public:
  GroupedBlock(const GroupedParts& parts, nb::object kept) : p_(parts), kept_(kept) {}

  void check(const BlockStep& step) const override {
    expect_size("hidden", p_.query.cols, step.hidden.cols);
    check_layer(step, p_.layer);
    const std::int64_t elements = p_.key.rows + p_.value.rows;
    if (is_coded(step)) {
      check_coded_row(step.coded_row, p_.key.rows, p_.value.rows);
    } else {
      expect_size("elements of a row", elements, step.storage.shape[3]);
    }
    check_angles(step, p_.width / 2);
    step.plan.check(attention(step, {}), elements, step.storage.shape[1], step.hidden.rows);
  }

  bool run(const BlockStep& step, BlockMemory& memory) const override {
    const GroupedPlaces at = place(step, memory);
    for (const auto& [weight, out] : {std::pair{&p_.query, &at.query}, {&p_.key, &at.key}, {&p_.value, &at.value}}) {
      memory.linear.add({step.hidden, weight, nullptr, *out, {}, 1.0f, p_.norm});
    }
    memory.linear.run(memory.scratch);
    memory.lap(BlockPart::weights);
    rotate(step, at.key, p_.key_norm);
    write(step, at);
    rotate(step, at.query, p_.query_norm);
    memory.lap(BlockPart::rows);
    AttentionParams p = attention(step, at);
    run_attention(step.isa, p, step.plan.slots, step.threads, memory.scratch);
    const bool sound = sums_are_sound(at.lse, step.hidden.rows * p_.heads());
    memory.lap(BlockPart::attention);
    if (sound) add_to_hidden(step, memory, at.out, p_.output, p_.factor);
    return sound;
  }

 private:
  static bool is_coded(const BlockStep& step) { return step.storage.dtype == DType::u8; }

  GroupedPlaces place(const BlockStep& step, BlockMemory& memory) const {
    const std::int64_t tokens = step.hidden.rows;
    const DType dtype = step.hidden.dtype;
    Activations parts;
    const auto add = [&](std::int64_t cols) { return parts.add(tokens * cols, dtype); };
    const std::int64_t query = add(p_.query.rows), key = add(p_.key.rows), value = add(p_.value.rows),
                       out = add(p_.output.cols), lse = parts.add(tokens * p_.heads(), DType::f32);
    parts.place(memory.activations);
    const auto matrix = [&](std::int64_t at, std::int64_t cols) { return adjacent(parts.at(at), dtype, tokens, cols); };
    return {matrix(query, p_.query.rows), matrix(key, p_.key.rows), matrix(value, p_.value.rows),
            matrix(out, p_.output.cols), static_cast<float*>(parts.at(lse))};
  }

  void rotate(const BlockStep& step, const Matrix& rows, const Norm& norm) const {
    RotateQueryParams p{};
    p.query = rows.data;
    p.dtype = rows.dtype;
    p.tokens = rows.rows;
    p.heads = rows.cols / p_.width;
    p.groups = 1;
    p.token_stride = rows.stride;
    p.head_stride = p_.width;
    p.norm = norm;
    p.angles = step.angles;
    p.interleaved = p_.interleaved;
    step.isa.kernels->rotate_query(p);
  }

  void write(const BlockStep& step, const GroupedPlaces& at) const {
    const Matrix parts[] = {at.key, at.value};
    step.isa.kernels->write_rows({parts, 2, step.slots, layer_rows(step, p_.layer), step.coded_row.parts});
  }

  AttentionParams attention(const BlockStep& step, const GroupedPlaces& at) const {
    const std::int64_t heads = p_.heads(), width = p_.width;
    const DType dtype = step.hidden.dtype;
    AttentionParams p{};
    p.a = {at.query.data, dtype, width, heads * width, width};
    p.heads = heads;
    p.groups = p_.groups();
    p.b_blocks = 1;
    p.key_width = p.key_step = width;
    p.value_width = p.value_step = p_.value_width;
    p.value_offset = p_.key.rows;
    p.scale_log2 = scale_log2(p_.scale);
    p.out = at.out.data;
    p.out_dtype = dtype;
    p.out_token_stride = heads * p_.value_width;
    p.out_head_stride = p_.value_width;
    p.lse = at.lse;
    set_context(p, step, p_.layer);
    if (is_coded(step)) take_parts(step.coded_row, p);
    return p;
  }

  GroupedParts p_;
  nb::object kept_;
};

void check_weights(const GroupedParts& p) {
  if (p.width < 1 || p.width % 2 != 0 || p.key.rows % p.width != 0 || p.query.rows % p.width != 0 || p.key.rows == 0) {
    refuse("width", "an even divisor of query and key", std::to_string(p.width));
  }
  expect_size("outputs of the value", p.groups() * p.value_width, p.value.rows);
  expect_size("inputs of the key", p.query.cols, p.key.cols);
  expect_size("inputs of the value", p.query.cols, p.value.cols);
  expect_size("inputs of the output", p.heads() * p.value_width, p.output.cols);
  expect_size("outputs of the output", p.query.cols, p.output.rows);
}

std::unique_ptr<Block> grouped_block(std::int64_t layer, nb::object norm, float eps, nb::object query, nb::object key,
                                     nb::object value, nb::object query_norm, nb::object key_norm, nb::object output,
                                     std::int64_t width, std::int64_t value_width, bool interleaved, double scale,
                                     float factor) {
  GroupedParts p{};
  p.layer = layer;
  p.width = width;
  p.value_width = value_width;
  p.query = map_of(query);
  p.key = map_of(key);
  p.value = map_of(value);
  p.output = map_of(output);
  p.interleaved = interleaved;
  p.scale = scale;
  p.factor = factor;
  check_weights(p);
  p.norm = norm_of(norm, "norm", p.query.cols, eps);
  p.query_norm = norm_of(query_norm, "query_norm", width, eps);
  p.key_norm = norm_of(key_norm, "key_norm", width, eps);
  return std::make_unique<GroupedBlock>(p, nb::make_tuple(norm, query, key, value, query_norm, key_norm, output));
}

}  // namespace

void bind_grouped_block(nb::module_& module) {
  module.def("grouped_block", &grouped_block, nb::kw_only(), nb::arg("layer"), nb::arg("norm"), nb::arg("eps"),
             nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("query_norm").none(), nb::arg("key_norm").none(),
             nb::arg("output"), nb::arg("width"), nb::arg("value_width"), nb::arg("interleaved"), nb::arg("scale"),
             nb::arg("factor"));
}

}  // namespace latentkv
