# Batches: many keys at a time without the interpreter lock, their cache misses side by side.

cdef enum:
    GROUP = 16           # keys that descend side by side, so that their cache misses overlap
    WORK_CHUNK = 1024    # records taken from Python at a time
    TO_GET = 0           # what a group descends for: to read values,
    TO_PUT = 1           # to change leaves,
    TO_FETCH = 2         # to have the leaves in memory

cdef struct Arena:
    uint8_t *data
    int64_t size
    int64_t cap

cdef PyObject *refusal_hook = NULL  # for tests: what the next key that a group's descent refuses calls

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


cdef void refused() noexcept with gil:
    """Another thread may do anything between two keys of a group; a test does it here."""
    global refusal_hook
    if refusal_hook != NULL:
        hook = <object> refusal_hook
        Py_DECREF(hook)
        refusal_hook = NULL
        hook()


cdef void descend_group(TreeCore *t, const uint8_t **keys, const int *sizes, int n, int purpose, Node **leaves) noexcept nogil:
    """The resident leaf of each key, or NULL; for puts only where `owned_leaf` would give it. Level by level for the whole group:
    while one key's next page is fetched from memory, the others are searched. A key that clearly lies in the same child as the
    one before is not searched for: in a sorted group most do, but in the lowest index pages."""
    cdef int level = t.level, j, i = 0
    cdef Node *root = <Node *> at_getp(&t.root)
    cdef Node *kid
    cdef Node *last
    if purpose == TO_PUT and at_get32(<int32_t *> &t.broken):
        root = NULL
    for j in range(n):
        leaves[j] = root
    if root != NULL:
        touch(root)
    while level >= 0 and root != NULL:
        last = NULL
        for j in range(n):
            kid = leaves[j]
            if kid == NULL:
                continue
            if purpose == TO_PUT and (at_get8(&kid.state) != DIRTY or at_get32(&kid.refs) != 1 or (level == 0 and kid.spilled)):
                leaves[j] = NULL
                if refusal_hook != NULL:
                    refused()
                continue
            if level == 0 and purpose == TO_FETCH:
                continue
            touch(kid)
            if level == 0:
                continue
            if kid != last or not is_between(&t.s, page_of(kid), i, keys[j], sizes[j]):
                i = index_find(&t.s, page_of(kid), kid.cap, keys[j], sizes[j])
            last = kid
            kid = <Node *> at_getp(&kid.kids[i])
            leaves[j] = kid
            if kid == NULL:
                continue
            if level == 1 and purpose != TO_GET:
                prefetch(<uint8_t *> kid + 64)  # `spilled`
            if level > 1 or purpose != TO_FETCH:
                prefetch_node(kid)
        level -= 1


cdef inline bint is_between(Shape *s, const uint8_t *page, int i, const uint8_t *key, int klen) noexcept nogil:
    """True where slot heads alone tell that child `i` of an index page holds the key."""
    cdef const uint8_t *slot = page + HEADER + 8 * i
    cdef uint32_t head
    if i + 1 >= page_count(page) or ld16(page + OFF_SKIP):
        return False
    head = head_of(s, key, klen, 0)
    return (i == 0 or ld32(slot) < head) and head < ld32(slot + 8)


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
    descend_group(t, keys, sizes, n, TO_GET, leaves)
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
    """Put many records, a group at a time. Records of the groups before a failure are in the tree, and some of its own."""
    cdef int at = 0, code = OK
    while at < w.n and code == OK:
        code = put_group(t, w, at, min(GROUP, w.n - at), f)
        at += GROUP
    note_hits(t, w.n)
    return code


cdef void prefetch_siblings(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """A full leaf is about to give cells to one of its siblings: have their headers and slots on the way."""
    cdef Node *n = t.root
    cdef Node *sibling
    cdef int i, side
    while n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        if n.level > 1:
            n = kid_of(n, i)
            continue
        for side in range(-1, 2, 2):
            sibling = kid_of(n, i + side) if 0 <= i + side < node_count(n) else NULL
            if sibling != NULL:
                prefetch(sibling)  # its holes
                prefetch(<uint8_t *> sibling + 64)
                prefetch_node(sibling)
        return


cdef bint waits_too(Work *w, Node **leaves, const int *late, int lates, int at, int i) noexcept nogil:
    """Whether one that waits comes before record `i` in its leaf. Where the leaf of one that waits is not known (a view reached a
    page above, which need not be so for the next key any more), it may be this one for an equal key only."""
    cdef int k
    for k in range(lates):
        if leaves[late[k] - at] == leaves[i - at]:
            return True
        if leaves[late[k] - at] == NULL and w.klen[late[k]] == w.klen[i] and memcmp(w.key[late[k]], w.key[i], w.klen[i]) == 0:
            return True
    return False


cdef int put_group(TreeCore *t, Work *w, int at, int n, Fault *f) noexcept nogil:
    """What fits into its leaf under the shared lock, then each record that needs more under the exclusive one. Once one of a
    leaf needs more, those behind it in that leaf wait too: of one key the last wins."""
    cdef Node *leaves[GROUP]
    cdef int late[GROUP]
    cdef int i, j, lates = 0, code = OK, added = 0
    cdef bint existed, waits
    core_lock_shared(t)
    descend_group(t, w.key + at, w.klen + at, n, TO_PUT, leaves)
    race_begin()  # a guess, taken while others may write
    for j in range(n):
        if leaves[j] != NULL:
            prefetch_gap(page_of(leaves[j]) + ld32(page_of(leaves[j]) + OFF_HEAP) % leaves[j].cap - 128)
    race_end()
    for j in range(n):
        i = at + j
        waits = leaves[j] == NULL or value_spills(&t.s, w.klen[i], w.vlen[i]) or waits_too(w, leaves, late, lates, at, i)
        if waits or not leaf_put(t, leaves[j], w.key[i], w.klen[i], w.value[i], <int> w.vlen[i], &existed):
            if not waits:
                prefetch_siblings(t, w.key[i], w.klen[i])
            late[lates] = i
            lates += 1
        else:
            added += not existed
            w.existed += existed
    rw_unlock_shared_adding(&t.rw, added)
    for j in range(lates):
        i = late[j]
        code = lock_to_change(t, w.key[i], w.klen[i], 0, TO_THE_END, f)
        if code == OK:
            code = put_slow(t, w.key[i], w.klen[i], w.value[i], w.vlen[i], &existed, f)
        unlock_tree(t)
        make_room(t.p)
        if code != OK:
            break
        w.existed += existed
    return code


cdef int delete_batch(TreeCore *t, Work *w, Fault *f) noexcept nogil:
    cdef int at = 0, code = OK
    cdef bint existed = False
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
        bring_siblings(t, key, klen)
        code = lock_to_change(t, key, klen, 0, TO_THE_END, f)
        if code == OK:
            code = delete_slow(t, key, klen, existed, f)
        unlock_tree(t)
        make_room(t.p)
    return code
