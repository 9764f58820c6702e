// A stretch of one head's keys and values as right-hand tiles of bf16 terms, expanded on matrix tiles.
//
//   latents (16 tokens x 32 columns, as they lie) x up-projection (32 columns x 16 outputs, packed once per head)
//
// Three terms are all of a float32 number; RoPE keys need one.
#pragma once

#include "kernels/head_pieces.h"
#include "tile.h"

namespace latentkv::LATENTKV_ISA {

class HeadExpansion {
  static constexpr int W = 16;
  using S = Simd<W>;
  using F = S::F;
  using U = S::U;

 public:
  static constexpr std::int64_t kTerms = 3;
  static constexpr std::int64_t kTileWords = kTileBytes / sizeof(std::uint32_t);

  static bool suits(const HeadFormParams& p) {
    const auto whole = [](std::int64_t width) { return width % kTileDepth == 0; };
    return p.attention.row_dtype == DType::bf16 && whole(p.latent_width) && whole(p.key.width) && whole(p.value.width) &&
           whole(p.attention.b.width);
  }

  HeadExpansion(const HeadFormParams& p, float* memory)
      : p_(p),
        keys_(reinterpret_cast<std::uint32_t*>(memory)),
        values_(keys_ + stretch(p) / kTileRows * key_tiles(p) * kTileWords),
        weights_(values_ + stretch(p) / kTileDepth * value_tiles(p) * kTileWords),
        sums_(reinterpret_cast<float*>(weights_ + weight_tiles(p) * kTileWords)),
        staged_(reinterpret_cast<bf16*>(sums_ + 4 * kTileWords)) {}

  static std::int64_t floats(const HeadFormParams& p) {
    const std::int64_t tiles = stretch(p) / kTileRows * key_tiles(p) + stretch(p) / kTileDepth * value_tiles(p);
    return (tiles + weight_tiles(p) + 4) * kTileWords + kTileDepth * p.latent_width / 2;
  }

  static std::int64_t stretch(const HeadFormParams& p) {
    const std::int64_t token_tiles_bytes = (2 * key_tiles(p) + value_tiles(p)) * kTileBytes;
    return stretch_tokens(p, token_tiles_bytes / kTileDepth, kMostTokens);
  }

  // Terms of 32 columns of a key: those without RoPE come first.
  std::int64_t key_terms(std::int64_t step) const { return step < nope_steps(p_) ? kTerms : 1; }
  std::int64_t key_steps() const { return p_.attention.key_width / kTileDepth; }

  // Of 16 tokens of the stretch: the terms of 32 columns follow each other, and the columns. Pairs of columns side by side.
  const std::uint32_t* keys(std::int64_t token_tile) const { return keys_ + token_tile * key_tiles(p_) * kTileWords; }

  // The terms of 16 columns of 32 tokens; tokens w and w + 16 side by side.
  const std::uint32_t* values(std::int64_t token_step, std::int64_t column_tile) const {
    return values_ + (token_step * (p_.value.width / W) + column_tile) * kTerms * kTileWords;
  }

  // Takes one head's up-projections.
  void take_head(std::int64_t head) {
    head_ = head;
    const std::int64_t key_outputs = p_.key.width / W;
    for (std::int64_t i = 0; i < key_outputs; ++i) pack(p_.key, i, i);
    for (std::int64_t i = 0; i < p_.value.width / W; ++i) pack(p_.value, i, key_outputs + i);
  }

