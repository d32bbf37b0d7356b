# Cursors over a view.
#
# Invariants of cursors:
#  C1  a cursor stands on a view of its own, so its pages do not change; it holds a reference on every node of its path
#  C2  [pos, end) are the positions of the leaf still to be given; `last` says that no other leaf follows

cdef struct Cursor:
    TreeCore *t
    Node *node[HEIGHT_MAX]
    int at[HEIGHT_MAX]
    int depth            # index of the leaf; -1 before the first use
    int reverse
    int last
    int pos
    int end
    int ahead            # leaves to read at once: more with each that was not in the cache
    const uint8_t *start
    int start_len
    const uint8_t *stop
    int stop_len


cdef void cursor_clear(Cursor *c) noexcept nogil:
    cdef int i
    for i in range(c.depth + 1):
        node_decref(c.t.p, c.node[i])
    c.depth = -1
    c.pos = c.end = 0
    c.last = 1


cdef int cursor_kid(Cursor *c, Node *n, int i, Node **kid, Fault *f) noexcept nogil:
    """Child `i`, as `kid_held`; of leaves that have to be read, more and more at a time as the scan goes on."""
    cdef PagerCore *p = c.t.p
    if n.level == 1 and p.lent.fd >= 0 and not at_get32(<int32_t *> &p.lent.closed) and at_getp(&n.kids[i]) == NULL:
        if c.ahead > 1 and at_get64(&p.map_n) == 0:  # else some may wait to be written
            load_run(c.t, n, i, -1 if c.reverse else 1, c.ahead)
        c.ahead = min(AHEAD_MOST, 2 * c.ahead) if c.ahead else 2
    return kid_held(c.t, n, i, kid, f)


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
            return too_high(c.t, n, HEIGHT_MAX - 1, f)
        if key != NULL:
            c.at[d] = index_find(&c.t.s, page_of(n), n.cap, key, klen)
        else:
            c.at[d] = node_count(n) - 1 if c.reverse else 0
        code = cursor_kid(c, n, c.at[d], &n, f)
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
    """Go to the first leaf of the range in the cursor's direction. Caller holds pager.rw, which is let go while pages are read."""
    cdef Node *root
    cdef const uint8_t *key = c.stop if c.reverse else c.start
    cdef int code = root_held(c.t, &root, f)
    if code == OK:
        code = cursor_down(c, root, 0, key, c.stop_len if c.reverse else c.start_len, f)
    if code == OK:
        cursor_window(c, True)
    return code


cdef int cursor_leaf(Cursor *c, Fault *f) noexcept nogil:
    """Go to the next leaf in the cursor's direction, or set `last`. Caller holds pager.rw, as above."""
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
    code = cursor_kid(c, c.node[d], c.at[d], &kid, f)
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
