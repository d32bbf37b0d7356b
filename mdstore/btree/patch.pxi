# Writing into spilled values by range: what changes is in memory until a seal, the rest stays on the device.
#
# Invariants of patched values:
#  H1  a patched value is changed only while one slot has it (S2), a sheet only while one value has it
#  H2  a data page that has a sheet, and every index page above it, is owned: the next seal writes it, and the address it had was given
#      up when it became so. What is not owned, the tree still reaches on the device
#  H3  entries[d][i] is known where the index page above it (of level d + 1, number i / fan) was read, or where d is the top level

cdef enum:
    MARK_READ = 1
    MARK_OWNED = 2

cdef struct Patch:       # one write into a value
    TreeCore *t
    Spill *v
    int64_t offset
    int64_t size
    const uint8_t *data
    int64_t length       # of the value afterwards
    int64_t first        # data pages whose index pages become owned: [first, end),
    int64_t start        # data pages that are written: [start, end)
    int64_t end
    Sheet **made         # for [start, end), where there was none that may be changed
    Item item            # the cell, where it gets another size; else without bytes


cdef inline uint8_t *sheet_bytes(Sheet *sheet) noexcept nogil:
    return <uint8_t *> sheet + sizeof(Sheet)


cdef Sheet *sheet_new(PagerCore *p) noexcept nogil:
    cdef Sheet *sheet = <Sheet *> take(sizeof(Sheet) + p.page_size)
    if sheet != NULL:
        sheet.refs = 1
        at_add64(&p.dirty_bytes, p.page_size)
    return sheet


cdef void sheet_free(PagerCore *p, Sheet *sheet) noexcept nogil:
    if sheet != NULL and at_add32(&sheet.refs, -1) == 0:
        at_add64(&p.dirty_bytes, -p.page_size)
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
    v.refs = 1
    if patch_room(&t.s, v, length) != OK:
        spill_free(t.p, v)
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
    c.refs = 1
    if patch_room(&t.s, c, v.length) != OK:
        spill_free(t.p, c)
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


# -- writing: what may fail, first -------------------------------------------------------------------------------------
cdef int patch_know(TreeCore *t, Spill *v, int level, int64_t i, Fault *f) noexcept nogil:
    """Read an index page, so that what lies below it can be owned."""
    cdef const Shape *s = &t.s
    cdef uint8_t *entry = entry_of(s, v, level, i)
    cdef int64_t n = min(<int64_t> s.dated.fan, v.count[level - 1] - i * s.dated.fan)
    cdef uint8_t *page
    cdef int code
    if v.marks[level][i] & MARK_READ:
        return OK
    page = <uint8_t *> take(s.page_size)
    if page == NULL:
        return fail(f, E_MEMORY, "spilled value")
    code = spill_page(t, &s.dated, entry, 1, level, n, entry_generation(s, &s.dated, entry, 0), page, f)
    if code == OK:
        memcpy(entry_of(s, v, level - 1, i * s.dated.fan), page + HEADER, n * s.dated.entry)
        v.marks[level][i] |= MARK_READ
    free(page)
    return code


cdef int patch_take(Release *r, Patch *w, int level, int64_t i, bint shared, Fault *f) noexcept nogil:
    """List what owning page `i` of a level, and what has to be owned below it, gives up. `shared`: a clone reaches it too, through the
    page above; then it keeps what we let go of, and what we do not change is reached by both."""
    cdef const Shape *s = &r.t.s
    cdef Spill *v = w.v
    cdef uint8_t *entry = entry_of(s, v, level, i)
    cdef int64_t span = level_span(s, level), k, below
    cdef int code = OK, copy
    if (i + 1) * span <= (w.first if level else w.start) or i * span >= w.end:
        return release_gain(r, ref_address(entry, 0), level, f) if shared else OK
    if not is_patched(v, level, i):
        if not shared:
            code = release_loss(r, ref_address(entry, 0), &shared, f)
        for copy in range(0 if shared else s.copies):
            if code == OK:
                code = release_page(r, ref_address(entry, copy), entry_generation(s, &s.dated, entry, 0), level, f)
    if level == 0 or code != OK:
        return code
    code = patch_know(r.t, v, level, i, f)
    below = min(<int64_t> s.dated.fan, v.count[level - 1] - i * s.dated.fan)
    for k in range(below):
        if code == OK:
            code = patch_take(r, w, level - 1, i * s.dated.fan + k, shared, f)
    return code


cdef int patch_sheet(Patch *w, int64_t i, Fault *f) noexcept nogil:
    """Have a sheet for data page `i` that may be changed, holding what the page holds and the write leaves."""
    cdef TreeCore *t = w.t
    cdef Spill *v = w.v
    cdef int64_t size = t.s.page_size
    cdef Sheet *old = v.sheets[i] if i < v.count[0] else NULL
    cdef Sheet *made
    cdef uint8_t *entry
    if old != NULL and at_get32(&old.refs) == 1:
        return OK
    made = sheet_new(t.p)
    if made == NULL:
        return fail(f, E_MEMORY, "spilled value")
    w.made[i - w.start] = made
    if w.offset <= i * size and w.offset + w.size >= (i + 1) * size:
        return OK
    if old != NULL:
        memcpy(sheet_bytes(made), sheet_bytes(old), size)
        return OK
    memset(sheet_bytes(made), 0, size)
    if i >= v.count[0]:
        return OK
    entry = entry_of(&t.s, v, 0, i)
    return spill_page(t, &t.s.dated, entry, 1, 0, 0, entry_generation(&t.s, &t.s.dated, entry, 0), sheet_bytes(made), f)


