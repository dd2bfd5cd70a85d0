/* The backward pass's way through a strip of windows: sums of the gradient and of its product with the kept pixels, and dL/dx as far
 * as it passes the results. One vector length; included after few.h and pool.h.
 *
 * Vectors are of results' channels. A window's four pixels are turned into quads, one an input, of which a permutation takes each
 * channel's kept one. For dL/dx the gradient is dealt out to the four pixels, zero for those that were not kept, and a pixel's inputs
 * are the vector, multiplied channel by channel, or, where the processor multiplies pairs of bfloat16 values, by two channels at once.
 * (To go by the index there is slower: a load follows a store whose place is not known yet.) */

typedef struct {
    float quads[STRIP][FEW][4] __attribute__((aligned(64)));
    int64_t windows, result; /* how many; element of the first one's result */
    float *sums, *dealt;     /* of the run of lines; [window][pixel][stride], floats or bfloat16 */
} few_strip;

static int deals_pairs(const few_job *s) { return HAVE_PAIRS && s->norm->dtype == SEPNET_BFLOAT16; }

INLINE void lay_quads(const few *const window[4], float (*quads)[4]) {
#if defined(HAVE_AVX512) || defined(HAVE_AVX2)
    for (int k = 0; k < FEW; k += 4) {
        __m128 a = _mm_loadu_ps((const float *)window[0] + k), b = _mm_loadu_ps((const float *)window[1] + k);
        __m128 c = _mm_loadu_ps((const float *)window[2] + k), d = _mm_loadu_ps((const float *)window[3] + k);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_store_ps(quads[k], a), _mm_store_ps(quads[k + 1], b), _mm_store_ps(quads[k + 2], c), _mm_store_ps(quads[k + 3], d);
    }
#else
    for (int k = 0; k < FEW; k++)
        for (int q = 0; q < 4; q++) quads[k][q] = (*window[q])[k];
#endif
}

/* Each lane's one of four values; any of them for SEPNET_CUT. */
INLINE vf pick(const float *quad, vi index) {
#ifdef HAVE_AVX512
    return (vf)_mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_load_ps(quad)), (__m512i)index);
#elif defined(HAVE_AVX2)
    return (vf)_mm256_permutevar_ps(_mm256_broadcast_ps((const __m128 *)quad), (__m256i)index);
#else
    vf kept = splat(quad[0]);
    for (int q = 1; q < 4; q++) kept = choose((vi)(index == q), splat(quad[q]), kept);
    return kept;
#endif
}

/* The gradient of a vector of results, dealt out to a window's four pixels: that of the kept one, and zero. */
INLINE void deal_floats(float *to, int64_t stride, vf grad, vi index) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
#ifdef HAVE_AVX512
        const __mmask16 kept = _mm512_cmpeq_epi32_mask((__m512i)index, _mm512_set1_epi32(q));
        *(vfu *)(to + q * stride) = (vf)_mm512_maskz_mov_ps(kept, (__m512)grad);
#else
        *(vfu *)(to + q * stride) = choose((vi)(index == q), grad, splat(0));
#endif
    }
}

#ifdef HAVE_AVX512_BF16
INLINE void deal_halves(uint16_t *to, int64_t stride, vf grad, vi index) {
    const __m256i halves = (__m256i)narrow(grad);
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        const __mmask16 kept = _mm512_cmpeq_epi32_mask((__m512i)index, _mm512_set1_epi32(q));
        _mm256_storeu_si256((__m256i *)(to + q * stride), _mm256_maskz_mov_epi16(kept, halves));
    }
}
#endif

INLINE void deal_gradient(const few_job *s, const few_strip *strip, int64_t window, int64_t channel, vf grad, vi index, int dtype) {
    const int64_t at = 4 * window * s->stride + channel;
#ifdef HAVE_AVX512_BF16
    if (dtype == SEPNET_BFLOAT16) {
        deal_halves((uint16_t *)strip->dealt + at, s->stride, grad, index);
        return;
    }
#else
    (void)dtype;
#endif
    deal_floats(strip->dealt + at, s->stride, grad, index);
}

