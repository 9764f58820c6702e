// Attention over paged rows: latent rows and key-value rows, whole and in pieces that are merged.
#include <algorithm>

#include "check.h"

namespace latentkv::test {
namespace {

constexpr std::int64_t kPageTokens = 16;
constexpr std::int64_t kTileRows = 64;     // backends/native_plan.py's TILE_ROWS
constexpr std::int64_t kPieceTokens = 96;  // two of the vector kernel's chunks, one and a half on tiles
constexpr double kLog2E = 1.4426950408889634;

// Queries of `a` against the key's first elements and `b` against its last blocks, as in AttentionParams.
struct Sizes {
  const char* name;
  std::int64_t heads, groups, a, b, b_blocks, key, key_step, value, value_offset, value_step;

  std::int64_t row() const { return value_offset < 0 ? key : value_offset + (groups - 1) * value_step + value; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(key)); }
};

constexpr Sizes kSizes[] = {
    {"latent 37+6", 3, 1, 37, 6, 1, 43, 0, 37, -1, 0},
    {"latent 512+64", 16, 1, 512, 64, 1, 576, 0, 512, -1, 0},
    {"latent 24+3x8", 6, 1, 24, 8, 3, 48, 0, 24, -1, 0},
    {"rope only 0+16", 5, 1, 0, 16, 1, 16, 0, 16, -1, 0},
    {"one head 64+16", 1, 1, 64, 16, 1, 80, 0, 64, -1, 0},
    {"grouped 20/24", 6, 2, 20, 0, 1, 20, 20, 24, 40, 24},
    {"many heads 32/40", 70, 1, 32, 0, 1, 32, 32, 40, 32, 40},
};

struct Kind {
  DType stored, query;
  bool causal, split;
};

// (query_len, context_len)
constexpr AttentionSequence kSequences[] = {{0, 1, 1}, {1, 1, 200}, {2, 0, 0}, {2, 3, 50}, {5, 2, 193}, {7, 1, 16}};
constexpr std::int64_t kTokens = 8, kTablePages = 14;

struct Inputs {
  Numbers rows, a, b;
  std::vector<std::int32_t> table;

  Inputs(const Sizes& s, const Kind& kind)
      : rows(kind.stored, std::size(kSequences) * kTablePages * kPageTokens * s.row()),
        a(kind.query, kTokens * s.heads * s.a),
        b(kind.query, kTokens * s.heads * s.b),
        table(std::size(kSequences) * kTablePages, std::numeric_limits<std::int32_t>::max()) {
    Random random(s.key);
    random.fill(a);
    random.fill(b);
    for (std::size_t i = 0; i < std::size(kSequences); ++i) {
      for (std::int64_t token = 0; token < kSequences[i].context_len; ++token) {
        // Pages in an order that is not the sequences'.
        const std::int64_t index = i * kTablePages + token / kPageTokens;
        table[index] = static_cast<std::int32_t>(table.size() - 1 - index);
        for (std::int64_t d = 0; d < s.row(); ++d) rows.set(row(i, token) * s.row() + d, random.next());
      }
    }
  }

  std::int64_t row(std::size_t sequence, std::int64_t token) const {
    return table[sequence * kTablePages + token / kPageTokens] * kPageTokens + token % kPageTokens;
  }
};

struct Plan {
  std::vector<AttentionItem> items;
  std::vector<AttentionMerge> merges;
  std::int64_t slots = 0;
};

Plan plan_of(const Sizes& s, const Kind& kind) {
  Plan plan;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(std::size(kSequences)); ++i) {
    const std::int64_t context = kSequences[i].context_len, rows = s.heads / s.groups * kSequences[i].query_len;
    for (std::int64_t tile = 0; tile < s.groups * rows; tile += std::min(kTileRows, rows - tile % rows)) {
      const std::int64_t group = tile / rows, first = tile % rows, count = std::min(kTileRows, rows - first);
      if (!kind.split || context <= kPieceTokens) {
        plan.items.push_back({i, group, first, count, 0, context, -1, -1});
        continue;
      }
      plan.merges.push_back({i, group, first, count, plan.slots, (context + kPieceTokens - 1) / kPieceTokens});
      for (std::int64_t begin = 0; begin < context; begin += kPieceTokens) {
        const std::int64_t end = std::min(context, begin + kPieceTokens);
        plan.items.push_back({i, group, first, count, begin, end, -1, plan.slots++});
      }
    }
  }
  return plan;
}

