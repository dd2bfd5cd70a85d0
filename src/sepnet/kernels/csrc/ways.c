/* A table of the convolutions that are called by way of PyTorch's dispatcher, where Python has no say any more: what it has told of each,
 * for its backward pass too. Whoever reads takes no lock, as entries stay what and where they are until all is forgotten. */
#include "ways.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { MOST = 1 << 14, SLOTS = 2 * MOST };

typedef struct {
    sepnet_depthwise conv; /* threads: 0 */
    atomic_llong told; /* most_threads * 4 + by_torch */
} entry;

static entry entries[MOST];
static int count;
static _Atomic(entry *) slots[SLOTS];
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

static uint64_t hash(const sepnet_depthwise *conv) {
    const unsigned char *bytes = (const unsigned char *)conv;
    uint64_t h = 0, word;
    for (size_t i = 0; i < sizeof *conv; i += sizeof word) {
        memcpy(&word, bytes + i, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u; /* Fibonacci hashing */
        h ^= h >> 29;
    }
    return h;
}

static sepnet_depthwise key_of(const sepnet_depthwise *conv) {
    sepnet_depthwise key = *conv;
    key.threads = 0;
    return key;
}

/* Its entry; NULL, with the slot where it would be, if there is none. */
static entry *find(const sepnet_depthwise *key, _Atomic(entry *) **slot) {
    for (uint64_t at = hash(key);; at++) {
        *slot = slots + at % SLOTS;
        entry *e = atomic_load_explicit(*slot, memory_order_acquire);
        if (!e || memcmp(&e->conv, key, sizeof *key) == 0) return e;
    }
}

int sepnet_tell_way(const sepnet_depthwise *conv, int by_torch, int64_t most_threads) {
    const sepnet_depthwise key = key_of(conv);
    const long long told = most_threads * 4 + by_torch;
    _Atomic(entry *) *slot;
    int failed = 0;
    pthread_mutex_lock(&writing);
    entry *e = find(&key, &slot);
    if (e) {
        atomic_store(&e->told, told);
    } else if (count < MOST) {
        e = entries + count++;
        e->conv = key;
        atomic_init(&e->told, told);
        atomic_store_explicit(slot, e, memory_order_release);
    } else {
        failed = -1;
    }
    pthread_mutex_unlock(&writing);
    return failed;
}

void sepnet_forget_ways(void) {
    pthread_mutex_lock(&writing);
    for (int i = 0; i < SLOTS; i++) atomic_store(slots + i, (entry *)NULL);
    count = 0;
    pthread_mutex_unlock(&writing);
}

int sepnet_way_of(const sepnet_depthwise *conv, sepnet_way *way) {
    const sepnet_depthwise key = key_of(conv);
    _Atomic(entry *) *slot;
    const entry *e = find(&key, &slot);
    if (!e) return 0;
    const long long told = atomic_load(&e->told);
    way->by_torch = (int)(told & 3), way->most_threads = told >> 2;
    return 1;
}
