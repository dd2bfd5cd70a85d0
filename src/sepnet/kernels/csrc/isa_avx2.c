/* The kernels for AVX2 with fused multiply-add. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>
#define VL 8
#define HAVE_AVX2
#define ISA avx2
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sepnet_not_for_this_processor;
#endif
