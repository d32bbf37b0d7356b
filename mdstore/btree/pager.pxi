# Reading, checking, caching and evicting pages; the queue of sealed pages.
#
# Invariants of the pager:
#  G1  clean_bytes falls under cache_bytes (or to what is pinned) after every operation that loaded pages
#  G2  a sealed page is found by its address in `map` until the device has all its copies
#  G3  locks are taken in the order pager.rw, tree.rw, tree.rw of the shared addresses, a leaf's latch or pager.spin; none of
#      the first three is waited for with the interpreter lock held, which may be taken under any of those three

cdef int device_read(PagerCore *p, uint64_t address, int64_t pages, uint8_t *into, Fault *f) noexcept nogil:
    """Read whole pages: pread where the device has a descriptor, the device's own read elsewhere."""
    cdef int64_t done = 0, size = pages * p.page_size
    cdef ssize_t got
    if address >= (<uint64_t> 1 << 48):
        f.address = address
        return fail(f, E_CORRUPT, "page address")
    at_add64(&p.device_reads, 1)
    at_add64(&p.pages_read, pages)
    at_add64(&p.bytes_read, size)
    if p.fd >= 0:
        while done < size:
            got = pread(p.fd, into + done, size - done, <off_t> (address * p.page_size + done))
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                f.found = errno if got < 0 else 0
                f.address = address
                return fail(f, E_DEVICE, "short read" if got == 0 else "read")
            done += got
        return OK
    with gil:
        return read_through_object(p, address, size, into, f)


cdef int read_through_object(PagerCore *p, uint64_t address, int64_t size, uint8_t *into, Fault *f) noexcept:
    cdef const unsigned char[::1] view
    try:
        data = (<Pager> p.owner).device.read(address * p.page_size, size)
        if len(data) != size:
            raise DeviceFailed("read", f"page {address}", f"{len(data)} bytes instead of {size}")
        view = data
        memcpy(into, &view[0], size)
        return OK
    except InvalidRequest as error:
        f.address = address
        return fail(f, E_CORRUPT, "page address outside the device")
    except BaseException as error:
        Py_INCREF(error)
        f.error = <void *> error
        return E_PYTHON


cdef int repair_copy(PagerCore *p, uint64_t address, const uint8_t *page, Fault *f) noexcept nogil:
    """Rewrite a bad copy from a good one; a device that refuses is left as it is (the data was read all the same)."""
    with gil:
        try:
            (<Pager> p.owner).device.write(address * p.page_size, [page[:p.page_size]])
            at_add64(&p.copies_repaired, 1)
        except MdstoreError:
            return E_DEVICE
    return OK


cdef int page_verify(TreeCore *t, const uint8_t *page, const uint8_t *ref, int level, uint64_t address,
                     int *spilled, Fault *f) noexcept nogil:
    """The reference's CRC, then who the page says it is, then its insides."""
    cdef Shape *s = &t.s
    cdef uint32_t crc = crc32c_update(0, page + 4, s.page_size - 4, 0)
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    f.expected = ref_crc(s, ref)
    f.found = crc
    if crc != ref_crc(s, ref) or ld32(page + OFF_CRC) != crc:
        f.found = crc if crc != ref_crc(s, ref) else ld32(page + OFF_CRC)
        return fail(f, E_CORRUPT, "page checksum")
    f.expected = PAGE_MAGIC
    f.found = ld32(page + OFF_MAGIC)
    if f.found != PAGE_MAGIC:
        return fail(f, E_CORRUPT, "page magic")
    f.expected = t.tree_id
    f.found = ld64(page + OFF_TREE)
    if f.found != t.tree_id:
        return fail(f, E_CORRUPT, "page tree id")
    f.expected = level
    f.found = page[OFF_LEVEL]
    if f.found != <uint64_t> level:
        return fail(f, E_CORRUPT, "page level")
    f.expected = ref_generation(s, ref)
    f.found = ld64(page + OFF_GENERATION)
    if f.found != f.expected:
        return fail(f, E_CORRUPT, "page generation")
    f.expected = f.found = 0
    f.what = page_check(s, page, spilled)
    return OK if f.what == NULL else E_CORRUPT


