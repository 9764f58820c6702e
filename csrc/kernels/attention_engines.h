// What computes a chunk of context or of a weight's rows, on vectors or on matrix tiles.
#pragma once

#include "kernels/attention_chunk.h"
#include "kernels/attention_code_chunk.h"
#include "kernels/attention_tile_byte_chunk.h"
#include "kernels/attention_tile_chunk.h"
#include "kernels/attention_tile_code_chunk.h"

namespace latentkv::LATENTKV_ISA {

// For all sizes and rows.
template <int W>
struct VectorEngine {
  using Query = PackedQuery<W>;
  using Chunk = latentkv::LATENTKV_ISA::Chunk<W>;
  static constexpr float kSlack = 0.0f;
};

// Codes and queries as int16.
template <int W>
struct CodeEngine {
  using Query = CodeQuery<W>;
  using Chunk = CodeChunk<W>;
  static constexpr float kSlack = 8.0f;  // as below
};

struct TileEngine {
  using Query = TileQuery;
  using Chunk = TileChunk;
  // Scores may exceed `top` by this: the sums, which lie in memory, then seldom need shrinking.
  static constexpr float kSlack = 8.0f;
};

// Codes as bf16.
struct TileCodeEngine {
  using Query = TileQuery;
  using Chunk = TileCodeChunk;
  static constexpr float kSlack = 8.0f;
};

// Codes, queries and weights as bytes.
struct TileByteEngine {
  using Query = TileByteQuery;
  using Chunk = TileByteChunk;
  static constexpr float kSlack = 8.0f;
};

// Whether an engine's sums over rows of T stand in parted columns (attention_tiles.h).
template <typename Engine, typename T>
constexpr bool kPartedSums = false;
template <int W, typename T>
constexpr bool kPartedSums<VectorEngine<W>, T> = kParted<T>;

}  // namespace latentkv::LATENTKV_ISA
