# Reading pages with no lock held.
#
# Who meets a page that is not in memory copies the reference to it, lets go of the locks, reads, takes them again and looks anew: while
# a device is slow, only those wait for it who need that page.
#
# Invariants of reading aside:
#  R1  what was read enters a tree only where the same reference still stands in the same place: meanwhile the page may have been freed
#      and its address written by another. Nothing is repaired, and no damage told, before that is known. (A reference that stands
#      again has the same checksum and generation, so it names the same page: an owner of freed pages gives no address twice in one)
#  R2  a spilled value is read so through a view alone: the generation that it pins keeps the owner from using those addresses again

cdef struct Aside:
    uint8_t ref[REF_MAX] # what was read or is to be read
    int level            # of that page; -1: none
    Node *node           # the page, with a reference; NULL where it could not be had
    Fault fault          # why not: OK, or what `load` would fail with had it only one copy


cdef inline void aside_begin(Aside *a) noexcept nogil:
    a.level = -1
    a.node = NULL
    memset(&a.fault, 0, sizeof(Fault))


cdef void aside_end(TreeCore *t, Aside *a) noexcept nogil:
    """Let go of what was read and is not wanted."""
    if a.node != NULL:
        node_decref(t.p, a.node)
    fault_forget(&a.fault)
    aside_begin(a)


cdef int aside_wants(TreeCore *t, Aside *a, const uint8_t *ref, int level) noexcept nogil:
    aside_end(t, a)
    memcpy(a.ref, ref, t.s.ref_size)
    a.level = level
    return E_ASIDE


cdef int aside_read(TreeCore *t, Aside *a, Fault *f) noexcept nogil:
    """Read the first copy of what is wanted; no lock is held. A fault: an interrupt. Others stay in `a` until it is known whether the
    page is still one of the tree's."""
    meet(MEET_ASIDE)
    load_first(t, a.ref, a.level, &a.node, &a.fault)
    if a.fault.code == E_PYTHON and is_interrupt(&a.fault):
        f[0] = a.fault
        aside_begin(a)
        return E_PYTHON
    return OK


cdef int aside_take(TreeCore *t, Aside *a, const uint8_t *ref, int level, Node **slot, Node **out, Fault *f) noexcept nogil:
    """Fill the empty `slot` that stands for `ref` with what was read; E_ASIDE: that was another page, or none. A lock is held that keeps
    the node in place."""
    if a.level != level or memcmp(a.ref, ref, t.s.ref_size) != 0:
        return aside_wants(t, a, ref, level)
    a.level = -1
    if a.node == NULL and t.s.copies > 1:
        return slot_load(t, ref, level, slot, out, f)
    if a.node == NULL:
        f[0] = a.fault
        aside_begin(a)
        return f.code
    slot_fill(t.p, slot, a.node, out)
    a.node = NULL
    return OK


