// MLA's head form for one sequence over paged rows.
#include <algorithm>

#include "check.h"

namespace latentkv::test {
namespace {

constexpr std::int64_t kPageTokens = 16;

struct HeadForm {
  const char* name;
  std::int64_t heads, latent, rope, rope_blocks, nope, value;
  std::int64_t query_len, context_len;
  DType stored, query, up;
  bool causal;

  std::int64_t row() const { return latent + rope_blocks * rope; }
  std::int64_t key() const { return nope + rope; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(key())); }
};

struct Inputs {
  Numbers rows, query, w_uk, w_uv;
  std::vector<std::int32_t> table;

  explicit Inputs(const HeadForm& c)
      : rows(c.stored, (c.context_len / kPageTokens + 1) * kPageTokens * c.row()),
        query(c.query, c.query_len * c.heads * c.key()),
        w_uk(c.up, c.heads * c.nope * c.latent),
        w_uv(c.up, c.heads * c.value * c.latent),
        table(c.context_len / kPageTokens + 1) {
    Random random(c.latent);
    random.fill(query);
    const double size = 1.0 / std::sqrt(static_cast<double>(c.latent));
    for (std::int64_t i = 0; i < w_uk.size(); ++i) w_uk.set(i, random.next() * size);
    for (std::int64_t i = 0; i < w_uv.size(); ++i) w_uv.set(i, random.next() * size);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(table.size() - 1 - i);
    for (std::int64_t token = 0; token < c.context_len; ++token) {
      for (std::int64_t d = 0; d < c.row(); ++d) rows.set(row(token) * c.row() + d, random.next());
    }
  }

  std::int64_t row(std::int64_t token) const { return table[token / kPageTokens] * kPageTokens + token % kPageTokens; }

  // Row `j` of head `head` of an up-projection with `width` rows, times a token's latent.
  double expanded(const HeadForm& c, const Numbers& up, std::int64_t width, std::int64_t head, std::int64_t j,
                  std::int64_t token) const {
    double sum = 0;
    for (std::int64_t d = 0; d < c.latent; ++d) {
      sum += up[(head * width + j) * c.latent + d] * rows[row(token) * c.row() + d];
    }
    return sum;
  }
};

// One head's keys and values of the whole context.
struct Expanded {
  std::vector<double> keys, values;

