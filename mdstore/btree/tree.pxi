# The tree: descent, putting, deleting, ranges.
#
# Invariants of a tree (Tree.check states each by its number):
#  T1  every key below child i of an index page is >= separator i and < separator i + 1
#  T2  slot 0 of an index page has an empty key: the lower bound of a page is kept by its parent alone. A cell that moves to
#      a left sibling is given that bound as its key (`gather_pair`), and loses it when it comes first in a page
#  T3  all leaves have the same depth; the tally of `rw` is the number of records, and the count in a reference that of those below
#  T4  dirty_nodes counts the DIRTY nodes of the tree, dirty_spill the pages (of one copy) of its values in memory
#  T5  no leaf is empty but a root
#  T6  a change that fails has changed nothing: first all that may fail (release.pxi), then what cannot

# -- descent -----------------------------------------------------------------------------------------------------------
cdef int find_leaf(TreeCore *t, const uint8_t *key, int klen, Node **leaf, Fault *f) noexcept nogil:
    """The leaf that holds `key` or would. Caller holds pager.rw and, for a live tree, tree.rw."""
    cdef Node *n = NULL
    cdef int i, code = root_of(t, &n, f)
    while code == OK and n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        n_prefetch(n, i)
        code = kid_at(t, n, i, &n, f)
    leaf[0] = n
    return code


cdef inline void n_prefetch(Node *n, int i) noexcept nogil:
    cdef Node *kid = kid_of(n, i)
    if kid != NULL:
        prefetch_node(kid)


cdef enum:
    SMALL_CELL = 1400    # bytes of a cell that are not asked of the allocator


# -- putting -----------------------------------------------------------------------------------------------------------
cdef int record_item(TreeCore *t, Item *item, uint8_t *cell, const uint8_t *key, int klen, const uint8_t *value,
                     int64_t vlen, Spill **made, Fault *f) noexcept nogil:
    """Encode a leaf cell in `cell`; a long value goes into memory of its own, which `made` receives."""
    cdef int n = klen
    cdef Spill *v
    made[0] = NULL
    memcpy(cell, key, klen)
    if t.s.fixed_value < 0 and value_spills(&t.s, klen, vlen):
        v = spill_new(t, vlen)
        if v == NULL:
            return fail(f, E_MEMORY, "value")
        memcpy(v.data, value, vlen)
        made[0] = v
        st16(cell + n, SPILL_DATED)
        n += 2
        memset(cell + n, 0, SPILL_BODY_MAX)
        st64(cell + n, vlen)
        st64(cell + n + 8, IN_MEMORY)
        st64(cell + n + 16, <uint64_t> <uintptr_t> v)
        n += spill_body(&t.s, &t.s.dated, vlen)
    else:
        if t.s.fixed_value < 0:
            st16(cell + n, <int> vlen)
            n += 2
        memcpy(cell + n, value, vlen)
        n += <int> vlen
        if n == 0:
            cell[0] = 0
            n = 1
    item.cell = cell
    item.size = n
    item.klen = klen
    item.kid = NULL
    return OK


cdef int grow_page(TreeCore *t, Path *path, int size, Fault *f) noexcept nogil:
    """A small root leaf gets a larger page, twice as large until the cell fits."""
    cdef Node *n = path.node[path.depth]
    cdef Node *c
    cdef int cap = n.cap, short = size + 8 - page_free(page_of(n))
    while cap - <int> n.cap < short and cap < t.s.page_size:
        cap *= 2
    if cap > t.s.page_size:
        cap = t.s.page_size
    c = node_copy(&t.s, t.p, n, cap)
    if c == NULL:
        return fail(f, E_MEMORY, "page")
    node_swap(t.p, &t.root, c)
    path.node[path.depth] = c
    return OK


