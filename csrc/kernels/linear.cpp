#include "kernels/linear.h"

namespace latentkv::LATENTKV_ISA {

template void linear<LATENTKV_WIDTH>(const LinearParams&);
template std::int64_t linear_scratch<LATENTKV_WIDTH>(const LinearParams&);
template std::int64_t linear_rows<LATENTKV_WIDTH>(const LinearJob&, bool);

}  // namespace latentkv::LATENTKV_ISA
