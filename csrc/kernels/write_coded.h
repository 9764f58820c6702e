// New MLA rows as codes: the latent normed, rotated where the format wants it, encoded; the RoPE part rotated, in bf16.
// References: src/latentkv/cache/codes.py and rotation.py; the row's layout: src/latentkv/cache/layout.py.
#pragma once

#include "kernels/rope.h"

namespace latentkv::LATENTKV_ISA {

constexpr float kLeastScale = 0x1p-126f;

// Orthogonal Walsh-Hadamard blocks of powers of two, the largest first; in place.
inline void rotate_blocks(float* x, std::int64_t width) {
  for (std::int64_t size = std::int64_t{1} << 62; size > 0; size >>= 1) {
    if ((width & size) == 0) continue;
    for (std::int64_t span = 1; span < size; span *= 2) {
      for (std::int64_t i = 0; i < size; i += 2 * span) {
        for (std::int64_t j = i; j < i + span; ++j) {
          const float a = x[j], b = x[j + span];
          x[j] = a + b;
          x[j + span] = a - b;
        }
      }
    }
    const auto root = static_cast<float>(__builtin_sqrt(static_cast<double>(size)));
    for (std::int64_t i = 0; i < size; ++i) x[i] /= root;
    x += size;
  }
}

// To nearest, ties to even; |x| is at most 448 but for rounding.
inline std::uint8_t e4m3_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kSmallest = 121u << 23, kLargest = 0x7eu;  // 2**-6; 448
  std::uint32_t code;
  if (magnitude < kSmallest) {
    code = static_cast<std::uint32_t>(__builtin_rintf(__builtin_fabsf(x) * 512.0f));
  } else {
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  }
  return static_cast<std::uint8_t>(sign | (code < kLargest ? code : kLargest));
}

class CodeWriter {
 public:
  explicit CodeWriter(const RowCodes& codes) : codes_(codes) {}

  // `x` are the row's `width` numbers.
  void write(const float* x, char* row) const {
    std::uint8_t codes[kMostWritten + kCodeUnit] = {};
    for (std::int64_t first = 0; first < codes_.width; first += codes_.group) {
      const std::int64_t left = codes_.width - first, count = left < codes_.group ? left : codes_.group;
      const float scale = scale_of(x + first, count);
      store_scale(scale, row + codes_.scale_offset, first / codes_.group);
      if (scale > 0.0f) encode(x + first, count, scale, codes + first);
    }
    pack(codes, row);
  }

 private:
  float scale_of(const float* x, std::int64_t count) const {
    float largest = 0.0f;
    bool finite = true;
    for (std::int64_t i = 0; i < count; ++i) {
      const float size = __builtin_fabsf(x[i]);
      finite &= size <= __FLT_MAX__;
      largest = size > largest ? size : largest;
    }
    if (!finite) return __builtin_nanf("");
    float scale = largest / (codes_.format == CodeFormat::fp8    ? 448.0f
                             : codes_.format == CodeFormat::int8 ? 127.0f
                             : codes_.format == CodeFormat::int6 ? 64.0f
                                                                 : 16.0f);
    if (codes_.short_scales) {
      std::uint32_t bits;
      __builtin_memcpy(&bits, &scale, sizeof bits);
      bits = (bits + 0xffffu) & 0xffff0000u;
      __builtin_memcpy(&scale, &bits, sizeof bits);
    }
    return scale < kLeastScale ? 0.0f : scale;
  }

  void store_scale(float scale, char* scales, std::int64_t group) const {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &scale, sizeof bits);
    if (!codes_.short_scales) {
      __builtin_memcpy(scales + group * sizeof bits, &bits, sizeof bits);
      return;
    }
    const auto upper = static_cast<std::uint16_t>(bits >> 16);
    __builtin_memcpy(scales + group * sizeof upper, &upper, sizeof upper);
  }

  void encode(const float* x, std::int64_t count, float scale, std::uint8_t* to) const {
    switch (codes_.format) {
      case CodeFormat::fp8:
        for (std::int64_t i = 0; i < count; ++i) to[i] = e4m3_of(x[i] / scale);
        return;
      case CodeFormat::int8:
        for (std::int64_t i = 0; i < count; ++i) {
          to[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(__builtin_rintf(x[i] / scale)));
        }
        return;
      default: {
        const std::int32_t half = codes_.format == CodeFormat::int6 ? 32 : 8;
        for (std::int64_t i = 0; i < count; ++i) {
          const auto code = static_cast<std::int32_t>(__builtin_floorf(x[i] / scale / 2.0f)) + half;
          to[i] = static_cast<std::uint8_t>(code < 0 ? 0 : code < 2 * half ? code : 2 * half - 1);
        }
      }
    }
  }

  void pack(const std::uint8_t* codes, char* row) const {
    if (codes_.format == CodeFormat::fp8 || codes_.format == CodeFormat::int8) {
      __builtin_memcpy(row, codes, codes_.width);
      return;
    }
    const std::int64_t units = (codes_.width + kCodeUnit - 1) / kCodeUnit;
    char* high = row + units * 32;
    for (std::int64_t unit = 0; unit < units; ++unit, codes += kCodeUnit) {
      for (int i = 0; i < 32; ++i) *row++ = static_cast<char>((codes[i] & 15) | (codes[i + 32] & 15) << 4);
      if (codes_.format == CodeFormat::int4) continue;
      for (int i = 0; i < 16; ++i) {
        *high++ = static_cast<char>(codes[i] >> 4 | codes[i + 16] >> 4 << 2 | codes[i + 32] >> 4 << 4 |
                                    codes[i + 48] >> 4 << 6);
      }
    }
  }

  const RowCodes& codes_;
};

template <int W, typename T, typename To>
void write_normed(const NormedRow<W, T>& x, To* out, std::int64_t n) {
  using S = Simd<W>;
  std::int64_t i = 0;
  for (; i + W <= n; i += W) S::store(out + i, x.load(i));
  if (i < n) S::store_part(out + i, x.load_part(i, n - i), n - i);
}

template <int W, typename T>
void write_coded_row(const WriteLatentParams& p, std::int64_t token) {
  const T* x = static_cast<const T*>(p.kv.data) + token * p.kv.stride;
  char* row = static_cast<char*>(p.cache.data) + p.slots[token] * p.cache.stride;
  __builtin_memset(row, 0, p.codes.row_bytes);
  float latent[kMostWritten];
  write_normed(normed_row<W>(x, p.latent_norm, p.latent_width), latent, p.latent_width);
  if (p.rotated) rotate_blocks(latent, p.latent_width);
  CodeWriter(p.codes).write(latent, row);
  auto* rope = reinterpret_cast<bf16*>(row + p.codes.rope_offset);
  const std::int64_t pairs = p.angles.pairs / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    const std::int64_t start = group * 2 * pairs;
    rotate_head<W>(x + p.latent_width + start, p.rope_norm, angles_of(p.angles, token, group * pairs), rope + start,
                   pairs, p.interleaved);
  }
}

}  // namespace latentkv::LATENTKV_ISA
