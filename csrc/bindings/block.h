// Half-layers as one object each: attention or a feed-forward block, with the norm before it and the residual after it.
// Made once from checked parts; a call then runs many of them (block_run.cpp). No arithmetic is done here.
#pragma once

#include <chrono>

#include "bindings/arguments.h"
#include "bindings/attention.h"
#include "bindings/linear.h"

namespace latentkv {

// What the blocks of one call share.
struct BlockStep {
  const Isa& isa;
  Matrix hidden;   // [T, hidden], read, and at the end of a block written
  Array storage;   // [layers, pages, page_tokens, elements], without gaps
  RowCodes codes;      // of a storage of u8: of its latents,
  CodedRow coded_row;  // or of its keys and values
  bool rotated;    // the cached latents
  const std::int64_t* slots;
  AngleTable angles;
  AttentionPlan plan;
  std::int64_t projected_tokens;  // what per-head products compute at least, filled up with zeros
  bool integer, narrow;    // how x may and must be rounded: LinearCall
  bool integer_attention;  // whether rows of codes may be multiplied as whole numbers
  int threads;
};

enum class BlockPart { weights, attention, rows };
constexpr int kBlockParts = 3;

// Memory of a call, used by one block after the other, and where its time went.
class BlockMemory {
 public:
  explicit BlockMemory(const BlockStep& step) : linear(step.isa, step.integer, step.narrow, step.threads) {}

  // What ran since the last lap was this part.
  void lap(BlockPart part) {
    const auto now = Clock::now();
    seconds[static_cast<int>(part)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }

  Buffer activations, scratch;
  LinearCall linear;
  double seconds[kBlockParts] = {};

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point since_ = Clock::now();
};

class Block {
 public:
  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  virtual ~Block() = default;

  // Throws what the ops themselves would for such arguments; nothing has been written then.
  virtual void check(const BlockStep& step) const = 0;

  // Updates step.hidden. False where attention's sums are not finite: step.hidden is then as it was.
  virtual bool run(const BlockStep& step, BlockMemory& memory) const = 0;
};

// A block's own matrices one behind the other: their sizes first, then their places.
class Activations {
 public:
  // Bytes from the beginning, at a cache line's beginning.
  std::int64_t add(std::int64_t elements, DType dtype);
  void place(Buffer& buffer) { base_ = reinterpret_cast<char*>(buffer.floats(bytes_ / 4)); }
  void* at(std::int64_t offset) const { return base_ + offset; }

 private:
  char* base_ = nullptr;
  std::int64_t bytes_ = 0;
};

std::int64_t bytes_of(DType dtype);

// [rows, cols] of adjacent rows.
Matrix adjacent(void* data, DType dtype, std::int64_t rows, std::int64_t cols);

// The pages of one layer, as rows.
Matrix layer_rows(const BlockStep& step, std::int64_t layer);

// Throws unless the layer is one of the storage's.
void check_layer(const BlockStep& step, std::int64_t layer);

// Throws unless the step's angles are of so many pairs.
void check_angles(const BlockStep& step, std::int64_t pairs);

// Rows, pages and plan of a call of attention over one layer.
void set_context(AttentionParams& p, const BlockStep& step, std::int64_t layer);

// Whether all are finite or -inf, which says that a row sees nothing.
bool sums_are_sound(const float* lse, std::int64_t count);

// hidden = factor * (x weightᵀ + bias) + hidden.
void add_to_hidden(const BlockStep& step, BlockMemory& memory, const Matrix& x, const LinearWeight& weight, float factor);

}  // namespace latentkv
