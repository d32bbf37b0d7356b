# Checking a page that came from a device, before any other byte of it is used.

cdef inline int64_t prefix_most(int64_t size) noexcept nogil:
    """The longest byte string whose length a descriptor's size leaves room for: 1, 2 or 4 bytes; a fixed one is checked by itself."""
    return 255 if size == -1 else 65535 if size == -2 else 1 << 40


cdef int key_check(Shape *s, const uint8_t *key, int klen, bint separator, Fault *f) noexcept nogil:
    """A stored key by itself. A fault names bytes of the key; `refused_in` makes them bytes of the page."""
    cdef int base = klen, first
    if klen > s.key_max:
        return refuse(f, "key too long", -1, -1, "at most", s.key_max, klen)
    if s.duplicates:
        if klen < 2:
            return refuse(f, "key without its own length", -1, -1, "at least", 2, klen)
        base = dup_split(key, klen)
        if base > klen - 2:
            return refuse(f, "key without its own length", -1, klen - 2, "at most", klen - 2, base)
    if s.base_key > 0 and base != s.base_key and not (separator and s.plain):
        return refuse(f, "key size", -1, -1, NULL, s.base_key, base)
    if s.base_key == -1 and base > 255:
        return refuse(f, "key size", -1, -1, "at most", 255, base)
    if s.duplicates and s.base_value >= 0 and klen - 2 - base != s.base_value:
        return refuse(f, "value size", -1, base, NULL, s.base_value, klen - 2 - base)
    if s.duplicates and klen - 2 - base > prefix_most(s.base_value):
        return refuse(f, "value size", -1, base, "at most", prefix_most(s.base_value), klen - 2 - base)
    if s.comparator == CMP_PAIR:
        if base < 4:
            return refuse(f, "pair key", -1, -1, "at least", 4, base)
        first = ld16(key)
        if 4 + first > base:
            return refuse(f, "pair key", -1, 0, "at most", base - 4, first)
        if 4 + first + ld16(key + 2 + first) != base:
            return refuse(f, "pair key", -1, 2 + first, NULL, base - 4 - first, ld16(key + 2 + first))
    return OK


cdef int refused_in(Fault *f, int slot, int64_t key) noexcept nogil:
    """Say of which slot the key is that was refused, and where its bytes begin."""
    f.slot = slot
    f.byte = <int> (key + (f.byte if f.byte >= 0 else 0))
    return f.code


cdef int spilled_check(Shape *s, const uint8_t *page, int i, int at, Fault *f) noexcept nogil:
    """The length, and the generation, of a spilled value whose body begins at byte `at`."""
    cdef uint64_t length = ld64(page + at)
    if length == 0:
        return refuse(f, "spilled value", i, at, "at least", 1, 0)
    if length > <uint64_t> 1 << 30:
        return refuse(f, "spilled value", i, at, "at most", <uint64_t> 1 << 30, length)
    if ld64(page + at + 8) == IN_MEMORY:
        return refuse(f, "spilled value", i, at + 8, "below", IN_MEMORY, IN_MEMORY)
    if <int64_t> length > prefix_most(s.value_size):
        return refuse(f, "value size", i, at, "at most", prefix_most(s.value_size), length)
    if s.value_size > 0 and <int64_t> length != s.value_size:
        return refuse(f, "value size", i, at, NULL, s.value_size, length)
    return OK


cdef int inline_check(Shape *s, int i, int at, int v, Fault *f) noexcept nogil:
    """The length of a value that lies in its leaf."""
    if s.value_size > 0 and v != s.value_size:
        return refuse(f, "value size", i, at, NULL, s.value_size, v)
    if v > s.value_inline or v > prefix_most(s.value_size):
        return refuse(f, "value size", i, at, "at most", min(<int64_t> s.value_inline, prefix_most(s.value_size)), v)
    return OK


