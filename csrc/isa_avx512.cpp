// AVX-512 F, BW, VL and DQ: Skylake-SP (2017), Zen 4 (2022) and newer.
#define LATENTKV_ISA avx512
#define LATENTKV_WIDTH 16
#include "kernels/all.h"
