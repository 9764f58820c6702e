// The queries of one item as right-hand tiles for rows of codes: for the codes words of 16 bits in two bytes, in units of
// their own for each row and group of codes; for the RoPE part bf16 terms as in attention_tile_query.h.
#pragma once

#include "kernels/attention_tile_bytes.h"
#include "kernels/attention_tile_query.h"

namespace latentkv::LATENTKV_ISA {

class TileByteQuery {
  static constexpr int W = 16;
  using S = Simd<W>;

 public:
  static constexpr std::int64_t kMostRowTiles = kRows / kTileRows;
  static constexpr std::int64_t kTerms = 2;      // bytes of a word
  static constexpr std::int64_t kRopeTerms = 3;  // bf16 of a float32 number

  static std::int64_t strips(const AttentionParams& p) { return p.codes.width / kByteDepth; }
  static std::int64_t groups(const AttentionParams& p) { return (p.codes.width + p.codes.group - 1) / p.codes.group; }
  static std::int64_t rope_steps(const AttentionParams& p) { return (p.key_width - p.codes.width) / kTileDepth; }

  static std::int64_t floats(const AttentionParams& p) {
    return 2 * kTileRows * p.key_width +
           kMostRowTiles * ((strips(p) * kTerms + rope_steps(p) * kRopeTerms) * kTileWords + groups(p) * W);
  }

  TileByteQuery(const AttentionParams& p, float* memory)
      : p_(p),
        lines_(memory),
        columns_(lines_ + kTileRows * p.key_width),
        codes_(reinterpret_cast<std::uint32_t*>(columns_ + kTileRows * p.key_width)),
        rope_(codes_ + kMostRowTiles * strips(p) * kTerms * kTileWords),
        units_(reinterpret_cast<float*>(rope_ + kMostRowTiles * rope_steps(p) * kRopeTerms * kTileWords)),
        rope_terms_(p.b.width == 0 || p.b.dtype == DType::bf16 ? 1 : kRopeTerms) {}

  std::int64_t row_tiles() const { return row_tiles_; }
  std::int64_t rope_terms() const { return rope_terms_; }

  // The upper bytes of 64 columns of 16 rows, then the lower ones.
  const std::uint32_t* codes(std::int64_t row_tile, std::int64_t strip) const {
    return codes_ + (row_tile * strips(p_) + strip) * kTerms * kTileWords;
  }

  // The terms of 32 columns of the RoPE part of 16 rows.
  const std::uint32_t* rope(std::int64_t row_tile, std::int64_t step) const {
    return rope_ + (row_tile * rope_steps(p_) + step) * rope_terms_ * kTileWords;
  }

  // [W] rows
  const float* units(std::int64_t row_tile, std::int64_t group) const {
    return units_ + (row_tile * groups(p_) + group) * W;
  }

  void pack(const RowNames& names, std::int64_t row_count) {
    row_tiles_ = (row_count + kTileRows - 1) / kTileRows;
    for (std::int64_t tile = 0; tile < row_tiles_; ++tile) {
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const std::int64_t row = tile * kTileRows + i;
        gather_query<W>(p_, names, row < row_count ? row : row_count - 1, 1.0f, lines_ + i * p_.key_width, p_.key_width);
      }
      turn();
      for (std::int64_t group = 0; group < groups(p_); ++group) cut_group(tile, group);
      for (std::int64_t step = 0; step < rope_steps(p_); ++step) pack_rope(tile, step);
    }
  }

 private:
  // lines_ [row][column] to columns_ [column][row].
  void turn() const {
    for (std::int64_t d = 0; d < p_.key_width; d += W) {
      S::F square[W];
      for (int i = 0; i < W; ++i) square[i] = S::load(lines_ + i * p_.key_width + d);
      transpose<W>(square);
      for (int i = 0; i < W; ++i) S::store(columns_ + (d + i) * W, square[i]);
    }
  }

  void cut_group(std::int64_t row_tile, std::int64_t group) const {
    const std::int64_t first = group * p_.codes.group, left = p_.codes.width - first;
    const std::int64_t count = left < p_.codes.group ? left : p_.codes.group;
    const auto of = [&](std::int64_t i) { return S::load(columns_ + (first + i) * W); };
    const WordUnit<W> unit(kMostCut, count, of);
    S::store(const_cast<float*>(units(row_tile, group)), unit.unit());
    for (std::int64_t d = 0; d < count; d += 4) {
      auto* to = const_cast<std::uint32_t*>(codes(row_tile, (first + d) / kByteDepth)) + d % kByteDepth / 4 * W;
      Words16 low, high;
      cut(unit.words(of(d), of(d + 2)), unit.words(of(d + 1), of(d + 3)), low, high);
      __builtin_memcpy(to, &high, sizeof high);
      __builtin_memcpy(to + kTileWords, &low, sizeof low);
    }
  }

  void pack_rope(std::int64_t row_tile, std::int64_t step) const {
    auto* to = const_cast<std::uint32_t*>(rope(row_tile, step));
    const float* columns = columns_ + (p_.codes.width + step * kTileDepth) * W;
    for (int pair = 0; pair < kTileRows; ++pair, columns += 2 * W) {
      auto even = S::load(columns), odd = S::load(columns + W);
      for (std::int64_t term = 0; term < rope_terms_; ++term) {
        const auto low = next_term<W>(even), high = next_term<W>(odd);
        const auto both = (low >> 16) | high;
        __builtin_memcpy(to + term * kTileWords + pair * W, &both, sizeof both);
      }
    }
  }

  const AttentionParams& p_;
  float *lines_, *columns_;  // [kTileRows][key_width], [key_width][kTileRows]
  std::uint32_t *codes_, *rope_;
  float* units_;
  const std::int64_t rope_terms_;
  std::int64_t row_tiles_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
