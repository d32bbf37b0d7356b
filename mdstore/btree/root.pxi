# The root record (docs/format/tree-root.md): written by a seal, read on opening.

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


cdef int64_t root_size(TreeCore *t, bytes blob, bint embedded):
    return ROOT_HEADER + len(blob) + (embed_bytes(t, t.root) if embedded else t.s.ref_size)


cdef int root_record(TreeCore *t, bytes blob, bint embedded, bytes record) except -1:
    """Fill in a root record of `root_size` bytes."""
    cdef uint8_t *p = <uint8_t *> PyBytes_AS_STRING(record)
    cdef uint8_t *page
    cdef int i, klen, vlen
    p[0] = ROOT_DATED if t.dated else ROOT_VERSION
    p[1] = (ROOT_DUPLICATES if t.s.duplicates else 0) | (0 if embedded else ROOT_PAGED) | t.s.copies << 2
    p[2] = t.s.comparator
    p[3] = t.level
    st16(p + 4, t.s.base_key & 0xffff)
    st16(p + 6, t.s.embed_limit)
    st32(p + 8, <uint32_t> (t.s.base_value & 0xffffffff))
    st32(p + 12, len(blob))
    st64(p + 16, t.tree_id)
    st64(p + 24, records_of(t))
    p += ROOT_HEADER
    memcpy(p, PyBytes_AS_STRING(blob), len(blob))
    p += len(blob)
    if not embedded:
        memcpy(p, t.ref, t.s.ref_size)
        return 0
    page = page_of(t.root)
    for i in range(node_count(t.root)):
        klen = klen_at(page, i)
        vlen = t.s.fixed_value if t.s.fixed_value >= 0 else ld16(cell_at(page, i) + klen)
        p = put_number(p, t.s.key_size, klen)
        memcpy(p, cell_at(page, i), klen)
        p = put_number(p + klen, t.s.value_size, vlen)
        memcpy(p, cell_at(page, i) + klen + (2 if t.s.fixed_value < 0 else 0), vlen)
        p += vlen
    return 0


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
    cdef int64_t klen, vlen, count = records_of(t), cap = 128
    cdef uint64_t i
    cdef const uint8_t *key
    cdef const char *fault
    cdef uint8_t *page
    if count > (end - p) + 1 or count > 8000:
        return "record count"
    while cap < HEADER + (end - p) + 12 * count and cap < t.s.page_size:
        cap *= 2
    if cap > t.s.page_size:
        cap = t.s.page_size
    at_setp(&t.root, node_alloc(t.p, <int> cap, 0, t.s.signature, EMBEDDED))
    if t.root == NULL:
        return "memory"
    page = page_of(t.root)
    page_init(page, <int> cap, t.tree_id, 0)
    for i in range(<uint64_t> count):
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
