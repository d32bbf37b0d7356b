# Eviction: the hand that walks over index pages and lets their clean children go (G1, G3).

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
            if kid_of(n, i) != NULL:
                return False
    return True


cdef bint names(const uint8_t *ref, Node *n) noexcept nogil:
    """Whether a reference is that to the page of `n`, which has an address."""
    cdef uint8_t *page = page_of(n)
    cdef int copies = n.signature & 3
    return (ld64(ref) == n.address and ld32(ref + 8 * copies) == ld32(page + OFF_CRC)
            and ld64(ref + 8 * copies + 4) == ld64(page + OFF_GENERATION))


cdef inline bint names_kid(Node *n, int i, Node *kid) noexcept nogil:
    return names(ref_at(page_of(n), i), kid)


cdef void evict_below(PagerCore *p, Node *n, int64_t target) noexcept nogil:
    cdef int i
    cdef Node *kid
    for i in range(node_count(n)):
        kid = kid_of(n, i)
        if kid != NULL and droppable(kid) and (not unsealed(n) or names_kid(n, i, kid)):
            at_setp(&n.kids[i], NULL)
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
    five rounds: what is left then is pinned. Caller holds pager.rw and every live tree's lock exclusively."""
    cdef int64_t bound = at_get64(&p.cache_bytes), target = bound - bound / 8
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
                root = <Node *> at_getp(&t.root)
                if root != NULL and at_get32(<int32_t *> &t.paged) and droppable(root):
                    at_setp(&t.root, NULL)
                    node_decref(p, root)
                    at_add64(&p.evictions, 1)
                t = t.next


cdef void lock_trees(PagerCore *p, bint lock) noexcept nogil:
    """Shut out (or let in again) those who read a live tree under its own lock alone. With pager.rw held exclusively the list does
    not change, and who holds a tree's lock waits for no other."""
    cdef TreeCore *t = p.trees
    while t != NULL:
        if t.live and lock:
            rw_lock_exclusive(&t.rw)
        elif t.live:
            rw_unlock_exclusive(&t.rw)
        t = t.next


cdef inline bint cache_full(PagerCore *p) noexcept nogil:
    return at_get64(&p.clean_bytes) > at_get64(&p.cache_bytes)


cdef void make_room(PagerCore *p) noexcept nogil:
    """Called with no lock held after an operation that may have loaded pages. Waits for the lock only when far over."""
    cdef int64_t bound = at_get64(&p.cache_bytes)
    if not cache_full(p):
        return
    if not rw_try_exclusive(&p.rw):
        if at_get64(&p.clean_bytes) < bound + bound / 4 + 64 * p.page_size:
            return
        rw_lock_exclusive(&p.rw)
    lock_trees(p, True)
    evict(p)
    lock_trees(p, False)
    rw_unlock_exclusive(&p.rw)
