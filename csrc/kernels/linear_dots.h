// Many rows of x, rounded, against int8 or int4 codes: panels of codes unpacked once for dot products, tiles of sums in
// registers, one set of whole numbers for each group. Bound by the multipliers.
#pragma once

#include "kernels/linear_input.h"
#include "kernels/linear_products.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
struct DotTile {
  static constexpr std::int64_t kRows = LinearTile<W>::kRows;
  static constexpr int kVectors = 2;
  static constexpr std::int64_t kOutputs = kVectors * W;
  static constexpr std::int64_t kDepth = 512;  // inputs between two visits to the sums
  static constexpr std::int64_t kAheadBytes = 1024;
  // A panel: two bytes for each code, scale and minimum for each output and group.
  static constexpr std::int64_t kFactorFloats = kDepth / 16 * 2 * kOutputs;
  static constexpr std::int64_t kPanelFloats = kDepth * kOutputs / 2 + kFactorFloats;
};

// Rounded rows of x, in the order of use: [step of kDepth inputs][tile][words][kRows], a word holding four bytes or two 16-bit
// numbers; then [tile][group][3][kRows], scales, sums of x as rounded and sums of its whole numbers.
template <int W, typename Products>
struct DotInput {
  static constexpr std::int64_t kRows = DotTile<W>::kRows;
  static constexpr std::int64_t kElementBytes = sizeof(typename Products::Element);

  RowTiles<W> tiles;
  std::int64_t cols, groups_count;
  char* words;

  DotInput(char* memory, const LinearJob& job)
      : tiles(job.x.rows), cols(job.x.cols), groups_count(cols / job.weight->group), words(memory) {}

  std::int64_t word_bytes() const { return padded(tiles.count * cols * kElementBytes * kRows, 64); }
  std::int64_t bytes() const { return word_bytes() + tiles.count * groups_count * 3 * kRows * 4; }

  // From input `k` on, for the rest of its step.
  char* word(std::int64_t tile, std::int64_t k) const {
    const std::int64_t in_step = k % DotTile<W>::kDepth, step = k - in_step;
    const std::int64_t at = step * tiles.count + tile * smaller(DotTile<W>::kDepth, cols - step) + in_step;
    return words + at * kElementBytes * kRows;
  }
  float* group(std::int64_t tile, std::int64_t g) const {
    return reinterpret_cast<float*>(words + word_bytes()) + (tile * groups_count + g) * 3 * kRows;
  }
  static const float* sums(const float* group) { return group + kRows; }
  static const std::int32_t* code_sums(const float* group) { return reinterpret_cast<const std::int32_t*>(group + 2 * kRows); }

  // Rounds row `row` of the job.
  void prepare(const LinearJob& job, std::int64_t row) const {
    const InputRow<W> from(job, row);
    const std::int64_t tile = tiles.tile_of(row), at = row - tiles.first(tile), count = job.weight->group;
    for (std::int64_t g = 0; g < groups_count; ++g) {
      char codes[128 * kElementBytes];
      std::int32_t code_sum;
      float* to = group(tile, g) + at;
      to[0] = from.template round_group<Products>(g * count, count, codes, code_sum);
      to[kRows] = to[0] * static_cast<float>(code_sum);
      __builtin_memcpy(to + 2 * kRows, &code_sum, sizeof code_sum);
      char* words = word(tile, g * count) + at * 4;
      for (std::int64_t i = 0; i < count * kElementBytes; i += 4) __builtin_memcpy(words + i * kRows, codes + i, 4);
    }
  }
};

// All rows of x against the outputs of an item.
template <int W, typename Products>
class DotMultiplier {
  using T = DotTile<W>;
  using S = Simd<W>;
  using F = typename S::F;
  using D = Dot<W>;
  using I = typename D::I;
  using U = typename D::U;
  using Partial = typename Products::Partial;
  using Input = DotInput<W, Products>;
  static constexpr int kVectors = T::kVectors;
  static constexpr std::int64_t kVectorBytes = sizeof(U);

 public:
  // `panel`: DotTile::kPanelFloats of scratch.
  DotMultiplier(const LinearWeight& weight, const Input& x, float* panel)
      : weight_(weight), x_(x), factors_(panel), panel_(reinterpret_cast<char*>(panel + T::kFactorFloats)) {}

