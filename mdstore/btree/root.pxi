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


cdef int embedded_record(TreeCore *t, uint64_t i, const uint8_t **p, const uint8_t *start, const uint8_t *end, Fault *f) noexcept nogil:
    """Take record `i` of an embedded tree into the root leaf; `start` is where the root record begins."""
    cdef uint8_t *page = page_of(t.root)
    cdef int slot = <int> i, cap = t.root.cap
    cdef const uint8_t *at = p[0]
    cdef const uint8_t *key
    cdef int64_t vlen, klen = take_number(p, end, t.s.key_size)
    if klen < 0:
        return refuse(f, "bytes left for the length of a key", slot, at - start, "at least", prefix_bytes(t.s.key_size), end - at)
    if klen > min(end - p[0], <int64_t> t.s.key_max):
        return refuse(f, "key length", slot, at - start, "at most", min(end - p[0], <int64_t> t.s.key_max), klen)
    key = p[0]
    at = p[0] = key + klen
    vlen = take_number(p, end, t.s.value_size)
    if vlen < 0:
        return refuse(f, "bytes left for the length of a value", slot, at - start, "at least", prefix_bytes(t.s.value_size), end - at)
    if vlen > end - p[0]:
        return refuse(f, "value length", slot, at - start, "at most", end - p[0], <uint64_t> vlen)
    if t.s.fixed_value < 0 and value_spills(&t.s, <int> klen, vlen):
        return refuse(f, "value length", slot, at - start, "at most", min(t.s.value_inline, t.s.cell_max - 10 - <int> klen), vlen)
    if key_check(&t.s, key, <int> klen, False, f) != OK:
        return refused_in(f, slot, key - start)
    if i and compare(&t.s, cell_at(page, slot - 1), klen_at(page, slot - 1), key, <int> klen) >= 0:
        return refuse(f, "key order", slot, key - start, "above", key_number(cell_at(page, slot - 1), klen_at(page, slot - 1), 0),
                      key_number(key, <int> klen, 0))
    if not leaf_insert(&t.s, page, cap, slot, key, <int> klen, p[0], <int> vlen):
        return refuse(f, "records too large", slot, key - start, "at most", page_free(page), klen + vlen)
    p[0] += vlen
    return OK


cdef int embedded_load(TreeCore *t, const uint8_t *start, const uint8_t *p, const uint8_t *end, Fault *f) noexcept nogil:
    """Build the root leaf from the records of a root record, which begins at `start`; they begin at `p`."""
    cdef int64_t count = records_of(t), cap = 128, most = min(end - p + 1, <int64_t> RECORDS_EMBEDDED)
    cdef uint64_t i
    if count > most:
        return refuse(f, "record count", -1, ROOT_RECORDS, "at most", most, count)
    while cap < HEADER + (end - p) + 12 * count and cap < t.s.page_size:
        cap *= 2
    if cap > t.s.page_size:
        cap = t.s.page_size
    at_setp(&t.root, node_alloc(t.p, <int> cap, 0, t.s.signature, EMBEDDED))
    if t.root == NULL:
        return fail(f, E_MEMORY, "page")
    page_init(page_of(t.root), <int> cap, t.tree_id, 0)
    for i in range(<uint64_t> count):
        if embedded_record(t, i, &p, start, end, f) != OK:
            return f.code
    if p != end:
        return refuse(f, "bytes after the last record", -1, p - start, NULL, 0, end - p)
    return OK


cdef int root_header(const uint8_t *p, int64_t size, Fault *f) noexcept nogil:
    """Lengths and flags of a root record of at least ROOT_HEADER bytes, before anything of it is used."""
    if p[1] >> 4:
        return refuse(f, "flags", -1, 1, "below", 16, p[1])
    if ld32(p + 12) > <uint64_t> blob_size_max:
        return refuse(f, "length of the user blob", -1, 12, "at most", blob_size_max, ld32(p + 12))
    if ROOT_HEADER + <int64_t> ld32(p + 12) > size:
        return refuse(f, "length of the user blob", -1, 12, "at most", size - ROOT_HEADER, ld32(p + 12))
    if ld64(p + ROOT_RECORDS) >> 40:
        return refuse(f, "record count", -1, ROOT_RECORDS, "below", <uint64_t> 1 << 40, ld64(p + ROOT_RECORDS))
    return OK


cdef int root_paged(TreeCore *t, const uint8_t *p, int64_t blob, int64_t size, Fault *f) noexcept nogil:
    """Take the reference to the root page out of a root record."""
    cdef int64_t at = ROOT_HEADER + blob
    cdef uint64_t below
    if size != at + t.s.ref_size:
        return refuse(f, "length", -1, -1, NULL, at + t.s.ref_size, size)
    if t.level >= HEIGHT_MAX:
        return refuse(f, "level", -1, 3, "below", HEIGHT_MAX, t.level)
    if records_of(t) == 0:
        return refuse(f, "record count", -1, ROOT_RECORDS, "at least", 1, 0)
    memcpy(t.ref, p + at, t.s.ref_size)
    at_set32(<int32_t *> &t.paged, 1)
    below = ref_records(&t.s, t.ref) & ~REF_SPILLED
    if below != <uint64_t> records_of(t):
        return refuse(f, "record count", -1, ROOT_RECORDS, NULL, below, records_of(t))
    return OK
