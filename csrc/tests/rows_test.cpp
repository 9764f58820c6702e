// RMSNorm and row writing.
#include "check.h"

namespace latentkv::test {
namespace {

// Below, at and beyond whole vectors of 4, 8 and 16.
constexpr std::int64_t kWidths[] = {1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 576, 577};
// Enough for the second thread in the widest case.
constexpr std::int64_t kManyRows = 130;

struct NormCase {
  std::int64_t rows, n;
  DType dtype, weight_dtype;
};

std::string name_of(const Isa& isa, const NormCase& c) {
  return std::string(isa.name) + " rms_norm n=" + std::to_string(c.n) + " " + test::name_of(c.dtype) + " weight " +
         test::name_of(c.weight_dtype);
}

void check_norm(const Isa& isa, const NormCase& c, Checks& checks) {
  const std::int64_t stride = c.n + 5, size = (c.rows - 1) * stride + c.n;
  const double eps = 1e-6;
  Random random(c.n);
  Numbers x(c.dtype, size), out(c.dtype, size);
  Numbers weight(c.weight_dtype, c.n);
  random.fill_rows(x, c.rows, c.n, stride);
  random.fill(weight);
  const auto matrix = [&](Numbers& numbers) { return Matrix{numbers.data(), c.dtype, c.rows, c.n, stride}; };
  RmsNormParams p{matrix(x), weight.data(), c.weight_dtype, static_cast<float>(eps), matrix(out)};
  isa.kernels->rms_norm(p);
  std::vector<double> want(size, kNan);
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const std::int64_t start = row * stride;
    double squares = 0;
    for (std::int64_t i = start; i < start + c.n; ++i) squares += x[i] * x[i];
    const double rms = std::sqrt(squares / c.n + eps);
    for (std::int64_t i = 0; i < c.n; ++i) want[start + i] = x[start + i] / rms * weight[i];
  }
  checks.close(name_of(isa, c), out, want);
}

}  // namespace

void test_rms_norm(const Isa& isa, Checks& checks) {
  for (const std::int64_t n : kWidths) {
    for (const DType dtype : kFloats) {
      for (const DType weight : kFloats) check_norm(isa, {n == 577 ? kManyRows : 3, n, dtype, weight}, checks);
    }
  }
}

void test_write_rows(const Isa& isa, Checks& checks) {
  const std::int64_t slots[] = {19, 0, 7, 3}, latent = 37, rope = 6, row = latent + rope, cache_rows = 20;
  for (const DType first : kFloats) {
    for (const DType second : kFloats) {
      for (const DType stored : kStored) {
        Random random(3);
        Numbers a(first, 3 * (latent + 2) + latent), b(second, 4 * rope), cache(stored, cache_rows * row);
        random.fill_rows(a, 4, latent, latent + 2);
        random.fill(b);
        const Matrix parts[] = {{a.data(), first, 4, latent, latent + 2}, {b.data(), second, 4, rope, rope}};
        isa.kernels->write_rows({parts, 2, slots, {cache.data(), stored, cache_rows, row, row}});
        Numbers want(stored, cache_rows * row);
        for (std::int64_t t = 0; t < 4; ++t) {
          for (std::int64_t i = 0; i < latent; ++i) want.set(slots[t] * row + i, a[t * (latent + 2) + i]);
          for (std::int64_t i = 0; i < rope; ++i) want.set(slots[t] * row + latent + i, b[t * rope + i]);
        }
        checks.close(std::string(isa.name) + " write_rows " + name_of(first) + "+" + name_of(second) + " as " +
                         name_of(stored),
                     cache, want.values());
      }
    }
  }
}

}  // namespace latentkv::test
