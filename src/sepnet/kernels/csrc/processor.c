/* What is fastest on this processor beyond its instruction set, as far as it was measured (LOG.md). */
#include "internal.h"

#include <stdatomic.h>
#include <unistd.h>

#if defined(SEPNET_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

/* Xeon 6 was measured, and stands for the others. It takes two cycles for the pairs that AMD multiplies in one half, so that floats are
 * faster; and a core of it waits so long for memory that what it needs next must be under way while it computes, which AMD's gain
 * nothing by. */
int sepnet_is_intel_with_bf16(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

#if defined(SEPNET_AMX)
/* Linux gives a process the registers of tiles when it is asked, and once for all threads; some sandboxes do not. */
static int asks_for_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

int sepnet_has_amx_bf16(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_BF16 | AMX_TILE)) != (AMX_BF16 | AMX_TILE)) return 0;
    return asks_for_tiles();
}
#endif

/* Looking takes longer than a small convolution where a hypervisor answers for the processor, and cores may differ: what one caller found
 * is everyone's, as workspaces are measured by it. */
static int64_t look_once(atomic_llong *known, int64_t (*look)(void)) {
    long long bytes = atomic_load_explicit(known, memory_order_relaxed);
    if (bytes != 0) return bytes;
    const long long found = look();
    return atomic_compare_exchange_strong(known, &bytes, found) ? found : bytes;
}

/* Measured with 512 KB and 1 MB of L2 cache (AMD) and 2 MB (Intel); where nobody knows its size, the smallest is taken. (Tests set much
 * less.) */
static int64_t find_band_bytes(void) {
#if defined(BAND_BYTES)
    return BAND_BYTES;
#elif defined(_SC_LEVEL2_CACHE_SIZE)
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size >= 2 << 20 && sepnet_is_intel_with_bf16()) return 1280 << 10;
    return size >= 1 << 20 ? 640 << 10 : 384 << 10;
#else
    return 384 << 10;
#endif
}

int64_t sepnet_band_bytes(void) {
    static atomic_llong known = 0;
    return look_once(&known, find_band_bytes);
}

/* A Xeon 6 shares 480 MB of cache among its cores, where two of them find a map of 64 MB again: past the caches, maps of 8 to 32 MB take
 * up to twice as long to be written once more, and to be read. So an eighth of that cache. (Tests set less.) */
static int64_t find_stream_bytes(void) {
    const int64_t least = 8 << 20;
#if defined(STREAM_BYTES)
    (void)least;
    return STREAM_BYTES;
#elif defined(_SC_LEVEL3_CACHE_SIZE)
    return sepnet_is_intel_with_bf16() ? sepnet_max(least, sysconf(_SC_LEVEL3_CACHE_SIZE) / 8) : least;
#else
    return least;
#endif
}

int64_t sepnet_stream_bytes(int gaps) {
    static atomic_llong known = 0;
    const int64_t bytes = look_once(&known, find_stream_bytes);
    return gaps ? sepnet_min(bytes, 8 << 20) : bytes; /* zeros gain in every cache */
}

/* (Tests do on every processor.) */
int sepnet_fetches_ahead(void) {
#if defined(FETCH_AHEAD)
    return FETCH_AHEAD;
#else
    return sepnet_is_intel_with_bf16();
#endif
}

/* AMD's Zen 4 writes the planes meanwhile, which push what was fetched out of its small L1 cache, and has it from the L2 cache soon
 * enough: 0.97 to 1.2 times as fast, most where a normalisation is joined. */
int sepnet_fetches_near(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return !(__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f"));
#else
    return 1;
#endif
}
