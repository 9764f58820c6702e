// One chunk of context, or of a weight's rows: scores of packed queries against its rows, and sums of its rows by weights.
#pragma once

#include <omp.h>

#include "kernels/attention_partial.h"

namespace latentkv::LATENTKV_ISA {

template <int W>
class Chunk {
 public:
  static constexpr std::int64_t kTokens = kChunk;

  static std::int64_t floats(const AttentionParams&) { return kChunk * kStrip + kChunk * kRows + kRows; }

  Chunk(const AttentionParams& p, float* memory)
      : p_(p), strip_(memory), scores_(strip_ + kChunk * kStrip), shrink_(scores_ + kChunk * kRows) {}

  // [kChunk][kRows]: of a token and a row.
  float* scores() const { return scores_; }

  // From now on scores of one or two rows read in place stand in lines, [row][kChunk]. Only who asks for that looks there.
  void go_by_lines() { goes_by_lines_ = true; }

  // The last scores, if they do.
  float* lines() const { return is_few_ ? scores_ : nullptr; }

  // The same chunk, whose scores go elsewhere.
  Chunk with_scores(float* scores) const {
    Chunk other = *this;
    other.scores_ = scores;
    return other;
  }

  // Of each row, how many tokens of the context it sees; null where all see all of this chunk, which begins at `begin`.
  // What comes later than all rows of a tile see is not computed.
  void see(const std::int64_t* seen, std::int64_t begin) {
    seen_ = seen;
    begin_ = begin;
  }

  // [kRows]: what sums so far are to be multiplied with.
  float* shrink() const { return shrink_; }

  // Scores of `query` against `count` rows of T, whose keys are `width` elements from element `first` on.
  template <typename T>
  void dot(const PackedQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t first,
           std::int64_t width, Ahead& ahead) {
    is_few_ = kReadInPlace<T> && goes_by_lines_ && query.count() == 1 && query.begin()->vectors == 0 &&
              query.begin()->rows <= kFew;
    if constexpr (kReadInPlace<T>) {
      if (is_few_) return dot_lines<T>(query, rows, count, first, ahead);
    }
    clear_scores(query);
    ahead.spread(55, steps(query, width, count));
    dot_by_strips<T>(query, rows, count, first, width, ahead);
    if constexpr (kReadInPlace<T>) dot_narrow_panels<T>(query, rows, count, first, ahead);
  }

  // result = result * shrink + sum over rows of scores * values, the `width` elements from element `first` on.
  template <typename T>
  void sum(const Partial& result, std::int64_t row_count, const char* const* rows, std::int64_t count,
           std::int64_t first, std::int64_t width, Ahead& ahead) const {
    if constexpr (kReadInPlace<T>) {
      if (is_few_ && row_count == 1) return sum_direct_all<T, 1, 4>(result, rows, count, first, width, ahead);
      if (is_few_) return sum_direct_all<T, 2, 2>(result, rows, count, first, width, ahead);
    }
    ahead.spread(45, (row_count + Tile<W>::sum_rows - 1) / Tile<W>::sum_rows * result.strips * (kChunk / kStepTerms));
    for (std::int64_t d = 0; d < width; d += kStrip) {
      const float* values = strip<T>(rows, count, first + d, width - d < kStrip ? width - d : kStrip);
      sum_strip(values, result.at(0, d), row_count, count, ahead);
    }
  }

 private:
  // Few rows read these as they lie, and not from strips.
  template <typename T>
  static constexpr bool kReadInPlace = !kCoded<T> && !kExpanded<T>;

  static constexpr std::int64_t kFew = 2;

  void clear_scores(const PackedQuery<W>& query) const {
    const Panel& last = *(query.end() - 1);
    const std::int64_t lanes = round_up(last.first_row + last.rows, W);
    for (std::int64_t token = 0; token < kChunk; ++token) {
      for (std::int64_t row = 0; row < lanes; row += W) Simd<W>::store(scores_ + token * kRows + row, Simd<W>::zero());
    }
  }

  // How many of `count` tokens any of these rows sees.
  std::int64_t seen_by(std::int64_t first_row, std::int64_t rows, std::int64_t count) const {
    if (seen_ == nullptr) return count;
    std::int64_t most = 0;
    for (std::int64_t row = first_row; row < first_row + rows; ++row) {
      most = seen_[row] - begin_ > most ? seen_[row] - begin_ : most;
    }
    return most < count ? most : count;
  }

  static std::int64_t steps(const PackedQuery<W>& query, std::int64_t width, std::int64_t count) {
    std::int64_t steps = 0;
    for (const Panel& panel : query) {
      steps += round_up(count, tokens_of(panel)) / tokens_of(panel) * (panel.vectors == 0 ? 1 : kStrip / kStepColumns);
    }
    return steps * ((width + kStrip - 1) / kStrip);
  }

