# Read-repair: bad copies are written again from a good one.
#
# A reference says where a copy should lie, and a forged one may say anything, under a right checksum. So nothing is written over that could
# be another's:
#  C1  a copy is repaired only at an address that pages may have (Pager.page_bounds), on the device, and to which no page (of more than one
#      copy: no first one) waits to be written
#  C2  nor where a page lies that is sound by itself, unless it is an earlier one of the same tree and level: that a write which was lost
#      leaves behind. The same generation is another page's: an owner of freed pages gives no address twice in one
# Data pages of long values, and what owners keep in blocks of their own, have no mark of their own: one of those is not told from junk.

cdef bint is_sound(const uint8_t *page, int page_size) noexcept nogil:
    """Whether bytes are a page by their own word: the magic, and the checksum in the header."""
    return ld32(page + OFF_MAGIC) == PAGE_MAGIC and ld32(page + OFF_CRC) == crc32c_update(0, page + 4, page_size - 4, 0)


cdef inline bint overflow_kind(const uint8_t *page) noexcept nogil:
    return page[OFF_KIND] == KIND_SPILL or page[OFF_KIND] == KIND_DATED


cdef bint is_earlier(const uint8_t *there, const uint8_t *page) noexcept nogil:
    """Whether a sound page may be what the place held before `page` was to be written to it."""
    return (ld64(there + OFF_TREE) == ld64(page + OFF_TREE) and there[OFF_LEVEL] == page[OFF_LEVEL]
            and overflow_kind(there) == overflow_kind(page) and ld64(there + OFF_GENERATION) < ld64(page + OFF_GENERATION))


cdef bint is_awaited(PagerCore *p, uint64_t address) noexcept nogil:
    """Whether a page waits to be written to an address, and none of its copies need be right yet."""
    cdef bint found
    spin_lock(&p.spin)
    found = map_find(p, address) != NULL
    spin_unlock(&p.spin)
    return found


cdef int may_repair(TreeCore *t, uint64_t address, int level, const uint8_t *page, bint is_data, bint *may, Fault *f) noexcept nogil:
    """C1 and C2 for a copy of `page`. A fault: an interrupt. Cost: the page that lies there."""
    cdef PagerCore *p = t.p
    cdef Fault other
    cdef uint8_t *there
    memset(&other, 0, sizeof(Fault))
    may[0] = False
    there = <uint8_t *> take(p.page_size)
    if there != NULL and address_check(t, address, level, &other) == OK and not is_awaited(p, address):
        may[0] = device_read(p, address, 1, there, &other) != OK or not is_sound(there, p.page_size) or (
            not is_data and is_earlier(there, page))
    free(there)
    if is_interrupt(&other):
        f[0] = other
        return E_PYTHON
    return fault_forget(&other)


cdef int repair_copy(TreeCore *t, uint64_t address, int level, const uint8_t *page, bint is_data, Fault *f) noexcept nogil:
    """Rewrite a bad copy from a good one, where it may be. Where it may not, or the device refuses, it is left as it is and counted (the
    data was read all the same). A fault: an error of another kind, such as an interrupt from the keyboard."""
    cdef PagerCore *p = t.p
    cdef bint may
    if may_repair(t, address, level, page, is_data, &may, f) != OK:
        return f.code
    if not may:
        at_add64(&p.copies_left, 1)
        return OK
    with gil:
        try:
            (<Pager> p.owner).device.write(address * p.page_size, [page[:p.page_size]])
            at_add64(&p.copies_repaired, 1)
        except MdstoreError:
            at_add64(&p.copies_left, 1)
        except BaseException as error:
            Py_INCREF(error)
            f.error = <void *> error
            f.code = E_PYTHON
            return E_PYTHON
    return OK
