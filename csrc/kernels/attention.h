// Attention over rows in pages: latent form, head form and grouped queries alike. Reference: src/latentkv/ops/attention.py.
//
// An item is some rows (token and head) of one sequence and KV group against a range of its context. For each chunk of
// the context: widen its rows into scratch, scores = keys · q, online softmax (Milakov and Gimelshein, arXiv:1805.02867)
// with rows in the lanes, out = out * shrink + weights · values. Items that share their rows meet in slots and are merged.
#pragma once

#include <omp.h>

#include "kernels/attention_rows.h"
#include "kernels/exp2.h"

namespace latentkv::LATENTKV_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// Unfinished result of up to kRows rows: out strips [strips][kRows][kStrip], base-2 maximum and sum for each row.
struct Partial {
  float *out, *top, *total;

  Partial(float* memory, std::int64_t strips)
      : out(memory), top(memory + strips * kRows * kStrip), total(top + kRows) {}

  static std::int64_t floats(std::int64_t strips) { return strips * kRows * kStrip + 2 * kRows; }
};

inline std::int64_t key_strips(const AttentionParams& p) { return round_up(p.key_width, kStrip) / kStrip; }
inline std::int64_t value_strips(const AttentionParams& p) { return round_up(p.value_width, kStrip) / kStrip; }
inline std::int64_t slot_floats(const AttentionParams& p) { return Partial::floats(value_strips(p)); }

// Rows computed together: `vectors` of them in the lanes, or none (columns in the lanes).
struct Panel {
  std::int64_t first_row, rows;
  int vectors;
  Columns columns;
  float* q;
};

// One thread's scratch and what it does with an item.
template <int W>
class AttentionWorker {
  using S = Simd<W>;
  using F = typename S::F;
  using U = typename S::U;

 public:
  AttentionWorker(const AttentionParams& p, float* memory)
      : p_(p),
        strips_(value_strips(p)),
        q_stride_(round_up(p.key_width, kStrip) + W),
        keys_(memory),
        values_(p.value_offset < 0 ? keys_ : keys_ + key_strips(p) * kChunkStrip),
        q_(keys_ + (key_strips(p) + (p.value_offset < 0 ? 0 : strips_)) * kChunkStrip),
        line_(q_ + kRows * q_stride_),
        scores_(line_ + q_stride_),
        shrink_(scores_ + kChunk * kRows),
        own_(shrink_ + kRows, strips_) {}

  static std::int64_t floats(const AttentionParams& p) {
    const std::int64_t strips = key_strips(p) + (p.value_offset < 0 ? 0 : value_strips(p));
    const std::int64_t q_stride = round_up(p.key_width, kStrip) + W;
    return round_up(strips * kChunkStrip + (kRows + 1) * q_stride + kChunk * kRows + kRows + slot_floats(p), 16);
  }

  void run(const AttentionItem& item) {
    item_ = &item;
    sequence_ = &p_.sequences[item.sequence];
    start();
    look();
    const std::int64_t end = seen_by_any_ < item.context_end ? seen_by_any_ : item.context_end;
    if (item.context_begin < end) {
      pack_query();
      clear_margin(p_.key_width, keys_);
      walk(item.context_begin, end);
    }
    if (item.store_slot < 0) {
      for (std::int64_t row = 0; row < item.row_count; ++row) finish(item, own_, row);
    } else {
      copy(own_, slot(item.store_slot), item.row_count);
    }
  }

  // The merged result of one row of `merge`.
  void merge(const AttentionMerge& merge, std::int64_t row) {
    sequence_ = &p_.sequences[merge.sequence];
    float top = -kInfinity;
    for (std::int64_t i = 0; i < merge.slot_count; ++i) {
      const float other = slot(merge.first_slot + i).top[row];
      top = other > top ? other : top;
    }
    own_.top[row] = top;
    own_.total[row] = 0.0f;
    for (std::int64_t d = 0; d < strips_ * kStrip; d += W) S::store(out_at(own_, row, d), S::zero());
    const float base = top == -kInfinity ? 0.0f : top;
    for (std::int64_t i = 0; i < merge.slot_count; ++i) {
      const Partial other = slot(merge.first_slot + i);
      const F share = exp2_nonpositive<W>(S::broadcast(other.top[row] - base));
      own_.total[row] += other.total[row] * share[0];
      for (std::int64_t d = 0; d < strips_ * kStrip; d += W) {
        float* to = out_at(own_, row, d);
        S::store(to, S::fma(S::load(out_at(other, row, d)), share, S::load(to)));
      }
    }
    finish(merge, own_, row);
  }