cdef int patch_cell(Patch *w, Path *path, int pos, Fault *f) noexcept nogil:
    """Where the cell gets another size: make it, and have all that putting it in the old one's place may need."""
    cdef TreeCore *t = w.t
    cdef const Form *form = &t.s.dated
    cdef Node *leaf = path.node[path.depth]
    cdef int klen = klen_at(page_of(leaf), pos), old = cell_size_at(&t.s, page_of(leaf), pos), code = OK
    cdef int size = klen + 2 + spill_body(&t.s, form, w.length)
    if size == old:
        return OK
    w.item.cell = <uint8_t *> take(size)
    if w.item.cell == NULL:
        return fail(f, E_MEMORY, "record")
    memcpy(<uint8_t *> w.item.cell, cell_at(page_of(leaf), pos), klen + 2)
    w.item.size = size
    w.item.klen = klen
    if leaf.cap < <uint32_t> t.s.page_size and page_free(page_of(leaf)) + old < size:
        code = grow_page(t, path, size, f)
        leaf = path.node[path.depth]
    if code == OK and page_free(page_of(leaf)) + old < size:
        code = reserve(t, path, 2 * t.s.key_max + t.s.ref_size + 8, f)
    return code


cdef int patch_prepare(Patch *w, Release *r, Fault *f) noexcept nogil:
    """All of a write that may fail. It changes nothing that is seen, but for the counts of shared pages, in its last step."""
    cdef Spill *v = w.v
    cdef int64_t i
    cdef int code
    w.made = <Sheet **> take_zeroed(w.end - w.start + 1, sizeof(Sheet *))
    if w.made == NULL or patch_room(&w.t.s, v, w.length) != OK:
        return fail(f, E_MEMORY, "spilled value")
    code = OK
    for i in range(v.count[v.depth]):
        if code == OK:
            code = patch_take(r, w, v.depth, i, False, f)
    for i in range(w.start, w.end):
        if code == OK:
            code = patch_sheet(w, i, f)
    return release_commit(r, f) if code == OK else code


# -- what cannot -------------------------------------------------------------------------------------------------------
cdef void patch_apply(Patch *w) noexcept nogil:
    """Own the pages, and write into the sheets."""
    cdef const Shape *s = &w.t.s
    cdef Spill *v = w.v
    cdef int64_t i, span, size = s.page_size, at, part, done = 0
    cdef int d
    patch_extent(s, v, w.length)
    for d in range(1, v.depth + 1):
        span = level_span(s, d)
        for i in range(w.first / span, (w.end - 1) / span + 1):
            if not v.marks[d][i] & MARK_OWNED:
                v.marks[d][i] = MARK_READ | MARK_OWNED
                v.owned += 1
                v.dirty += 1
    for i in range(w.start, w.end):
        if w.made[i - w.start] != NULL:
            v.dirty += v.sheets[i] == NULL
            sheet_free(w.t.p, v.sheets[i])
            v.sheets[i] = w.made[i - w.start]
            w.made[i - w.start] = NULL
    while done < w.size:
        at = w.offset + done
        part = min(w.size - done, size - at % size)
        memcpy(sheet_bytes(v.sheets[at / size]) + at % size, w.data + done, part)
        done += part


cdef void patch_place(Patch *w, Path *path, int pos, Spill *old) noexcept nogil:
    """Point the cell at the value. Where the cell gets another size, there is room (patch_cell)."""
    cdef TreeCore *t = w.t
    cdef Node *leaf = path.node[path.depth]
    cdef uint8_t *body = spill_at(&t.s, page_of(leaf), pos)
    cdef int size = spill_body(&t.s, &t.s.dated, w.length)
    cdef Fault never
    if w.item.cell != NULL:
        body = <uint8_t *> w.item.cell + w.item.klen + 2
    memset(body, 0, size)
    st64(body, w.length)
    st64(body + 8, IN_MEMORY)
    st64(body + 16, <uint64_t> <uintptr_t> w.v)
    if w.item.cell != NULL:
        leaf.spilled -= 1
        page_erase(&t.s, page_of(leaf), pos)
        insert_leaf(t, path, pos, &w.item, &never)
    if old != NULL and old != w.v:
        spill_free(t.p, old)


