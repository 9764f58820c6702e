// The head form on vectors, for all rows and sizes: a stretch of one head's keys and values as float32 rows, and attention's
// worker over them.
#pragma once

#include "kernels/attention.h"
#include "kernels/head_pieces.h"
#include "kernels/project.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class HeadVectors {
  using Project = ProjectWorker<W, VectorEngine<W>>;
  using Attention = AttentionWorker<W, float, VectorEngine<W>>;

 public:
  HeadVectors(const HeadFormParams& p, float* memory)
      : p_(p),
        stretch_(stretch(p)),
        latents_(memory),
        expanded_(latents_ + stretch_ * latent_stride(p)),
        tables_(reinterpret_cast<std::int32_t*>(expanded_ + stretch_ * width(p))),
        inner_(inner(p)),
        project_(project(p, latents_)),
        projector_(project_, reinterpret_cast<float*>(tables_) + table_words(p)),
        attention_(inner_, reinterpret_cast<float*>(tables_) + table_words(p) + Project::floats(project(p, nullptr))) {
    __builtin_memset(tables_, 0, table_words(p) * sizeof(std::int32_t));
    inner_.rows = expanded_;
    inner_.page_table = tables_;
    inner_.slots = reinterpret_cast<float*>(tables_) + table_words(p) + Project::floats(project(p, nullptr)) +
                   Attention::floats(inner(p));
  }

  static std::int64_t floats(const HeadFormParams& p) {
    const std::int64_t rows = stretch(p) * (latent_stride(p) + width(p)), tiles = piece_tokens(p) / kRows;
    return round_up(rows + table_words(p) + Project::floats(project(p, nullptr)) + Attention::floats(inner(p)) +
                        tiles * Partial::floats(value_strips(p.attention)),
                    16);
  }

  // Tokens first ... first + count - 1 of one head.
  void run(std::int64_t head, std::int64_t first, std::int64_t count) {
    const std::int64_t seen = seen_by(p_, first + count - 1);
    std::int64_t begin = 0;
    do {
      const std::int64_t end = begin + stretch_ < seen ? begin + stretch_ : seen;
      if (begin < end) expand(head, begin, end - begin);
      for (std::int64_t row = 0; row < count; row += kRows) {
        attend(head, first + row, count - row < kRows ? count - row : kRows, row / kRows, begin);
      }
      begin += stretch_;
    } while (begin < seen);
  }

 private:
  static std::int64_t width(const HeadFormParams& p) { return p.attention.key_width + p.value.width; }

  // Codes are widened in whole strips.
  static std::int64_t latent_stride(const HeadFormParams& p) {
    return round_up(p.latent_width + p.attention.b_blocks * p.attention.b.width, kStrip);
  }

  static std::int64_t stretch(const HeadFormParams& p) {
    return stretch_tokens(p, width(p) * sizeof(float));
  }

  // Every stretch lies in the same place.
  static std::int64_t table_words(const HeadFormParams& p) {
    return round_up(p.attention.sequences[0].context_len / stretch(p) + 1, 16);
  }

  static AttentionParams inner(const HeadFormParams& p) {
    AttentionParams inner = p.attention;
    inner.b = {};
    inner.b_blocks = 1;
    inner.groups = inner.heads;
    inner.row_dtype = DType::f32;
    inner.page_tokens = stretch(p);
    inner.page_stride = 0;
    inner.row_stride = width(p);
    inner.key_step = inner.value_step = 0;
    inner.value_offset = inner.key_width;
    return inner;
  }

  static ProjectParams project(const HeadFormParams& p, const float* latents) {
    ProjectParams project{};
    project.x = {latents, DType::f32, p.latent_width, latent_stride(p), 0};
    project.heads = p.attention.heads;
    project.out_width = width(p);
    project.w_dtype = p.up_dtype;
    project.out_dtype = DType::f32;
    project.out_token_stride = width(p);
    return project;
  }

  void expand(std::int64_t head, std::int64_t begin, std::int64_t count) {
    widen(begin, count);
    project_.tokens = count;
    const std::int64_t nope = p_.key.width, rope = p_.attention.b.width;
    for (std::int64_t first = 0; first < count; first += kRows) {
      const std::int64_t tokens = count - first < kRows ? count - first : kRows;
      projector_.pack(first, tokens, head);
      if (nope > 0) multiply(p_.key, expanded_, first, tokens, head);
      multiply(p_.value, expanded_ + p_.attention.key_width, first, tokens, head);
    }
    const float* block = latents_ + p_.latent_width + head * p_.attention.b_blocks / p_.attention.heads * rope;
    for (std::int64_t t = 0; t < count; ++t) {
      __builtin_memcpy(expanded_ + t * width(p_) + nope, block + t * latent_stride(p_), rope * sizeof(float));
    }
  }

  void multiply(const UpMatrix& up, float* to, std::int64_t first, std::int64_t tokens, std::int64_t head) {
    project_.w = up.data;
    project_.w_head_stride = up.head_stride;
    project_.w_row_stride = up.row_stride;
    project_.out_width = up.width;
    project_.out = to;
    projector_.packed_rows(first, tokens, head);
  }

  void widen(std::int64_t begin, std::int64_t count) {
    const ContextRows context(p_.attention, 0);
    const char* rows[kMostTokens];
    for (std::int64_t first = 0; first < count; first += kMostTokens) {
      const std::int64_t tokens = count - first < kMostTokens ? count - first : kMostTokens;
      float* to = latents_ + first * latent_stride(p_);
      context.find(begin + first, begin + first + tokens, element_bytes(), rows);
      for (std::int64_t t = 0; t < tokens; ++t, to += latent_stride(p_)) widen_row(rows[t], to);
    }
  }

  std::int64_t element_bytes() const {
    const DType dtype = p_.attention.row_dtype;
    return dtype == DType::f32 ? 4 : dtype == DType::u8 ? 1 : 2;
  }

  void widen_row(const char* row, float* to) const {
    const std::int64_t elements = p_.latent_width + p_.attention.b_blocks * p_.attention.b.width;
    switch (p_.attention.row_dtype) {
      case DType::bf16: return convert<W>(reinterpret_cast<const bf16*>(row), to, elements);
      case DType::f16: return convert<W>(reinterpret_cast<const f16*>(row), to, elements);
      case DType::f32: return convert<W>(reinterpret_cast<const float*>(row), to, elements);
      default: break;
    }
    for (std::int64_t d = 0; d < elements; d += kStrip) {
      const std::int64_t columns = elements - d < kStrip ? elements - d : kStrip;
      widen_coded<W>(p_.attention.codes, &row, 1, d, columns, to + d);
    }
  }

  // One tile of new tokens against the stretch that begins at `begin`, if it sees any of it.
  void attend(std::int64_t head, std::int64_t first, std::int64_t count, std::int64_t slot, std::int64_t begin) {
    const std::int64_t seen = seen_by(p_, first + count - 1), end = begin + stretch_;
    if (begin > 0 && begin >= seen) return;
    const std::int64_t context = p_.attention.sequences[0].context_len;
    const AttentionItem item{0, head, first, count, begin, end < context ? end : context, begin > 0 ? slot : -1,
                             end < seen ? slot : -1};
    attention_.run(item, [] { return static_cast<const AttentionItem*>(nullptr); });
  }

  const HeadFormParams& p_;
  const std::int64_t stretch_;
  float *latents_, *expanded_;
  std::int32_t* tables_;
  AttentionParams inner_;
  ProjectParams project_;
  Project projector_;
  Attention attention_;
};

}  // namespace latentkv::LATENTKV_ISA