cdef int load(TreeCore *t, const uint8_t *ref, int level, Node **out, Fault *f) noexcept nogil:
    """The node a reference names: from the sealed map, else read and verified, trying every copy. One reference."""
    cdef PagerCore *p = t.p
    cdef Node *n
    cdef Mapped *m
    cdef int copy = 0, bad, code = E_CORRUPT, spilled = 0
    cdef Fault ignored
    if p.closed:
        return fail(f, E_CLOSED, "pager")
    if at_get64(&p.map_n):
        spin_lock(&p.spin)
        m = map_find(p, ref_address(ref, 0))
        if m != NULL and not m.is_spill:
            n = <Node *> m.owner
            if n.level == level and ld64(page_of(n) + OFF_TREE) == t.tree_id and n.signature == t.s.signature:
                at_add32(&n.refs, 1)
                spin_unlock(&p.spin)
                out[0] = n
                return OK
        spin_unlock(&p.spin)
    n = <Node *> malloc(sizeof(Node) + p.page_size)
    if n == NULL:
        return fail(f, E_MEMORY, "page")
    for copy in range(t.s.copies):
        code = device_read(p, ref_address(ref, copy), 1, page_of(n), f)
        if code == OK:
            code = page_verify(t, page_of(n), ref, level, ref_address(ref, copy), &spilled, f)
        if code == OK:
            break
        if code == E_PYTHON and copy + 1 < t.s.copies:
            with gil:
                Py_DECREF(<object> f.error)
            f.error = NULL
    if code != OK:
        free(n)
        return code
    if copy and not p.read_only:
        for bad in range(copy):
            repair_copy(p, ref_address(ref, bad), page_of(n), &ignored)
    memset(n, 0, sizeof(Node))
    n.refs = 1
    n.cap = p.page_size
    n.level = level
    n.state = CLEAN
    n.spilled = spilled
    n.signature = t.s.signature
    n.address = ref_address(ref, 0)
    if level:
        n.kids_cap = node_count(n)
        n.kids = <Node **> calloc(n.kids_cap, sizeof(Node *))
        if n.kids == NULL:
            free(n)
            return fail(f, E_MEMORY, "page")
        list_add(p, n)
    account(p, CLEAN, node_bytes(n), 0)
    at_add64(&p.misses, 1)
    out[0] = n
    return OK


cdef inline int kid_at(TreeCore *t, Node *n, int i, Node **out, Fault *f) noexcept nogil:
    """Child i of an index node, loaded when it is not resident. Borrowed: good while pager.rw is held."""
    cdef Node *kid = <Node *> at_getp(&n.kids[i])
    if kid == NULL:
        return kid_load(t, n, i, out, f)
    touch(kid)
    out[0] = kid
    return OK


cdef int kid_load(TreeCore *t, Node *n, int i, Node **out, Fault *f) noexcept nogil:
    cdef Node *kid
    cdef int code = load(t, ref_at(page_of(n), i), n.level - 1, &kid, f)
    if code != OK:
        return code
    touch(kid)
    if at_casp(&n.kids[i], NULL, kid):
        out[0] = kid
    else:
        node_decref(t.p, kid)
        out[0] = <Node *> at_getp(&n.kids[i])
    return OK