cdef int cell_check(Shape *s, const uint8_t *page, int i, int heap, int *size, Fault *f) noexcept nogil:
    """The cell of slot `i` is inside the heap; `size` receives how long it is. Its key is checked elsewhere."""
    cdef int cap = s.page_size, slot = HEADER + 8 * i, off = ld16(page + slot + 4), klen = ld16(page + slot + 6), v
    if off < heap:
        return refuse(f, "cell outside the heap", i, slot + 4, "at least", heap, off)
    if off >= cap:
        return refuse(f, "cell outside the heap", i, slot + 4, "below", cap, off)
    if off + klen > cap:
        return refuse(f, "cell outside the heap", i, slot + 6, "at most", cap - off, klen)
    if page[OFF_LEVEL]:
        size[0] = klen + s.ref_size
    elif s.fixed_value >= 0:
        size[0] = klen + s.fixed_value
    else:
        if off + klen + 2 > cap:
            return refuse(f, "cell outside the heap", i, slot + 4, "at most", cap - klen - 2, off)
        v = ld16(page + off + klen)
        size[0] = klen + 2 + v
        if v >= SPILL_DATED:
            if off + klen + 2 + SPILL_FIXED > cap:
                return refuse(f, "cell outside the heap", i, slot + 4, "at most", cap - klen - 2 - SPILL_FIXED, off)
            if spilled_check(s, page, i, off + klen + 2, f) != OK:
                return f.code
            size[0] = klen + 2 + spill_body(s, form_of(s, page + off + klen + 2), <int64_t> ld64(page + off + klen + 2))
        elif inline_check(s, i, off + klen, v, f) != OK:
            return f.code
    if size[0] == 0:
        size[0] = 1
    if off + size[0] > cap:
        return refuse(f, "cell outside the heap", i, off, "at most", cap, off + size[0])
    if page[OFF_LEVEL] == 0 and size[0] + 8 > s.cell_max:
        return refuse(f, "cell size", i, off, "at most", s.cell_max - 8, size[0])
    return OK


cdef inline bint claim(uint64_t *taken, int off, int size) noexcept nogil:
    """Take bytes of the heap for a cell; False where another has one of them."""
    cdef uint64_t mask
    cdef int n
    while size:
        n = min(64 - (off & 63), size)
        mask = (~<uint64_t> 0 >> (64 - n)) << (off & 63)
        if taken[off >> 6] & mask:
            return False
        taken[off >> 6] |= mask
        off += n
        size -= n
    return True


cdef int overlap(Shape *s, const uint8_t *page, int i, int size, Fault *f) noexcept nogil:
    """Name the cell before slot `i`'s in the slots that shares bytes with it."""
    cdef int off = ld16(slot_at(page, i) + 4), j, other = 0, end
    for j in range(i):
        other = ld16(slot_at(page, j) + 4)
        end = other + cell_size_at(s, page, j)
        if other <= off < end:
            return refuse(f, "cells overlap", i, off, "at least", end, off)
        if off <= other < off + size:
            break
    return refuse(f, "cells overlap", i, off, "at most", other, off + size)


cdef uint64_t key_number(const uint8_t *key, int klen, int skip) noexcept nogil:
    """Eight bytes of a key behind `skip`, as a number that a person can compare with a dump; zeros where there are fewer."""
    cdef uint64_t number = 0
    cdef int i
    for i in range(skip, skip + 8):
        number = number << 8 | (key[i] if i < klen else 0)
    return number


cdef int order_check(Shape *s, const uint8_t *page, int i, Fault *f) noexcept nogil:
    """The key of slot `i` is above the one before it."""
    cdef const uint8_t *slot = slot_at(page, i)
    cdef const uint8_t *before = cell_at(page, i - 1)
    cdef const uint8_t *key = cell_at(page, i)
    cdef int klen = klen_at(page, i), common
    if ld32(slot) > ld32(slot - 8):
        return OK
    if ld32(slot) < ld32(slot - 8):
        return refuse(f, "key order", i, HEADER + 8 * i, "at least", ld32(slot - 8), ld32(slot))
    if compare(s, before, klen_at(page, i - 1), key, klen) < 0:
        return OK
    common = common_prefix(before, klen_at(page, i - 1), key, klen)
    common -= min(common, 4)
    return refuse(f, "key order", i, key - page + common, "above", key_number(before, klen_at(page, i - 1), common),
                  key_number(key, klen, common))


