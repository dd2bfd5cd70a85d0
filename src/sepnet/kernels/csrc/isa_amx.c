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

#include "amx_sides.h"
#include "amx_pointwise.h"
#include "amx_weights.h"

const sepnet_tile_ops sepnet_amx_ops = {
    .muon = {muon_workspace, muon_step},
    .pointwise = {pointwise_workspace, pointwise_forward, pointwise_backward},
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sepnet_not_for_this_processor;
#endif
