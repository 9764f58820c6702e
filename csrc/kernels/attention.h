// Attention over rows in pages: latent form, head form and grouped queries alike. Reference: src/latentkv/ops/attention.py.
//
// An item is some rows (token and head) of one sequence and KV group against a range of its context. For each chunk of
// the context: widen its rows into scratch, scores = keys · q, online softmax (Milakov and Gimelshein, arXiv:1805.02867)
// with rows in the lanes, out = out * shrink + weights · values. Items that share their rows meet in slots and are merged.
#pragma once

#include "kernels/attention_engines.h"
#include "kernels/attention_line.h"

namespace latentkv::LATENTKV_ISA {

// One thread's scratch and what it does with an item.
template <int W, typename T, typename Engine>
class AttentionWorker {
  using S = Simd<W>;
  using F = typename S::F;
  using Query = typename Engine::Query;
  using Chunk = typename Engine::Chunk;
  static constexpr bool kParted = kPartedSums<Engine, T>;
  static_assert(Chunk::kTokens <= kLongestChunk);
  static constexpr int kChains = 4;

 public:
  AttentionWorker(const AttentionParams& p, float* memory)
      : p_(p),
        query_(p, memory),
        chunk_(p, memory + Query::floats(p)),
        own_(memory + Query::floats(p) + Chunk::floats(p), value_strips(p)) {
    if constexpr (requires { chunk_.go_by_lines(); }) chunk_.go_by_lines();
  }

  static std::int64_t floats(const AttentionParams& p) {
    return round_up(Query::floats(p) + Chunk::floats(p) + Partial::floats(value_strips(p)), 16);
  }

  // follow() is asked when the last chunk begins: the item that comes next on this thread, or null.
  template <typename Follow>
  void run(const AttentionItem& item, Follow follow) {
    item_ = &item;
    names_ = names(item);
    start();
    if (item.context_begin < end_) {
      pack();
      walk(follow);
    }
    if constexpr (requires { chunk_.settle(result_, item.row_count); }) chunk_.settle(result_, item.row_count);
    if (item.store_slot >= 0) return;
    for (std::int64_t row = 0; row < item.row_count; ++row) finish_row<W, kParted>(p_, names_, result_, row);
  }

  // The merged result of one row of `merge`.
  void run(const AttentionMerge& merge, std::int64_t row) {
    merge_row<W>(p_, merge, row, own_);
    finish_row<W, kParted>(p_, names(merge), own_, row);
  }

 private:
  template <typename Rows>
  RowNames names(const Rows& rows) const {
    const AttentionSequence& sequence = p_.sequences[rows.sequence];
    return {sequence.query_start, sequence.query_len, rows.first_row, rows.group * (p_.heads / p_.groups)};
  }

