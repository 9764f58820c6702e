// Linear maps: any number of rows, weights in f32, bf16, int8 and int4, several maps in one call (that share an input, or
// one for each expert). Reference: src/latentkv/ops/linear.py.
//
// Every call has two phases: the rows of x are prepared as their path wants them (linear_input.h); then, in the same parallel
// region, items of work, some outputs of one job each, go to whichever thread is free. No sum depends on who computes it.
#pragma once

#include <omp.h>

#include "kernels/linear_dots.h"
#include "kernels/linear_finish.h"
#include "kernels/linear_matrix.h"
#include "kernels/linear_stream.h"
#include "kernels/linear_terms.h"
#include "kernels/linear_tiles.h"
#include "kernels/shares.h"

namespace latentkv::LATENTKV_ISA {

// Weights read in one item of a stream: enough to hide what an item costs, little enough to balance two cores.
constexpr std::int64_t kItemBytes = 1 << 16;
// Below this many multiplications one core is done before a second has woken up.
constexpr std::int64_t kParallelProducts = 1 << 16;
constexpr std::int64_t kSharedInput = 1 << 14;

constexpr std::int64_t kMatrixItemOutputs = 256;
// Up to so many rows rounded dot products on vectors beat those on matrix tiles.
constexpr std::int64_t kMatrixDotRows = 24;

// Scratch of a thread for weights on their way to the multipliers.
template <int W>
constexpr std::int64_t panel_floats() {
  const std::int64_t tiles = LinearTile<W>::kDepth * LinearTile<W>::kOutputs;
  return kHasTiles ? larger(tiles, kMatrixPanelFloats + kMatrixProductFloats) : tiles;
}

struct JobPlan {
  Path path;
  std::int64_t input_at;                // bytes from the scratch's beginning
  std::int64_t first_unit, unit_count;  // of x to prepare; none when the job before has the same
  std::int64_t first_item, item_count, item_outputs;
  std::int64_t sum_stride;  // from one row of an item's sums to the next
};

inline bool is_terms(Path path) { return path == Path::terms || path == Path::rounded_terms; }

// body<Products, Terms>() as the job and its path want it.
template <int W, typename Body>
auto with_terms(const LinearJob& job, Path path, Body body) {
  using Nibbles = NibbleProducts<W>;
  using Bytes = ByteProducts<W, Dot<W>::kBytes>;
  const bool four = job.weight->format == WeightFormat::int4;
  if (path != Path::terms) return four ? body.template operator()<Nibbles, 1>() : body.template operator()<ByteProducts<W, true>, 1>();
  return four ? body.template operator()<Nibbles, kExactTerms<Nibbles>>() : body.template operator()<Bytes, kExactTerms<Bytes>>();
}

template <int W>
Path path_of(const LinearJob& job, bool integer) {
  const LinearWeight& weight = *job.weight;
  const std::int64_t rows = job.x.rows;
  if (!is_grouped(weight)) {
    if (kHasTiles && rows > kStreamRows && weight.format == WeightFormat::bf16) return Path::matrix_rows;
    if (rows <= kFloatStreamRows<W>) return Path::stream;
    return rows <= kFloatDotRows<W> ? Path::dots : Path::tiles;
  }
  const bool matrix = kHasTiles && weight.group % kTileDepth == 0;
  if (integer && Dot<W>::kRounded) return matrix && rows > kMatrixDotRows ? Path::matrix_dots : Path::rounded_terms;
  if (rows <= Dot<W>::kTermRows) return Path::terms;
  if (matrix && rows > kStreamRows) return Path::matrix_codes;
  return rows <= kStreamRows ? Path::stream : Path::tiles;
}

// Where everything of a call lies in the scratch: plans, prepared inputs, then each thread's own.
template <int W>
class LinearPlan {
 public:
  explicit LinearPlan(const LinearParams& p) : p_(p) {
    for (std::int64_t i = 0; i < p.job_count; ++i) outputs_ += p.jobs[i].weight->rows;
  }

