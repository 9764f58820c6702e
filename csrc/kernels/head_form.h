// MLA's head form: every head's keys and values are expanded from the latents, stretch by stretch, into memory of the thread
// that then attends to them. Reference: src/latentkv/ops/attention.py.
//
// A piece of work is one head and a range of new tokens. Its tiles of kRows tokens keep their unfinished results while the
// stretches pass, so a context is expanded once for each piece and never lies expanded as a whole.
#pragma once

#include "kernels/head_tiles.h"
#include "kernels/head_vectors.h"

namespace latentkv::LATENTKV_ISA {

// `use` with the worker for these sizes and types as its template argument.
template <int W, typename Use>
auto with_head_worker(const HeadFormParams& p, Use use) {
  if constexpr (kHasTiles) {
    if (HeadTiles::suits(p)) return use.template operator()<HeadTiles>();
  }
  return use.template operator()<HeadVectors<W>>();
}

template <int W>
std::int64_t head_form_scratch(const HeadFormParams& p) {
  return with_head_worker<W>(p, [&]<typename Worker>() { return Worker::floats(p); });
}

template <typename Worker>
void head_form_with(const HeadFormParams& p) {
  const HeadPieces pieces(p);
#pragma omp parallel num_threads(p.attention.threads)
  {
    Worker worker(p, p.attention.scratch + omp_get_thread_num() * Worker::floats(p));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < pieces.count(); ++i) {
      const HeadPiece piece = pieces.at(i);
      worker.run(piece.head, piece.first, piece.count);
    }
  }
}

template <int W>
void head_form(const HeadFormParams& p) {
  with_head_worker<W>(p, [&]<typename Worker>() { head_form_with<Worker>(p); });
}

}  // namespace latentkv::LATENTKV_ISA
