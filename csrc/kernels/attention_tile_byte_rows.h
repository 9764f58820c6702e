// The rows of codes of one chunk as operands of matrix tiles of int8, made ready once for all rows of queries; and their scales.
#pragma once

#include "kernels/attention_tile_bytes.h"
#include "kernels/attention_tile_scales.h"

namespace latentkv::LATENTKV_ISA {

class TileByteRows {
  static constexpr int W = 16;
  using S = Simd<W>;

 public:
  static constexpr std::int64_t kTokens = kLongestChunk;
  static constexpr std::int64_t kSteps = kTokens / kByteDepth;
  static constexpr std::int64_t kStepWords = kStrip / W * kTileWords;
  static constexpr std::int64_t kValueWords = kSteps * kStepWords;

  static bool suits(const RowCodes& codes) {
    return codes.format != CodeFormat::fp8 && codes.width % kByteDepth == 0;
  }

  // Units of 64 codes in a group; the last may have fewer.
  static std::int64_t units(const RowCodes& codes, std::int64_t group) {
    const std::int64_t left = codes.width - group * codes.group;
    return (left < codes.group ? left : codes.group) / kByteDepth;
  }

  static std::int64_t floats(const AttentionParams& p) {
    return Scales::floats(p.codes) + (groups_of(p.codes) + 1) * kTokens + round_up(groups_of(p.codes), W) +
           kTokens * (p.key_width - p.codes.width) / 2 +
           kTokens * p.codes.width / 4;
  }

  TileByteRows(const AttentionParams& p, float* memory)
      : codes_(p.codes),
        row_bytes_(p.row_stride),
        rope_bytes_(2 * (p.key_width - p.codes.width)),
        reader_(p.codes),
        scales_(p.codes, memory),
        shares_(memory + Scales::floats(p.codes)),
        largest_shares_(shares_ + groups_of(p.codes) * kTokens),
        largest_(largest_shares_ + kTokens),
        staged_rope_(reinterpret_cast<char*>(largest_ + round_up(groups_of(p.codes), W))),
        staged_codes_(staged_rope_ + kTokens * rope_bytes_) {}

  // 16 tokens: units of 64 codes, or steps of 32 numbers of the RoPE part.
  struct Keys {
    const char* data;
    std::int64_t stride, step;
    const char* at(std::int64_t index) const { return data + index * step; }
  };

  const Keys& codes(std::int64_t token_tile) const { return code_tiles_[token_tile]; }
  const Keys& rope(std::int64_t token_tile) const { return rope_tiles_[token_tile]; }

  // Of all tokens, 0 beyond the context.
  const float* scales(std::int64_t group) const { return scales_.of(group); }

  // The same as shares of the chunk's largest of that group, which is largest(); and the largest share of each token's groups.
  const float* shares(std::int64_t group) const { return shares_ + group * kTokens; }
  float largest(std::int64_t group) const { return largest_[group]; }
  const float* largest_shares() const { return largest_shares_; }

  // Of 64 tokens, which sums take at once.
  std::int64_t steps() const { return steps_; }

  // Where rows lie one behind the other codes of int8 and the RoPE part are used as they lie. Beyond the context the last token
  // is repeated.
  void take(const char* const* rows, std::int64_t count) {
    steps_ = (count + kByteDepth - 1) / kByteDepth;
    for (std::int64_t tile = 0; tile < steps_ * kStepTiles; ++tile) {
      const std::int64_t first = tile * kTileRows;
      if (first >= count) {
        code_tiles_[tile] = code_tiles_[tile - 1];
        rope_tiles_[tile] = rope_tiles_[tile - 1];
        continue;
      }
      const char* tokens[kTileRows];
      bool adjacent = true;
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        tokens[i] = rows[first + i < count ? first + i : count - 1];
        adjacent &= i == 0 || tokens[i] - tokens[i - 1] == row_bytes_;
      }
      rope_tiles_[tile] = adjacent ? Keys{tokens[0] + codes_.rope_offset, row_bytes_, kTileRowBytes} : copy_rope(tokens, tile);
      code_tiles_[tile] = adjacent && codes_.format == CodeFormat::int8 ? Keys{tokens[0], row_bytes_, kByteDepth}
                                                                        : stage(tokens, tile);
    }
    scales_.take(rows, count);
    find_shares();
  }

