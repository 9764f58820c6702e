// Attention over rows in pages: latent form, head form and grouped queries alike. Reference: src/latentkv/ops/attention.py.
//
// An item is some rows (token and head) of one sequence and KV group against a range of its context. For each chunk of
// the context: widen its rows into scratch, scores = keys · q, online softmax (Milakov and Gimelshein, arXiv:1805.02867)
// with rows in the lanes, out = out * shrink + weights · values. Items that share their rows meet in slots and are merged.
#pragma once

#include <omp.h>

#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

// One thread's scratch and what it does with an item.
template <int W>
class AttentionWorker {
  using S = Simd<W>;
  using F = typename S::F;

 public:
  AttentionWorker(const AttentionParams& p, float* memory)
      : p_(p),
        query_(p, memory),
        strip_(memory + PackedQuery<W>::floats(p)),
        scores_(strip_ + kChunk * kStrip),
        shrink_(scores_ + kChunk * kRows),
        own_(shrink_ + kRows, value_strips(p)),
        direct_(p.key_width % W == 0 && p.value_width % W == 0) {}

  static std::int64_t floats(const AttentionParams& p) {
    return round_up(PackedQuery<W>::floats(p) + kChunk * kStrip + (kChunk + 1) * kRows +
                        Partial::floats(value_strips(p)), 16);
  }

  void run(const AttentionItem& item) {
    item_ = &item;
    names_ = names(item);
    start();
    if (item.context_begin < end_) {
      query_.pack(names_, item.row_count, direct_);
      p_.row_dtype == DType::f32 ? walk<float>() : walk<bf16>();
    }
    if (item.store_slot >= 0) return own_.copy_to(slot(p_, item.store_slot), item.row_count);
    for (std::int64_t row = 0; row < item.row_count; ++row) finish_row<W>(p_, names_, own_, row);
  }

  // The merged result of one row of `merge`.
  void run(const AttentionMerge& merge, std::int64_t row) {
    merge_row<W>(p_, merge, row, own_);
    finish_row<W>(p_, names(merge), own_, row);
  }

 private:
  static constexpr std::int64_t kDirectRows = 2;

  template <typename Rows>
  RowNames names(const Rows& rows) const {
    const AttentionSequence& sequence = p_.sequences[rows.sequence];
    return {sequence.query_start, sequence.query_len, rows.first_row, rows.group * (p_.heads / p_.groups)};
  }

  // What was kept of these rows, if anything, and how much of the context they see.
  void start() {
    item_->load_slot < 0 ? own_.clear(item_->row_count) : slot(p_, item_->load_slot).copy_to(own_, item_->row_count);
    const AttentionSequence& sequence = p_.sequences[item_->sequence];
    seen_by_all_ = sequence.context_len;
    end_ = 0;
    for (std::int64_t row = 0; row < item_->row_count; ++row) {
      const std::int64_t token = (item_->first_row + row) % sequence.query_len;
      const std::int64_t seen = sequence.context_len - (p_.causal ? sequence.query_len - 1 - token : 0);
      seen_[row] = seen;
      seen_by_all_ = seen < seen_by_all_ ? seen : seen_by_all_;
      end_ = seen > end_ ? seen : end_;
    }
    end_ = end_ < item_->context_end ? end_ : item_->context_end;
  }

  template <typename T>
  void walk() {
    const ContextRows context(p_, item_->sequence);
    const char* rows[kChunk];
    std::int64_t begin = item_->context_begin;
    std::int64_t count = chunk_from(begin);
    context.find(begin, begin + count, sizeof(T), rows);
    while (count > 0) {
      Ahead ahead;
      const std::int64_t next = chunk_from(begin + count);
      context.find(begin + count, begin + count + next, sizeof(T), ahead.rows);
      ahead.row_count = next;
      ahead.first_byte = ahead.byte = item_->group * p_.key_step * sizeof(T);
      ahead.end_byte = ahead.byte + p_.key_width * sizeof(T);
      compute<T>(rows, begin, count, ahead);
      begin += count;
      count = next;
      __builtin_memcpy(rows, ahead.rows, next * sizeof(char*));
    }
  }

  std::int64_t chunk_from(std::int64_t begin) const { return end_ - begin < kChunk ? end_ - begin : kChunk; }

  template <typename T>
  void compute(const char* const* rows, std::int64_t begin, std::int64_t count, Ahead& ahead) {
    __builtin_memset(scores_, 0, kChunk * kRows * sizeof(float));
    ahead.spread(55, dot_steps());
    dot_wide_panels<T>(rows, count, ahead);
    dot_narrow_panels<T>(rows, count, ahead);
    for (std::int64_t row = 0; row < item_->row_count; row += W) softmax(begin, count, row);
    direct_ && item_->row_count <= kDirectRows ? sum_rows<T>(rows, count, ahead) : sum<T>(rows, count, ahead);
  }

