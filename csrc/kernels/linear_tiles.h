// Many rows of x: weights are unpacked to float, outputs in the lanes, kDepth inputs at a time, and used by every row while
// they are in the first cache. Bound by the multipliers.
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/linear_input.h"

namespace latentkv::LATENTKV_ISA {

// Turns rows[r][c] into rows[c][r], 32 bits each.
template <int W>
[[gnu::always_inline]] inline void transpose(typename Simd<W>::U* rows) {
  using U = typename Simd<W>::U;
  U t[W];
  if constexpr (W == 4) {
    for (int i = 0; i < 4; i += 2) {
      t[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 4, 1, 5);
      t[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 6, 3, 7);
    }
    for (int i = 0; i < 2; ++i) {
      rows[2 * i] = __builtin_shufflevector(t[i], t[i + 2], 0, 1, 4, 5);
      rows[2 * i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 3, 6, 7);
    }
  } else if constexpr (W == 8) {
    for (int i = 0; i < 8; i += 2) {
      t[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      t[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    U s[W];
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        s[i + 2 * j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        s[i + 2 * j + 1] = __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
      }
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = __builtin_shufflevector(s[i], s[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
      rows[i + 4] = __builtin_shufflevector(s[i], s[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
  } else {
    for (int i = 0; i < 16; i += 2) {
      t[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      t[i + 1] =
          __builtin_shufflevector(rows[i], rows[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    U s[W];
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        s[i + 2 * j] =
            __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        s[i + 2 * j + 1] =
            __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
      }
    }
    // s[4 i + j]: columns j, j + 4, j + 8, j + 12 of rows 4 i ... 4 i + 3, a quarter each.
    for (int j = 0; j < 4; ++j) {
      const U even_low = __builtin_shufflevector(s[j], s[4 + j], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      const U odd_low = __builtin_shufflevector(s[j], s[4 + j], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      const U even_high =
          __builtin_shufflevector(s[8 + j], s[12 + j], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      const U odd_high =
          __builtin_shufflevector(s[8 + j], s[12 + j], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      rows[j] = __builtin_shufflevector(even_low, even_high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      rows[j + 8] = __builtin_shufflevector(even_low, even_high, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      rows[j + 4] = __builtin_shufflevector(odd_low, odd_high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      rows[j + 12] = __builtin_shufflevector(odd_low, odd_high, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
  }
}

// Weights of inputs first ... first + depth - 1 and outputs from `output` on, as float [depth][kOutputs]. Lanes beyond the
// last output repeat it; nobody looks at their sums.
template <int W>
class Unpacker {
  using S = Simd<W>;
  using U = typename S::U;
  static constexpr std::int64_t kOutputs = LinearTile<W>::kOutputs;

 public:
  Unpacker(const LinearWeight& weight, std::int64_t output, float* panel)
      : weight_(weight), output_(output), panel_(panel) {}

  void run(std::int64_t first, std::int64_t depth) const {
    for (std::int64_t lane = 0; lane < kOutputs && output_ + lane < padded_rows(); lane += W) {
      if (is_grouped(weight_)) {
        codes(lane, first, depth);
      } else if (weight_.col_stride == 1) {
        weight_.format == WeightFormat::f32 ? rows<float>(lane, first, depth) : rows<bf16>(lane, first, depth);
      } else {
        weight_.format == WeightFormat::f32 ? columns<float>(lane, first, depth) : columns<bf16>(lane, first, depth);
      }
    }
  }

 private:
  std::int64_t padded_rows() const { return padded(weight_.rows, W); }
  float* at(std::int64_t k, std::int64_t lane) const { return panel_ + k * kOutputs + lane; }

  void codes(std::int64_t lane, std::int64_t first, std::int64_t depth) const {
    const CodePanel<W> panel(weight_, output_ + lane);
    for (std::int64_t k = 0; k < depth; k += weight_.group) {
      panel.for_each_weight((first + k) / weight_.group, [&](std::int64_t i, int, typename S::F w) {
        S::store(at(k + i, lane), w);
      });
    }
  }

  template <typename T>
  void columns(std::int64_t lane, std::int64_t first, std::int64_t depth) const {
    const std::int64_t count = weight_.rows - output_ - lane;
    const T* from = static_cast<const T*>(weight_.data) + first * weight_.col_stride + output_ + lane;
    for (std::int64_t k = 0; k < depth; ++k, from += weight_.col_stride) {
      S::store(at(k, lane), count >= W ? S::load(from) : S::load_part(from, count));
    }
  }

  // W rows of W words each: one float or two bf16.
  template <typename T>
  void rows(std::int64_t lane, std::int64_t first, std::int64_t depth) const {
    constexpr std::int64_t kWords = W * 4 / sizeof(T);
    const T* from[W];
    for (int i = 0; i < W; ++i) {
      const std::int64_t output = smaller(output_ + lane + i, weight_.rows - 1);
      from[i] = static_cast<const T*>(weight_.data) + output * weight_.row_stride + first;
    }
    std::int64_t k = 0;
    for (; k + kWords <= depth; k += kWords) {
      U words[W];
      for (int i = 0; i < W; ++i) __builtin_memcpy(&words[i], from[i] + k, sizeof words[i]);
      store_block(words, at(k, lane), from[0], kWords);
    }
    if (k < depth) {
      T rest[W][kWords] = {};
      for (int i = 0; i < W; ++i) __builtin_memcpy(rest[i], from[i] + k, (depth - k) * sizeof(T));
      U words[W];
      __builtin_memcpy(words, rest, sizeof words);
      store_block(words, at(k, lane), from[0], depth - k);
    }
  }

  static void store_block(U* words, float* to, const float*, std::int64_t count) {
    transpose<W>(words);
    for (int i = 0; i < W && i < count; ++i) __builtin_memcpy(to + i * kOutputs, &words[i], sizeof words[i]);
  }

  static void store_block(U* words, float* to, const bf16*, std::int64_t count) {
    transpose<W>(words);
    for (int i = 0; i < W && 2 * i < count; ++i) {
      const U even = words[i] << 16, odd = words[i] & 0xffff0000u;
      __builtin_memcpy(to + 2 * i * kOutputs, &even, sizeof even);
      if (2 * i + 1 < count) __builtin_memcpy(to + (2 * i + 1) * kOutputs, &odd, sizeof odd);
    }
  }

  const LinearWeight& weight_;
  std::int64_t output_;
  float* panel_;
};

// sums[Rows][kOutputs] (+)= x[Rows][depth] times panel[depth][kOutputs].
template <int W, int Rows>
void multiply_tile(const float* x, const float* panel, std::int64_t depth, float* sums, bool add) {
  using S = Simd<W>;
  using T = LinearTile<W>;
  typename S::F acc[Rows][T::kVectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < T::kVectors; ++v) acc[r][v] = add ? S::load(sums + r * T::kOutputs + v * W) : S::zero();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    typename S::F w[T::kVectors];
    for (int v = 0; v < T::kVectors; ++v) w[v] = S::load(panel + k * T::kOutputs + v * W);
    for (int r = 0; r < Rows; ++r) {
      const auto value = S::broadcast(x[r * T::kDepth + k]);
      for (int v = 0; v < T::kVectors; ++v) acc[r][v] = S::fma(value, w[v], acc[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < T::kVectors; ++v) S::store(sums + r * T::kOutputs + v * W, acc[r][v]);
  }
}

template <int W>
void multiply_rows(std::int64_t rows, const float* x, const float* panel, std::int64_t depth, float* sums, bool add) {
  switch (rows) {
    case 1: return multiply_tile<W, 1>(x, panel, depth, sums, add);
    case 2: return multiply_tile<W, 2>(x, panel, depth, sums, add);
    case 3: return multiply_tile<W, 3>(x, panel, depth, sums, add);
    case 4: return multiply_tile<W, 4>(x, panel, depth, sums, add);
    case 5: return multiply_tile<W, 5>(x, panel, depth, sums, add);
    default: return multiply_tile<W, 6>(x, panel, depth, sums, add);
  }
}

// All rows of x against kOutputs outputs: sums [rows][kOutputs]. `panel` is scratch of kDepth * kOutputs floats.
template <int W>
void multiply_panel(const LinearWeight& weight, std::int64_t output, std::int64_t rows, char* x, float* panel,
                    float* sums) {
  using T = LinearTile<W>;
  const RowTiles<W> tiles(rows);
  const Unpacker<W> unpacker(weight, output, panel);
  for (std::int64_t k = 0; k < weight.cols; k += T::kDepth) {
    const std::int64_t depth = smaller(T::kDepth, weight.cols - k);
    unpacker.run(k, depth);
    for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
      const float* from = tile_row<W>(x, tiles, k / T::kDepth, tile, 0);
      multiply_rows<W>(tiles.rows(tile), from, panel, depth, sums + tiles.first(tile) * T::kOutputs, k > 0);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
