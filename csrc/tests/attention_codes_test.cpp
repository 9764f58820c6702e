// Attention over rows of codes of every format: any byte, scales of zero, contexts that end within pages, NaN in all that must
// not be read; by integers and by float32.
#include <algorithm>

#include "check.h"

namespace latentkv::test {
namespace {

constexpr std::int64_t kPageTokens = 16, kTokens = 8, kTablePages = 14;
constexpr double kLog2E = 1.4426950408889634;
constexpr AttentionSequence kSequences[] = {{0, 1, 1}, {1, 1, 200}, {2, 0, 0}, {2, 3, 50}, {5, 2, 193}, {7, 1, 16}};

struct Coding {
  const char* name;
  CodeFormat format;
  std::int64_t group;
  bool short_scales;
  double unit;    // what a scale is near to, so that elements are of order 1
  double within;  // how far products of integers may be off: tests/support/compare.py derives it
};

constexpr Coding kCodings[] = {{"fp8", CodeFormat::fp8, 128, false, 1.0 / 100, 3.6e-3},
                               {"int8", CodeFormat::int8, 128, false, 1.0 / 64, 3e-4},
                               {"int6", CodeFormat::int6, 64, true, 1.0 / 32, 3e-4},
                               {"int4", CodeFormat::int4, 64, true, 1.0 / 8, 3e-4}};

struct Sizes {
  std::int64_t heads, latent, rope, blocks;
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(latent + rope)); }
};

constexpr Sizes kSizes[] = {{16, 512, 64, 1}, {3, 64, 32, 1}, {1, 192, 32, 1}, {2, 128, 32, 1},
                            {70, 64, 32, 1},  {6, 192, 16, 2}, {5, 100, 12, 1}, {20, 256, 0, 1}};

// Rows of random bytes, and what they stand for.
class Rows {
 public:
  Rows(const Sizes& s, const Coding& coding, Random& random) : sizes_(s), coding_(coding) {
    const std::int64_t units = (s.latent + 63) / 64, groups = (s.latent + coding.group - 1) / coding.group;
    const bool packed = coding.short_scales;
    const std::int64_t code_bytes = !packed ? s.latent : units * (coding.format == CodeFormat::int6 ? 48 : 32);
    codes_ = {coding.format, s.latent, coding.group, coding.short_scales, up(code_bytes), 0, 0};
    codes_.rope_offset = up(codes_.scale_offset + groups * (packed ? 2 : 4));
    codes_.row_bytes = up(codes_.rope_offset + 2 * s.rope);
    table_.assign(std::size(kSequences) * kTablePages, std::numeric_limits<std::int32_t>::max());
    bytes_.assign(table_.size() * kPageTokens * codes_.row_bytes, 0xff);  // scales and RoPE parts of which are NaN
    numbers_.assign(table_.size() * kPageTokens * (s.latent + s.rope), kNan);
    for (std::size_t i = 0; i < std::size(kSequences); ++i) {
      for (std::int64_t token = 0; token < kSequences[i].context_len; ++token) {
        const std::int64_t index = i * kTablePages + token / kPageTokens;
        table_[index] = static_cast<std::int32_t>(table_.size() - 1 - index);
        fill(row(i, token), random);
      }
    }
  }

  const RowCodes& codes() const { return codes_; }
  const std::uint8_t* data() const { return bytes_.data(); }
  const std::int32_t* table() const { return table_.data(); }

  std::int64_t row(std::size_t sequence, std::int64_t token) const {
    return table_[sequence * kTablePages + token / kPageTokens] * kPageTokens + token % kPageTokens;
  }

  const double* numbers(std::int64_t row) const { return numbers_.data() + row * (sizes_.latent + sizes_.rope); }

 private:
  static std::int64_t up(std::int64_t bytes) { return (bytes + 3) / 4 * 4; }

