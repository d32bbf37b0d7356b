# Patched values: of a spilled value only what has changed is in memory until a seal, the rest stays on the device.
#
# Invariants of patched values:
#  H1  a patched value is changed only while one slot has it (S2), a sheet only while one value has it
#  H2  a data page that has a sheet, and every index page above it, is owned: the next seal writes it, and the address it had was given
#      up when it became so. What is not owned, the tree still reaches on the device
#  H3  entries[d][i] is known where the index page above it (of level d + 1, number i / fan) was read, or where d is the top level

cdef enum:
    MARK_READ = 1
    MARK_OWNED = 2


cdef inline uint8_t *sheet_bytes(Sheet *sheet) noexcept nogil:
    return <uint8_t *> sheet + sizeof(Sheet)


cdef Sheet *sheet_new(PagerCore *p) noexcept nogil:
    cdef Sheet *sheet = <Sheet *> take(sizeof(Sheet) + p.page_size)
    if sheet != NULL:
        sheet.refs = sheet.lives = 1
        at_add64(&p.dirty_bytes, p.page_size)
    return sheet


cdef void sheet_free(PagerCore *p, Sheet *sheet) noexcept nogil:
    """Let go of a reference that does not count among `lives`."""
    if sheet != NULL and at_add32(&sheet.refs, -1) == 0:
        at_add64(&p.held_bytes, -p.page_size)
        free(sheet)


cdef int64_t level_count(const Shape *s, int64_t length, int level) noexcept nogil:
    """Pages of a level of a dated value: data pages at level 0, index pages above."""
    cdef int64_t n = div_up(length, s.page_size)
    while level:
        n = div_up(n, s.dated.fan)
        level -= 1
    return n


cdef int64_t level_span(const Shape *s, int level) noexcept nogil:
    """Data pages below one page of a level."""
    cdef int64_t span = 1
    while level:
        span *= s.dated.fan
        level -= 1
    return span


cdef inline bint is_patched(Spill *v, int level, int64_t i) noexcept nogil:
    """Whether a page of a patched value is in memory, to be written by the next seal."""
    return (v.marks[level][i] & MARK_OWNED) != 0 if level else v.sheets[i] != NULL


cdef inline uint8_t *entry_of(const Shape *s, Spill *v, int level, int64_t i) noexcept nogil:
    return v.entries[level] + i * s.dated.entry


# -- making and freeing ------------------------------------------------------------------------------------------------
cdef void patch_free(PagerCore *p, Spill *v) noexcept nogil:
    """Free what a patched value has besides itself."""
    cdef int64_t i
    cdef int d
    for i in range(v.count[0] if v.sheets != NULL else 0):
        sheet_free(p, v.sheets[i])
    free(v.sheets)
    for d in range(SPILL_LEVELS):
        free(v.entries[d])
        free(v.marks[d])


cdef int more_room(void **array, int64_t count, int64_t room, int64_t size) noexcept nogil:
    """Replace an array by a larger one, zeros behind what it holds."""
    cdef void *grown = take_zeroed(room, size)
    if grown == NULL:
        return E_MEMORY
    if count:
        memcpy(grown, array[0], count * size)
    free(array[0])
    array[0] = grown
    return OK


cdef int patch_room(const Shape *s, Spill *v, int64_t length) noexcept nogil:
    """Have room for the pages of a value so long. What the value is does not change."""
    cdef int d, depth, code = OK
    cdef int64_t n, room
    spill_tops(s.page_size, &s.dated, length, &depth)
    for d in range(depth + 1):
        n = level_count(s, length, d)
        if n <= v.room[d]:
            continue
        room = n + n / 2 if v.room[d] else n
        code = more_room(<void **> &v.entries[d], v.count[d], room, s.dated.entry)
        if code == OK and d:
            code = more_room(<void **> &v.marks[d], v.count[d], room, 1)
        elif code == OK:
            code = more_room(<void **> &v.sheets, v.count[d], room, sizeof(Sheet *))
        if code != OK:
            return code
        v.room[d] = room
    return OK


cdef void patch_extent(const Shape *s, Spill *v, int64_t length) noexcept nogil:
    """Set the length and what follows from it; there is room."""
    cdef int d
    v.length = length
    spill_tops(s.page_size, &s.dated, length, &v.depth)
    for d in range(v.depth + 1):
        v.count[d] = level_count(s, length, d)


