# After a deletion: empty pages dropped, underfull ones joined with a sibling.

cdef void drop_kid(TreeCore *t, Node *parent, int pos) noexcept nogil:
    """Take child `pos` out of an owned index page (the child itself is the caller's). T2: slot 0 stays."""
    cdef uint8_t *page = page_of(parent)
    cdef int count = node_count(parent)
    if pos == 0 and count > 1:
        memcpy(ref_at(page, 0), ref_at(page, 1), t.s.ref_size)
        page_erase(&t.s, page, 1)
    else:
        page_erase(&t.s, page, pos)
    memmove(parent.kids + pos, parent.kids + pos + 1, (count - 1 - pos) * sizeof(Node *))
    parent.kids[count - 1] = NULL


cdef bint join(TreeCore *t, Path *path, int d, int side) noexcept nogil:
    """Mend an underfull node with its sibling on `side`: merge the two where they fit in one page (True), else even them out. A
    sibling that cannot be had is no reason to fail a deletion that is done: the node stays underfull."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *pair[2]
    cdef Node *sibling
    cdef Fault ignored
    cdef int cuts[3]
    cdef int at = path.pos[d - 1] + side, count, left, usable = t.s.page_size - HEADER, total, klen
    cdef int room, live = page_live(page_of(n), n.cap), right = path.pos[d - 1] + (1 if side > 0 else 0)
    cdef uint8_t key[1100]
    cdef uint8_t bound[1100 + REF_MAX]
    cdef Item *items
    cdef uint8_t *scratch
    cdef bint merged = False
    memset(&ignored, 0, sizeof(Fault))
    if at < 0 or at >= node_count(parent):
        return False
    if kid_at(t, parent, at, &sibling, &ignored) != OK:
        fault_forget(&ignored)
        return False
    total = live + page_live(page_of(sibling), sibling.cap)
    if n.level:
        total += klen_at(page_of(parent), right)
    room = usable if node_count(n) < 2 else usable - usable / 16  # not so full that the next insertion splits it again
    if total > room and live * 4 > usable and node_count(n) > 1:
        return False
    if own_kid(t, parent, at, &ignored) != OK:
        fault_forget(&ignored)
        return False
    pair[0] = parent.kids[right - 1]
    pair[1] = parent.kids[right]
    items = <Item *> take(items_most(t.s.page_size) * sizeof(Item))
    scratch = <uint8_t *> take(scratch_size(t))
    if items == NULL or scratch == NULL:
        free(items)
        free(scratch)
        return False
    left = gather_pair(t, parent, right, pair, items, bound)
    count = node_count(pair[0]) + node_count(pair[1])
    cuts[0] = 0
    cuts[2] = count
    if total <= room:
        cuts[1] = count
        spread(t, pair, 2, items, cuts, scratch)
        drop_kid(t, parent, right)
        node_decref(t.p, pair[1])
        t.dirty_nodes -= 1
        path.pos[d - 1] = right - 1
        path.node[d] = pair[0]
        at_add64(&t.p.merges, 1)
        merged = True
    else:
        cuts[1] = best_cut(items, count, usable, total)
        if cuts[1] and cuts[1] != left:
            klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
            if sep_fits(t, parent, right, klen):
                memcpy(key, items[cuts[1]].cell, klen)
                spread(t, pair, 2, items, cuts, scratch)
                set_separator(t, parent, right, key, klen)
                at_add64(&t.p.rotations, 1)
    free(items)
    free(scratch)
    return merged


cdef void mend(TreeCore *t, Path *path) noexcept nogil:
    """From the leaf up: drop what is empty, join what is less than half full; then drop a root with a single child."""
    cdef int d = path.depth
    cdef Fault ignored
    cdef Node *n
    cdef Node *kid
    if d and node_count(path.node[d]) == 0:  # T5: with the pages above that hold nothing else
        d -= 1
        while d and node_count(path.node[d]) == 1:
            d -= 1
        if node_count(path.node[d]) > 1:
            n = path.node[d]
            kid = n.kids[path.pos[d]]
            drop_kid(t, n, path.pos[d])
            node_decref(t.p, kid)
            t.dirty_nodes -= path.depth - d
    while d > 0:
        n = path.node[d]
        if page_live(page_of(n), n.cap) * 2 < t.s.page_size - HEADER or node_count(n) < 2:
            if not join(t, path, d, -1):
                join(t, path, d, 1)
        d -= 1
    memset(&ignored, 0, sizeof(Fault))
    while t.root.level and node_count(t.root) == 1:
        if own_kid(t, t.root, 0, &ignored) != OK:
            fault_forget(&ignored)
            return
        n = t.root
        kid = n.kids[0]
        n.kids[0] = NULL
        t.root = kid
        at_set32(<int32_t *> &t.level, t.level - 1)
        t.dirty_nodes -= 1
        node_decref(t.p, n)