  static int tokens_of(const Panel& panel) {
    if (panel.vectors > 0) return panel.vectors == 2 ? Tile<W>::pair_tokens : Tile<W>::single_tokens;
    return kNarrowSums<W> / panel.rows;
  }

  // Strip by strip through one small buffer: a whole widened chunk would be written to the second-level cache and read
  // back, which takes longer than widening its values a second time.
  template <typename T>
  void dot_by_strips(const PackedQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t first,
                     std::int64_t width, Ahead& ahead) const {
    if (kReadInPlace<T> && query.begin()->vectors == 0) return;
    for (std::int64_t from = 0; from < width; from += kStrip) {
      const std::int64_t to = from + kStrip < width ? from + kStrip : width;
      const float* keys = strip<T>(rows, count, first + from, to - from);
      for (const Panel& panel : query) {
        if (panel.vectors == 0) {
          if constexpr (!kReadInPlace<T>) dot_narrow_strip(panel, query.stride(), keys, from, to, count, ahead);
          continue;
        }
        const std::int64_t seen = seen_by(panel.first_row, panel.rows, count);
        for (int i = 0; i < panel.range_count; ++i) {
          const Range range{from > panel.ranges[i].from ? from : panel.ranges[i].from,
                            to < panel.ranges[i].to ? to : panel.ranges[i].to};
          if (range.from < range.to) dot_panel(panel, keys, from, {range.from - from, range.to - from}, seen, ahead);
        }
      }
    }
  }

  // The columns `range` of the strip that starts at column `from`.
  void dot_panel(const Panel& panel, const float* keys, std::int64_t from, Range range, std::int64_t count,
                 Ahead& ahead) const {
    const int tokens = tokens_of(panel);
    const float* q = panel.q + from * panel.vectors * W;
    for (std::int64_t token = 0; token < count; token += tokens, keys += tokens * kStrip) {
      float* scores = scores_ + token * kRows + panel.first_row;
      if (panel.vectors == 2) {
        dot_wide<W, Tile<W>::pair_tokens, 2>(q, keys, range, scores, ahead);
      } else {
        dot_wide<W, Tile<W>::single_tokens, 1>(q, keys, range, scores, ahead);
      }
    }
  }

  template <typename T>
  void dot_narrow_panels(const PackedQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t first,
                         Ahead& ahead) const {
    if ((query.end() - 1)->vectors != 0) return;
    const T* keys[kChunk];
    find_keys(rows, count, first, keys);
    for (const Panel& panel : query) {
      if (panel.vectors == 0) dot_narrow_panel(panel, query.stride(), keys, count, ahead);
    }
  }

  template <typename T>
  void dot_lines(const PackedQuery<W>& query, const char* const* rows, std::int64_t count, std::int64_t first,
                 Ahead& ahead) const {
    const T* keys[kChunk];
    find_keys(rows, count, first, keys);
    const Panel& panel = *query.begin();
    const auto put = [&](std::int64_t token, std::int64_t row, const float* sums, std::int64_t tokens) {
      __builtin_memcpy(scores_ + row * kChunk + token, sums, tokens * sizeof(float));
    };
    if (panel.rows == 2) dot_narrow_rows<2>(panel, query.stride(), keys, count, ahead, put);
    if (panel.rows == 1) dot_narrow_rows<1>(panel, query.stride(), keys, count, ahead, put);
  }

  // Beyond `count` the last row again: tokens are taken several at once.
  template <typename T>
  static void find_keys(const char* const* rows, std::int64_t count, std::int64_t first, const T** keys) {
    for (std::int64_t t = 0; t < kChunk; ++t) {
      keys[t] = reinterpret_cast<const T*>(rows[t < count ? t : count - 1]) + first;
    }
  }

  template <typename T>
  void dot_narrow_panel(const Panel& panel, std::int64_t stride, const T* const* keys, std::int64_t count,
                        Ahead& ahead) const {
    const auto add = [&](std::int64_t token, std::int64_t row, const float* sums, std::int64_t tokens) {
      float* scores = scores_ + token * kRows + panel.first_row + row;
      for (std::int64_t t = 0; t < tokens; ++t) scores[t * kRows] += sums[t];
    };
    if (panel.rows == 4) dot_narrow_rows<4>(panel, stride, keys, count, ahead, add);
    if (panel.rows == 2) dot_narrow_rows<2>(panel, stride, keys, count, ahead, add);
    if (panel.rows == 1) dot_narrow_rows<1>(panel, stride, keys, count, ahead, add);
  }

