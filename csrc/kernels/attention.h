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
  static constexpr int kChains = 4;

 public:
  AttentionWorker(const AttentionParams& p, float* memory)
      : p_(p),
        query_(p, memory),
        chunk_(p, memory + Query::floats(p)),
        own_(memory + Query::floats(p) + Chunk::floats(p), value_strips(p)) {}

  static std::int64_t floats(const AttentionParams& p) {
    return round_up(Query::floats(p) + Chunk::floats(p) + Partial::floats(value_strips(p)), 16);
  }

  void run(const AttentionItem& item) {
    item_ = &item;
    names_ = names(item);
    start();
    if (item.context_begin < end_) {
      query_.pack(names_, item.row_count);
      walk();
    }
    if constexpr (requires { chunk_.settle(own_, item.row_count); }) chunk_.settle(own_, item.row_count);
    if (item.store_slot >= 0) return own_.copy_to(slot(p_, item.store_slot), item.row_count);
    for (std::int64_t row = 0; row < item.row_count; ++row) finish_row<W, kParted>(p_, names_, own_, row);
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

  void walk() {
    const ContextRows context(p_, item_->sequence);
    const char* rows[Chunk::kTokens];
    std::int64_t begin = item_->context_begin;
    std::int64_t count = chunk_from(begin);
    context.find(begin, begin + count, sizeof(T), rows);
    while (count > 0) {
      Ahead ahead;
      const std::int64_t next = chunk_from(begin + count);
      context.find(begin + count, begin + count + next, sizeof(T), ahead.rows);
      const std::int64_t first_byte = item_->group * p_.key_step * sizeof(T);
      ahead.start(next, first_byte, kCoded<T> ? p_.codes.row_bytes : first_byte + p_.key_width * sizeof(T));
      compute(rows, begin, count, ahead);
      begin += count;
      count = next;
      __builtin_memcpy(rows, ahead.rows, next * sizeof(char*));
    }
  }

  std::int64_t chunk_from(std::int64_t begin) const {
    return end_ - begin < Chunk::kTokens ? end_ - begin : Chunk::kTokens;
  }

  void compute(const char* const* rows, std::int64_t begin, std::int64_t count, Ahead& ahead) {
    chunk_.template dot<T>(query_, rows, count, item_->group * p_.key_step, p_.key_width, ahead);
    weigh(own_, begin, count);
    chunk_.template sum<T>(own_, item_->row_count, rows, count, value_start(), p_.value_width, ahead);
  }

  void weigh(const Partial& result, std::int64_t begin, std::int64_t count) {
    if constexpr (requires { chunk_.lines(); }) {
      if (float* lines = chunk_.lines()) {
        for (std::int64_t row = 0; row < item_->row_count; ++row, lines += kMostTokens) {
          weigh_line<W>(lines, count, seen_[row] - begin, result.top[row], result.total[row], chunk_.shrink()[row]);
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
    const F before = S::load(own_.top + row);
    F top = largest(scores, count, before);
    top = top > before + Engine::kSlack ? top : before;
    const F base = top == S::broadcast(-kInfinity) ? S::zero() : top;
    const F shrink = exp2_nonpositive<W>(before - base);
    const F total = S::fma(S::load(own_.total + row), shrink, weigh(scores, count, base));
    S::store(own_.top + row, top);
    S::store(own_.total + row, total);
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
  Partial own_;
  const AttentionItem* item_ = nullptr;
  RowNames names_{};
  std::int64_t seen_[kRows], seen_by_all_ = 0, end_ = 0;
};

// Tiles for the items that fill them, vectors for the others: by an item's own rows, whatever else the batch holds.
template <typename ByVectors, typename ByTiles>
class TileOrVectorWorker {
 public:
  TileOrVectorWorker(const AttentionParams& p, float* memory)
      : vectors_(p, memory), tiles_(p, memory + ByVectors::floats(p)) {}

  static std::int64_t floats(const AttentionParams& p) { return ByVectors::floats(p) + ByTiles::floats(p); }

  void run(const AttentionItem& item) {
    item.row_count < TileChunk::kLeastRows ? vectors_.run(item) : tiles_.run(item);
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

template <typename Worker>
void attention_with(const AttentionParams& p) {
#pragma omp parallel num_threads(p.threads)
  {
    Worker worker(p, p.scratch + omp_get_thread_num() * Worker::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < p.item_count; ++i) worker.run(p.items[i]);
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
