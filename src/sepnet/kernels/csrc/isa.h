/* All kernels for one instruction set, as a table of functions named after it. */
#include "internal.h"
#include "vector.h"

#include "norm_job.h"
#include "pool.h"
#include "norm.h"
#include "few.h"
#include "few_gather.h"
#include "pooled_pointwise.h"
#include "pack.h"
#include "sides.h"
#include "pointwise.h"
#include "pointwise_weights.h"

#include "pairing.h"
#include "geometry.h"
#include "colour.h"
#include "unpack.h"
#include "unpack_pairs.h"
#include "ahead.h"
#include "tiles.h"
#include "results.h"
#include "correlate.h"
#include "weights.h"
#include "joined.h"
#include "clear.h"
#include "direct_tiles.h"
#include "direct_strips.h"
#include "direct.h"
#include "depthwise.h"

#include "matrices.h"
#include "product_tiles.h"
#include "products.h"
#include "orthogonal.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

const sepnet_ops JOIN(sepnet_ops_, ISA) = {
    .vector_floats = VL,
    .has_pairs = HAVE_PAIRS,
    .depthwise_workspace = depthwise_workspace,
    .depthwise_forward = depthwise_forward,
    .depthwise_backward = depthwise_backward,
    .norm_workspace = norm_workspace,
    .norm_statistics = norm_statistics,
    .norm_apply = norm_apply,
    .norm_forward = norm_forward,
    .norm_sums = norm_sums,
    .norm_gradients = norm_gradients,
    .norm_input_gradient = norm_input_gradient,
    .norm_backward = norm_backward,
    .pooled_pointwise_workspace = pooled_pointwise_workspace,
    .pooled_pointwise_forward = pooled_pointwise_forward,
    .pooled_pointwise_backward = pooled_pointwise_backward,
    .pointwise = {pointwise_workspace, pointwise_forward, pointwise_backward},
    .muon = {muon_workspace, muon_step},
};
