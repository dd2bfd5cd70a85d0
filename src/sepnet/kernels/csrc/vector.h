/* A vector of VL floats, and loads and stores of float32 and bfloat16 channels. Written in the vector extensions of GCC and
 * Clang, so that the same source serves every instruction set; intrinsics stand only where these have no word for it.
 *
 * The including file has set VL (floats a vector) and, where the processor has them, HAVE_AVX512 and HAVE_AVX512_BF16, or HAVE_AVX2. */
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* of functions that return vectors: all of them are inlined */

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef float vfu __attribute__((vector_size(VL * 4), may_alias, aligned(4)));
typedef double vd __attribute__((vector_size(VL * 8), may_alias));
typedef double vdu __attribute__((vector_size(VL * 8), may_alias, aligned(8)));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2), may_alias));
typedef uint16_t vhu __attribute__((vector_size(VL * 2), may_alias, aligned(2)));
typedef uint8_t vb __attribute__((vector_size(VL), may_alias));
typedef uint8_t vbu __attribute__((vector_size(VL), may_alias, aligned(1)));

#define INLINE static inline __attribute__((always_inline, unused))

enum { ALIGN = 64 }; /* bytes: pieces of a workspace */

INLINE int64_t aligned(int64_t bytes) { return sepnet_round_up(bytes, ALIGN); }

/* Zero taken away changes no value; added, it would turn -0 into 0, for which the compiler adds it. */
INLINE vf splat(float value) { return value - (vf){0}; }

/* Cuts below zero and lets a NaN through. */
INLINE vf relu(vf value) { return (vf)((vu)value & ~(vu)(value < 0)); }

INLINE vf choose(vi condition, vf yes, vf no) { return (vf)(((vu)condition & (vu)yes) | (~(vu)condition & (vu)no)); }

/* The larger one; what is no number stays so. */
INLINE vf at_least(float least, vf value) {
#if defined(HAVE_AVX512)
    return (vf)_mm512_max_ps((__m512)splat(least), (__m512)value); /* of a NaN and another the second one */
#elif defined(HAVE_AVX2)
    return (vf)_mm256_max_ps((__m256)splat(least), (__m256)value);
#else
    return choose((vi)(value < least), splat(least), value);
#endif
}

/* Conversions between lengths are intrinsics where the processor has them: GCC takes long vectors apart for them. */
INLINE vd in_double(vf value) {
#ifdef HAVE_AVX512
    union {
        __m512d part[2];
        vd whole;
    } both = {{_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)value)),
               _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)value, 1))}};
    return both.whole;
#else
    return __builtin_convertvector(value, vd);
#endif
}

INLINE vf widen(vh half) {
#ifdef HAVE_AVX512
    return (vf)((vu)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#else
    return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}

/* The bits of bfloat16 values from those of floats, in vectors of any length: round to nearest even; where `nan`, it stays one. */
#define HALF_BITS(bits, nan) (((((bits) + 0x7fff + (((bits) >> 16) & 1)) >> 16) & ~(nan)) | ((((bits) >> 16) | 0x40) & (nan)))

INLINE vh narrow(vf value) {
#ifdef HAVE_AVX512_BF16
    return (vh)_mm512_cvtneps_pbh((__m512)value);
#else
    vu bits = (vu)value, nan = (vu)(value != value);
    return __builtin_convertvector(HALF_BITS(bits, nan), vh);
#endif
}

/* Of values from 0 to 127. */
INLINE vb in_bytes(vi value) {
#ifdef HAVE_AVX512
    return (vb)_mm512_cvtepi32_epi8((__m512i)value);
#elif defined(HAVE_AVX2)
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)value), _mm256_extracti128_si256((__m256i)value, 1));
    uint64_t bytes = (uint64_t)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
    return (vb)bytes;
#else
    return __builtin_convertvector(value, vb);
#endif
}

INLINE vi from_bytes(vb bytes) {
#ifdef HAVE_AVX512
    return (vi)_mm512_cvtepu8_epi32((__m128i)bytes);
#elif defined(HAVE_AVX2)
    return (vi)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
#else
    return __builtin_convertvector(bytes, vi);
#endif
}

INLINE size_t element_size(int dtype) { return dtype == SEPNET_BFLOAT16 ? 2 : 4; }

/* `lanes` (1 to VL) channels from element `index` on; the other lanes are zero. dtype and lanes == VL are compile-time
 * constants where it matters, after inlining. */