/* K: the inputs, or more, all of which have sums of their own in registers. */
INLINE void gather_block(const few_job *s, const few_strip *strip, int64_t channel, int lanes, int dtype, const int K) {
    const int64_t stride = s->stride;
    vf sum = splat(0), product[FEW];
    for (int k = 0; k < K; k++) product[k] = splat(0);
    for (int64_t w = 0; w < strip->windows; w++) {
        const int64_t at = strip->result + w * s->norm->channels + channel;
        vf grad = load_lanes(s->grad, at, lanes, dtype);
        const vi index = load_index(s->kept, at, lanes);
        if (s->partial) deal_gradient(s, strip, w, channel, grad, index, dtype);
        grad = choose((vi)(index < SEPNET_CUT), grad, splat(0));
        sum += grad;
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) product[k] += pick(strip->quads[w][k], index) * grad;
    }
    float *to = strip->sums + channel;
    *(vfu *)to += sum;
    for (int k = 0; k < K; k++) *(vfu *)(to + (1 + k) * stride) += product[k];
}

static void gather_strip(const few_job *s, const few_strip *strip) {
#define GATHER(lanes, dtype) gather_block(s, strip, channel, lanes, dtype, K)
    BY_INPUTS(s, FOR_CHANNELS(s->norm, GATHER));
#undef GATHER
}

/* dL/dx of a window's pixels as far as it passes the results. */
INLINE void spread_window(const few_job *s, const float *dealt, few passed[4]) {
    const int64_t stride = s->stride;
    const few *weight = (const few *)s->weights;
    few a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t i = 0; i < s->norm->channels; i++) {
        const few row = weight[i];
        a += dealt[i] * row, b += dealt[i + stride] * row, c += dealt[i + 2 * stride] * row, d += dealt[i + 3 * stride] * row;
    }
    passed[0] = a, passed[1] = b, passed[2] = c, passed[3] = d;
}

#ifdef HAVE_AVX512_BF16
/* The same of `windows` (a constant) windows; even and odd pairs of channels are summed apart, to hide the latency. */
INLINE void spread_pairs(const few_job *s, const float *dealt, few (*passed)[4], const int windows) {
    const int64_t pairs = s->stride / 2;
    const int32_t *grad = (const int32_t *)dealt;
    const __m256i *weight = (const __m256i *)s->weights;
    __m256 sum[2][8];
    for (int k = 0; k < 4 * windows; k++) sum[0][k] = sum[1][k] = _mm256_setzero_ps();
    for (int64_t i = 0; i < pairs; i += 2)
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            const __m256bh row = (__m256bh)_mm256_loadu_si256(weight + i + odd);
#pragma GCC unroll 8
            for (int k = 0; k < 4 * windows; k++)
                sum[odd][k] = _mm256_dpbf16_ps(sum[odd][k], (__m256bh)_mm256_set1_epi32(grad[k * pairs + i + odd]), row);
        }
    for (int k = 0; k < 4 * windows; k++) passed[k / 4][k % 4] = (few)_mm256_add_ps(sum[0][k], sum[1][k]);
}
#endif

static void spread_strip(const few_job *s, const few_strip *strip, few (*passed)[4]) {
    int64_t w = 0;
#ifdef HAVE_AVX512_BF16
    if (deals_pairs(s)) {
        for (; w + 2 <= strip->windows; w += 2) spread_pairs(s, strip->dealt + 2 * w * s->stride, passed + w, 2);
        if (w < strip->windows) spread_pairs(s, strip->dealt + 2 * w * s->stride, passed + w, 1);
        return;
    }
#endif
    for (; w < strip->windows; w++) spread_window(s, strip->dealt + 4 * w * s->stride, passed[w]);
}

/* The weights of dL/dx, times the normalisation's scale: a vector of inputs a channel, or, in pairs, two channels. */
static void lay_backward(few_job *s, const float *weight, const float *scale) {
    const int64_t channels = s->norm->channels, inputs = s->inputs;
    memset(s->weights, 0, (size_t)(s->stride * FEW) * sizeof(float));
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < inputs; k++) {
            const float value = weight[c * inputs + k] * scale[c];
            if (!deals_pairs(s))
                s->weights[c * FEW + k] = value;
            else if (c % 2 == 0)
                s->weights[c / 2 * FEW + k] = pair_of(value, c + 1 < channels ? weight[(c + 1) * inputs + k] * scale[c + 1] : 0);
        }
}

/* A weight as dL/dx is computed with it, which it must be everywhere: parts of it cancel. */
static double weight_of_dx(const few_job *s, const float *weight, const float *scale, int64_t channel, int64_t k) {
    const float value = weight[channel * s->inputs + k], scaled = value * scale[channel];
    if (!deals_pairs(s) || scaled == 0) return (double)value;
    return (double)rounded_to_half(scaled) / (double)scale[channel];
}