  Expanded(const HeadForm& c, const Inputs& in, std::int64_t head)
      : keys(c.context_len * c.key()), values(c.context_len * c.value) {
    const std::int64_t block = c.latent + head * c.rope_blocks / c.heads * c.rope;
    for (std::int64_t t = 0; t < c.context_len; ++t) {
      for (std::int64_t j = 0; j < c.nope; ++j) keys[t * c.key() + j] = in.expanded(c, in.w_uk, c.nope, head, j, t);
      for (std::int64_t j = 0; j < c.rope; ++j) keys[t * c.key() + c.nope + j] = in.rows[in.row(t) * c.row() + block + j];
      for (std::int64_t j = 0; j < c.value; ++j) values[t * c.value + j] = in.expanded(c, in.w_uv, c.value, head, j, t);
    }
  }
};

void want_row(const HeadForm& c, const Inputs& in, const Expanded& all, std::int64_t token, std::int64_t head, double* out,
              double& lse) {
  const std::int64_t seen = std::max<std::int64_t>(0, c.context_len - (c.causal ? c.query_len - 1 - token : 0));
  std::vector<double> scores(seen);
  for (std::int64_t t = 0; t < seen; ++t) {
    for (std::int64_t d = 0; d < c.key(); ++d) {
      scores[t] += in.query[(token * c.heads + head) * c.key() + d] * all.keys[t * c.key() + d] * c.scale();
    }
  }
  lse = -std::numeric_limits<double>::infinity();
  if (seen == 0) return;
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (const double score : scores) total += std::exp(score - top);
  for (std::int64_t t = 0; t < seen; ++t) {
    const double weight = std::exp(scores[t] - top) / total;
    for (std::int64_t d = 0; d < c.value; ++d) out[d] += weight * all.values[t * c.value + d];
  }
  lse = top + std::log(total);
}

void check_head_form(const Isa& isa, const HeadForm& c, Checks& checks) {
  Inputs in(c);
  Numbers out(c.query, c.query_len * c.heads * c.value), lse(DType::f32, c.query_len * c.heads);
  const AttentionSequence sequence{0, c.query_len, c.context_len};
  HeadFormParams p{};
  AttentionParams& a = p.attention;
  a.a = {in.query.data(), c.query, c.key(), c.heads * c.key(), c.key()};
  a.b.width = c.rope;
  a.b_blocks = c.rope_blocks;
  a.heads = c.heads;
  a.rows = in.rows.data();
  a.row_dtype = c.stored;
  a.page_tokens = kPageTokens;
  a.page_stride = kPageTokens * c.row();
  a.row_stride = c.row();
  a.key_width = c.key();
  a.value_width = c.value;
  a.page_table = in.table.data();
  a.sequences = &sequence;
  a.scale_log2 = static_cast<float>(c.scale() * 1.4426950408889634);
  a.causal = c.causal;
  a.threads = 2;
  a.out = out.data();
  a.out_dtype = c.query;
  a.out_token_stride = c.heads * c.value;
  a.out_head_stride = c.value;
  a.lse = static_cast<float*>(lse.data());
  p.latent_width = c.latent;
  p.stretch_bytes = 1;
  p.up_dtype = c.up;
  p.key = {in.w_uk.data(), c.nope, c.nope * c.latent, c.latent};
  p.value = {in.w_uv.data(), c.value, c.value * c.latent, c.latent};
  std::vector<float> scratch(isa.kernels->head_form_scratch(p) * a.threads);
  a.scratch = scratch.data();
  isa.kernels->head_form(p);
  std::vector<double> want(out.size()), want_lse(lse.size());
  for (std::int64_t head = 0; head < c.heads; ++head) {
    const Expanded all(c, in, head);
    for (std::int64_t token = 0; token < c.query_len; ++token) {
      const std::int64_t i = token * c.heads + head;
      want_row(c, in, all, token, head, want.data() + i * c.value, want_lse[i]);
    }
  }
  const std::string name = std::string(isa.name) + " head form " + c.name + " " + std::to_string(c.query_len) + " after " +
                           std::to_string(c.context_len - c.query_len) + " rows " + name_of(c.stored) + " query " +
                           name_of(c.query) + " up " + name_of(c.up) + (c.causal ? " causal" : "");
  checks.close(name, out, want);
  checks.close(name + " lse", lse, want_lse);
}

}  // namespace

void test_head_form(const Isa& isa, Checks& checks) {
  constexpr HeadForm sizes[] = {{"tiles", 2, 64, 32, 1, 32, 64, 0, 0, {}, {}, {}, false},
                                {"several RoPE keys", 4, 32, 32, 2, 32, 32, 0, 0, {}, {}, {}, false},
                                {"odd", 3, 37, 6, 1, 10, 7, 0, 0, {}, {}, {}, false}};
  constexpr std::int64_t lengths[][2] = {{1, 1}, {3, 70}, {66, 66}, {20, 130}, {4, 2}, {2, 0}};
  for (HeadForm c : sizes) {
    for (const auto& [query_len, context_len] : lengths) {
      c.query_len = query_len;
      c.context_len = context_len;
      for (const DType type : kFloats) {
        for (const DType stored : kStored) {
          c.stored = stored;
          c.query = type;
          c.up = stored == DType::bf16 ? DType::bf16 : type;
          c.causal = type == DType::f32;
          check_head_form(isa, c, checks);
        }
      }
    }
  }
}

}  // namespace latentkv::test
