// x as the paths of the linear kernel want it, in scratch: widened to float, normed, and in the order of use; groups of it
// rounded to whole numbers.
#pragma once

#include "kernels/linear_products.h"

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

// Where row `row` of tile `tile` begins for one step of kDepth inputs.
template <int W>
float* tile_row(char* memory, const RowTiles& tiles, std::int64_t step, std::int64_t tile, std::int64_t row) {
  using T = LinearTile<W>;
  return reinterpret_cast<float*>(memory) + ((step * tiles.count + tile) * T::kRows + row) * T::kDepth;
}

template <int W>
std::int64_t stream_stride(std::int64_t cols) {
  return padded(cols, 2 * W);
}

// Bytes of the prepared x of `job`.
template <int W>
std::int64_t input_bytes(const LinearJob& job, Path path) {
  using T = LinearTile<W>;
  const std::int64_t cols = job.x.cols;
  if (path == Path::stream) return job.x.rows * stream_stride<W>(cols) * 4;
  return RowTiles(job.x.rows, T::kRows).count * T::kRows * padded(cols, T::kDepth) * 4;
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

// Row `row` of the job's x, to its place in `memory`.
template <int W>
void prepare_row(const LinearJob& job, Path path, std::int64_t row, char* memory) {
  using T = LinearTile<W>;
  const InputRow<W> from(job, row);
  const std::int64_t cols = job.x.cols;
  if (path == Path::stream) {
    from.stream(wants_pairs(*job.weight), reinterpret_cast<float*>(memory) + row * stream_stride<W>(cols));
  } else {
    const RowTiles tiles(job.x.rows, T::kRows);
    const std::int64_t tile = tiles.tile_of(row);
    for (std::int64_t at = 0; at < cols; at += T::kDepth) {
      const auto to = tile_row<W>(memory, tiles, at / T::kDepth, tile, row - tiles.first(tile));
      from.widen(at, smaller(T::kDepth, cols - at), to);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
