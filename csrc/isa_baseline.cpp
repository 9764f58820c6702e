// What every CPU of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define LATENTKV_ISA baseline
#define LATENTKV_WIDTH 4
#include "kernels/all.h"