cdef int make_way(TreeCore *t, Path *path, int pos, const Item *item, Fault *f) noexcept nogil:
    """Take the record at `pos` out of the leaf, after all has been had that putting another in its place may need. The tally stays: who
    looks at it without the lock (`release_begin`) must never find a tree with one record empty."""
    cdef Node *leaf = path.node[path.depth]
    cdef Release r
    cdef int code = OK, old = cell_size_at(&t.s, page_of(leaf), pos)
    if page_free(page_of(leaf)) + old < item.size:
        code = reserve(t, path, 2 * t.s.key_max + t.s.ref_size + 8, f)
    if code != OK:
        return code
    release_begin(&r, t, False)
    code = release_cell(&r, leaf, pos, f)
    if code == OK:
        code = release_commit(&r, f)
    release_end(&r)
    if code == OK:
        forget_cell(t, leaf, pos)
        page_erase(&t.s, page_of(leaf), pos)
    return code


cdef int put_slow(TreeCore *t, const uint8_t *key, int klen, const uint8_t *value, int64_t vlen, bint *existed,
                  Fault *f) noexcept nogil:
    """Put with the tree's lock held exclusively: owns the path, splits, spills."""
    cdef Path path
    cdef Item item
    cdef Spill *v = NULL
    cdef Node *leaf
    cdef uint8_t small[SMALL_CELL]
    cdef uint8_t *cell = small
    cdef int64_t size = klen + SPILL_BODY_MAX + 16 + (0 if value_spills(&t.s, klen, vlen) else vlen)
    cdef int pos, room, code = own_path(t, key, klen, &path, f)
    existed[0] = False
    if code != OK:
        return code
    leaf = path.node[path.depth]
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    if size > SMALL_CELL:
        cell = <uint8_t *> take(size)
    if cell == NULL:
        return fail(f, E_MEMORY, "record")
    code = record_item(t, &item, cell, key, klen, value, vlen, &v, f)
    if code == OK and leaf.cap < <uint32_t> t.s.page_size:
        room = page_free(page_of(leaf)) + (cell_size_at(&t.s, page_of(leaf), pos) + 8 if existed[0] else 0)
        if room < item.size + 8:
            code = grow_page(t, &path, item.size, f)
    if code == OK and existed[0]:
        code = make_way(t, &path, pos, &item, f)
    if code == OK:
        code = insert_leaf(t, &path, pos, &item, f)
    if code == OK:
        at_set32(<int32_t *> &t.is_dirty, 1)
        rw_tally_add(&t.rw, not existed[0])
        if v != NULL:
            t.dated = 1
            t.dirty_spill += spill_dirty(t, v)
    elif v != NULL:
        spill_drop(t.p, v)
    path_end(t, &path)
    if cell != small:
        free(cell)
    return code