  // Fills in the plans (where `plans` is not null) and the totals.
  void make(JobPlan* plans) {
    bytes_ = shares_at() + Shares::bytes(p_.threads);
    JobPlan before{};
    for (std::int64_t i = 0; i < p_.job_count; ++i) {
      const LinearJob& job = p_.jobs[i];
      JobPlan plan{path_of<W>(job, p_.integer), bytes_, units_, 0, items_, 0, 0, 0};
      plan.unit_count = is_matrix(plan.path) ? (job.x.rows + kTileRows - 1) / kTileRows : job.x.rows;
      if (i > 0 && same_input(p_.jobs[i - 1], before.path, job, plan.path)) {
        plan.input_at = before.input_at;
        plan.unit_count = 0;
      } else {
        bytes_ += padded(bytes_of_input(job, plan.path), 64);
        input_elements_ += job.x.rows * job.x.cols;
      }
      plan.item_outputs = item_outputs(job, plan.path);
      plan.sum_stride = sum_stride(plan);
      plan.item_count = job.x.rows == 0 ? 0 : (job.weight->rows + plan.item_outputs - 1) / plan.item_outputs;
      units_ += plan.unit_count;
      items_ += plan.item_count;
      products_ += job.x.rows * job.weight->rows * job.x.cols;
      sums_ = larger(sums_, padded(job.x.rows, kTileRows) * plan.sum_stride);
      if (plan.path == Path::dots) panel_ = larger(panel_, job.x.rows * DotTile<W>::kItemOutputs * W);
      if (plans != nullptr) plans[i] = plan;
      before = plan;
    }
  }

  std::int64_t units() const { return units_; }
  // Whether all threads should prepare x: then they have to wait for each other before the first item.
  bool prepares_together() const { return input_elements_ > kSharedInput; }
  std::int64_t items() const { return items_; }
  // Floats of a thread for weights on their way to the multipliers, or for the sums of dots before their lanes are added.
  std::int64_t panel() const { return panel_; }
  std::int64_t sums() const { return sums_; }
  int threads() const {
    const std::int64_t most = products_ < kParallelProducts ? 1 : larger(1, larger(items_, units_));
    return static_cast<int>(smaller(p_.threads, most));
  }

  char* shares_memory() const { return p_.scratch + shares_at(); }
  float* thread_memory(int thread) const { return reinterpret_cast<float*>(p_.scratch + bytes_ + thread * thread_bytes()); }
  std::int64_t bytes() const { return bytes_ + p_.threads * thread_bytes(); }

 private:
  std::int64_t shares_at() const { return padded(p_.job_count * static_cast<std::int64_t>(sizeof(JobPlan)), 64); }
  std::int64_t thread_bytes() const { return (panel_ + 2 * sums_) * 4; }

  static std::int64_t sum_stride(const JobPlan& plan) {
    if (plan.path == Path::dots) return DotTile<W>::kItemOutputs;
    return plan.item_outputs + (plan.path == Path::stream || is_terms(plan.path) ? 0 : kTileRows);
  }

  static bool same_input(const LinearJob& a, Path a_path, const LinearJob& b, Path b_path) {
    const bool same_x = a.x.data == b.x.data && a.x.rows == b.x.rows && a.x.stride == b.x.stride && a.norm.weight == b.norm.weight;
    if (!same_x || a_path != b_path || a.x.cols != b.x.cols) return false;
    if (a_path == Path::tiles || a_path == Path::matrix_rows) return true;
    if (a_path == Path::stream || a_path == Path::dots) return wants_pairs(*a.weight) == wants_pairs(*b.weight);
    return a.weight->group == b.weight->group && a.weight->format == b.weight->format;
  }