cdef int find_aside(TreeCore *t, const uint8_t *key, int klen, int level, int beside, Aside *a, Node **found, Fault *f) noexcept nogil:
    """The page of a level (0: the leaf) that a key lies below, or the one `beside` it (-1, +1) below the same parent, as far as the pages are
    in memory or in `a`; E_ASIDE: `a` names the first that is not. NULL where there is none. Caller holds the lock for reading."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef Node *kid
    cdef int i, code
    found[0] = NULL
    if n == NULL:
        code = aside_take(t, a, t.ref, t.level, &t.root, &n, f)
        if code != OK:
            return code
    touch(n)
    while n.level > level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        if n.level == level + 1:
            i += beside
            if not 0 <= i < node_count(n):
                return OK
        kid = kid_of(n, i)
        if kid == NULL:
            code = aside_take(t, a, ref_at(page_of(n), i), n.level - 1, &n.kids[i], &kid, f)
            if code != OK:
                return code
        prefetch_node(kid)
        touch(kid)
        n = kid
    found[0] = n if n.level == level else NULL
    return OK


cdef int lock_page(TreeCore *t, const uint8_t *key, int klen, int level, int beside, Node **found, Fault *f) noexcept nogil:
    """Take the lock for reading, with what `find_aside` finds in memory. On a fault it is held too."""
    cdef Aside a
    cdef int code = E_ASIDE, rounds = 0
    aside_begin(&a)
    core_lock_shared(t)
    while code == E_ASIDE and rounds < HEIGHT_MAX:
        code = find_aside(t, key, klen, level, beside, &a, found, f)
        if code == E_ASIDE:
            core_unlock_shared(t)
            code = aside_read(t, &a, f)
            if code == OK:
                code = E_ASIDE
            core_lock_shared(t)
        rounds += 1
    aside_end(t, &a)
    if code == E_ASIDE:  # others evict as fast as this one reads
        code = find_leaf(t, key, klen, found, f) if level == 0 and beside == 0 else OK
    return code


cdef inline int lock_leaf(TreeCore *t, const uint8_t *key, int klen, Node **leaf, Fault *f) noexcept nogil:
    return lock_page(t, key, klen, 0, 0, leaf, f)


cdef int bring_leaf(TreeCore *t, const uint8_t *key, int klen, Fault *f) noexcept nogil:
    """Have the leaf of a key in memory, before locks are taken that would have others wait for its read."""
    cdef Node *leaf
    cdef int code = lock_leaf(t, key, klen, &leaf, f)
    core_unlock_shared(t)
    return code


cdef int bring_borders(TreeCore *t, const uint8_t *start, int start_len, const uint8_t *stop, int stop_len, Fault *f) noexcept nogil:
    """The same for both ends of a range; NULL: it has none there."""
    cdef int code = OK
    if start != NULL and stop != NULL and compare(&t.s, start, start_len, stop, stop_len) >= 0:
        return OK
    if start != NULL:
        code = bring_leaf(t, start, start_len, f)
    return bring_leaf(t, stop, stop_len, f) if code == OK and stop != NULL else code


cdef bint falls_under_half(TreeCore *t, Node *leaf, const uint8_t *key, int klen) noexcept nogil:
    """Whether the leaf holds the key and is less than half full without it. A guess where another thread changes the leaf."""
    cdef uint32_t version = latch_read(&leaf.version)
    cdef bint found
    cdef int pos, vlen = 0, live
    race_begin()
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    live = page_live(page_of(leaf), leaf.cap) - klen - 8
    if found:
        value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen)
    race_end()
    return found and latch_same(&leaf.version, version) and (live - max(vlen, 0)) * 2 < t.s.page_size - HEADER


cdef bint may_fall_under_half(TreeCore *t, Node *n, const uint8_t *key, int klen) noexcept nogil:
    """Whether an index page is less than half full once two of its children, one of them that of the key, are joined."""
    cdef int i = index_find(&t.s, page_of(n), n.cap, key, klen), most = cell_size_at(&t.s, page_of(n), i)
    if i + 1 < node_count(n):
        most = max(most, cell_size_at(&t.s, page_of(n), i + 1))
    return (page_live(page_of(n), n.cap) - most - 8) * 2 < t.s.page_size - HEADER or node_count(n) < 3


cdef void bring_siblings(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """Before a deletion that leaves a leaf less than half full: have the siblings it may be joined with in memory, and those of the index
    pages above that may fall under half with it. Only a help."""
    cdef Node *n
    cdef Fault ignored
    cdef bint low
    cdef int side, level
    memset(&ignored, 0, sizeof(Fault))
    for level in range(HEIGHT_MAX):
        for side in range(0, 3):
            low = lock_page(t, key, klen, level, side if side < 2 else -1, &n, &ignored) == OK
            if low and side == 0:
                low = n != NULL and (may_fall_under_half(t, n, key, klen) if level else falls_under_half(t, n, key, klen))
            core_unlock_shared(t)
            fault_forget(&ignored)
            if not low:
                return


cdef int lock_to_change(TreeCore *t, const uint8_t *key, int klen, int64_t first, int64_t end, Fault *f) noexcept nogil:
    """Take the locks of a change at `key` (NULL: anywhere) that needs the tree alone. The leaf is read before, and of a long value there what
    a change of its bytes from `first` to `end` looks at; what else the change needs and is not in memory it reads with them held. On
    a fault they are held too."""
    cdef Ahead *ahead = NULL
    cdef int code = bring_value(t, key, klen, first, end, &ahead, f) if key != NULL else OK
    rw_lock_shared(&t.p.rw)
    rw_lock_exclusive(&t.rw)
    t.ahead = ahead
    return fail(f, E_BROKEN, "tree") if t.broken and code == OK else code


# -- below a node that is held -----------------------------------------------------------------------------------------
cdef int slot_held(TreeCore *t, const uint8_t *ref, int level, Node **slot, Node **out, Fault *f) noexcept nogil:
    """What `slot` points at, borrowed; where it is empty, the page that `ref` names, read while pager.rw is let go. For views: the caller
    holds a reference on the node that has the slot, and no other borrowed one."""
    cdef Aside a
    cdef int code
    out[0] = <Node *> at_getp(slot)
    if out[0] != NULL:
        touch(out[0])
        return OK
    aside_begin(&a)
    aside_wants(t, &a, ref, level)
    rw_unlock_shared(&t.p.rw)
    code = aside_read(t, &a, f)
    rw_lock_shared(&t.p.rw)
    if code == OK:
        code = aside_take(t, &a, ref, level, slot, out, f)
    aside_end(t, &a)
    return code


cdef inline int kid_held(TreeCore *t, Node *n, int i, Node **out, Fault *f) noexcept nogil:
    return slot_held(t, ref_at(page_of(n), i), n.level - 1, &n.kids[i], out, f)


cdef inline int root_held(TreeCore *t, Node **out, Fault *f) noexcept nogil:
    return slot_held(t, t.ref, t.level, &t.root, out, f)


cdef enum:
    AHEAD_MOST = 64      # pages that a scan reads at once


cdef void load_run(TreeCore *t, Node *n, int i, int step, int most) noexcept nogil:
    """Read leaf `i` and up to `most` - 1 that follow it in a scan (`step` +1, -1) in one go, where they lie side by side and none is
    resident; and let the medium fetch what lies behind. Only a help: what cannot be read or is damaged is left to `slot_held`.
    Lets go of pager.rw meanwhile; the caller holds a reference on `n`, a view's."""
    cdef PagerCore *p = t.p
    cdef Node *nodes[AHEAD_MOST]
    cdef iovec parts[AHEAD_MOST]
    cdef uint64_t first = ref_address(ref_at(page_of(n), i), 0)
    cdef int count = 0, room = <int> min(<int64_t> AHEAD_MOST, at_get64(&p.cache_bytes) / 8 / p.page_size), k, at
    cdef Node *kept
    most = min(most, room)
    while count < most and 0 <= i + count * step < node_count(n) and kid_of(n, i + count * step) == NULL:
        if ref_address(ref_at(page_of(n), i + count * step), 0) != first + <uint64_t> (<int64_t> count * step):
            break
        nodes[count] = node_new(p.page_size, 0, t.s.signature, CLEAN)
        if nodes[count] == NULL:
            break
        count += 1
    if count == 1:  # nothing to win
        free(nodes[0])
    if count < 2:
        return
    if step < 0:
        first = first + 1 - <uint64_t> count
    for k in range(count):
        parts[k].iov_base = page_of(nodes[k if step > 0 else count - 1 - k])
        parts[k].iov_len = p.page_size
    rw_unlock_shared(&p.rw)
    meet(MEET_ASIDE)
    read_run(t, n, i, step, count, first, nodes, parts)
    rw_lock_shared(&p.rw)
    for k in range(count):
        at = i + k * step
        if nodes[k] != NULL:
            node_enter(p, nodes[k])
            slot_fill(p, &n.kids[at], nodes[k], &kept)


