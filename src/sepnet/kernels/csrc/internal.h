/* What the instruction-set files and the dispatcher share. */
#ifndef SEPNET_INTERNAL_H
#define SEPNET_INTERNAL_H

#include "sepnet_kernels.h"

/* Where the compiler knows AMX's instructions, and the system gives its registers (processor.c). */
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define SEPNET_AMX
#endif

/* A step of Muon. */
typedef struct {
    int64_t (*workspace)(const sepnet_muon *, int64_t, int);
    void (*step)(const sepnet_muon *, int64_t, int, void *);
} sepnet_muon_ops;

/* A workspace of -1: they do not take it. */
typedef struct {
    int64_t (*workspace)(const sepnet_pointwise *, int);
    void (*forward)(const sepnet_pointwise *, const sepnet_joined *, const void *, const float *, const float *, void *, void *);
    void (*backward)(const sepnet_pointwise *, const sepnet_joined *, const void *, const float *, const void *, void *, float *, float *,
                     void *);
} sepnet_pointwise_ops;

/* The kernels compiled for one instruction set. Arguments are those of the public functions, already checked. */
typedef struct {
    int64_t vector_floats;
    int has_pairs; /* and so multiplies bfloat16 values */
    int64_t (*depthwise_workspace)(const sepnet_depthwise *, int);
    void (*depthwise_forward)(const sepnet_depthwise *, const sepnet_joined *, const void *, const float *, const float *, void *,
                              void *);
    void (*depthwise_backward)(const sepnet_depthwise *, const sepnet_joined *, const void *, const float *, const void *, void *,
                               float *, float *, void *);
    int64_t (*norm_workspace)(const sepnet_norm *);
    void (*norm_statistics)(const sepnet_norm *, const void *, const double *, const float *, const float *, double,
                            const sepnet_running *, float *, void *);
    void (*norm_apply)(const sepnet_norm *, const void *, const void *, const float *, const float *, void *, uint8_t *);
    void (*norm_forward)(const sepnet_norm *, const void *, const double *, const void *, const float *, const float *, double,
                         const sepnet_running *, float *, void *, uint8_t *, void *);
    void (*norm_sums)(const sepnet_norm *, const void *, const void *, const uint8_t *, const void *, const float *, void *,
                      double *, void *);
    void (*norm_gradients)(const sepnet_norm *, const double *, float *, float *, float *);
    void (*norm_input_gradient)(const sepnet_norm *, const void *, const void *, const uint8_t *, const void *, const float *,
                                void *);
    void (*norm_backward)(const sepnet_norm *, const void *, const void *, const uint8_t *, const void *, float *, void *, void *,
                          float *, float *, void *);
    int64_t (*pooled_pointwise_workspace)(const sepnet_norm *, int64_t, int);
    void (*pooled_pointwise_forward)(const sepnet_norm *, int64_t, const void *, const float *, const float *, const float *, double,
                                     const sepnet_running *, float *, double *, void *, uint8_t *, void *);
    void (*pooled_pointwise_backward)(const sepnet_norm *, int64_t, const void *, const float *, const uint8_t *, const void *, float *,
                                      const double *, void *, float *, float *, float *, void *);
    sepnet_pointwise_ops pointwise; /* of float32 */
    sepnet_muon_ops muon;
} sepnet_ops;

extern const sepnet_ops sepnet_ops_baseline;
#if defined(__x86_64__)
extern const sepnet_ops sepnet_ops_avx2, sepnet_ops_avx512, sepnet_ops_avx512_bf16;
extern const sepnet_pointwise_ops sepnet_pair_pointwise; /* of bfloat16, by vectors */
#endif
#if defined(SEPNET_AMX)
extern const sepnet_pointwise_ops sepnet_amx_pointwise;
extern const sepnet_muon_ops sepnet_amx_muon;

int sepnet_has_amx_bf16(void);
#endif

/* One of the threads that share the parts of a call. */
typedef struct {
    int64_t index, done; /* from 0, below the number of threads; how many parts it has computed before */
} sepnet_worker;

typedef void (*sepnet_body)(void *context, int64_t part, sepnet_worker worker);

/* Calls body(context, part, worker) once for every part in [0, parts), on up to `threads` threads. Which thread runs a part is not
 * fixed; what a part computes must not depend on it, so that results do not depend on the timing. */
void sepnet_run_parts(sepnet_body body, void *context, int64_t parts, int64_t threads);

/* Bytes of planes that one task may have: they are to stay in the L2 cache of a core. */
int64_t sepnet_band_bytes(void);

/* Bytes of a map of results from which on those that fill cache lines (results.h) are written past the caches: whoever reads them next
 * finds few of them there anyway, and a line that is to be overwritten is not read first. `gaps`: pixels that no tap sees lie between
 * them, whose gradients are zeros. */
int64_t sepnet_stream_bytes(int gaps);

/* Whether bfloat16 maps of depthwise convolutions become planes of pairs, where the instruction set has them (pairing.h). */
int sepnet_multiplies_pairs(void);

/* Whether what a task unpacks next is fetched while it computes (ahead.h). */
int sepnet_fetches_ahead(void);

/* Whether whole vectors that a task is about to unpack are fetched into the L1 cache. */
int sepnet_fetches_near(void);

int sepnet_is_intel_with_bf16(void);

/* First of the items that part `part` of `parts` takes when `items` are dealt out evenly. */
static inline int64_t sepnet_part_begin(int64_t items, int64_t parts, int64_t part) { return items * part / parts; }

static inline int64_t sepnet_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t sepnet_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t sepnet_round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

/* Floor division and its remainder in [0, b), b > 0: C rounds towards zero. */
static inline int64_t sepnet_floor_div(int64_t a, int64_t b) { return (a >= 0 ? a : a - b + 1) / b; }

#endif
