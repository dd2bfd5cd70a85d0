/* Matrices copied to what a tile of a product reads in order. One vector length; included after vector.h. */

/* Columns [begin, end) of so many rows, `step` values apart and read in their order, to panels `width` columns wide, [panel][row][width]
 * and `apart` values from panel to panel. Zeros lie beyond the last column. */
INLINE void pack_columns(const float *from, int64_t step, int64_t rows, int64_t begin, int64_t end, const int width, float *to,
                         int64_t apart) {
    for (int64_t r = 0; r < rows; r++, from += step, to += width) {
        float *at = to;
        int64_t c = begin;
        for (; c + width <= end; c += width, at += apart) memcpy(at, from + c, (size_t)width * sizeof *at);
        if (c < end)
            for (int i = 0; i < width; i++) at[i] = c + i < end ? from[c + i] : 0;
    }
}

/* 8 rows of 8 values, `step` apart, to columns, whose rows are `to_step` apart. */
INLINE void turn_square(const float *from, int64_t step, float *to, int64_t to_step) {
#if defined(HAVE_AVX2) || defined(HAVE_AVX512)
    __m256 row[8], pair[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) row[i] = _mm256_loadu_ps(from + i * step);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]), pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* columns i and i + 4 of rows 0 to 3, and of rows 4 to 7 */
        const int at = i / 2;
        __m256 upper = i % 2 ? _mm256_shuffle_ps(pair[at], pair[at + 2], 0xee) : _mm256_shuffle_ps(pair[at], pair[at + 2], 0x44);
        __m256 lower = i % 2 ? _mm256_shuffle_ps(pair[at + 4], pair[at + 6], 0xee) : _mm256_shuffle_ps(pair[at + 4], pair[at + 6], 0x44);
        _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(upper, lower, 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(upper, lower, 0x31));
    }
#else
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++) to[k * to_step + i] = from[i * step + k];
#endif
}

/* So many rows of `values`, `step` apart, to columns, whose rows are `to_step` apart. */
static __attribute__((unused)) void turn_rows(const float *from, int64_t step, int64_t rows, int64_t values, float *to, int64_t to_step) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8, from += 8 * step) {
        int64_t k = 0;
        for (; k + 8 <= values; k += 8) turn_square(from + k, step, to + k * to_step + r, to_step);
        for (; k < values; k++)
            for (int i = 0; i < 8; i++) to[k * to_step + r + i] = from[i * step + k];
    }
    for (; r < rows; r++, from += step)
        for (int64_t k = 0; k < values; k++) to[k * to_step + r] = from[k];
}

/* The same of rows and columns without gaps, whose numbers are constants. */
INLINE void turn_block(const float *from, const int rows, const int cols, float *to) {
    if (rows % 8 == 0 && cols % 8 == 0)
        for (int r = 0; r < rows; r += 8)
            for (int c = 0; c < cols; c += 8) turn_square(from + r * cols + c, cols, to + c * rows + r, rows);
    else
        for (int c = 0; c < cols; c++)
            for (int r = 0; r < rows; r++) to[c * rows + r] = from[r * cols + c];
}

#ifdef HAVE_AVX512
/* 16 vectors of 16 units, of which columns become vectors. */
INLINE void turn_units(vf line[VL]) {
    __m512 a[VL], b[VL];
#pragma GCC unroll 8
    for (int i = 0; i < VL; i += 2) {
        a[i] = _mm512_unpacklo_ps((__m512)line[i], (__m512)line[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps((__m512)line[i], (__m512)line[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < VL; i += 4)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm512_shuffle_ps(a[i + k], a[i + k + 2], 0x44);
            b[i + 2 * k + 1] = _mm512_shuffle_ps(a[i + k], a[i + k + 2], 0xee);
        }
    /* b[4 q + c]: of lines 4 q to 4 q + 3 the columns c, c + 4, c + 8, c + 12 */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512 even = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), odd = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
        const __m512 even2 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88), odd2 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
        line[c] = (vf)_mm512_shuffle_f32x4(even, even2, 0x88), line[c + 8] = (vf)_mm512_shuffle_f32x4(even, even2, 0xdd);
        line[c + 4] = (vf)_mm512_shuffle_f32x4(odd, odd2, 0x88), line[c + 12] = (vf)_mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
}
#endif
