// How the head form is divided: pieces of new tokens, stretches of context, and what a token sees.
#pragma once

#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

// New tokens first ... first + count - 1 of one head.
struct HeadPiece {
  std::int64_t head, first, count;
};

// All new tokens of most heads are one piece, so that the context is expanded once; the last heads are cut, so that threads
// end together.
class HeadPieces {
 public:
  explicit HeadPieces(const HeadFormParams& p) : query_len_(p.attention.sequences[0].query_len) {
    const std::int64_t heads = p.attention.heads, threads = p.attention.threads;
    const std::int64_t late = threads == 1 ? 0 : threads + heads % threads;
    whole_heads_ = late < heads ? heads - late : 0;
    late_heads_ = heads - whole_heads_;
    whole_ = step_of(1);
    late_ = late_heads_ == 0 ? whole_ : step_of((kPiecesPerThread * threads + late_heads_ - 1) / late_heads_);
  }

  std::int64_t most_tokens() const { return whole_heads_ > 0 ? whole_ : late_; }
  std::int64_t count() const { return whole_heads_ * steps(whole_) + late_heads_ * steps(late_); }

  // The last tokens see most: they come first, so that what is left for the end is short.
  HeadPiece at(std::int64_t index) const {
    const std::int64_t before = whole_heads_ * steps(whole_);
    return index < before ? piece(index, 0, whole_heads_, whole_) : piece(index - before, whole_heads_, late_heads_, late_);
  }

 private:
  // Tiles of one piece: more would keep more unfinished results; fewer would not pay for expanding the context again.
  static constexpr std::int64_t kMostTiles = 128, kLeastTiles = 8;
  static constexpr std::int64_t kPiecesPerThread = 2;

  // Tokens of a piece where a head is cut into `wanted` pieces.
  std::int64_t step_of(std::int64_t wanted) const {
    const std::int64_t tiles = round_up(query_len_, kRows) / kRows, each = (tiles + wanted - 1) / wanted;
    const std::int64_t bounded = each < kLeastTiles ? kLeastTiles : each > kMostTiles ? kMostTiles : each;
    return (bounded < tiles ? bounded : tiles) * kRows;
  }

  std::int64_t steps(std::int64_t step) const { return (query_len_ + step - 1) / step; }

  HeadPiece piece(std::int64_t index, std::int64_t first_head, std::int64_t heads, std::int64_t step) const {
    const std::int64_t first = (steps(step) - 1 - index / heads) * step, left = query_len_ - first;
    return {first_head + index % heads, first, step < left ? step : left};
  }

  std::int64_t query_len_, whole_heads_, late_heads_, whole_, late_;
};

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
