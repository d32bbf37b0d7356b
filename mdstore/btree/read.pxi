# Point reads under the locks, and counting.

cdef struct Out:
    uint8_t *data
    int64_t size
    bint found

cdef inline void note_hits(TreeCore *t, int64_t operations) noexcept nogil:
    """Count pages touched. Not a locked addition: threads may lose each other's counts, but not slow each other down."""
    at_set64(&t.p.hits, at_get64(&t.p.hits) + operations * (at_get32(<int32_t *> &t.level) + 1))


cdef inline uint64_t *read_lock(TreeCore *t) noexcept nogil:
    """What keeps a reader's pages in place: the tree's own lock, or for a view, which no one changes, the pager's (G3)."""
    return &t.rw if t.live else &t.p.rw


cdef inline void core_lock_shared(TreeCore *t) noexcept nogil:
    rw_lock_shared(read_lock(t))


cdef inline bint core_try_shared(TreeCore *t) noexcept nogil:
    return rw_try_shared(read_lock(t))


cdef inline void core_unlock_shared(TreeCore *t) noexcept nogil:
    rw_unlock_shared(read_lock(t))


cdef inline Node *resident_leaf(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """The leaf of a key when nothing has to be read for it, else NULL."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef int i
    if n == NULL:
        return NULL
    touch(n)
    while n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        n = <Node *> at_getp(&n.kids[i])
        if n == NULL:
            return NULL
        prefetch_node(n)
        touch(n)
    return n


cdef inline const uint8_t *value_at(Shape *s, const uint8_t *page, int cap, int pos, int *vlen) noexcept nogil:
    """The value of slot `pos`; vlen -1 where it has spilled. Bounds hold even on a leaf that is being changed."""
    cdef const uint8_t *slot = page + HEADER + 8 * pos
    cdef int off = ld16(slot + 4) + ld16(slot + 6)
    if s.fixed_value >= 0:
        vlen[0] = s.fixed_value if off + s.fixed_value <= cap else 0
        return page + off
    if off + 2 > cap:
        vlen[0] = 0
        return page
    vlen[0] = ld16(page + off)
    if vlen[0] >= SPILL_DATED:
        vlen[0] = -1
    elif off + 2 + vlen[0] > cap:
        vlen[0] = 0
        return page
    return page + off + 2


cdef int get_copy(TreeCore *t, const uint8_t *key, int klen, Out *out, Fault *f) noexcept nogil:
    """The value of a key, as `read_part`."""
    return read_part(t, key, klen, 0, <int64_t> 1 << 62, out, f)


cdef int read_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, int64_t length, Out *out,
                   Fault *f) noexcept nogil:
    """Bytes [offset, offset + length) of a value, short at its end, in memory of its own (the caller frees it). Takes the locks, and holds
    none while it reads. Only those pages of a spilled value are read, and through a view alone (R2): of a live tree E_ASIDE."""
    cdef Node *leaf
    cdef FoundSpill s
    cdef int pos, vlen = 0, code = lock_leaf(t, key, klen, &leaf, f)
    cdef int64_t size
    cdef uint32_t version
    cdef const uint8_t *value
    out.data = NULL
    out.found = False
    s.v = NULL
    while code == OK:
        version = latch_read(&leaf.version)
        race_begin()
        pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &out.found)
        vlen = 0
        value = value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen) if out.found else NULL
        race_end()
        if not latch_same(&leaf.version, version):
            continue
        size = vlen if vlen >= 0 else <int64_t> ld64(value)
        out.size = min(length, size - offset) if offset < size else 0
        if not out.found:
            break
        if vlen < 0:
            found_begin(t, value, &s)
            if t.live and out.size and (s.v == NULL or s.v.data == NULL):
                code = E_ASIDE
            break
        out.data = <uint8_t *> take(out.size + 1)
        if out.data == NULL:
            code = fail(f, E_MEMORY, "value")
        elif out.size:
            race_begin()
            memcpy(out.data, value + offset, out.size)
            race_end()
        if code != OK or latch_same(&leaf.version, version):
            break
        free(out.data)
        out.data = NULL
    if t.live and s.v != NULL:  # a write would have to copy it, were it still held without the lock
        if code == OK:
            code = read_found(t, &s, offset, out, f)
        found_end(t, &s)
        s.v = NULL
    core_unlock_shared(t)
    if code == OK and out.found and out.data == NULL:
        code = read_found(t, &s, offset, out, f)
    found_end(t, &s)
    if code != OK:
        free(out.data)
        out.data = NULL
    make_room(t.p)
    return code


cdef int read_found(TreeCore *t, FoundSpill *s, int64_t offset, Out *out, Fault *f) noexcept nogil:
    cdef int code = found_prove(t, s, out.size, f)
    if code != OK:
        return code
    out.data = <uint8_t *> take(out.size + 1)
    return found_read(t, s, offset, out.data, out.size, f) if out.data != NULL else fail(f, E_MEMORY, "value")


cdef int count_range(TreeCore *t, Node *n, const uint8_t *start, int start_len, const uint8_t *stop, int stop_len,
                     int64_t *records, Fault *f) noexcept nogil:
    """Add the records of a view's node with start <= key < stop: subtrees between the borders by their references, so that
    only the two border paths (and dirty pages) are visited. Caller holds pager.rw."""
    cdef int lo = 0, hi = node_count(n), i, code
    cdef bint found
    cdef Node *kid
    if n.level == 0:
        if start != NULL:
            lo = page_find(&t.s, page_of(n), n.cap, 0, start, start_len, &found)
        meet(MEET_COUNTED)
        if stop != NULL:
            hi = page_find(&t.s, page_of(n), n.cap, 0, stop, stop_len, &found)
        records[0] += hi - lo if hi > lo else 0
        return OK
    if start != NULL:
        lo = index_find(&t.s, page_of(n), n.cap, start, start_len)
    if stop != NULL:
        hi = index_find(&t.s, page_of(n), n.cap, stop, stop_len) + 1
    for i in range(lo, hi):
        kid = <Node *> at_getp(&n.kids[i])
        if (start == NULL or i > lo) and (stop == NULL or i < hi - 1) and (
                kid == NULL or (not unsealed(kid) and (not unsealed(n) or names_kid(n, i, kid)))):
            records[0] += <int64_t> (ref_records(&t.s, ref_at(page_of(n), i)) & ~REF_SPILLED)
            continue
        code = kid_at(t, n, i, &kid, f)
        if code == OK:
            code = count_range(t, kid, start if i == lo else NULL, start_len, stop if i == hi - 1 else NULL, stop_len,
                               records, f)
        if code != OK:
            return code
    return OK
