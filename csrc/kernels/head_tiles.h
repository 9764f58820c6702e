// The head form on matrix tiles: up to 64 new tokens of one head against a stretch of its expanded keys and values.
//
//   scores: queries (16 tokens x 32 columns) x keys (32 columns x 16 context tokens)
//   sums:   weights (16 tokens x 32 context tokens) x values (32 context tokens x 16 columns)
//
// Of two numbers in three terms each the six products are computed that matter: the others are below 2**-21 of the product,
// 2**-24 in the mean.
#pragma once

#include "kernels/head_expansion.h"

namespace latentkv::LATENTKV_ISA {

class HeadTiles {
  static constexpr int W = 16;
  using S = Simd<W>;
  using F = S::F;
  using U = S::U;

 public:
  static bool suits(const HeadFormParams& p) { return HeadExpansion::suits(p); }

  HeadTiles(const HeadFormParams& p, float* memory)
      : p_(p),
        terms_(query_terms(p)),
        expansion_(p, memory),
        query_(reinterpret_cast<std::uint16_t*>(memory + HeadExpansion::floats(p))),
        scores_(memory + HeadExpansion::floats(p) + query_floats(p)),
        weights_(reinterpret_cast<std::uint32_t*>(scores_ + kRows * kTokens)),
        partials_(scores_ + kRows * kTokens + kWeightWords) {}

  static std::int64_t floats(const HeadFormParams& p) {
    const std::int64_t partials = HeadPieces(p).most_tokens() / kRows * partial_floats(p);
    return round_up(HeadExpansion::floats(p) + query_floats(p) + kRows * kTokens + kWeightWords + partials, 16);
  }

  // New tokens first ... first + count - 1 of one head.
  void run(std::int64_t head, std::int64_t first, std::int64_t count) {
    head_ = head;
    expansion_.take_head(head);
    for (std::int64_t row = 0; row < count; row += kRows) {
      take(first, row, count);
      partial().clear(kRows);
      for (std::int64_t i = 0; i < kRows; ++i) S::store(totals() + i * W, S::zero());
    }
    const std::int64_t seen = seen_by(p_, first + count - 1), stretch = HeadExpansion::stretch(p_);
    for (std::int64_t begin = 0; begin < seen; begin += stretch) {
      const std::int64_t end = begin + stretch < seen ? begin + stretch : seen;
      expansion_.expand(tiles_, begin, end - begin);
      for (std::int64_t row = 0; row < count; row += kRows) {
        take(first, row, count);
        attend(begin, end);
      }
    }
    for (std::int64_t row = 0; row < count; row += kRows) {
      take(first, row, count);
      finish();
    }
  }

 private:
  static constexpr std::int64_t kTokens = 64;  // of a chunk
  static constexpr std::int64_t kTerms = HeadExpansion::kTerms, kTileWords = HeadExpansion::kTileWords;
  static constexpr std::int64_t kSteps = kTokens / kTileDepth, kRowTiles = kRows / kTileRows;
  static constexpr std::int64_t kWeightWords = kRowTiles * kSteps * kTerms * kTileWords;
  // Scores may exceed `top` by this: sums, which lie in memory, then seldom need shrinking.
  static constexpr float kSlack = 8.0f;

  static std::int64_t query_terms(const HeadFormParams& p) { return p.attention.a.dtype == DType::bf16 ? 1 : kTerms; }
  static std::int64_t query_floats(const HeadFormParams& p) {
    return query_terms(p) * kRows * p.attention.key_width / 2;
  }
  static std::int64_t partial_floats(const HeadFormParams& p) {
    return Partial::floats(value_strips(p.attention)) + kRows * W;
  }

  // The tile whose first token is first + row.
  void take(std::int64_t first, std::int64_t row, std::int64_t count) {
    tile_ = row / kRows;
    first_ = first + row;
    count_ = count - row < kRows ? count - row : kRows;
  }

  Partial partial() const { return {partials_ + tile_ * partial_floats(p_), value_strips(p_.attention)}; }

  // [kRows][W]: every lane has its own share of a row's total.
  float* totals() const { return partials_ + (tile_ + 1) * partial_floats(p_) - kRows * W; }

  void attend(std::int64_t begin, std::int64_t end) {
    const std::int64_t seen = seen_by(p_, first_ + count_ - 1);
    if (begin >= seen) return;
    copy_query();
    end = end < seen ? end : seen;
    for (std::int64_t chunk = begin; chunk < end; chunk += kTokens) {
      const std::int64_t tokens = end - chunk < kTokens ? end - chunk : kTokens;
      const std::int64_t steps = (tokens + kTileDepth - 1) / kTileDepth;
      if (count_ > kRows / 2) {
        compute<kRowTiles>(begin, chunk, tokens, steps);
      } else {
        compute<kRowTiles / 2>(begin, chunk, tokens, steps);
      }
    }
  }

