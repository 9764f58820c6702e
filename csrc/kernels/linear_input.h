// x as the paths of the linear kernel want it, in scratch: widened to float, normed, and in the order of use; groups of it
// rounded to whole numbers.
#pragma once

#include "kernels/linear_products.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// Rows of x are dealt out to as few tiles of at most `most` as possible, evenly.
struct RowTiles {
  std::int64_t count, each, extra;

  RowTiles(std::int64_t rows, std::int64_t most)
      : count((rows + most - 1) / most),
        each(count == 0 ? 0 : rows / count),
        extra(count == 0 ? 0 : rows % count) {}

  std::int64_t first(std::int64_t tile) const { return tile * each + smaller(tile, extra); }
  std::int64_t rows(std::int64_t tile) const { return each + (tile < extra); }
  std::int64_t tile_of(std::int64_t row) const {
    const std::int64_t wide = extra * (each + 1);
    return row < wide ? row / (each + 1) : extra + (row - wide) / each;
  }
};

// Where row `row` of tile `tile` begins for one step of kDepth inputs. T: LinearTile or DotTile.
template <typename T>
float* tile_row(char* memory, const RowTiles& tiles, std::int64_t step, std::int64_t tile, std::int64_t row) {
  return reinterpret_cast<float*>(memory) + ((step * tiles.count + tile) * T::kRows + row) * T::kDepth;
}

template <int W>
std::int64_t stream_stride(std::int64_t cols) {
  return padded(cols, 2 * W);
}

template <typename T>
std::int64_t tiled_bytes(std::int64_t rows, std::int64_t cols) {
  return RowTiles(rows, T::kRows).count * T::kRows * padded(cols, T::kDepth) * 4;
}

// Bytes of the prepared x of `job`.
template <int W>
std::int64_t input_bytes(const LinearJob& job, Path path) {
  const std::int64_t rows = job.x.rows, cols = job.x.cols;
  if (path == Path::stream) return rows * stream_stride<W>(cols) * 4;
  return path == Path::dots ? tiled_bytes<DotTile<W>>(rows, cols) : tiled_bytes<LinearTile<W>>(rows, cols);
}

// bf16 weights are read in pairs, x then has to lie so too.
inline bool wants_pairs(const LinearWeight& weight) { return weight.format == WeightFormat::bf16; }

// Zero for a NaN, which no integer can hold.
inline std::int32_t whole_number(float value) { return value == value ? static_cast<std::int32_t>(value) : 0; }

template <int W>
class InputRow {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;

 public:
  InputRow(const LinearJob& job, std::int64_t row) : job_(job), start_(row * job.x.stride) {
    if (job.norm.weight == nullptr) return;
    inverse_ = 1.0f / __builtin_sqrtf(square_sum() / static_cast<float>(job.x.cols) + job.norm.eps);
  }
  // When inverse() is known from before.
  InputRow(const LinearJob& job, std::int64_t row, float inverse)
      : job_(job), start_(row * job.x.stride), inverse_(inverse) {}

  // What a norm divides by, inverted.
  float inverse() const { return inverse_; }

  // `count` elements from `at` on; writes up to a multiple of W.
  void widen(std::int64_t at, std::int64_t count, float* to) const {
    job_.x.dtype == DType::f32 ? widen_from<float>(at, count, to) : widen_from<bf16>(at, count, to);
    for (std::int64_t i = 0; i < count && job_.norm.weight != nullptr; i += W) {
      const F weight = load_any<W>(job_.norm.weight, job_.norm.dtype, at + i, count - i);
      S::store(to + i, S::load(to + i) * S::broadcast(inverse_) * weight);
    }
    for (std::int64_t i = 0; i < count && job_.narrow; i += W) S::store(to + i, S::round_bf16(S::load(to + i)));
  }

  // For dots: `count` elements from `at` on and zeros up to whole units, parted if `pairs` as bf16 weights are.
  void units(bool pairs, std::int64_t at, std::int64_t count, float* to) const {
    widen(at, count, to);
    if (padded(count, W) < padded(count, 2 * W)) S::store(to + padded(count, W), S::zero());
    for (std::int64_t i = 0; i < count && pairs; i += 2 * W) {
      F first = S::load(to + i), second = S::load(to + i + W);
      part_fours<W>(first, second);
      S::store(to + i, first);
      S::store(to + i + W, second);
    }
  }

