#include <cstring>
#include <nanobind/stl/unique_ptr.h>

#include "bindings/block.h"
#include "bindings/ops.h"
#include "bindings/paged.h"
#include "bindings/project.h"

namespace latentkv {
namespace nb = nanobind;
namespace {

// The sizes of one layer's attention.
struct LatentSizes {
  std::int64_t layer, heads, nope, rope, groups, latent, value;  // rope: of the cached key, all groups

  std::int64_t query_width() const { return nope + rope / groups; }
};

// The parts of one layer's attention; models/attention.py says what they are.
struct LatentParts {
  Norm norm, query_norm, latent_norm, key_norm, head_norm;
  LinearWeight first_query, kv, query, output;
  bool two_queries;  // `query` follows `first_query`
  Array w_uk, w_uv;
  bool interleaved, rotated;
  double scale;
  float factor;
};

// One call's matrices.
struct LatentPlaces {
  Matrix first, kv, query;
  float *absorbed, *latent, *lse;
  void* expanded;
};

// Multi-head Latent Attention in its latent form; in csrc the only place that knows the order of its steps.
class LatentBlock final : public Block {
 public:
  LatentBlock(const LatentSizes& sizes, const LatentParts& parts, nb::object kept)
      : sizes_(sizes), parts_(parts), kept_(kept) {}

  void check(const BlockStep& step) const override {
    expect_size("hidden", parts_.kv.cols, step.hidden.cols);
    check_layer(step, sizes_.layer);
    if (step.rotated != parts_.rotated) refuse("rotated", "what the block was made for", "the other");
    const std::int64_t row = step.storage.shape[3];
    check_latent_row(step.codes, sizes_.latent, sizes_.rope, row, step.rotated);
    check_angles(step, sizes_.rope / 2);
    const std::int64_t key = sizes_.latent + sizes_.rope;
    step.plan.check(attention(step, {}), key, step.storage.shape[1], step.hidden.rows);
  }

  bool run(const BlockStep& step, BlockMemory& memory) const override {
    const LatentPlaces at = place(step, memory);
    project_down(step, memory, at);
    write(step, at);
    rotate(step, at);
    memory.lap(BlockPart::rows);
    if (!attend(step, memory, at)) return false;
    const Matrix expanded = adjacent(at.expanded, step.hidden.dtype, step.hidden.rows, sizes_.heads * sizes_.value);
    add_to_hidden(step, memory, expanded, parts_.output, parts_.factor);
    return true;
  }

 private:
  LatentPlaces place(const BlockStep& step, BlockMemory& memory) const {
    const std::int64_t tokens = step.hidden.rows, all = step.projected_tokens, heads = sizes_.heads;
    const std::int64_t query_cols = heads * sizes_.query_width();
    const DType dtype = step.hidden.dtype;
    Activations parts;
    const std::int64_t query = parts.add(all * query_cols, dtype), kv = parts.add(tokens * parts_.kv.rows, dtype),
                       first = parts.add(parts_.two_queries ? tokens * parts_.first_query.rows : 0, dtype),
                       absorbed = parts.add(sizes_.nope > 0 ? all * heads * sizes_.latent : 0, DType::f32),
                       latent = parts.add(all * heads * sizes_.latent, DType::f32),
                       lse = parts.add(tokens * heads, DType::f32),
                       expanded = parts.add(all * heads * sizes_.value, dtype);
    parts.place(memory.activations);
    LatentPlaces at{};
    at.query = adjacent(parts.at(query), dtype, tokens, query_cols);
    at.kv = adjacent(parts.at(kv), dtype, tokens, parts_.kv.rows);
    at.first = parts_.two_queries ? adjacent(parts.at(first), dtype, tokens, parts_.first_query.rows) : at.query;
    at.absorbed = static_cast<float*>(parts.at(absorbed));
    at.latent = static_cast<float*>(parts.at(latent));
    at.lse = static_cast<float*>(parts.at(lse));
    at.expanded = parts.at(expanded);
    return at;
  }

  void project_down(const BlockStep& step, BlockMemory& memory, const LatentPlaces& at) const {
    memory.linear.add({step.hidden, &parts_.first_query, nullptr, at.first, {}, 1.0f, parts_.norm});
    memory.linear.add({step.hidden, &parts_.kv, nullptr, at.kv, {}, 1.0f, parts_.norm});
    memory.linear.run(memory.scratch);
    if (parts_.two_queries) {
      memory.linear.add({at.first, &parts_.query, nullptr, at.query, {}, 1.0f, parts_.query_norm});
      memory.linear.run(memory.scratch);
    }
    memory.lap(BlockPart::weights);
  }

