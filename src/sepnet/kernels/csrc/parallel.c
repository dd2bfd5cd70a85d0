/* Threads: the team of the runtime that the caller works with (libgomp, through GOMP_parallel), or a small pool of our own.
 *
 * Two pools in one process get into each other's way: an idle OpenMP team spins for a while after each region, on the very
 * cores that ours would need. So PyTorch's own team is used wherever its entry point can be found. */
#include "internal.h"

#include <pthread.h>
#include <stdatomic.h>

/* Neighbouring parts are neighbouring memory, and whoever comes before and after deals a map out as this does: PyTorch, oneDNN and
 * these kernels give each thread one piece of it. So a thread begins with the parts of its own seat, whose values lie in its caches,
 * and takes others' when it has done those. */
enum { MOST_SEATS = 64, LINE = 64 };

typedef struct {
    _Alignas(LINE) atomic_llong next; /* threads that count do not wait for one another */
    int64_t end;
} seat;

typedef struct {
    sepnet_body body;
    void *context;
    int64_t parts, threads, count;
    atomic_llong workers;
    seat seats[MOST_SEATS]; /* as many as `count`; of more threads several share one */
} job;

static _Atomic(sepnet_parallel_fn) parallel = NULL;
static _Atomic(sepnet_thread_fn) thread_number = NULL;
static _Thread_local int64_t pool_number = 0; /* in the pool of our own, from 1; 0 is whoever calls */

static void deal_out(job *j) {
    j->count = sepnet_min(j->threads, MOST_SEATS);
    for (int64_t i = 0; i < j->count; i++) {
        atomic_init(&j->seats[i].next, sepnet_part_begin(j->parts, j->count, i));
        j->seats[i].end = sepnet_part_begin(j->parts, j->count, i + 1);
    }
}

static void run_job(void *argument) {
    job *j = argument;
    sepnet_worker worker = {atomic_fetch_add_explicit(&j->workers, 1, memory_order_relaxed), 0};
    if (worker.index >= j->threads) return; /* entered more often than was asked for: there is no memory for it */
    sepnet_thread_fn number = atomic_load_explicit(&thread_number, memory_order_relaxed);
    int64_t own = number ? number() : pool_number;
    for (int64_t i = 0; i < j->count; i++) {
        seat *from = &j->seats[(own + i) % j->count];
        if (atomic_load_explicit(&from->next, memory_order_relaxed) >= from->end) continue; /* only read, its line stays everyone's */
        for (;; worker.done++) {
            int64_t part = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
            if (part >= from->end) break;
            j->body(j->context, part, worker);
        }
    }
}

/* --- the pool of our own ------------------------------------------------------------------------------------------ */

enum { MAX_WORKERS = 255 };

static struct {
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, done;
    job *current;
    int64_t workers, wanted, running;
    uint64_t generation;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static pthread_mutex_t pool_owner = PTHREAD_MUTEX_INITIALIZER; /* held for the length of one parallel region */
static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

/* Of the workers the first ones take part, so that a number is always the same thread's. */
static void *work(void *number) {
    pool_number = (intptr_t)number;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.generation == seen || pool_number > pool.wanted) {
            seen = pool.generation;
            pthread_cond_wait(&pool.wake, &pool.lock);
        }
        seen = pool.generation;
        pool.running++;
        job *j = pool.current;
        pthread_mutex_unlock(&pool.lock);
        run_job(j);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* A forked child has none of the parent's threads; its locks may have been held by one of them. */
static void forget_workers(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t none = PTHREAD_COND_INITIALIZER;
    pool.lock = pool_owner = fresh;
    pool.wake = pool.done = none;
    pool.workers = pool.wanted = pool.running = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

static void pool_parallel(void (*fn)(void *), void *context, unsigned threads, unsigned flags) {
    (void)flags;
    pthread_once(&pool_once, watch_forks);
    if (pthread_mutex_trylock(&pool_owner) != 0) { /* another thread has the pool: work alone */
        fn(context);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    int64_t helpers = sepnet_min((int64_t)threads - 1, MAX_WORKERS);
    while (pool.workers < helpers) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)(intptr_t)(pool.workers + 1)) != 0) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pool.current = context;
    pool.wanted = sepnet_min(helpers, pool.workers);
    pool.generation++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    fn(context);
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0; /* who has not begun finds nothing left to do */
    while (pool.running > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool_owner);
}

/* ------------------------------------------------------------------------------------------------------------------ */

void sepnet_set_parallel(sepnet_parallel_fn function, sepnet_thread_fn number) {
    atomic_store(&thread_number, function ? number : NULL);
    atomic_store(&parallel, function);
}

void sepnet_run_parts(sepnet_body body, void *context, int64_t parts, int64_t threads) {
    threads = sepnet_max(1, sepnet_min(threads, parts));
    if (threads == 1) {
        for (sepnet_worker worker = {0, 0}; worker.done < parts; worker.done++) body(context, worker.done, worker);
        return;
    }
    job j; /* 4 KB, of which most are never looked at */
    j.body = body, j.context = context, j.parts = parts, j.threads = threads;
    atomic_init(&j.workers, 0);
    deal_out(&j);
    sepnet_parallel_fn run = atomic_load(&parallel);
    (run ? run : pool_parallel)(run_job, &j, (unsigned)j.threads, 0);
}