  // For streams: all elements, each whole 2 * W of them with the even ones first if `pairs`.
  void stream(bool pairs, float* to) const {
    widen(0, job_.x.cols, to);
    if (!pairs) return;
    for (std::int64_t i = 0; i + 2 * W <= job_.x.cols; i += 2 * W) {
      float both[2 * W];
      __builtin_memcpy(both, to + i, sizeof both);
      for (int lane = 0; lane < W; ++lane) {
        to[i + lane] = both[2 * lane];
        to[i + W + lane] = both[2 * lane + 1];
      }
    }
  }

  // One group, at most 128 elements, rounded to nearest in whole numbers as `Products` stores them: the largest becomes 127, or
  // the largest sum of two neighbours' sizes. Returns the scale, NaN for a group with a NaN or an infinity.
  template <typename Products>
  float round_group(std::int64_t at, std::int64_t count, char* codes, std::int32_t& code_sum) const {
    constexpr float kMost = 127.0f;
    float values[128];
    widen(at, count, values);
    F top = S::zero(), bad = S::zero();
    for (std::int64_t i = 0; i < count; i += W) {
      const F value = S::load(values + i);
      F size = value < S::zero() ? -value : value;
      if constexpr (Products::kBoundsPairs) size += swap_neighbours<W>(size);
      top = size > top ? size : top;
      bad += value - value;
    }
    // Where the factor would overflow, everything is zero.
    const float most = S::largest(top);
    code_sum = store_codes<Products>(values, count, most > 0x1p-112f ? kMost / most : 0.0f, codes);
    return most / kMost + S::sum(bad);
  }

 private:
  template <typename T>
  void widen_from(std::int64_t at, std::int64_t count, float* to) const {
    const T* from = static_cast<const T*>(job_.x.data) + start_ + at;
    std::int64_t i = 0;
    for (; i + W <= count; i += W) S::store(to + i, S::load(from + i));
    if (i < count) S::store(to + i, S::load_part(from + i, count - i));
  }

  float square_sum() const {
    F total = S::zero();
    for (std::int64_t i = 0; i < job_.x.cols; i += W) {
      const F value = load_any<W>(job_.x.data, job_.x.dtype, start_ + i, job_.x.cols - i);
      total = S::fma(value, value, total);
    }
    return S::sum(total);
  }

  // Adding 1.5 * 2**23 leaves the nearest whole number in the low bits. Sums of up to 128 of them are exact.
  template <typename Products>
  static std::int32_t store_codes(const float* values, std::int64_t count, float factor, char* to) {
    F total = S::zero();
    for (std::int64_t i = 0; i < count; i += W) {
      const F marked = S::load(values + i) * S::broadcast(factor) + 12582912.0f;
      Products::store((typename Dot<W>::I)marked, to + i * static_cast<std::int64_t>(sizeof(typename Products::Element)));
      total += marked - 12582912.0f;
    }
    return whole_number(S::sum(total));
  }

  const LinearJob& job_;
  std::int64_t start_;
  float inverse_ = 1.0f;
};

// put(at, count, to) writes `count` elements of row `row` from `at` on to their place in tiles of T.
template <typename T, typename Put>
void put_tile_row(const LinearJob& job, std::int64_t row, char* memory, Put put) {
  const RowTiles tiles(job.x.rows, T::kRows);
  const std::int64_t tile = tiles.tile_of(row), cols = job.x.cols;
  for (std::int64_t at = 0; at < cols; at += T::kDepth) {
    put(at, smaller(T::kDepth, cols - at), tile_row<T>(memory, tiles, at / T::kDepth, tile, row - tiles.first(tile)));
  }
}

// Row `row` of the job's x, to its place in `memory`.
template <int W>
void prepare_row(const LinearJob& job, Path path, std::int64_t row, char* memory) {
  const InputRow<W> from(job, row);
  const bool pairs = wants_pairs(*job.weight);
  if (path == Path::stream) return from.stream(pairs, reinterpret_cast<float*>(memory) + row * stream_stride<W>(job.x.cols));
  const auto units = [&](std::int64_t at, std::int64_t count, float* to) { from.units(pairs, at, count, to); };
  const auto floats = [&](std::int64_t at, std::int64_t count, float* to) { from.widen(at, count, to); };
  path == Path::dots ? put_tile_row<DotTile<W>>(job, row, memory, units) : put_tile_row<LinearTile<W>>(job, row, memory, floats);
}

}  // namespace latentkv::LATENTKV_ISA
