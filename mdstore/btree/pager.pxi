# Reading, checking, caching and evicting pages; the queue of sealed pages.
#
# Invariants of the pager:
#  G1  clean_bytes falls under cache_bytes (or to what is pinned) after every operation that loaded pages
#  G2  a sealed page is found by its address in `map` until the device has all its copies
#  G3  locks are taken in the order pager.rw, tree.rw, tree.rw of the shared addresses, a leaf's latch or pager.spin; none of
#      the first three is waited for with the interpreter lock held, which may be taken under any of those three. Nodes stay where
#      they are for who holds pager.rw or, within a live tree, that tree's rw: the eviction hand takes all of them
#  G4  the device's descriptor is used between `file_enter` and `file_leave` alone, where nothing is waited for but the device: the
#      owner closes it once `close` has shut the word

# -- the map of sealed pages: address -> node or page of a spilled value, until the device holds them ------------------
cdef inline int64_t map_slot(PagerCore *p, uint64_t address) noexcept nogil:
    """Eight neighbouring addresses share a place, so that a run of pages does not miss the processor's cache with each."""
    return <int64_t> ((((address >> 3) * 0x9e3779b97f4a7c15ULL) >> 20) << 3 | address & 7) & (p.map_cap - 1)


cdef Mapped *map_find(PagerCore *p, uint64_t address) noexcept nogil:
    cdef int64_t i
    if p.map_n == 0:
        return NULL
    i = map_slot(p, address)
    while p.map[i].owner != NULL:
        if p.map[i].address == address:
            return &p.map[i]
        i = (i + 1) & (p.map_cap - 1)
    return NULL


cdef int map_reserve(PagerCore *p, int64_t more) noexcept nogil:
    cdef Mapped *old = p.map
    cdef int64_t cap = p.map_cap, i, held = p.map_n
    more += p.map_promised
    if (p.map_n + more) * 2 <= cap:
        return OK
    if cap == 0:
        cap = 64
    while (p.map_n + more) * 2 > cap:
        cap *= 2
    p.map = <Mapped *> take_zeroed(cap, sizeof(Mapped))
    if p.map == NULL:
        p.map = old
        return E_MEMORY
    i = p.map_cap
    p.map_cap = cap
    while i > 0:  # map_n may be looked at without the lock: it never falls to zero on the way
        i -= 1
        if old[i].owner != NULL:
            map_put(p, old[i].address, old[i].owner, old[i].bytes)
    at_set64(&p.map_n, held)
    free(old)
    return OK


cdef void map_put(PagerCore *p, uint64_t address, void *owner, const uint8_t *bytes) noexcept nogil:
    cdef int64_t i = map_slot(p, address)
    while p.map[i].owner != NULL and p.map[i].address != address:
        i = (i + 1) & (p.map_cap - 1)
    if p.map[i].owner == NULL:
        at_add64(&p.map_n, 1)
    p.map[i].address = address
    p.map[i].owner = owner
    p.map[i].bytes = bytes


cdef void map_drop(PagerCore *p, uint64_t address, void *owner) noexcept nogil:
    cdef int64_t i, j, home
    cdef Mapped *m = map_find(p, address)
    if m == NULL or m.owner != owner:
        return
    i = m - p.map
    p.map[i].owner = NULL
    at_add64(&p.map_n, -1)
    j = i
    while True:  # close the hole, so that every entry is still reached from its home
        j = (j + 1) & (p.map_cap - 1)
        if p.map[j].owner == NULL:
            return
        home = map_slot(p, p.map[j].address)
        if ((j - home) & (p.map_cap - 1)) >= ((j - i) & (p.map_cap - 1)):
            p.map[i] = p.map[j]
            p.map[j].owner = NULL
            i = j


# -- reading -----------------------------------------------------------------------------------------------------------
cdef int file_enter(PagerCore *p, Fault *f) noexcept nogil:
    """Before p.lent.fd is used. E_CLOSED: it is somebody else's, or may be soon."""
    if not rw_try_shared(&p.lent.file):
        return fail(f, E_CLOSED, "pager")
    meet(MEET_FILE)
    return OK


cdef inline void file_leave(PagerCore *p) noexcept nogil:
    rw_unlock_shared(&p.lent.file)


