// Per-head matrix products.
#include "check.h"

namespace latentkv::test {
namespace {

struct Product {
  std::int64_t tokens, heads, in, out;
  DType x, w;
  bool columns;  // w [heads, in, out], otherwise [heads, out, in]
};

void check_product(const Isa& isa, const Product& c, Checks& checks) {
  const std::int64_t w_stride = (c.columns ? c.out : c.in) + 3, w_rows = c.columns ? c.in : c.out;
  Random random(c.in);
  Numbers x(c.x, c.tokens * c.heads * c.in), w(c.w, (c.heads * w_rows - 1) * w_stride + w_stride - 3);
  Numbers out(c.x, c.tokens * c.heads * c.out);
  random.fill(x);
  for (std::int64_t i = 0; i < c.heads * c.in * c.out; ++i) {
    w.set(i / (w_stride - 3) * w_stride + i % (w_stride - 3), random.next() / std::sqrt(static_cast<double>(c.in)));
  }
  std::vector<double> want(out.size());
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const std::int64_t row = i / c.out, head = row % c.heads, j = i % c.out;
    for (std::int64_t k = 0; k < c.in; ++k) {
      const std::int64_t at = c.columns ? (head * w_rows + k) * w_stride + j : (head * w_rows + j) * w_stride + k;
      want[i] += x[row * c.in + k] * w[at];
    }
  }
  ProjectParams p{};
  p.x = {x.data(), c.x, c.in, c.heads * c.in, c.in};
  p.tokens = c.tokens;
  p.heads = c.heads;
  p.out_width = c.out;
  p.w = w.data();
  p.w_dtype = c.w;
  p.w_head_stride = w_rows * w_stride;
  p.w_row_stride = w_stride;
  p.out = out.data();
  p.out_dtype = c.x;
  p.out_token_stride = c.heads * c.out;
  p.out_head_stride = c.out;
  p.threads = 2;
  std::vector<float> scratch(isa.kernels->project_scratch(p) * p.threads);
  p.scratch = scratch.data();
  (c.columns ? isa.kernels->project_columns : isa.kernels->project_rows)(p);
  checks.close(std::string(isa.name) + (c.columns ? " project_columns " : " project_rows ") + std::to_string(c.tokens) +
                   "x" + std::to_string(c.in) + " to " + std::to_string(c.out) + " " + name_of(c.x) + " by " +
                   name_of(c.w),
               out, want);
}

}  // namespace

void test_project(const Isa& isa, Checks& checks) {
  constexpr std::int64_t widths[][2] = {{128, 512}, {37, 50}, {5, 3}, {64, 17}, {9, 700}};
  for (const auto& [in, out] : widths) {
    // 65, 66 and 97: one, two and many after a full tile of 64.
    for (const std::int64_t tokens : {1, 3, 5, 16, 65, 66, 97}) {
      for (const DType x : kFloats) {
        for (const DType w : kFloats) {
          for (const bool columns : {false, true}) check_product(isa, {tokens, 3, in, out, x, w, columns}, checks);
        }
      }
    }
  }
}

}  // namespace latentkv::test
