// The queries of one item, scaled and packed for the tiles that will read them.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

// Rows computed together: `vectors` of them in the lanes, or none (columns in the lanes).
struct Panel {
  std::int64_t first_row, rows;
  int vectors;
  Range ranges[2];  // the columns in which any of the rows has a query
  int range_count;
  float* q;  // [columns][vectors * W], or [rows][stride]
};

// Which token and head a row of an item is.
struct RowNames {
  std::int64_t query_start, query_len, first_row, first_head;

  std::int64_t token(std::int64_t row) const { return query_start + (first_row + row) % query_len; }
  std::int64_t head(std::int64_t row) const { return first_head + (first_row + row) / query_len; }
  bool operator==(const RowNames&) const = default;
};

// Where head `head`'s part `b` begins in a key.
inline std::int64_t b_column(const AttentionParams& p, std::int64_t head) {
  return p.key_width - (p.b_blocks - head * p.b_blocks / p.heads) * p.b.width;
}

// One row's query times `factor` as `columns` floats, zero where it has none.
template <int W>
void gather_query(const AttentionParams& p, const RowNames& names, std::int64_t row, float factor, float* to,
                  std::int64_t columns) {
  __builtin_memset(to, 0, columns * sizeof(float));
  const std::int64_t token = names.token(row), head = names.head(row);
  scale_part<W>(p.a, token, head, factor, to);
  if (p.b.width > 0) scale_part<W>(p.b, token, head, factor, to + b_column(p, head));
}

template <int W>
class PackedQuery {
  using S = Simd<W>;

 public:
  static std::int64_t stride(const AttentionParams& p) { return round_up(p.key_width, kStrip) + W; }
  static std::int64_t floats(const AttentionParams& p) { return (kRows + W) * stride(p); }

  PackedQuery(const AttentionParams& p, float* memory)
      : p_(p),
        stride_(stride(p)),
        can_go_narrow_(p.key_width % (2 * W) == 0 && p.value_width % (2 * W) == 0),
        q_(memory),
        lines_(memory + kRows * stride_) {}

  const Panel* begin() const { return panels_; }
  const Panel* end() const { return panels_ + count_; }
  std::int64_t count() const { return count_; }
  std::int64_t stride() const { return stride_; }

  // Rows in panels of two vectors, then one; few remaining rows would leave lanes empty and go narrow where that can be.
  void pack(const RowNames& names, std::int64_t row_count) {
    count_ = 0;
    for (std::int64_t row = 0; row < row_count;) {
      const std::int64_t left = row_count - row;
      const int vectors = left > W + W / 2 ? 2 : left > W / 2 || !can_go_narrow_ ? 1 : 0;
      const std::int64_t most = vectors > 0 ? vectors * W : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      Panel& panel = panels_[count_++];
      panel = {row, left < most ? left : most, vectors, {}, 0, q_ + row * stride_};
      find_columns(names, panel);
      vectors > 0 ? pack_wide(names, panel) : pack_narrow(names, panel);
      row += panel.rows;
    }
  }

 protected:
  // From column d on in the order in which rows of bf16 are read.
  void part_row(float* row, std::int64_t d) const {
    for (; d + 2 * W <= p_.key_width; d += 2 * W) {
      auto a = S::load(row + d), b = S::load(row + d + W);
      part<W>(a, b);
      S::store(row + d, a);
      S::store(row + d + W, b);
    }
  }

 private:
  // One range where vectors along the columns need it. All are whole pairs of vectors, up to the last column.
  void find_columns(const RowNames& names, Panel& panel) const {
    const Range a{0, whole_pairs(p_.a.width)};
    panel.range_count = 1;
    panel.ranges[0] = a;
    if (p_.b.width == 0) return;
    const Range b{b_column(p_, names.head(panel.first_row)) / (2 * W) * (2 * W),
                  whole_pairs(b_column(p_, names.head(panel.first_row + panel.rows - 1)) + p_.b.width)};
    if (a.to == 0) {
      panel.ranges[0] = b;
    } else if (b.from <= a.to || panel.vectors == 0) {
      panel.ranges[0] = {0, b.to};
    } else {
      panel.ranges[1] = b;
      panel.range_count = 2;
    }
  }

  std::int64_t whole_pairs(std::int64_t columns) const {
    const std::int64_t whole = round_up(columns, 2 * W);
    return whole < p_.key_width ? whole : p_.key_width;
  }

  void pack_row(const RowNames& names, std::int64_t row, float* to) const {
    gather_query<W>(p_, names, row, p_.scale_log2, to, stride_);
    if (p_.row_dtype == DType::bf16) part_row(to, 0);
  }

  void pack_narrow(const RowNames& names, const Panel& panel) const {
    for (std::int64_t row = 0; row < panel.rows; ++row) pack_row(names, panel.first_row + row, panel.q + row * stride_);
  }

  void pack_wide(const RowNames& names, const Panel& panel) const {
    for (int v = 0; v < panel.vectors; ++v) {
      for (int i = 0; i < W; ++i) {
        const std::int64_t row = v * W + i;
        float* line = lines_ + i * stride_;
        if (row < panel.rows) {
          pack_row(names, panel.first_row + row, line);
        } else {
          for (std::int64_t d = 0; d < stride_; d += W) S::store(line + d, S::zero());
        }
      }
      turn(panel.q + v * W, panel.vectors * W);
    }
  }

  // lines_ [W][columns] to columns of W lanes, `step` floats apart.
  void turn(float* to, std::int64_t step) const {
    for (std::int64_t d = 0; d < p_.key_width; d += W) {
      typename S::F square[W];
      for (int i = 0; i < W; ++i) square[i] = S::load(lines_ + i * stride_ + d);
      transpose<W>(square);
      const std::int64_t left = p_.key_width - d < W ? p_.key_width - d : W;
      for (int i = 0; i < left; ++i) S::store(to + (d + i) * step, square[i]);
    }
  }

  const AttentionParams& p_;
  const std::int64_t stride_;
  const bool can_go_narrow_;
  float *q_, *lines_;
  Panel panels_[kRows / W + 4];
  std::int64_t count_ = 0;
};

}  // namespace latentkv::LATENTKV_ISA