cdef inline int root_of(TreeCore *t, Node **out, Fault *f) noexcept nogil:
    """The root node, loaded when it is not resident. Borrowed, as `kid_at`."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef int code
    if n != NULL:
        touch(n)
        out[0] = n
        return OK
    code = load(t, t.ref, t.level, &n, f)
    if code != OK:
        return code
    touch(n)
    if at_casp(&t.root, NULL, n):
        out[0] = n
    else:
        node_decref(t.p, n)
        out[0] = <Node *> at_getp(&t.root)
    return OK


# -- eviction ----------------------------------------------------------------------------------------------------------
cdef bint droppable(Node *n) noexcept nogil:
    """Second chance: a CLEAN node not used since the hand last passed, with no resident child."""
    cdef int i
    if at_get8(&n.state) != CLEAN:
        return False
    if at_get8(&n.accessed):
        at_set8(&n.accessed, 0)
        return False
    if n.level:
        for i in range(node_count(n)):
            if n.kids[i] != NULL:
                return False
    return True


cdef bint names_kid(Node *n, int i, Node *kid) noexcept nogil:
    cdef uint8_t *ref = ref_at(page_of(n), i)
    cdef uint8_t *page = page_of(kid)
    return (ld64(ref) == kid.address and ld32(ref + 8 * <int> (n.signature & 3)) == ld32(page + OFF_CRC)
            and ld64(ref + 8 * <int> (n.signature & 3) + 4) == ld64(page + OFF_GENERATION))


cdef void evict_below(PagerCore *p, Node *n, int64_t target) noexcept nogil:
    cdef int i
    cdef Node *kid
    for i in range(node_count(n)):
        kid = n.kids[i]
        if kid != NULL and droppable(kid) and (at_get8(&n.state) != DIRTY or names_kid(n, i, kid)):
            n.kids[i] = NULL
            node_decref(p, kid)
            at_add64(&p.evictions, 1)
            if at_get64(&p.clean_bytes) <= target:
                return


cdef Node *next_hand(PagerCore *p) noexcept nogil:
    """Move the hand to the next index node that lives (views let go of nodes at any time) and hold it; NULL at the end, where it
    starts again."""
    cdef Node *n
    spin_lock(&p.spin)
    n = p.hand
    while n != NULL and not at_inc_living(&n.refs):
        n = n.next
    p.hand = n.next if n != NULL else p.index_list
    spin_unlock(&p.spin)
    return n


cdef void evict(PagerCore *p) noexcept nogil:
    """Walk the hand over index nodes, dropping clean children, until the cache is an eighth under its bound. At most
    three rounds: what is left then is pinned. Caller holds pager.rw exclusively."""
    cdef int64_t target = p.cache_bytes - p.cache_bytes / 8
    cdef Node *n
    cdef Node *root
    cdef TreeCore *t
    cdef int rounds = 0
    while at_get64(&p.clean_bytes) > target and rounds < 5:
        n = next_hand(p)
        if n != NULL:
            evict_below(p, n, target)
            node_decref(p, n)
        else:
            rounds += 1
            t = p.trees
            while t != NULL:
                root = t.root
                if t.paged and root != NULL and droppable(root):
                    t.root = NULL
                    node_decref(p, root)
                    at_add64(&p.evictions, 1)
                t = t.next


cdef inline bint cache_full(PagerCore *p) noexcept nogil:
    return at_get64(&p.clean_bytes) > p.cache_bytes


cdef void make_room(PagerCore *p) noexcept nogil:
    """Called with no lock held after an operation that may have loaded pages. Waits for the lock only when far over."""
    if not cache_full(p):
        return
    if not rw_try_exclusive(&p.rw):
        if at_get64(&p.clean_bytes) < p.cache_bytes + p.cache_bytes / 4 + 64 * p.page_size:
            return
        rw_lock_exclusive(&p.rw)
    evict(p)
    rw_unlock_exclusive(&p.rw)


# -- spilled values ----------------------------------------------------------------------------------------------------
cdef int spill_entries(TreeCore *t, const uint8_t *entries, int64_t n, int depth, int64_t length, uint64_t generation,
                       int64_t skip, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """Read `want` bytes from byte `skip` of the `length` bytes below `entries`; neighbouring data pages in one read."""
    cdef Shape *s = &t.s
    cdef int64_t span = s.page_size, i, last, run, offset, take
    cdef int code, d
    cdef uint8_t *pages
    for d in range(depth):
        span *= s.spill_fan
    i = skip / span
    last = (skip + want - 1) / span
    pages = <uint8_t *> malloc((64 if depth == 0 else 1) * <int64_t> s.page_size)
    if pages == NULL:
        return fail(f, E_MEMORY, "spilled value")
    code = OK
    while i <= last and code == OK:
        if depth:
            code = spill_page(t, entries + i * s.spill_entry, 1, depth, generation, pages, f)
            offset = skip - i * span if skip > i * span else 0
            take = min(span, length - i * span) - offset
            take = min(take, want)
            if code == OK:
                code = spill_entries(t, pages + HEADER, min(<int64_t> s.spill_fan, div_up(
                    min(span, length - i * span), span / s.spill_fan)), depth - 1, min(span, length - i * span),
                    generation, offset, into, take, f)
            run = 1
        else:
            run = 1
            while (run < 64 and i + run <= last and ref_address(entries + (i + run) * s.spill_entry, 0)
                   == ref_address(entries + i * s.spill_entry, 0) + run):
                run += 1
            code = spill_page(t, entries + i * s.spill_entry, run, 0, generation, pages, f)
            offset = skip - i * span if skip > i * span else 0
            take = min(run * span - offset, want)
            if code == OK:
                memcpy(into, pages + offset, take)
        into += take
        want -= take
        skip += take
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
    cdef int depth, tops
    cdef int64_t length
    if want == 0:
        if v != NULL:
            spill_free(t.p, v)
        return OK
    if v != NULL:
        memcpy(into, v.data + offset, want)
        spill_free(t.p, v)
        return OK
    length = <int64_t> ld64(copy)
    tops = spill_tops(&t.s, length, &depth)
    return spill_entries(t, copy + SPILL_FIXED, tops, depth, length, ld64(copy + 8), offset, into, want, f)
