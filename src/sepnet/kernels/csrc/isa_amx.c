/* What is made of products of bfloat16 matrices, with AMX, whose instructions multiply tiles of 16 rows. */
#include "internal.h"

#if defined(SEPNET_AMX)
#if defined(__clang__)
#define WITH __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,fma")))
#pragma clang attribute push(WITH, apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,fma")
#endif
#include <immintrin.h>
#define VL 16
#define HAVE_AVX512
#define HAVE_AVX512_BF16
#define HAVE_AMX

#include "vector.h"

#include "pack.h"
#include "matrices.h"
#include "product_tiles.h"
#include "products.h"
#include "orthogonal.h"

#include "sides.h"
#include "half_sides.h"
#include "half_pointwise.h"
#include "half_weights.h"

const sepnet_pointwise_ops sepnet_amx_pointwise = {pointwise_workspace, pointwise_forward, pointwise_backward};
const sepnet_muon_ops sepnet_amx_muon = {muon_workspace, muon_step};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sepnet_not_for_this_processor;
#endif
