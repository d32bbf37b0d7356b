# Sealing: addresses, checksums and references from the leaves up; the root record; the queue for write_sealed.
#
# Addresses are given in post-order, so that the leaves under one parent lie side by side with it behind them; the pages of
# spilled values follow the tree's pages; second and third copies follow all first copies, far from them.

cdef enum:
    ROOT_VERSION = 1
    ROOT_HEADER = 32
    ROOT_DUPLICATES = 1
    ROOT_PAGED = 2

cdef struct Plan:
    TreeCore *t
    uint64_t *addresses  # copies * total
    int64_t given        # how many the owner gave
    int64_t total        # pages of one copy
    int64_t next_page
    int64_t next_spill
    Batch *batches       # one for each value in memory, in the order they are met
    Batch *last
    uint8_t *entries     # room for those of the longest value
    int64_t entries_most
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


cdef Queue *queue_take(PagerCore *p) noexcept nogil:
    """All that waits, in one; NULL where nothing does, or without memory, where it is left."""
    cdef Queue *first
    cdef Queue *q
    cdef Queue *all
    cdef int64_t n = 0
    spin_lock(&p.spin)
    first = p.queue
    p.queue = NULL
    spin_unlock(&p.spin)
    if first == NULL or first.next == NULL:
        return first
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
    return all


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
    cdef int i, code = OK
    for i in range(node_count(n) if n.level or n.spilled else 0):
        if n.level == 0:
            if leaf_spill(n, i) != NULL:
                code = batch_new(plan, leaf_spill(n, i), f)
        elif n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
            code = seal_prepare(plan, n.kids[i], f)
        if code != OK:
            return code
    return OK


cdef int batch_new(Plan *plan, Spill *v, Fault *f) noexcept nogil:
    cdef Shape *s = &plan.t.s
    cdef int64_t data = div_up(v.length, s.page_size), pages = spill_pages(s, v.length)
    cdef Batch *b = <Batch *> take_zeroed(1, sizeof(Batch))
    if b == NULL:
        return fail(f, E_MEMORY, "spilled value")
    b.refs = 1
    b.spill = v
    at_add32(&v.refs, 1)
    b.pages = pages * s.copies
    b.index = <uint8_t *> take_zeroed(pages - data + 1, s.page_size)
    b.addresses = <uint64_t *> take(pages * s.copies * 8)
    if plan.last != NULL:
        plan.last.next = b
    else:
        plan.batches = b
    plan.last = b
    plan.entries_most = max(plan.entries_most, data)
    return OK if b.index != NULL and b.addresses != NULL else fail(f, E_MEMORY, "spilled value")


