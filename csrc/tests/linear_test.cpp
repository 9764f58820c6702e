// Linear maps: floats and whole numbers in groups with exact x against the tolerance of floats, rounded x against the bound of
// rounding.
#include "check.h"

namespace latentkv::test {
namespace {

struct Map {
  WeightFormat format;
  std::int64_t outputs, inputs, group;
  bool minima;
};

// Codes in the order of src/latentkv/ops/quantized.py, and the same weights as doubles.
class Codes {
 public:
  explicit Codes(const Map& m)
      : four_(m.format == WeightFormat::int4),
        panels_((m.outputs + kPanelRows - 1) / kPanelRows),
        bytes_(panels_ * kPanelRows * m.inputs / (four_ ? 2 : 1)),
        scales_(DType::f16, panels_ * kPanelRows * m.inputs / m.group),
        minima_(DType::f16, scales_.size()),
        dense(m.outputs * m.inputs) {
    Random random(m.inputs + m.group);
    // Weights of size 1 / sqrt(in), so that results are of size 1.
    const double size = 1.0 / std::sqrt(static_cast<double>(m.inputs));
    for (std::int64_t i = 0; i < scales_.size(); ++i) {
      scales_.set(i, size / (four_ ? 4.6 : 73.0) * std::fabs(random.next()));
      minima_.set(i, size * random.next());
    }
    for (std::int64_t n = 0; n < m.outputs; ++n) {
      for (std::int64_t k = 0; k < m.inputs; ++k) set(m, n, k, random.next());
    }
    weight = {m.format, m.outputs,   m.inputs,    bytes_.data(),   0, m.group, four_ ? 8 : 0,
              DType::f16, scales_.data(), m.minima ? minima_.data() : nullptr, nullptr, DType::f32};
  }

 private:
  void set(const Map& m, std::int64_t n, std::int64_t k, double number) {
    const std::int64_t panel = n / kPanelRows, row = n % kPanelRows, groups = m.inputs / m.group;
    const std::int64_t factor = (panel * groups + k / m.group) * kPanelRows + row;
    const int code = static_cast<int>(four_ ? 8 + 4.6 * number : 73 * number);
    if (four_) {
      std::uint8_t& both = bytes_[(panel * m.inputs / 8 + k / 8) * 64 + row * 4 + k % 4];
      both = static_cast<std::uint8_t>(both | code << (k % 8 < 4 ? 0 : 4));
    } else {
      bytes_[(panel * m.inputs / 4 + k / 4) * 64 + row * 4 + k % 4] = static_cast<std::uint8_t>(code);
    }
    dense[n * m.inputs + k] = scales_[factor] * (code - (four_ ? 8 : 0)) + (m.minima ? minima_[factor] : 0.0);
  }

  bool four_;
  std::int64_t panels_;
  std::vector<std::uint8_t> bytes_;
  Numbers scales_, minima_;

