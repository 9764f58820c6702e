// What a kernel is given: plain structs of pointers, sizes and strides. Strides count elements, not bytes. Whoever
// fills one in (bindings/) has checked it; kernels trust it. Pointers marked "or null" may be null, no others.
#pragma once

#include <cstdint>

namespace latentkv {

enum class DType : std::uint8_t { f32, bf16, f16, i8, u8, i32, i64 };

struct bf16 {
  std::uint16_t bits;
};

// IEEE 754 binary16: only what the cache stores.
struct f16 {
  std::uint16_t bits;
};

// `rows` rows of `cols` adjacent elements; `stride` elements from one row to the next.
struct Matrix {
  void* data;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t stride;
};

// out = rms_norm(x) * weight. x and out have one dtype and one shape [rows, n]; weight is [n] adjacent elements of its own
// dtype.
struct RmsNormParams {
  Matrix x;
  const void* weight;
  DType weight_dtype;
  float eps;
  Matrix out;
};


// An RMSNorm of rows: weight is [n] adjacent elements, or null where there is no norm.
struct Norm {
  const void* weight;
  DType dtype;
  float eps;
};

// Cosine and sine of every token's rotation angles, each [T, pairs].
struct AngleTable {
  const float *cos, *sin;
  std::int64_t pairs, cos_stride, sin_stride;
};

enum class CodeFormat : std::uint8_t { none, fp8, int8, int6, int4 };

// Rows of bytes: `width` codes first, then scales, one for each `group` of codes (float32, or bf16 if short), then the RoPE
// part in bf16. Offsets and sizes in bytes. src/latentkv/cache/layout.py has the order of the bits.
constexpr std::int64_t kCodeUnit = 64;       // int4 and int6 codes are packed so many at a time; a group is whole units
constexpr std::int64_t kMostWritten = 8192;  // codes of a row that is to be written

struct RowCodes {
  CodeFormat format;
  std::int64_t width, group;
  bool short_scales;
  std::int64_t scale_offset, rope_offset, row_bytes;
};

// A part of a row that is codes and scales only: from byte `begin` on, where its own offsets count from.
struct CodedPart {
  RowCodes codes;
  std::int64_t begin;
};

// cache row slots[t] = the t-th rows of all parts side by side, converted to the cache's dtype.
struct WriteRowsParams {
  const Matrix* parts;
  int part_count;
  const std::int64_t* slots;  // parts[0].rows of them, each inside the cache and all different
  Matrix cache;
  const CodedPart* codes;  // in a cache of u8, what each part becomes
};

// Cache row slots[t] = kv row t: the first `latent_width` elements normed, the others, in `groups` blocks, normed and
// rotated block by block. Everything in between is float32.
struct WriteLatentParams {
  Matrix kv;
  std::int64_t latent_width, groups;
  Norm latent_norm, rope_norm;
  AngleTable angles;  // kv.rows tokens; groups share its pairs evenly
  bool interleaved;
  const std::int64_t* slots;  // as in WriteRowsParams
  Matrix cache;
  RowCodes codes;  // of a cache of u8
  bool rotated;    // the latent, by Walsh-Hadamard blocks, before it becomes codes
};

// In every head of query [T, H, nope + 2 * pairs / groups], elements from `nope` on normed and rotated in place. Head h
// turns with block h * groups / heads of its token's angles.
struct RotateQueryParams {
  void* query;
  DType dtype;
  std::int64_t tokens, heads, nope, groups, token_stride, head_stride;
  Norm norm;
  AngleTable angles;
  bool interleaved;
};

// A query part [T, H, width]: element d of (token, head) stands at token * token_stride + head * head_stride + d.
struct QueryPart {
  const void* data;  // or null when width is 0
  DType dtype;
  std::int64_t width, token_stride, head_stride;
};

// Where work lies; one record per item of a plan (backends/native_plan.py). A slot keeps an unfinished result; what is loaded
// from one is stored there again.
struct AttentionItem {
  std::int64_t sequence, group, first_row, row_count;  // row = head in group * query_len + token
  std::int64_t context_begin, context_end;
  std::int64_t load_slot, store_slot;  // -1: start from nothing; -1: the result is complete
};

// Slots first_slot ... first_slot + slot_count - 1 together are the result of these rows; merged in this order.
struct AttentionMerge {
  std::int64_t sequence, group, first_row, row_count, first_slot, slot_count;
};

struct AttentionSequence {
  std::int64_t query_start, query_len, context_len;
};

// Attention of new tokens over rows in pages. Head h belongs to KV group h * groups / heads. Group g's key is the stretch
// of `key_width` elements at g * key_step of a row; its value `value_width` at value_offset + g * value_step, or, with
// value_offset -1, the first value_width elements of the key. A query is `a` against the key's first elements and `b`
// against the last `b_blocks` blocks of b.width: head h against block h * b_blocks / heads.
struct AttentionParams {
  QueryPart a, b;
  std::int64_t heads, groups, b_blocks;
  const void* rows;
  DType row_dtype;  // u8: rows of codes
  RowCodes codes;
  CodedPart values;  // rows of keys and values in codes: the values, the keys being `codes`; else of CodeFormat::none
  bool integer;  // rows of codes: whether queries and weights may be rounded to 16 bits where that is faster
  std::int64_t page_tokens, page_stride, row_stride;
  std::int64_t key_width, key_step, value_width, value_offset, value_step;
  const std::int32_t* page_table;
  std::int64_t table_stride;
  const AttentionSequence* sequences;
  const AttentionItem* items;
  std::int64_t item_count;
  const AttentionMerge* merges;
  std::int64_t merge_count;
  float scale_log2;  // scale of the scores times log2(e): the kernel counts in powers of 2
  bool causal;
  int threads;
  void* out;  // [T, H, value_width]
  DType out_dtype;
  std::int64_t out_token_stride, out_head_stride;
  float* lse;  // [T, H]
  float* slots;      // slot_floats() for each
  float* scratch;    // scratch_floats() for each thread
};

enum class WeightFormat : std::uint8_t { f32, bf16, int8, int4 };

// A linear map from `cols` inputs to `rows` outputs. f32 and bf16: rows of adjacent elements. int8 and int4: panels of kPanelRows rows (the last one padded), of each the codes of four
// neighbouring inputs together (ops/quantized.py shows the order); w = scale * (code - zero) + minimum, one scale and
// minimum for each row and `group` inputs, at [panel][group][row in panel].
struct LinearWeight {
  WeightFormat format;
  std::int64_t rows, cols;
  const void* data;
  std::int64_t row_stride;
  std::int64_t group;  // a multiple of 16 that divides cols; at most 128
  int zero;            // of int4; int8 has none
  DType scale_dtype;   // of scales and minima: f32, bf16, f16
  const void* scales;
  const void* minima;  // or null
  const void* bias;    // [rows] or null
  DType bias_dtype;
};

constexpr std::int64_t kPanelRows = 16;

// out = factor * (x weightᵀ + bias) + residual; with a gate, out = silu(x gateᵀ + bias) * (x weightᵀ + bias). With a norm,
// x is first divided by its root mean square and multiplied with norm[cols]. Gate and weight have one shape and format.
struct LinearJob {
  Matrix x;
  const LinearWeight* weight;
  const LinearWeight* gate;  // or null
  Matrix out;
  Matrix residual;  // data or null; may be `out` itself
  float factor;
  Norm norm;    // weight or null
  bool narrow;  // x, normed, is rounded to bf16 first
};

// Jobs that follow each other and have one x prepare it once.
struct LinearParams {
  const LinearJob* jobs;
  std::int64_t job_count;
  bool integer;  // int8 and int4: whether x may be rounded to int8 where that is faster
  int threads;
  char* scratch;  // linear_scratch() bytes, aligned to 64
};

// Per-head matrix products around the latent form. x [T, H, K], out [T, H, J]:
//   rows:    out[t, h, j] = sum over k of x[t, h, k] * w[h, j, k]
//   columns: out[t, h, j] = sum over k of x[t, h, k] * w[h, k, j]
struct ProjectParams {
  QueryPart x;
  std::int64_t tokens, heads, out_width;
  const void* w;
  DType w_dtype;
  std::int64_t w_head_stride, w_row_stride;
  void* out;
  DType out_dtype;
  std::int64_t out_token_stride, out_head_stride;
  int threads;
  float* scratch;  // project_scratch() floats for each thread
};

// Of head h: `width` rows of as many adjacent elements as a latent has.
struct UpMatrix {
  const void* data;
  std::int64_t width, head_stride, row_stride;
};

// MLA's head form for one sequence: rows [latent | b_blocks blocks of RoPE keys] are expanded to keys [N + R] and values [V]
// of every head. In `attention`, `a` is the whole query [N + R], `b` has the width of a RoPE block and no data, key_width is
// N + R, `sequences` is the one; work is divided here and not by items.
struct HeadFormParams {
  AttentionParams attention;
  std::int64_t latent_width;
  std::int64_t stretch_bytes;  // of keys and values that a thread expands at once; a few rows fit always
  DType up_dtype;
  UpMatrix key, value;
};

}  // namespace latentkv
