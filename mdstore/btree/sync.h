/* Small machine words for the kernel: unaligned little-endian access, atomics, a reader-writer word, a version latch.
 *
 * The reader-writer word: bits 0 to 19 count readers, bit 20 a writer waits (new readers stand back), bit 21 a writer holds it,
 * the rest is a tally (a tree's records) that holders change. Waiting never happens with the interpreter lock held (see
 * _kernel.pyx), so a holder may take that lock. */
#ifndef MDSTORE_SYNC_H
#define MDSTORE_SYNC_H
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static inline uint16_t ld16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t ld32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t ld64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void st16(void *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void st32(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void st64(void *p, uint64_t v) { memcpy(p, &v, 8); }
static inline uint32_t be32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t be64(uint64_t v) { return __builtin_bswap64(v); }
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel's pages are little-endian in memory as on the device"
#endif

static inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void prefetch_node(const void *p) /* the line with the header, and the first 48 slots */
{
    const char *c = (const char *)p;
    __builtin_prefetch(c + 128, 0, 3);
    __builtin_prefetch(c + 192, 0, 3);
    __builtin_prefetch(c + 256, 0, 3);
    __builtin_prefetch(c + 320, 0, 3);
    __builtin_prefetch(c + 384, 0, 3);
    __builtin_prefetch(c + 448, 0, 3);
    __builtin_prefetch(c + 512, 0, 3);
}

static inline void prefetch_gap(const void *p) /* where a cell will be written */
{
    const char *c = (const char *)p;
    __builtin_prefetch(c, 1, 3);
    __builtin_prefetch(c + 64, 1, 3);
    __builtin_prefetch(c + 127, 1, 3);
}

static inline int32_t at_add32(int32_t *p, int32_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
static inline int32_t at_get32(int32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void at_set32(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline int at_inc_living(int32_t *p)
{
    int32_t v = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v > 0)
        if (__atomic_compare_exchange_n(p, &v, v + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return 1;
    return 0;
}
static inline int64_t at_add64(int64_t *p, int64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_RELAXED); }
static inline int64_t at_get64(int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void at_set64(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint8_t at_get8(uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void at_set8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void *at_getp(void *p) { return __atomic_load_n((void **)p, __ATOMIC_ACQUIRE); }
static inline void at_setp(void *p, void *v) { __atomic_store_n((void **)p, v, __ATOMIC_RELEASE); }
static inline int at_casp(void *p, void *expected, void *v)
{
    return __atomic_compare_exchange_n((void **)p, &expected, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* For tests: what is called where threads meet (api.pxi). Where nothing is set, a look at a word that no one changes. */
#define MEET_READ 1    /* a leaf was read, its version not yet looked at again */
#define MEET_COUNTED 2 /* one border of a count is known */
#define MEET_WAIT 3    /* a lock or a latch is not to be had at once */
#define MEET_ASIDE 4   /* a page is wanted, and no lock held */
#define MEET_FILE 5    /* a descriptor is read, and not closed meanwhile */
static void (*meeting)(int place);
static __attribute__((noinline, cold)) void met_there(void (*hook)(int), int place) { hook(place); }
static inline void meet(int place)
{
    void (*hook)(int) = __atomic_load_n(&meeting, __ATOMIC_RELAXED);
    if (__builtin_expect(hook != 0, 0))
        met_there(hook, place);
}

static inline void sync_pause(unsigned round)
{
    if (round == 0)
        meet(MEET_WAIT);
    if (round < 64) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    } else if (round < 256) {
        sched_yield();
    } else {
        struct timespec t = {0, 50000};
        nanosleep(&t, 0);
    }
}

#define RW_READERS 0xfffffull
#define RW_WAITING (1ull << 20)
#define RW_WRITER (1ull << 21)
#define RW_TALLY 22
static inline int rw_try_shared(uint64_t *w)
{
    uint64_t old = __atomic_fetch_add(w, 1, __ATOMIC_ACQUIRE);
    if (__builtin_expect((old & (RW_WRITER | RW_WAITING)) != 0, 0)) {
        __atomic_fetch_sub(w, 1, __ATOMIC_RELAXED);
        return 0;
    }
    return 1;
}
static inline void rw_lock_shared(uint64_t *w)
{
    for (unsigned round = 0; !rw_try_shared(w); round++)
        sync_pause(round);
}
/* The same for who may hold it shared already (a collection of garbage comes anywhere): a writer that only waits is not waited for. */
static inline void rw_lock_shared_again(uint64_t *w)
{
    for (unsigned round = 0; __atomic_fetch_add(w, 1, __ATOMIC_ACQUIRE) & RW_WRITER; round++) {
        __atomic_fetch_sub(w, 1, __ATOMIC_RELAXED);
        sync_pause(round);
    }
}
static inline void rw_unlock_shared(uint64_t *w) { __atomic_fetch_sub(w, 1, __ATOMIC_RELEASE); }
/* Let go and add to the tally at once: one locked instruction, where each costs a point write 10 ns. */
static inline void rw_unlock_shared_adding(uint64_t *w, int64_t amount)
{
    __atomic_fetch_add(w, ((uint64_t)amount << RW_TALLY) - 1, __ATOMIC_RELEASE);
}
static inline void rw_tally_add(uint64_t *w, int64_t amount)
{
    __atomic_fetch_add(w, (uint64_t)amount << RW_TALLY, __ATOMIC_RELAXED);
}
static inline int64_t rw_tally(uint64_t *w) { return (int64_t)__atomic_load_n(w, __ATOMIC_RELAXED) >> RW_TALLY; }
static inline int rw_try_exclusive(uint64_t *w)
{
    uint64_t old = __atomic_load_n(w, __ATOMIC_RELAXED);
    if (old & (RW_WRITER | RW_READERS))
        return 0;
    return __atomic_compare_exchange_n(w, &old, (old & ~RW_WAITING) | RW_WRITER, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}
static inline void rw_lock_exclusive(uint64_t *w)
{
    for (unsigned round = 0; !rw_try_exclusive(w); round++) {
        if (!(__atomic_load_n(w, __ATOMIC_RELAXED) & RW_WAITING))
            __atomic_fetch_or(w, RW_WAITING, __ATOMIC_RELAXED);
        sync_pause(round);
    }
}
/* Have everyone who tries it refused from now on, for good. 0: some have it still, after a few milliseconds: call it again. */
#define RW_SHUT_ROUNDS 300
static inline int rw_shut(uint64_t *w)
{
    for (unsigned round = 0; round < RW_SHUT_ROUNDS; round++) {
        if (!(__atomic_fetch_or(w, RW_WAITING, __ATOMIC_ACQ_REL) & RW_READERS))
            return 1;
        sync_pause(round);
    }
    return 0;
}
static inline void rw_unlock_exclusive(uint64_t *w) { __atomic_fetch_and(w, ~RW_WRITER, __ATOMIC_RELEASE); }

static inline void spin_lock(uint32_t *w)
{
    for (unsigned round = 0; __atomic_exchange_n(w, 1, __ATOMIC_ACQUIRE); round++)
        sync_pause(round);
}
static inline void spin_unlock(uint32_t *w) { __atomic_store_n(w, 0, __ATOMIC_RELEASE); }

/* A leaf's version: odd while a writer changes it in place. Readers copy what they want and look again. */
static inline uint32_t latch_read(uint32_t *v)
{
    uint32_t x;
    for (unsigned round = 0; (x = __atomic_load_n(v, __ATOMIC_ACQUIRE)) & 1; round++)
        sync_pause(round);
    return x;
}
static inline int latch_same(uint32_t *v, uint32_t seen)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    meet(MEET_READ);
    return __atomic_load_n(v, __ATOMIC_RELAXED) == seen;
}
/* Reads between a latch's two looks may meet a writer; what they saw is thrown away then. Sanitized builds are told so. */
#ifdef MDSTORE_RACES_ANNOTATED
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
static inline void race_begin(void) { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
static inline void race_end(void) { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
static inline void race_begin(void) {}
static inline void race_end(void) {}
#endif
static inline void latch_lock(uint32_t *v)
{
    for (unsigned round = 0;; round++) {
        uint32_t x = __atomic_load_n(v, __ATOMIC_RELAXED);
        if (!(x & 1) && __atomic_compare_exchange_n(v, &x, x + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            break;
        sync_pause(round);
    }
    __atomic_thread_fence(__ATOMIC_RELEASE);
}
static inline void latch_unlock(uint32_t *v) /* only the holder writes an odd version, so a plain store will do */
{
    __atomic_store_n(v, __atomic_load_n(v, __ATOMIC_RELAXED) + 1, __ATOMIC_RELEASE);
}
#endif
