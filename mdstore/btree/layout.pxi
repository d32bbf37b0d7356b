# The page: header, slots growing up, cells growing down. docs/format/page.md is the page to read; this file is where its
# numbers live. A page in memory is the page on the device, behind a `Node`.
#
# Invariants of a page (checked by page_check after every read, by Tree.check on demand; P6 by page_verify after every read):
#  P1  40 + 8 * count <= heap <= size; every cell lies inside [heap, size)
#  P2  cells lie apart, and sum of the cells + dead == size - heap; dead bytes and the gap are zero
#  P3  slot heads are head_of(key, skip); keys ascend strictly (slot 0 of an index page has none)
#  P4  skip > 0 only where every compared key starts with the same `skip` bytes
#  P5  a hole (in memory only) is a run of dead bytes; holes lie apart. Not all dead bytes need be in one
#  P6  what has an address: no reference, and no spilled value, is of a generation above the page's (S3: nor what such a value names above its)


cdef enum:
    HEADER = 40
    PAGE_MAGIC = 0x3174626d  # "mbt1"
    KIND_LEAF = 1
    KIND_INDEX = 2
    KIND_SPILL = 3       # overflow index of a value all of one generation
    KIND_DATED = 4       # overflow index whose entries carry their generation
    OFF_CRC = 0
    OFF_MAGIC = 4
    OFF_TREE = 8
    OFF_GENERATION = 16
    OFF_LEVEL = 24
    OFF_KIND = 25
    OFF_COUNT = 26
    OFF_HEAP = 28
    OFF_DEAD = 32
    OFF_SKIP = 36
    OFF_RESERVED = 38
    SPILL_MARK = 0xffff  # in the place of a value's length: it has spilled, all of one generation (no longer written),
    SPILL_DATED = 0xfffe  # or each page with a generation of its own
    SPILL_FIXED = 16  # u64 length, u64 generation
    SPILL_TOP_MAX = 4
    SPILL_BODY_MAX = 160
    SPILL_LEVELS = 16    # more than a value of 2**30 bytes has with pages of 256
    REF_MIN = 28
    REF_MAX = 44
    PAGE_MAX = 65536
    HEIGHT_MAX = 40
    CMP_BYTES = 1
    CMP_U64_LE = 2
    CMP_U64_BE = 3
    CMP_I64 = 4
    CMP_REVERSE = 5
    CMP_PAIR = 6

cdef enum:
    HOLES = 23
    NODE_SIZE = 152      # what a page in memory has in front of it: its Node, which begins with its holes

cdef struct Holes:       # where cells were taken out, so that others fit in without moving any
    uint16_t at[HOLES]
    uint16_t size[HOLES]
    int32_t n

cdef uint64_t REF_SPILLED = 1ULL << 63  # in a reference's record count: some value below has spilled
cdef uint64_t ADDRESS_END = 1ULL << 48  # addresses are below
cdef uint64_t IN_MEMORY = 0xffffffffffffffffULL  # a spilled value's generation while its address word is a pointer

cdef struct Form:        # of a spilled value
    int dated
    int entry            # copies * 8 + crc 4, and generation 8 where it is dated
    int fan              # entries of an overflow index page
    int top              # entries a cell can hold

cdef struct Shape:
    int page_size
    int key_size         # of stored keys: -2 where they carry their value (duplicates)
    int64_t value_size   # of stored values: 0 likewise
    int plain            # stored keys compare as bytes: heads may skip a shared prefix, separators may be cut
    int base_key         # as the descriptor has them
    int64_t base_value
    int comparator
    int copies
    int duplicates
    int embed_limit
    uint32_t signature   # of all that decides how cells are read
    int ref_size        # copies * 8 + crc 4 + generation 8 + records 8
    int fixed_value     # bytes of a value kept without its length, or -1
    int value_inline    # the longest value kept in a leaf
    int cell_max        # slot and cell of a leaf together, at most
    int key_max
    Form undated
    Form dated


cdef void form_init(Form *form, int entry, int usable, bint dated) noexcept nogil:
    form.dated = dated
    form.entry = entry
    form.fan = usable / entry
    form.top = (usable / 4 - SPILL_FIXED) / entry
    if form.top > SPILL_TOP_MAX:
        form.top = SPILL_TOP_MAX
    if form.top < 1:
        form.top = 1