  // Context tokens begin ... begin + count - 1; up to the next multiple of 32 all are zero.
  void expand(Tiles& tiles, std::int64_t begin, std::int64_t count) {
    const ContextRows context(p_.attention, 0);
    const char* rows[kTileDepth];
    for (std::int64_t first = 0; first < count; first += kTileDepth) {
      const std::int64_t tokens = count - first < kTileDepth ? count - first : kTileDepth;
      context.find(begin + first, begin + first + tokens, sizeof(bf16), rows);
      find_latents(rows, tokens);
      for (std::int64_t pair = 0; pair < p_.key.width / kTileDepth; ++pair) {
        multiply(tiles, 2 * pair);
        for (std::int64_t half = 0; half < 2; ++half) store_keys(first / kTileRows + half, pair, half);
      }
      for (std::int64_t pair = 0; pair < p_.value.width / kTileDepth; ++pair) {
        multiply(tiles, 2 * (nope_steps(p_) + pair));
        for (std::int64_t side = 0; side < 2; ++side) store_values(first / kTileDepth, 2 * pair + side, side);
      }
      for (std::int64_t half = 0; half < 2; ++half) {
        store_rope(rows + half * kTileRows, tokens - half * kTileRows, first / kTileRows + half);
      }
    }
  }

 private:
  struct Rows {
    const char* data;
    std::int64_t stride;
  };

  static std::int64_t nope_steps(const HeadFormParams& p) { return p.key.width / kTileDepth; }
  static std::int64_t key_tiles(const HeadFormParams& p) {
    return nope_steps(p) * kTerms + p.attention.b.width / kTileDepth;
  }
  static std::int64_t value_tiles(const HeadFormParams& p) { return p.value.width / W * kTerms; }
  static std::int64_t up_terms(const HeadFormParams& p) { return p.up_dtype == DType::bf16 ? 1 : kTerms; }
  static std::int64_t weight_tiles(const HeadFormParams& p) {
    return (p.key.width + p.value.width) / W * (p.latent_width / kTileDepth) * up_terms(p);
  }

  std::uint32_t* weights(std::int64_t output_tile, std::int64_t step) const {
    return weights_ + (output_tile * (p_.latent_width / kTileDepth) + step) * up_terms(p_) * kTileWords;
  }

  // Rows 16 * tile ... of a head's matrix.
  void pack(const UpMatrix& up, std::int64_t tile, std::int64_t output_tile) const {
    const std::int64_t start = head_ * up.head_stride + tile * W * up.row_stride;
    for (std::int64_t step = 0; step < p_.latent_width / kTileDepth; ++step) {
      std::uint32_t* to = weights(output_tile, step);
      if (p_.up_dtype == DType::bf16) {
        const auto* from = static_cast<const bf16*>(up.data) + start + step * kTileDepth;
        pack_pairs(from, up.row_stride, to);
      } else {
        const auto* from = static_cast<const float*>(up.data) + start + step * kTileDepth;
        for (std::int64_t half = 0; half < 2; ++half) {
          F columns[W];
          for (int i = 0; i < W; ++i) columns[i] = S::load(from + i * up.row_stride + half * W);
          transpose<W>(columns);
          store_pairs(columns, to + half * W / 2 * W);
        }
      }
    }
  }

  // 16 rows of 32 columns, turned pair by pair.
  static void pack_pairs(const bf16* from, std::int64_t stride, std::uint32_t* to) {
    F pairs[W];
    for (int i = 0; i < W; ++i) __builtin_memcpy(&pairs[i], from + i * stride, sizeof(F));
    transpose<W>(pairs);
    __builtin_memcpy(to, pairs, sizeof pairs);
  }

  // 16 columns as eight rows of pairs in each of three tiles.
  static void store_pairs(F (&columns)[W], std::uint32_t* to) {
#pragma GCC unroll 8
    for (int pair = 0; pair < W / 2; ++pair) store_terms(columns[2 * pair], columns[2 * pair + 1], to + pair * W);
  }

  static void store_terms(F low, F high, std::uint32_t* to) {
#pragma GCC unroll 3
    for (int term = 0; term < kTerms; ++term) {
      const U both = (next_term<W>(low) >> 16) | next_term<W>(high);
      __builtin_memcpy(to + term * kTileWords, &both, sizeof both);
    }
  }

