# Reading: point reads under the locks, cursors over a view.
#
# Invariants of cursors:
#  C1  a cursor stands on a view of its own, so its pages do not change; it holds a reference on every node of its path
#  C2  [pos, end) are the positions of the leaf still to be given; `last` says that no other leaf follows

cdef struct Out:
    uint8_t *data
    int64_t size
    bint found

cdef struct Cursor:
    TreeCore *t
    Node *node[HEIGHT_MAX]
    int at[HEIGHT_MAX]
    int depth            # index of the leaf; -1 before the first use
    int reverse
    int last
    int pos
    int end
    const uint8_t *start
    int start_len
    const uint8_t *stop
    int stop_len


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
    if vlen[0] == SPILL_MARK:
        vlen[0] = -1
    elif off + 2 + vlen[0] > cap:
        vlen[0] = 0
        return page
    return page + off + 2


cdef int get_copy(TreeCore *t, const uint8_t *key, int klen, Out *out, Fault *f) noexcept nogil:
    """The value of a key in memory of its own (the caller frees it). Takes the locks, reads pages."""
    cdef Node *leaf
    cdef bint found
    cdef int pos, vlen, code
    cdef uint32_t version
    cdef const uint8_t *value
    out.data = NULL
    core_lock_shared(t)
    code = find_leaf(t, key, klen, &leaf, f)
    while code == OK:
        version = latch_read(&leaf.version)
        race_begin()
        pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
        race_end()
        out.found = found
        if not found:
            if latch_same(&leaf.version, version):
                break
            continue
        race_begin()
        value = value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen)
        race_end()
        if vlen < 0 and not latch_same(&leaf.version, version):
            continue
        out.size = vlen if vlen >= 0 else <int64_t> ld64(value)
        out.data = <uint8_t *> take(out.size + 1)
        if out.data == NULL:
            code = fail(f, E_MEMORY, "value")
        elif vlen < 0:
            code = spill_read(t, value, 0, out.data, out.size, f)
            break
        else:
            race_begin()
            memcpy(out.data, value, vlen)
            race_end()
            if latch_same(&leaf.version, version):
                break
            free(out.data)
            out.data = NULL
    core_unlock_shared(t)
    if code != OK:
        free(out.data)
        out.data = NULL
    make_room(t.p)
    return code


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
                kid == NULL or (at_get8(&kid.state) != DIRTY and (at_get8(&n.state) != DIRTY or names_kid(n, i, kid)))):
            records[0] += <int64_t> (ref_records(&t.s, ref_at(page_of(n), i)) & ~REF_SPILLED)
            continue
        code = kid_at(t, n, i, &kid, f)
        if code == OK:
            code = count_range(t, kid, start if i == lo else NULL, start_len, stop if i == hi - 1 else NULL, stop_len,
                               records, f)
        if code != OK:
            return code
    return OK


cdef int read_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, int64_t length, Out *out,
                   Fault *f) noexcept nogil:
    """Bytes [offset, offset + length) of a value, short at its end, in memory of its own. Only those pages of a spilled value
    are read."""
    cdef Node *leaf
    cdef int pos, vlen, code
    cdef int64_t size
    cdef uint32_t version
    cdef const uint8_t *value
    out.data = NULL
    core_lock_shared(t)
    code = find_leaf(t, key, klen, &leaf, f)
    while code == OK:
        version = latch_read(&leaf.version)
        race_begin()
        pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &out.found)
        vlen = 0
        value = value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen) if out.found else NULL
        race_end()
        size = vlen if vlen >= 0 else <int64_t> ld64(value)
        if not latch_same(&leaf.version, version):
            continue
        out.size = min(length, size - offset) if offset < size else 0
        if not out.found:
            break
        out.data = <uint8_t *> take(out.size + 1)
        if out.data == NULL:
            code = fail(f, E_MEMORY, "value")
        elif vlen < 0:
            code = spill_read(t, value, offset, out.data, out.size, f)
        elif out.size:
            race_begin()
            memcpy(out.data, value + offset, out.size)
            race_end()
        if code != OK or latch_same(&leaf.version, version):
            break
        free(out.data)
        out.data = NULL
    core_unlock_shared(t)
    if code != OK:
        free(out.data)
        out.data = NULL
    make_room(t.p)
    return code