 private:
  static float* out_at(const Partial& partial, std::int64_t row, std::int64_t d) {
    return partial.out + (d / kStrip * kRows + row) * kStrip + d % kStrip;
  }

  Partial slot(std::int64_t index) const { return {p_.slots + index * slot_floats(p_), strips_}; }

  std::int64_t head_of(std::int64_t group, std::int64_t row) const {
    return group * (p_.heads / p_.groups) + row / sequence_->query_len;
  }

  // How many tokens of the context a row sees.
  std::int64_t visible(std::int64_t row) const {
    const std::int64_t unseen = p_.causal ? sequence_->query_len - 1 - row % sequence_->query_len : 0;
    return sequence_->context_len - unseen;
  }

  void look() {
    seen_by_all_ = sequence_->context_len;
    seen_by_any_ = 0;
    for (std::int64_t row = 0; row < item_->row_count; ++row) {
      const std::int64_t seen = visible(item_->first_row + row);
      seen_[row] = seen;
      seen_by_all_ = seen < seen_by_all_ ? seen : seen_by_all_;
      seen_by_any_ = seen > seen_by_any_ ? seen : seen_by_any_;
    }
  }

  void copy(const Partial& from, const Partial& to, std::int64_t rows) const {
    for (std::int64_t strip = 0; strip < strips_; ++strip) {
      const std::int64_t at = strip * kRows * kStrip;
      __builtin_memcpy(to.out + at, from.out + at, rows * kStrip * sizeof(float));
    }
    __builtin_memcpy(to.top, from.top, kRows * sizeof(float));
    __builtin_memcpy(to.total, from.total, kRows * sizeof(float));
  }

  void start() {
    if (item_->load_slot >= 0) {
      copy(slot(item_->load_slot), own_, item_->row_count);
      return;
    }
    for (std::int64_t row = 0; row < kRows; ++row) {
      own_.top[row] = -kInfinity;
      own_.total[row] = 0.0f;
    }
    for (std::int64_t strip = 0; strip < strips_; ++strip) {
      float* out = own_.out + strip * kRows * kStrip;
      for (std::int64_t i = 0; i < item_->row_count * kStrip; i += W) S::store(out + i, S::zero());
    }
  }

  // Rows in panels of two vectors, then one; few remaining rows would leave lanes empty and go narrow.
  void pack_query() {
    panel_count_ = 0;
    std::int64_t row = 0;
    while (row < item_->row_count) {
      const std::int64_t left = item_->row_count - row;
      const int vectors = left > W + W / 2 ? 2 : left > W / 2 ? 1 : 0;
      const std::int64_t most = vectors > 0 ? vectors * W : left >= 4 && W >= 8 ? 4 : left >= 2 ? 2 : 1;
      Panel& panel = panels_[panel_count_++];
      panel = {row, left < most ? left : most, vectors, {}, q_ + row * q_stride_};
      panel.columns = columns_of(panel);
      vectors > 0 ? pack_wide(panel) : pack_narrow(panel);
      row += panel.rows;
    }
  }

  // The columns in which any row of the panel has a query; one range where vectors along the columns need it.
  Columns columns_of(const Panel& panel) const {
    const Range a{0, p_.a.width};
    if (p_.b.width == 0) return {{a, {}}, 1};
    const std::int64_t first = item_->first_row + panel.first_row;
    const Range b{b_column(first), b_column(first + panel.rows - 1) + p_.b.width};
    if (a.to == 0) return {{{panel.vectors == 0 ? b.from / W * W : b.from, b.to}, {}}, 1};
    if (b.from == a.to || panel.vectors == 0) return {{{0, b.to}, {}}, 1};
    return {{a, b}, 2};
  }

  std::int64_t b_column(std::int64_t row) const {
    const std::int64_t block = head_of(item_->group, row) * p_.b_blocks / p_.heads;
    return p_.key_width - (p_.b_blocks - block) * p_.b.width;
  }

