# Values too long for a leaf: in memory until a seal, then on the device in pages of their own.
#
# Invariants of spilled values:
#  S1  a slot of a leaf holds addresses, or a pointer and a reference (leaf_spill) on a value in memory. A seal makes the one the other
#      under the pager's spin lock, which is how those look who do not have the tree's; the length before them never changes in place
#  S2  a value in memory is changed only while one slot has it (refs == 1), under the tree's exclusive lock
#  S3  an entry's generation is that in which its page was written, never above that of the page or cell it stands in (looked at
#      when those are read): by it the owner of freed pages tells which snapshots reach them. All pages of an undated value are of the
#      generation in its cell
#  S4  a page that clones share is counted in the tree of shared addresses at the topmost page they share (release.pxi); an undated value
#      as a whole, by its first address

# -- on the device -----------------------------------------------------------------------------------------------------
cdef inline uint64_t entry_generation(const Shape *s, const Form *form, const uint8_t *entry, uint64_t undated) noexcept nogil:
    return ld64(entry + 8 * s.copies + 4) if form.dated else undated


cdef int spill_entries(TreeCore *t, const Form *form, const uint8_t *entries, int depth, int64_t length, uint64_t generation,
                       int64_t skip, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """Read `want` bytes from byte `skip` of the `length` bytes below `entries`; neighbouring data pages in one read."""
    cdef Shape *s = &t.s
    cdef int64_t span = s.page_size, i, last, run, offset, part, below
    cdef int code = OK, d
    cdef uint8_t *pages
    cdef const uint8_t *entry
    for d in range(depth):
        span *= form.fan
    i = skip / span
    last = (skip + want - 1) / span
    pages = <uint8_t *> take((64 if depth == 0 else 1) * <int64_t> s.page_size)
    if pages == NULL:
        return fail(f, E_MEMORY, "spilled value")
    while i <= last and code == OK:
        entry = entries + i * form.entry
        offset = skip - i * span if skip > i * span else 0
        run = 1
        if depth:
            generation = entry_generation(s, form, entry, generation)
            below = min(span, length - i * span)
            code = spill_page(t, form, entry, 1, depth, div_up(below, span / form.fan), generation, pages, f)
            part = min(below - offset, want)
            if code == OK:
                code = spill_entries(t, form, pages + HEADER, depth - 1, below, generation, offset, into, part, f)
        else:
            while run < 64 and i + run <= last and ref_address(entry + run * form.entry, 0) == ref_address(entry, 0) + run:
                run += 1
            code = spill_page(t, form, entry, run, 0, 0, generation, pages, f)
            part = min(run * span - offset, want)
            if code == OK:
                memcpy(into, pages + offset, part)
        into += part
        want -= part
        skip += part
        i += run
    free(pages)
    return code


cdef bint sealed_page(PagerCore *p, uint64_t address, uint8_t *into) noexcept nogil:
    """Copy a page of a spilled value that waits for write_sealed; False: the device has it."""
    cdef Mapped *m
    cdef Batch *b = NULL
    cdef const uint8_t *bytes
    spin_lock(&p.spin)
    m = map_find(p, address)
    if m != NULL and m.bytes != NULL:
        b = <Batch *> m.owner
        bytes = m.bytes
        at_add32(&b.refs, 1)
    spin_unlock(&p.spin)
    if b == NULL:
        return False
    memcpy(into, bytes, p.page_size)
    batch_free(p, b)
    return True


cdef int spill_page(TreeCore *t, const Form *form, const uint8_t *entries, int64_t run, int level, int64_t count,
                    uint64_t generation, uint8_t *pages, Fault *f) noexcept nogil:
    """Neighbouring pages of a spilled value: those that wait for write_sealed from memory, the others read, in as few reads as may be.
    `count`: the entries that each has, 0 for data pages."""
    cdef PagerCore *p = t.p
    cdef int64_t first = 0, i = 0
    cdef int code = OK
    if at_get32(<int32_t *> &p.lent.closed):
        return fail(f, E_CLOSED, "pager")
    cdef const uint8_t *entry
    if run == 1 and t.ahead != NULL and ahead_found(t, form, entries, level, count, generation, pages):
        return OK
    while i < run and at_get64(&p.map_n):
        entry = entries + i * form.entry
        if sealed_page(p, ref_address(entry, 0), pages + i * p.page_size) and spill_verify(
                t, form, pages + i * p.page_size, ref_crc(&t.s, entry), level, count, generation, ref_address(entry, 0), f) == OK:
            if first < i:
                code = spill_load(t, form, entries + first * form.entry, i - first, level, count, generation,
                                  pages + first * p.page_size, f)
            if code != OK:
                return code
            first = i + 1
        i += 1
    if first == run:
        return OK
    return spill_load(t, form, entries + first * form.entry, run - first, level, count, generation, pages + first * p.page_size, f)


cdef int spill_load(TreeCore *t, const Form *form, const uint8_t *entries, int64_t run, int level, int64_t count,
                    uint64_t generation, uint8_t *pages, Fault *f) noexcept nogil:
    """Read `run` neighbouring pages of a spilled value and verify each against its entry, falling back to copies."""
    cdef Shape *s = &t.s
    cdef int64_t i, size = s.page_size
    cdef int copy = 0, code, bad
    cdef const uint8_t *entry
    cdef uint8_t *page
    f.tree_id = t.tree_id
    f.level = level
    code = device_read(t.p, ref_address(entries, 0), run, pages, f)
    if code != OK and (s.copies == 1 or run > 1):
        if run == 1 or not may_retry(f):
            return code
        for i in range(run):
            code = spill_load(t, form, entries + i * form.entry, 1, level, count, generation, pages + i * size, f)
            if code != OK:
                return code
        return OK
    for i in range(run):
        entry = entries + i * form.entry
        page = pages + i * size
        for copy in range(s.copies):
            if copy:
                code = device_read(t.p, ref_address(entry, copy), 1, page, f)
            if code == OK:
                code = spill_verify(t, form, page, ref_crc(s, entry), level, count, generation, ref_address(entry, copy), f)
            if code == OK or copy + 1 == s.copies or not may_retry(f):
                break
        for bad in range(copy if code == OK and not t.p.read_only else 0):
            if code == OK:
                code = repair_copy(t, ref_address(entry, bad), level, page, level == 0, f)
        if code != OK:
            return code
    return OK


cdef int spill_verify(TreeCore *t, const Form *form, const uint8_t *page, uint32_t expected, int level, int64_t count,
                      uint64_t generation, uint64_t address, Fault *f) noexcept nogil:
    """A data page: its CRC. An index page: its CRC, who it says it is, that it holds the entries that follow from the length, and S3 of
    those."""
    cdef int kind = KIND_DATED if form.dated else KIND_SPILL
    cdef uint32_t crc
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    if level == 0:
        crc = crc32c_update(0, page, t.s.page_size, 0)
        return OK if crc == expected else refuse(f, "overflow page checksum", -1, -1, NULL, expected, crc)
    crc = crc32c_update(0, page + 4, t.s.page_size - 4, 0)
    if crc != expected:
        return refuse(f, "overflow index checksum", -1, -1, NULL, expected, crc)
    if ld32(page + OFF_CRC) != crc:
        return refuse(f, "overflow index checksum", -1, OFF_CRC, NULL, crc, ld32(page + OFF_CRC))
    if ld32(page + OFF_MAGIC) != PAGE_MAGIC:
        return refuse(f, "overflow index magic", -1, OFF_MAGIC, NULL, PAGE_MAGIC, ld32(page + OFF_MAGIC))
    if ld64(page + OFF_TREE) != t.tree_id:
        return refuse(f, "overflow index tree id", -1, OFF_TREE, NULL, t.tree_id, ld64(page + OFF_TREE))
    if page[OFF_LEVEL] != level:
        return refuse(f, "overflow index level", -1, OFF_LEVEL, NULL, level, page[OFF_LEVEL])
    if page[OFF_KIND] != kind:
        return refuse(f, "overflow index kind", -1, OFF_KIND, NULL, kind, page[OFF_KIND])
    if ld64(page + OFF_GENERATION) != generation:
        return refuse(f, "overflow index generation", -1, OFF_GENERATION, NULL, generation, ld64(page + OFF_GENERATION))
    if page_count(page) != count:
        return refuse(f, "overflow index count", -1, OFF_COUNT, NULL, count, page_count(page))
    return entries_check(&t.s, page, HEADER, count, generation, -1, f) if form.dated else OK


# -- how long a value can be -------------------------------------------------------------------------------------------
cdef enum:
    SPILL_UNPROVED = 1 << 20  # bytes of memory that are had on the word of a cell alone


cdef int64_t pages_held(PagerCore *p, Fault *f) noexcept nogil:
    """How many pages there can be: those of the device, and those that wait to be written to one that grows. -1 with a fault."""
    cdef int64_t waiting = at_get64(&p.sealed_pages)  # first: what is written in between counts twice, not never
    with gil:
        try:
            return waiting + (<Pager> p.owner).device.size_bytes // p.page_size
        except BaseException as error:
            Py_INCREF(error)
            f.error = <void *> error
            f.code = E_PYTHON
            return -1


cdef int spill_prove(TreeCore *t, const uint8_t *body, int64_t bytes_wanted, Fault *f) noexcept nogil:
    """`found_prove` of the value behind a body. The caller's locks keep it from being freed."""
    cdef FoundSpill s
    cdef int code
    found_begin(t, body, &s)
    code = found_prove(t, &s, bytes_wanted, f)
    found_end(t, &s)
    return code


cdef int found_prove(TreeCore *t, FoundSpill *s, int64_t bytes_wanted, Fault *f) noexcept nogil:
    """Called before memory is had that grows with the length of a spilled value, which a cell may state as it likes: the value is no
    longer than what the device holds, and the last index page of each level has the entries that follow from the length. Cost: none
    up to a megabyte, else these pages (three for 1 GiB in pages of 4 KiB)."""
    cdef uint8_t *copy = s.copy
    cdef int64_t length, held
    if bytes_wanted <= SPILL_UNPROVED or s.v != NULL:
        return OK
    length = <int64_t> ld64(copy + 2)
    held = pages_held(t.p, f)
    if held < 0:
        return f.code
    if div_up(length, t.s.page_size) > held:
        f.address = ref_address(copy + 2 + SPILL_FIXED, 0)
        f.tree_id = t.tree_id
        f.level = 0
        return refuse(f, "length of a spilled value", -1, -1, "at most", held * t.s.page_size, length)
    return prove_last(t, form_of(&t.s, copy + 2), copy + 2, length, f)


cdef int prove_last(TreeCore *t, const Form *form, const uint8_t *body, int64_t length, Fault *f) noexcept nogil:
    """Verify the last index page of each level, from the top."""
    cdef int depth, code = OK, tops = spill_tops(t.s.page_size, form, length, &depth)
    cdef int64_t span = t.s.page_size, last, count
    cdef uint64_t generation = ld64(body + 8)
    cdef const uint8_t *entry = body + SPILL_FIXED + (tops - 1) * form.entry
    cdef uint8_t *pages = <uint8_t *> take(2 * <int64_t> t.s.page_size)
    cdef uint8_t *page = pages
    cdef int d
    if pages == NULL:
        return fail(f, E_MEMORY, "spilled value")
    for d in range(depth):
        span *= form.fan
    while depth and code == OK:
        last = (length - 1) / span * span  # where the last page of this level begins
        span /= form.fan
        count = div_up(length - last, span)
        generation = entry_generation(&t.s, form, entry, generation)
        code = spill_page(t, form, entry, 1, depth, count, generation, page, f)
        entry = page + HEADER + (count - 1) * form.entry
        page = pages if page != pages else pages + t.s.page_size  # the entry lies in the other one
        depth -= 1
    free(pages)
    return code


cdef Spill *spill_find(TreeCore *t, const uint8_t *body, uint8_t *copy) noexcept nogil:
    """The value in memory behind a body, with a reference; or NULL, and the body and the mark in front of it copied out."""
    cdef PagerCore *p = t.p
    cdef Spill *v
    spin_lock(&p.spin)
    v = spill_pointer(body)
    if v != NULL:
        at_add32(&v.refs, 1)
    else:
        memcpy(copy, body - 2, 2 + spill_body(&t.s, form_of(&t.s, body), <int64_t> ld64(body)))
    spin_unlock(&p.spin)
    return v


cdef struct FoundSpill:
    Spill *v                        # in memory, with a reference; or NULL,
    uint8_t copy[SPILL_BODY_MAX + 2]  # and the body, the mark in front of it


cdef inline void found_begin(TreeCore *t, const uint8_t *body, FoundSpill *s) noexcept nogil:
    s.v = spill_find(t, body, s.copy)


cdef inline void found_end(TreeCore *t, FoundSpill *s) noexcept nogil:
    if s.v != NULL:
        spill_free(t.p, s.v)


cdef int found_read(TreeCore *t, FoundSpill *s, int64_t offset, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """`want` bytes of a spilled value from `offset`. What is in memory does not change while it is held (S2); pages on the device are
    kept by the caller's locks, or by the generation that its view pins."""
    cdef const Form *form
    cdef int depth
    cdef int64_t length
    if want == 0:
        return OK
    if s.v != NULL and s.v.data != NULL:
        memcpy(into, s.v.data + offset, want)
        return OK
    if s.v != NULL:
        return patch_read(t, s.v, offset, into, want, f)
    form = form_of(&t.s, s.copy + 2)
    length = <int64_t> ld64(s.copy + 2)
    spill_tops(t.s.page_size, form, length, &depth)
    return spill_entries(t, form, s.copy + 2 + SPILL_FIXED, depth, length, ld64(s.copy + 10), offset, into, want, f)


cdef int spill_read(TreeCore *t, const uint8_t *body, int64_t offset, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """`found_read` of the value behind a body. The caller's locks keep it from being freed."""
    cdef FoundSpill s
    cdef int code
    found_begin(t, body, &s)
    code = found_read(t, &s, offset, into, want, f)
    found_end(t, &s)
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
    v.refs = v.lives = 1
    v.length = length
    at_add64(&t.p.dirty_bytes, padded)
    return v


cdef inline int64_t spill_dirty(TreeCore *t, Spill *v) noexcept nogil:
    """Pages of one copy that the next seal has to write for a value in memory."""
    return spill_pages(&t.s, v.length) if v.data != NULL else v.dirty
