// Rotated queries and written latent rows.
#include "check.h"

namespace latentkv::test {
namespace {

constexpr double kEps = 1e-6;
constexpr std::int64_t kPairs[] = {1, 2, 3, 5, 8, 11, 16, 17, 24, 32, 37};

struct RopeCase {
  std::int64_t tokens, heads, nope, pairs, groups;
  DType dtype, weight_dtype;
  bool normed, interleaved;
};

std::string name_of(const Isa& isa, const char* op, const RopeCase& c) {
  return std::string(isa.name) + " " + op + " pairs=" + std::to_string(c.pairs) + " groups=" +
         std::to_string(c.groups) + " " + test::name_of(c.dtype) + (c.normed ? " normed by " : "") +
         (c.normed ? test::name_of(c.weight_dtype) : "") + (c.interleaved ? " interleaved" : " halves");
}

// Cosine and sine of every token, in one array [T, 2, pairs of all groups].
struct Turns {
  std::int64_t pairs;
  Numbers numbers;

  Turns(std::int64_t tokens, std::int64_t all_pairs) : pairs(all_pairs), numbers(DType::f32, tokens * 2 * all_pairs) {
    for (std::int64_t i = 0; i < tokens * pairs; ++i) {
      const double angle = 0.37 * static_cast<double>(i) - 9.0;
      numbers.set(i / pairs * 2 * pairs + i % pairs, 1.1 * std::cos(angle));
      numbers.set(i / pairs * 2 * pairs + pairs + i % pairs, 1.1 * std::sin(angle));
    }
  }

  AngleTable table() {
    const auto* cos = static_cast<const float*>(numbers.data());
    return {cos, cos + pairs, pairs, 2 * pairs, 2 * pairs};
  }