  // 16 tokens at a time where they lie; copied where pages or the context end between them.
  void find_latents(const char* const* rows, std::int64_t count) {
    const std::int64_t stride = p_.attention.row_stride * sizeof(bf16), bytes = p_.latent_width * sizeof(bf16);
    for (std::int64_t half = 0; half < 2; ++half) {
      const char* const* own = rows + half * kTileRows;
      const std::int64_t left = count - half * kTileRows;
      bool adjacent = left >= kTileRows;
      for (std::int64_t i = 1; adjacent && i < kTileRows; ++i) adjacent = own[i] - own[i - 1] == stride;
      if (adjacent) {
        latents_[half] = {own[0], stride};
        continue;
      }
      char* to = reinterpret_cast<char*>(staged_) + half * kTileRows * bytes;
      latents_[half] = {to, bytes};
      for (std::int64_t i = 0; i < kTileRows; ++i, to += bytes) {
        i < left ? __builtin_memcpy(to, own[i], bytes) : __builtin_memset(to, 0, bytes);
      }
    }
  }

  // sums_[half * 2 + side]: 16 of the tokens by 16 of the outputs from `output_tile` on.
  void multiply(Tiles& tiles, std::int64_t output_tile) {
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.zero<3>();
    const std::uint32_t *left = weights(output_tile, 0), *right = weights(output_tile + 1, 0);
    for (std::int64_t byte = 0; byte < p_.latent_width * 2; byte += kTileRowBytes) {
      tiles.load<4>(latents_[0].data + byte, latents_[0].stride);
      tiles.load<5>(latents_[1].data + byte, latents_[1].stride);
      for (std::int64_t term = 0; term < up_terms(p_); ++term, left += kTileWords, right += kTileWords) {
        tiles.load<6>(left, kTileRowBytes);
        tiles.dot<0, 4, 6>();
        tiles.dot<2, 5, 6>();
        tiles.load<7>(right, kTileRowBytes);
        tiles.dot<1, 4, 7>();
        tiles.dot<3, 5, 7>();
      }
    }
    tiles.store<0>(sums_, kTileRowBytes);
    tiles.store<1>(sums_ + kTileWords, kTileRowBytes);
    tiles.store<2>(sums_ + 2 * kTileWords, kTileRowBytes);
    tiles.store<3>(sums_ + 3 * kTileWords, kTileRowBytes);
  }

  // 32 key columns of 16 tokens.
  void store_keys(std::int64_t token_tile, std::int64_t step, std::int64_t half) const {
    std::uint32_t* to = keys_ + (token_tile * key_tiles(p_) + step * kTerms) * kTileWords;
    for (std::int64_t side = 0; side < 2; ++side) {
      F square[W];
      __builtin_memcpy(square, sums_ + (half * 2 + side) * kTileWords, sizeof square);
      transpose<W>(square);
      store_pairs(square, to + side * W / 2 * W);
    }
  }

  // 16 value columns of 32 tokens.
  void store_values(std::int64_t token_step, std::int64_t column_tile, std::int64_t side) const {
    auto* to = const_cast<std::uint32_t*>(values(token_step, column_tile));
    const float *low = sums_ + side * kTileWords, *high = low + 2 * kTileWords;
    for (int w = 0; w < W; ++w) store_terms(S::load(low + w * W), S::load(high + w * W), to + w * W);
  }

  void store_rope(const char* const* rows, std::int64_t count, std::int64_t token_tile) const {
    const std::int64_t width = p_.attention.b.width;
    const std::int64_t first = p_.latent_width + head_ * p_.attention.b_blocks / p_.attention.heads * width;
    std::uint32_t* to = keys_ + (token_tile * key_tiles(p_) + nope_steps(p_) * kTerms) * kTileWords;
    for (std::int64_t d = 0; d < width; d += kTileDepth, to += kTileWords) {
      bf16 square[kTileRows][kTileDepth] = {};
      for (std::int64_t i = 0; i < kTileRows && i < count; ++i) {
        __builtin_memcpy(square[i], rows[i] + (first + d) * sizeof(bf16), sizeof square[i]);
      }
      pack_pairs(square[0], kTileDepth, to);
    }
  }

  const HeadFormParams& p_;
  std::uint32_t *keys_, *values_, *weights_;
  float* sums_;
  bf16* staged_;
  Rows latents_[2];
  std::int64_t head_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
