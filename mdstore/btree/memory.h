/* The kernel's allocator: malloc, with a countdown that lets a test fail any allocation. */
#ifndef MDSTORE_MEMORY_H
#define MDSTORE_MEMORY_H
#include <stdint.h>
#include <stdlib.h>

static int64_t memory_after = -1; /* allocations that still succeed; below zero: all do */
static int64_t memory_failures;   /* how many fail then */
static int64_t memory_failed;     /* and how many have */

static inline int memory_refused(void)
{
    if (__builtin_expect(__atomic_load_n(&memory_after, __ATOMIC_RELAXED) < 0, 1))
        return 0;
    if (memory_after > 0) {
        memory_after--;
        return 0;
    }
    if (memory_failures-- > 0) {
        memory_failed++;
        return 1;
    }
    __atomic_store_n(&memory_after, -1, __ATOMIC_RELAXED);
    return 0;
}
static inline void *take(size_t size) { return memory_refused() ? NULL : malloc(size); }
static inline void *take_zeroed(size_t n, size_t size) { return memory_refused() ? NULL : calloc(n, size); }
static inline void *take_more(void *old, size_t size) { return memory_refused() ? NULL : realloc(old, size); }
static inline void *take_aligned(size_t size) { return memory_refused() ? NULL : aligned_alloc(64, size); }
static inline void memory_fail(int64_t after, int64_t failures)
{
    memory_failures = failures;
    memory_failed = 0;
    __atomic_store_n(&memory_after, after, __ATOMIC_RELAXED);
}
#endif
