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
    int64_t total        # pages of one copy
    int64_t next_page
    int64_t next_spill


cdef int writes_reserve(PagerCore *p, int64_t more) noexcept nogil:
    cdef Write *grown
    cdef int64_t cap = p.writes_cap
    if p.writes_n + more <= cap:
        return OK
    while cap < p.writes_n + more:
        cap = cap * 2 + 64
    grown = <Write *> realloc(p.writes, cap * sizeof(Write))
    if grown == NULL:
        return E_MEMORY
    p.writes = grown
    p.writes_cap = cap
    return OK


cdef int write_add(PagerCore *p, uint64_t address, int64_t pages, const uint8_t *bytes, Node *n, Batch *b) noexcept nogil:
    """Queue pages, under the spin lock."""
    cdef Write *w
    if writes_reserve(p, 1) != OK:
        return E_MEMORY
    w = &p.writes[p.writes_n]
    w.address = address
    w.pages = pages
    w.bytes = bytes
    w.node = n
    w.batch = b
    p.writes_n += 1
    p.sealed_pages += pages
    return OK


cdef int seal_spill(Plan *plan, uint8_t *body, Fault *f) noexcept nogil:
    """Give a value in memory its addresses: entries of its data pages, index pages over them, the top into the cell."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef Spill *v = spill_pointer(body)
    cdef int64_t n = div_up(v.length, s.page_size), data = n, pages = spill_pages(s, v.length), i, j, groups
    cdef uint64_t *at = plan.addresses + plan.next_spill
    cdef uint8_t fresh[SPILL_BODY_MAX]
    cdef uint8_t *entries
    cdef uint8_t *page
    cdef Batch *b = <Batch *> calloc(1, sizeof(Batch))
    cdef int level = 0
    if b != NULL:
        b.index = <uint8_t *> calloc(pages - data + 1, s.page_size)
        b.addresses = <uint64_t *> malloc(pages * s.copies * 8)
    entries = <uint8_t *> malloc(n * s.spill_entry)
    if b == NULL or b.index == NULL or b.addresses == NULL or entries == NULL:
        free(entries)
        if b != NULL:
            free(b.index)
            free(b.addresses)
        free(b)
        return fail(f, E_MEMORY, "spilled value")
    for i in range(n):
        spill_entry_set(plan, entries + i * s.spill_entry, at + i,
                        crc32c_update(0, v.data + i * s.page_size, s.page_size, 0))
    at += n
    page = b.index
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
    st64(fresh, v.length)
    st64(fresh + 8, t.p.generation)
    memcpy(fresh + SPILL_FIXED, entries, n * s.spill_entry)
    free(entries)
    b.refs = 1
    b.spill = v
    at_add32(&v.refs, 1)
    b.pages = pages * s.copies
    for i in range(s.copies):
        memcpy(b.addresses + i * pages, plan.addresses + i * plan.total + plan.next_spill, pages * 8)
    spin_lock(&t.p.spin)
    level = batch_queue(plan, b, data, pages)
    if level == OK:
        b.key = ref_address(fresh + SPILL_FIXED, 0)
        map_put(t.p, b.key, b, True)
        memcpy(body, fresh, SPILL_FIXED + n * s.spill_entry)
    spin_unlock(&t.p.spin)
    plan.next_spill += pages
    return OK if level == OK else fail(f, E_MEMORY, "spilled value")


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


cdef int batch_queue(Plan *plan, Batch *b, int64_t data, int64_t pages) noexcept nogil:
    """Queue the runs of a batch: neighbours in memory and on the device together."""
    cdef PagerCore *p = plan.t.p
    cdef int64_t i, run, k, size = p.page_size
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
            if write_add(p, at[i], run, bytes, NULL, b) != OK:
                return E_MEMORY
            b.pending += 1
            i += run
    return OK


cdef int seal_node(Plan *plan, Node *n, uint8_t *ref, Fault *f) noexcept nogil:
    """Seal what is dirty below and at `n`, and write the reference to it."""
    cdef TreeCore *t = plan.t
    cdef Shape *s = &t.s
    cdef uint8_t *page = page_of(n)
    cdef uint8_t *body
    cdef uint64_t records = node_count(n), address
    cdef int i, k, code
    cdef uint32_t dropped
    if n.level:
        records = 0
    for i in range(node_count(n)):
        if n.level:
            if n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
                code = seal_node(plan, n.kids[i], ref_at(page, i), f)
                if code != OK:
                    return code
            records = (records + (ref_records(s, ref_at(page, i)) & ~REF_SPILLED)) | (
                (records | ref_records(s, ref_at(page, i))) & REF_SPILLED)
        elif n.spilled:
            body = spill_at(s, page, i)
            if body != NULL:
                records |= REF_SPILLED
                if spill_pointer(body) != NULL:
                    code = seal_spill(plan, body, f)
                    if code != OK:
                        return code
    for dropped in range(n.spills):
        spill_free(t.p, <Spill *> n.kids[dropped])
    if n.level == 0:
        n.spills = 0
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
    spin_lock(&t.p.spin)
    for k in range(s.copies):
        at_add32(&n.refs, 1)
        write_add(t.p, plan.addresses[k * plan.total + plan.next_page], 1, page, n, NULL)
    map_put(t.p, n.address, n, False)
    spin_unlock(&t.p.spin)
    plan.next_page += 1
    return OK


cdef int seal_reserve(Plan *plan, Fault *f) noexcept nogil:
    """Make room in the queue and the map for all pages of the plan."""
    cdef PagerCore *p = plan.t.p
    cdef int code
    spin_lock(&p.spin)
    code = writes_reserve(p, plan.total * plan.t.s.copies)
    if code == OK:
        code = map_reserve(p, plan.total)
    spin_unlock(&p.spin)
    return code if code == OK else fail(f, code, "seal")


cdef int seal_leaves_below(Plan *plan, Node *n, int64_t start, int64_t *at, Fault *f) noexcept nogil:
    """Seal dirty leaves below the dirty index page `n` until the plan's addresses are used up. `at` counts the dirty pages of level 1
    that were passed; those before the `start`-th are left as they are. Leaves with spilled values that have no address yet are left."""
    cdef TreeCore *t = plan.t
    cdef Node *kid
    cdef int i, code = OK
    if n.level == 1:
        if at[0] < start:
            at[0] += 1
            return OK
        for i in range(node_count(n)):
            kid = n.kids[i]
            if kid == NULL or at_get8(&kid.state) != DIRTY or kid.spills or <int> kid.cap < t.s.page_size:
                continue
            if plan.next_page == plan.total:
                return OK
            code = seal_node(plan, kid, ref_at(page_of(n), i), f)
            if code != OK:
                return code
            t.dirty_nodes -= 1
        at[0] += 1
        return OK
    for i in range(node_count(n)):
        kid = n.kids[i]
        if kid != NULL and at_get8(&kid.state) == DIRTY:
            code = seal_leaves_below(plan, kid, start, at, f)
            if code != OK or plan.next_page == plan.total:
                return code
    return OK


cdef int seal_all(Plan *plan, Fault *f) noexcept nogil:
    """Seal a tree whose root is a page. Room in the queue and the map is made first."""
    cdef TreeCore *t = plan.t
    cdef PagerCore *p = t.p
    cdef int code
    cdef Node *root
    if <int> t.root.cap < t.s.page_size:
        root = node_copy(&t.s, p, t.root, t.s.page_size)
        if root == NULL:
            return fail(f, E_MEMORY, "page")
        node_swap(p, &t.root, root)
    code = seal_reserve(plan, f)
    if code != OK:
        return code
    plan.next_page = 0
    plan.next_spill = t.dirty_nodes
    code = seal_node(plan, t.root, t.ref, f)
    if code == OK:
        t.dirty_nodes = t.dirty_spill = 0
        t.paged = 1
    return code


cdef void write_done(PagerCore *p, Write *w) noexcept nogil:
    """The device has these pages: a page with all copies written is CLEAN and no longer found through the map."""
    cdef bint last
    spin_lock(&p.spin)
    p.sealed_pages -= w.pages
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


# -- the root record ---------------------------------------------------------------------------------------------------
cdef inline int prefix_bytes(int64_t size) noexcept nogil:
    return <int> -size if size < 0 else 0


cdef int64_t embed_bytes(TreeCore *t, Node *n) noexcept nogil:
    """Bytes of a leaf's records in a root record, or -1 where a value has spilled."""
    cdef int i
    cdef int64_t total = 0
    cdef uint8_t *page = page_of(n)
    if n.spilled:
        return -1
    for i in range(node_count(n)):
        total += klen_at(page, i) + prefix_bytes(t.s.key_size) + prefix_bytes(t.s.value_size)
        total += t.s.fixed_value if t.s.fixed_value >= 0 else ld16(cell_at(page, i) + klen_at(page, i))
    return total


