/* The kernels for AVX-512 (F, BW, VL, DQ). */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif
#include <immintrin.h>
#define VL 16
#define HAVE_AVX512
#define ISA avx512
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sepnet_not_for_this_processor;
#endif