INLINE vf load_lanes(const void *base, int64_t index, int lanes, int dtype) {
    if (lanes == VL) {
        if (dtype == SEPNET_BFLOAT16) return widen(*(const vhu *)((const uint16_t *)base + index));
        return *(const vfu *)((const float *)base + index);
    }
#ifdef HAVE_AVX512
    __mmask16 mask = (__mmask16)((1u << lanes) - 1);
    if (dtype == SEPNET_BFLOAT16) return widen((vh)_mm256_maskz_loadu_epi16(mask, (const uint16_t *)base + index));
    return (vf)_mm512_maskz_loadu_ps(mask, (const float *)base + index);
#else
    if (dtype == SEPNET_BFLOAT16) {
        vh half = {0};
        for (int i = 0; i < lanes; i++) half[i] = ((const uint16_t *)base)[index + i];
        return widen(half);
    }
    vf value = {0};
    for (int i = 0; i < lanes; i++) value[i] = ((const float *)base)[index + i];
    return value;
#endif
}

INLINE void store_lanes(void *base, int64_t index, int lanes, int dtype, vf value) {
    if (lanes == VL) {
        if (dtype == SEPNET_BFLOAT16)
            *(vhu *)((uint16_t *)base + index) = narrow(value);
        else
            *(vfu *)((float *)base + index) = value;
        return;
    }
#ifdef HAVE_AVX512
    __mmask16 mask = (__mmask16)((1u << lanes) - 1);
    if (dtype == SEPNET_BFLOAT16)
        _mm256_mask_storeu_epi16((uint16_t *)base + index, mask, (__m256i)narrow(value));
    else
        _mm512_mask_storeu_ps((float *)base + index, mask, (__m512)value);
#else
    if (dtype == SEPNET_BFLOAT16) {
        vh half = narrow(value);
        for (int i = 0; i < lanes; i++) ((uint16_t *)base)[index + i] = half[i];
    } else {
        for (int i = 0; i < lanes; i++) ((float *)base)[index + i] = value[i];
    }
#endif
}

/* Every `step`-th element: the channels of one branch among interleaved ones. */
INLINE vf load_strided(const void *base, int64_t index, int64_t step, int lanes, int dtype) {
    if (step == 1) return load_lanes(base, index, lanes, dtype);
    if (dtype == SEPNET_BFLOAT16) {
        vh half = {0};
        for (int i = 0; i < lanes; i++) half[i] = ((const uint16_t *)base)[index + i * step];
        return widen(half);
    }
    vf value = {0};
    for (int i = 0; i < lanes; i++) value[i] = ((const float *)base)[index + i * step];
    return value;
}

INLINE void store_strided(void *base, int64_t index, int64_t step, int lanes, int dtype, vf value) {
    if (step == 1) {
        store_lanes(base, index, lanes, dtype, value);
        return;
    }
    if (dtype == SEPNET_BFLOAT16) {
        vh half = narrow(value);
        for (int i = 0; i < lanes; i++) ((uint16_t *)base)[index + i * step] = half[i];
    } else {
        for (int i = 0; i < lanes; i++) ((float *)base)[index + i * step] = value[i];
    }
}

/* --- pairs: two bfloat16 values in a float's place ------------------------------------------------------------------------- */

#ifdef HAVE_AVX512_BF16
enum { HAVE_PAIRS = 1 }; /* multiplied by one instruction, where floats take two */
#else
enum { HAVE_PAIRS = 0 };
#endif

/* What a plane holds, and so how its vectors are multiplied by weights: floats; pairs, both halves; pairs, the first half alone. */
enum { FLOATS, PAIRS, FIRST_HALF };

INLINE vf first_half(vf pairs) { return (vf)((vu)pairs << 16); }

INLINE vf second_half(vf pairs) { return (vf)((vu)pairs & 0xffff0000u); }

/* As it is to be multiplied. */
INLINE vf load_factor(const float *from, const int mode) {
    const vf value = *(const vf *)from;
    return mode == FIRST_HALF ? first_half(value) : value;
}

INLINE vf add_product(vf sum, vf x, vf y, const int mode) {
    if (mode != PAIRS) return sum + x * y;
#ifdef HAVE_AVX512_BF16
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    return sum + first_half(x) * first_half(y) + second_half(x) * second_half(y);
#endif
}

#ifdef HAVE_AVX512_BF16
/* VL pairs, of the first half's values and the second's. */
INLINE vf pair_halves(__m512i both) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(order, both);
}
#endif

/* VL pairs of the values at `first` and at `second`. */
INLINE vf load_pairs(const uint16_t *first, const uint16_t *second) {
#ifdef HAVE_AVX512_BF16
    return pair_halves(_mm512_inserti64x4(_mm512_castsi256_si512(*(const __m256i_u *)first), *(const __m256i_u *)second, 1));
#else
    return (vf)((vu)widen(*(const vhu *)second) | ((vu)widen(*(const vhu *)first) >> 16));
#endif
}