# -- batches -----------------------------------------------------------------------------------------------------------
cdef enum:
    GROUP = 16           # keys that descend side by side, so that their cache misses overlap
    WORK_CHUNK = 1024    # records taken from Python at a time

cdef struct Arena:
    uint8_t *data
    int64_t size
    int64_t cap

cdef struct Found:
    int64_t offset       # in the arena
    int64_t size         # -1: not there


cdef uint8_t *arena_take(Arena *a, int64_t n) noexcept nogil:
    cdef uint8_t *grown
    cdef int64_t cap = a.cap
    if a.data == NULL or a.size + n > cap:
        cap = 2 * cap + n + 4096
        grown = <uint8_t *> take_more(a.data, cap)
        if grown == NULL:
            return NULL
        a.data = grown
        a.cap = cap
    a.size += n
    return a.data + a.size - n


cdef void descend_group(TreeCore *t, const uint8_t **keys, const int *sizes, int n, bint owned, Node **leaves) noexcept nogil:
    """The resident leaf of each key, or NULL; with `owned` only where `owned_leaf` would give it. Level by level for the whole group:
    while one key's next page is fetched from memory, the others are searched."""
    cdef int level = t.level, j, i
    cdef Node *root = <Node *> at_getp(&t.root)
    cdef Node *kid
    for j in range(n):
        leaves[j] = root
    if root != NULL:
        touch(root)
    while level >= 0 and root != NULL:
        for j in range(n):
            kid = leaves[j]
            if kid == NULL:
                continue
            if owned and (at_get8(&kid.state) != DIRTY or at_get32(&kid.refs) != 1 or (level == 0 and kid.spilled)):
                leaves[j] = NULL
                continue
            touch(kid)
            if level == 0:
                continue
            i = index_find(&t.s, page_of(kid), kid.cap, keys[j], sizes[j])
            kid = <Node *> at_getp(&kid.kids[i])
            leaves[j] = kid
            if kid != NULL:
                prefetch_node(kid)
        level -= 1


cdef int get_group(TreeCore *t, const uint8_t **keys, const int *sizes, int n, Arena *arena, Found *out,
                   Fault *f) noexcept nogil:
    cdef Node *leaves[GROUP]
    cdef int pos[GROUP]
    cdef uint32_t seen[GROUP]
    cdef bint found[GROUP]
    cdef int j, vlen, code = OK
    cdef const uint8_t *value
    cdef uint8_t *into
    cdef int64_t before
    core_lock_shared(t)
    descend_group(t, keys, sizes, n, False, leaves)
    race_begin()
    for j in range(n):
        if leaves[j] != NULL:
            seen[j] = latch_read(&leaves[j].version)
            pos[j] = page_find(&t.s, page_of(leaves[j]), leaves[j].cap, 0, keys[j], sizes[j], &found[j])
            if found[j]:
                prefetch(cell_at(page_of(leaves[j]), pos[j]))
                prefetch(cell_at(page_of(leaves[j]), pos[j]) + 64)
    for j in range(n):
        out[j].size = -2
        if leaves[j] == NULL:
            continue
        vlen = 0
        before = arena.size
        if found[j]:
            value = value_at(&t.s, page_of(leaves[j]), leaves[j].cap, pos[j], &vlen)
            if vlen < 0:
                continue
            into = arena_take(arena, vlen)
            if into == NULL:
                code = fail(f, E_MEMORY, "values")
                break
            memcpy(into, value, vlen)
        if latch_same(&leaves[j].version, seen[j]):
            out[j].size = vlen if found[j] else -1
            out[j].offset = before
        else:
            arena.size = before
    race_end()
    core_unlock_shared(t)
    return code


