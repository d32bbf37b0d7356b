/* Finding a key in a page whose keys are ordered as plain bytes: what every operation does at every level, so it is written for the
 * processor. No branch depends on a comparison of heads (each would be guessed wrong every second time), and keys are compared
 * eight bytes at a time where they lie. docs/format/page.md has the layout, layout.pxi its numbers. */
#ifndef MDSTORE_SEARCH_H
#define MDSTORE_SEARCH_H
#include "sync.h"

#if defined(__GNUC__) && !defined(__clang__)
#define EITHER_WAY(x) __builtin_expect_with_probability(!!(x), 1, 0.5)
#else
#define EITHER_WAY(x) (x)
#endif

/* The first of the eight-byte slots lo to hi - 1 whose leading u32 is not below `head`; hi where there is none. */
static inline int lower_slot(const uint8_t *slots, int lo, int hi, uint32_t head)
{
    const uint8_t *base = slots + 8 * (long)lo;
    long n = hi - lo;
    while (n > 1) {
        long half = n >> 1;
        const uint8_t *next = base + 8 * half;
        base = EITHER_WAY(ld32(next - 8) < head) ? next : base;
        n -= half;
    }
    if (n == 1)
        base += 8 * (ld32(base) < head);
    return (int)((base - slots) >> 3);
}

/* Below, equal to or above zero, as memcmp and then the lengths say. The first `same` bytes are known to be equal. */
static inline int compare_keys(const uint8_t *a, int alen, const uint8_t *b, int blen, int same)
{
    int n = alen < blen ? alen : blen, i = same;
    uint64_t x, y;
    while (i + 8 <= n) {
        x = ld64(a + i);
        y = ld64(b + i);
        if (x != y)
            return be64(x) < be64(y) ? -1 : 1;
        i += 8;
    }
    if (i < n) {
        if (n >= 8) { /* the last eight; those of them seen already are equal */
            x = ld64(a + n - 8);
            y = ld64(b + n - 8);
            if (x != y)
                return be64(x) < be64(y) ? -1 : 1;
        } else {
            for (; i < n; i++)
                if (a[i] != b[i])
                    return a[i] < b[i] ? -1 : 1;
        }
    }
    return alen - blen;
}

/* The first four bytes as a big-endian number, zeros where there are fewer. */
static inline uint32_t first_four(const uint8_t *p, int n)
{
    uint32_t v = 0;
    int i;
    if (n >= 4)
        return be32(ld32(p));
    for (i = 0; i < n; i++)
        v |= (uint32_t)p[i] << (24 - 8 * i);
    return v;
}

#define PAGE_COUNT 26
#define PAGE_SKIP 36
#define PAGE_SLOTS 40
/* The first position at or after `lo` whose key is not below `key`; `found`: it is `key`. Safe on a leaf that another thread is changing
 * (the caller looks at the latch afterwards): no read leaves the page. */
static inline int find_plain(const uint8_t *page, int cap, int lo, const uint8_t *key, int klen, int *found)
{
    const uint8_t *slots = page + PAGE_SLOTS;
    int n = ld16(page + PAGE_COUNT), skip = ld16(page + PAGE_SKIP), most = (cap - PAGE_SLOTS) >> 3, i, hi, mid, c, off, len;
    uint32_t head;
    *found = 0;
    if (n > most)
        n = most;
    if (n <= lo)
        return lo;
    if (klen < skip) {
        off = ld16(slots + 8 * (n - 1) + 4);
        return off + skip <= cap && compare_keys(key, klen, page + off, klen, 0) > 0 ? n : lo;
    }
    head = first_four(key + skip, klen - skip);
    i = lower_slot(slots, lo, n, head);
    if (skip) {
        /* all keys share these bytes: look at them in the cell that is compared next anyway, whose lines are then asked for once */
        off = ld16(slots + 8 * (i < n ? i : n - 1) + 4);
        if (off + skip > cap)
            return lo;
        c = compare_keys(key, skip, page + off, skip, 0);
        if (c)
            return c > 0 ? n : lo;
    }
    if (i == n || ld32(slots + 8 * i) != head)
        return i;
    hi = i + 1;
    if (hi < n && ld32(slots + 8 * hi) == head)
        hi = head == 0xffffffffu ? n : lower_slot(slots, hi + 1, n, head + 1);
    while (i < hi) {
        mid = (i + hi) >> 1;
        off = ld16(slots + 8 * mid + 4);
        len = ld16(slots + 8 * mid + 6);
        if (off + len > cap || len < skip)
            return i;
        prefetch(page + off + 64); /* the value behind the key, should it be this one */
        prefetch(page + off + 128);
        c = compare_keys(key, klen, page + off, len, skip);
        if (c == 0) {
            *found = 1;
            return mid;
        }
        if (c < 0)
            hi = mid;
        else
            i = mid + 1;
    }
    return i;
}
#endif
