# Values too long for a leaf: in memory until a seal, then on the device in pages of their own.
#
# Invariants of spilled values:
#  S1  a slot of a leaf holds addresses, or a pointer and a reference (leaf_spill) on a value in memory
#  S2  a value in memory is changed only while one slot has it (refs == 1), under the tree's exclusive lock
#  S3  all pages of a value on the device are of one generation: its owner tells by that which snapshots reach a freed page

# -- on the device -----------------------------------------------------------------------------------------------------
cdef int spill_entries(TreeCore *t, const uint8_t *entries, int64_t n, int depth, int64_t length, uint64_t generation,
                       int64_t skip, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """Read `want` bytes from byte `skip` of the `length` bytes below `entries`; neighbouring data pages in one read."""
    cdef Shape *s = &t.s
    cdef int64_t span = s.page_size, i, last, run, offset, part
    cdef int code, d
    cdef uint8_t *pages
    for d in range(depth):
        span *= s.spill_fan
    i = skip / span
    last = (skip + want - 1) / span
    pages = <uint8_t *> take((64 if depth == 0 else 1) * <int64_t> s.page_size)
    if pages == NULL:
        return fail(f, E_MEMORY, "spilled value")
    code = OK
    while i <= last and code == OK:
        if depth:
            code = spill_page(t, entries + i * s.spill_entry, 1, depth, generation, pages, f)
            offset = skip - i * span if skip > i * span else 0
            part = min(span, length - i * span) - offset
            part = min(part, want)
            if code == OK:
                code = spill_entries(t, pages + HEADER, min(<int64_t> s.spill_fan, div_up(
                    min(span, length - i * span), span / s.spill_fan)), depth - 1, min(span, length - i * span),
                    generation, offset, into, part, f)
            run = 1
        else:
            run = 1
            while (run < 64 and i + run <= last and ref_address(entries + (i + run) * s.spill_entry, 0)
                   == ref_address(entries + i * s.spill_entry, 0) + run):
                run += 1
            code = spill_page(t, entries + i * s.spill_entry, run, 0, generation, pages, f)
            offset = skip - i * span if skip > i * span else 0
            part = min(run * span - offset, want)
            if code == OK:
                memcpy(into, pages + offset, part)
        into += part
        want -= part
        skip += part
        i += run
    free(pages)
    return code


cdef int spill_page(TreeCore *t, const uint8_t *entries, int64_t run, int level, uint64_t generation, uint8_t *pages,
                    Fault *f) noexcept nogil:
    """Read `run` neighbouring pages of a spilled value and verify each against its entry, falling back to copies."""
    cdef Shape *s = &t.s
    cdef int64_t i, size = s.page_size
    cdef int copy = 0, code, bad
    cdef const uint8_t *entry
    cdef uint8_t *page
    cdef Fault ignored
    if t.p.closed:
        return fail(f, E_CLOSED, "pager")
    code = device_read(t.p, ref_address(entries, 0), run, pages, f)
    if code != OK and (s.copies == 1 or run > 1):
        if run == 1:
            return code
        if code == E_PYTHON:
            with gil:
                Py_DECREF(<object> f.error)
            f.error = NULL
            f.code = OK
        for i in range(run):
            code = spill_page(t, entries + i * s.spill_entry, 1, level, generation, pages + i * size, f)
            if code != OK:
                return code
        return OK
    for i in range(run):
        entry = entries + i * s.spill_entry
        page = pages + i * size
        for copy in range(s.copies):
            if copy:
                code = device_read(t.p, ref_address(entry, copy), 1, page, f)
            if code == OK:
                code = spill_verify(t, page, ld32(entry + 8 * s.copies), level, generation,
                                    ref_address(entry, copy), f)
            if code == OK:
                break
            if code == E_PYTHON and copy + 1 < s.copies:
                with gil:
                    Py_DECREF(<object> f.error)
                f.error = NULL
                f.code = OK
        if code != OK:
            return code
        if copy and not t.p.read_only:
            for bad in range(copy):
                repair_copy(t.p, ref_address(entry, bad), page, &ignored)
    return OK


cdef int spill_verify(TreeCore *t, const uint8_t *page, uint32_t expected, int level, uint64_t generation,
                      uint64_t address, Fault *f) noexcept nogil:
    cdef uint32_t crc
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    f.expected = expected
    if level == 0:
        f.found = crc32c_update(0, page, t.s.page_size, 0)
        return OK if f.found == expected else fail(f, E_CORRUPT, "overflow page checksum")
    crc = crc32c_update(0, page + 4, t.s.page_size - 4, 0)
    f.found = crc
    if crc != expected or ld32(page + OFF_CRC) != crc:
        return fail(f, E_CORRUPT, "overflow index checksum")
    if (ld32(page + OFF_MAGIC) != PAGE_MAGIC or ld64(page + OFF_TREE) != t.tree_id or page[OFF_LEVEL] != level
            or page[OFF_KIND] != KIND_SPILL or ld64(page + OFF_GENERATION) != generation):
        return fail(f, E_CORRUPT, "overflow index identity")
    return OK


cdef Spill *spill_find(TreeCore *t, const uint8_t *body, uint8_t *copy) noexcept nogil:
    """The value in memory behind a body (with a reference), or NULL with the body copied out: it is on the device."""
    cdef PagerCore *p = t.p
    cdef Spill *v
    cdef Mapped *m
    spin_lock(&p.spin)
    v = spill_pointer(body)
    memcpy(copy, body, SPILL_FIXED + (8 if v != NULL else spill_body(&t.s, <int64_t> ld64(body)) - SPILL_FIXED))
    if v == NULL:
        m = map_find(p, ref_address(body + SPILL_FIXED, 0))
        if m != NULL and m.is_spill:
            v = (<Batch *> m.owner).spill
    if v != NULL:
        at_add32(&v.refs, 1)
    spin_unlock(&p.spin)
    return v


cdef int spill_read(TreeCore *t, const uint8_t *body, int64_t offset, uint8_t *into, int64_t want,
                    Fault *f) noexcept nogil:
    """`want` bytes of a spilled value from `offset`. The caller's locks keep the value from being freed."""
    cdef uint8_t copy[SPILL_BODY_MAX]
    cdef Spill *v = spill_find(t, body, copy)
    cdef int depth, tops
    cdef int64_t length
    if v != NULL:
        memcpy(into, v.data + offset, want)
        spill_free(t.p, v)
        return OK
    if want == 0:
        return OK
    length = <int64_t> ld64(copy)
    tops = spill_tops(&t.s, length, &depth)
    return spill_entries(t, copy + SPILL_FIXED, tops, depth, length, ld64(copy + 8), offset, into, want, f)


# -- values in memory --------------------------------------------------------------------------------------------------
cdef Spill *spill_new(TreeCore *t, int64_t length) noexcept nogil:
    """A value in memory with one reference, its bytes unset but for the padding; NULL without memory."""
    cdef int64_t padded = div_up(length, t.s.page_size) * t.s.page_size
    cdef Spill *v = <Spill *> take_zeroed(1, sizeof(Spill))
    if v != NULL:
        v.data = <uint8_t *> take(padded)
    if v == NULL or v.data == NULL:
        free(v)
        return NULL
    memset(v.data + length, 0, padded - length)
    v.refs = 1
    v.length = length
    at_add64(&t.p.dirty_bytes, padded)
    return v


cdef int write_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, const uint8_t *data, int64_t n, bint *done,
                    Fault *f) noexcept nogil:
    """Overwrite inside a spilled value that is in memory and this tree's alone. `done` False: it is not such a value (or not there),
    nothing changed. Caller holds tree.rw exclusively."""
    cdef Path path
    cdef Node *leaf
    cdef Spill *v
    cdef uint8_t *body
    cdef bint found
    cdef int pos, code = find_leaf(t, key, klen, &leaf, f)
    done[0] = False
    if code != OK or leaf.spilled == 0:
        return code
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    body = spill_at(&t.s, page_of(leaf), pos) if found else NULL
    if body == NULL or spill_pointer(body) == NULL or offset + n > <int64_t> ld64(body):
        return OK
    code = own_path(t, key, klen, &path, f)
    if code != OK:
        return code
    v = leaf_spill(path.node[path.depth], pos)
    if at_get32(&v.refs) == 1:
        memcpy(v.data + offset, data, n)
        t.is_dirty = 1
        done[0] = True
    return OK
