// AMX tiles of bfloat16, on top of AVX-512 with VNNI and VBMI: Sapphire Rapids (2023) and newer.
#define LATENTKV_ISA amx
#define LATENTKV_WIDTH 16
#include "kernels/all.h"