  void pack_row(std::int64_t row, float* to) const {
    for (std::int64_t d = 0; d < q_stride_; d += W) S::store(to + d, S::zero());
    const std::int64_t at = item_->first_row + row;
    const std::int64_t token = sequence_->query_start + at % sequence_->query_len;
    const std::int64_t head = head_of(item_->group, at);
    const float factor = p_.scale * kLog2E;
    scale_part<W>(p_.a, token, head, factor, to);
    if (p_.b.width > 0) scale_part<W>(p_.b, token, head, factor, to + b_column(at));
  }

  void pack_narrow(const Panel& panel) const {
    for (std::int64_t row = 0; row < panel.rows; ++row) pack_row(panel.first_row + row, panel.q + row * q_stride_);
  }

  void pack_wide(const Panel& panel) const {
    const std::int64_t lanes = panel.vectors * W;
    for (std::int64_t row = 0; row < lanes; ++row) {
      if (row < panel.rows) pack_row(panel.first_row + row, line_);
      for (std::int64_t d = 0; d < p_.key_width; ++d) panel.q[d * lanes + row] = row < panel.rows ? line_[d] : 0.0f;
    }
  }

  void walk(std::int64_t begin, std::int64_t end) {
    const ContextRows context(p_, item_->sequence);
    const std::int64_t bytes = p_.row_dtype == DType::f32 ? 4 : 2;
    const char* rows[kChunk];
    Ahead ahead;
    std::int64_t count = end - begin < kChunk ? end - begin : kChunk;
    context.find(begin, begin + count, bytes, rows);
    for (; begin < end; begin += count, count = ahead.row_count) {
      const std::int64_t next = end - begin - count < kChunk ? end - begin - count : kChunk;
      context.find(begin + count, begin + count + next, bytes, ahead.rows);
      ahead.row_count = next;
      ahead.row_bytes = p_.key_width * bytes;
      ahead.row = ahead.byte = 0;
      for (std::int64_t i = 0; i < next; ++i) ahead.rows[i] += item_->group * p_.key_step * bytes;
      load(rows, count);
      compute(begin, count, ahead);
      for (std::int64_t i = 0; i < next; ++i) rows[i] = ahead.rows[i] - item_->group * p_.key_step * bytes;
    }
  }

  void load(const char* const* rows, std::int64_t count) const {
    p_.row_dtype == DType::f32 ? load_typed<float>(rows, count) : load_typed<bf16>(rows, count);
  }

  template <typename T>
  void load_typed(const char* const* rows, std::int64_t count) const {
    widen_rows<W, T>(rows, count, item_->group * p_.key_step, p_.key_width, keys_);
    if (p_.value_offset < 0) return;
    widen_rows<W, T>(rows, count, p_.value_offset + item_->group * p_.value_step, p_.value_width, values_);
  }

  void compute(std::int64_t begin, std::int64_t count, Ahead& ahead) {
    const std::int64_t row_lines = (ahead.row_bytes + 63) / 64;
    for (int i = 0; i < panel_count_; ++i) {
      const Panel& panel = panels_[i];
      const int tokens = panel.vectors == 2   ? Tile<W>::pair_tokens
                         : panel.vectors == 1 ? Tile<W>::single_tokens
                                              : Tile<W>::narrow_tokens;
      const std::int64_t calls = panel_count_ * (kChunk / tokens) * key_strips(p_);
      const int lines = static_cast<int>((ahead.row_count * row_lines + calls - 1) / calls);
      for (std::int64_t token = 0; token < count; token += tokens) {
        dot(panel, keys_ + token * kStrip, scores_ + token * kRows + panel.first_row, ahead, lines);
      }
    }
    for (std::int64_t row = 0; row < item_->row_count; row += W) softmax(begin, count, row);
    for (std::int64_t strip = 0; strip < strips_; ++strip) sum(strip, count);
  }

