// The queries of one item as right-hand tiles: their float32 numbers cut into bf16 terms whose products are exact.
#pragma once

#include "kernels/attention_query.h"
#include "kernels/attention_tile_numbers.h"

namespace latentkv::LATENTKV_ISA {

class TileQuery {
  static constexpr int W = 16;
  using S = Simd<W>;

 public:
  static constexpr std::int64_t kTerms = 3;  // all of a float32 number
  static constexpr std::int64_t kRoundedTerms = 2;
  static constexpr std::int64_t kMostRowTiles = kRows / kTileRows;

  static std::int64_t steps(const AttentionParams& p) { return p.key_width / kTileDepth; }
  static std::int64_t floats(const AttentionParams& p) {
    return kTileRows * p.key_width + kMostRowTiles * steps(p) * kTerms * kTileBytes / sizeof(float);
  }

  TileQuery(const AttentionParams& p, float* memory)
      : p_(p),
        lines_(memory),
        tiles_(reinterpret_cast<std::uint32_t*>(memory + kTileRows * p.key_width)),
        coded_(p.row_dtype == DType::u8 ? p.codes.width : 0),
        terms_(is_short(p.a) && is_short(p.b) ? 1 : coded_ > 0 && p.integer ? kRoundedTerms : kTerms) {}

  std::int64_t row_tiles() const { return row_tiles_; }
  std::int64_t terms() const { return terms_; }

  // The terms of 32 columns of 16 rows follow each other, and the columns.
  const std::uint32_t* tile(std::int64_t row_tile, std::int64_t step) const {
    return tiles_ + (row_tile * steps(p_) + step) * terms_ * kTileWords;
  }

  static constexpr std::int64_t kTileWords = kTileBytes / sizeof(std::uint32_t);

  void pack(const RowNames& names, std::int64_t row_count) {
    row_tiles_ = (row_count + kTileRows - 1) / kTileRows;
    for (std::int64_t tile = 0; tile < row_tiles_; ++tile) {
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        const std::int64_t row = tile * kTileRows + i;
        gather_query<W>(p_, names, row < row_count ? row : row_count - 1, 1.0f, lines_ + i * p_.key_width, p_.key_width);
      }
      for (std::int64_t step = 0; step < steps(p_); ++step) pack_tile(tile, step);
    }
  }

 private:
  static bool is_short(const QueryPart& part) { return part.width == 0 || part.dtype == DType::bf16; }

  // Codes are staged in an order of their own.
  void pack_tile(std::int64_t row_tile, std::int64_t step) const {
    auto* to = const_cast<std::uint32_t*>(tile(row_tile, step));
    const bool is_code = step * kTileDepth < coded_;
    for (std::int64_t half = 0; half < 2; ++half) {
      typename S::F columns[W];
      for (int i = 0; i < W; ++i) columns[i] = S::load(lines_ + i * p_.key_width + step * kTileDepth + half * W);
      transpose<W>(columns);
      for (std::int64_t term = 0; term < terms_; ++term) {
        for (int pair = 0; pair < W / 2; ++pair) {
          const bool is_rounded = term + 1 == terms_ && terms_ == kRoundedTerms;
          auto &low = columns[2 * pair], &high = columns[2 * pair + 1];
          const auto both = is_rounded ? (rounded_term<W>(low) >> 16) | rounded_term<W>(high)
                                       : (next_term<W>(low) >> 16) | next_term<W>(high);
          const std::int64_t place = half * W / 2 + pair;
          __builtin_memcpy(to + term * kTileWords + (is_code ? staged_place(2 * place) / 2 : place) * W, &both, sizeof both);
        }
      }
    }
  }

  const AttentionParams& p_;
  float* lines_;  // [kTileRows][key_width]
  std::uint32_t* tiles_;
  const std::int64_t coded_, terms_;
  std::int64_t row_tiles_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