cdef int shape_init(Shape *s) noexcept nogil:
    cdef int usable = s.page_size - HEADER, quarter = usable / 4
    s.ref_size = 8 * s.copies + 20
    s.plain = not s.duplicates and (s.comparator == CMP_BYTES or s.comparator == CMP_U64_BE)
    s.signature = (s.copies | s.comparator << 2 | s.duplicates << 5 | (s.base_key & 0x7ff) << 6
                   | <uint32_t> (s.base_value & 0x7fff) << 17)
    s.key_max = usable / 3 - 8 - s.ref_size
    if s.key_max > 1024:
        s.key_max = 1024
    form_init(&s.undated, 8 * s.copies + 4, usable, False)
    form_init(&s.dated, 8 * s.copies + 12, usable, True)
    s.value_inline = quarter
    s.cell_max = usable / 2
    s.fixed_value = -1
    if 0 <= s.value_size <= quarter and s.value_size + s.key_max + 8 <= s.cell_max:
        s.fixed_value = <int> s.value_size
    return 0


cdef inline uint8_t *slot_at(const uint8_t *page, int i) noexcept nogil:
    return <uint8_t *> page + HEADER + 8 * i


cdef inline Holes *holes_of(const uint8_t *page) noexcept nogil:
    return <Holes *> (page - NODE_SIZE)


cdef inline int page_count(const uint8_t *page) noexcept nogil:
    return ld16(page + OFF_COUNT)


cdef inline uint8_t *cell_at(const uint8_t *page, int i) noexcept nogil:
    return <uint8_t *> page + ld16(page + HEADER + 8 * i + 4)


cdef inline int klen_at(const uint8_t *page, int i) noexcept nogil:
    return ld16(page + HEADER + 8 * i + 6)


cdef inline int page_free(const uint8_t *page) noexcept nogil:
    """Bytes a new slot and cell may take, dead ones included."""
    return <int> ld32(page + OFF_HEAP) - HEADER - 8 * page_count(page) + <int> ld32(page + OFF_DEAD)


cdef inline int page_live(const uint8_t *page, int cap) noexcept nogil:
    return cap - HEADER - page_free(page)


cdef inline void page_init(uint8_t *page, int cap, uint64_t tree_id, int level) noexcept nogil:
    memset(page + HEADER, 0, cap - HEADER)
    page_head(page, cap, tree_id, level)


cdef inline void page_head(uint8_t *page, int cap, uint64_t tree_id, int level) noexcept nogil:
    """The header of an empty page; the rest of it is still to be written or zeroed."""
    memset(page, 0, HEADER)
    holes_of(page).n = 0
    st32(page + OFF_MAGIC, PAGE_MAGIC)
    st64(page + OFF_TREE, tree_id)
    page[OFF_LEVEL] = level
    page[OFF_KIND] = KIND_INDEX if level else KIND_LEAF
    st32(page + OFF_HEAP, cap)


include "keys.pxi"


cdef int find_other(Shape *s, const uint8_t *page, int cap, int lo, const uint8_t *key, int klen, bint *found) noexcept nogil:
    """`page_find` where keys are not ordered as bytes: by the comparator."""
    cdef int n = page_count(page), i, hi, mid, c, off
    cdef uint32_t head = head_of(s, key, klen, 0)
    cdef const uint8_t *slots = page + HEADER
    found[0] = False
    if n > (cap - HEADER) >> 3:
        n = (cap - HEADER) >> 3
    i = lower_slot(slots, lo, n, head) if lo < n else lo
    hi = lower_slot(slots, i, n, head + 1) if i < n and head != 0xffffffffu else n
    while i < hi:
        mid = (i + hi) >> 1
        off = ld16(slots + 8 * mid + 4)
        c = ld16(slots + 8 * mid + 6)
        if off + c > cap:
            return i
        c = compare(s, key, klen, page + off, c)
        if c == 0:
            found[0] = True
            return mid
        if c < 0:
            hi = mid
        else:
            i = mid + 1
    return i


