// Rows of x as whole numbers, for linear_terms.h: with three terms of 8 bits or two of 16 as exact as floats, with one
// term rounded.
//
// In each group of inputs x is a scale times whole numbers: each term counts what the one before has left, in steps of which
// 254 or 65534 make one of its. The last of several leaves at most 1.3e-7 of the group's largest, a step of float32 at that
// size.
#pragma once

#include "kernels/linear_input.h"
#include "kernels/linear_products.h"

namespace latentkv::LATENTKV_ISA {

// What a group's sums are scaled with, for one row.
template <int Sums>
struct GroupTerms {
  float scale, sum;           // of x itself
  std::int32_t offset[Sums];  // what the codes' zero makes of the terms' sums, to be added
};

// Tiles of up to kTermTileRows rows, each [inputs in words][rows][Terms] words and then [groups][rows] GroupTerms; then, with
// several terms, the rows as floats and whether all numbers of a row are finite.
template <int W, typename Products, int Terms>
struct TermInput {
  static constexpr std::int64_t kRows = kTermTileRows<Terms>;
  static constexpr bool kExact = Terms > 1;
  using Group = GroupTerms<TermSums<Products, Terms>::kCount>;

  RowTiles tiles;
  std::int64_t rows, cols, groups_count;
  char* memory;

  TermInput(char* memory, const LinearJob& job)
      : tiles(job.x.rows, kRows), rows(job.x.rows), cols(job.x.cols), groups_count(cols / job.weight->group), memory(memory) {}

  // Words of one row and term.
  std::int64_t words() const { return cols * static_cast<std::int64_t>(sizeof(typename Products::Element)) / 4; }
  char* tile(std::int64_t tile) const { return memory + tiles.first(tile) * row_bytes(); }
  char* words(std::int64_t tile, std::int64_t g) const {
    return this->tile(tile) + g * (words() / groups_count) * tiles.rows(tile) * Terms * 4;
  }
  Group* groups(std::int64_t tile) const {
    return reinterpret_cast<Group*>(this->tile(tile) + tiles.rows(tile) * words() * Terms * 4);
  }
  float* floats(std::int64_t row) const { return reinterpret_cast<float*>(memory + rows * row_bytes()) + row * float_stride(); }
  bool* is_finite(std::int64_t row) const { return reinterpret_cast<bool*>(floats(rows)) + row; }
  std::int64_t bytes() const { return rows * (row_bytes() + (kExact ? float_stride() * 4 + 1 : 0)); }

 private:
  std::int64_t row_bytes() const { return words() * Terms * 4 + groups_count * static_cast<std::int64_t>(sizeof(Group)); }
  std::int64_t float_stride() const { return padded(cols, 2 * W); }
};

// Fills a TermInput, row by row.
template <int W, typename Products, int Terms>
class TermPreparer {
  using S = Simd<W>;
  using F = typename S::F;
  using I = typename Lanes<std::int32_t, W>::type;
  using Input = TermInput<W, Products, Terms>;
  using Sums = TermSums<Products, Terms>;
  static constexpr std::int64_t kElementBytes = sizeof(typename Products::Element);
  static constexpr float kSteps = kTermSteps<Products>;

  // One group of one row.
  struct Split {
    float scale, sum;
    std::int32_t code_sums[Terms];
    char codes[Terms][kMostGroup * kElementBytes];
  };

 public:
  TermPreparer(const LinearJob& job, char* memory, std::int64_t row)
      : weight_(*job.weight), from_(job, row), to_(memory, job), row_(row) {}

  void run() const {
    const std::int64_t group = weight_.group;
    if constexpr (Input::kExact) from_.widen(0, to_.cols, to_.floats(row_));
    F bad = S::zero();
    Split split;
    for (std::int64_t g = 0; g < to_.groups_count; ++g) {
      if constexpr (Input::kExact) {
        bad += cut(to_.floats(row_) + g * group, split);
      } else {
        split.scale = from_.template round_group<Products>(g * group, group, split.codes[0], split.code_sums[0]);
        split.sum = split.scale * static_cast<float>(split.code_sums[0]);
      }
      place(g, split);
    }
    if constexpr (Input::kExact) *to_.is_finite(row_) = S::sum(bad) == 0.0f;
  }

 private:
  // A group into its terms; not zero where a number is not finite.
  F cut(const float* values, Split& to) const {
    F top = S::zero(), bad = S::zero();
    for (std::int64_t i = 0; i < weight_.group; i += W) {
      const F value = S::load(values + i), size = value < S::zero() ? -value : value;
      top = size > top ? size : top;
      bad += value - value;
    }
    to.scale = scale_of(S::largest(top));
    const float inverse = 1.0f / to.scale;
    F sums[Terms] = {};
    for (std::int64_t i = 0; i < weight_.group; i += W) {
      F rest = S::load(values + i) * S::broadcast(inverse);
#pragma GCC unroll 3
      for (int term = 0; term < Terms; ++term) {
        // Adding 1.5 * 2**23 leaves the nearest whole number in the low bits.
        const F marked = rest + 12582912.0f, whole = marked - 12582912.0f;
        Products::store((I)marked, to.codes[term] + i * kElementBytes);
        sums[term] += whole;
        rest = (rest - whole) * kSteps;
      }
    }
    float total = 0.0f;
    for (int term = Terms - 1; term >= 0; --term) {
      const float sum = S::sum(sums[term]);  // whole numbers below 2**22
      to.code_sums[term] = whole_number(sum);
      total = total / kSteps + sum;
    }
    to.sum = to.scale * total;
    return bad;
  }

  // So that the largest is at most 127 or 32767 of it, and never subnormal.
  static float scale_of(float most) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &most, sizeof bits);
    const std::int64_t exponent = larger(static_cast<std::int64_t>((bits + 0x10000u) >> 23) - (kElementBytes == 2 ? 14 : 6), 1);
    bits = static_cast<std::uint32_t>(exponent) << 23;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return scale;
  }

  void place(std::int64_t g, const Split& split) const {
    const std::int64_t tile = to_.tiles.tile_of(row_), rows = to_.tiles.rows(tile), at = row_ - to_.tiles.first(tile);
    const std::int64_t words = weight_.group * kElementBytes / 4;
    char* to = to_.words(tile, g) + at * Terms * 4;
    for (std::int64_t word = 0; word < words; ++word, to += rows * Terms * 4) {
#pragma GCC unroll 3
      for (int term = 0; term < Terms; ++term) __builtin_memcpy(to + term * 4, split.codes[term] + word * 4, 4);
    }
    auto& group = to_.groups(tile)[g * rows + at];
    group.scale = split.scale;
    group.sum = split.sum;
    for (std::int32_t& offset : group.offset) offset = 0;
    for (int term = 0; term < Terms; ++term) {
      group.offset[Sums::place(term)] -= Products::zero(weight_) * Sums::factor(term) * split.code_sums[term];
    }
  }

  const LinearWeight& weight_;
  InputRow<W> from_;
  Input to_;
  std::int64_t row_;
};

}  // namespace latentkv::LATENTKV_ISA