  // 64 columns of a step as right-hand tiles, four tokens side by side: i, i + 32, i + 16 and i + 48. Columns are in
  // the order of quads().
  void quad(std::int64_t first, std::int64_t step, std::uint32_t* to) const {
    const Keys* const keys = code_tiles_ + step * kStepTiles;
    const char* codes[kStepTiles];
    for (int i = 0; i < kStepTiles; ++i) codes[i] = keys[i].at(first / kByteDepth);
    for (std::int64_t row = 0; row < kTileRows; ++row, to += W) {
      Words16 four[4];
      quads({load_bytes(codes[0]), load_bytes(codes[2]), load_bytes(codes[1]), load_bytes(codes[3])}, four);
      for (int i = 0; i < 4; ++i) {
        __builtin_memcpy(to + i * kTileWords, &four[i], sizeof four[i]);
        codes[i] += keys[i].stride;
      }
    }
  }

 private:
  static constexpr std::int64_t kTokenTiles = kTokens / kTileRows;
  static constexpr std::int64_t kStepTiles = kByteDepth / kTileRows;

  Keys copy_rope(const char* const (&tokens)[kTileRows], std::int64_t tile) const {
    char* to = staged_rope_ + tile * kTileRows * rope_bytes_;
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      __builtin_memcpy(to + i * rope_bytes_, tokens[i] + codes_.rope_offset, rope_bytes_);
    }
    return {to, rope_bytes_, kTileRowBytes};
  }

  // Unit by unit, as tiles.
  Keys stage(const char* const (&tokens)[kTileRows], std::int64_t tile) const {
    const std::int64_t width = codes_.width;
    char* to = staged_codes_ + tile * kTileRows * width;
    reader_.with_format([&]<CodeFormat Format>() {
      for (std::int64_t i = 0; i < kTileRows; ++i) {
        char* line = to + i * kTileRowBytes;
        reader_.template each_unit<Format>(tokens[i], [&](CodeUnit unit) [[gnu::always_inline]] {
          Bytes64 codes;
          if constexpr (kPacked<Format>) {
            codes = unpack_unit<Format>(unit);
          } else {
            codes = load_bytes(unit.codes);
          }
          __builtin_memcpy(line, &codes, sizeof codes);
          line += kTileBytes;
        });
      }
    });
    return {to, kTileRowBytes, kTileBytes};
  }

  void find_shares() const {
    for (std::int64_t t = 0; t < kTokens; t += W) S::store(largest_shares_ + t, S::zero());
    for (std::int64_t group = 0; group < groups_of(codes_); ++group) {
      const float* from = scales(group);
      const auto unit = WordUnit<W>::of_all(1.0f, kTokens / W, [&](std::int64_t i) { return S::load(from + i * W); });
      largest_[group] = unit.unit()[0];
      for (std::int64_t t = 0; t < kTokens; t += W) {
        const auto share = unit.count(S::load(from + t)), before = S::load(largest_shares_ + t);
        S::store(shares_ + group * kTokens + t, share);
        S::store(largest_shares_ + t, share > before ? share : before);
      }
    }
  }

  using Scales = TileScales<kTokens>;

  const RowCodes& codes_;
  const std::int64_t row_bytes_, rope_bytes_;
  const WordReader<W> reader_;
  const Scales scales_;
  float *shares_, *largest_shares_, *largest_;
  char *staged_rope_, *staged_codes_;
  Keys code_tiles_[kTokenTiles], rope_tiles_[kTokenTiles];
  std::int64_t steps_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