cdef inline int page_find(Shape *s, const uint8_t *page, int cap, int lo, const uint8_t *key, int klen, bint *found) noexcept nogil:
    """The first position at or after `lo` whose key is not below `key`; `found`: it is `key`.

    Safe on a leaf that another thread is changing (the caller looks at the latch afterwards): no read leaves the page."""
    if s.plain:
        return find_plain(page, cap, lo, key, klen, found)
    return find_other(s, page, cap, lo, key, klen, found)


cdef inline int index_find(Shape *s, const uint8_t *page, int cap, const uint8_t *key, int klen) noexcept nogil:
    """The child that holds `key`: the last one whose separator is not above it; slot 0 stands for minus infinity."""
    cdef bint found
    cdef int i = page_find(s, page, cap, 1, key, klen, &found)
    return i if found else i - 1


# -- cells -------------------------------------------------------------------------------------------------------------
cdef inline int64_t div_up(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) / b


cdef inline const Form *form_of(const Shape *s, const uint8_t *body) noexcept nogil:
    """How a spilled value is laid out, by the mark in front of its body."""
    return &s.dated if ld16(body - 2) == SPILL_DATED else &s.undated


cdef int spill_tops(int page_size, const Form *form, int64_t length, int *depth) noexcept nogil:
    """Entries the cell of a spilled value holds, and how many levels of overflow index pages hang below them."""
    cdef int64_t n = div_up(length, page_size)
    depth[0] = 0
    while n > form.top:
        n = div_up(n, form.fan)
        depth[0] += 1
    return <int> n


cdef int64_t spill_pages(Shape *s, int64_t length) noexcept nogil:
    """Pages of one copy of a spilled value that is written now: data and overflow index."""
    cdef int64_t n = div_up(length, s.page_size), total = n
    while n > s.dated.top:
        n = div_up(n, s.dated.fan)
        total += n
    return total


cdef inline int spill_body(Shape *s, const Form *form, int64_t length) noexcept nogil:
    cdef int depth
    return SPILL_FIXED + spill_tops(s.page_size, form, length, &depth) * form.entry


cdef inline bint value_spills(Shape *s, int klen, int64_t vlen) noexcept nogil:
    return s.fixed_value < 0 and (vlen > s.value_inline or klen + vlen + 10 > s.cell_max)


cdef inline int leaf_cell_size(Shape *s, const uint8_t *cell, int klen) noexcept nogil:
    cdef int v, n
    if s.fixed_value >= 0:
        n = klen + s.fixed_value
    else:
        v = ld16(cell + klen)
        if v >= SPILL_DATED:
            n = klen + 2 + spill_body(s, form_of(s, cell + klen + 2), <int64_t> ld64(cell + klen + 2))
        else:
            n = klen + 2 + v
    return n if n else 1


cdef inline int cell_size_at(Shape *s, const uint8_t *page, int i) noexcept nogil:
    cdef int klen = klen_at(page, i)
    if page[OFF_LEVEL]:
        return klen + s.ref_size
    return leaf_cell_size(s, cell_at(page, i), klen)


cdef inline uint8_t *spill_at(Shape *s, const uint8_t *page, int i) noexcept nogil:
    """The body of the spilled value in slot i of a leaf, or NULL where the value lies in the leaf."""
    cdef uint8_t *p
    if s.fixed_value >= 0:
        return NULL
    p = cell_at(page, i) + klen_at(page, i)
    return p + 2 if ld16(p) >= SPILL_DATED else NULL


cdef inline uint8_t *ref_at(const uint8_t *page, int i) noexcept nogil:
    return cell_at(page, i) + klen_at(page, i)


cdef inline uint64_t ref_address(const uint8_t *ref, int copy) noexcept nogil:
    return ld64(ref + 8 * copy)


cdef inline uint32_t ref_crc(Shape *s, const uint8_t *ref) noexcept nogil:
    return ld32(ref + 8 * s.copies)


cdef inline uint64_t ref_generation(Shape *s, const uint8_t *ref) noexcept nogil:
    return ld64(ref + 8 * s.copies + 4)


cdef inline uint64_t ref_records(Shape *s, const uint8_t *ref) noexcept nogil:
    """Records below, with REF_SPILLED where one of them has spilled."""
    return ld64(ref + 8 * s.copies + 12)
