// Every kernel, gathered into the table of one instruction set. The other sources here define them, one family each, so that
// they compile side by side.
#include "table.h"

namespace latentkv::LATENTKV_ISA {

template <int W> void rms_norm(const RmsNormParams&);
template <int W> void rotate_query(const RotateQueryParams&);
template <int W> void write_latent(const WriteLatentParams&);
template <int W> void write_rows(const WriteRowsParams&);
template <int W> void attention(const AttentionParams&);
template <int W> std::int64_t attention_scratch(const AttentionParams&);
template <int W> std::int64_t attention_slot(const AttentionParams&);
template <int W> void head_form(const HeadFormParams&);
template <int W> std::int64_t head_form_scratch(const HeadFormParams&);
template <int W> float fma_burst(std::int64_t);
template <int W> std::int64_t fma_burst_flops(std::int64_t);
template <int W> float read_burst(const float*, std::int64_t);
template <int W> void linear(const LinearParams&);
template <int W> std::int64_t linear_scratch(const LinearParams&);
template <int W> std::int64_t linear_rows(const LinearJob&, bool);
template <int W> void project_rows(const ProjectParams&);
template <int W> void project_columns(const ProjectParams&);
template <int W> std::int64_t project_scratch(const ProjectParams&);

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
