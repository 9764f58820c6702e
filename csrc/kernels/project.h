// Per-head products of tokens with the two halves of W_UKV. Reference: src/latentkv/ops/absorb.py. Here on attention's tiles; what
// needs columns of w goes there on matrix tiles only.
#pragma once

#include "kernels/attention_engines.h"
#include "kernels/project_few.h"
#include "kernels/project_tiles.h"

namespace latentkv::LATENTKV_ISA {

template <int W, typename Engine>
class ProjectWorker {
  using S = Simd<W>;
  using Query = typename Engine::Query;
  using Chunk = typename Engine::Chunk;

 public:
  ProjectWorker(const ProjectParams& p, float* memory)
      : p_(p),
        as_query_(query_params(p)),
        query_(as_query_, memory),
        chunk_(as_query_, memory + Query::floats(as_query_)),
        sums_(memory + Query::floats(as_query_) + Chunk::floats(as_query_), strips(p)) {}

  static std::int64_t floats(const ProjectParams& p) {
    const AttentionParams query = query_params(p);
    const std::int64_t chunk = Query::floats(query) + Chunk::floats(query);
    return round_up(chunk + Partial::floats(strips(p)), 16);
  }

  // Tokens first ... first + count - 1, heads first_head ... last_head. x without a stride between heads is packed once.
  void rows(std::int64_t first, std::int64_t count, std::int64_t first_head, std::int64_t last_head) {
    for (std::int64_t head = first_head; head <= last_head; ++head) {
      if (head == first_head || p_.x.head_stride != 0) query_.pack({0, p_.tokens, first, head}, count);
      p_.w_dtype == DType::f32 ? rows_typed<float>(first, count, head) : rows_typed<bf16>(first, count, head);
    }
  }

  // w is bf16.
  void columns(std::int64_t first, std::int64_t tokens, std::int64_t head) {
    const char* rows[Chunk::kTokens];
    sums_.clear(tokens);
    for (std::int64_t row = 0; row < kRows; ++row) chunk_.shrink()[row] = 1.0f;
    for (std::int64_t k = 0; k < p_.x.width; k += Chunk::kTokens) {
      Ahead none;
      const std::int64_t count = weight_rows(head, k, p_.x.width, rows);
      for (std::int64_t row = 0; row < tokens; row += W) {
        for (std::int64_t i = 0; i < count; i += W) {
          turn_in(first + row, tokens - row, head, k + i, count - i, chunk_.scores() + i * kRows + row);
        }
      }
      chunk_.template sum<bf16>(sums_, tokens, rows, count, 0, p_.out_width, none);
    }
    for (std::int64_t row = 0; row < tokens; ++row) {
      const std::int64_t at = (first + row) * p_.out_token_stride + head * p_.out_head_stride;
      p_.out_dtype == DType::f32 ? write_columns(row, static_cast<float*>(p_.out) + at)
                                 : write_columns(row, static_cast<bf16*>(p_.out) + at);
    }
  }

 private:
  static std::int64_t strips(const ProjectParams& p) { return round_up(p.out_width, kStrip) / kStrip; }

  static AttentionParams query_params(const ProjectParams& p) {
    AttentionParams query{};
    query.a = p.x;
    query.heads = p.heads;
    query.b_blocks = 1;
    query.key_width = p.x.width;
    query.scale_log2 = 1.0f;
    query.row_dtype = p.w_dtype;
    query.row_stride = p.w_row_stride;
    return query;
  }

  // Addresses of at most a chunk's rows of w from `begin` on.
  std::int64_t weight_rows(std::int64_t head, std::int64_t begin, std::int64_t end, const char** rows) const {
    const std::int64_t bytes = p_.w_dtype == DType::f32 ? 4 : 2;
    const std::int64_t count = end - begin < Chunk::kTokens ? end - begin : Chunk::kTokens;
    for (std::int64_t i = 0; i < count; ++i) {
      rows[i] = static_cast<const char*>(p_.w) + (head * p_.w_head_stride + (begin + i) * p_.w_row_stride) * bytes;
    }
    return count;
  }

  template <typename T>
  void rows_typed(std::int64_t first, std::int64_t tokens, std::int64_t head) {
    const char* rows[Chunk::kTokens];
    for (std::int64_t j = 0; j < p_.out_width; j += Chunk::kTokens) {
      Ahead none;
      const std::int64_t count = weight_rows(head, j, p_.out_width, rows);
      chunk_.template dot<T>(query_, rows, count, 0, p_.x.width, none);
      for (std::int64_t row = 0; row < tokens; row += W) {
        for (std::int64_t i = 0; i < count; i += W) {
          const std::int64_t lanes = tokens - row < W ? tokens - row : W, width = count - i < W ? count - i : W;
          turn_out(first + row, lanes, head, j + i, width, chunk_.scores() + i * kRows + row);
        }
      }
    }
  }

  // A square of x to scores [inputs][tokens]: of `tokens` tokens and `count` inputs, or W where there are more.
  void turn_in(std::int64_t token, std::int64_t tokens, std::int64_t head, std::int64_t k, std::int64_t count,
               float* scores) const {
    typename S::F square[W];
    for (int i = 0; i < W; ++i) square[i] = i < tokens ? load(token + i, head, k, count) : S::zero();
    transpose<W>(square);
    for (int i = 0; i < W && i < count; ++i) S::store(scores + i * kRows, square[i]);
  }

