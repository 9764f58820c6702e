// What the parts of the linear kernel share: the shape of a register tile, the path a job takes, loads of any dtype.
#pragma once

#include "params.h"
#include "vec.h"

namespace latentkv::LATENTKV_ISA {

// Up to so many rows of x weights are used straight from memory; from there on it pays to unpack them first. Float weights
// unpack at the price of transposing, codes lie ready for it; with 16 registers of 8 floats it pays later.
constexpr std::int64_t kStreamRows = 4;
template <int W>
constexpr std::int64_t kFloatStreamRows = W == 16 ? 16 : W == 8 ? kStreamRows : 10;
template <int W>
constexpr std::int64_t kFloatDotRows = W == 8 ? 48 : 0;

// Tiles of kRows rows of x by kOutputs outputs (in the lanes), kDepth inputs at a time: the unpacked weights of one step
// then fit the first cache. 24 accumulators of 32 registers with AVX-512, 12 of 16 otherwise.
template <int W>
struct LinearTile {
  static constexpr int kVectors = W == 16 ? 4 : 2;
  static constexpr std::int64_t kRows = 6;
  static constexpr std::int64_t kOutputs = kVectors * W;
  static constexpr std::int64_t kDepth = W == 16 ? 128 : 256;
  // Of one item: while a step's x is in the second cache, it meets so many outputs.
  static constexpr std::int64_t kItemOutputs = 128;
};

// Tiles of kRows rows of x by kOutputs outputs with the inputs in the lanes, kDepth inputs at a time: the x of kTiles tiles then
// takes half of a first cache of 32 KB.
template <int W>
struct DotTile {
  static constexpr std::int64_t kRows = 4, kOutputs = 3, kDepth = 256, kTiles = 4;
  static constexpr std::int64_t kUnit = 2 * W;  // inputs in one turn of the loop
  // Of one item: the next one's weights are on their way to the second cache meanwhile.
  static constexpr std::int64_t kItemOutputs = 24, kItemBytes = 1 << 17;
};

// Sums of whole numbers that stay in registers beside what they are made of, and rows of x whose terms have theirs there.
// Four vectors of weights leave room for fewer than two.
template <int W>
constexpr int kTermSums = W == 16 ? 24 : 12;
template <int W>
constexpr int kWideTermSums = W == 16 ? 24 : 8;
template <int Terms>
constexpr std::int64_t kTermTileRows = Terms == 1 ? 6 : 4;

enum class Path : std::int64_t { stream, dots, tiles, terms, rounded_terms, matrix_rows, matrix_codes, matrix_dots };

constexpr std::int64_t padded(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }
constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

inline bool is_grouped(const LinearWeight& weight) {
  return weight.format == WeightFormat::int8 || weight.format == WeightFormat::int4;
}

inline std::int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

inline std::int64_t element_bytes(const LinearWeight& weight) { return weight.format == WeightFormat::f32 ? 4 : 2; }

inline const char* element(const void* data, DType dtype, std::int64_t at) {
  return static_cast<const char*>(data) + at * element_bytes(dtype);
}

// Where the weights of `output` begin; not of codes.
inline const char* weight_row(const LinearWeight& weight, std::int64_t output) {
  return static_cast<const char*>(weight.data) + output * weight.row_stride * element_bytes(weight);
}

// Bytes of `outputs` outputs' codes, over all inputs.
inline std::int64_t code_bytes(const LinearWeight& weight, std::int64_t outputs) {
  return outputs * weight.cols / (weight.format == WeightFormat::int4 ? 2 : 1);
}

// What of a weight lies ahead: asked for a few cache lines at a time while the multipliers are busy.
struct WeightAhead {
  const char* from;
  std::int64_t row_bytes, rows, line_bytes;  // line_bytes of each of `rows`
  std::int64_t row = 0, at = 0;

  [[gnu::always_inline]] void step(std::int64_t lines) {
    for (; lines > 0 && row < rows; --lines) {
      __builtin_prefetch(from + row * row_bytes + at, 0, 2);
      at += 64;
      if (at >= line_bytes) {
        at = 0;
        ++row;
      }
    }
  }
};

// W floats from memory of any dtype; `count` (if below W) of them, and zeros.
template <int W>
typename Simd<W>::F load_any(const void* data, DType dtype, std::int64_t at) {
  const char* from = element(data, dtype, at);
  if (dtype == DType::f32) return Simd<W>::load(reinterpret_cast<const float*>(from));
  if (dtype == DType::bf16) return Simd<W>::load(reinterpret_cast<const bf16*>(from));
  return Simd<W>::load(reinterpret_cast<const f16*>(from));
}

template <int W>
typename Simd<W>::F load_any(const void* data, DType dtype, std::int64_t at, std::int64_t count) {
  if (count >= W) return load_any<W>(data, dtype, at);
  const char* from = element(data, dtype, at);
  if (dtype == DType::f32) return Simd<W>::load_part(reinterpret_cast<const float*>(from), count);
  return Simd<W>::load_part(reinterpret_cast<const bf16*>(from), count);
}

template <int W>
void store_any(void* data, DType dtype, std::int64_t at, typename Simd<W>::F value, std::int64_t count) {
  char* to = static_cast<char*>(data) + at * element_bytes(dtype);
  if (dtype == DType::f32) {
    auto* floats = reinterpret_cast<float*>(to);
    count >= W ? Simd<W>::store(floats, value) : Simd<W>::store_part(floats, value, count);
  } else {
    auto* halves = reinterpret_cast<bf16*>(to);
    count >= W ? Simd<W>::store(halves, value) : Simd<W>::store_part(halves, value, count);
  }
}

}  // namespace latentkv::LATENTKV_ISA