  // Where the result is kept, with what there is of it, and how much of the context these rows see.
  void start() {
    const std::int64_t kept = item_->load_slot < 0 ? item_->store_slot : item_->load_slot;
    result_ = kept < 0 ? own_ : slot(p_, kept);
    if (item_->load_slot < 0) result_.clear(item_->row_count);
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

  // Pieces of one context often come to one thread.
  void pack() {
    if (names_ == packed_ && item_->row_count == packed_rows_) return;
    query_.pack(names_, item_->row_count);
    packed_ = names_;
    packed_rows_ = item_->row_count;
  }

  template <typename Follow>
  void walk(Follow follow) {
    const char* rows[Chunk::kTokens];
    std::int64_t begin = item_->context_begin;
    std::int64_t count = find_chunk(*item_, begin, end_, rows);
    while (count > 0) {
      Ahead ahead;
      const std::int64_t next = find_chunk(*item_, begin + count, end_, ahead.rows);
      if (next > 0) {
        ask(ahead, *item_, next);
      } else if (const AttentionItem* after = follow()) {
        ask_first(ahead, *after);
      }
      compute(rows, begin, count, ahead);
      begin += count;
      count = next;
      __builtin_memcpy(rows, ahead.rows, next * sizeof(char*));
    }
  }

  // The rows of an item's chunk that begins at `begin`; returns their number.
  std::int64_t find_chunk(const AttentionItem& item, std::int64_t begin, std::int64_t end, const char** rows) const {
    const std::int64_t count = end - begin < Chunk::kTokens ? end - begin : Chunk::kTokens;
    ContextRows(p_, item.sequence).find(begin, begin + count, sizeof(T), rows);
    return count;
  }

  // What an item is waited for at first: its context's rows, or its queries where the context was just expanded.
  void ask_first(Ahead& ahead, const AttentionItem& item) const {
    if constexpr (!kExpanded<T>) {
      return ask(ahead, item, find_chunk(item, item.context_begin, item.context_end, ahead.rows));
    }
    const RowNames rows = names(item);
    const std::int64_t bytes = p_.a.dtype == DType::f32 ? 4 : 2;
    for (std::int64_t row = 0; row < item.row_count; ++row) {
      const std::int64_t at = rows.token(row) * p_.a.token_stride + rows.head(row) * p_.a.head_stride;
      ahead.rows[row] = static_cast<const char*>(p_.a.data) + at * bytes;
    }
    ahead.start(item.row_count, 0, p_.a.width * bytes);
  }

  void ask(Ahead& ahead, const AttentionItem& item, std::int64_t count) const {
    if constexpr (kExpanded<T>) return ahead.start(1, 0, p_.page_stride * sizeof(T));
    const ByteRange key = key_bytes<T>(p_, item.group);
    ahead.start(count, key.from, key.to);
  }

  void compute(const char* const* rows, std::int64_t begin, std::int64_t count, Ahead& ahead) {
    if constexpr (requires { chunk_.see(seen_, begin); }) {
      chunk_.see(begin + count > seen_by_all_ ? seen_ : nullptr, begin);
    }
    chunk_.template dot<T>(query_, rows, count, item_->group * p_.key_step, p_.key_width, ahead);
    weigh(begin, count);
    chunk_.template sum<T>(result_, item_->row_count, rows, count, value_start(), p_.value_width, ahead);
  }

  void weigh(std::int64_t begin, std::int64_t count) {
    if constexpr (requires { chunk_.lines(); }) {
      if (float* lines = chunk_.lines()) {
        for (std::int64_t row = 0; row < item_->row_count; ++row, lines += Chunk::kTokens) {
          weigh_line<W>(lines, count, seen_[row] - begin, result_.top[row], result_.total[row], chunk_.shrink()[row]);
        }
        return;
      }
    }
    for (std::int64_t row = 0; row < item_->row_count; row += W) softmax(begin, count, row);
  }

  // Scores become weights 2**(score - top); shrink is what earlier weights are to be multiplied with.
  void softmax(std::int64_t begin, std::int64_t count, std::int64_t row) {
    float* scores = chunk_.scores() + row;
    mask(begin, count, row);
    const F before = S::load(result_.top + row);
    F top = largest(scores, count, before);
    top = top > before + Engine::kSlack ? top : before;
    const F base = top == S::broadcast(-kInfinity) ? S::zero() : top;
    const F shrink = exp2_nonpositive<W>(before - base);
    const F total = S::fma(S::load(result_.total + row), shrink, weigh(scores, count, base));
    S::store(result_.top + row, top);
    S::store(result_.total + row, total);
    S::store(chunk_.shrink() + row, shrink);
  }

  // Of `count` tokens' scores and `least`.
  static F largest(const float* scores, std::int64_t count, F least) {
    F top[kChains];
    for (F& one : top) one = least;
    in_chains(count, [&](std::int64_t t, int chain) {
      const F score = S::load(scores + t * kRows);
      top[chain] = score > top[chain] ? score : top[chain];
    });
    for (int i = 1; i < kChains; ++i) top[0] = top[i] > top[0] ? top[i] : top[0];
    return top[0];
  }

  // Scores become weights; returns their sum.
  static F weigh(float* scores, std::int64_t count, F base) {
    F total[kChains] = {};
    in_chains(count, [&](std::int64_t t, int chain) {
      const F weight = exp2_nonpositive<W>(S::load(scores + t * kRows) - base);
      total[chain] += weight;
      S::store(scores + t * kRows, weight);
    });
    for (int i = 1; i < kChains; ++i) total[0] += total[i];
    return total[0];
  }

  // use(token, chain) for `count` tokens: one chain of maxima or sums would wait for itself.
  template <typename Use>
  [[gnu::always_inline]] static void in_chains(std::int64_t count, Use use) {
    std::int64_t t = 0;
    for (; t + kChains <= count; t += kChains) {
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; ++chain) use(t + chain, chain);
    }
    for (; t < count; ++t) use(t, 0);
  }

  // -inf for what lies beyond what a row sees.
  void mask(std::int64_t begin, std::int64_t count, std::int64_t first) {
    if (begin + count <= seen_by_all_) return;
    for (std::int64_t row = first; row < first + W && row < item_->row_count; ++row) {
      const std::int64_t seen = seen_[row] - begin;
      for (std::int64_t t = seen < 0 ? 0 : seen; t < count; ++t) chunk_.scores()[t * kRows + row] = -kInfinity;
    }
  }

  std::int64_t value_start() const {
    return p_.value_offset < 0 ? item_->group * p_.key_step : p_.value_offset + item_->group * p_.value_step;
  }