cdef int prefix_refused(const uint8_t *page, int i, int skip, Fault *f) noexcept nogil:
    """Name the first byte of slot `i`'s key that is not that of the key before, or how short it is."""
    cdef const uint8_t *key = cell_at(page, i)
    cdef const uint8_t *before = cell_at(page, i - 1)
    cdef int k = 0
    if klen_at(page, i) < skip:
        return refuse(f, "prefix", i, HEADER + 8 * i + 6, "at least", skip, klen_at(page, i))
    while key[k] == before[k]:
        k += 1
    return refuse(f, "prefix", i, key - page + k, NULL, before[k], key[k])


cdef int slot_check(Shape *s, const uint8_t *page, int i, int first, int skip, Fault *f) noexcept nogil:
    """The key and the head of a slot whose cell lies inside the page, and that it is above the one before."""
    cdef const uint8_t *slot = slot_at(page, i)
    cdef const uint8_t *key = cell_at(page, i)
    cdef int klen = klen_at(page, i)
    if i < first:
        if klen:
            return refuse(f, "first separator", i, HEADER + 6, NULL, 0, klen)
        return OK if ld32(slot) == 0 else refuse(f, "first separator", i, HEADER, NULL, 0, ld32(slot))
    if key_check(s, key, klen, first == 1, f) != OK:
        return refused_in(f, i, key - page)
    if klen < skip or (skip and i > first and memcmp(key, cell_at(page, i - 1), skip)):
        return prefix_refused(page, i, skip, f)
    if ld32(slot) != head_of(s, key, klen, skip):
        return refuse(f, "slot head", i, HEADER + 8 * i, NULL, head_of(s, key, klen, skip), ld32(slot))
    return order_check(s, page, i, f) if i > first else OK


cdef int header_check(Shape *s, const uint8_t *page, Fault *f) noexcept nogil:
    """What the header says, by itself; the gap behind the slots."""
    cdef int n = page_count(page), cap = s.page_size, heap, i
    cdef int kind = KIND_INDEX if page[OFF_LEVEL] else KIND_LEAF
    if page[OFF_LEVEL] >= HEIGHT_MAX:
        return refuse(f, "page level", -1, OFF_LEVEL, "below", HEIGHT_MAX, page[OFF_LEVEL])
    if page[OFF_KIND] != kind:
        return refuse(f, "page kind", -1, OFF_KIND, NULL, kind, page[OFF_KIND])
    if ld32(page + OFF_HEAP) > <uint32_t> cap:
        return refuse(f, "heap bounds", -1, OFF_HEAP, "at most", cap, ld32(page + OFF_HEAP))
    if ld32(page + OFF_HEAP) < HEADER:
        return refuse(f, "heap bounds", -1, OFF_HEAP, "at least", HEADER, ld32(page + OFF_HEAP))
    if ld32(page + OFF_DEAD) > <uint32_t> cap:
        return refuse(f, "heap bounds", -1, OFF_DEAD, "at most", cap, ld32(page + OFF_DEAD))
    heap = <int> ld32(page + OFF_HEAP)
    if HEADER + 8 * n > heap:
        return refuse(f, "record count", -1, OFF_COUNT, "at most", (heap - HEADER) / 8, n)
    if n == 0 and page[OFF_LEVEL]:
        return refuse(f, "record count", -1, OFF_COUNT, "at least", 1, 0)
    if ld16(page + OFF_RESERVED):
        return refuse(f, "reserved bytes", -1, OFF_RESERVED, NULL, 0, ld16(page + OFF_RESERVED))
    i = HEADER + 8 * n
    while i + 8 <= heap and ld64(page + i) == 0:
        i += 8
    while i < heap and page[i] == 0:
        i += 1
    if i < heap:
        return refuse(f, "bytes in the gap", -1, i, NULL, 0, page[i])
    if ld16(page + OFF_SKIP) and not s.plain:
        return refuse(f, "prefix", -1, OFF_SKIP, NULL, 0, ld16(page + OFF_SKIP))
    return OK