  void fill(std::int64_t row, Random& random) {
    std::uint8_t* bytes = bytes_.data() + row * codes_.row_bytes;
    double* numbers = numbers_.data() + row * (sizes_.latent + sizes_.rope);
    for (std::int64_t i = 0; i < codes_.scale_offset; ++i) bytes[i] = byte(random);
    for (std::int64_t first = 0; first < sizes_.latent; first += coding_.group) {
      double wanted = random.next() < -1.5 ? 0.0 : coding_.unit * (1.0 + random.next() / 4);
      const double scale = store_scale(bytes + codes_.scale_offset, first / coding_.group, static_cast<float>(wanted));
      for (std::int64_t i = first; i < std::min(first + coding_.group, sizes_.latent); ++i) numbers[i] = number(bytes, i) * scale;
    }
    for (std::int64_t i = 0; i < sizes_.rope; ++i) {
      const std::uint16_t half = bf16_bits(static_cast<float>(random.next()));
      std::memcpy(bytes + codes_.rope_offset + 2 * i, &half, sizeof half);
      numbers[sizes_.latent + i] = from_bf16(half);
    }
  }

  // Any, but for the NaN of fp8 and, so that scores stay of order 1, its largest exponents.
  std::uint8_t byte(Random& random) const {
    const auto any = static_cast<std::uint8_t>(static_cast<int>((random.next() + 1.8) * 1e6));
    return coding_.format == CodeFormat::fp8 && (any & 0x78) == 0x78 ? static_cast<std::uint8_t>(any & 0xbf) : any;
  }

  double store_scale(std::uint8_t* scales, std::int64_t group, float scale) const {
    if (!coding_.short_scales) {
      std::memcpy(scales + 4 * group, &scale, 4);
      return scale;
    }
    const std::uint16_t half = bf16_bits(scale);
    std::memcpy(scales + 2 * group, &half, 2);
    return from_bf16(half);
  }

  // In units of the scale.
  double number(const std::uint8_t* bytes, std::int64_t i) const {
    if (coding_.format == CodeFormat::int8) return static_cast<std::int8_t>(bytes[i]);
    if (coding_.format == CodeFormat::fp8) {
      const int exponent = bytes[i] >> 3 & 15, fraction = bytes[i] & 7;
      const double size = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
      return bytes[i] & 0x80 ? -size : size;
    }
    const int low = bytes[i / 64 * 32 + i % 32] >> (i % 64 < 32 ? 0 : 4) & 15;
    if (coding_.format == CodeFormat::int4) return 2 * low - 15;
    const std::uint8_t* high = bytes + (sizes_.latent + 63) / 64 * 32 + i / 64 * 16;
    return 2 * (low | (high[i % 16] >> i % 64 / 16 * 2 & 3) << 4) - 63;
  }

  const Sizes& sizes_;
  const Coding& coding_;
  RowCodes codes_{};
  std::vector<std::uint8_t> bytes_;
  std::vector<std::int32_t> table_;
  std::vector<double> numbers_;
};

struct Wanted {
  std::vector<double> out, lse;
};

void want_row(const Sizes& s, const Rows& rows, const Numbers& a, const Numbers& b, std::size_t sequence,
              std::int64_t token, std::int64_t head, Wanted& want) {
  const AttentionSequence& q = kSequences[sequence];
  const std::int64_t seen = q.context_len - (q.query_len - 1 - token), index = (q.query_start + token) * s.heads + head;
  const std::int64_t width = s.rope / s.blocks, block = head * s.blocks / s.heads;
  std::vector<double> scores(seen), sum(s.latent);
  for (std::int64_t t = 0; t < seen; ++t) {
    const double* key = rows.numbers(rows.row(sequence, t));
    for (std::int64_t d = 0; d < s.latent; ++d) scores[t] += a[index * s.latent + d] * key[d];
    for (std::int64_t d = 0; d < width; ++d) scores[t] += b[index * width + d] * key[s.latent + block * width + d];
    scores[t] *= s.scale();
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (std::int64_t t = 0; t < seen; ++t) {
    const double weight = std::exp(scores[t] - top), *value = rows.numbers(rows.row(sequence, t));
    total += weight;
    for (std::int64_t d = 0; d < s.latent; ++d) sum[d] += weight * value[d];
  }
  for (std::int64_t d = 0; d < s.latent; ++d) want.out[index * s.latent + d] = sum[d] / total;
  want.lse[index] = top + std::log(total);
}

// Whole contexts, 64 rows at a time.
std::vector<AttentionItem> items_of(const Sizes& s) {
  std::vector<AttentionItem> items;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(std::size(kSequences)); ++i) {
    const std::int64_t rows = s.heads * kSequences[i].query_len;
    for (std::int64_t first = 0; first < rows; first += 64) {
      items.push_back({i, 0, first, std::min<std::int64_t>(64, rows - first), 0, kSequences[i].context_len, -1, -1});
    }
  }
  return items;
}

