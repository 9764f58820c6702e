// A few rows of x against int8 and int4 codes by dot products of whole numbers, as exact as floats: bound by the memory's speed.
//
// In each group of inputs x is a scale, a power of two, times whole numbers: two terms of 16 bits or three of 8, each counting
// what the one before has left. The last one leaves at most 1.3e-7 of the group's largest, a step of float32 at that size.
// Products with codes and their sums over a group are exact; four neighbours of W outputs take three or four instructions
// where widening takes sixteen.
#pragma once

#include "kernels/linear_products.h"
#include "kernels/linear_stream.h"

namespace latentkv::LATENTKV_ISA {

template <typename Products>
constexpr int kTermsOf = sizeof(typename Products::Element) == 2 ? 2 : 3;

// One row of x.
struct TermRow {
  static constexpr int kMostTerms = 3;
  float* floats;  // as code_stream wants it, for a row with a NaN or an infinity
  std::int64_t stride;
  char* terms;  // [terms][stride]; words in the order 0 2 1 3
  float *scales, *sums;  // of each group; sums of x itself
  std::int32_t* term_sums;  // [groups][kMostTerms]
  bool* is_finite;

  TermRow(char* memory, std::int64_t stride, std::int64_t groups)
      : floats(reinterpret_cast<float*>(memory)),
        stride(stride),
        terms(memory + stride * 4),
        scales(reinterpret_cast<float*>(terms + stride * 4)),
        sums(scales + groups),
        term_sums(reinterpret_cast<std::int32_t*>(sums + groups)),
        is_finite(reinterpret_cast<bool*>(term_sums + kMostTerms * groups)) {}

  // Two terms of two bytes or three of one.
  static std::int64_t bytes(std::int64_t stride, std::int64_t groups) {
    return stride * 8 + padded(groups * (2 + kMostTerms) * 4 + 1, 64);
  }
};

// Fills a TermRow.
template <int W, typename Products>
class TermPreparer {
  using S = Simd<W>;
  using F = typename S::F;
  using I = typename Lanes<std::int32_t, W>::type;
  using Element = typename Products::Element;
  static constexpr int kTerms = kTermsOf<Products>;
  static constexpr std::int64_t kElementBytes = sizeof(Element);
  static constexpr bool kWords = kElementBytes == 2;

 public:
  static constexpr float kSteps = kWords ? 65534.0f : 254.0f;  // of a term to one of the term before

  static void run(const InputRow<W>& from, std::int64_t cols, std::int64_t group, const TermRow& to) {
    from.widen(0, cols, to.floats);
    F bad = S::zero();
    for (std::int64_t g = 0; g * group < cols; ++g) bad += split(g, group, to);
    *to.is_finite = S::sum(bad) == 0.0f;
  }

 private:
  // One group; not zero where a number is not finite.
  static F split(std::int64_t g, std::int64_t count, const TermRow& to) {
    const float* values = to.floats + g * count;
    F top = S::zero(), bad = S::zero();
    for (std::int64_t i = 0; i < count; i += W) {
      const F value = S::load(values + i), size = value < S::zero() ? -value : value;
      top = size > top ? size : top;
      bad += value - value;
    }
    const float scale = scale_of(S::largest(top)), inverse = 1.0f / scale;
    F sums[kTerms] = {};
    for (std::int64_t i = 0; i < count; i += W) {
      F rest = S::load(values + i) * S::broadcast(inverse);
#pragma GCC unroll 3
      for (int term = 0; term < kTerms; ++term) {
        // Adding 1.5 * 2**23 leaves the nearest whole number in the low bits.
        const F marked = rest + 12582912.0f, whole = marked - 12582912.0f;
        Products::store((I)marked, to.terms + (term * to.stride + g * count + i) * kElementBytes);
        sums[term] += whole;
        rest = (rest - whole) * kSteps;
      }
    }
    float total = 0.0f;
    for (int term = kTerms - 1; term >= 0; --term) {
      const float sum = S::sum(sums[term]);  // whole numbers below 2**22
      to.term_sums[g * TermRow::kMostTerms + term] = whole_number(sum);
      total = total / kSteps + sum;
    }
    to.scales[g] = scale;
    to.sums[g] = scale * total;
    return bad;
  }

  // So that the largest is at most 127 or 32767 of it, and never subnormal.
  static float scale_of(float most) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &most, sizeof bits);
    const std::int64_t exponent = larger(static_cast<std::int64_t>((bits + 0x10000u) >> 23) - (kWords ? 14 : 6), 1);
    bits = static_cast<std::uint32_t>(exponent) << 23;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return scale;
  }
};

template <int W>
std::int64_t term_row_bytes(const LinearJob& job) {
  return TermRow::bytes(stream_stride<W>(job.x.cols), job.x.cols / job.weight->group);
}

// Row `row` of a job in `memory`.
template <int W>
TermRow term_row(const LinearJob& job, char* memory, std::int64_t row) {
  return {memory + row * term_row_bytes<W>(job), stream_stride<W>(job.x.cols), job.x.cols / job.weight->group};
}

template <int W>
void prepare_terms(const LinearJob& job, std::int64_t row, char* memory) {
  const InputRow<W> from(job, row);
  const std::int64_t cols = job.x.cols, group = job.weight->group;
  const TermRow to = term_row<W>(job, memory, row);
  job.weight->format == WeightFormat::int4 ? TermPreparer<W, NibbleProducts<W>>::run(from, cols, group, to)
                                           : TermPreparer<W, ByteProducts<W>>::run(from, cols, group, to);
}

