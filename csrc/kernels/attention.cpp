#include "kernels/attention.h"

namespace latentkv::LATENTKV_ISA {

template void attention<LATENTKV_WIDTH>(const AttentionParams&);
template std::int64_t attention_scratch<LATENTKV_WIDTH>(const AttentionParams&);
template std::int64_t attention_slot<LATENTKV_WIDTH>(const AttentionParams&);

}  // namespace latentkv::LATENTKV_ISA