INLINE uint32_t half_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t nan = value != value ? ~0u : 0;
    return HALF_BITS(bits, nan);
}

INLINE float pair_of(float first, float second) {
    const uint32_t bits = half_bits(first) | half_bits(second) << 16;
    float pair;
    memcpy(&pair, &bits, sizeof pair);
    return pair;
}

/* To the nearest bfloat16. */
INLINE float rounded_to_half(float value) {
    const uint32_t bits = half_bits(value) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float load_one(const void *base, int64_t index, int dtype) {
    if (dtype == SEPNET_FLOAT32) return ((const float *)base)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)base)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* --- whole cache lines past the caches ------------------------------------------------------------------------------------ */

enum { CACHE_LINE = 64 }; /* bytes */

/* Vectors of VL results that make a line; 0 where lines cannot be written so. */
INLINE int64_t line_vectors(int dtype) {
#if defined(HAVE_AVX512) || defined(HAVE_AVX2)
    return CACHE_LINE / (VL * (int64_t)element_size(dtype));
#else
    (void)dtype;
    return 0;
#endif
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CHECKED_STORES /* the sanitizers do not see the instructions of stream_line */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CHECKED_STORES
#endif
#endif

/* A line at a multiple of its size, without reading what was there. Others see it after stream_fence. */
INLINE void stream_line(void *to, const void *from) {
#if defined(CHECKED_STORES)
    memcpy(to, from, CACHE_LINE);
#elif defined(HAVE_AVX512)
    _mm512_stream_si512(to, *(const __m512i *)from);
#elif defined(HAVE_AVX2)
    _mm256_stream_si256(to, *(const __m256i *)from);
    _mm256_stream_si256((__m256i *)to + 1, *((const __m256i *)from + 1));
#else
    memcpy(to, from, CACHE_LINE);
#endif
}

/* The same for a line of results of which only the last vector is not yet at `line`: stores of halves are not to be waited for, as a
 * load of the whole line would. */
INLINE void stream_results(char *to, char *line, vf last, const int dtype) {
#if defined(HAVE_AVX512) && !defined(CHECKED_STORES)
    const __m512i whole = dtype == SEPNET_BFLOAT16
        ? _mm512_inserti64x4(_mm512_castsi256_si512(*(const __m256i *)line), (__m256i)narrow(last), 1) : (__m512i)last;
    _mm512_stream_si512((__m512i *)to, whole);
#elif defined(HAVE_AVX2) && !defined(CHECKED_STORES)
    const __m256i end = dtype == SEPNET_BFLOAT16
        ? _mm256_set_m128i((__m128i)narrow(last), *(const __m128i *)(line + CACHE_LINE - 32)) : (__m256i)last;
    _mm256_stream_si256((__m256i *)to, *(const __m256i *)line);
    _mm256_stream_si256((__m256i *)to + 1, end);
#else
    store_lanes(line, (line_vectors(dtype) - 1) * VL, VL, dtype, last);
    memcpy(to, line, CACHE_LINE);
#endif
}

INLINE void stream_fence(void) {
#if defined(HAVE_AVX512) || defined(HAVE_AVX2)
    _mm_sfence();
#endif
}

/* Asks the memory for `bytes` from `at` on, for the L2 cache; returns their end. */
INLINE const char *fetch(const char *at, size_t bytes) {
    for (size_t done = 0; done < bytes; done += 64) __builtin_prefetch(at + done, 0, 2);
    return at + bytes;
}

/* --- sums over many pixels: short runs in float32, the runs in float64 --------------------------------------------------- */

/* Moments of values relative to an origin a channel: without one, a large mean would eat the variance's digits. */
typedef struct {
    vf origin, sum, square; /* of a run: about its first value */
    int64_t count;
} moments;

INLINE void add_value(moments *m, vf value) {
    vf shifted = value - m->origin;
    m->sum += shifted, m->square += shifted * shifted;
}

/* Adds a run to the sums about `origin`; `sums` and `squares` hold VL doubles each. */
INLINE void add_moments(double *sums, double *squares, vf origin, const moments *m) {
    vd apart = in_double(m->origin) - in_double(origin), sum = in_double(m->sum), all = apart * (double)m->count;
    *(vdu *)sums += sum + all;
    *(vdu *)squares += in_double(m->square) + apart * (2 * sum + all);
}

INLINE void add_doubles(double *to, vf values) { *(vdu *)to += in_double(values); }
