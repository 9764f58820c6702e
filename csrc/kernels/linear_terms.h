// x as whole numbers (linear_term_input.h) against int8 and int4 codes: dot products straight from memory, codes unpacked once
// for a tile of rows. Products and their sums over a group are exact; four neighbours of W outputs take three or four
// instructions where widening takes sixteen. Bound by the memory's speed while rows are few, by the multipliers then.
#pragma once

#include "kernels/linear_stream.h"
#include "kernels/linear_term_input.h"

namespace latentkv::LATENTKV_ISA {

// Rows of one tile, against outputs of an item.
template <int W, int Rows, typename Products, int Terms>
class TermStream {
  using S = Simd<W>;
  using F = typename S::F;
  using D = Dot<W>;
  using I = typename D::I;
  using U = typename D::U;
  using Partial = typename Products::Partial;
  using Input = TermInput<W, Products, Terms>;
  using Group = typename Input::Group;
  using Sums = TermSums<Products, Terms>;
  static constexpr int kSums = Sums::kCount;
  // Vectors of outputs whose sums stay in registers.
  static constexpr int kVectors = 2 * Rows * Terms <= kTermSums<W> ? 2 : 1;
  static constexpr std::int64_t kLine = 4 * kPanelRows, kAhead = 4 * kAheadBytes;

 public:
  TermStream(const LinearWeight& weight, const Input& x, std::int64_t tile)
      : weight_(weight), groups_(x.groups_count), words_(x.words(tile, 0)), rows_(x.groups(tile)) {}

  void run(const Outputs& out) const {
    constexpr int kStep = kVectors * W;
    std::int64_t n = 0;
    for (; n + kStep <= padded(out.count, kPanelRows); n += kStep) vectors<kVectors>(out, n);
    for (; n < out.count; n += W) vectors<1>(out, n);
  }

 private:
  // Outputs from `n` on, Count vectors. Sums lie in `out`: registers are for those of a group.
  template <int Count>
  void vectors(const Outputs& out, std::int64_t n) const {
    const Factors factors[2] = {{weight_, groups_, out.first + n}, {weight_, groups_, out.first + n + (Count - 1) * W}};
    const std::int64_t group_bytes = factors[0].code_bytes, groups = groups_;
    const char *codes[2] = {factors[0].codes, factors[1].codes}, *words = words_;
    const Group* rows = rows_;
    float* const values = out.values + n;
    const std::int64_t stride = out.stride;
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Count; ++v) S::store(values + r * stride + v * W, S::zero());
    }
    for (std::int64_t g = 0; g < groups; ++g, rows += Rows) {
      I sums[Count][Rows][kSums] = {};
#pragma GCC unroll 8
      for (int r = 0; r < Rows && Products::kHasZero; ++r) {
#pragma GCC unroll 3
        for (int i = 0; i < kSums; ++i) {
#pragma GCC unroll 2
          for (int v = 0; v < Count; ++v) sums[v][r][i] = rows[r].offset[i] - I{};
        }
      }
      if constexpr (kOneChunk) {
        chunk<Count>(codes, words, group_bytes, sums);
      } else {
        for (std::int64_t at = 0; at < group_bytes; at += kChunkBytes) {
          chunk<Count>(codes, words, smaller(kChunkBytes, group_bytes - at), sums);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < Count; ++v) add_scaled(factors[v], g, rows, sums[v], values + v * W, stride);
    }
  }

  // What turns the sums of a vector of outputs into numbers.
  struct Factors {
    const char *codes, *scales, *minima;  // minima or null
    DType dtype;
    std::int64_t code_bytes, group_bytes;  // from one group to the next

    Factors(const LinearWeight& weight, std::int64_t groups, std::int64_t output) {
      const std::int64_t panel = output / kPanelRows, lane = output % kPanelRows, at = panel * groups * kPanelRows + lane;
      dtype = weight.scale_dtype;
      code_bytes = weight.group * kPanelRows / (weight.format == WeightFormat::int4 ? 2 : 1);
      codes = static_cast<const char*>(weight.data) + panel * groups * code_bytes + lane * 4;
      scales = element(weight.scales, dtype, at);
      minima = weight.minima == nullptr ? nullptr : element(weight.minima, dtype, at);
      group_bytes = kPanelRows * element_bytes(dtype);
    }

    F scale(std::int64_t g) const { return load_any<W>(scales + g * group_bytes, dtype, 0); }
    F minimum(std::int64_t g) const { return load_any<W>(minima + g * group_bytes, dtype, 0); }
  };

  [[gnu::always_inline]] static void add_scaled(const Factors& factors, std::int64_t g, const Group* rows, const I (*sums)[kSums],
                                                float* values, std::int64_t stride) {
    const bool minima = factors.minima != nullptr;
    const F scale = factors.scale(g), least = minima ? factors.minimum(g) : S::zero();
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      F dot = __builtin_convertvector(sums[r][kSums - 1], F);
#pragma GCC unroll 2
      for (int i = kSums - 2; i >= 0; --i) {
        dot = S::fma(dot, S::broadcast(Sums::kStep), __builtin_convertvector(sums[r][i], F));
      }
      F sum = S::fma(dot, scale * S::broadcast(rows[r].scale), S::load(values + r * stride));
      if (minima) sum = S::fma(least, S::broadcast(rows[r].sum), sum);
      S::store(values + r * stride, sum);
    }
  }

  static constexpr std::int64_t kChunkBytes = Products::kChunk / Products::kInputs * kLine;
  static constexpr bool kOneChunk = Products::kChunk == kMostGroup;

  // `bytes` of a panel's codes, and x for them; leaves both behind them.
  template <int Count>
  [[gnu::always_inline]] static void chunk(const char** codes, const char*& x, std::int64_t bytes, I (*sums)[Rows][kSums]) {
    Partial partial[Count][Rows][Terms] = {};
    if constexpr (kOneChunk) __builtin_memcpy(&partial, sums, sizeof partial);
    for (std::int64_t at = 0; at < bytes; at += kLine) {
      U all[Count];
#pragma GCC unroll 2
      for (int v = 0; v < Count; ++v) {
        if (v * W % kPanelRows == 0) __builtin_prefetch(codes[v] + kAhead);
        __builtin_memcpy(&all[v], codes[v], sizeof(U));
        codes[v] += kLine;
      }
#pragma GCC unroll 2
      for (int i = 0; i < Products::kPieces; ++i) {
        U piece[Count];
#pragma GCC unroll 2
        for (int v = 0; v < Count; ++v) piece[v] = Products::piece(all[v], i);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
          for (int term = 0; term < Terms; ++term, x += 4) {
            const U word = D::broadcast(x);
#pragma GCC unroll 2
            for (int v = 0; v < Count; ++v) {
              partial[v][r][term] = Products::add(partial[v][r][term], piece[v], word);
              D::settle(partial[v][r][term]);
            }
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
        for (int term = 0; term < Terms; ++term) {
          I& sum = sums[v][r][Sums::place(term)];
          sum = Products::total(partial[v][r][term], Sums::factor(term)) + (kOneChunk ? I{} : sum);
        }
      }
    }
  }

  const LinearWeight& weight_;
  std::int64_t groups_;
  const char* words_;
  const Group* rows_;
};

}  // namespace latentkv::LATENTKV_ISA