  static std::int64_t bytes_of_input(const LinearJob& job, Path path) {
    if (is_terms(path)) {
      return with_terms<W>(job, path, [&]<typename Products, int Terms>() { return TermInput<W, Products, Terms>(nullptr, job).bytes(); });
    }
    if (!is_matrix(path)) return input_bytes<W>(job, path);
    return terms_of(job, path) == 1 ? MatrixInput<1>(nullptr, job).bytes() : MatrixInput<3>(nullptr, job).bytes();
  }

  std::int64_t item_outputs(const LinearJob& job, Path path) const {
    if (path == Path::dots) {
      using D = DotTile<W>;
      const bool fits = job.x.cols * element_bytes(*job.weight) * D::kItemOutputs <= D::kItemBytes;
      return fits ? D::kItemOutputs : D::kItemOutputs / 2;
    }
    if (path == Path::tiles) {
      const std::int64_t by_share = padded((job.weight->rows + 4 * p_.threads - 1) / (4 * p_.threads), LinearTile<W>::kOutputs);
      return larger(LinearTile<W>::kOutputs, smaller(by_share, LinearTile<W>::kItemOutputs));
    }
    if (is_matrix(path)) {
      const std::int64_t by_share = padded((job.weight->rows + 4 * p_.threads - 1) / (4 * p_.threads), kMatrixOutputs);
      return larger(kMatrixOutputs, smaller(by_share, kMatrixItemOutputs));
    }
    const std::int64_t row_bytes = is_grouped(*job.weight) ? code_bytes(*job.weight, 1) : job.x.cols * 2;
    const std::int64_t by_size = padded(kItemBytes / larger(row_bytes, 1), is_terms(path) ? 4 * W : kPanelRows);
    const std::int64_t by_share = padded((outputs_ + 4 * p_.threads - 1) / (4 * p_.threads), kPanelRows);
    return larger(kPanelRows, smaller(smaller(by_size, by_share), 512));
  }

  const LinearParams& p_;
  std::int64_t outputs_ = 0, bytes_ = 0, units_ = 0, input_elements_ = 0, items_ = 0, products_ = 0, sums_ = 0;
  std::int64_t panel_ = panel_floats<W>();
};

// One job's part of a call: what an item does.
template <int W>
class LinearItem {
  using T = LinearTile<W>;

 public:
  LinearItem(const LinearJob& job, const JobPlan& plan, char* scratch, float* memory, std::int64_t panel, std::int64_t sums)
      : job_(job), plan_(plan), x_(scratch + plan.input_at), memory_(memory), panel_(panel), sums_(sums) {}

  void run(std::int64_t item) const {
    const std::int64_t first = item * plan_.item_outputs;
    const std::int64_t count = smaller(plan_.item_outputs, job_.weight->rows - first);
    float* sums = memory_ + panel_;
    float* gate_sums = job_.gate == nullptr ? nullptr : sums + sums_;
    const char* next_item = weight_row(*job_.weight, first + count);
    const char* next = job_.gate == nullptr ? next_item : weight_row(*job_.gate, first);
    multiply(*job_.weight, {first, count, sums, plan_.sum_stride, next});
    if (job_.gate != nullptr) multiply(*job_.gate, {first, count, gate_sums, plan_.sum_stride, next_item});
    for (std::int64_t row = 0; row < job_.x.rows; ++row) {
      const std::int64_t at = row * plan_.sum_stride;
      finish_row<W>(job_, row, first, count, sums + at, gate_sums == nullptr ? nullptr : gate_sums + at);
    }
  }

 private:
  void multiply(const LinearWeight& weight, const Outputs& out) const {
    const MatrixSums sums{out.first, out.count, out.values, out.stride};
    switch (plan_.path) {
      case Path::stream: return stream(weight, out);
      case Path::dots: return dots(weight, out);
      case Path::tiles: return TileMultiplier<W>(weight, job_.x.rows, x_, memory_).run(out.first, out.count, out.values, out.stride);
      case Path::terms:
      case Path::rounded_terms: return terms(weight, out);
      case Path::matrix_rows: return matrix_rows(weight, sums);
      case Path::matrix_codes: return matrix_codes(weight, sums);
      case Path::matrix_dots: return matrix<MatrixCodes<1, true>, 1>(weight, sums);
    }
  }

