# Keys: how they compare, and the heads of them that slots hold.

cdef inline int compare_bytes(const uint8_t *a, int alen, const uint8_t *b, int blen) noexcept nogil:
    return compare_keys(a, alen, b, blen, 0)


cdef int compare_other(int comparator, const uint8_t *a, int alen, const uint8_t *b, int blen) noexcept nogil:
    """The lengths are those of cells. What lies in them may be half written (page_find), and is believed only within them."""
    cdef uint64_t x, y
    cdef int64_t i, j
    cdef int m, n, c
    if comparator == CMP_REVERSE:
        return -compare_bytes(a, alen, b, blen)
    if comparator == CMP_PAIR:
        if alen < 4 or blen < 4:
            return alen - blen
        m = min(<int> ld16(a), alen - 4)
        n = min(<int> ld16(b), blen - 4)
        c = compare_bytes(a + 2, m, b + 2, n)
        return c if c else compare_bytes(a + m + 4, alen - m - 4, b + n + 4, blen - n - 4)
    if alen < 8 or blen < 8:
        return alen - blen
    if comparator == CMP_U64_LE:
        x = ld64(a)
        y = ld64(b)
        return (x > y) - (x < y)
    i = <int64_t> ld64(a)
    j = <int64_t> ld64(b)
    return (i > j) - (i < j)


cdef inline int dup_split(const uint8_t *key, int klen) noexcept nogil:
    """Where the key ends and the value begins in a record of a tree with duplicates: key, value, u16 key length."""
    return ld16(key + klen - 2)


cdef inline int compare(Shape *s, const uint8_t *a, int alen, const uint8_t *b, int blen) noexcept nogil:
    cdef int m, n, c
    if s.duplicates:
        if alen < 2 or blen < 2:
            return alen - blen
        m = min(dup_split(a, alen), alen - 2)
        n = min(dup_split(b, blen), blen - 2)
        if s.comparator == CMP_BYTES or s.comparator == CMP_U64_BE:
            c = compare_bytes(a, m, b, n)
        else:
            c = compare_other(s.comparator, a, m, b, n)
        return c if c else compare_bytes(a + m, alen - m - 2, b + n, blen - n - 2)
    if s.comparator == CMP_BYTES or s.comparator == CMP_U64_BE:
        return compare_bytes(a, alen, b, blen)
    return compare_other(s.comparator, a, alen, b, blen)


cdef inline uint32_t head_of(Shape *s, const uint8_t *key, int klen, int skip) noexcept nogil:
    """A number that never orders two keys the wrong way round: kept in the slot, so that a search reads no cell."""
    if s.duplicates and klen:
        klen = dup_split(key, klen)
    if s.comparator == CMP_BYTES or s.comparator == CMP_U64_BE:
        return first_four(key + skip, klen - skip)
    if s.comparator == CMP_REVERSE:
        return ~first_four(key, klen)
    if klen == 0:
        return 0
    if s.comparator == CMP_U64_LE:
        return <uint32_t> (ld64(key) >> 32)
    if s.comparator == CMP_I64:
        return <uint32_t> (ld64(key) >> 32) ^ 0x80000000u
    return first_four(key + 2, ld16(key))


cdef inline int common_prefix(const uint8_t *a, int alen, const uint8_t *b, int blen) noexcept nogil:
    cdef int n = alen if alen < blen else blen, i = 0
    while i + 8 <= n and ld64(a + i) == ld64(b + i):
        i += 8
    while i < n and a[i] == b[i]:
        i += 1
    return i
