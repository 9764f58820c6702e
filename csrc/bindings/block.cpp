#include "bindings/block.h"

#include <cmath>

namespace latentkv {

std::int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::i64: return 8;
    case DType::f32: case DType::i32: return 4;
    case DType::bf16: case DType::f16: return 2;
    default: return 1;
  }
}

std::int64_t Activations::add(std::int64_t elements, DType dtype) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t at = bytes_;
  bytes_ += (elements * bytes_of(dtype) + kLine - 1) / kLine * kLine;
  return at;
}

Matrix adjacent(void* data, DType dtype, std::int64_t rows, std::int64_t cols) { return {data, dtype, rows, cols, cols}; }

Matrix layer_rows(const BlockStep& step, std::int64_t layer) {
  const Array& all = step.storage;
  char* data = static_cast<char*>(all.data) + layer * all.stride[0] * bytes_of(all.dtype);
  return {data, all.dtype, all.shape[1] * all.shape[2], all.shape[3], all.stride[2]};
}

void check_layer(const BlockStep& step, std::int64_t layer) {
  if (layer < step.storage.shape[0]) return;
  refuse("storage", "more than " + std::to_string(layer) + " layers", std::to_string(step.storage.shape[0]));
}

void check_angles(const BlockStep& step, std::int64_t pairs) { expect_size("pairs of angles", pairs, step.angles.pairs); }

void set_context(AttentionParams& p, const BlockStep& step, std::int64_t layer) {
  const Matrix rows = layer_rows(step, layer);
  p.rows = rows.data;
  p.row_dtype = rows.dtype;
  p.codes = step.codes;
  p.page_tokens = step.storage.shape[2];
  p.page_stride = step.storage.stride[1];
  p.row_stride = step.storage.stride[2];
  p.causal = true;
  step.plan.set(p);
}

bool sums_are_sound(const float* lse, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(lse[i]) && !(lse[i] < 0)) return false;
  }
  return true;
}

void add_to_hidden(const BlockStep& step, BlockMemory& memory, const Matrix& x, const LinearWeight& weight, float factor) {
  memory.linear.add({x, &weight, nullptr, step.hidden, step.hidden, factor, {}});
  memory.linear.run(memory.scratch);
  memory.lap(BlockPart::weights);
}

}  // namespace latentkv