  // put(first token, row, scores of that and the following tokens, their number).
  template <int Rows, typename T, typename Put>
  void dot_narrow_rows(const Panel& panel, std::int64_t stride, const T* const* keys, std::int64_t count, Ahead& ahead,
                       Put put) const {
    constexpr std::int64_t tokens = kNarrowSums<W> / Rows;
    for (std::int64_t t = 0; t < count; t += tokens) {
      float sums[kNarrowSums<W>];
      dot_direct<W, Rows, T>(panel.q, stride, keys + t, panel.ranges[0], sums, ahead);
#pragma GCC unroll 4
      for (std::int64_t row = 0; row < Rows; ++row) put(t, row, sums + row * tokens, tokens);
    }
  }

  // Where others read strips, narrow panels too read that of columns from ... to.
  void dot_narrow_strip(Panel panel, std::int64_t stride, const float* strip, std::int64_t from, std::int64_t to,
                        std::int64_t count, Ahead& ahead) const {
    const Range range = panel.ranges[0];
    panel.q += from;
    panel.ranges[0] = {range.from > from ? range.from - from : 0, (range.to < to ? range.to : to) - from};
    if (panel.ranges[0].from >= panel.ranges[0].to) return;
    const float* keys[kChunk];
    for (std::int64_t t = 0; t < kChunk; ++t) keys[t] = strip + (t < count ? t : count - 1) * kStrip;
    dot_narrow_panel(panel, stride, keys, count, ahead);
  }

  // `width` elements of each row from element `first` on.
  template <typename T>
  const float* strip(const char* const* rows, std::int64_t count, std::int64_t first, std::int64_t width) const {
    if constexpr (kExpanded<T>) return reinterpret_cast<const float*>(rows[0]) + first * kChunk;
    if constexpr (kInParts<T>) {
      widen_parts<W>(p_, rows, count, first, width, strip_);
    } else if constexpr (kCoded<T>) {
      widen_coded<W>(p_.codes, rows, count, first, width, strip_);
    } else if constexpr (!kExpanded<T>) {
      widen_rows<W, T>(rows, count, first, width, strip_);
    }
    return strip_;
  }

  void sum_strip(const float* values, float* out, std::int64_t row_count, std::int64_t count, Ahead& ahead) const {
    std::int64_t row = 0;
    for (; row + Tile<W>::sum_rows <= row_count; row += Tile<W>::sum_rows) {
      sum_rows<Tile<W>::sum_rows>(values, row, out, count, ahead);
    }
    switch (row_count - row) {
      case 5: return sum_rows<5>(values, row, out, count, ahead);
      case 4: return sum_rows<4>(values, row, out, count, ahead);
      case 3: return sum_rows<3>(values, row, out, count, ahead);
      case 2: return sum_rows<2>(values, row, out, count, ahead);
      case 1: return sum_rows<1>(values, row, out, count, ahead);
      default: return;
    }
  }

  // The fewer rows, the more columns at once, so that sums do not wait for each other.
  template <int Rows>
  void sum_rows(const float* values, std::int64_t row, float* out, std::int64_t count, Ahead& ahead) const {
    constexpr int most = kStrip / W;
    constexpr int wanted = Rows == 1 ? 8 : Rows == 2 ? 4 : Tile<W>::sum_vectors;
    constexpr int vectors = wanted < most ? wanted : most;
    const std::int64_t seen = seen_by(row, Rows, count);
    out += row * kStrip;
    for (std::int64_t d = 0; d < kStrip; d += vectors * W) {
      sum_tile<W, Rows, vectors>(scores_ + row, values + d, seen, shrink_ + row, out + d, ahead);
    }
  }

  template <typename T, int Rows, int Pairs>
  void sum_direct_all(const Partial& result, const char* const* rows, std::int64_t count, std::int64_t first,
                      std::int64_t width, Ahead& ahead) const {
    constexpr std::int64_t columns = Pairs * 2 * W;
    const T* values[kChunk];
    for (std::int64_t t = 0; t < count; ++t) values[t] = reinterpret_cast<const T*>(rows[t]) + first;
    ahead.spread(40, round_up(count, kStepTerms) / kStepTerms * ((width + columns - 1) / columns));
    std::int64_t d = 0;
    for (; d + columns <= width; d += columns) {
      sum_direct<W, Rows, Pairs, T>(scores_, values, d, count, shrink_, result.out, ahead);
    }
    for (; d < width; d += 2 * W) sum_direct<W, Rows, 1, T>(scores_, values, d, count, shrink_, result.out, ahead);
  }

  const AttentionParams& p_;
  float *strip_, *scores_, *shrink_;
  const std::int64_t* seen_ = nullptr;
  std::int64_t begin_ = 0;
  bool goes_by_lines_ = false, is_few_ = false;
};

}  // namespace latentkv::LATENTKV_ISA