  typename S::F load(std::int64_t token, std::int64_t head, std::int64_t k, std::int64_t count) const {
    const std::int64_t at = token * p_.x.token_stride + head * p_.x.head_stride + k;
    return p_.x.dtype == DType::f32 ? load_typed(static_cast<const float*>(p_.x.data) + at, count)
                                    : load_typed(static_cast<const bf16*>(p_.x.data) + at, count);
  }

  template <typename T>
  static typename S::F load_typed(const T* from, std::int64_t count) {
    return count < W ? S::load_part(from, count) : S::load(from);
  }

  // A square of scores [outputs][tokens] to out.
  void turn_out(std::int64_t token, std::int64_t lanes, std::int64_t head, std::int64_t j, std::int64_t width,
                const float* scores) const {
    typename S::F square[W];
    for (int k = 0; k < W; ++k) square[k] = S::load(scores + k * kRows);
    transpose<W>(square);
    for (std::int64_t lane = 0; lane < lanes; ++lane) store(token + lane, head, j, square[lane], width);
  }

  void store(std::int64_t token, std::int64_t head, std::int64_t d, typename S::F value, std::int64_t width) const {
    const std::int64_t at = token * p_.out_token_stride + head * p_.out_head_stride + d;
    p_.out_dtype == DType::f32 ? store_typed(static_cast<float*>(p_.out) + at, value, width)
                               : store_typed(static_cast<bf16*>(p_.out) + at, value, width);
  }

  template <typename T>
  static void store_typed(T* to, typename S::F value, std::int64_t width) {
    width == W ? S::store(to, value) : S::store_part(to, value, width);
  }

  template <typename To>
  void write_columns(std::int64_t row, To* to) const {
    write_out<W, kPartedSums<Engine, bf16>>(sums_, row, 1.0f, p_.out_width, to);
  }

  const ProjectParams& p_;
  const AttentionParams as_query_;
  Query query_;
  Chunk chunk_;
  Partial sums_;
};

inline bool fits_matrix_tiles(const ProjectParams& p) {
  return kHasTiles && p.w_dtype == DType::bf16 && p.x.width % kTileDepth == 0 && p.out_width % kTileDepth == 0;
}

// `use` with the worker for these weights and tokens as its template argument.
template <int W, typename Use>
auto with_project_worker(const ProjectParams& p, Use use) {
  if constexpr (kHasTiles) {
    if (fits_matrix_tiles(p) && p.tokens >= TileChunk::kLeastRows) return use.template operator()<ProjectWorker<W, TileEngine>>();
  }
  return use.template operator()<ProjectWorker<W, VectorEngine<W>>>();
}

template <int W>
std::int64_t project_scratch(const ProjectParams& p) {
  const std::int64_t tiles = with_project_worker<W>(p, [&]<typename Worker>() { return Worker::floats(p); });
  return larger(tiles, larger(project_few_scratch<W>(p), project_tiles_scratch<W>(p)));
}

// Tiles of tokens, and heads where each has its own x.
template <typename Worker>
void project_rows_with(const ProjectParams& p) {
  const std::int64_t tiles = (p.tokens + kRows - 1) / kRows;
  const std::int64_t parts = p.x.head_stride == 0 ? 1 : p.heads;
#pragma omp parallel num_threads(p.threads)
  {
    Worker worker(p, p.scratch + omp_get_thread_num() * Worker::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < tiles * parts; ++i) {
      const std::int64_t first = i / parts * kRows, head = i % parts;
      const std::int64_t count = p.tokens - first < kRows ? p.tokens - first : kRows;
      worker.rows(first, count, head, parts == 1 ? p.heads - 1 : head);
    }
  }
}

template <typename Worker>
void project_columns_with(const ProjectParams& p) {
  const std::int64_t tiles = (p.tokens + kRows - 1) / kRows;
#pragma omp parallel num_threads(p.threads)
  {
    Worker worker(p, p.scratch + omp_get_thread_num() * Worker::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < tiles * p.heads; ++i) {
      const std::int64_t first = i / p.heads * kRows;
      worker.columns(first, p.tokens - first < kRows ? p.tokens - first : kRows, i % p.heads);
    }
  }
}

template <int W>
void project_rows(const ProjectParams& p) {
  with_project_worker<W>(p, [&]<typename Worker>() { project_rows_with<Worker>(p); });
}

// Matrix tiles are full with so many tokens.
constexpr std::int64_t kFullTile = 16;

template <int W>
void project_columns(const ProjectParams& p) {
  if constexpr (kHasTiles) {
    if (fits_matrix_tiles(p) && p.tokens >= kFullTile) return project_columns_with<ProjectWorker<W, TileEngine>>(p);
  }
  if (p.tokens > kFewTokens) return project_column_tiles<W>(p);
  p.w_dtype == DType::f32 ? project_few_columns<W, float>(p) : project_few_columns<W, bf16>(p);
}

}  // namespace latentkv::LATENTKV_ISA