cdef int patch_write(Patch *w, Path *path, int pos, Fault *f) noexcept nogil:
    """Write into the dated value in slot `pos` of the owned leaf at the end of the path. All of it, or nothing and a fault."""
    cdef TreeCore *t = w.t
    cdef Node *leaf = path.node[path.depth]
    cdef uint8_t *body = spill_at(&t.s, page_of(leaf), pos)
    cdef Spill *old = spill_pointer(body)
    cdef int64_t before = old.dirty if old != NULL else 0, count = div_up(<int64_t> ld64(body), t.s.page_size), i
    cdef Release r
    cdef int code
    w.end = div_up(max(w.offset + w.size, w.length if w.length > <int64_t> ld64(body) else 0), t.s.page_size)
    w.start = w.offset / t.s.page_size if w.size else count
    w.start = min(w.start, count) if w.end > count else w.start
    if w.start == w.end:  # only a length that ends in the same page: a patched value always has something to be written
        w.start -= 1
    w.first = min(w.start, count - 1) if w.end > count else w.start
    w.v = old
    if old == NULL:
        code = spill_prove(t, body, count * <int64_t> (t.s.dated.entry + sizeof(Sheet *)), f)
        if code != OK:
            return code
        w.v = patch_new(t, body)
    elif at_get32(&old.refs) > 1:
        w.v = patch_copy(t, old)
    if w.v == NULL:
        return fail(f, E_MEMORY, "spilled value")
    code = patch_cell(w, path, pos, f)
    if code == OK:
        release_begin(&r, t, False)
        code = patch_prepare(w, &r, f)
        release_end(&r)
    if code == OK:
        patch_apply(w)
        t.dirty_spill += w.v.dirty - before
        patch_place(w, path, pos, old)
    else:
        for i in range(w.end - w.start if w.made != NULL else 0):
            sheet_free(t.p, w.made[i])
        if w.v != old:
            spill_free(t.p, w.v)
    free(w.made)
    free(<void *> w.item.cell)
    return code


cdef int write_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, const uint8_t *data, int64_t n, int64_t most,
                    bint *done, Fault *f) noexcept nogil:
    """Overwrite inside a spilled value, or at its end, which it then is longer for (`most` bytes at most). `done` False:
    `write_whole` is to do it (or it is not there), nothing changed: it lies in its leaf, is undated, or would grow, or is also
    a view's, before any seal. Caller holds tree.rw exclusively."""
    cdef Path path
    cdef Patch w
    cdef Node *leaf
    cdef Spill *v
    cdef uint8_t *body
    cdef bint found
    cdef int pos, code = find_leaf(t, key, klen, &leaf, f)
    done[0] = False
    if code != OK or leaf.spilled == 0:
        return code
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    body = spill_at(&t.s, page_of(leaf), pos) if found else NULL
    if body == NULL or not form_of(&t.s, body).dated:
        return OK
    memset(&w, 0, sizeof(Patch))
    w.t = t
    w.offset = offset
    w.size = n
    w.data = data
    w.length = max(<int64_t> ld64(body), offset + n)
    v = spill_pointer(body)
    if w.length > most or (v != NULL and v.data != NULL and w.length > v.length):
        return OK
    if n == 0 and w.length == <int64_t> ld64(body):
        done[0] = True
        return OK
    code = own_path(t, key, klen, &path, f)
    if code != OK:
        return code
    v = leaf_spill(path.node[path.depth], pos)
    if v == NULL or v.data == NULL:
        code = patch_write(&w, &path, pos, f)
        done[0] = code == OK
    elif at_get32(&v.refs) == 1:
        memcpy(v.data + offset, data, n)
        done[0] = True
    if done[0]:
        at_set32(<int32_t *> &t.is_dirty, 1)
    path_end(t, &path)
    return code


cdef int write_whole(TreeCore *t, const uint8_t *key, int klen, int64_t offset, const uint8_t *data, int64_t n, int64_t most,
                     int64_t *length, Fault *f) noexcept nogil:
    """Read a value, change it and put it anew. `length` receives what it would then have: -1 where the key is not there, more than
    `most` where it may not, and nothing changed. Caller holds pager.rw and tree.rw exclusively, since before `write_part`."""
    cdef Node *leaf
    cdef bint found
    cdef int pos, vlen, code = find_leaf(t, key, klen, &leaf, f)
    cdef int64_t old
    cdef const uint8_t *value
    cdef uint8_t *whole
    length[0] = -1
    if code != OK:
        return code
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    if not found:
        return OK
    value = value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen)
    old = vlen if vlen >= 0 else <int64_t> ld64(value)
    length[0] = max(old, offset + n)
    if length[0] > most:
        return OK
    if vlen < 0:
        code = spill_prove(t, value, old, f)
        if code != OK:
            return code
    whole = <uint8_t *> take(length[0] + 1)
    if whole == NULL:
        return fail(f, E_MEMORY, "value")
    if vlen < 0:
        code = spill_read(t, value, 0, whole, old, f)
    else:
        memcpy(whole, value, old)
    if code == OK:
        memset(whole + old, 0, length[0] - old)
        memcpy(whole + offset, data, n)
        code = put_slow(t, key, klen, whole, length[0], &found, f)
    free(whole)
    return code