cdef bint embeds(TreeCore *t) noexcept nogil:
    """Whether the tree would stay inside its root record: hysteresis keeps one that has pages until half the limit."""
    cdef int64_t size
    cdef int limit = t.s.embed_limit / 2 if t.paged else t.s.embed_limit
    if t.level or t.root == NULL or (at_get8(&t.root.state) != DIRTY and at_get8(&t.root.state) != EMBEDDED):
        return False
    if at_get8(&t.root.state) == EMBEDDED:
        return True
    if page_live(page_of(t.root), t.root.cap) > limit + 12 * node_count(t.root):
        return False
    size = embed_bytes(t, t.root)
    return 0 <= size <= limit


cdef uint8_t *put_number(uint8_t *p, int64_t size, uint64_t value) noexcept nogil:
    cdef int n = prefix_bytes(size)
    memcpy(p, &value, n)
    return p + n


cdef bytes root_record(TreeCore *t, bytes blob, bint embedded):
    cdef int64_t size = embed_bytes(t, t.root) if embedded else t.s.ref_size
    cdef bytes record = PyBytes_FromStringAndSize(NULL, ROOT_HEADER + len(blob) + size)
    cdef uint8_t *p = <uint8_t *> PyBytes_AS_STRING(record)
    cdef uint8_t *page
    cdef int i, klen, vlen
    p[0] = ROOT_VERSION
    p[1] = (ROOT_DUPLICATES if t.s.duplicates else 0) | (0 if embedded else ROOT_PAGED) | t.s.copies << 2
    p[2] = t.s.comparator
    p[3] = t.level
    st16(p + 4, t.s.base_key & 0xffff)
    st16(p + 6, t.s.embed_limit)
    st32(p + 8, <uint32_t> (t.s.base_value & 0xffffffff))
    st32(p + 12, len(blob))
    st64(p + 16, t.tree_id)
    st64(p + 24, t.count)
    p += ROOT_HEADER
    memcpy(p, PyBytes_AS_STRING(blob), len(blob))
    p += len(blob)
    if not embedded:
        memcpy(p, t.ref, t.s.ref_size)
        return record
    page = page_of(t.root)
    for i in range(node_count(t.root)):
        klen = klen_at(page, i)
        vlen = t.s.fixed_value if t.s.fixed_value >= 0 else ld16(cell_at(page, i) + klen)
        p = put_number(p, t.s.key_size, klen)
        memcpy(p, cell_at(page, i), klen)
        p = put_number(p + klen, t.s.value_size, vlen)
        memcpy(p, cell_at(page, i) + klen + (2 if t.s.fixed_value < 0 else 0), vlen)
        p += vlen
    return record


