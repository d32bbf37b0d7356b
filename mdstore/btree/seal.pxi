# Sealing: addresses, checksums and references from the leaves up; the root record; the queue for write_sealed.
#
# Addresses are given in post-order, so that the leaves under one parent lie side by side with it behind them; the pages of
# spilled values follow the tree's pages; second and third copies follow all first copies, far from them.

cdef enum:
    ROOT_VERSION = 1
    ROOT_DATED = 2       # the same, where values may have spilled with a generation for each page
    ROOT_HEADER = 32
    ROOT_RECORDS = 24    # where the number of records stands
    RECORDS_EMBEDDED = 8000  # more than a page has room for
    ROOT_DUPLICATES = 1
    ROOT_PAGED = 2

cdef struct Plan:
    TreeCore *t
    uint64_t *addresses  # copies * total
    int64_t given        # how many the owner gave
    int64_t promised     # runs that there is room to give back for
    int64_t total        # pages of one copy
    uint64_t generation  # of all its pages
    int64_t next_page
    int64_t next_spill
    Batch *batches       # one for each value in memory, in the order they are met
    Batch *last
    Queue *queue


cdef void queue_add(PagerCore *p, Queue *queue) noexcept nogil:
    spin_lock(&p.spin)
    queue.next = p.queue
    p.queue = queue
    spin_unlock(&p.spin)


cdef void queue_free(Queue *queue) noexcept nogil:
    if queue != NULL:
        free(queue.writes)
    free(queue)


cdef Queue *queue_new(int64_t cap) noexcept nogil:
    cdef Queue *queue = <Queue *> take_zeroed(1, sizeof(Queue))
    if queue != NULL:
        queue.writes = <Write *> take(cap * sizeof(Write))
    if queue == NULL or queue.writes == NULL:
        free(queue)
        return NULL
    return queue


cdef int queue_take(PagerCore *p, Queue **taken) noexcept nogil:
    """All that waits, in one; NULL where nothing does. Without memory it is left."""
    cdef Queue *first
    cdef Queue *q
    cdef Queue *all
    cdef int64_t n = 0
    spin_lock(&p.spin)
    first = p.queue
    p.queue = NULL
    spin_unlock(&p.spin)
    taken[0] = first
    if first == NULL or first.next == NULL:
        return OK
    q = first
    while q != NULL:
        n += q.n
        q = q.next
    all = queue_new(n)
    while first != NULL:
        q = first
        first = q.next
        if all == NULL:
            queue_add(p, q)
        else:
            memcpy(all.writes + all.n, q.writes, q.n * sizeof(Write))
            all.n += q.n
            queue_free(q)
    taken[0] = all
    return OK if all != NULL else E_MEMORY


cdef void write_add(Plan *plan, uint64_t address, int64_t pages, const uint8_t *bytes, Node *n, Batch *b) noexcept nogil:
    """Queue pages; there is room for all of the plan."""
    cdef Write *w = &plan.queue.writes[plan.queue.n]
    w.address = address
    w.pages = pages
    w.bytes = bytes
    w.node = n
    w.batch = b
    plan.queue.n += 1
    at_add64(&plan.t.p.sealed_pages, pages)


# -- what may fail, first ----------------------------------------------------------------------------------------------
cdef int seal_prepare(Plan *plan, Node *n, Fault *f) noexcept nogil:
    """Have the memory that sealing the spilled values below a dirty node takes."""
    cdef Node *kid
    cdef int i, code = OK
    for i in range(node_count(n) if n.level or n.spilled else 0):
        if n.level == 0:
            if leaf_spill(n, i) != NULL:
                code = batch_new(plan, leaf_spill(n, i), f)
        else:
            kid = kid_of(n, i)
            if kid != NULL and at_get8(&kid.state) == DIRTY:
                code = seal_prepare(plan, kid, f)
        if code != OK:
            return code
    return OK


