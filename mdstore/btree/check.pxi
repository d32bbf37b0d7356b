# Checking a page that came from a device, before any other byte of it is used.

cdef inline int64_t prefix_most(int64_t size) noexcept nogil:
    """The longest byte string whose length a descriptor's size leaves room for: 1, 2 or 4 bytes; a fixed one is checked by itself."""
    return 255 if size == -1 else 65535 if size == -2 else 1 << 40


cdef const char *key_fault(Shape *s, const uint8_t *key, int klen, bint separator) noexcept nogil:
    """What is wrong with a stored key, or NULL."""
    cdef int base = klen
    if klen > s.key_max:
        return "key too long"
    if s.duplicates:
        if klen < 2 or dup_split(key, klen) > klen - 2:
            return "key without its own length"
        base = dup_split(key, klen)
    if s.base_key > 0 and base != s.base_key and not (separator and s.plain):
        return "key size"
    if s.base_key == -1 and base > 255:
        return "key size"
    if s.duplicates and (klen - 2 - base > prefix_most(s.base_value) or (s.base_value >= 0 and klen - 2 - base != s.base_value)):
        return "value size"
    if s.comparator == CMP_PAIR:
        if base < 4 or 4 + ld16(key) > base or 4 + ld16(key) + ld16(key + 2 + ld16(key)) != base:
            return "pair key"
    return NULL


cdef const char *cell_fault(Shape *s, const uint8_t *page, int i, int heap, int *size) noexcept nogil:
    cdef int cap = s.page_size, off = ld16(slot_at(page, i) + 4), klen = klen_at(page, i), v
    cdef uint64_t length
    if off < heap or off + klen > cap or off >= cap:
        return "cell outside the heap"
    if page[OFF_LEVEL]:
        size[0] = klen + s.ref_size
    elif s.fixed_value >= 0:
        size[0] = klen + s.fixed_value
    else:
        if off + klen + 2 > cap:
            return "cell outside the heap"
        v = ld16(page + off + klen)
        size[0] = klen + 2 + v
        if v >= SPILL_DATED:
            if off + klen + 2 + SPILL_FIXED > cap:
                return "cell outside the heap"
            length = ld64(page + off + klen + 2)
            if length == 0 or length > <uint64_t> 1 << 30 or ld64(page + off + klen + 10) == IN_MEMORY:
                return "spilled value"
            if <int64_t> length > prefix_most(s.value_size) or (s.value_size > 0 and <int64_t> length != s.value_size):
                return "value size"
            size[0] = klen + 2 + spill_body(s, form_of(s, page + off + klen + 2), <int64_t> length)
        elif v > s.value_inline or v > prefix_most(s.value_size) or (s.value_size > 0 and v != s.value_size):
            return "value size"
    if size[0] == 0:
        size[0] = 1
    if off + size[0] > cap:
        return "cell outside the heap"
    if page[OFF_LEVEL] == 0 and size[0] + 8 > s.cell_max:
        return "cell size"
    return NULL


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


cdef const char *page_check(Shape *s, const uint8_t *page, int *spilled) noexcept nogil:
    """P1 to P4 for a page with a right CRC; what is wrong, or NULL. Everything read later is inside the page."""
    cdef int n = page_count(page), cap = s.page_size, heap, dead, i, size = 0, total = 0, first, skip, klen
    cdef const char *fault
    cdef uint8_t *slot
    cdef uint64_t taken[PAGE_MAX / 64]
    memset(taken, 0, cap / 8)
    if page[OFF_KIND] != (KIND_INDEX if page[OFF_LEVEL] else KIND_LEAF) or page[OFF_LEVEL] >= HEIGHT_MAX:
        return "page kind"
    if ld32(page + OFF_HEAP) > <uint32_t> cap or ld32(page + OFF_DEAD) > <uint32_t> cap:
        return "heap bounds"
    heap = <int> ld32(page + OFF_HEAP)
    dead = <int> ld32(page + OFF_DEAD)
    if HEADER + 8 * n > heap or ld16(page + OFF_RESERVED) or (n == 0 and page[OFF_LEVEL]):
        return "record count"
    for i in range(HEADER + 8 * n, heap):
        if page[i]:
            return "bytes in the gap"
    first = 1 if page[OFF_LEVEL] else 0
    skip = ld16(page + OFF_SKIP)
    if skip and not s.plain:
        return "prefix"
    spilled[0] = 0
    for i in range(n):
        fault = cell_fault(s, page, i, heap, &size)
        if fault != NULL:
            return fault
        if not claim(taken, ld16(slot_at(page, i) + 4), size):
            return "cells overlap"
        total += size
        slot = slot_at(page, i)
        klen = ld16(slot + 6)
        if i < first:
            if klen or ld32(slot):
                return "first separator"
        else:
            fault = key_fault(s, cell_at(page, i), klen, first == 1)
        if fault != NULL:
            return fault
        if i >= first:
            if klen < skip or (skip and i > first and memcmp(cell_at(page, i), cell_at(page, i - 1), skip)):
                return "prefix"
            if ld32(slot) != head_of(s, cell_at(page, i), klen, skip):
                return "slot head"
        if i > first:
            if ld32(slot) < ld32(slot - 8) or (ld32(slot) == ld32(slot - 8) and compare(
                    s, cell_at(page, i - 1), klen_at(page, i - 1), cell_at(page, i), klen) >= 0):
                return "key order"
        if page[OFF_LEVEL] == 0 and spill_at(s, page, i) != NULL:
            spilled[0] += 1
    if total + dead != cap - heap:
        return "heap size"
    return NULL


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