  double cos(std::int64_t token, std::int64_t pair) const { return numbers[token * 2 * pairs + pair]; }
  double sin(std::int64_t token, std::int64_t pair) const { return numbers[token * 2 * pairs + pairs + pair]; }
};

// x[0 ... n), normed when there is a weight.
std::vector<double> normed(const Numbers& x, std::int64_t start, std::int64_t n, const Numbers* weight) {
  std::vector<double> row(n);
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += x[start + i] * x[start + i];
  const double rms = std::sqrt(squares / static_cast<double>(n) + kEps);
  for (std::int64_t i = 0; i < n; ++i) row[i] = weight == nullptr ? x[start + i] : x[start + i] / rms * (*weight)[i];
  return row;
}

void rotate(std::vector<double>& row, const Turns& turns, std::int64_t token, std::int64_t first, bool interleaved) {
  const std::int64_t pairs = static_cast<std::int64_t>(row.size()) / 2;
  for (std::int64_t i = 0; i < pairs; ++i) {
    double& a = row[interleaved ? 2 * i : i];
    double& b = row[interleaved ? 2 * i + 1 : pairs + i];
    const double cos = turns.cos(token, first + i), sin = turns.sin(token, first + i), before = a;
    a = before * cos - b * sin;
    b = b * cos + before * sin;
  }
}

void check_query(const Isa& isa, const RopeCase& c, Checks& checks) {
  const std::int64_t width = c.nope + 2 * c.pairs, head_stride = width + 1, token_stride = c.heads * head_stride + 2;
  Random random(c.pairs);
  Numbers query(c.dtype, (c.tokens - 1) * token_stride + (c.heads - 1) * head_stride + width);
  Numbers weight(c.weight_dtype, 2 * c.pairs);
  for (std::int64_t i = 0; i < c.tokens * c.heads * width; ++i) {
    const std::int64_t head = i / width;
    query.set(head / c.heads * token_stride + head % c.heads * head_stride + i % width, random.next());
  }
  random.fill(weight);
  Turns turns(c.tokens, c.groups * c.pairs);
  std::vector<double> want = query.values();
  for (std::int64_t i = 0; i < c.tokens * c.heads; ++i) {
    const std::int64_t token = i / c.heads, head = i % c.heads;
    const std::int64_t start = token * token_stride + head * head_stride + c.nope;
    std::vector<double> row = normed(query, start, 2 * c.pairs, c.normed ? &weight : nullptr);
    rotate(row, turns, token, head * c.groups / c.heads * c.pairs, c.interleaved);
    for (std::int64_t d = 0; d < 2 * c.pairs; ++d) want[start + d] = row[d];
  }
  isa.kernels->rotate_query({query.data(), c.dtype, c.tokens, c.heads, c.nope, c.groups, token_stride, head_stride,
                             {c.normed ? weight.data() : nullptr, c.weight_dtype, static_cast<float>(kEps)},
                             turns.table(), c.interleaved});
  checks.close(name_of(isa, "rotate_query", c), query, want);
}

// `nope` is the latent's width here and `heads` is not used.
void check_latent(const Isa& isa, const RopeCase& c, DType stored, Checks& checks) {
  const std::int64_t rope = c.groups * 2 * c.pairs, row = c.nope + rope, stride = row + 3, cache_rows = c.tokens + 3;
  Random random(c.pairs + 100);
  Numbers kv(c.dtype, (c.tokens - 1) * stride + row), cache(stored, cache_rows * row);
  Numbers latent_weight(c.weight_dtype, c.nope), rope_weight(c.weight_dtype, 2 * c.pairs);
  random.fill_rows(kv, c.tokens, row, stride);
  random.fill(latent_weight);
  random.fill(rope_weight);
  Turns turns(c.tokens, c.groups * c.pairs);
  std::vector<std::int64_t> slots(c.tokens);
  std::vector<double> want(cache_rows * row, kNan);
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    slots[t] = cache_rows - 2 - t;
    const std::vector<double> latent = normed(kv, t * stride, c.nope, c.normed ? &latent_weight : nullptr);
    for (std::int64_t d = 0; d < c.nope; ++d) want[slots[t] * row + d] = latent[d];
    for (std::int64_t g = 0; g < c.groups; ++g) {
      const std::int64_t start = c.nope + g * 2 * c.pairs;
      std::vector<double> block = normed(kv, t * stride + start, 2 * c.pairs, c.normed ? &rope_weight : nullptr);
      rotate(block, turns, t, g * c.pairs, c.interleaved);
      for (std::int64_t d = 0; d < 2 * c.pairs; ++d) want[slots[t] * row + start + d] = block[d];
    }
  }
  const auto norm = [&](Numbers& weight) {
    return Norm{c.normed ? weight.data() : nullptr, c.weight_dtype, static_cast<float>(kEps)};
  };
  isa.kernels->write_latent({{kv.data(), c.dtype, c.tokens, row, stride}, c.nope, c.groups, norm(latent_weight),
                             norm(rope_weight), turns.table(), c.interleaved, slots.data(),
                             {cache.data(), stored, cache_rows, row, row}});
  checks.close(name_of(isa, "write_latent", c) + " as " + test::name_of(stored), cache, want);
}

// `body` for every dtype, norm and pairing.
template <typename Body>
void for_each_kind(RopeCase c, Body body) {
  for (const DType dtype : kFloats) {
    for (const bool interleaved : {false, true}) {
      c.dtype = dtype;
      c.interleaved = interleaved;
      c.normed = false;
      body(c);
      c.normed = true;
      for (const DType weight : kFloats) {
        c.weight_dtype = weight;
        body(c);
      }
    }
  }
}

}  // namespace

void test_rotate_query(const Isa& isa, Checks& checks) {
  const auto check = [&](const RopeCase& c) { check_query(isa, c, checks); };
  for (const std::int64_t pairs : kPairs) {
    for_each_kind({3, 4, 7, pairs, 2, {}, DType::f32, false, false}, check);
    for_each_kind({2, 3, 0, pairs, 1, {}, DType::f32, false, false}, check);
  }
  for_each_kind({150, 16, 8, 32, 1, {}, DType::f32, false, false}, check);
}

void test_write_latent(const Isa& isa, Checks& checks) {
  const auto check = [&](const RopeCase& c) {
    for (const DType stored : kStored) check_latent(isa, c, stored, checks);
  };
  for (const std::int64_t pairs : kPairs) {
    for_each_kind({4, 1, 37, pairs, 1, {}, DType::f32, false, false}, check);
    for_each_kind({4, 1, 0, pairs, 3, {}, DType::f32, false, false}, check);
  }
  for_each_kind({2, 1, 16, 0, 1, {}, DType::f32, false, false}, check);
  for_each_kind({150, 1, 512, 32, 1, {}, DType::f32, false, false}, check);
}

}  // namespace latentkv::test