cdef int device_read(PagerCore *p, uint64_t address, int64_t pages, uint8_t *into, Fault *f) noexcept nogil:
    """Read whole pages: pread where the device has a descriptor, the device's own read elsewhere."""
    cdef int64_t done = 0, size = pages * p.page_size
    cdef ssize_t got = 0
    f.expected = f.found = 0
    if address >= ADDRESS_END:
        f.address = address
        return refuse(f, "page address", -1, -1, "below", ADDRESS_END, address)
    at_add64(&p.device_reads, 1)
    at_add64(&p.pages_read, pages)
    at_add64(&p.bytes_read, size)
    if p.lent.fd < 0:
        with gil:
            return read_through_object(p, address, size, into, f)
    if file_enter(p, f) != OK:
        return f.code
    while done < size:
        got = pread(p.lent.fd, into + done, size - done, <off_t> (address * p.page_size + done))
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            f.found = errno if got < 0 else 0
            break
        done += got
    file_leave(p)
    if done == size:
        return OK
    f.address = address
    fail(f, E_DEVICE, "short read" if got == 0 else "read")
    with gil:
        return blame_reference(p, address, pages, f)


cdef int blame_reference(PagerCore *p, uint64_t address, int64_t pages, Fault *f) noexcept:
    """Where a read that failed lies past the end of the device, not the medium is at fault but the reference."""
    try:
        size = (<Pager> p.owner).device.size_bytes // p.page_size
        if <object> address + pages > size:
            return refuse(f, "page address outside the device", -1, -1, "below", size, address + <uint64_t> pages - 1)
        return f.code
    except BaseException as error:
        Py_INCREF(error)
        f.error = <void *> error
        f.code = E_PYTHON
        return E_PYTHON


