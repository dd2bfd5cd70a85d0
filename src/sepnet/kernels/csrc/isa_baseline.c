/* The kernels with vectors of 4 floats and no instruction beyond what the compiler targets by default (SSE2, NEON, ...). */
#define VL 4
#define ISA baseline
#include "isa.h"