cdef inline Node *owned_leaf(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """The leaf of a key where the tree may change it and everything above it as it is, and nothing in it has spilled; else NULL. A
    broken tree has none: `lock_to_change` refuses."""
    cdef Node *n = <Node *> at_getp(&t.root) if not at_get32(<int32_t *> &t.broken) else NULL
    while n != NULL and at_get8(&n.state) == DIRTY and at_get32(&n.refs) == 1:
        if n.level == 0:
            return n if n.spilled == 0 else NULL
        n = <Node *> at_getp(&n.kids[index_find(&t.s, page_of(n), n.cap, key, klen)])
        if n != NULL:
            prefetch_node(n)
    return NULL


cdef inline bint leaf_put(TreeCore *t, Node *n, const uint8_t *key, int klen, const uint8_t *value, int vlen,
                          bint *existed) noexcept nogil:
    """Put into an owned leaf under the shared lock. False where it has no room: nothing changed. The caller counts the record."""
    cdef bint done
    cdef int i
    latch_lock(&n.version)
    prefetch_gap(page_of(n) + ld32(page_of(n) + OFF_HEAP) - klen - vlen)
    i = page_find(&t.s, page_of(n), n.cap, 0, key, klen, existed)
    if existed[0]:
        done = leaf_replace(&t.s, page_of(n), n.cap, i, value, vlen)
    else:
        done = leaf_insert(&t.s, page_of(n), n.cap, i, key, klen, value, vlen)
        if done:
            if i == node_count(n) - 1:
                n.run = n.run + 1 if 0 < n.run < 30000 else 1
            elif i == 0:
                n.run = n.run - 1 if -30000 < n.run < 0 else -1
            else:
                n.run = 0
    latch_unlock(&n.version)
    if done and not at_get32(<int32_t *> &t.is_dirty):
        at_set32(<int32_t *> &t.is_dirty, 1)
    return done


# -- deleting ----------------------------------------------------------------------------------------------------------
cdef int delete_slow(TreeCore *t, const uint8_t *key, int klen, bint *existed, Fault *f) noexcept nogil:
    """Delete with the tree's lock held exclusively. A key that is not there dirties nothing."""
    cdef Path path
    cdef Release r
    cdef Node *leaf
    cdef int pos, code = find_leaf(t, key, klen, &leaf, f)
    existed[0] = False
    if code != OK:
        return code
    page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    if not existed[0]:
        return OK
    code = own_path(t, key, klen, &path, f)
    if code != OK:
        return code
    leaf = path.node[path.depth]
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    release_begin(&r, t, False)
    code = release_cell(&r, leaf, pos, f)
    if code == OK:
        code = release_commit(&r, f)
    release_end(&r)
    if code != OK:
        return code
    forget_cell(t, leaf, pos)
    page_erase(&t.s, page_of(leaf), pos)
    leaf.run = 0
    rw_tally_add(&t.rw, -1)
    mend(t, &path)
    return OK


cdef bint leaf_delete(TreeCore *t, Node *n, const uint8_t *key, int klen, bint *existed) noexcept nogil:
    """Delete from an owned leaf under the shared lock, where it stays half full. False: nothing changed. The caller counts."""
    cdef bint done = False
    cdef int i
    latch_lock(&n.version)
    i = page_find(&t.s, page_of(n), n.cap, 0, key, klen, existed)
    if not existed[0]:
        done = True
    elif t.level == 0 or (page_live(page_of(n), n.cap) - cell_size_at(&t.s, page_of(n), i) - 8) * 2 >= (
            t.s.page_size - HEADER) and node_count(n) > 2:
        page_erase(&t.s, page_of(n), i)
        n.run = 0
        done = True
    latch_unlock(&n.version)
    if done and existed[0] and not at_get32(<int32_t *> &t.is_dirty):
        at_set32(<int32_t *> &t.is_dirty, 1)
    return done


# -- ranges ------------------------------------------------------------------------------------------------------------
cdef Node *empty_leaf(TreeCore *t) noexcept nogil:
    cdef Node *leaf = node_alloc(t.p, 128 if t.s.page_size > 128 else t.s.page_size, 0, t.s.signature, DIRTY)
    if leaf != NULL:
        page_init(page_of(leaf), leaf.cap, t.tree_id, 0)
    return leaf


cdef struct Range:
    const uint8_t *start  # NULL: from the first
    int start_len
    const uint8_t *stop   # NULL: to the last
    int stop_len


cdef enum:
    CUT_OWN = 1          # own the pages of the two borders: may fail
    CUT_LIST = 2         # list what is given up: may fail
    CUT_APPLY = 3        # take it out: cannot fail


cdef int cut_range(Release *r, Node *n, Range *g, int step, Fault *f) noexcept nogil:
    """One step of removing start <= key < stop below an owned node. Children wholly inside go as subtrees; the one or two at the
    borders are cut themselves, and are mended by the caller. At least one bound is set, so that a child stays."""
    cdef TreeCore *t = r.t
    cdef int lo = -1, hi = node_count(n), i, code = OK
    cdef bint found
    cdef Range half
    if n.level == 0:
        return cut_leaf(r, n, g, step, f)
    if g.start != NULL:
        lo = index_find(&t.s, page_of(n), n.cap, g.start, g.start_len)
    if g.stop != NULL:
        hi = index_find(&t.s, page_of(n), n.cap, g.stop, g.stop_len)
    if lo == hi:
        return cut_border(r, n, lo, g, step, f)
    half = g[0]
    half.start = NULL
    if hi < node_count(n):
        code = cut_border(r, n, hi, &half, step, f)
    for i in range(hi - 1, lo, -1):
        if code == OK and step == CUT_LIST:
            code = release_ref(r, n.kids[i], ref_at(page_of(n), i), n.level - 1, f)
        elif step == CUT_APPLY:
            if n.kids[i] != NULL:
                forget_dirty(t, n.kids[i])
                node_decref(t.p, n.kids[i])
            drop_kid(t, n, i)
    half = g[0]
    half.stop = NULL
    if code == OK and lo >= 0:
        code = cut_border(r, n, lo, &half, step, f)
    return code


cdef int cut_border(Release *r, Node *n, int i, Range *g, int step, Fault *f) noexcept nogil:
    cdef int code = own_kid(r.t, n, i, f) if step == CUT_OWN else OK
    return cut_range(r, n.kids[i], g, step, f) if code == OK else code


cdef int cut_leaf(Release *r, Node *n, Range *g, int step, Fault *f) noexcept nogil:
    cdef TreeCore *t = r.t
    cdef int lo = 0, hi = node_count(n), i, code
    cdef bint found
    if g.start != NULL:
        lo = page_find(&t.s, page_of(n), n.cap, 0, g.start, g.start_len, &found)
    if g.stop != NULL:
        hi = page_find(&t.s, page_of(n), n.cap, 0, g.stop, g.stop_len, &found)
    if step == CUT_LIST:
        for i in range(lo, hi):
            code = release_cell(r, n, i, f)
            if code != OK:
                return code
        r.records += hi - lo
    elif step == CUT_APPLY:
        for i in range(lo, hi):
            forget_cell(t, n, i)
        page_drop(&t.s, page_of(n), lo, hi)
        n.run = 0
    return OK


cdef void mend_at(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """Mend the path to a key; pages that cannot be owned now stay as they are, underfull."""
    cdef Path path
    cdef Fault ignored
    memset(&ignored, 0, sizeof(Fault))
    if own_path(t, key, klen, &path, &ignored) == OK:
        mend(t, &path)
    else:
        fault_forget(&ignored)


cdef int delete_range_slow(TreeCore *t, Range *g, int64_t *records, Fault *f) noexcept nogil:
    """Remove a range with the tree's lock held exclusively. One without records dirties nothing."""
    cdef Release r
    cdef Node *root
    cdef int64_t there = 0
    cdef int code
    records[0] = 0
    if g.start != NULL and g.stop != NULL and compare(&t.s, g.start, g.start_len, g.stop, g.stop_len) >= 0:
        return OK
    if records_of(t) == 0:
        return OK
    if g.start == NULL and g.stop == NULL:
        records[0] = records_of(t)
        return clear_slow(t, f)
    code = root_of(t, &root, f)
    if code == OK:
        code = count_range(t, root, g.start, g.start_len, g.stop, g.stop_len, &there, f)
    if code != OK or there == 0:
        return code
    code = own_root(t, f)
    r.t = t
    if code == OK:
        code = cut_range(&r, t.root, g, CUT_OWN, f)
    if code != OK:
        return code
    release_begin(&r, t, False)
    code = cut_range(&r, t.root, g, CUT_LIST, f)
    if code == OK:
        code = release_commit(&r, f)
    if code == OK:
        records[0] = r.records
        cut_range(&r, t.root, g, CUT_APPLY, f)
        rw_tally_add(&t.rw, -r.records)
    release_end(&r)
    if code == OK:
        mend_at(t, g.start, g.start_len)
        if g.stop != NULL:
            mend_at(t, g.stop, g.stop_len)
    return code


cdef int clear_slow(TreeCore *t, Fault *f) noexcept nogil:
    """Free every page and put an empty leaf in the root's place."""
    cdef Release r
    cdef int code
    cdef Node *leaf = empty_leaf(t)
    if leaf == NULL:
        return fail(f, E_MEMORY, "page")
    release_begin(&r, t, False)
    code = past_check(t, f)
    if code == OK:
        code = release_ref(&r, t.root, t.ref, t.level, f)
    if code == OK:
        code = release_commit(&r, f)
    release_end(&r)
    if code != OK:
        node_decref(t.p, leaf)
        return code
    if t.root != NULL:
        forget_dirty(t, t.root)
    node_swap(t.p, &t.root, leaf)
    at_set32(<int32_t *> &t.level, 0)
    t.dirty_nodes = 1
    t.dirty_spill = 0
    rw_tally_add(&t.rw, -records_of(t))
    return OK