  void dots(const LinearWeight& weight, const Outputs& out) const {
    if constexpr (kFloatDotRows<W> > 0) {
      weight.format == WeightFormat::f32 ? DotMultiplier<W, float>(weight, job_.x.rows, x_, memory_).run(out)
                                         : DotMultiplier<W, bf16>(weight, job_.x.rows, x_, memory_).run(out);
    }
  }

  void matrix_rows(const LinearWeight& weight, const MatrixSums& out) const {
    terms_of(job_, plan_.path) == 1 ? matrix<MatrixRows<1>, 1>(weight, out) : matrix<MatrixRows<3>, 3>(weight, out);
  }

  void matrix_codes(const LinearWeight& weight, const MatrixSums& out) const {
    terms_of(job_, plan_.path) == 1 ? matrix<MatrixCodes<1, false>, 1>(weight, out)
                                    : matrix<MatrixCodes<3, false>, 3>(weight, out);
  }

  template <typename Multiplier, int Terms>
  void matrix(const LinearWeight& weight, const MatrixSums& out) const {
    if constexpr (kHasTiles) Multiplier(weight, MatrixInput<Terms>(x_, job_), memory_).run(out);
  }

  void stream(const LinearWeight& weight, const Outputs& out) const {
    constexpr std::int64_t kMost = W == 16 ? 6 : 4;
    const std::int64_t rows = job_.x.rows, tiles = (rows + kMost - 1) / kMost;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t first = tile * rows / tiles, count = (tile + 1) * rows / tiles - first;
      const auto* x = reinterpret_cast<const float*>(x_) + first * stream_stride<W>(job_.x.cols);
      const Outputs part{out.first, out.count, out.values + first * out.stride, out.stride, out.next};
      switch (count) {
        case 1: stream_rows<1>(weight, x, part); break;
        case 2: stream_rows<2>(weight, x, part); break;
        case 3: stream_rows<3>(weight, x, part); break;
        case 4: stream_rows<4>(weight, x, part); break;
        case 5: stream_floats<5>(weight, x, part); break;
        default: stream_floats<6>(weight, x, part);
      }
    }
  }

  template <int Rows>
  void stream_rows(const LinearWeight& weight, const float* x, const Outputs& out) const {
    if (is_grouped(weight)) {
      code_stream<W, Rows>(weight, x, stream_stride<W>(job_.x.cols), out);
    } else {
      stream_floats<Rows>(weight, x, out);
    }
  }

  template <int Rows>
  void stream_floats(const LinearWeight& weight, const float* x, const Outputs& out) const {
    const std::int64_t stride = stream_stride<W>(job_.x.cols);
    if (weight.format == WeightFormat::f32) {
      RowStream<W, Rows, float>(weight, x, stride).run(out);
    } else {
      RowStream<W, Rows, bf16>(weight, x, stride).run(out);
    }
  }

  void terms(const LinearWeight& weight, const Outputs& out) const {
    with_terms<W>(job_, plan_.path, [&]<typename Products, int Terms>() {
      const TermInput<W, Products, Terms> x(x_, job_);
      for (std::int64_t tile = 0; tile < x.tiles.count; ++tile) term_tile(weight, x, tile, out);
      for (std::int64_t r = 0; Terms > 1 && r < job_.x.rows; ++r) {
        if (!*x.is_finite(r)) code_stream<W, 1>(weight, x.floats(r), 0, {out.first, out.count, out.values + r * out.stride, 0, nullptr});
      }
    });
  }