  void dot(const Panel& panel, const float* keys, float* scores, Ahead& ahead, int lines) const {
    const Columns& columns = panel.columns;
    if (panel.vectors == 2) {
      dot_wide<W, Tile<W>::pair_tokens, 2>(panel.q, keys, columns, scores, ahead, lines);
    } else if (panel.vectors == 1) {
      dot_wide<W, Tile<W>::single_tokens, 1>(panel.q, keys, columns, scores, ahead, lines);
    } else if (panel.rows == 4) {
      dot_narrow<W, Tile<W>::narrow_tokens, W == 4 ? 1 : 4>(panel.q, q_stride_, keys, columns, scores, ahead, lines);
    } else if (panel.rows == 2) {
      dot_narrow<W, Tile<W>::narrow_tokens, 2>(panel.q, q_stride_, keys, columns, scores, ahead, lines);
    } else {
      dot_narrow<W, Tile<W>::narrow_tokens, 1>(panel.q, q_stride_, keys, columns, scores, ahead, lines);
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

  // One strip of out, all rows; the fewer rows, the more columns at once, so that sums do not wait for each other.
  void sum(std::int64_t strip, std::int64_t count) const {
    const float* values = values_ + strip * kChunkStrip;
    float* out = own_.out + strip * kRows * kStrip;
    std::int64_t row = 0;
    for (; row + Tile<W>::sum_rows <= item_->row_count; row += Tile<W>::sum_rows) {
      sum_rows<Tile<W>::sum_rows>(row, values, count, out);
    }
    switch (item_->row_count - row) {
      case 5: return sum_rows<5>(row, values, count, out);
      case 4: return sum_rows<4>(row, values, count, out);
      case 3: return sum_rows<3>(row, values, count, out);
      case 2: return sum_rows<2>(row, values, count, out);
      case 1: return sum_rows<1>(row, values, count, out);
      default: return;
    }
  }

  template <int Rows>
  void sum_rows(std::int64_t row, const float* values, std::int64_t count, float* out) const {
    constexpr int most = kStrip / W;
    constexpr int wanted = Rows == 1 ? 8 : Rows == 2 ? 4 : Tile<W>::sum_vectors;
    constexpr int vectors = wanted < most ? wanted : most;
    for (std::int64_t d = 0; d < kStrip; d += vectors * W) {
      sum_tile<W, Rows, vectors, 1, kRows>(scores_ + row, values + d, count, shrink_ + row, out + row * kStrip + d);
    }
  }

  template <typename Rows>
  void finish(const Rows& rows, const Partial& result, std::int64_t row) const {
    const std::int64_t at = rows.first_row + row;
    const std::int64_t token = sequence_->query_start + at % sequence_->query_len;
    const std::int64_t head = head_of(rows.group, at);
    const float total = result.total[row];
    const bool empty = total == 0.0f;
    p_.lse[token * p_.heads + head] = empty ? -kInfinity : result.top[row] * kLn2 + __builtin_logf(total);
    const std::int64_t start = token * p_.out_token_stride + head * p_.out_head_stride;
    const float share = empty ? 0.0f : 1.0f / total;
    p_.out_dtype == DType::f32 ? write(result, row, share, static_cast<float*>(p_.out) + start)
                               : write(result, row, share, static_cast<bf16*>(p_.out) + start);
  }

  template <typename T>
  void write(const Partial& result, std::int64_t row, float share, T* to) const {
    const F factor = S::broadcast(share);
    std::int64_t d = 0;
    for (; d + W <= p_.value_width; d += W) S::store(to + d, S::load(out_at(result, row, d)) * factor);
    if (d < p_.value_width) S::store_part(to + d, S::load(out_at(result, row, d)) * factor, p_.value_width - d);
  }

  const AttentionParams& p_;
  const std::int64_t strips_, q_stride_;
  float *keys_, *values_, *q_, *line_, *scores_, *shrink_;
  Partial own_;
  const AttentionItem* item_ = nullptr;
  const AttentionSequence* sequence_ = nullptr;
  std::int64_t seen_[kRows], seen_by_all_ = 0, seen_by_any_ = 0;
  Panel panels_[kRows / W + 4];
  int panel_count_ = 0;
};

template <int W>
std::int64_t attention_scratch(const AttentionParams& p) {
  return AttentionWorker<W>::floats(p);
}

template <int W>
std::int64_t attention_slot(const AttentionParams& p) {
  return slot_floats(p);
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
      if (i % kRows < merge.row_count) worker.merge(merge, i % kRows);
    }
  }
}

}  // namespace latentkv::LATENTKV_ISA
