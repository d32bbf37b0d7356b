# Changing a page in place: cells put in and taken out, holes, the bytes brought together again.

cdef void page_reskip(Shape *s, uint8_t *page, int skip) noexcept nogil:
    cdef int i, first = 1 if page[OFF_LEVEL] else 0
    st16(page + OFF_SKIP, skip)
    for i in range(first, page_count(page)):
        st32(slot_at(page, i), head_of(s, cell_at(page, i), klen_at(page, i), skip))


cdef enum:
    COMPACT_STACK = 4096  # bytes of a page that are moved by way of the stack, which may be a small thread's


cdef int cells_gather(Shape *s, uint8_t *page, uint8_t *scratch, int cap) noexcept nogil:
    """Bring the cells together at the page's end, by way of as many bytes elsewhere; where they begin."""
    cdef int i, size, heap = cap
    for i in range(page_count(page)):
        size = cell_size_at(s, page, i)
        heap -= size
        memcpy(scratch + heap, cell_at(page, i), size)
        st16(slot_at(page, i) + 4, heap)
    memcpy(page + heap, scratch + heap, cap - heap)
    return heap


cdef int cells_shift(Shape *s, uint8_t *page, int cap) noexcept nogil:
    """The same in place, the last cell first: slow, but it takes no memory and cannot fail."""
    cdef int i, n = page_count(page), size, heap = cap, limit = cap, last, k
    for k in range(n):
        last = -1
        for i in range(n):
            if ld16(slot_at(page, i) + 4) < limit and (last < 0 or ld16(slot_at(page, i) + 4) > ld16(slot_at(page, last) + 4)):
                last = i
        limit = ld16(slot_at(page, last) + 4)
        size = cell_size_at(s, page, last)
        heap -= size
        memmove(page + heap, page + limit, size)
        st16(slot_at(page, last) + 4, heap)
    return heap


cdef int cells_compact(Shape *s, uint8_t *page, int cap) noexcept nogil:
    cdef uint8_t scratch[COMPACT_STACK]
    return cells_gather(s, page, scratch, cap)


cdef void page_compact(Shape *s, uint8_t *page, int cap) noexcept nogil:
    """Squeeze the dead bytes out of the heap."""
    cdef int size, heap
    cdef uint8_t *scratch
    if cap <= COMPACT_STACK:
        heap = cells_compact(s, page, cap)
    else:
        scratch = <uint8_t *> take(cap)
        heap = cells_gather(s, page, scratch, cap) if scratch != NULL else cells_shift(s, page, cap)
        free(scratch)
    size = <int> ld32(page + OFF_HEAP)
    if heap > size:
        memset(page + size, 0, heap - size)
    st32(page + OFF_HEAP, heap)
    st32(page + OFF_DEAD, 0)
    holes_of(page).n = 0


cdef int hole_take(uint8_t *page, int size) noexcept nogil:
    """The offset of the smallest hole that holds `size` bytes, which are its own then; 0 where there is none."""
    cdef Holes *h = holes_of(page)
    cdef int i, best = -1, least = PAGE_MAX + 1, off
    for i in range(h.n):
        if size <= h.size[i] < least:
            least = h.size[i]
            best = i
    if best < 0:
        return 0
    off = h.at[best]
    h.at[best] += size
    h.size[best] -= size
    if h.size[best] < 16:
        h.n -= 1
        h.at[best] = h.at[h.n]
        h.size[best] = h.size[h.n]
    st32(page + OFF_DEAD, ld32(page + OFF_DEAD) - size)
    return off


cdef inline void hole_add(uint8_t *page, int off, int size) noexcept nogil:
    cdef Holes *h = holes_of(page)
    if h.n < HOLES:
        h.at[h.n] = off
        h.size[h.n] = size
        h.n += 1


