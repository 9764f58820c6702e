// Keys and values in codes: rows as they are written, and attention over them, against what their bytes stand for.
#include <algorithm>

#include "check.h"

namespace latentkv::test {
namespace {

constexpr std::int64_t kPageTokens = 16, kContext = 70, kNewTokens = 3, kPages = 6;
constexpr std::int32_t kTable[] = {4, 0, 5, 2, 1, std::numeric_limits<std::int32_t>::max()};
constexpr double kLog2E = 1.4426950408889634;

struct Coding {
  const char* name;
  CodeFormat format;
  std::int64_t group;
  double half_step;  // how far from its number a code may be, in scales
};

constexpr Coding kCodings[] = {{"int8", CodeFormat::int8, 128, 0.5}, {"int4", CodeFormat::int4, 64, 1.0}};

// Groups that begin with 64 codes, within them, and scales within a key.
struct Sizes {
  std::int64_t heads, groups, key, value;
};

constexpr Sizes kSizes[] = {{6, 2, 20, 24}, {3, 1, 64, 64}, {9, 3, 64, 64}, {4, 2, 80, 72}, {2, 1, 160, 130}, {70, 2, 32, 40}};

std::int64_t up(std::int64_t bytes) { return (bytes + 3) / 4 * 4; }

CodedPart part_of(const Coding& coding, std::int64_t width, std::int64_t begin) {
  const bool packed = coding.format == CodeFormat::int4;
  const std::int64_t scales = up(packed ? (width + 63) / 64 * 32 : width);
  const std::int64_t end = up(scales + (width + coding.group - 1) / coding.group * (packed ? 2 : 4));
  return {{coding.format, width, coding.group, packed, scales, end, end}, begin};
}

// Element i of a part of a row, and the scale it has.
double number(const CodedPart& part, const std::uint8_t* row, std::int64_t i, double& scale) {
  const std::uint8_t* codes = row + part.begin;
  if (part.codes.short_scales) {
    std::uint16_t half;
    std::memcpy(&half, codes + part.codes.scale_offset + i / part.codes.group * 2, sizeof half);
    scale = from_bf16(half);
    return scale * (2 * (codes[i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15) - 15);
  }
  float wide;
  std::memcpy(&wide, codes + part.codes.scale_offset + i / part.codes.group * 4, sizeof wide);
  scale = wide;
  return scale * static_cast<std::int8_t>(codes[i]);
}

// A context in pages: written by the kernel; all other rows are bytes of ones, whose scales are NaN.
struct Rows {
  CodedPart parts[2];
  std::int64_t row_bytes, key_width, value_width;
  std::vector<std::uint8_t> bytes;
  Numbers keys, values;

  Rows(const Isa& isa, const Sizes& s, const Coding& coding)
      : key_width(s.groups * s.key),
        value_width(s.groups * s.value),
        keys(DType::f32, kContext * key_width),
        values(DType::bf16, kContext * value_width) {
    parts[0] = part_of(coding, key_width, 0);
    parts[1] = part_of(coding, value_width, parts[0].codes.row_bytes);
    row_bytes = parts[1].begin + parts[1].codes.row_bytes;
    bytes.assign(kPages * kPageTokens * row_bytes, 0xff);
    Random random(s.key);
    random.fill(keys);
    random.fill(values);
    std::vector<std::int64_t> slots;
    for (std::int64_t t = 0; t < kContext; ++t) slots.push_back(kTable[t / kPageTokens] * kPageTokens + t % kPageTokens);
    const Matrix matrices[] = {{keys.data(), DType::f32, kContext, key_width, key_width},
                               {values.data(), DType::bf16, kContext, value_width, value_width}};
    const Matrix cache{bytes.data(), DType::u8, kPages * kPageTokens, row_bytes, row_bytes};
    isa.kernels->write_rows({matrices, 2, slots.data(), cache, parts});
  }

  double at(int part, std::int64_t token, std::int64_t i, double& scale) const {
    const std::int64_t row = kTable[token / kPageTokens] * kPageTokens + token % kPageTokens;
    return number(parts[part], bytes.data() + row * row_bytes, i, scale);
  }

  double at(int part, std::int64_t token, std::int64_t i) const {
    double scale;
    return at(part, token, i, scale);
  }
};

// Every number within half a step of what was given; in units of that half step.
void check_written(const Rows& rows, const Coding& coding, const std::string& name, Checks& checks) {
  for (int part = 0; part < 2; ++part) {
    const Numbers& given = part == 0 ? rows.keys : rows.values;
    const std::int64_t width = part == 0 ? rows.key_width : rows.value_width;
    Numbers excess(DType::f32, given.size());
    for (std::int64_t i = 0; i < given.size(); ++i) {
      double scale;
      const double off = std::abs(rows.at(part, i / width, i % width, scale) - given[i]);
      excess.set(i, std::fmax(0.0, off / (coding.half_step * scale) - 1.0));
    }
    checks.close(name + (part == 0 ? " keys" : " values"), excess, std::vector<double>(given.size()));
  }
}

struct Wanted {
  std::vector<double> out, lse;
};

void want_row(const Sizes& s, const Rows& rows, const Numbers& query, std::int64_t token, std::int64_t head, Wanted& want) {
  const std::int64_t seen = kContext - (kNewTokens - 1 - token), group = head * s.groups / s.heads, index = token * s.heads + head;
  std::vector<double> scores(seen), sum(s.value);
  for (std::int64_t t = 0; t < seen; ++t) {
    for (std::int64_t d = 0; d < s.key; ++d) scores[t] += query[index * s.key + d] * rows.at(0, t, group * s.key + d);
    scores[t] /= std::sqrt(static_cast<double>(s.key));
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (std::int64_t t = 0; t < seen; ++t) {
    const double weight = std::exp(scores[t] - top);
    total += weight;
    for (std::int64_t d = 0; d < s.value; ++d) sum[d] += weight * rows.at(1, t, group * s.value + d);
  }
  for (std::int64_t d = 0; d < s.value; ++d) want.out[index * s.value + d] = sum[d] / total;
  want.lse[index] = top + std::log(total);
}

AttentionParams params_of(const Sizes& s, const Rows& rows, Numbers& query, Numbers& out, Numbers& lse) {
  AttentionParams p{};
  p.a = {query.data(), query.dtype(), s.key, s.heads * s.key, s.key};
  p.heads = s.heads;
  p.groups = s.groups;
  p.b_blocks = 1;
  p.rows = rows.bytes.data();
  p.row_dtype = DType::u8;
  p.codes = rows.parts[0].codes;
  p.values = rows.parts[1];
  p.integer = true;
  p.page_tokens = kPageTokens;
  p.page_stride = kPageTokens * rows.row_bytes;
  p.row_stride = rows.row_bytes;
  p.key_width = p.key_step = s.key;
  p.value_width = p.value_step = s.value;
  p.value_offset = rows.key_width;
  p.page_table = kTable;
  p.scale_log2 = static_cast<float>(kLog2E / std::sqrt(static_cast<double>(s.key)));
  p.causal = true;
  p.threads = 2;
  set_results(p, out, lse, s.value);
  return p;
}

void check_rows(const Isa& isa, const Sizes& s, const Coding& coding, DType dtype, Checks& checks) {
  const std::string name = std::string(isa.name) + " keys and values of " + coding.name + " " + std::to_string(s.heads) + "/" +
                           std::to_string(s.groups) + " heads " + std::to_string(s.key) + "/" + std::to_string(s.value);
  const Rows rows(isa, s, coding);
  check_written(rows, coding, name, checks);
  Numbers query(dtype, kNewTokens * s.heads * s.key), out(DType::f32, kNewTokens * s.heads * s.value),
      lse(DType::f32, kNewTokens * s.heads);
  Random(7).fill(query);
  const AttentionSequence sequence{0, kNewTokens, kContext};
  std::vector<AttentionItem> items;
  const std::int64_t group_rows = s.heads / s.groups * kNewTokens;
  for (std::int64_t group = 0; group < s.groups; ++group) {
    for (std::int64_t first = 0; first < group_rows; first += 64) {
      items.push_back({0, group, first, std::min<std::int64_t>(64, group_rows - first), 0, kContext, -1, -1});
    }
  }
  AttentionParams p = params_of(s, rows, query, out, lse);
  p.sequences = &sequence;
  p.items = items.data();
  p.item_count = static_cast<std::int64_t>(items.size());
  std::vector<float> scratch(isa.kernels->attention_scratch(p) * p.threads, std::nanf(""));
  p.scratch = scratch.data();
  isa.kernels->attention(p);
  Wanted want{std::vector<double>(out.size()), std::vector<double>(lse.size())};
  for (std::int64_t token = 0; token < kNewTokens; ++token) {
    for (std::int64_t head = 0; head < s.heads; ++head) want_row(s, rows, query, token, head, want);
  }
  checks.close(name + " query " + name_of(dtype), out, want.out);
  checks.close(name + " lse", lse, want.lse);
}

}  // namespace

void test_coded_rows(const Isa& isa, Checks& checks) {
  for (const Sizes& sizes : kSizes) {
    for (const Coding& coding : kCodings) {
      for (const DType dtype : kFloats) check_rows(isa, sizes, coding, dtype, checks);
    }
  }
}

}  // namespace latentkv::test
