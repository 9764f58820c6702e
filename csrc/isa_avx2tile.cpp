// For tests: AMX's algorithms with the plain twin of its tiles, on machines that have no AMX.
#define LATENTKV_ISA avx2tile
#define LATENTKV_WIDTH 16
#define LATENTKV_PLAIN_TILES
#include "kernels/all.h"