  template <int RowTiles>
  void compute(std::int64_t begin, std::int64_t chunk, std::int64_t tokens, std::int64_t steps) {
    const std::int64_t first_tile = (chunk - begin) / kTileRows;
    for (std::int64_t tile = 0; tile < steps * 2; ++tile) {
      terms_ == 1 ? score<RowTiles, 1>(expansion_.keys(first_tile + tile), scores_ + tile * W)
                  : score<RowTiles, kTerms>(expansion_.keys(first_tile + tile), scores_ + tile * W);
    }
    const bool all = seen_by(p_, first_) >= chunk + steps * kTileDepth;
    const Partial result = partial();
    for (std::int64_t row = 0; row < RowTiles * kTileRows; ++row) {
      const std::int64_t seen = seen_by(p_, first_ + row) - chunk, most = seen < tokens ? seen : tokens;
      steps == kSteps ? softmax<kSteps>(result, row, most, all) : softmax<1>(result, row, most, all);
    }
    for (std::int64_t column = 0; column < p_.value.width / W; column += 2) {
      for (std::int64_t row_tile = 0; row_tile < RowTiles; row_tile += 2) {
        sum(result, row_tile, column, first_tile / 2, steps);
      }
    }
  }

  // Rows as left-hand tiles, term by term; zeros beyond the last.
  void copy_query() {
    const QueryPart& a = p_.attention.a;
    for (std::int64_t row = 0; row < kRows; ++row) {
      std::uint16_t* to = query_ + row * a.width;
      const std::int64_t at = (first_ + row) * a.token_stride + head_ * a.head_stride;
      if (row >= count_) {
        for (std::int64_t t = 0; t < terms_; ++t) __builtin_memset(to + t * kRows * a.width, 0, a.width * sizeof(bf16));
      } else if (terms_ == 1) {
        __builtin_memcpy(to, static_cast<const bf16*>(a.data) + at, a.width * sizeof(bf16));
      } else {
        cut_query(static_cast<const float*>(a.data) + at, to);
      }
    }
  }

  void cut_query(const float* from, std::uint16_t* to) const {
    const std::int64_t width = p_.attention.a.width;
    for (std::int64_t d = 0; d < width; d += W) {
      F rest = S::load(from + d);
#pragma GCC unroll 3
      for (int term = 0; term < kTerms; ++term) {
        const auto half = __builtin_convertvector(next_term<W>(rest) >> 16, S::H);
        __builtin_memcpy(to + term * kRows * width + d, &half, sizeof half);
      }
    }
  }

  // Of 16 context tokens: scores[row][token].
  template <int RowTiles, int QueryTerms>
  void score(const std::uint32_t* keys, float* scores) {
    each<RowTiles>([&]<int R>() { tiles_.zero<R>(); });
    const std::int64_t stride = p_.attention.a.width * sizeof(bf16);
    for (std::int64_t step = 0; step < expansion_.key_steps(); ++step) {
      const std::int64_t terms = expansion_.key_terms(step);
      for (std::int64_t term = 0; term < terms; ++term, keys += kTileWords) {
        const std::uint16_t* query = query_ + step * kTileDepth;
        tiles_.load<6>(keys, kTileRowBytes);
        for (std::int64_t own = 0; own < QueryTerms && own + term < kTerms; ++own, query += kRows * stride / 2) {
          each<RowTiles>([&]<int R>() {
            tiles_.load<4 + R % 2>(query + R * kTileRows * stride / 2, stride);
            tiles_.dot<R, 4 + R % 2, 6>();
          });
        }
      }
    }
    each<RowTiles>([&]<int R>() { tiles_.store<R>(scores + R * kTileRows * kTokens, kTokens * sizeof(float)); });
  }

