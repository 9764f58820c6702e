// The head form on vectors, for all rows and sizes: a stretch of one head's keys and values in strips, and attention's worker
// over them.
#pragma once

#include "kernels/attention.h"
#include "kernels/head_strips.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class HeadVectors {
  using Strips = HeadStrips<W>;
  using Attention = AttentionWorker<W, Expanded, VectorEngine<W>>;

 public:
  HeadVectors(const HeadFormParams& p, float* memory)
      : p_(p),
        stretch_(Strips::stretch(p)),
        strips_(p, memory),
        pages_(reinterpret_cast<std::int32_t*>(memory + Strips::floats(p))),
        inner_(inner(p)),
        attention_(inner_, memory + Strips::floats(p) + page_words(p)) {
    for (std::int64_t page = 0; page < page_words(p); ++page) pages_[page] = page % (stretch_ / kChunk);
    inner_.rows = strips_.data();
    inner_.page_table = pages_;
    inner_.slots = memory + Strips::floats(p) + page_words(p) + Attention::floats(inner_);
  }

  static std::int64_t floats(const HeadFormParams& p) {
    const std::int64_t slots = HeadPieces(p).most_tokens() / kRows * Partial::floats(value_strips(p.attention));
    return round_up(Strips::floats(p) + page_words(p) + Attention::floats(inner(p)) + slots, 16);
  }

  // Tokens first ... first + count - 1 of one head.
  void run(std::int64_t head, std::int64_t first, std::int64_t count) {
    const std::int64_t seen = seen_by(p_, first + count - 1);
    std::int64_t begin = 0;
    do {
      const std::int64_t end = begin + stretch_ < seen ? begin + stretch_ : seen;
      if (begin < end) strips_.expand(head, begin, end - begin);
      for (std::int64_t row = 0; row < count; row += kRows) {
        const AttentionItem item = tile(head, first, row, count, begin);
        const AttentionItem next = tile(head, first, row + kRows, count, begin);
        if (item.context_begin >= item.context_end && begin > 0) continue;
        attention_.run(item, [&] { return next.row_count > 0 ? &next : nullptr; });
      }
      begin += stretch_;
    } while (begin < seen);
  }

 private:
  // One for each chunk of the context; every stretch lies in the same place.
  static std::int64_t page_words(const HeadFormParams& p) {
    return round_up(p.attention.sequences[0].context_len / kChunk + 1, 16);
  }

  static AttentionParams inner(const HeadFormParams& p) {
    AttentionParams inner = p.attention;
    inner.b = {};
    inner.b_blocks = 1;
    inner.groups = inner.heads;
    inner.row_dtype = DType::f32;
    inner.page_tokens = kChunk;
    inner.page_stride = Strips::chunk_floats(p);
    inner.row_stride = kStrip;
    inner.key_step = inner.value_step = 0;
    inner.value_offset = Strips::value_floats(p) / kChunk;
    return inner;
  }

  // Of `count` new tokens from `first` on, a tile of those from `row` on against the stretch that begins at `begin`.
  AttentionItem tile(std::int64_t head, std::int64_t first, std::int64_t row, std::int64_t count,
                     std::int64_t begin) const {
    const std::int64_t rows = count - row < kRows ? count - row : kRows, slot = row / kRows;
    const std::int64_t seen = seen_by(p_, first + row + rows - 1), end = begin + stretch_;
    return {0, head, first + row, rows, begin, seen < end ? seen : end, begin > 0 ? slot : -1, end < seen ? slot : -1};
  }

  const HeadFormParams& p_;
  const std::int64_t stretch_;
  Strips strips_;
  std::int32_t* pages_;
  AttentionParams inner_;
  Attention attention_;
};

}  // namespace latentkv::LATENTKV_ISA