cdef Spill *patch_new(TreeCore *t, const uint8_t *body) noexcept nogil:
    """A patched value in which nothing has changed yet, from the cell of a dated one on the device; NULL without memory."""
    cdef int64_t length = <int64_t> ld64(body)
    cdef Spill *v = <Spill *> take_zeroed(1, sizeof(Spill))
    if v == NULL:
        return NULL
    v.refs = v.lives = 1
    if patch_room(&t.s, v, length) != OK:
        spill_drop(t.p, v)
        return NULL
    patch_extent(&t.s, v, length)
    memcpy(v.entries[v.depth], body + SPILL_FIXED, v.count[v.depth] * t.s.dated.entry)
    return v


cdef Spill *patch_copy(TreeCore *t, Spill *v) noexcept nogil:
    """Another patched value like one that a view or clone has too; they share the sheets. NULL without memory."""
    cdef Spill *c = <Spill *> take_zeroed(1, sizeof(Spill))
    cdef int64_t i
    cdef int d
    if c == NULL:
        return NULL
    c.refs = c.lives = 1
    if patch_room(&t.s, c, v.length) != OK:
        spill_drop(t.p, c)
        return NULL
    patch_extent(&t.s, c, v.length)
    c.dirty = v.dirty
    c.owned = v.owned
    for d in range(v.depth + 1):
        memcpy(c.entries[d], v.entries[d], v.count[d] * t.s.dated.entry)
        if d:
            memcpy(c.marks[d], v.marks[d], v.count[d])
    for i in range(v.count[0]):
        if v.sheets[i] != NULL:
            at_add32(&v.sheets[i].refs, 1)
            at_add32(&v.sheets[i].lives, 1)
            c.sheets[i] = v.sheets[i]
    return c


# -- reading, and giving up --------------------------------------------------------------------------------------------
cdef int patch_read(TreeCore *t, Spill *v, int64_t offset, uint8_t *into, int64_t want, Fault *f) noexcept nogil:
    """`want` bytes of a patched value: from its sheets, and from the device below the lowest entries known."""
    cdef const Shape *s = &t.s
    cdef int64_t i, n, part, begin, size = s.page_size
    cdef int d, code = OK
    while want and code == OK:
        i = offset / size
        begin = i * size
        n = 1
        d = 0
        if v.sheets[i] != NULL:
            part = min(want, size - (offset - begin))
            memcpy(into, sheet_bytes(v.sheets[i]) + (offset - begin), part)
        else:
            while d < v.depth and not v.marks[d + 1][i / s.dated.fan] & MARK_READ:
                d += 1
                i /= s.dated.fan
            while d == 0 and (i + n) * size < offset + want and v.sheets[i + n] == NULL and (
                    v.depth == 0 or (i + n) / s.dated.fan == i / s.dated.fan):
                n += 1
            begin = i * level_span(s, d) * size
            part = min(n * level_span(s, d) * size, v.length - begin)
            code = spill_entries(t, &s.dated, entry_of(s, v, d, i), d, part, 0, offset - begin, into,
                                 min(want, part - (offset - begin)), f)
            part = min(want, part - (offset - begin))
        offset += part
        into += part
        want -= part
    return code


cdef int patch_list(Release *r, Spill *v, int level, int64_t i, bint gains, Fault *f) noexcept nogil:
    """List what page `i` of a level of a patched value is, or reaches, on the device: as given up, or as reached by another tree too."""
    cdef const Shape *s = &r.t.s
    cdef int64_t below, k, span
    cdef uint8_t *entry = entry_of(s, v, level, i)
    cdef int code = OK
    if not is_patched(v, level, i):
        if gains:
            return release_gain(r, ref_address(entry, 0), level, f)
        span = level_span(s, level) * s.page_size
        return release_entries(r, &s.dated, entry, 1, level, min(span, v.length - i * span), 0, f)
    if level:
        below = min(<int64_t> s.dated.fan, v.count[level - 1] - i * s.dated.fan)
        for k in range(below):
            if code == OK:
                code = patch_list(r, v, level - 1, i * s.dated.fan + k, gains, f)
    return code


cdef int patch_release(Release *r, Spill *v, Fault *f) noexcept nogil:
    """The tree stops reaching what a value in memory still has on the device."""
    cdef int code = OK
    cdef int64_t i
    for i in range(v.count[v.depth] if v.data == NULL else 0):
        if code == OK:
            code = patch_list(r, v, v.depth, i, False, f)
    return code


cdef int patch_gain(Release *r, Spill *v, Fault *f) noexcept nogil:
    """Another tree now also reaches what a value in memory still has on the device."""
    cdef int code = OK
    cdef int64_t i
    for i in range(v.count[v.depth] if v.data == NULL else 0):
        if code == OK:
            code = patch_list(r, v, v.depth, i, True, f)
    return code