cdef int get_batch(TreeCore *t, const uint8_t **keys, const int *sizes, int64_t n, Arena *arena, Found *out,
                   Fault *f) noexcept nogil:
    """Look up many keys; those that met a writer, a page not resident or a spilled value are done one by one."""
    cdef int64_t at = 0, j
    cdef int group, code = OK
    cdef Out one
    cdef uint8_t *into
    while at < n and code == OK:
        group = <int> min(<int64_t> GROUP, n - at)
        code = get_group(t, keys + at, sizes + at, group, arena, out + at, f)
        for j in range(at, at + group):
            if code != OK:
                break
            if out[j].size != -2:
                continue
            code = get_copy(t, keys[j], sizes[j], &one, f)
            if code != OK:
                break
            out[j].size = -1
            if one.found:
                into = arena_take(arena, one.size)
                if into == NULL:
                    code = fail(f, E_MEMORY, "values")
                else:
                    out[j].offset = into - arena.data
                    out[j].size = one.size
                    memcpy(into, one.data, one.size)
                free(one.data)
        at += group
    note_hits(t, n)
    return code


cdef struct Work:        # a batch of writes, pointing at bytes objects that the caller holds
    const uint8_t *key[WORK_CHUNK]
    int klen[WORK_CHUNK]
    const uint8_t *value[WORK_CHUNK]
    int64_t vlen[WORK_CHUNK]
    int n
    int64_t existed
    int done


cdef int put_batch(TreeCore *t, Work *w, Fault *f) noexcept nogil:
    """Put many records: groups under the shared lock, each record that needs more under the exclusive one. Records before a
    failure are in the tree."""
    cdef Node *leaves[GROUP]
    cdef int at = 0, j, n, code = OK, added
    cdef bint existed
    while at < w.n and code == OK:
        n = min(GROUP, w.n - at)
        core_lock_shared(t)
        descend_group(t, w.key + at, w.klen + at, n, True, leaves)
        for j in range(n):
            if leaves[j] != NULL:
                prefetch(page_of(leaves[j]) + ld32(page_of(leaves[j]) + OFF_HEAP) % leaves[j].cap - 64)
        added = j = 0
        while j < n and leaves[j] != NULL and not value_spills(&t.s, w.klen[at], w.vlen[at]) and leaf_put(
                t, leaves[j], w.key[at], w.klen[at], w.value[at], <int> w.vlen[at], &existed):
            added += not existed
            at += 1
            j += 1
        rw_unlock_shared_adding(&t.rw, added)
        w.existed += j - added
        if j < n:
            rw_lock_shared(&t.p.rw)
            rw_lock_exclusive(&t.rw)
            code = fail(f, E_BROKEN, "tree") if t.broken else put_slow(t, w.key[at], w.klen[at], w.value[at], w.vlen[at], &existed, f)
            rw_unlock_exclusive(&t.rw)
            rw_unlock_shared(&t.p.rw)
            make_room(t.p)
            w.existed += existed
            at += 1
    note_hits(t, w.n)
    return code


cdef int delete_batch(TreeCore *t, Work *w, Fault *f) noexcept nogil:
    cdef int at = 0, code = OK
    cdef bint existed
    while at < w.n and code == OK:
        code = delete_key(t, w.key[at], w.klen[at], &existed, f)
        w.existed += existed
        at += 1
    return code


cdef int delete_key(TreeCore *t, const uint8_t *key, int klen, bint *existed, Fault *f) noexcept nogil:
    cdef Node *leaf
    cdef bint done
    cdef int code = OK
    core_lock_shared(t)
    leaf = owned_leaf(t, key, klen)
    done = leaf != NULL and leaf_delete(t, leaf, key, klen, existed)
    rw_unlock_shared_adding(&t.rw, -1 if done and existed[0] else 0)
    if not done:
        rw_lock_shared(&t.p.rw)
        rw_lock_exclusive(&t.rw)
        code = fail(f, E_BROKEN, "tree") if t.broken else delete_slow(t, key, klen, existed, f)
        rw_unlock_exclusive(&t.rw)
        rw_unlock_shared(&t.p.rw)
        make_room(t.p)
    return code


