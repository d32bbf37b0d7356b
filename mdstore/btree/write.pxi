# Writing into values by range: a spilled one is patched, any other is read, changed and put anew.

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
            sheet_drop(w.t.p, v.sheets[i])
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
        spill_drop(t.p, old)


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
    w.start = w.offset / t.s.page_size
    w.start = min(w.start, count) if w.end > count else w.start
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
            sheet_drop(t.p, w.made[i])
        if w.v != old:
            spill_drop(t.p, w.v)
    free(w.made)
    free(<void *> w.item.cell)
    return code


cdef int write_part(TreeCore *t, const uint8_t *key, int klen, int64_t offset, const uint8_t *data, int64_t n, int64_t most,
                    bint *done, Fault *f) noexcept nogil:
    """Overwrite `n` bytes (at least one) inside a spilled value, or at its end, which it then is longer for (`most` bytes at most). `done` False:
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
