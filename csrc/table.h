// One function per kernel: what every instruction set offers.
#pragma once

#include "params.h"

namespace latentkv {

struct Kernels {
  void (*rms_norm)(const RmsNormParams&);
  void (*write_rows)(const WriteRowsParams&);
};

}  // namespace latentkv