template <int W, int Rows, typename Products>
class TermStream {
  using S = Simd<W>;
  using F = typename S::F;
  using D = Dot<W>;
  using I = typename D::I;
  using U = typename D::U;
  using Partial = typename Products::Partial;
  static constexpr int kTerms = kTermsOf<Products>;
  static constexpr int kParts = kPanelRows / W;
  // Vectors of outputs whose sums stay in registers.
  static constexpr int kVectors = 2 * Rows * kTerms <= (W == 16 ? 16 : 8) ? 2 : 1;
  static constexpr float kStep = 1.0f / TermPreparer<W, Products>::kSteps;
  static constexpr std::int64_t kElementBytes = sizeof(typename Products::Element);
  static constexpr std::int64_t kAhead = 2 * kAheadBytes;

 public:
  TermStream(const LinearWeight& weight, const TermRow* x)
      : weight_(weight),
        x_(x),
        panel_bytes_(code_bytes(weight, kPanelRows)),
        group_bytes_(panel_bytes_ / weight.cols * weight.group),
        term_bytes_(x[0].stride * kElementBytes) {}

  void run(const Outputs& out) const {
    constexpr int kPanels = kVectors * W > kPanelRows ? kVectors * W / kPanelRows : 1;
    std::int64_t n = 0;
    for (; n + kPanels * kPanelRows <= out.count; n += kPanels * kPanelRows) panels<kPanels * kParts>(out, n);
    for (; n < out.count; n += kPanelRows) panels<kParts>(out, n);
  }

 private:
  // Outputs from `n` on, Count vectors.
  template <int Count>
  void panels(const Outputs& out, std::int64_t n) const {
    constexpr int kBatch = Count < kVectors ? Count : kVectors;
    F acc[Count][Rows] = {};
    for (std::int64_t g = 0; g < weight_.cols / weight_.group; ++g) {
#pragma GCC unroll 2
      for (int v = 0; v < Count; v += kBatch) group<kBatch>(out.first + n + v * W, g, acc + v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < Count; ++v) S::store(out.values + r * out.stride + n + v * W, acc[v][r]);
    }
  }

  const char* codes(std::int64_t output, std::int64_t g) const {
    return static_cast<const char*>(weight_.data) + output / kPanelRows * panel_bytes_ + g * group_bytes_ + output % kPanelRows * 4;
  }

  template <int Count>
  [[gnu::always_inline]] void group(std::int64_t output, std::int64_t g, F (*acc)[Rows]) const {
    const char* from[Count];
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) from[v] = codes(output + v * W, g);
    I sums[Count][Rows][kTerms];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
      for (int term = 0; term < kTerms; ++term) {
        const I start = -Products::zero(weight_) * x_[r].term_sums[g * TermRow::kMostTerms + term] - I{};
#pragma GCC unroll 2
        for (int v = 0; v < Count; ++v) sums[v][r][term] = start;
      }
    }
    for (std::int64_t k = 0; k < weight_.group; k += Products::kChunk) {
      chunk<Count>(from, k, g * weight_.group + k, smaller(Products::kChunk, weight_.group - k), sums);
    }
    scale<Count>(output, g, sums, acc);
  }

  // `count` inputs, `k` into their group.
  template <int Count>
  [[gnu::always_inline]] void chunk(const char* const* from, std::int64_t k, std::int64_t input, std::int64_t count,
                                    I (*sums)[Rows][kTerms]) const {
    constexpr std::int64_t kLine = 4 * kPanelRows;
    Partial partial[Count][Rows][kTerms] = {};
    std::int64_t x_at = input * kElementBytes;
    for (std::int64_t at = k / Products::kInputs * kLine; at < (k + count) / Products::kInputs * kLine; at += kLine) {
      U all[Count];
#pragma GCC unroll 2
      for (int v = 0; v < Count; ++v) {
        if (v * W % kPanelRows == 0) __builtin_prefetch(from[v] + at + kAhead);
        __builtin_memcpy(&all[v], from[v] + at, sizeof(U));
      }
#pragma GCC unroll 2
      for (int i = 0; i < Products::kPieces; ++i, x_at += 4) {
        U codes[Count];
#pragma GCC unroll 2
        for (int v = 0; v < Count; ++v) codes[v] = Products::piece(all[v], i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
          for (int term = 0; term < kTerms; ++term) {
            const U x = D::broadcast(x_[r].terms + term * term_bytes_ + x_at);
#pragma GCC unroll 2
            for (int v = 0; v < Count; ++v) partial[v][r][term] = Products::add(partial[v][r][term], codes[v], x);
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
        for (int term = 0; term < kTerms; ++term) {
          sums[v][r][term] += Products::total(partial[v][r][term]);
        }
      }
    }
  }

  template <int Count>
  [[gnu::always_inline]] void scale(std::int64_t output, std::int64_t g, const I (*sums)[Rows][kTerms], F (*acc)[Rows]) const {
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) {
      const CodePanel<W> lanes(weight_, output + v * W);
      const F scale = lanes.scale(g);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        F dot = __builtin_convertvector(sums[v][r][kTerms - 1], F);
#pragma GCC unroll 3
        for (int term = kTerms - 2; term >= 0; --term) {
          dot = S::fma(dot, S::broadcast(kStep), __builtin_convertvector(sums[v][r][term], F));
        }
        acc[v][r] = S::fma(dot, scale * S::broadcast(x_[r].scales[g]), acc[v][r]);
        if (weight_.minima != nullptr) acc[v][r] = S::fma(lanes.minimum(g), S::broadcast(x_[r].sums[g]), acc[v][r]);
      }
    }
  }

  const LinearWeight& weight_;
  const TermRow* x_;
  std::int64_t panel_bytes_, group_bytes_, term_bytes_;
};

}  // namespace latentkv::LATENTKV_ISA
