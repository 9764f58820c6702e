// What the kernel tests share: arrays of the kernels' types that are read and written as doubles, and the comparison.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "dispatch.h"

namespace latentkv::test {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr DType kFloats[] = {DType::f32, DType::bf16};
constexpr DType kStored[] = {DType::f32, DType::bf16, DType::f16};

inline const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "f32" : dtype == DType::bf16 ? "bf16" : "f16";
}

// To nearest, ties to even.
inline std::uint16_t bf16_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest, ties to even: the steps are 2**-24 and grow with the number from 2**-14 on.
inline std::uint16_t f16_bits(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  if (std::isnan(value)) return sign | 0x7e00u;
  const int exponent = std::fabs(value) < 0x1p-14f ? -14 : std::ilogb(value);
  const double steps = std::nearbyint(std::ldexp(std::fabs(static_cast<double>(value)), 10 - exponent));
  const double bits = exponent > 15 ? 0x7c00 : std::fmin(steps + (exponent + 14) * 1024.0, 0x7c00);
  return sign | static_cast<std::uint16_t>(bits);
}

inline float from_f16(std::uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float number = exponent == 31 && fraction != 0 ? std::nanf("")
                       : exponent == 31                ? std::numeric_limits<float>::infinity()
                       : exponent == 0                 ? std::ldexp(static_cast<float>(fraction), -24)
                                                       : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return half & 0x8000u ? -number : number;
}

// `size` numbers, NaN until they are set. On the heap and not one too many, for the address sanitizer.
class Numbers {
 public:
  Numbers(DType dtype, std::int64_t size) : dtype_(dtype), size_(size) {
    dtype == DType::f32 ? wide_.resize(size) : narrow_.resize(size);
    for (std::int64_t i = 0; i < size; ++i) set(i, kNan);
  }

  DType dtype() const { return dtype_; }
  std::int64_t size() const { return size_; }
  void* data() { return dtype_ == DType::f32 ? static_cast<void*>(wide_.data()) : narrow_.data(); }
  double operator[](std::int64_t i) const {
    return dtype_ == DType::f32 ? wide_[i] : dtype_ == DType::bf16 ? from_bf16(narrow_[i]) : from_f16(narrow_[i]);
  }

  void set(std::int64_t i, double value) {
    const auto rounded = static_cast<float>(value);
    if (dtype_ == DType::f32) {
      wide_[i] = rounded;
    } else {
      narrow_[i] = dtype_ == DType::bf16 ? bf16_bits(rounded) : f16_bits(rounded);
    }
  }

  std::vector<double> values() const {
    std::vector<double> all(size_);
    for (std::int64_t i = 0; i < size_; ++i) all[i] = (*this)[i];
    return all;
  }

 private:
  DType dtype_;
  std::int64_t size_;
  std::vector<float> wide_;
  std::vector<std::uint16_t> narrow_;
};

// Where attention leaves its results: out [tokens, heads, width] and lse [tokens, heads].
inline void set_results(AttentionParams& p, Numbers& out, Numbers& lse, std::int64_t width) {
  p.out = out.data();
  p.out_dtype = out.dtype();
  p.out_token_stride = p.heads * width;
  p.out_head_stride = width;
  p.lse = static_cast<float*>(lse.data());
}

// Numbers of variance 1, evenly spread, the same in every run.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}

  double next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (static_cast<double>(state_ >> 11) * 0x1p-52 - 1.0) * std::sqrt(3.0);
  }

  void fill(Numbers& numbers) {
    for (std::int64_t i = 0; i < numbers.size(); ++i) numbers.set(i, next());
  }

  // [rows, cols], what lies between the rows stays NaN.
  void fill_rows(Numbers& numbers, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    for (std::int64_t i = 0; i < rows * cols; ++i) numbers.set(i / cols * stride + i % cols, next());
  }

 private:
  std::uint64_t state_;
};

// Counts what was compared and what failed, and prints the first element of each failure.
class Checks {
 public:
  int done = 0, failed = 0;

  // Every element, NaN where NaN is wanted: so nothing else was written either. Sums in float32 are off by 1e-5 at most
  // (tests/support/compare.py derives it); rounding to bfloat16 adds half a step, 2**-8 of the number or less,
  // and to float16 2**-11.
  void close(const std::string& what, const Numbers& got, const std::vector<double>& want, double within = 1e-5) {
    const double step = got.dtype() == DType::f32 ? 0.0 : got.dtype() == DType::bf16 ? 0x1p-8 : 0x1p-11;
    ++done;
    for (std::int64_t i = 0; i < got.size(); ++i) {
      const bool same = got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]));
      if (same || std::abs(got[i] - want[i]) <= within * std::fmax(1.0, std::abs(want[i])) + step * std::abs(want[i])) {
        continue;
      }
      ++failed;
      std::printf("FAILED %s: element %lld: expected %.9g, got %.9g\n", what.c_str(), static_cast<long long>(i),
                  want[i], got[i]);
      return;
    }
  }
};

void test_rms_norm(const Isa& isa, Checks& checks);
void test_write_rows(const Isa& isa, Checks& checks);
void test_rotate_query(const Isa& isa, Checks& checks);
void test_write_latent(const Isa& isa, Checks& checks);
void test_project(const Isa& isa, Checks& checks);
void test_attention(const Isa& isa, Checks& checks);
void test_head_form(const Isa& isa, Checks& checks);
void test_linear(const Isa& isa, Checks& checks);
void test_attention_codes(const Isa& isa, Checks& checks);
void test_coded_rows(const Isa& isa, Checks& checks);

}  // namespace latentkv::test
