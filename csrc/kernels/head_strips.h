// A stretch of one head's keys and values as float32 in the strips that attention's vectors read, expanded in place.
//
//   strip = latents of a chunk, as "keys", x rows of an up-projection, packed as "queries"
//
// Scores of 64 rows against a chunk lie as a strip does: [kChunk][64]. A token's sums have one order wherever it stands.
#pragma once

#include "kernels/attention_engines.h"
#include "kernels/head_pieces.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class HeadStrips {
  static_assert(kRows == kStrip);

 public:
  HeadStrips(const HeadFormParams& p, float* memory)
      : p_(p),
        key_(up_query(p, p.key)),
        value_(up_query(p, p.value)),
        strips_(memory),
        key_query_(key_, strips_ + strip_floats(p)),
        value_query_(value_, strips_ + strip_floats(p)),
        chunk_(p.attention, strips_ + strip_floats(p) + PackedQuery<W>::floats(key_)) {}

  static std::int64_t floats(const HeadFormParams& p) {
    return strip_floats(p) + PackedQuery<W>::floats(up_query(p, p.key)) + Chunk<W>::floats(p.attention);
  }

  // Context tokens, whole chunks.
  static std::int64_t stretch(const HeadFormParams& p) {
    return stretch_tokens(p, chunk_floats(p) * sizeof(float) / kChunk, kChunk);
  }

  // Where a chunk's values begin, after the strips of its keys, and where the next chunk does.
  static std::int64_t value_floats(const HeadFormParams& p) { return round_up(p.attention.key_width, kStrip) * kChunk; }
  static std::int64_t chunk_floats(const HeadFormParams& p) {
    return value_floats(p) + round_up(p.value.width, kStrip) * kChunk;
  }

  const float* data() const { return strips_; }

  // Context tokens begin ... begin + count - 1.
  void expand(std::int64_t head, std::int64_t begin, std::int64_t count) {
    switch (p_.attention.row_dtype) {
      case DType::bf16: return expand_rows<bf16>(head, begin, count);
      case DType::f16: return expand_rows<f16>(head, begin, count);
      case DType::u8: return expand_rows<Coded>(head, begin, count);
      default: return expand_rows<float>(head, begin, count);
    }
  }

 private:
  static std::int64_t strip_floats(const HeadFormParams& p) { return stretch(p) / kChunk * chunk_floats(p); }

  // An up-projection's rows as queries against latents.
  static AttentionParams up_query(const HeadFormParams& p, const UpMatrix& up) {
    AttentionParams query{};
    query.a = {up.data, p.up_dtype, p.latent_width, up.row_stride, up.head_stride};
    query.heads = p.attention.heads;
    query.b_blocks = 1;
    query.key_width = p.latent_width;
    query.scale_log2 = 1.0f;
    query.row_dtype = p.attention.row_dtype;
    return query;
  }

  template <typename T>
  void expand_rows(std::int64_t head, std::int64_t begin, std::int64_t count) {
    multiply<T>(key_query_, p_.key.width, strips_, head, begin, count);
    multiply<T>(value_query_, p_.value.width, strips_ + value_floats(p_), head, begin, count);
    for_each_chunk<T>(begin, count, [&](const char* const* rows, std::int64_t tokens, std::int64_t chunk) {
      add_rope<T>(rows, tokens, head, strips_ + chunk * chunk_floats(p_));
    });
  }

  // `to`: the first of the outputs' strips in the first chunk.
  template <typename T>
  void multiply(PackedQuery<W>& query, std::int64_t outputs, float* to, std::int64_t head, std::int64_t begin,
                std::int64_t count) {
    for (std::int64_t first = 0; first < outputs; first += kRows) {
      query.pack({0, outputs, first, head}, outputs - first < kRows ? outputs - first : kRows);
      for_each_chunk<T>(begin, count, [&](const char* const* rows, std::int64_t tokens, std::int64_t chunk) {
        Ahead none;
        auto into = chunk_.with_scores(to + chunk * chunk_floats(p_) + first * kChunk);
        into.template dot<T>(query, rows, tokens, 0, p_.latent_width, none);
      });
    }
  }

  // use(rows, tokens, chunk)
  template <typename T, typename Use>
  void for_each_chunk(std::int64_t begin, std::int64_t count, Use use) const {
    const ContextRows context(p_.attention, 0);
    const char* rows[kChunk];
    for (std::int64_t first = 0; first < count; first += kChunk) {
      const std::int64_t tokens = count - first < kChunk ? count - first : kChunk;
      context.find(begin + first, begin + first + tokens, sizeof(T), rows);
      use(rows, tokens, first / kChunk);
    }
  }

  // The head's RoPE block, after the columns without RoPE.
  template <typename T>
  void add_rope(const char* const* rows, std::int64_t tokens, std::int64_t head, float* chunk) const {
    const std::int64_t width = p_.attention.b.width, block = head * p_.attention.b_blocks / p_.attention.heads;
    for (std::int64_t done = 0; done < width;) {
      const std::int64_t column = p_.key.width + done, left = kStrip - column % kStrip;
      const std::int64_t columns = width - done < left ? width - done : left;
      float* to = chunk + (column - column % kStrip) * kChunk + column % kStrip;
      for (std::int64_t t = 0; t < tokens; ++t, to += kStrip) {
        if constexpr (kCoded<T>) {
          const auto* rope = reinterpret_cast<const bf16*>(rows[t] + p_.attention.codes.rope_offset);
          convert<W>(rope + block * width + done, to, columns);
        } else {
          convert<W>(reinterpret_cast<const T*>(rows[t]) + p_.latent_width + block * width + done, to, columns);
        }
      }
      done += columns;
    }
  }

  const HeadFormParams& p_;
  const AttentionParams key_, value_;
  float* strips_;
  PackedQuery<W> key_query_, value_query_;
  Chunk<W> chunk_;
};

}  // namespace latentkv::LATENTKV_ISA