cdef int64_t take_number(const uint8_t **p, const uint8_t *end, int64_t size) noexcept nogil:
    """A length: the fixed one, or read from its prefix; -1 past the end."""
    cdef uint64_t value = 0
    cdef int n
    if size >= 0:
        return size
    n = prefix_bytes(size)
    if end - p[0] < n:
        return -1
    memcpy(&value, p[0], n)
    p[0] += n
    return <int64_t> value


cdef const char *embedded_load(TreeCore *t, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Build the root leaf from the records of a root record; what is wrong, or NULL."""
    cdef int64_t klen, vlen, size = 2 * (end - p)
    cdef int64_t cap = 128
    cdef uint64_t i
    cdef const uint8_t *key
    cdef const char *fault
    cdef uint8_t *page
    if <uint64_t> t.count > <uint64_t> (end - p) + 1 or t.count > 8000:
        return "record count"
    while cap < HEADER + (end - p) + 12 * t.count and cap < t.s.page_size:
        cap *= 2
    if cap > t.s.page_size:
        cap = t.s.page_size
    t.root = node_alloc(t.p, <int> cap, 0, 0, EMBEDDED)
    if t.root == NULL:
        return "memory"
    t.root.signature = t.s.signature
    page = page_of(t.root)
    page_init(page, <int> cap, t.tree_id, 0)
    for i in range(<uint64_t> t.count):
        klen = take_number(&p, end, t.s.key_size)
        if klen < 0 or klen > end - p or klen > t.s.key_max:
            return "key length"
        key = p
        p += klen
        vlen = take_number(&p, end, t.s.value_size)
        if vlen < 0 or vlen > end - p or (t.s.fixed_value < 0 and value_spills(&t.s, <int> klen, vlen)):
            return "value length"
        fault = key_fault(&t.s, key, <int> klen, False)
        if fault != NULL:
            return fault
        if i and compare(&t.s, cell_at(page, <int> i - 1), klen_at(page, <int> i - 1), key, <int> klen) >= 0:
            return "key order"
        if not leaf_insert(&t.s, page, <int> cap, <int> i, key, <int> klen, p, <int> vlen):
            return "records too large"
        p += vlen
    if p != end:
        return "bytes after the last record"
    return NULL
