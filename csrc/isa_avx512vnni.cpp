// AVX-512 with VNNI's dot products of int8: Cascade Lake (2019), Zen 4 (2022) and newer.
#define LATENTKV_ISA avx512vnni
#define LATENTKV_WIDTH 16
#include "kernels/all.h"