  std::int64_t dot_steps() const {
    std::int64_t steps = 0;
    for (const Panel& panel : query_) {
      steps += kChunk / tokens_of(panel) * (panel.vectors == 0 ? 1 : kStrip / kStepColumns);
    }
    return steps * ((p_.key_width + kStrip - 1) / kStrip);
  }

  static int tokens_of(const Panel& panel) {
    return panel.vectors == 2 ? Tile<W>::pair_tokens : panel.vectors == 1 ? Tile<W>::single_tokens : kNarrowTokens;
  }

  // Strip by strip through one small buffer: a whole widened chunk would be written to the second-level cache and read
  // back, which takes longer than widening its values a second time.
  template <typename T>
  void dot_wide_panels(const char* const* rows, std::int64_t count, Ahead& ahead) const {
    if (query_.begin()->vectors == 0) return;
    for (std::int64_t from = 0; from < p_.key_width; from += kStrip) {
      const std::int64_t to = from + kStrip < p_.key_width ? from + kStrip : p_.key_width;
      widen_rows<W, T>(rows, count, item_->group * p_.key_step + from, to - from, strip_);
      for (const Panel& panel : query_) {
        if (panel.vectors == 0) continue;
        for (int i = 0; i < panel.range_count; ++i) {
          const Range range{from > panel.ranges[i].from ? from : panel.ranges[i].from,
                            to < panel.ranges[i].to ? to : panel.ranges[i].to};
          if (range.from < range.to) dot_panel(panel, from, {range.from - from, range.to - from}, count, ahead);
        }
      }
    }
  }

  // The columns `range` of the strip that starts at column `from`.
  void dot_panel(const Panel& panel, std::int64_t from, Range range, std::int64_t count, Ahead& ahead) const {
    const int tokens = tokens_of(panel);
    const float* q = panel.q + from * panel.vectors * W;
    for (std::int64_t token = 0; token < count; token += tokens) {
      const float* keys = strip_ + token * kStrip;
      float* scores = scores_ + token * kRows + panel.first_row;
      if (panel.vectors == 2) {
        dot_wide<W, Tile<W>::pair_tokens, 2>(q, keys, range, scores, ahead);
      } else {
        dot_wide<W, Tile<W>::single_tokens, 1>(q, keys, range, scores, ahead);
      }
    }
  }

  template <typename T>
  void dot_narrow_panels(const char* const* rows, std::int64_t count, Ahead& ahead) const {
    if ((query_.end() - 1)->vectors != 0) return;
    const T* keys[kChunk];
    for (std::int64_t t = 0; t < kChunk; ++t) {
      keys[t] = reinterpret_cast<const T*>(rows[t < count ? t : count - 1]) + item_->group * p_.key_step;
    }
    for (const Panel& panel : query_) {
      if (panel.vectors != 0) continue;
      if (panel.rows == 4) dot_narrow_panel<4>(panel, keys, count, ahead);
      if (panel.rows == 2) dot_narrow_panel<2>(panel, keys, count, ahead);
      if (panel.rows == 1) dot_narrow_panel<1>(panel, keys, count, ahead);
    }
  }

  template <int Rows, typename T>
  void dot_narrow_panel(const Panel& panel, const T* const* keys, std::int64_t count, Ahead& ahead) const {
    for (std::int64_t t = 0; t < count; t += kNarrowTokens) {
      dot_direct<W, kNarrowTokens, Rows, T>(panel.q, query_.stride(), keys + t, panel.ranges[0],
                                            scores_ + t * kRows + panel.first_row, ahead);
    }
  }

  // Scores become weights 2**(score - top); shrink is what earlier weights are to be multiplied with.
  void softmax(std::int64_t begin, std::int64_t count, std::int64_t row) {
    float* scores = scores_ + row;
    mask(begin, count, row);
    const F before = S::load(own_.top + row);
    F top = before;
    for (std::int64_t t = 0; t < count; ++t) {
      const F score = S::load(scores + t * kRows);
      top = score > top ? score : top;
    }
    const F base = top == S::broadcast(-kInfinity) ? S::zero() : top;
    const F shrink = exp2_nonpositive<W>(before - base);
    F total = S::load(own_.total + row) * shrink;
    for (std::int64_t t = 0; t < count; ++t) {
      const F weight = exp2_nonpositive<W>(S::load(scores + t * kRows) - base);
      total += weight;
      S::store(scores + t * kRows, weight);
    }
    S::store(own_.top + row, top);
    S::store(own_.total + row, total);
    S::store(shrink_ + row, shrink);
  }