double score(const Sizes& s, const Inputs& in, std::int64_t query, std::int64_t head, std::int64_t row) {
  const std::int64_t start = row * s.row() + head * s.groups / s.heads * s.key_step;
  const std::int64_t b_start = start + s.key - (s.b_blocks - head * s.b_blocks / s.heads) * s.b;
  double sum = 0;
  for (std::int64_t d = 0; d < s.a; ++d) sum += in.a[(query * s.heads + head) * s.a + d] * in.rows[start + d];
  for (std::int64_t d = 0; d < s.b; ++d) sum += in.b[(query * s.heads + head) * s.b + d] * in.rows[b_start + d];
  return sum * s.scale();
}

struct Wanted {
  std::vector<double> out, lse;
};

void want_row(const Sizes& s, const Kind& kind, const Inputs& in, std::size_t sequence, std::int64_t token,
              std::int64_t head, Wanted& want) {
  const AttentionSequence& q = kSequences[sequence];
  const std::int64_t seen = q.context_len - (kind.causal ? q.query_len - 1 - token : 0), query = q.query_start + token;
  std::vector<double> scores(seen), values(s.value);
  for (std::int64_t t = 0; t < seen; ++t) scores[t] = score(s, in, query, head, in.row(sequence, t));
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  const std::int64_t group = head * s.groups / s.heads;
  const std::int64_t start = s.value_offset < 0 ? group * s.key_step : s.value_offset + group * s.value_step;
  for (std::int64_t t = 0; t < seen; ++t) {
    const double weight = std::exp(scores[t] - top);
    total += weight;
    for (std::int64_t d = 0; d < s.value; ++d) values[d] += weight * in.rows[in.row(sequence, t) * s.row() + start + d];
  }
  for (std::int64_t d = 0; d < s.value; ++d) want.out[(query * s.heads + head) * s.value + d] = values[d] / total;
  want.lse[query * s.heads + head] = top + std::log(total);
}

Wanted wanted(const Sizes& s, const Kind& kind, const Inputs& in) {
  Wanted want{std::vector<double>(kTokens * s.heads * s.value), std::vector<double>(kTokens * s.heads)};
  for (std::size_t i = 0; i < std::size(kSequences); ++i) {
    for (std::int64_t token = 0; token < kSequences[i].query_len; ++token) {
      for (std::int64_t head = 0; head < s.heads; ++head) want_row(s, kind, in, i, token, head, want);
    }
  }
  return want;
}

void check_attention(const Isa& isa, const Sizes& s, const Kind& kind, Checks& checks) {
  Inputs in(s, kind);
  const Plan plan = plan_of(s, kind);
  Numbers out(kind.query, kTokens * s.heads * s.value), lse(DType::f32, kTokens * s.heads);
  AttentionParams p{};
  p.a = {s.a ? in.a.data() : nullptr, kind.query, s.a, s.heads * s.a, s.a};
  p.b = {s.b ? in.b.data() : nullptr, kind.query, s.b, s.heads * s.b, s.b};
  p.heads = s.heads;
  p.groups = s.groups;
  p.b_blocks = s.b_blocks;
  p.rows = in.rows.data();
  p.row_dtype = kind.stored;
  p.page_tokens = kPageTokens;
  p.page_stride = kPageTokens * s.row();
  p.row_stride = s.row();
  p.key_width = s.key;
  p.key_step = s.key_step;
  p.value_width = s.value;
  p.value_offset = s.value_offset;
  p.value_step = s.value_step;
  p.page_table = in.table.data();
  p.table_stride = kTablePages;
  p.sequences = kSequences;
  p.items = plan.items.data();
  p.item_count = static_cast<std::int64_t>(plan.items.size());
  p.merges = plan.merges.data();
  p.merge_count = static_cast<std::int64_t>(plan.merges.size());
  p.scale_log2 = static_cast<float>(s.scale() * kLog2E);
  p.causal = kind.causal;
  p.threads = 2;
  set_results(p, out, lse, s.value);
  std::vector<float> scratch(isa.kernels->attention_scratch(p) * p.threads);
  std::vector<float> slots(isa.kernels->attention_slot(p) * plan.slots);
  p.scratch = scratch.data();
  p.slots = slots.data();
  isa.kernels->attention(p);
  const Wanted want = wanted(s, kind, in);
  const std::string name = std::string(isa.name) + " attention " + s.name + " rows " + name_of(kind.stored) +
                           " query " + name_of(kind.query) + (kind.causal ? " causal" : "") +
                           (kind.split ? " split" : "");
  checks.close(name, out, want.out);
  checks.close(name + " lse", lse, want.lse);
}

}  // namespace

void test_attention(const Isa& isa, Checks& checks) {
  for (const Sizes& sizes : kSizes) {
    for (const DType stored : kStored) {
      for (const DType query : kFloats) {
        for (const bool causal : {false, true}) {
          for (const bool split : {false, true}) check_attention(isa, sizes, {stored, query, causal, split}, checks);
        }
      }
    }
  }
}

}  // namespace latentkv::test
