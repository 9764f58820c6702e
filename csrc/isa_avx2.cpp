// AVX2, FMA and F16C: x86-64 since Haswell (2013) and Zen (2017).
#define LATENTKV_ISA avx2
#define LATENTKV_WIDTH 8
#include "kernels/all.h"