cdef void read_run(TreeCore *t, Node *n, int i, int step, int count, uint64_t first, Node **nodes, iovec *parts) noexcept nogil:
    """Read neighbouring leaves and verify each; one that cannot be had is NULL then."""
    cdef PagerCore *p = t.p
    cdef ssize_t got = 0
    cdef int k, at, spilled = 0
    cdef Fault ignored
    if first < ADDRESS_END and file_enter(p, &ignored) == OK:
        got = preadv(p.lent.fd, parts, count, <off_t> (first * p.page_size))
        at_add64(&p.device_reads, 1)
        if step > 0:
            posix_fadvise(p.lent.fd, <off_t> ((first + count) * p.page_size), 2 * count * p.page_size, POSIX_FADV_WILLNEED)
        file_leave(p)
    for k in range(count):
        at = i + k * step
        if got < <ssize_t> count * p.page_size or page_verify(t, page_of(nodes[k]), ref_at(page_of(n), at), 0, 0, &spilled,
                                                              &ignored) != OK:
            free(nodes[k])
            nodes[k] = NULL
            continue
        at_add64(&p.pages_read, 1)
        at_add64(&p.bytes_read, p.page_size)
        at_add64(&p.misses, 1)
        nodes[k].spilled = spilled
        nodes[k].address = ref_address(ref_at(page_of(n), at), 0)
