# Values too long for a leaf: in memory until a seal, on the device in pages of their own, or partly both.
#
# Invariants of spilled values:
#  S1  a slot of a leaf holds addresses, or a pointer and a reference (leaf_spill) on a value in memory
#  S2  a value partly on the device belongs to one leaf alone: what is written to it in place names its pages still
#  S3  a value in memory is changed only while one slot has it (refs == 1), under the tree's exclusive lock

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
    cdef int depth, tops, code = OK
    cdef int64_t length
    if v != NULL:
        code = spill_copy(t, v, offset, into, want, f)
        spill_free(t.p, v)
        return code
    if want == 0:
        return OK
    length = <int64_t> ld64(copy)
    tops = spill_tops(&t.s, length, &depth)
    return spill_entries(t, copy + SPILL_FIXED, tops, depth, length, ld64(copy + 8), offset, into, want, f)


cdef int spill_copy(TreeCore *t, Spill *v, int64_t offset, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """Bytes of a value in memory; what it has left on the device is read."""
    cdef int64_t size = t.s.page_size, i, run, part
    cdef int code = OK
    if v.pages == NULL:
        memcpy(into, v.data + offset, want)
        return OK
    while want and code == OK:
        i = offset / size
        run = 1
        while (i + run) * size < offset + want and (v.pages[i + run] == NULL) == (v.pages[i] == NULL) and v.pages[i] == NULL:
            run += 1
        part = min((i + run) * size - offset, want)
        if v.pages[i] != NULL:
            memcpy(into, v.pages[i] + (offset - i * size), part)
        else:
            code = spill_entries(t, v.entries, i + run, 0, (i + run) * size, 0, offset, into, part, f)
        into += part
        offset += part
        want -= part
    return code


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


cdef Spill *spill_whole(TreeCore *t, Spill *v, Fault *f) noexcept nogil:
    """A copy of a value with all of it in memory; NULL with a fault."""
    cdef Spill *copy = spill_new(t, v.length)
    if copy == NULL:
        fail(f, E_MEMORY, "value")
    elif spill_copy(t, v, 0, copy.data, v.length, f) != OK:
        spill_free(t.p, copy)
        copy = NULL
    return copy


cdef int64_t spill_dirty(Shape *s, Spill *v) noexcept nogil:
    """Pages of one copy that a seal will write for it."""
    cdef int64_t all = spill_pages(s, v.length)
    return all if v.pages == NULL else all - div_up(v.length, s.page_size) + v.changed


cdef Spill *spill_open(Release *r, const uint8_t *body, Fault *f) noexcept nogil:
    """A value on the device as one of which nothing is changed yet; its overflow index pages, which a change writes anew, are
    given up. NULL with a fault."""
    cdef TreeCore *t = r.t
    cdef int64_t length = <int64_t> ld64(body), n = div_up(length, t.s.page_size)
    cdef int depth, tops = spill_tops(&t.s, length, &depth)
    cdef uint8_t *entries
    cdef Spill *v = <Spill *> take_zeroed(1, sizeof(Spill))
    if v != NULL:
        v.refs = 1
        v.length = length
        v.pages = <uint8_t **> take_zeroed(n, sizeof(void *))
        v.entries = <uint8_t *> take(n * t.s.spill_entry)
    if v == NULL or v.pages == NULL or v.entries == NULL:
        fail(f, E_MEMORY, "value")
    else:
        entries = v.entries
        if entries_read(r, body + SPILL_FIXED, tops, depth, length, ld64(body + 8), &entries, f) == OK:
            return v
    if v != NULL:
        free(v.pages)
        free(v.entries)
        free(v)
    return NULL


cdef int entries_read(Release *r, const uint8_t *entries, int64_t n, int depth, int64_t length, uint64_t generation,
                      uint8_t **into, Fault *f) noexcept nogil:
    """Append the entries of the data pages below `entries`; index pages met are given up."""
    cdef Shape *s = &r.t.s
    cdef int64_t i, span = s.page_size, below
    cdef int d, k, code = OK
    cdef uint8_t *page
    if depth == 0:
        memcpy(into[0], entries, n * s.spill_entry)
        into[0] += n * s.spill_entry
        return OK
    for d in range(depth):
        span *= s.spill_fan
    page = <uint8_t *> take(s.page_size)
    if page == NULL:
        return fail(f, E_MEMORY, "value")
    for i in range(n):
        below = min(span, length - i * span)
        code = spill_page(r.t, entries + i * s.spill_entry, 1, depth, generation, page, f)
        if code == OK:
            code = entries_read(r, page + HEADER, div_up(below, span / s.spill_fan), depth - 1, below, generation, into, f)
        for k in range(s.copies):
            if code == OK:
                code = release_page(r, ref_address(entries + i * s.spill_entry, k), generation, f)
        if code != OK:
            break
    free(page)
    return code


cdef int spill_fetch(Release *r, Spill *v, int64_t offset, int64_t n, Fault *f) noexcept nogil:
    """Bring the pages that a write of `n` bytes at `offset` touches into memory, and give up those on the device. What fails
    here may be undone by `spill_put_back`."""
    cdef TreeCore *t = r.t
    cdef int64_t size = t.s.page_size, i
    cdef int code, k
    cdef uint8_t *page
    for i in range(offset / size, div_up(offset + n, size)):
        if v.pages[i] != NULL:
            continue
        page = <uint8_t *> take(size)
        if page == NULL:
            return fail(f, E_MEMORY, "value")
        code = OK
        if i * size < offset or (i + 1) * size > offset + n:
            code = spill_page(t, v.entries + i * t.s.spill_entry, 1, 0, 0, page, f)
        for k in range(t.s.copies):
            if code == OK:
                code = release_page(r, ref_address(v.entries + i * t.s.spill_entry, k), t.p.generation, f)
        if code != OK:
            free(page)
            return code
        v.pages[i] = page
        v.changed += 1
    return OK


cdef void spill_write(TreeCore *t, Spill *v, int64_t offset, const uint8_t *data, int64_t n) noexcept nogil:
    """Write into pages that are in memory."""
    cdef int64_t size = t.s.page_size, part
    if v.pages == NULL:
        memcpy(v.data + offset, data, n)
        return
    while n:
        part = min(size - offset % size, n)
        memcpy(v.pages[offset / size] + offset % size, data, part)
        offset += part
        data += part
        n -= part


cdef int write_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, const uint8_t *data, int64_t n, bint *done,
                    Fault *f) noexcept nogil:
    """Overwrite inside a spilled value that is this tree's alone: in memory, or on the device, where only the pages touched are
    read and written anew. `done` False: it is not such a value (or not there), nothing changed. Caller holds tree.rw exclusively."""
    cdef Path path
    cdef Release r
    cdef Node *leaf
    cdef Spill *v
    cdef uint8_t *body
    cdef bint found, shared, opened
    cdef int pos, code = find_leaf(t, key, klen, &leaf, f)
    done[0] = False
    if code != OK or leaf.spilled == 0:
        return code
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    body = spill_at(&t.s, page_of(leaf), pos) if found else NULL
    if body == NULL or offset + n > <int64_t> ld64(body):
        return OK
    code = own_path(t, key, klen, &path, f)
    if code != OK:
        return code
    leaf = path.node[path.depth]
    body = spill_at(&t.s, page_of(leaf), pos)
    v = spill_pointer(body)
    if v != NULL and at_get32(&v.refs) != 1:
        return OK
    release_begin(&r, t, False)
    shared = False
    opened = v == NULL
    if opened:
        code = release_loss(&r, ref_address(body + SPILL_FIXED, 0), &shared, f)
        if code == OK and not shared and not batch_waits(t.p, ref_address(body + SPILL_FIXED, 0)):
            v = spill_open(&r, body, f)
            code = f.code
    if code == OK and v != NULL:
        code = spill_change(&r, v, opened, offset, data, n, f)
        done[0] = code == OK
        if code == OK and opened:
            memset(body, 0, spill_body(&t.s, v.length))
            st64(body, v.length)
            st64(body + 8, IN_MEMORY)
            st64(body + 16, <uint64_t> <uintptr_t> v)
        elif code != OK and opened:
            spill_free(t.p, v)
    release_end(&r)
    return code