  // -inf for what lies beyond what a row sees.
  void mask(std::int64_t begin, std::int64_t count, std::int64_t first) {
    if (begin + count <= seen_by_all_) return;
    for (std::int64_t row = first; row < first + W && row < item_->row_count; ++row) {
      const std::int64_t seen = seen_[row] - begin;
      for (std::int64_t t = seen < 0 ? 0 : seen; t < count; ++t) scores_[t * kRows + row] = -kInfinity;
    }
  }

  template <typename T>
  void sum(const char* const* rows, std::int64_t count, Ahead& ahead) const {
    ahead.spread(45, (item_->row_count + Tile<W>::sum_rows - 1) / Tile<W>::sum_rows * own_.strips * kChunk);
    for (std::int64_t strip = 0; strip < own_.strips; ++strip) {
      const std::int64_t first = strip * kStrip, left = p_.value_width - first;
      widen_rows<W, T>(rows, count, value_start() + first, left < kStrip ? left : kStrip, strip_);
      sum_strip(strip, count, ahead);
    }
  }

  std::int64_t value_start() const {
    return p_.value_offset < 0 ? item_->group * p_.key_step : p_.value_offset + item_->group * p_.value_step;
  }

  void sum_strip(std::int64_t strip, std::int64_t count, Ahead& ahead) const {
    std::int64_t row = 0;
    for (; row + Tile<W>::sum_rows <= item_->row_count; row += Tile<W>::sum_rows) {
      sum_rows<Tile<W>::sum_rows>(row, strip, count, ahead);
    }
    switch (item_->row_count - row) {
      case 5: return sum_rows<5>(row, strip, count, ahead);
      case 4: return sum_rows<4>(row, strip, count, ahead);
      case 3: return sum_rows<3>(row, strip, count, ahead);
      case 2: return sum_rows<2>(row, strip, count, ahead);
      case 1: return sum_rows<1>(row, strip, count, ahead);
      default: return;
    }
  }

  // The fewer rows, the more columns at once, so that sums do not wait for each other.
  template <int Rows>
  void sum_rows(std::int64_t row, std::int64_t strip, std::int64_t count, Ahead& ahead) const {
    constexpr int most = kStrip / W;
    constexpr int wanted = Rows == 1 ? 8 : Rows == 2 ? 4 : Tile<W>::sum_vectors;
    constexpr int vectors = wanted < most ? wanted : most;
    float* out = own_.at(row, strip * kStrip);
    for (std::int64_t d = 0; d < kStrip; d += vectors * W) {
      sum_tile<W, Rows, vectors, 1, kRows>(scores_ + row, strip_ + d, count, shrink_ + row, out + d, ahead);
    }
  }

  template <typename T>
  void sum_rows(const char* const* rows, std::int64_t count, Ahead& ahead) const {
    item_->row_count == 1 ? sum_rows_of<T, 1, 8>(rows, count, ahead) : sum_rows_of<T, 2, 4>(rows, count, ahead);
  }

  template <typename T, int Rows, int Vectors>
  void sum_rows_of(const char* const* rows, std::int64_t count, Ahead& ahead) const {
    const T* values[kChunk];
    ahead.spread(40, kChunk * (p_.value_width + Vectors * W - 1) / (Vectors * W));
    for (std::int64_t t = 0; t < count; ++t) values[t] = reinterpret_cast<const T*>(rows[t]) + value_start();
    std::int64_t d = 0;
    for (; d + Vectors * W <= p_.value_width; d += Vectors * W) {
      sum_direct<W, Rows, Vectors, T>(scores_, values, d, count, shrink_, own_.out, ahead);
    }
    for (; d < p_.value_width; d += W) {
      sum_direct<W, Rows, 1, T>(scores_, values, d, count, shrink_, own_.out, ahead);
    }
  }

  const AttentionParams& p_;
  PackedQuery<W> query_;
  float *strip_, *scores_, *shrink_;
  Partial own_;
  const bool direct_;
  const AttentionItem* item_ = nullptr;
  RowNames names_{};
  std::int64_t seen_[kRows], seen_by_all_ = 0, end_ = 0;
};

template <int W>
std::int64_t attention_scratch(const AttentionParams& p) {
  return AttentionWorker<W>::floats(p);
}

template <int W>
std::int64_t attention_slot(const AttentionParams& p) {
  return Partial::floats(value_strips(p));
}

template <int W>
void attention(const AttentionParams& p) {
#pragma omp parallel num_threads(p.threads)
  {
    AttentionWorker<W> worker(p, p.scratch + omp_get_thread_num() * AttentionWorker<W>::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < p.item_count; ++i) worker.run(p.items[i]);
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < p.merge_count * kRows; ++i) {
      const AttentionMerge& merge = p.merges[i / kRows];
      if (i % kRows < merge.row_count) worker.run(merge, i % kRows);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
