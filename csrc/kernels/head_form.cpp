#include "kernels/head_form.h"

#include "kernels/project.h"

namespace latentkv::LATENTKV_ISA {

template void head_form<LATENTKV_WIDTH>(const HeadFormParams&);
template std::int64_t head_form_scratch<LATENTKV_WIDTH>(const HeadFormParams&);
template void project_rows<LATENTKV_WIDTH>(const ProjectParams&);
template void project_columns<LATENTKV_WIDTH>(const ProjectParams&);
template std::int64_t project_scratch<LATENTKV_WIDTH>(const ProjectParams&);

}  // namespace latentkv::LATENTKV_ISA