  template <typename Products, int Terms>
  static void term_tile(const LinearWeight& weight, const TermInput<W, Products, Terms>& x, std::int64_t tile, Outputs out) {
    out.values += x.tiles.first(tile) * out.stride;
    switch (x.tiles.rows(tile)) {
      case 1: return TermStream<W, 1, Products, Terms>(weight, x, tile).run(out);
      case 2: return TermStream<W, 2, Products, Terms>(weight, x, tile).run(out);
      case 3: return TermStream<W, 3, Products, Terms>(weight, x, tile).run(out);
      case 4: return TermStream<W, 4, Products, Terms>(weight, x, tile).run(out);
      case 5:
        if constexpr (Terms == 1) return TermStream<W, 5, Products, Terms>(weight, x, tile).run(out);
        break;
      default:
        if constexpr (Terms == 1) return TermStream<W, 6, Products, Terms>(weight, x, tile).run(out);
    }
  }

  const LinearJob& job_;
  const JobPlan& plan_;
  char* x_;
  float* memory_;
  std::int64_t panel_, sums_;
};

// Rows of x that are best computed together: their sums stay in the second cache, and so does x on matrix tiles, which are
// faster than what lies behind it.
template <int W>
std::int64_t linear_rows(const LinearJob& job, bool integer) {
  constexpr std::int64_t kMost = 256, kLeast = 64, kTileBytesOfInput = 5 << 18;
  const Path path = path_of<W>(job, integer);
  if (!is_matrix(path)) return kMost;
  const std::int64_t fit = kTileBytesOfInput / larger(1, job.x.cols * 2 * terms_of(job, path)) / (2 * kTileRows) * (2 * kTileRows);
  return larger(kLeast, smaller(kMost, fit));
}

// One row of x, or 16.
template <int W>
void prepare_unit(const LinearJob& job, const JobPlan& plan, std::int64_t unit, char* scratch) {
  char* to = scratch + plan.input_at;
  if constexpr (kHasTiles) {
    if (is_matrix(plan.path)) {
      terms_of(job, plan.path) == 1 ? MatrixPreparer<1>(job, plan.path, to, unit).run()
                                    : MatrixPreparer<3>(job, plan.path, to, unit).run();
      return;
    }
  }
  if (is_terms(plan.path)) {
    return with_terms<W>(job, plan.path, [&]<typename Products, int Terms>() { TermPreparer<W, Products, Terms>(job, to, unit).run(); });
  }
  prepare_row<W>(job, plan.path, unit, to);
}

template <int W>
std::int64_t linear_scratch(const LinearParams& p) {
  LinearPlan<W> plan(p);
  plan.make(nullptr);
  return plan.bytes();
}

template <int W>
void linear(const LinearParams& p) {
  auto* plans = reinterpret_cast<JobPlan*>(p.scratch);
  LinearPlan<W> plan(p);
  plan.make(plans);
  const auto prepare = [&](std::int64_t unit) {
    std::int64_t job = 0;
    while (unit >= plans[job].first_unit + plans[job].unit_count) ++job;
    prepare_unit<W>(p.jobs[job], plans[job], unit - plans[job].first_unit, p.scratch);
  };
  const auto run = [&](std::int64_t item, int thread) {
    std::int64_t job = 0;
    while (item >= plans[job].first_item + plans[job].item_count) ++job;
    LinearItem<W>(p.jobs[job], plans[job], p.scratch, plan.thread_memory(thread), plan.panel(), plan.sums())
        .run(item - plans[job].first_item);
  };
  const bool alone = plan.threads() == 1, together = !alone && plan.prepares_together();
  for (std::int64_t unit = 0; !together && unit < plan.units(); ++unit) prepare(unit);
  if (alone) {
    for (std::int64_t item = 0; item < plan.items(); ++item) run(item, 0);
    return;
  }
  const Shares shares(plan.shares_memory(), plan.items(), plan.threads());
#pragma omp parallel num_threads(plan.threads())
  {
    if (together) {
#pragma omp for schedule(static)
      for (std::int64_t unit = 0; unit < plan.units(); ++unit) prepare(unit);
    }
    const int thread = omp_get_thread_num();
    shares.run(thread, [&](std::int64_t item) { run(item, thread); });
  }
}

}  // namespace latentkv::LATENTKV_ISA
