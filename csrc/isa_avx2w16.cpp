// For tests: the width-16 algorithm of AVX-512, lowered to AVX2, on machines that have no AVX-512.
#define LATENTKV_ISA avx2w16
#define LATENTKV_WIDTH 16
#include "kernels/all.h"
