/* The kernel's allocator: malloc, with a countdown that lets a test fail any allocation, and a size above which all fail. */
#ifndef MDSTORE_MEMORY_H
#define MDSTORE_MEMORY_H
#include <stdint.h>
#include <stdlib.h>

static int memory_armed;            /* one of the two is in force */
static int64_t memory_after = -1;   /* allocations that still succeed; below zero: all do */
static int64_t memory_failures;     /* how many fail then */
static int64_t memory_largest = -1; /* bytes of the largest that succeeds; below zero: any does */
static int64_t memory_failed;       /* how many have failed */

static __attribute__((noinline)) int memory_refused_now(size_t size)
{
    if (memory_largest >= 0 && size > (size_t)memory_largest) {
        memory_failed++;
        return 1;
    }
    if (memory_after < 0)
        return 0;
    if (memory_after > 0) {
        memory_after--;
        return 0;
    }
    if (memory_failures-- > 0) {
        memory_failed++;
        return 1;
    }
    memory_after = -1;
    return 0;
}
static inline int memory_refused(size_t size)
{
    return __builtin_expect(__atomic_load_n(&memory_armed, __ATOMIC_RELAXED), 0) && memory_refused_now(size);
}
static inline void *take(size_t size) { return memory_refused(size) ? NULL : malloc(size); }
static inline void *take_zeroed(size_t n, size_t size) { return memory_refused(n * size) ? NULL : calloc(n, size); }
static inline void *take_more(void *old, size_t size) { return memory_refused(size) ? NULL : realloc(old, size); }
static inline void *take_aligned(size_t size) { return memory_refused(size) ? NULL : aligned_alloc(64, size); }
static inline void memory_fail(int64_t after, int64_t failures)
{
    memory_failures = failures;
    memory_failed = 0;
    memory_after = after;
    __atomic_store_n(&memory_armed, after >= 0 || memory_largest >= 0, __ATOMIC_RELAXED);
}
static inline void memory_bound(int64_t largest)
{
    memory_failed = 0;
    memory_largest = largest;
    __atomic_store_n(&memory_armed, memory_after >= 0 || largest >= 0, __ATOMIC_RELAXED);
}
#endif
