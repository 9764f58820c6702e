// One function per kernel: what every instruction set offers.
#pragma once

#include "params.h"

namespace latentkv {

struct Kernels {
  void (*rms_norm)(const RmsNormParams&);
  void (*rotate_query)(const RotateQueryParams&);
  void (*write_latent)(const WriteLatentParams&);
  void (*write_rows)(const WriteRowsParams&);
  void (*attention)(const AttentionParams&);
  std::int64_t (*attention_scratch)(const AttentionParams&);  // floats for each thread
  std::int64_t (*attention_slot)(const AttentionParams&);     // floats for each slot
  void (*head_form)(const HeadFormParams&);
  std::int64_t (*head_form_scratch)(const HeadFormParams&);  // floats for each thread
  float (*fma_burst)(std::int64_t rounds);
  std::int64_t (*fma_burst_flops)(std::int64_t rounds);
  float (*read_burst)(const float* from, std::int64_t count);
  void (*linear)(const LinearParams&);
  std::int64_t (*linear_scratch)(const LinearParams&);  // bytes in all
  std::int64_t (*linear_rows)(const LinearJob&, bool integer);  // of x in one job: longer inputs are several
  void (*project_rows)(const ProjectParams&);
  void (*project_columns)(const ProjectParams&);
  std::int64_t (*project_scratch)(const ProjectParams&);  // floats for each thread
};

}  // namespace latentkv