 public:
  std::vector<double> dense;
  LinearWeight weight;
};

// Whether products of int8 codes are added up in 16 bits: then the sum of two neighbours of x becomes 127, not one number.
bool adds_in_16_bits(const Isa& isa, const Map& m) {
  const std::string name = isa.name;
  return m.format == WeightFormat::int8 && (name == "avx2" || name == "avx2w16" || name == "avx2tile" || name == "avx512");
}

// What of each group becomes 127 times the sum of its |w|: what rounding may be off by, times 254.
double reach(const Map& m, bool pairs, const Numbers& x, std::int64_t row, const double* w) {
  double total = 0.0;
  for (std::int64_t k = 0; k < m.inputs; k += m.group) {
    double largest = 0.0, size = 0.0;
    for (std::int64_t i = k; i < k + m.group; ++i) {
      const double neighbour = pairs ? std::fabs(x[row * m.inputs + (i ^ 1)]) : 0.0;
      largest = std::fmax(largest, std::fabs(x[row * m.inputs + i]) + neighbour);
      size += std::fabs(w[i]);
    }
    total += largest * size;
  }
  return total;
}

void run(const Isa& isa, const LinearWeight& weight, std::int64_t rows, bool integer, Numbers& x, Numbers& out) {
  LinearJob job{};
  job.x = {x.data(), DType::f32, rows, weight.cols, weight.cols};
  job.weight = &weight;
  job.out = {out.data(), DType::f32, rows, weight.rows, weight.rows};
  job.factor = 1.0f;
  LinearParams p{&job, 1, integer, 2, nullptr};
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> scratch((isa.kernels->linear_scratch(p) + 63) / 64);
  p.scratch = scratch.data()->bytes;
  isa.kernels->linear(p);
}

void check_map(const Isa& isa, const Map& m, std::int64_t rows, bool integer, Checks& checks) {
  Codes codes(m);
  Random random(rows);
  Numbers x(DType::f32, rows * m.inputs), out(DType::f32, rows * m.outputs);
  random.fill(x);
  run(isa, codes.weight, rows, integer, x, out);
  const std::string what = std::string(isa.name) + (m.format == WeightFormat::int4 ? " int4" : " int8") + " group " +
                           std::to_string(m.group) + " rows " + std::to_string(rows) + (integer ? " rounded" : "");
  std::vector<double> want(out.size());
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const double* w = codes.dense.data() + i % m.outputs * m.inputs;
    for (std::int64_t k = 0; k < m.inputs; ++k) want[i] += x[i / m.outputs * m.inputs + k] * w[k];
    // Within the bound of rounding a result counts as what was wanted.
    const double bound = integer ? reach(m, adds_in_16_bits(isa, m), x, i / m.outputs, w) / 254 : 0.0;
    if (std::fabs(out[i] - want[i]) <= bound) want[i] = out[i];
  }
  checks.close(what, out, want);
}

// The last row of W ends where its memory ends.
void check_floats(const Isa& isa, DType dtype, std::int64_t outputs, std::int64_t inputs, std::int64_t rows, Checks& checks) {
  const std::int64_t stride = inputs + 3;
  Numbers w(dtype, (outputs - 1) * stride + inputs), x(DType::f32, rows * inputs), out(DType::f32, rows * outputs);
  Random random(inputs);
  random.fill(x);
  for (std::int64_t i = 0; i < w.size(); ++i) w.set(i, random.next() / std::sqrt(static_cast<double>(inputs)));
  LinearWeight weight{};
  weight.format = dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
  weight.rows = outputs;
  weight.cols = inputs;
  weight.data = w.data();
  weight.row_stride = stride;
  run(isa, weight, rows, false, x, out);
  std::vector<double> want(out.size());
  for (std::int64_t i = 0; i < out.size(); ++i) {
    for (std::int64_t k = 0; k < inputs; ++k) want[i] += x[i / outputs * inputs + k] * w[i % outputs * stride + k];
  }
  checks.close(std::string(isa.name) + " linear " + name_of(dtype) + " " + std::to_string(inputs) + " to " +
                   std::to_string(outputs) + " rows " + std::to_string(rows),
               out, want);
}

}  // namespace

void test_linear(const Isa& isa, Checks& checks) {
  constexpr Map maps[] = {{WeightFormat::int8, 17, 64, 16, false},  {WeightFormat::int8, 70, 640, 32, true},
                          {WeightFormat::int8, 33, 256, 128, false}, {WeightFormat::int4, 17, 64, 16, false},
                          {WeightFormat::int4, 70, 640, 32, true},  {WeightFormat::int4, 33, 256, 128, false}};
  for (const Map& map : maps) {
    for (const std::int64_t rows : {1, 2, 4, 5, 7, 20}) {
      for (const bool integer : {false, true}) check_map(isa, map, rows, integer, checks);
    }
  }
  for (const DType dtype : kFloats) {
    for (const std::int64_t rows : {1, 4, 5, 7, 16, 23, 48, 50}) {
      check_floats(isa, dtype, 70, 531, rows, checks);
      check_floats(isa, dtype, 5, 9, rows, checks);
    }
  }
}

}  // namespace latentkv::test
