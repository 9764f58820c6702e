// One layer's new MLA rows: norm, rotation, encoding and scattering to cache rows by slot in one pass. Reference:
// src/latentkv/ops/write_latent.py.
#pragma once

#include "kernels/write_coded.h"

namespace latentkv::LATENTKV_ISA {

template <int W, typename T, typename To>
void write_latent_row(const WriteLatentParams& p, std::int64_t token) {
  const T* x = static_cast<const T*>(p.kv.data) + token * p.kv.stride;
  To* out = static_cast<To*>(p.cache.data) + p.slots[token] * p.cache.stride;
  write_normed(normed_row<W>(x, p.latent_norm, p.latent_width), out, p.latent_width);
  const std::int64_t pairs = p.angles.pairs / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    const std::int64_t start = p.latent_width + group * 2 * pairs;
    rotate_head<W>(x + start, p.rope_norm, angles_of(p.angles, token, group * pairs), out + start, pairs,
                   p.interleaved);
  }
}

template <int W, typename T>
void write_latent_typed(const WriteLatentParams& p) {
  for_each_row(p.kv.rows, p.kv.rows * p.kv.cols, [&](std::int64_t token) {
    p.cache.dtype == DType::u8     ? write_coded_row<W, T>(p, token)
    : p.cache.dtype == DType::f32  ? write_latent_row<W, T, float>(p, token)
    : p.cache.dtype == DType::bf16 ? write_latent_row<W, T, bf16>(p, token)
                                   : write_latent_row<W, T, f16>(p, token);
  });
}

template <int W>
void write_latent(const WriteLatentParams& p) {
  p.kv.dtype == DType::f32 ? write_latent_typed<W, float>(p) : write_latent_typed<W, bf16>(p);
}

}  // namespace latentkv::LATENTKV_ISA