cdef int read_through_object(PagerCore *p, uint64_t address, int64_t size, uint8_t *into, Fault *f) noexcept:
    cdef const unsigned char[::1] view
    try:
        data = (<Pager> p.owner).device.read(address * p.page_size, size)
        if len(data) != size:
            raise DeviceFailed("read", f"page {address}", f"{len(data)} bytes instead of {size}")
        view = data
        memcpy(into, &view[0], size)
        return OK
    except InvalidRequest:
        f.address = address
        fail(f, E_CORRUPT, "page address outside the device")
        return blame_reference(p, address, size // p.page_size, f)
    except BaseException as error:
        Py_INCREF(error)
        f.error = <void *> error
        f.code = E_PYTHON
        return E_PYTHON


cdef int page_verify(TreeCore *t, const uint8_t *page, const uint8_t *ref, int level, uint64_t address,
                     int *spilled, Fault *f) noexcept nogil:
    """The reference's CRC, then who the page says it is, then its insides, then what the reference counts below it."""
    cdef Shape *s = &t.s
    cdef uint64_t records
    cdef uint32_t crc = crc32c_update(0, page + 4, s.page_size - 4, 0)
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    if crc != ref_crc(s, ref):
        return refuse(f, "page checksum", -1, -1, NULL, ref_crc(s, ref), crc)
    if ld32(page + OFF_CRC) != crc:
        return refuse(f, "page checksum", -1, OFF_CRC, NULL, crc, ld32(page + OFF_CRC))
    if ld32(page + OFF_MAGIC) != PAGE_MAGIC:
        return refuse(f, "page magic", -1, OFF_MAGIC, NULL, PAGE_MAGIC, ld32(page + OFF_MAGIC))
    if ld64(page + OFF_TREE) != t.tree_id:
        return refuse(f, "page tree id", -1, OFF_TREE, NULL, t.tree_id, ld64(page + OFF_TREE))
    if page[OFF_LEVEL] != level:
        return refuse(f, "page level", -1, OFF_LEVEL, NULL, level, page[OFF_LEVEL])
    if ld64(page + OFF_GENERATION) != ref_generation(s, ref):
        return refuse(f, "page generation", -1, OFF_GENERATION, NULL, ref_generation(s, ref), ld64(page + OFF_GENERATION))
    if page_check(s, page, spilled, f) != OK or dates_check(s, page, spilled[0], f) != OK:
        return f.code
    records = page_records(s, page, spilled[0])
    return OK if records == ref_records(s, ref) else refuse(f, "records below", -1, -1, NULL, ref_records(s, ref), records)


cdef int too_high(TreeCore *t, Node *n, int bound, Fault *f) noexcept nogil:
    """Levels fall by one from reference to page, so that no tree has more of them than its root states."""
    f.address = n.address
    f.tree_id = t.tree_id
    f.level = n.level
    return refuse(f, "tree height", -1, -1, "below", bound, at_get32(<int32_t *> &t.level))


cdef Node *sealed_node(TreeCore *t, const uint8_t *ref, int level) noexcept nogil:
    """The node a reference names, with a reference, where its page waits for write_sealed; else NULL."""
    cdef PagerCore *p = t.p
    cdef Node *n = NULL
    cdef Mapped *m
    if at_get64(&p.map_n) == 0:
        return NULL
    spin_lock(&p.spin)
    m = map_find(p, ref_address(ref, 0))
    if m != NULL and m.bytes == NULL:
        n = <Node *> m.owner
        if n.level == level and ld64(page_of(n) + OFF_TREE) == t.tree_id and n.signature == t.s.signature and names(ref, n):
            at_add32(&n.refs, 1)
        else:
            n = NULL
    spin_unlock(&p.spin)
    return n


cdef int load_copies(TreeCore *t, const uint8_t *ref, int level, int copies, Node **out, Fault *f) noexcept nogil:
    """The node a reference names, with a reference: from the sealed map, else read and verified. Of more than one copy the bad ones are
    written again."""
    cdef PagerCore *p = t.p
    cdef Node *n
    cdef int copy = 0, bad, code = E_CORRUPT, spilled = 0
    out[0] = NULL
    if at_get32(<int32_t *> &p.lent.closed):
        return fail(f, E_CLOSED, "pager")
    out[0] = sealed_node(t, ref, level)
    if out[0] != NULL:
        return OK
    n = node_new(p.page_size, level, t.s.signature, CLEAN)
    if n == NULL:
        return fail(f, E_MEMORY, "page")
    f.tree_id = t.tree_id
    f.level = level
    for copy in range(copies):
        code = device_read(p, ref_address(ref, copy), 1, page_of(n), f)
        if code == OK:
            code = page_verify(t, page_of(n), ref, level, ref_address(ref, copy), &spilled, f)
        if code == OK or copy + 1 == copies or not may_retry(f):
            break
    for bad in range(copy if code == OK and not p.read_only else 0):
        if code == OK:
            code = repair_copy(t, ref_address(ref, bad), level, page_of(n), False, f)
    if code != OK:
        free(n)
        return code
    n.spilled = spilled
    n.address = ref_address(ref, 0)
    node_enter(p, n)
    at_add64(&p.misses, 1)
    out[0] = n
    return OK


cdef inline int load(TreeCore *t, const uint8_t *ref, int level, Node **out, Fault *f) noexcept nogil:
    """The node a reference names, of any copy. A lock keeps the reference standing, so a bad copy is one."""
    return load_copies(t, ref, level, t.s.copies, out, f)


cdef inline int load_first(TreeCore *t, const uint8_t *ref, int level, Node **out, Fault *f) noexcept nogil:
    """The same of the first copy alone, repairing nothing: for a reference that may stand no more."""
    return load_copies(t, ref, level, 1, out, f)


cdef inline void slot_fill(PagerCore *p, Node **slot, Node *n, Node **out) noexcept nogil:
    """Put a node that was read where its parent (or the tree) points at it, unless another thread has been first; `out` is borrowed."""
    touch(n)
    if at_casp(slot, NULL, n):
        out[0] = n
    else:
        node_decref(p, n)
        out[0] = <Node *> at_getp(slot)


cdef int slot_load(TreeCore *t, const uint8_t *ref, int level, Node **slot, Node **out, Fault *f) noexcept nogil:
    cdef Node *n
    cdef int code = load(t, ref, level, &n, f)
    if code == OK:
        slot_fill(t.p, slot, n, out)
    return code


cdef inline int kid_at(TreeCore *t, Node *n, int i, Node **out, Fault *f) noexcept nogil:
    """Child i of an index node, loaded when it is not resident. Borrowed: good while pager.rw is held."""
    cdef Node *kid = kid_of(n, i)
    if kid == NULL:
        return slot_load(t, ref_at(page_of(n), i), n.level - 1, &n.kids[i], out, f)
    touch(kid)
    out[0] = kid
    return OK


cdef inline int root_of(TreeCore *t, Node **out, Fault *f) noexcept nogil:
    """The root node, loaded when it is not resident. Borrowed, as `kid_at`."""
    cdef Node *n = <Node *> at_getp(&t.root)
    if n == NULL:
        return slot_load(t, t.ref, t.level, &t.root, out, f)
    touch(n)
    out[0] = n
    return OK
