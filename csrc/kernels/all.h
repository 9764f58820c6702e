// Every kernel, gathered into the table of the including file's instruction set. LATENTKV_ISA names it, LATENTKV_WIDTH is
// the number of floats in its vectors.
#pragma once

#include "kernels/attention.h"
#include "kernels/ceiling.h"
#include "kernels/head_form.h"
#include "kernels/linear.h"
#include "kernels/project.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/write_latent.h"
#include "kernels/write_rows.h"
#include "table.h"

namespace latentkv::LATENTKV_ISA {

extern const Kernels kernels;
constinit const Kernels kernels = {
    .rms_norm = rms_norm<LATENTKV_WIDTH>,
    .rotate_query = rotate_query<LATENTKV_WIDTH>,
    .write_latent = write_latent<LATENTKV_WIDTH>,
    .write_rows = write_rows<LATENTKV_WIDTH>,
    .attention = attention<LATENTKV_WIDTH>,
    .attention_scratch = attention_scratch<LATENTKV_WIDTH>,
    .attention_slot = attention_slot<LATENTKV_WIDTH>,
    .head_form = head_form<LATENTKV_WIDTH>,
    .head_form_scratch = head_form_scratch<LATENTKV_WIDTH>,
    .fma_burst = fma_burst<LATENTKV_WIDTH>,
    .fma_burst_flops = fma_burst_flops<LATENTKV_WIDTH>,
    .read_burst = read_burst<LATENTKV_WIDTH>,
    .linear = linear<LATENTKV_WIDTH>,
    .linear_scratch = linear_scratch<LATENTKV_WIDTH>,
    .linear_rows = linear_rows<LATENTKV_WIDTH>,
    .project_rows = project_rows<LATENTKV_WIDTH>,
    .project_columns = project_columns<LATENTKV_WIDTH>,
    .project_scratch = project_scratch<LATENTKV_WIDTH>,
};

}  // namespace latentkv::LATENTKV_ISA
