// x as the paths of the linear kernel want it, in scratch: widened to float, normed, and in the order of use; or rounded
// to int8 in the weight's groups.
#pragma once

#include "kernels/linear_types.h"

namespace latentkv::LATENTKV_ISA {

// One row of x in int8: x = scales[g] * codes, roughly, for the inputs of group g.
struct CodeRow {
  std::int8_t* codes;
  float* scales;
  float* sums;              // of scales * codes over each group: of x itself, a minimum's rounding error would not cancel
  std::int32_t* code_sums;  // of the codes

  CodeRow(char* memory, std::int64_t cols, std::int64_t groups)
      : codes(reinterpret_cast<std::int8_t*>(memory)),
        scales(reinterpret_cast<float*>(memory + padded(cols, 64))),
        sums(scales + groups),
        code_sums(reinterpret_cast<std::int32_t*>(sums + groups)) {}

  static std::int64_t bytes(std::int64_t cols, std::int64_t groups) { return padded(cols, 64) + padded(groups * 12, 64); }
};

// Rows of x are dealt out to as few tiles as possible, evenly.
template <int W>
struct RowTiles {
  std::int64_t count, each, extra;

  explicit RowTiles(std::int64_t rows)
      : count((rows + LinearTile<W>::kRows - 1) / LinearTile<W>::kRows),
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
float* tile_row(char* memory, const RowTiles<W>& tiles, std::int64_t step, std::int64_t tile, std::int64_t row) {
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
  if (path == Path::tiles) return RowTiles<W>(job.x.rows).count * T::kRows * padded(cols, T::kDepth) * 4;
  return job.x.rows * CodeRow::bytes(cols, cols / job.weight->group);
}

// bf16 weights are read in pairs, x then has to lie so too.
inline bool wants_pairs(const LinearWeight& weight) { return weight.format == WeightFormat::bf16; }

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
    if (job_.norm.weight == nullptr) return;
    for (std::int64_t i = 0; i < count; i += W) {
      const F weight = load_any<W>(job_.norm.weight, job_.norm.dtype, at + i, count - i);
      S::store(to + i, S::load(to + i) * S::broadcast(inverse_) * weight);
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

  // Rounded to int8, to nearest, in groups.
  void round(std::int64_t group, const CodeRow& to) const {
    for (std::int64_t g = 0; g * group < job_.x.cols; ++g) {
      to.scales[g] = round_group(g * group, group, to.codes + g * group, to.code_sums[g]);
      to.sums[g] = to.scales[g] * static_cast<float>(to.code_sums[g]);
    }
  }

  // One group, at most 128 elements: the largest becomes 127. Returns the scale, NaN for a group with a NaN or an infinity.
  float round_group(std::int64_t at, std::int64_t count, std::int8_t* codes, std::int32_t& code_sum) const {
    float values[128];
    widen(at, count, values);
    F top = S::zero(), bad = S::zero();
    for (std::int64_t i = 0; i < count; i += W) {
      const F value = S::load(values + i), size = value < S::zero() ? -value : value;
      top = size > top ? size : top;
      bad += value - value;
    }
    float most = 0.0f;
    for (int lane = 0; lane < W; ++lane) most = top[lane] > most ? top[lane] : most;
    code_sum = store_codes(values, count, most > 0.0f ? 127.0f / most : 0.0f, codes);
    return most / 127.0f + S::sum(bad);
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

  // Adding 1.5 * 2**23 leaves the nearest whole number in the low bits.
  static std::int32_t store_codes(const float* values, std::int64_t count, float factor, std::int8_t* to) {
    using I = typename Lanes<std::int32_t, W>::type;
    using B = typename Lanes<std::int8_t, W>::type;
    I total = {};
    for (std::int64_t i = 0; i < count; i += W) {
      const B bytes = __builtin_convertvector((I)(S::load(values + i) * S::broadcast(factor) + 12582912.0f), B);
      __builtin_memcpy(to + i, &bytes, sizeof bytes);
      total += __builtin_convertvector(bytes, I);
    }
    std::int32_t sum = 0;
    for (int lane = 0; lane < W; ++lane) sum += total[lane];
    return sum;
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
  } else if (path == Path::tiles) {
    const RowTiles<W> tiles(job.x.rows);
    const std::int64_t tile = tiles.tile_of(row);
    for (std::int64_t at = 0; at < cols; at += T::kDepth) {
      const auto to = tile_row<W>(memory, tiles, at / T::kDepth, tile, row - tiles.first(tile));
      from.widen(at, smaller(T::kDepth, cols - at), to);
    }
  } else {
    const std::int64_t groups = cols / job.weight->group;
    from.round(job.weight->group, CodeRow(memory + row * CodeRow::bytes(cols, groups), cols, groups));
  }
}

}  // namespace latentkv::LATENTKV_ISA