cdef uint8_t *page_open(Shape *s, uint8_t *page, int cap, int pos, const uint8_t *key, int klen,
                        int size) noexcept nogil:
    """Make a slot at `pos` and `size` bytes of cell with the key in front; NULL where they do not fit."""
    cdef int n = page_count(page), heap = <int> ld32(page + OFF_HEAP), skip, common, first, off = 0
    cdef int gap = heap - HEADER - 8 * n, dead = <int> ld32(page + OFF_DEAD)
    cdef uint8_t *slot
    if gap + dead < size + 8:
        return NULL
    if dead and gap - size < 8 * (dead / size) + 8 and gap >= 8:  # the gap is kept for the slots of what goes into holes
        off = hole_take(page, size)
    if off == 0:
        if gap < size + 8:
            page_compact(s, page, cap)
            heap = <int> ld32(page + OFF_HEAP)
        off = heap - size
        st32(page + OFF_HEAP, off)
    skip = ld16(page + OFF_SKIP)
    first = 1 if page[OFF_LEVEL] else 0
    if skip and pos >= first:
        if n <= first:
            page_reskip(s, page, 0)
            skip = 0
        else:
            common = common_prefix(key, klen, cell_at(page, n - 1), skip)
            if common < skip:
                skip = common if common > 2 else 0
                page_reskip(s, page, skip)
    memcpy(page + off, key, klen)
    slot = slot_at(page, pos)
    memmove(slot + 8, slot, 8 * (n - pos))
    st32(slot, 0 if pos < first else head_of(s, key, klen, skip))
    st16(slot + 4, off)
    st16(slot + 6, klen)
    st16(page + OFF_COUNT, n + 1)
    return page + off + klen


cdef void page_drop(Shape *s, uint8_t *page, int lo, int hi) noexcept nogil:
    """Drop slots lo to hi - 1; their cells' bytes become zero and dead."""
    cdef int n = page_count(page), i, size, off
    for i in range(lo, hi):
        size = cell_size_at(s, page, i)
        off = ld16(slot_at(page, i) + 4)
        memset(page + off, 0, size)
        if off == <int> ld32(page + OFF_HEAP):
            st32(page + OFF_HEAP, off + size)
        else:
            st32(page + OFF_DEAD, ld32(page + OFF_DEAD) + size)
            hole_add(page, off, size)
    memmove(slot_at(page, lo), slot_at(page, hi), 8 * (n - hi))
    memset(slot_at(page, n - (hi - lo)), 0, 8 * (hi - lo))
    st16(page + OFF_COUNT, n - (hi - lo))


cdef inline void page_erase(Shape *s, uint8_t *page, int pos) noexcept nogil:
    page_drop(s, page, pos, pos + 1)


cdef bint leaf_insert(Shape *s, uint8_t *page, int cap, int pos, const uint8_t *key, int klen,
                      const uint8_t *value, int vlen) noexcept nogil:
    """Insert a record whose value stays in the leaf; False where it does not fit."""
    cdef int size = klen + (s.fixed_value if s.fixed_value >= 0 else 2 + vlen)
    cdef uint8_t *p = page_open(s, page, cap, pos, key, klen, size if size else 1)
    if p == NULL:
        return False
    if s.fixed_value < 0:
        st16(p, vlen)
        p += 2
    memcpy(p, value, vlen)
    return True


cdef bint leaf_replace(Shape *s, uint8_t *page, int cap, int pos, const uint8_t *value, int vlen) noexcept nogil:
    """Overwrite the in-leaf value in slot `pos` with another in-leaf value; False where it does not fit."""
    cdef int klen = klen_at(page, pos), old, need
    cdef uint8_t key[1100]
    cdef uint8_t *p = cell_at(page, pos) + klen
    if s.fixed_value >= 0:
        memcpy(p, value, vlen)
        return True
    old = ld16(p)
    if old == vlen:
        memcpy(p + 2, value, vlen)
        return True
    need = klen + 2 + vlen
    if page_free(page) + leaf_cell_size(s, cell_at(page, pos), klen) < need:
        return False
    memcpy(key, cell_at(page, pos), klen)
    page_erase(s, page, pos)
    leaf_insert(s, page, cap, pos, key, klen, value, vlen)
    return True