  const AttentionParams& p_;
  Query query_;
  Chunk chunk_;
  const Partial own_;
  Partial result_ = own_;
  const AttentionItem* item_ = nullptr;
  RowNames names_{}, packed_{};
  std::int64_t packed_rows_ = 0;
  std::int64_t seen_[kRows], seen_by_all_ = 0, end_ = 0;
};

// Tiles for the items that fill them, vectors for the others: by an item's own rows, whatever else the batch holds.
template <typename ByVectors, typename ByTiles>
class TileOrVectorWorker {
 public:
  TileOrVectorWorker(const AttentionParams& p, float* memory)
      : vectors_(p, memory), tiles_(p, memory + ByVectors::floats(p)) {}

  static std::int64_t floats(const AttentionParams& p) { return ByVectors::floats(p) + ByTiles::floats(p); }

  template <typename Follow>
  void run(const AttentionItem& item, Follow follow) {
    item.row_count < TileChunk::kLeastRows ? vectors_.run(item, follow) : tiles_.run(item, follow);
  }

  void run(const AttentionMerge& merge, std::int64_t row) {
    merge.row_count < TileChunk::kLeastRows ? vectors_.run(merge, row) : tiles_.run(merge, row);
  }

 private:
  ByVectors vectors_;
  ByTiles tiles_;
};

// `use` with the worker for these rows as its template argument.
template <int W, typename Use>
auto with_worker(const AttentionParams& p, Use use) {
  if (p.values.codes.format != CodeFormat::none) {
    return use.template operator()<AttentionWorker<W, CodedParts, VectorEngine<W>>>();
  }
  if constexpr (kHasTiles) {
    using OfBf16 = TileOrVectorWorker<AttentionWorker<16, bf16, VectorEngine<16>>, AttentionWorker<16, bf16, TileEngine>>;
    using OfBytes = TileOrVectorWorker<AttentionWorker<16, Coded, CodeEngine<16>>, AttentionWorker<16, Coded, TileByteEngine>>;
    using OfCodes = TileOrVectorWorker<AttentionWorker<16, Coded, CodeEngine<16>>, AttentionWorker<16, Coded, TileCodeEngine>>;
    using Exactly = TileOrVectorWorker<AttentionWorker<16, Coded, VectorEngine<16>>, AttentionWorker<16, Coded, TileCodeEngine>>;
    if (TileChunk::suits(p)) return use.template operator()<OfBf16>();
    if (TileByteChunk::suits(p)) return use.template operator()<OfBytes>();
    if (TileCodeChunk::suits(p)) return p.integer ? use.template operator()<OfCodes>() : use.template operator()<Exactly>();
  }
  if constexpr (Dot<W>::kPairs) {
    if (CodeChunk<W>::suits(p)) return use.template operator()<AttentionWorker<W, Coded, CodeEngine<W>>>();
  }
  switch (p.row_dtype) {
    case DType::bf16: return use.template operator()<AttentionWorker<W, bf16, VectorEngine<W>>>();
    case DType::u8: return use.template operator()<AttentionWorker<W, Coded, VectorEngine<W>>>();
    case DType::f16: return use.template operator()<AttentionWorker<W, f16, VectorEngine<W>>>();
    default: return use.template operator()<AttentionWorker<W, float, VectorEngine<W>>>();
  }
}

template <int W>
std::int64_t attention_scratch(const AttentionParams& p) {
  return with_worker<W>(p, [&]<typename Worker>() { return Worker::floats(p); });
}

template <int W>
std::int64_t attention_slot(const AttentionParams& p) {
  return Partial::floats(value_strips(p));
}

// Items for whoever is free, in their order. A thread takes the next one when the last chunk of its own begins, so that the
// first rows of an item, too, are asked for ahead.
class ItemQueue {
 public:
  explicit ItemQueue(const AttentionParams& p) : p_(p) {}

  template <typename Worker>
  void run(Worker& worker) {
    const AttentionItem* item = take();
    while (item != nullptr) {
      const AttentionItem* next = nullptr;
      bool asked = false;
      worker.run(*item, [&] {
        asked = true;
        return next = take();
      });
      item = asked ? next : take();
    }
  }

 private:
  const AttentionItem* take() {
    const std::int64_t index = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return index < p_.item_count ? p_.items + index : nullptr;
  }

  const AttentionParams& p_;
  alignas(64) std::int64_t next_ = 0;
};

template <typename Worker>
void attention_with(const AttentionParams& p) {
  ItemQueue queue(p);
#pragma omp parallel num_threads(p.threads)
  {
    Worker worker(p, p.scratch + omp_get_thread_num() * Worker::floats(p));
    queue.run(worker);
#pragma omp barrier
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < p.merge_count * kRows; ++i) {
      const AttentionMerge& merge = p.merges[i / kRows];
      if (i % kRows < merge.row_count) worker.run(merge, i % kRows);
    }
  }
}

template <int W>
void attention(const AttentionParams& p) {
  with_worker<W>(p, [&]<typename Worker>() { attention_with<Worker>(p); });
}

}  // namespace latentkv::LATENTKV_ISA