# -- what cannot -------------------------------------------------------------------------------------------------------
cdef void seal_spill(Plan *plan, uint8_t *body) noexcept nogil:
    """Give a value in memory its addresses: entries of its data pages, index pages over them, the top into the cell."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef Spill *v = spill_pointer(body)
    cdef Batch *b = plan.batches
    cdef int64_t n = div_up(v.length, s.page_size), data = n, pages = b.pages / s.copies, i, j, groups
    cdef uint64_t *at = plan.addresses + plan.next_spill
    cdef uint8_t fresh[SPILL_BODY_MAX]
    cdef uint8_t *entries = plan.entries
    cdef uint8_t *page = b.index
    cdef int level = 0, k
    plan.batches = b.next
    for i in range(n):
        spill_entry_set(plan, entries + i * s.spill_entry, at, crc32c_update(0, v.data + i * s.page_size, s.page_size, 0))
        at += 1
        for k in range(s.copies):
            b.addresses[k * pages + i] = ref_address(entries + i * s.spill_entry, k)
    for i in range(data, pages):
        for k in range(s.copies):
            b.addresses[k * pages + i] = at[k * plan.total + i - data]
    while n > s.spill_top:
        level += 1
        groups = div_up(n, s.spill_fan)
        for i in range(groups):
            j = min(<int64_t> s.spill_fan, n - i * s.spill_fan)
            spill_index_page(t, page, level, entries + i * s.spill_fan * s.spill_entry, j)
            spill_entry_set(plan, entries + i * s.spill_entry, at, ld32(page + OFF_CRC))
            page += s.page_size
            at += 1
        n = groups
    plan.next_spill = at - plan.addresses
    st64(fresh, v.length)
    st64(fresh + 8, t.p.generation)
    memcpy(fresh + SPILL_FIXED, entries, n * s.spill_entry)
    batch_queue(plan, b, data, pages)
    spin_lock(&t.p.spin)
    b.key = ref_address(fresh + SPILL_FIXED, 0)
    map_put(t.p, b.key, b, True)
    memcpy(body, fresh, SPILL_FIXED + n * s.spill_entry)
    spin_unlock(&t.p.spin)
    spill_free(t.p, v)  # the slot's; the batch has its own


cdef void spill_entry_set(Plan *plan, uint8_t *entry, const uint64_t *at, uint32_t crc) noexcept nogil:
    cdef int k
    for k in range(plan.t.s.copies):
        st64(entry + 8 * k, at[k * plan.total])
    st32(entry + 8 * plan.t.s.copies, crc)


cdef void spill_index_page(TreeCore *t, uint8_t *page, int level, const uint8_t *entries, int64_t n) noexcept nogil:
    memset(page, 0, t.s.page_size)
    st32(page + OFF_MAGIC, PAGE_MAGIC)
    st64(page + OFF_TREE, t.tree_id)
    st64(page + OFF_GENERATION, t.p.generation)
    page[OFF_LEVEL] = level
    page[OFF_KIND] = KIND_SPILL
    st16(page + OFF_COUNT, <int> n)
    memcpy(page + HEADER, entries, n * t.s.spill_entry)
    st32(page + OFF_CRC, crc32c_update(0, page + 4, t.s.page_size - 4, 0))


cdef void batch_queue(Plan *plan, Batch *b, int64_t data, int64_t pages) noexcept nogil:
    """Queue the runs of a batch: neighbours in memory and on the device together."""
    cdef int64_t i, run, k, size = plan.t.s.page_size
    cdef uint64_t *at
    cdef const uint8_t *bytes
    for k in range(plan.t.s.copies):
        at = b.addresses + k * pages
        i = 0
        while i < pages:
            run = 1
            while i + run < pages and i + run != data and at[i + run] == at[i] + <uint64_t> run:
                run += 1
            bytes = b.spill.data + i * size if i < data else b.index + (i - data) * size
            write_add(plan, at[i], run, bytes, NULL, b)
            b.pending += 1
            i += run


cdef void seal_node(Plan *plan, Node *n, uint8_t *ref) noexcept nogil:
    """Seal what is dirty below and at `n`, and write the reference to it."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef uint8_t *page = page_of(n)
    cdef uint8_t *body
    cdef uint64_t records = node_count(n)
    cdef int i, k
    if n.level:
        records = 0
    for i in range(node_count(n)):
        if n.level:
            if n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
                seal_node(plan, n.kids[i], ref_at(page, i))
            records = (records + (ref_records(s, ref_at(page, i)) & ~REF_SPILLED)) | (
                (records | ref_records(s, ref_at(page, i))) & REF_SPILLED)
        elif n.spilled:
            body = spill_at(s, page, i)
            if body != NULL:
                records |= REF_SPILLED
                if spill_pointer(body) != NULL:
                    seal_spill(plan, body)
    st64(page + OFF_GENERATION, t.p.generation)
    st32(page + OFF_CRC, crc32c_update(0, page + 4, s.page_size - 4, 0))
    for k in range(s.copies):
        st64(ref + 8 * k, plan.addresses[k * plan.total + plan.next_page])
    st32(ref + 8 * s.copies, ld32(page + OFF_CRC))
    st64(ref + 8 * s.copies + 4, t.p.generation)
    st64(ref + 8 * s.copies + 12, records)
    n.address = plan.addresses[plan.next_page]
    n.pending = s.copies
    node_state(t.p, n, SEALED)
    for k in range(s.copies):
        at_add32(&n.refs, 1)
        write_add(plan, plan.addresses[k * plan.total + plan.next_page], 1, page, n, NULL)
    spin_lock(&t.p.spin)
    map_put(t.p, n.address, n, False)
    spin_unlock(&t.p.spin)
    plan.next_page += 1


cdef int seal_reserve(Plan *plan, Fault *f) noexcept nogil:
    """Room in a queue and in the map for all pages of the plan; `seal_finish` hands it over or gives it back."""
    cdef PagerCore *p = plan.t.p
    cdef int code = E_MEMORY
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
    """Whether a slot of a leaf points at a value in memory."""
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
            kid = n.kids[i]
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
        kid = n.kids[i]
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
        plan.entries = <uint8_t *> take(plan.entries_most * t.s.spill_entry + 1)
        if code == OK and plan.entries == NULL:
            code = fail(f, E_MEMORY, "seal")
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
    free(plan.entries)
    return code


cdef void write_done(PagerCore *p, Write *w) noexcept nogil:
    """The device has these pages: a page with all copies written is CLEAN and no longer found through the map."""
    cdef bint last
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
        if last:
            map_drop(p, w.batch.key, w.batch)
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
