// NEON with dot products of int8 (ARMv8.2-A and newer: Graviton 2, Apple M1).
#define LATENTKV_ISA neondot
#define LATENTKV_WIDTH 4
#include "kernels/all.h"