cdef int batch_new(Plan *plan, Spill *v, Fault *f) noexcept nogil:
    cdef Shape *s = &plan.t.s
    cdef int64_t pages = spill_dirty(plan.t, v)
    cdef Batch *b = <Batch *> take_zeroed(1, sizeof(Batch))
    if b == NULL:
        return fail(f, E_MEMORY, "spilled value")
    b.refs = 1
    b.spill = v
    at_add32(&v.refs, 1)
    at_add32(&v.lives, 1)
    b.index = <uint8_t *> take_zeroed((v.owned if v.data == NULL else pages - div_up(v.length, s.page_size)) + 1, s.page_size)
    b.addresses = <uint64_t *> take(pages * 8 + 8)
    if plan.last != NULL:
        plan.last.next = b
    else:
        plan.batches = b
    plan.last = b
    return OK if b.index != NULL and b.addresses != NULL else fail(f, E_MEMORY, "spilled value")


# -- what cannot -------------------------------------------------------------------------------------------------------
cdef void seal_spill(Plan *plan, uint8_t *body) noexcept nogil:
    """Give what a value has in memory its addresses, and the cell the entries at the top. The value itself is not touched: views
    may be reading it, and the length in its cell."""
    cdef TreeCore *t = plan.t
    cdef const Form *form = &t.s.dated
    cdef Spill *v = spill_pointer(body)
    cdef Batch *b = plan.batches
    cdef uint8_t fresh[SPILL_BODY_MAX]
    cdef int i, depth, tops = spill_tops(t.s.page_size, form, v.length, &depth)
    plan.batches = b.next
    st64(fresh + 8, plan.generation)
    for i in range(tops):
        seal_spilled(plan, b, v, depth, i, fresh + SPILL_FIXED + i * form.entry)
    spin_lock(&t.p.spin)
    memcpy(body + 8, fresh + 8, SPILL_FIXED - 8 + tops * form.entry)
    spin_unlock(&t.p.spin)
    spill_drop(t.p, v)  # the slot's; the batch has its own
    if b.pending == 0:
        batch_free(t.p, b)