cdef bint batch_waits(PagerCore *p, uint64_t address) noexcept nogil:
    cdef Batch *b = batch_find(p, address)
    if b != NULL:
        batch_free(p, b)
    return b != NULL


cdef int spill_change(Release *r, Spill *v, bint opened, int64_t offset, const uint8_t *data, int64_t n, Fault *f) noexcept nogil:
    """Write into a value that belongs to this tree alone, or fail and leave it. A failure gives back no page that was fetched: it holds
    what the device holds; but it stays listed nowhere, so the fetched pages are let go again."""
    cdef TreeCore *t = r.t
    cdef int64_t before = 0 if opened else spill_dirty(&t.s, v), had = v.changed, i
    cdef int code = OK
    cdef uint8_t *fetched
    if v.pages != NULL:
        fetched = <uint8_t *> take_zeroed(div_up(v.length, t.s.page_size), 1)
        if fetched == NULL:
            return fail(f, E_MEMORY, "value")
        for i in range(div_up(v.length, t.s.page_size)):
            fetched[i] = v.pages[i] == NULL
        code = spill_fetch(r, v, offset, n, f)
        if code == OK:
            code = release_commit(r, f)
        for i in range(div_up(v.length, t.s.page_size) if code != OK else 0):
            if fetched[i] and v.pages[i] != NULL:
                free(v.pages[i])
                v.pages[i] = NULL
        free(fetched)
        if code != OK:
            v.changed = had
            return code
        at_add64(&t.p.dirty_bytes, (v.changed - had) * t.s.page_size)
    spill_write(t, v, offset, data, n)
    t.dirty_spill += spill_dirty(&t.s, v) - before
    t.is_dirty = 1
    return OK
