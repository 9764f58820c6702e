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
  static constexpr std::int64_t kLine = 4 * kPanelRows, kAhead = 4 * kAheadBytes;

 public:
  TermStream(const LinearWeight& weight, const Input& x, std::int64_t tile)
      : weight_(weight), groups_(x.groups_count), words_(x.words(tile, 0)), rows_(x.groups(tile)) {}

  // Panels that are read side by side keep more of the memory busy, and their outputs share what is broadcast of x.
  void run(const Outputs& out) const {
    std::int64_t n = 0;
    if constexpr (4 * Rows * Terms <= kWideTermSums<W>) n = vectors<4>(out, n);
    if constexpr (2 * Rows * Terms <= kTermSums<W>) n = vectors<2>(out, n);
    vectors<1>(out, n);
  }

 private:
  // What a panel's sums are made of and what turns them into numbers.
  struct Panel {
    const char *codes, *scales, *minima;  // minima or null
    DType dtype;
    std::int64_t code_bytes, group_bytes;  // from one group to the next

    F scale(std::int64_t g, std::int64_t lane) const { return load_any<W>(scales + g * group_bytes, dtype, lane); }
    F minimum(std::int64_t g, std::int64_t lane) const { return load_any<W>(minima + g * group_bytes, dtype, lane); }
  };

  // Of a vector of outputs: its panel, and its place there, both counted from those of the first one.
  static constexpr int panel_of(int vector) { return vector * W / kPanelRows; }
  static constexpr int lane_of(int vector) { return vector * W % kPanelRows; }
  template <int Count>
  static constexpr int kPanels = panel_of(Count - 1) + 1;

  // Outputs from `n` on, Count vectors at a time. Returns where those begin that are left over.
  template <int Count>
  std::int64_t vectors(const Outputs& out, std::int64_t n) const {
    for (; n + Count * W <= padded(out.count, kPanelRows); n += Count * W) block<Count>(out, n);
    return n;
  }

  // Sums lie in `out`: registers are for those of a group.
  template <int Count>
  void block(const Outputs& out, std::int64_t n) const {
    Panel panels[kPanels<Count>];
    const char *codes[kPanels<Count>], *words = words_;
    for (int p = 0; p < kPanels<Count>; ++p) {
      panels[p] = panel(out.first + n + p * kPanelRows);
      codes[p] = panels[p].codes;
    }
    const std::int64_t group_bytes = panels[0].code_bytes, groups = groups_;
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
#pragma GCC unroll 4
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
      add_scaled<Count>(panels, g, rows, sums, values, stride);
    }
  }

  // From output `output` on.
  Panel panel(std::int64_t output) const {
    const LinearWeight& w = weight_;
    const std::int64_t panel = output / kPanelRows, lane = output % kPanelRows, at = panel * groups_ * kPanelRows + lane;
    const std::int64_t code_bytes = w.group * kPanelRows / (w.format == WeightFormat::int4 ? 2 : 1);
    return {static_cast<const char*>(w.data) + panel * groups_ * code_bytes + lane * 4,
            element(w.scales, w.scale_dtype, at),
            w.minima == nullptr ? nullptr : element(w.minima, w.scale_dtype, at),
            w.scale_dtype,
            code_bytes,
            kPanelRows * element_bytes(w.scale_dtype)};
  }

  template <int Count>
  [[gnu::always_inline]] static void add_scaled(const Panel* panels, std::int64_t g, const Group* rows,
                                                const I (*sums)[Rows][kSums], float* values, std::int64_t stride) {
    const bool minima = panels[0].minima != nullptr;
    F scale[Count], least[Count];
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) {
      scale[v] = panels[panel_of(v)].scale(g, lane_of(v));
      least[v] = minima ? panels[panel_of(v)].minimum(g, lane_of(v)) : S::zero();
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Count; ++v) {
        F dot = __builtin_convertvector(sums[v][r][kSums - 1], F);
#pragma GCC unroll 2
        for (int i = kSums - 2; i >= 0; --i) {
          dot = S::fma(dot, S::broadcast(Sums::kStep), __builtin_convertvector(sums[v][r][i], F));
        }
        float* const to = values + r * stride + v * W;
        F sum = S::fma(dot, scale[v] * S::broadcast(rows[r].scale), S::load(to));
        if (minima) sum = S::fma(least[v], S::broadcast(rows[r].sum), sum);
        S::store(to, sum);
      }
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
#pragma GCC unroll 4
      for (int v = 0; v < Count; ++v) {
        if (lane_of(v) == 0) __builtin_prefetch(codes[panel_of(v)] + kAhead);
        __builtin_memcpy(&all[v], codes[panel_of(v)] + lane_of(v) * 4, sizeof(U));
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPanels<Count>; ++p) codes[p] += kLine;
#pragma GCC unroll 2
      for (int i = 0; i < Products::kPieces; ++i) {
        U piece[Count];
#pragma GCC unroll 4
        for (int v = 0; v < Count; ++v) piece[v] = Products::piece(all[v], i);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
          for (int term = 0; term < Terms; ++term, x += 4) {
            const U word = D::broadcast(x);
#pragma GCC unroll 4
            for (int v = 0; v < Count; ++v) {
              partial[v][r][term] = Products::add(partial[v][r][term], piece[v], word);
              D::settle(partial[v][r][term]);
            }
          }
        }
      }
    }
#pragma GCC unroll 4
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