void check_codes(const Isa& isa, const Sizes& s, const Coding& coding, DType dtype, bool integer, Checks& checks) {
  Random random(s.latent + s.heads);
  const Rows rows(s, coding, random);
  Numbers a(dtype, kTokens * s.heads * s.latent), b(dtype, kTokens * s.heads * s.rope / s.blocks);
  random.fill(a);
  random.fill(b);
  const std::vector<AttentionItem> items = items_of(s);
  Numbers out(DType::f32, kTokens * s.heads * s.latent), lse(DType::f32, kTokens * s.heads);
  AttentionParams p{};
  const std::int64_t width = s.rope / s.blocks;
  p.a = {a.data(), dtype, s.latent, s.heads * s.latent, s.latent};
  p.b = {width ? b.data() : nullptr, dtype, width, s.heads * width, width};
  p.heads = s.heads;
  p.groups = 1;
  p.b_blocks = s.blocks;
  p.rows = rows.data();
  p.row_dtype = DType::u8;
  p.codes = rows.codes();
  p.integer = integer;
  p.page_tokens = kPageTokens;
  p.page_stride = kPageTokens * p.codes.row_bytes;
  p.row_stride = p.codes.row_bytes;
  p.key_width = s.latent + s.rope;
  p.value_width = s.latent;
  p.value_offset = -1;
  p.page_table = rows.table();
  p.table_stride = kTablePages;
  p.sequences = kSequences;
  p.items = items.data();
  p.item_count = static_cast<std::int64_t>(items.size());
  p.scale_log2 = static_cast<float>(s.scale() * kLog2E);
  p.causal = true;
  p.threads = 2;
  set_results(p, out, lse, s.latent);
  std::vector<float> scratch(isa.kernels->attention_scratch(p) * p.threads, std::nanf(""));
  p.scratch = scratch.data();
  isa.kernels->attention(p);
  Wanted want{std::vector<double>(out.size()), std::vector<double>(lse.size())};
  for (std::size_t i = 0; i < std::size(kSequences); ++i) {
    for (std::int64_t token = 0; token < kSequences[i].query_len; ++token) {
      for (std::int64_t head = 0; head < s.heads; ++head) want_row(s, rows, a, b, i, token, head, want);
    }
  }
  const std::string name = std::string(isa.name) + " attention over " + coding.name + " " + std::to_string(s.heads) + " heads " +
                           std::to_string(s.latent) + "+" + std::to_string(s.rope) + " query " + name_of(dtype) +
                           (integer ? " by integers" : "");
  const double within = integer ? coding.within : 1e-5;
  checks.close(name, out, want.out, within);
  checks.close(name + " lse", lse, want.lse, within);
}

}  // namespace

void test_attention_codes(const Isa& isa, Checks& checks) {
  for (const Sizes& sizes : kSizes) {
    for (const Coding& coding : kCodings) {
      for (const DType dtype : kFloats) {
        for (const bool integer : {false, true}) check_codes(isa, sizes, coding, dtype, integer, checks);
      }
    }
  }
}

}  // namespace latentkv::test