  void write(const BlockStep& step, const LatentPlaces& at) const {
    WriteLatentParams p{};
    p.kv = at.kv;
    p.latent_width = sizes_.latent;
    p.groups = sizes_.groups;
    p.latent_norm = parts_.latent_norm;
    p.rope_norm = parts_.key_norm;
    p.angles = step.angles;
    p.interleaved = parts_.interleaved;
    p.slots = step.slots;
    p.cache = layer_rows(step, sizes_.layer);
    p.codes = step.codes;
    p.rotated = step.rotated;
    step.isa.kernels->write_latent(p);
  }

  void rotate(const BlockStep& step, const LatentPlaces& at) const {
    if (sizes_.rope == 0) return;
    RotateQueryParams p{};
    p.query = at.query.data;
    p.dtype = at.query.dtype;
    p.tokens = at.query.rows;
    p.heads = sizes_.heads;
    p.nope = sizes_.nope;
    p.groups = sizes_.groups;
    p.token_stride = at.query.stride;
    p.head_stride = sizes_.query_width();
    p.norm = parts_.head_norm;
    p.angles = step.angles;
    p.interleaved = parts_.interleaved;
    step.isa.kernels->rotate_query(p);
  }

  // Absorbs W_UK, attends, expands by W_UV. False where a sum is not finite.
  bool attend(const BlockStep& step, BlockMemory& memory, const LatentPlaces& at) const {
    const std::int64_t tokens = step.hidden.rows;
    if (sizes_.nope > 0) absorb(step, memory, at);
    AttentionParams p = attention(step, at);
    run_attention(step.isa, p, step.plan.slots, step.threads, memory.scratch);
    const bool sound = sums_are_sound(at.lse, tokens * sizes_.heads);
    if (sound) expand(step, memory, at);
    memory.lap(BlockPart::attention);
    return sound;
  }

  AttentionParams attention(const BlockStep& step, const LatentPlaces& at) const {
    const std::int64_t heads = sizes_.heads, width = sizes_.query_width(), latent = sizes_.latent;
    const DType dtype = step.hidden.dtype;
    const auto* query = static_cast<const char*>(at.query.data);
    AttentionParams p{};
    if (sizes_.nope > 0) p.a = {at.absorbed, DType::f32, latent, heads * latent, latent};
    p.b = {query == nullptr ? nullptr : query + sizes_.nope * bytes_of(dtype), dtype, width - sizes_.nope, heads * width, width};
    p.heads = heads;
    p.groups = 1;
    p.b_blocks = sizes_.groups;
    p.integer = step.integer_attention;
    p.key_width = latent + sizes_.rope;
    p.value_width = latent;
    p.value_offset = -1;
    p.scale_log2 = scale_log2(parts_.scale);
    p.out = at.latent;
    p.out_dtype = DType::f32;
    p.out_token_stride = heads * latent;
    p.out_head_stride = latent;
    p.lse = at.lse;
    set_context(p, step, sizes_.layer);
    return p;
  }

  void absorb(const BlockStep& step, BlockMemory& memory, const LatentPlaces& at) const {
    const Matrix& query = at.query;
    clear_rest(query.data, step, query.cols * bytes_of(query.dtype));
    ProjectParams p = projection(step, parts_.w_uk);
    p.x = {query.data, query.dtype, sizes_.nope, query.stride, sizes_.query_width()};
    p.out_width = sizes_.latent;
    p.out = at.absorbed;
    p.out_dtype = DType::f32;
    set_adjacent_out(p);
    run_project_columns(step.isa, p, memory.scratch);
  }

  void expand(const BlockStep& step, BlockMemory& memory, const LatentPlaces& at) const {
    const std::int64_t cols = sizes_.heads * sizes_.latent;
    clear_rest(at.latent, step, cols * bytes_of(DType::f32));
    ProjectParams p = projection(step, parts_.w_uv);
    p.x = {at.latent, DType::f32, sizes_.latent, cols, sizes_.latent};
    p.out_width = sizes_.value;
    p.out = at.expanded;
    p.out_dtype = step.hidden.dtype;
    set_adjacent_out(p);
    run_project_rows(step.isa, p, memory.scratch);
  }

