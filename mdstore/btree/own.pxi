# Owning pages: copied before they are changed, the original freed or left to the clones and views that have it too.

cdef int own(TreeCore *t, Node **slot, const uint8_t *ref, Fault *f) noexcept nogil:
    """Make the node in `slot` one that may be changed: itself, or a copy whose original is freed (or left to the clones and
    views that still have it). `ref` is the reference beside the slot, used when the node has an address."""
    cdef Node *n = slot[0]
    cdef Node *c
    cdef int state = at_get8(&n.state), code = OK
    if state == DIRTY and at_get32(&n.refs) == 1:
        return OK
    if state == EMBEDDED and at_get32(&n.refs) == 1:
        node_state(t.p, n, DIRTY)
        t.dirty_nodes += 1
        at_set32(<int32_t *> &t.is_dirty, 1)  # the page counts as dirty, whatever comes of the change
        return OK
    c = node_copy(&t.s, t.p, n, n.cap)
    if c == NULL:
        return fail(f, E_MEMORY, "page")
    if state == SEALED or state == CLEAN:
        code = own_release(t, n, ref, f)
    if code != OK:
        node_decref(t.p, c)
        return code
    at_add64(&t.p.copies, 1)
    t.dirty_nodes += state != DIRTY
    node_swap(t.p, slot, c)
    return OK


cdef int own_release(TreeCore *t, Node *n, const uint8_t *ref, Fault *f) noexcept nogil:
    """The tree stops reaching the page of `n`, but not what lies below."""
    cdef Release r
    cdef bint shared
    cdef int code, k
    release_begin(&r, t, False)
    code = release_loss(&r, ref_address(ref, 0), &shared, f)
    if code == OK and shared:
        code = gain_below(&r, n, f)
    for k in range(0 if shared else t.s.copies):
        if code == OK:
            code = release_page(&r, ref_address(ref, k), ref_generation(&t.s, ref), n.level, f)
    if code == OK:
        code = release_commit(&r, f)
    release_end(&r)
    return code


cdef inline int past_check(TreeCore *t, Fault *f) noexcept nogil:
    """A tree is changed only where its root, and so all below it (P6), is of a generation that the pager has had: no page that is
    sealed names a younger one, and the generation of what is given up is one by which its owner can tell which snapshots reach it."""
    cdef uint64_t most = <uint64_t> at_get64(<int64_t *> &t.p.generation)
    if not t.paged or ref_generation(&t.s, t.ref) <= most:
        return OK
    f.address = ref_address(t.ref, 0)
    f.tree_id = t.tree_id
    f.level = t.level
    return refuse(f, "page generation above the pager's", -1, -1, "at most", most, ref_generation(&t.s, t.ref))


cdef inline int own_root(TreeCore *t, Fault *f) noexcept nogil:
    cdef Node *n
    cdef int code = past_check(t, f)
    if code == OK:
        code = root_of(t, &n, f)
    return code if code != OK else own(t, &t.root, t.ref, f)


cdef inline int own_kid(TreeCore *t, Node *n, int i, Fault *f) noexcept nogil:
    cdef Node *kid
    cdef int code = kid_at(t, n, i, &kid, f)
    return code if code != OK else own(t, &n.kids[i], ref_at(page_of(n), i), f)


cdef int own_path(TreeCore *t, const uint8_t *key, int klen, Path *path, Fault *f) noexcept nogil:
    """Own every node from the root to the leaf of `key` (the leftmost leaf where key is NULL)."""
    cdef Node *n
    cdef int d = 0, i, code = own_root(t, f)
    path.items = NULL
    path.scratch = NULL
    if code != OK:
        return code
    n = t.root
    while n.level:
        if d + 2 >= HEIGHT_MAX:
            return too_high(t, n, HEIGHT_MAX - 1, f)
        i = index_find(&t.s, page_of(n), n.cap, key, klen) if key != NULL else 0
        path.node[d] = n
        path.pos[d] = i
        code = own_kid(t, n, i, f)
        if code != OK:
            return code
        n = n.kids[i]
        d += 1
    path.node[d] = n
    path.pos[d] = 0
    path.depth = d
    return OK


# -- clones ------------------------------------------------------------------------------------------------------------
cdef Node *clone_node(Release *r, TreeCore *c, Node *n, Fault *f) noexcept nogil:
    """A copy of a dirty node and of the dirty nodes below it; what has an address is shared and listed."""
    cdef Node *copy = node_copy(&c.s, c.p, n, n.cap)
    cdef Node *kid
    cdef int i
    if copy == NULL:
        fail(f, E_MEMORY, "page")
        return NULL
    c.dirty_nodes += 1
    for i in range(node_count(n) if n.level == 0 and n.spilled else 0):
        if leaf_spill(copy, i) != NULL:
            c.dirty_spill += spill_dirty(c, leaf_spill(copy, i))
    if gain_below(r, n, f) != OK:
        node_decref(c.p, copy)
        return NULL
    for i in range(node_count(n) if n.level else 0):
        kid = kid_of(n, i)
        if kid != NULL and at_get8(&kid.state) == DIRTY:
            kid = clone_node(r, c, kid, f)
            if kid == NULL:
                node_decref(c.p, copy)
                return NULL
            node_decref(c.p, copy.kids[i])  # which stays the other tree's
            copy.kids[i] = kid
    return copy


cdef int clone_core(TreeCore *t, TreeCore *c, Fault *f) noexcept nogil:
    cdef Release r
    cdef int code = OK
    rw_tally_add(&c.rw, records_of(t))
    c.level = t.level
    c.is_dirty = at_get32(<int32_t *> &t.is_dirty)
    c.paged = t.paged
    c.dated = t.dated
    memcpy(c.ref, t.ref, REF_MAX)
    release_begin(&r, t, True)
    if t.root != NULL and (at_get8(&t.root.state) == DIRTY or at_get8(&t.root.state) == EMBEDDED):
        c.root = clone_node(&r, c, t.root, f)
        code = OK if c.root != NULL else f.code
        if code == OK and at_get8(&t.root.state) == EMBEDDED:
            node_state(t.p, c.root, EMBEDDED)
            c.dirty_nodes = 0
    else:
        code = release_gain(&r, ref_address(t.ref, 0), t.level, f)
        c.root = t.root
        if c.root != NULL:
            at_add32(&c.root.refs, 1)
    if code == OK and r.gains_n:
        code = release_commit(&r, f)
        at_set32(<int32_t *> &t.is_dirty, c.is_dirty)
    release_end(&r)
    return code
