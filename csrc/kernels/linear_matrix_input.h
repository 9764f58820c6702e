// x as matrix tiles: up to three bf16 terms of every number, 16 rows and 32 inputs to a tile.
//
//   tiles:  [steps of kStepInputs][tiles of 16 rows][32 inputs][terms], as A or as B (tile.h)
//   groups: [tiles of 16 rows][group][scale of 16 rows, sum of 16 rows], only against codes
#pragma once

#include "kernels/linear_input.h"
#include "kernels/transpose.h"
#include "tile.h"

namespace latentkv::LATENTKV_ISA {

// Inputs between two visits to the sums; their weights, packed, fit the first cache.
constexpr std::int64_t kStepInputs = 512;
constexpr std::int64_t kMatrixPanelFloats = 2 * kStepInputs / kTileDepth * kTileBytes / 4;
constexpr std::int64_t kMatrixPanelLines = kMatrixPanelFloats / 16;
constexpr std::int64_t kMatrixProductFloats = 4 * kTileRows * kTileRows;

// A bf16 x needs one term, unless a norm makes it a float32 that is not rounded.
inline int terms_of(const LinearJob& job, Path path) {
  const bool whole = path == Path::matrix_dots || job.narrow || (job.x.dtype == DType::bf16 && job.norm.weight == nullptr);
  return whole ? 1 : 3;
}

template <int Terms>
struct MatrixInput {
  std::int64_t rows, row_tiles, cols, steps, groups_count;
  char* tiles;
  float* groups;

  MatrixInput(char* memory, const LinearJob& job)
      : rows(job.x.rows),
        row_tiles((rows + kTileRows - 1) / kTileRows),
        cols(job.x.cols),
        steps((cols + kStepInputs - 1) / kStepInputs),
        groups_count(is_grouped(*job.weight) ? cols / job.weight->group : 0),
        tiles(memory),
        groups(reinterpret_cast<float*>(memory + tile_bytes())) {}

  // In a step, the last one may be shorter.
  std::int64_t depth(std::int64_t step) const {
    return (smaller(kStepInputs, cols - step * kStepInputs) + kTileDepth - 1) / kTileDepth;
  }
  char* tile(std::int64_t step, std::int64_t row_tile) const {
    return tiles + (step * row_tiles + row_tile) * (kStepInputs / kTileDepth) * Terms * kTileBytes;
  }
  float* group(std::int64_t row_tile, std::int64_t g) const {
    return groups + (row_tile * groups_count + g) * 2 * kTileRows;
  }
  std::int64_t tile_bytes() const { return steps * row_tiles * (kStepInputs / kTileDepth) * Terms * kTileBytes; }
  std::int64_t bytes() const { return tile_bytes() + row_tiles * groups_count * 2 * kTileRows * 4; }
};

// A tile of 16 rows of 16 words, transposed in place.
inline void turn_tile(float* tile, std::int64_t stride) {
  Simd<16>::F rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = Simd<16>::load(tile + i * stride);
  transpose<16>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) Simd<16>::store(tile + i * stride, rows[i]);
}

// Prepares 16 rows of a job.
template <int Terms>
class MatrixPreparer {
  using S = Simd<16>;
  using F = S::F;
  using U = S::U;
  using Halves = Lanes<std::uint16_t, 32>::type;

 public:
  MatrixPreparer(const LinearJob& job, Path path, char* memory, std::int64_t row_tile)
      : job_(job), path_(path), to_(memory, job), row_tile_(row_tile) {}

  void run() const {
    path_ == Path::matrix_dots ? round_rows() : split_rows();
  }

 private:
  std::int64_t rows() const { return smaller(kTileRows, to_.rows - row_tile_ * kTileRows); }

  // Where 32 inputs of row i stand, for the first term.
  char* line(std::int64_t i, std::int64_t k) const {
    return to_.tile(k / kStepInputs, row_tile_) + k % kStepInputs / kTileDepth * Terms * kTileBytes + i * kTileRowBytes;
  }