cdef void seal_spilled(Plan *plan, Batch *b, Spill *v, int level, int64_t i, uint8_t *entry) noexcept nogil:
    """Write the entry of page `i` of a level: the one it had, or a new one where the page, or one below it, is in memory."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef int64_t below, k
    cdef uint8_t *page
    cdef uint32_t crc
    if v.data == NULL and not is_patched(v, level, i):
        memcpy(entry, v.entries[level] + i * s.dated.entry, s.dated.entry)
        return
    if level == 0:
        page = v.data + i * s.page_size if v.data != NULL else sheet_bytes(v.sheets[i])
        crc = crc32c_update(0, page, s.page_size, 0)
    else:
        page = b.index + b.indexes * s.page_size
        b.indexes += 1
        below = min(<int64_t> s.dated.fan, level_count(s, v.length, level - 1) - i * s.dated.fan)
        for k in range(below):
            seal_spilled(plan, b, v, level - 1, i * s.dated.fan + k, page + HEADER + k * s.dated.entry)
        crc = index_finish(t, page, level, below, plan.generation)
    queue_spilled(plan, b, page, entry)
    st32(entry + 8 * s.copies, crc)
    st64(entry + 8 * s.copies + 4, plan.generation)


cdef uint32_t index_finish(TreeCore *t, uint8_t *page, int level, int64_t n, uint64_t generation) noexcept nogil:
    """The header of an overflow index page whose entries are there; its checksum."""
    memset(page, 0, HEADER)
    st32(page + OFF_MAGIC, PAGE_MAGIC)
    st64(page + OFF_TREE, t.tree_id)
    st64(page + OFF_GENERATION, generation)
    page[OFF_LEVEL] = level
    page[OFF_KIND] = KIND_DATED
    st16(page + OFF_COUNT, <int> n)
    st32(page + OFF_CRC, crc32c_update(0, page + 4, t.s.page_size - 4, 0))
    return ld32(page + OFF_CRC)


cdef void queue_spilled(Plan *plan, Batch *b, const uint8_t *page, uint8_t *entry) noexcept nogil:
    """Give a page its addresses, enter it in the map, and queue it: neighbours in memory and on the device as one."""
    cdef PagerCore *p = plan.t.p
    cdef int64_t k, copies = plan.t.s.copies
    cdef uint64_t address
    cdef Write *last = &plan.queue.writes[plan.queue.n - 1]
    for k in range(copies):
        address = plan.addresses[k * plan.total + plan.next_spill]
        st64(entry + 8 * k, address)
        if copies == 1 and b.pages and last.batch == b and last.address + <uint64_t> last.pages == address and (
                last.bytes + last.pages * p.page_size == page):
            last.pages += 1
            at_add64(&p.sealed_pages, 1)
            continue
        write_add(plan, address, 1, page, NULL, b)
        b.pending += 1
    address = ref_address(entry, 0)
    b.addresses[b.pages] = address
    b.pages += 1
    plan.next_spill += 1
    spin_lock(&p.spin)
    map_put(p, address, b, page)
    spin_unlock(&p.spin)


cdef void seal_node(Plan *plan, Node *n, uint8_t *ref) noexcept nogil:
    """Seal what is dirty below and at `n`, and write the reference to it."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef uint8_t *page = page_of(n)
    cdef uint8_t *body
    cdef Node *kid
    cdef uint64_t records = node_count(n)
    cdef int i, k
    if n.level:
        records = 0
    for i in range(node_count(n)):
        if n.level:
            kid = kid_of(n, i)
            if kid != NULL and at_get8(&kid.state) == DIRTY:
                seal_node(plan, kid, ref_at(page, i))
            records = (records + (ref_records(s, ref_at(page, i)) & ~REF_SPILLED)) | (
                (records | ref_records(s, ref_at(page, i))) & REF_SPILLED)
        elif n.spilled:
            body = spill_at(s, page, i)
            if body != NULL:
                records |= REF_SPILLED
                if spill_pointer(body) != NULL:
                    seal_spill(plan, body)
    st64(page + OFF_GENERATION, plan.generation)
    st32(page + OFF_CRC, crc32c_update(0, page + 4, s.page_size - 4, 0))
    for k in range(s.copies):
        st64(ref + 8 * k, plan.addresses[k * plan.total + plan.next_page])
    st32(ref + 8 * s.copies, ld32(page + OFF_CRC))
    st64(ref + 8 * s.copies + 4, plan.generation)
    st64(ref + 8 * s.copies + 12, records)
    n.address = plan.addresses[plan.next_page]
    n.pending = s.copies
    node_state(t.p, n, SEALED)
    for k in range(s.copies):
        at_add32(&n.refs, 1)
        write_add(plan, plan.addresses[k * plan.total + plan.next_page], 1, page, n, NULL)
    spin_lock(&t.p.spin)
    map_put(t.p, n.address, n, NULL)
    spin_unlock(&t.p.spin)
    plan.next_page += 1


cdef int seal_reserve(Plan *plan, Fault *f) noexcept nogil:
    """Room in a queue and in the map for all pages of the plan; `seal_finish` hands it over or gives it back."""
    cdef PagerCore *p = plan.t.p
    cdef int code = E_MEMORY
    plan.generation = <uint64_t> at_get64(<int64_t *> &p.generation)
    plan.queue = queue_new(plan.total * plan.t.s.copies)
    if plan.queue != NULL:
        spin_lock(&p.spin)
        code = map_reserve(p, plan.total)
        if code == OK:
            p.map_promised += plan.total
        spin_unlock(&p.spin)
    if code == OK:
        return OK
    queue_free(plan.queue)
    return fail(f, code, "seal")