cdef int page_check(Shape *s, const uint8_t *page, int *spilled, Fault *f) noexcept nogil:
    """P1 to P4 for a page with a right CRC. Everything read later is inside the page."""
    cdef int n = page_count(page), cap = s.page_size, heap, dead, i, size = 0, total = 0, first, skip
    cdef uint64_t taken[PAGE_MAX / 64]
    if header_check(s, page, f) != OK:
        return f.code
    memset(taken, 0, cap / 8)
    heap = <int> ld32(page + OFF_HEAP)
    dead = <int> ld32(page + OFF_DEAD)
    first = 1 if page[OFF_LEVEL] else 0
    skip = ld16(page + OFF_SKIP)
    spilled[0] = 0
    for i in range(n):
        if cell_check(s, page, i, heap, &size, f) != OK:
            return f.code
        if not claim(taken, ld16(slot_at(page, i) + 4), size):
            return overlap(s, page, i, size, f)
        total += size
        if slot_check(s, page, i, first, skip, f) != OK:
            return f.code
        if page[OFF_LEVEL] == 0 and spill_at(s, page, i) != NULL:
            spilled[0] += 1
    if total + dead != cap - heap:
        return refuse(f, "heap size", -1, OFF_DEAD, NULL, cap - heap, total + dead)
    return OK


cdef uint64_t page_records(Shape *s, const uint8_t *page, int spilled) noexcept nogil:
    """What the reference to a page has to count: its records, or those its own references count, with REF_SPILLED where a value has
    spilled; of an index page whose references cannot be right, what none can be."""
    cdef uint64_t records = 0, mark = REF_SPILLED if spilled else 0, one
    cdef int i
    if page[OFF_LEVEL] == 0:
        return page_count(page) | mark
    for i in range(page_count(page)):
        one = ref_records(s, ref_at(page, i))
        if (one & ~REF_SPILLED) >> 40:
            return ~REF_SPILLED
        records += one & ~REF_SPILLED
        mark |= one & REF_SPILLED
    return records | mark


# -- generations -------------------------------------------------------------------------------------------------------
cdef int entries_check(const Shape *s, const uint8_t *page, int64_t at, int64_t n, uint64_t most, int slot, Fault *f) noexcept nogil:
    """S3 of the `n` dated entries from byte `at` of a page on: none is younger than what it stands in. `slot`: -1, each is one."""
    cdef int64_t i
    at += 8 * s.copies + 4
    for i in range(n):
        if ld64(page + at + i * s.dated.entry) > most:
            return refuse(f, "overflow page generation", slot if slot >= 0 else <int> i, at + i * s.dated.entry, "at most", most,
                          ld64(page + at + i * s.dated.entry))
    return OK


cdef int spilled_dates(Shape *s, const uint8_t *page, int i, const uint8_t *body, Fault *f) noexcept nogil:
    """S3 of the spilled value in slot `i`: the cell, and what it names."""
    cdef const Form *form = form_of(s, body)
    cdef int depth, tops
    if ld64(body + 8) > ld64(page + OFF_GENERATION):
        return refuse(f, "spilled value generation", i, body + 8 - page, "at most", ld64(page + OFF_GENERATION), ld64(body + 8))
    if not form.dated:
        return OK
    tops = spill_tops(s.page_size, form, <int64_t> ld64(body), &depth)
    return entries_check(s, page, body + SPILL_FIXED - page, tops, ld64(body + 8), i, f)


cdef int dates_check(Shape *s, const uint8_t *page, int spilled, Fault *f) noexcept nogil:
    """P6 for a page with right insides."""
    cdef uint64_t most = ld64(page + OFF_GENERATION)
    cdef const uint8_t *body
    cdef int i, n = page_count(page) if page[OFF_LEVEL] or spilled else 0
    for i in range(n):
        if page[OFF_LEVEL]:
            if ref_generation(s, ref_at(page, i)) > most:
                return refuse(f, "reference generation", i, ref_at(page, i) + 8 * s.copies + 4 - page, "at most", most,
                              ref_generation(s, ref_at(page, i)))
            continue
        body = spill_at(s, page, i)
        if body != NULL and spilled_dates(s, page, i, body, f) != OK:
            return f.code
    return OK