# -- cursors -----------------------------------------------------------------------------------------------------------
cdef void cursor_clear(Cursor *c) noexcept nogil:
    cdef int i
    for i in range(c.depth + 1):
        node_decref(c.t.p, c.node[i])
    c.depth = -1
    c.pos = c.end = 0
    c.last = 1


cdef int cursor_down(Cursor *c, Node *n, int d, const uint8_t *key, int klen, Fault *f) noexcept nogil:
    """Take `n` (borrowed) as level d of the path and descend: to `key`, or to the end the cursor comes from."""
    cdef int code = OK
    while True:
        at_add32(&n.refs, 1)
        c.node[d] = n
        c.depth = d
        if n.level == 0:
            return OK
        if d + 1 >= HEIGHT_MAX:
            return fail(f, E_CORRUPT, "tree height")
        if key != NULL:
            c.at[d] = index_find(&c.t.s, page_of(n), n.cap, key, klen)
        else:
            c.at[d] = node_count(n) - 1 if c.reverse else 0
        code = kid_at(c.t, n, c.at[d], &n, f)
        if code != OK:
            return code
        d += 1


cdef void cursor_window(Cursor *c, bint first) noexcept nogil:
    """Set [pos, end) and `last` for the leaf just reached."""
    cdef Node *leaf = c.node[c.depth]
    cdef bint found
    cdef int n = node_count(leaf)
    cdef uint8_t *page = page_of(leaf)
    c.pos = 0
    c.end = n
    c.last = 0
    if c.start != NULL and (first or c.reverse):
        c.pos = page_find(&c.t.s, page, leaf.cap, 0, c.start, c.start_len, &found)
        if c.reverse and (c.pos > 0 or (found and n)):
            c.last = 1
    if c.stop != NULL and n and compare(&c.t.s, cell_at(page, n - 1), klen_at(page, n - 1), c.stop, c.stop_len) >= 0:
        c.end = page_find(&c.t.s, page, leaf.cap, 0, c.stop, c.stop_len, &found)
        if not c.reverse:
            c.last = 1
    if c.end < c.pos:
        c.end = c.pos


cdef int cursor_first(Cursor *c, Fault *f) noexcept nogil:
    """Go to the first leaf of the range in the cursor's direction. Caller holds pager.rw."""
    cdef Node *root
    cdef const uint8_t *key = c.stop if c.reverse else c.start
    cdef int code = root_of(c.t, &root, f)
    if code == OK:
        code = cursor_down(c, root, 0, key, c.stop_len if c.reverse else c.start_len, f)
    if code == OK:
        cursor_window(c, True)
    return code


cdef int cursor_leaf(Cursor *c, Fault *f) noexcept nogil:
    """Go to the next leaf in the cursor's direction, or set `last`. Caller holds pager.rw."""
    cdef int d = c.depth - 1, step = -1 if c.reverse else 1, code
    cdef Node *kid
    c.pos = c.end = 0
    while d >= 0 and not (0 <= c.at[d] + step < node_count(c.node[d])):
        d -= 1
    if d < 0:
        c.last = 1
        return OK
    while c.depth > d:
        node_decref(c.t.p, c.node[c.depth])
        c.depth -= 1
    c.at[d] += step
    code = kid_at(c.t, c.node[d], c.at[d], &kid, f)
    if code == OK:
        if not c.reverse and c.at[d] + 1 < node_count(c.node[d]):
            n_prefetch(c.node[d], c.at[d] + 1)
        code = cursor_down(c, kid, d + 1, NULL, 0, f)
    if code == OK:
        cursor_window(c, False)
    return code


cdef int cursor_more(Cursor *c, Fault *f) noexcept nogil:
    """Go on until there is a record to give or none is left. Without the interpreter lock: may read pages."""
    cdef int code = OK
    rw_lock_shared(&c.t.p.rw)
    if c.depth < 0:
        code = cursor_first(c, f)
    while code == OK and c.pos >= c.end and not c.last:
        code = cursor_leaf(c, f)
    rw_unlock_shared(&c.t.p.rw)
    make_room(c.t.p)
    return code
