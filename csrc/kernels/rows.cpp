#include "kernels/ceiling.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/write_latent.h"
#include "kernels/write_rows.h"

namespace latentkv::LATENTKV_ISA {

template void rms_norm<LATENTKV_WIDTH>(const RmsNormParams&);
template void rotate_query<LATENTKV_WIDTH>(const RotateQueryParams&);
template void write_latent<LATENTKV_WIDTH>(const WriteLatentParams&);
template void write_rows<LATENTKV_WIDTH>(const WriteRowsParams&);
template float fma_burst<LATENTKV_WIDTH>(std::int64_t);
template std::int64_t fma_burst_flops<LATENTKV_WIDTH>(std::int64_t);
template float read_burst<LATENTKV_WIDTH>(const float*, std::int64_t);

}  // namespace latentkv::LATENTKV_ISA