  // values [rows][stride], padded to whole tiles.
  void run(std::int64_t first, std::int64_t count, float* values, std::int64_t stride) const {
    for (std::int64_t k = 0; k < weight_.cols; k += T::kDepth) {
      const std::int64_t depth = smaller(T::kDepth, weight_.cols - k);
      for (std::int64_t n = 0; n < count; n += T::kOutputs) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) unpack(first + n + v * W, k, depth, v);
        for (std::int64_t tile = 0; tile < x_.tiles.count; ++tile) {
          multiply(k, depth, tile, values + x_.tiles.first(tile) * stride + n, stride);
        }
      }
    }
  }

 private:
  // One vector of outputs: factors_ [groups][scales, minima][vectors], panel_ [steps of kInputs][pieces][vectors]. Beyond
  // the last panel the last one is computed again.
  void unpack(std::int64_t output, std::int64_t first, std::int64_t depth, int v) const {
    const CodePanel<W> panel(weight_, smaller(output, padded(weight_.rows, kPanelRows) - W));
    float* factors = factors_ + v * W;
    for (std::int64_t k = 0; k < depth; k += weight_.group, factors += 2 * kVectors * W) {
      const std::int64_t g = (first + k) / weight_.group;
      S::store(factors, panel.scale(g));
      S::store(factors + kVectors * W, weight_.minima == nullptr ? S::zero() : panel.minimum(g));
    }
    char* to = panel_ + v * kVectorBytes;
    for (std::int64_t k = 0; k < depth; k += Products::kInputs) {
      const U codes = panel.bytes(first + k);
#pragma GCC unroll 2
      for (int i = 0; i < Products::kPieces; ++i, to += kVectors * kVectorBytes) {
        const U piece = Products::piece(codes, i);
        __builtin_memcpy(to, &piece, sizeof piece);
      }
    }
  }

  void multiply(std::int64_t k, std::int64_t depth, std::int64_t tile, float* values, std::int64_t stride) const {
    switch (x_.tiles.rows(tile)) {
      case 1: return rows<1>(k, depth, tile, values, stride);
      case 2: return rows<2>(k, depth, tile, values, stride);
      case 3: return rows<3>(k, depth, tile, values, stride);
      case 4: return rows<4>(k, depth, tile, values, stride);
      case 5: return rows<5>(k, depth, tile, values, stride);
      default: return rows<6>(k, depth, tile, values, stride);
    }
  }

  template <int Rows>
  void rows(std::int64_t first, std::int64_t depth, std::int64_t tile, float* values, std::int64_t stride) const {
    const std::int32_t zero = -Products::zero(weight_);
    const std::int64_t group = weight_.group;
    const bool minima = weight_.minima != nullptr;
    const char *codes = panel_, *x = x_.word(tile, first);
    const float *x_group = x_.group(tile, first / group), *factors = factors_;
    F acc[Rows][kVectors] = {};
    for (std::int64_t k = 0; k < depth; k += group) {
      I sums[Rows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] = zero * Input::code_sums(x_group)[r] - I{};
      }
      for (std::int64_t at = 0; at < group; at += Products::kChunk) {
        const std::int64_t pieces = smaller(Products::kChunk, group - at) / Products::kInputs * Products::kPieces;
        chunk<Rows>(codes, x, pieces, sums);
        codes += pieces * kVectors * kVectorBytes;
        x += pieces * T::kRows * 4;
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const F scale = S::broadcast(x_group[r]), sum = S::broadcast(Input::sums(x_group)[r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          acc[r][v] = S::fma(__builtin_convertvector(sums[r][v], F), S::load(factors + v * W) * scale, acc[r][v]);
          if (minima) acc[r][v] = S::fma(S::load(factors + (kVectors + v) * W), sum, acc[r][v]);
        }
      }
      factors += 2 * kVectors * W;
      x_group += 3 * T::kRows;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* to = values + r * stride + v * W;
        S::store(to, first > 0 ? S::load(to) + acc[r][v] : acc[r][v]);
      }
    }
  }

  // `pieces` vectors of codes, and as many words of x. Inlined, it would share its registers with what is around it.
  template <int Rows>
  [[gnu::noinline]] static void chunk(const char* codes, const char* x, std::int64_t pieces, I (*sums)[kVectors]) {
    Partial partial[Rows][kVectors] = {};
    for (std::int64_t i = 0; i < pieces; ++i) {
      __builtin_prefetch(x + T::kAheadBytes, 0, 3);
      U weights[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) __builtin_memcpy(&weights[v], codes + v * kVectorBytes, sizeof(U));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const U word = D::broadcast(x + r * 4);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          partial[r][v] = Products::add(partial[r][v], weights[v], word);
          D::settle(partial[r][v]);
        }
      }
      codes += kVectors * kVectorBytes;
      x += T::kRows * 4;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += Products::total(partial[r][v]);
    }
  }

  const LinearWeight& weight_;
  const Input& x_;
  float* factors_;
  char* panel_;
};

}  // namespace latentkv::LATENTKV_ISA