  void clear(std::int64_t i, std::int64_t k) const {
    for (int term = 0; term < Terms; ++term) __builtin_memset(line(i, k) + term * kTileBytes, 0, kTileRowBytes);
  }

  // Tile by tile, each turned while it is in the first cache.
  void split_rows() const {
    float inverse[kTileRows];
    for (std::int64_t i = 0; i < rows(); ++i) inverse[i] = InputRow<16>(job_, row_tile_ * kTileRows + i).inverse();
    for (std::int64_t k = 0; k < to_.cols; k += kTileDepth) {
      const std::int64_t count = smaller(kTileDepth, to_.cols - k);
      for (std::int64_t i = 0; i < rows(); ++i) {
        float values[kTileDepth] = {};
        InputRow<16>(job_, row_tile_ * kTileRows + i, inverse[i]).widen(k, count, values);
        store_terms(values, line(i, k));
      }
      for (std::int64_t i = rows(); i < kTileRows; ++i) clear(i, k);
      if (path_ == Path::matrix_rows) turn(k);
    }
    for (std::int64_t i = 0; i < rows() && to_.groups_count > 0; ++i) {
      sum_groups(InputRow<16>(job_, row_tile_ * kTileRows + i, inverse[i]), i);
    }
  }

  static void store_terms(const float* values, char* to) {
    F low = S::load(values), high = S::load(values + 16);
#pragma GCC unroll 3
    for (int term = 0; term < Terms; ++term) {
      const auto first = next_term<16>(low), second = next_term<16>(high);
      const auto line = upper_halves(first, second, typename Counting<32>::type{});
      __builtin_memcpy(to + term * kTileBytes, &line, sizeof line);
    }
  }

  template <int... I>
  static Halves upper_halves(U low, U high, Numbers<I...>) {
    return __builtin_shufflevector((Halves)low, (Halves)high, (2 * I + 1)...);
  }

  void sum_groups(const InputRow<16>& from, std::int64_t i) const {
    const std::int64_t group = job_.weight->group;
    for (std::int64_t g = 0; g < to_.groups_count; ++g) {
      float values[128];
      from.widen(g * group, group, values);
      F sum = S::zero();
      for (std::int64_t k = 0; k < group; k += 16) sum += S::load(values + k);
      to_.group(row_tile_, g)[kTileRows + i] = S::sum(sum);
    }
  }

  void round_rows() const {
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      if (i < rows()) {
        round(InputRow<16>(job_, row_tile_ * kTileRows + i), i);
      } else {
        for (std::int64_t k = 0; k < to_.cols; k += kTileDepth) clear(i, k);
      }
    }
  }

  void round(const InputRow<16>& from, std::int64_t i) const {
    const std::int64_t group = job_.weight->group;
    for (std::int64_t g = 0; g < to_.groups_count; ++g) {
      char codes[128];
      std::int32_t sum;
      const float scale = from.round_group<NibbleProducts<16>>(g * group, group, codes, sum);
      to_.group(row_tile_, g)[i] = scale;
      to_.group(row_tile_, g)[kTileRows + i] = scale * static_cast<float>(sum);
      for (std::int64_t k = 0; k < group; k += kTileDepth) {
        float values[kTileDepth];
        for (std::int64_t j = 0; j < kTileDepth; ++j) values[j] = static_cast<signed char>(codes[k + j]);
        store_terms(values, line(i, g * group + k));
      }
    }
  }

  void turn(std::int64_t k) const {
    for (int term = 0; term < Terms; ++term) {
      turn_tile(reinterpret_cast<float*>(line(0, k) + term * kTileBytes), kTileRowBytes / 4);
    }
  }

  const LinearJob& job_;
  Path path_;
  MatrixInput<Terms> to_;
  std::int64_t row_tile_;
};

inline bool is_matrix(Path path) {
  return path == Path::matrix_rows || path == Path::matrix_codes || path == Path::matrix_dots;
}

}  // namespace latentkv::LATENTKV_ISA