  // One row's scores of 32 * Steps tokens become weights 2**(score - top) in left-hand tiles; it sees the first `seen`.
  template <int Steps>
  void softmax(const Partial& result, std::int64_t row, std::int64_t seen, bool all) {
    const F scale = S::broadcast(p_.attention.scale_log2);
    F x[2 * Steps];
#pragma GCC unroll 4
    for (int v = 0; v < 2 * Steps; ++v) x[v] = S::load(scores_ + row * kTokens + v * W) * scale;
    if (!all) {
#pragma GCC unroll 4
      for (int v = 0; v < 2 * Steps; ++v) x[v] = S::first(seen - v * W, x[v], S::broadcast(-kInfinity));
    }
    F most = x[0];
#pragma GCC unroll 4
    for (int v = 1; v < 2 * Steps; ++v) most = x[v] > most ? x[v] : most;
    if (S::any_above(most, S::broadcast(result.top[row] + kSlack))) rebase(result, row, S::largest(most));
    const F base = S::broadcast(result.top[row] == -kInfinity ? 0.0f : result.top[row]);
    F total = S::load(totals() + row * W);
#pragma GCC unroll 4
    for (int v = 0; v < 2 * Steps; ++v) {
      x[v] = exp2_nonpositive<W>(x[v] - base);
      total += x[v];
    }
    S::store(totals() + row * W, total);
    std::uint32_t* to = weights_ + (row / kTileRows * kSteps * kTerms * kTileRows + row % kTileRows) * W;
#pragma GCC unroll 2
    for (int step = 0; step < Steps; ++step) cut(x[2 * step], x[2 * step + 1], to + step * kTerms * kTileWords);
  }

  // Weights are finite or NaN.
  static void cut(F low, F high, std::uint32_t* to) {
#pragma GCC unroll 3
    for (int term = 0; term < kTerms; ++term) {
      const U first = (U)low & 0xffff0000u, second = (U)high & 0xffff0000u;
      const U both = (first >> 16) | second;
      __builtin_memcpy(to + term * kTileWords, &both, sizeof both);
      low -= (F)first;
      high -= (F)second;
    }
  }

  void rebase(const Partial& result, std::int64_t row, float top) {
    const F shrink = exp2_nonpositive<W>(S::broadcast(result.top[row] - top));
    result.top[row] = top;
    S::store(totals() + row * W, S::load(totals() + row * W) * shrink);
    for (std::int64_t d = 0; d < p_.value.width; d += W) {
      S::store(result.at(row, d), S::load(result.at(row, d)) * shrink);
    }
  }

  // 32 rows and 32 columns of the result.
  void sum(const Partial& result, std::int64_t row_tile, std::int64_t column_tile, std::int64_t first_step,
           std::int64_t steps) {
    constexpr std::int64_t stride = kStrip * sizeof(float);
    float* out[] = {result.at(row_tile * kTileRows, column_tile * W), result.at(row_tile * kTileRows, column_tile * W) + W};
    each<4>([&]<int I>() { tiles_.load<I>(out[I % 2] + I / 2 * kTileRows * kStrip, stride); });
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::uint32_t* weights = weights_ + (row_tile * kSteps + step) * kTerms * kTileWords;
      const std::uint32_t* values = expansion_.values(first_step + step, column_tile);
      load_values<0>(values);
      multiply<0>(weights);
      multiply<1>(weights);
      multiply<2>(weights);
      load_values<1>(values);
      multiply<1>(weights);
      multiply<0>(weights);
      load_values<2>(values);
      multiply();
    }
    each<4>([&]<int I>() { tiles_.store<I>(out[I % 2] + I / 2 * kTileRows * kStrip, stride); });
  }

  template <int Term>
  void load_values(const std::uint32_t* values) {
    tiles_.load<6>(values + Term * kTileWords, kTileRowBytes);
    tiles_.load<7>(values + (kTerms + Term) * kTileWords, kTileRowBytes);
  }

  template <int Term>
  void multiply(const std::uint32_t* weights) {
    tiles_.load<4>(weights + Term * kTileWords, kTileRowBytes);
    tiles_.load<5>(weights + (kSteps * kTerms + Term) * kTileWords, kTileRowBytes);
    multiply();
  }

  void multiply() {
    tiles_.dot<0, 4, 6>();
    tiles_.dot<1, 4, 7>();
    tiles_.dot<2, 5, 6>();
    tiles_.dot<3, 5, 7>();
  }

  void finish() {
    const Partial result = partial();
    const RowNames names{0, p_.attention.sequences[0].query_len, first_, head_};
    for (std::int64_t row = 0; row < count_; ++row) {
      result.total[row] = S::sum(S::load(totals() + row * W));
      finish_row<W, false>(p_.attention, names, result, row);
    }
  }

  const HeadFormParams& p_;
  const std::int64_t terms_;
  HeadExpansion expansion_;
  std::uint16_t* query_;  // [terms][kRows][key_width] bf16
  float* scores_;         // [kRows][kTokens]
  std::uint32_t* weights_;
  float* partials_;
  Tiles tiles_;
  std::int64_t head_ = 0, tile_ = 0, first_ = 0, count_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
