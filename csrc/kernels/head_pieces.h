// How the head form is divided: pieces of new tokens, stretches of context, and what a token sees.
#pragma once

#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

// Tiles of one piece: more would keep more unfinished results; fewer would not pay for expanding the context again.
constexpr std::int64_t kMostPieceTiles = 128, kLeastPieceTiles = 8;
constexpr std::int64_t kPiecesPerThread = 4;

inline std::int64_t piece_tokens(const HeadFormParams& p) {
  const std::int64_t tiles = round_up(p.attention.sequences[0].query_len, kRows) / kRows;
  const std::int64_t wanted = (kPiecesPerThread * p.attention.threads + p.attention.heads - 1) / p.attention.heads;
  std::int64_t each = (tiles + wanted - 1) / wanted;
  each = each < kLeastPieceTiles ? kLeastPieceTiles : each > kMostPieceTiles ? kMostPieceTiles : each;
  return (each < tiles ? each : tiles) * kRows;
}

// Context tokens expanded at once, in chunks of `step`.
inline std::int64_t stretch_tokens(const HeadFormParams& p, std::int64_t token_bytes, std::int64_t step) {
  const std::int64_t context = round_up(p.attention.sequences[0].context_len, step);
  const std::int64_t fitting = p.stretch_bytes / token_bytes / step * step;
  const std::int64_t most = fitting < step ? step : fitting;
  return context < step ? step : context < most ? context : most;
}

// How much of the context a new token sees; less than nothing where even the first context token comes after it.
inline std::int64_t seen_by(const HeadFormParams& p, std::int64_t token) {
  const AttentionSequence& sequence = p.attention.sequences[0];
  return sequence.context_len - (p.attention.causal ? sequence.query_len - 1 - token : 0);
}

}  // namespace latentkv::LATENTKV_ISA