cdef void seal_finish(Plan *plan) noexcept nogil:
    cdef PagerCore *p = plan.t.p
    spin_lock(&p.spin)
    p.map_promised -= plan.total
    spin_unlock(&p.spin)
    if plan.queue.n:
        queue_add(p, plan.queue)
    else:
        queue_free(plan.queue)


cdef bint holds_values(Node *leaf) noexcept nogil:
    """Whether a slot of a leaf points at a value in memory. The tree's lock is held, or the pager's spin lock (S1)."""
    cdef int i
    for i in range(node_count(leaf) if leaf.spilled else 0):
        if leaf_spill(leaf, i) != NULL:
            return True
    return False


cdef void seal_leaves_below(Plan *plan, Node *n, int64_t start, int64_t *at) noexcept nogil:
    """Seal dirty leaves below the dirty index page `n` until the plan's total is reached; only count them where it has no addresses.
    `at` counts the dirty pages of level 1 that were passed; those before the `start`-th are left as they are. Leaves with spilled
    values that have no address yet are left."""
    cdef TreeCore *t = plan.t
    cdef Node *kid
    cdef int i
    if n.level == 1:
        if at[0] < start:
            at[0] += 1
            return
        for i in range(node_count(n)):
            kid = kid_of(n, i)
            if kid == NULL or at_get8(&kid.state) != DIRTY or holds_values(kid) or <int> kid.cap < t.s.page_size:
                continue
            if plan.next_page == plan.total:
                return
            if plan.addresses == NULL:
                plan.next_page += 1
                continue
            seal_node(plan, kid, ref_at(page_of(n), i))
            t.dirty_nodes -= 1
        at[0] += 1
        return
    for i in range(node_count(n)):
        kid = kid_of(n, i)
        if kid != NULL and at_get8(&kid.state) == DIRTY:
            seal_leaves_below(plan, kid, start, at)
            if plan.next_page == plan.total:
                return


cdef int seal_all(Plan *plan, Fault *f) noexcept nogil:
    """Seal a tree whose root is a page. All memory is had first: a failure has changed nothing."""
    cdef TreeCore *t = plan.t
    cdef PagerCore *p = t.p
    cdef int code = OK
    cdef Node *root
    cdef Batch *b
    if <int> t.root.cap < t.s.page_size:
        root = node_copy(&t.s, p, t.root, t.s.page_size)
        if root == NULL:
            return fail(f, E_MEMORY, "page")
        node_swap(p, &t.root, root)
    if t.dirty_spill:
        code = seal_prepare(plan, t.root, f)
    if code == OK:
        code = seal_reserve(plan, f)
    if code == OK:
        plan.next_spill = t.dirty_nodes
        seal_node(plan, t.root, t.ref)
        seal_finish(plan)
        t.dirty_nodes = t.dirty_spill = 0
        t.paged = 1
    while plan.batches != NULL:
        b = plan.batches
        plan.batches = b.next
        batch_free(p, b)
    return code


cdef void write_done(PagerCore *p, Write *w) noexcept nogil:
    """The device has these pages: a page with all copies written is CLEAN and no longer found through the map; nor are those of a
    spilled value, once it has all of them."""
    cdef bint last
    cdef int64_t i
    at_add64(&p.sealed_pages, -w.pages)
    spin_lock(&p.spin)
    if w.node != NULL:
        w.node.pending -= 1
        last = w.node.pending == 0
        if last:
            map_drop(p, w.node.address, w.node)
    else:
        w.batch.pending -= 1
        last = w.batch.pending == 0
    spin_unlock(&p.spin)
    for i in range(w.batch.pages if w.node == NULL and last else 0):
        spin_lock(&p.spin)
        map_drop(p, w.batch.addresses[i], w.batch)
        spin_unlock(&p.spin)
    if w.node != NULL:
        if last:
            touch(w.node)
            node_state(p, w.node, CLEAN)
        node_decref(p, w.node)
    elif last:
        batch_free(p, w.batch)


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef uint64_t x = (<Write *> a).address, y = (<Write *> b).address
    return (x > y) - (x < y)
