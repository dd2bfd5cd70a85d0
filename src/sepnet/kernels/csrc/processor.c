/* What is fastest on this processor beyond its instruction set, as far as it was measured (LOG.md). */
#include "internal.h"

#include <stdatomic.h>
#include <unistd.h>

/* Measured with 512 KB, 1 MB and 2 MB of L2 cache; where nobody knows its size, the smallest is taken. (Tests set much less.) */
static int64_t find_band_bytes(void) {
#if defined(BAND_BYTES)
    return BAND_BYTES;
#elif defined(_SC_LEVEL2_CACHE_SIZE)
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return size >= 2 << 20 ? 1280 << 10 : size >= 1 << 20 ? 640 << 10 : 384 << 10;
#else
    return 384 << 10;
#endif
}

int64_t sepnet_band_bytes(void) {
    static atomic_llong known = 0; /* looking takes longer than a small convolution where a hypervisor answers for the processor */
    long long bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes != 0) return bytes;
    /* cores may differ: what one caller found is everyone's, as workspaces are measured by it */
    const long long found = find_band_bytes();
    return atomic_compare_exchange_strong(&known, &bytes, found) ? found : bytes;
}

/* Xeon 6 was measured. It takes two cycles for the pairs that AMD multiplies in one half, so that floats are faster; and a core of it
 * waits so long for memory that what it needs next must be under way while it computes, which AMD's gain nothing by. */
int sepnet_is_intel(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") != 0;
#else
    return 0;
#endif
}

/* A Xeon 6 shares 480 MB of cache among its cores, where two of them find 64 MB again and more: lines past the caches make a map of 8 to
 * 32 MB half as fast to write once more, and to read; but not where three of four pixels are zeros. (Tests set less.) */
int64_t sepnet_stream_bytes(int mostly_zeros) {
#if defined(STREAM_BYTES)
    (void)mostly_zeros;
    return STREAM_BYTES;
#else
    return sepnet_is_intel() && !mostly_zeros ? 64 << 20 : 8 << 20;
#endif
}

/* (Tests do on every processor.) */
int sepnet_fetches_ahead(void) {
#if defined(FETCH_AHEAD)
    return FETCH_AHEAD;
#else
    return sepnet_is_intel();
#endif
}