  ProjectParams projection(const BlockStep& step, const Array& w) const {
    ProjectParams p{};
    p.tokens = step.projected_tokens;
    p.heads = sizes_.heads;
    p.w = w.data;
    p.w_dtype = w.dtype;
    p.w_head_stride = w.stride[0];
    p.w_row_stride = w.stride[1];
    p.threads = step.threads;
    return p;
  }

  static void set_adjacent_out(ProjectParams& p) {
    p.out_head_stride = p.out_width;
    p.out_token_stride = p.heads * p.out_width;
  }

  // The tokens that fill up the per-head products.
  static void clear_rest(void* rows, const BlockStep& step, std::int64_t row_bytes) {
    const std::int64_t tokens = step.hidden.rows;
    std::memset(static_cast<char*>(rows) + tokens * row_bytes, 0, (step.projected_tokens - tokens) * row_bytes);
  }

  LatentSizes sizes_;
  LatentParts parts_;
  nb::object kept_;
};

void check_weights(const LatentSizes& s, const LatentParts& parts) {
  expect_size("heads of w_uv", s.heads, parts.w_uv.shape[0]);
  expect_size("columns of w_uv", s.latent, parts.w_uv.shape[2]);
  expect_size("outputs of kv", s.latent + s.rope, parts.kv.rows);
  expect_size("inputs of the query", parts.kv.cols, parts.first_query.cols);
  if (parts.two_queries) expect_size("inputs of the second query", parts.first_query.rows, parts.query.cols);
  expect_size("outputs of the query", s.heads * s.query_width(), (parts.two_queries ? parts.query : parts.first_query).rows);
  expect_size("inputs of the output", s.heads * s.value, parts.output.cols);
  expect_size("outputs of the output", parts.kv.cols, parts.output.rows);
}

std::unique_ptr<Block> latent_block(std::int64_t layer, nb::object norm, float eps, nb::object first_query, nb::object kv,
                                    nb::object query_norm, float latent_eps, nb::object query, nb::object latent_norm,
                                    nb::object key_norm, nb::object head_norm, nb::object w_uk, nb::object w_uv,
                                    nb::object output, std::int64_t rope, std::int64_t groups, bool interleaved,
                                    bool rotated, double scale, float factor) {
  LatentParts parts{};
  parts.w_uk = cube_of(w_uk, "w_uk");
  parts.w_uv = cube_of(w_uv, "w_uv");
  const std::int64_t *uk = parts.w_uk.shape, *uv = parts.w_uv.shape;
  const LatentSizes sizes{layer, uk[0], uk[1], rope, groups, uk[2], uv[1]};
  if (layer < 0 || groups < 1 || rope % (2 * groups) != 0 || sizes.heads % groups != 0) {
    refuse("groups", "a divisor of heads and RoPE pairs", std::to_string(groups));
  }
  parts.first_query = map_of(first_query);
  parts.kv = map_of(kv);
  parts.two_queries = !query.is_none();
  if (parts.two_queries) parts.query = map_of(query);
  parts.output = map_of(output);
  parts.norm = norm_of(norm, "norm", parts.kv.cols, eps);
  parts.query_norm = norm_of(query_norm, "query_norm", parts.first_query.rows, latent_eps);
  parts.latent_norm = norm_of(latent_norm, "latent_norm", sizes.latent, latent_eps);
  parts.key_norm = norm_of(key_norm, "key_norm", rope / groups, eps);
  parts.head_norm = norm_of(head_norm, "head_norm", rope / groups, eps);
  parts.interleaved = interleaved;
  parts.rotated = rotated;
  parts.scale = scale;
  parts.factor = factor;
  check_weights(sizes, parts);
  nb::object kept = nb::make_tuple(norm, first_query, kv, query_norm, query, latent_norm, key_norm, head_norm, w_uk, w_uv, output);
  return std::make_unique<LatentBlock>(sizes, parts, kept);
}

}  // namespace

void bind_latent_block(nb::module_& module) {
  module.def("latent_block", &latent_block, nb::kw_only(), nb::arg("layer"), nb::arg("norm"), nb::arg("eps"),
             nb::arg("first_query"), nb::arg("kv"), nb::arg("query_norm").none(), nb::arg("latent_eps"),
             nb::arg("query").none(), nb::arg("latent_norm").none(), nb::arg("key_norm").none(),
             nb::arg("head_norm").none(), nb::arg("w_uk"), nb::arg("w_uv"), nb::arg("output"), nb::arg("rope"),
             nb::arg("groups"), nb::arg("interleaved"), nb::arg("rotated"), nb::arg("scale"), nb::arg("factor"));
}

}  // namespace latentkv
