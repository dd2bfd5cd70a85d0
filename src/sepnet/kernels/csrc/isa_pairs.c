/* What is made of products of bfloat16 maps by vectors that multiply pairs. */
#include "internal.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif
#include <immintrin.h>
#define VL 16
#define HAVE_AVX512
#define HAVE_AVX512_BF16

#include "vector.h"

#include "pack.h"

#include "sides.h"
#include "half_sides.h"
#include "half_pointwise.h"
#include "half_weights.h"

const sepnet_pointwise_ops sepnet_pair_pointwise = {pointwise_workspace, pointwise_forward, pointwise_backward};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sepnet_not_for_this_processor;
#endif
