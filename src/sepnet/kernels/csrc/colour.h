/* Five images of three channels in bfloat16, as the nets' first layers have them: their pixels come together in a vector, and its
 * results go apart, by permutations of quads (a pixel's values and one more, eight bytes), where one by one they would take longer
 * than the arithmetic. Other counts and types are few; unpack.h and results.h take them value by value. */

enum { COLOURS = 3, COLOUR_IMAGES = 5 };

#ifdef HAVE_AVX512
/* Words of the quads, or of the values, that stand side by side. */
#define EACH_VALUE(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14)

INLINE int64_t load_quad(const uint16_t *from) {
    int64_t quad;
    memcpy(&quad, from, sizeof quad);
    return quad;
}

/* The pixels at the same place of five images, `image` elements apart, as floats; lane 15 is zero. Eight bytes are read of each. */
INLINE vf gather_colours(const uint16_t *from, int64_t image) {
    /* a float's upper half is the value, so the odd words are taken, and the even ones stay zero */
#define ODD_WORD(j) 0, j / COLOURS * 4 + j % COLOURS,
    static const uint16_t order[32] __attribute__((aligned(64))) = {EACH_VALUE(ODD_WORD) 0, 0};
#undef ODD_WORD
    __m128i first = _mm_cvtsi64_si128(load_quad(from)), second = _mm_cvtsi64_si128(load_quad(from + 2 * image));
    const __m128i third = _mm_cvtsi64_si128(load_quad(from + 4 * image));
    first = _mm_insert_epi64(first, load_quad(from + image), 1), second = _mm_insert_epi64(second, load_quad(from + 3 * image), 1);
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    const __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_castsi128_si256(third), 1);
    return (vf)_mm512_maskz_permutexvar_epi16(0x2aaaaaaa, *(const __m512i *)order, all);
}

INLINE void put_colours(uint16_t *to, int64_t values) {
    const uint32_t two = (uint32_t)values;
    const uint16_t one = (uint16_t)(values >> 32);
    memcpy(to, &two, sizeof two), memcpy(to + 2, &one, sizeof one);
}

/* Lanes 0 to 14 to the same place of five images. */
INLINE void scatter_colours(uint16_t *to, int64_t image, vf value) {
#define QUAD_OF(i) COLOURS * i, COLOURS * i + 1, COLOURS * i + 2, 15,
    static const uint16_t order[32] __attribute__((aligned(64))) = {QUAD_OF(0) QUAD_OF(1) QUAD_OF(2) QUAD_OF(3) QUAD_OF(4) 0};
#undef QUAD_OF
    const __m512i halves = _mm512_castsi256_si512((__m256i)narrow(value));
    const __m512i all = _mm512_permutexvar_epi16(*(const __m512i *)order, halves);
    const __m128i first = _mm512_castsi512_si128(all), second = _mm512_extracti64x2_epi64(all, 1), third = _mm512_extracti64x2_epi64(all, 2);
    put_colours(to, _mm_cvtsi128_si64(first)), put_colours(to + image, _mm_extract_epi64(first, 1));
    put_colours(to + 2 * image, _mm_cvtsi128_si64(second)), put_colours(to + 3 * image, _mm_extract_epi64(second, 1));
    put_colours(to + 4 * image, _mm_cvtsi128_si64(third));
}
static int are_colours(int64_t images, int lanes, int64_t step, int dtype) {
    return images == COLOUR_IMAGES && lanes == COLOURS && step == 1 && dtype == SEPNET_BFLOAT16;
}
#endif
