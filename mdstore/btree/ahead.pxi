# Reading ahead of a lock what a change will look at under it, so that no one waits meanwhile: only a help, each of these may fail. What
# was damaged, or was changed since, is read again under the lock, which then tells of it or finds that it is right.
#
#  A1  a page of a long value is taken from `TreeCore.ahead` only by the entry that names it, which it is verified against: meanwhile the
#      value may have been changed, and its pages be others'
#  A2  what is read ahead takes no more memory than half the cache

cdef int64_t TO_THE_END = 1 << 62


# -- what clones share -------------------------------------------------------------------------------------------------
cdef bint is_shared(TreeCore *t, uint64_t address) noexcept nogil:
    """Whether clones reach an address too: then nothing below it is given up. The caller holds pager.rw."""
    cdef TreeCore *refs = t.p.refs
    cdef Fault ignored
    cdef int64_t extra
    if refs == NULL or refs == t or records_of(refs) == 0:
        return False
    memset(&ignored, 0, sizeof(Fault))
    rw_lock_shared(&refs.rw)
    extra = extra_of(refs, address, &ignored)
    rw_unlock_shared(&refs.rw)
    fault_forget(&ignored)
    return extra != 0


cdef bint is_shared_now(TreeCore *t, uint64_t address) noexcept nogil:
    """The same with no lock held: it may be so no longer."""
    cdef bint shared
    rw_lock_shared(&t.p.rw)
    shared = is_shared(t, address)
    rw_unlock_shared(&t.p.rw)
    return shared


# -- pages of long values ----------------------------------------------------------------------------------------------
cdef void ahead_free(Ahead *a) noexcept nogil:
    free(a.found)
    free(a.pages)
    free(a)


cdef bint ahead_found(TreeCore *t, const Form *form, const uint8_t *entry, int level, int64_t count, uint64_t generation,
                      uint8_t *into) noexcept nogil:
    """Copy the page that an entry names, where it was read ahead."""
    cdef Ahead *a = t.ahead
    cdef AheadPage wanted
    cdef AheadPage *held
    cdef Fault ignored
    wanted.address = ref_address(entry, 0)
    held = <AheadPage *> bsearch(&wanted, a.found, a.n, sizeof(AheadPage), &by_ahead)
    if held == NULL:
        return False
    memcpy(into, a.pages + held.number * t.s.page_size, t.s.page_size)
    return spill_verify(t, form, into, ref_crc(&t.s, entry), level, count, generation, held.address, &ignored) == OK


cdef int by_ahead(const void *a, const void *b) noexcept nogil:
    cdef uint64_t x = (<AheadPage *> a).address, y = (<AheadPage *> b).address
    return (x > y) - (x < y)


cdef void ahead_sort(Ahead *a) noexcept nogil:
    """All is read; NULL: nothing was."""
    if a != NULL:
        qsort(a.found, a.n, sizeof(AheadPage), &by_ahead)


cdef int ahead_room(Ahead *a, int64_t page_size) noexcept nogil:
    """Room for one page more."""
    cdef AheadPage *found
    cdef uint8_t *pages
    cdef int64_t cap = min(2 * a.cap + 2, a.n + a.room / page_size)
    if a.room < page_size:
        return E_MEMORY
    if a.n < a.cap:
        return OK
    found = <AheadPage *> take_more(a.found, cap * sizeof(AheadPage))
    if found == NULL:
        return E_MEMORY
    a.found = found
    pages = <uint8_t *> take_more(a.pages, cap * page_size)
    if pages == NULL:
        return E_MEMORY
    a.pages = pages
    a.cap = cap
    return OK


cdef int64_t ahead_read(TreeCore *t, Ahead *a, const Form *form, const uint8_t *entry, int level, int64_t count,
                        uint64_t generation) noexcept nogil:
    """Read the first copy of the page that an entry names; its number, or -1 where it cannot be had. No lock is held."""
    cdef PagerCore *p = t.p
    cdef uint64_t address = ref_address(entry, 0)
    cdef Fault ignored
    cdef uint8_t *page
    cdef int code = OK
    memset(&ignored, 0, sizeof(Fault))
    if at_get32(<int32_t *> &p.lent.closed) or ahead_room(a, p.page_size) != OK:
        return -1
    page = a.pages + a.n * p.page_size
    meet(MEET_ASIDE)
    if not sealed_page(p, address, page):
        code = device_read(p, address, 1, page, &ignored)
    if code == OK:
        code = spill_verify(t, form, page, ref_crc(&t.s, entry), level, count, generation, address, &ignored)
    fault_forget(&ignored)
    if code != OK:
        return -1
    a.found[a.n].address = address
    a.found[a.n].number = a.n
    a.n += 1
    a.room -= p.page_size
    return a.n - 1


cdef void ahead_below(TreeCore *t, Ahead *a, const Form *form, const uint8_t *tops, int64_t above, int64_t n, int depth, int64_t length,
                      uint64_t generation, int64_t first, int64_t end) noexcept nogil:
    """Read the index pages that lead to bytes `first` to `end` of `length`, and the data pages that these cut. The `n` entries to begin
    with stand in page `above`, or (-1) in a cell, at `tops`."""
    cdef const Shape *s = &t.s
    cdef int64_t span = s.page_size, i, below, page
    cdef uint8_t entry[REF_MAX]
    cdef uint64_t own
    cdef int d
    for d in range(depth):
        span *= form.fan
    for i in range(max(first, 0) / span, min(n, div_up(min(end, length), span))):
        memcpy(entry, (tops if above < 0 else a.pages + above * s.page_size + HEADER) + i * form.entry, form.entry)
        own = entry_generation(s, form, entry, generation)
        if depth == 0:
            if first > i * span or end < (i + 1) * span:
                ahead_read(t, a, form, entry, 0, 0, own)
            continue
        if form.dated and is_shared_now(t, ref_address(entry, 0)):
            continue
        below = min(span, length - i * span)
        page = ahead_read(t, a, form, entry, depth, div_up(below, span / form.fan), own)
        if page >= 0:
            ahead_below(t, a, form, tops, page, div_up(below, span / form.fan), depth - 1, below, own, first - i * span, end - i * span)


cdef Ahead *ahead_new(TreeCore *t) noexcept nogil:
    cdef Ahead *a = <Ahead *> take_zeroed(1, sizeof(Ahead))
    if a != NULL:
        a.room = at_get64(&t.p.cache_bytes) / 2
    return a


cdef void ahead_value(TreeCore *t, Ahead **a, const uint8_t *body, int64_t first, int64_t end) noexcept nogil:
    """Read what a change of bytes `first` to `end` of the value behind a copied body looks at. Behind the value's end that is the index pages
    above its last page."""
    cdef const Form *form = form_of(&t.s, body)
    cdef int64_t length = <int64_t> ld64(body)
    cdef int depth, tops = spill_tops(t.s.page_size, form, length, &depth)
    if first / t.s.page_size >= div_up(length, t.s.page_size):
        first = (length - 1) / t.s.page_size * t.s.page_size  # whole pages, so that none is read
        end = TO_THE_END
    if depth == 0 and first % t.s.page_size == 0 and end == TO_THE_END:
        return
    if not form.dated and is_shared_now(t, ref_address(body + SPILL_FIXED, 0)):
        return
    if a[0] == NULL:
        a[0] = ahead_new(t)
    if a[0] != NULL:
        ahead_below(t, a[0], form, body + SPILL_FIXED, -1, tops, depth, length, ld64(body + 8), first, end)


cdef const uint8_t *long_value(TreeCore *t, Node *leaf, const uint8_t *key, int klen) noexcept nogil:
    """The body of a key's value where it has spilled; else NULL. Leaves with such values are changed under the exclusive lock alone."""
    cdef bint found
    cdef int pos
    if leaf.spilled == 0:
        return NULL
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, &found)
    return spill_at(&t.s, page_of(leaf), pos) if found else NULL


cdef bint is_path_shared(TreeCore *t, const uint8_t *key, int klen) noexcept nogil:
    """Whether clones share a page on the path to a key, as far as it is in memory: then they share what its leaf names. The caller holds
    tree.rw; pager.rw comes before that, so it is not waited for."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef const uint8_t *ref = t.ref
    cdef bint shared = False
    cdef int i
    if not rw_try_shared(&t.p.rw):
        return False
    while n != NULL and not shared:
        shared = not unsealed(n) and is_shared(t, ref_address(ref, 0))
        if n.level == 0:
            break
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        ref = ref_at(page_of(n), i)
        n = kid_of(n, i)
    rw_unlock_shared(&t.p.rw)
    return shared


cdef int bring_value(TreeCore *t, const uint8_t *key, int klen, int64_t first, int64_t end, Ahead **a, Fault *f) noexcept nogil:
    """Have the leaf of a key in memory, and read ahead what a change of bytes `first` to `end` of a long value there looks at. A fault is
    that of the leaf."""
    cdef Node *leaf
    cdef FoundSpill s
    cdef const uint8_t *body = NULL
    cdef int code = lock_leaf(t, key, klen, &leaf, f)
    if code == OK:
        body = long_value(t, leaf, key, klen)
    if body != NULL and is_path_shared(t, key, klen):
        body = NULL
    if body != NULL:
        found_begin(t, body, &s)
    core_unlock_shared(t)
    if body == NULL:
        return code
    if s.v == NULL:
        ahead_value(t, a, s.copy + 2, first, end)
        ahead_sort(a[0])
    found_end(t, &s)
    return code


# -- index pages of a range --------------------------------------------------------------------------------------------
cdef struct Walk:        # over the lowest index pages of a range
    Range *range
    Aside aside
    int64_t room         # bytes that pages read for it may have
    Ahead *ahead         # pages of the long values in it
    FoundSpill *values   # met below the page where it is, and not yet read
    int64_t values_n
    int64_t values_cap
    int klen             # of the key where it goes on; -1: at the first page
    uint8_t key[1100]


cdef int walk_to(TreeCore *t, Walk *w, const uint8_t *ref, int level, Node **slot, Node **out, Fault *f) noexcept nogil:
    """The node in `slot`, NULL where clones share its page; E_ASIDE: it is to be read first."""
    out[0] = <Node *> at_getp(slot)
    if out[0] != NULL and unsealed(out[0]):
        return OK
    if is_shared(t, ref_address(ref, 0)):
        out[0] = NULL
        return OK
    if out[0] != NULL:
        touch(out[0])
        return OK
    return aside_take(t, &w.aside, ref, level, slot, out, f)


cdef bint is_within(TreeCore *t, Range *g, const uint8_t *key, int klen) noexcept nogil:
    return (g.start == NULL or compare(&t.s, g.start, g.start_len, key, klen) <= 0) and (
        g.stop == NULL or compare(&t.s, key, klen, g.stop, g.stop_len) < 0)


cdef void walk_values(TreeCore *t, Walk *w, Node *leaf) noexcept nogil:
    """List the long values of a leaf that lie in the range and have index pages."""
    cdef FoundSpill *grown
    cdef FoundSpill s
    cdef const uint8_t *body
    cdef int i, depth
    for i in range(node_count(leaf) if leaf.spilled else 0):
        body = spill_at(&t.s, page_of(leaf), i)
        if body == NULL or not is_within(t, w.range, cell_at(page_of(leaf), i), klen_at(page_of(leaf), i)):
            continue
        if w.values_n == w.values_cap:
            grown = <FoundSpill *> take_more(w.values, (2 * w.values_cap + 8) * sizeof(FoundSpill))
            if grown == NULL:
                return
            w.values = grown
            w.values_cap = 2 * w.values_cap + 8
        found_begin(t, body, &s)
        found_end(t, &s)
        if s.v != NULL:
            continue
        spill_tops(t.s.page_size, form_of(&t.s, s.copy + 2), <int64_t> ld64(s.copy + 2), &depth)
        if depth:
            w.values[w.values_n] = s
            w.values_n += 1


cdef void walk_read(TreeCore *t, Walk *w) noexcept nogil:
    """Read ahead what leads to the pages of the values listed. No lock is held."""
    cdef int64_t i
    for i in range(w.values_n):
        if w.ahead == NULL:
            w.ahead = ahead_new(t)
        if w.ahead != NULL:
            w.ahead.room = w.room
            ahead_value(t, &w.ahead, w.values[i].copy + 2, 0, TO_THE_END)
            w.room = w.ahead.room
    w.values_n = 0


cdef inline void walk_on(Walk *w, const uint8_t *key, int klen) noexcept nogil:
    """The next step begins at a key."""
    memcpy(w.key, key, klen)
    w.klen = klen


cdef int walk_leaves(TreeCore *t, Walk *w, Node *n, int first, Fault *f) noexcept nogil:
    """Leaves below a lowest index page, from child `first` on, in which a value has spilled: those alone are read by who gives them up."""
    cdef Node *leaf
    cdef int code = OK, i = first
    while i < node_count(n) and code == OK:
        if w.range.stop != NULL and i and compare(&t.s, cell_at(page_of(n), i), klen_at(page_of(n), i), w.range.stop, w.range.stop_len) >= 0:
            break
        if ref_records(&t.s, ref_at(page_of(n), i)) & REF_SPILLED:
            code = walk_to(t, w, ref_at(page_of(n), i), 0, &n.kids[i], &leaf, f)
            if code == E_ASIDE and i > first:  # it goes on here, with what was met so far read
                walk_on(w, cell_at(page_of(n), i), klen_at(page_of(n), i))
            elif code == OK and leaf != NULL:
                walk_values(t, w, leaf)
        i += 1
    return code


cdef int walk_step(TreeCore *t, Walk *w, bint *done, Fault *f) noexcept nogil:
    """Descend to the lowest index page where the walk is, and go on behind it, or behind a page that clones share. E_ASIDE: something
    has to be read first."""
    cdef Node *n
    cdef const uint8_t *end = NULL
    cdef int i = 0, end_len = 0, code
    w.values_n = 0
    if records_of(t) == 0 or (t.level == 0 and not ref_records(&t.s, t.ref) & REF_SPILLED):
        done[0] = True
        return OK
    code = walk_to(t, w, t.ref, t.level, &t.root, &n, f)
    while code == OK and n != NULL and n.level:
        i = index_find(&t.s, page_of(n), n.cap, w.key, w.klen) if w.klen >= 0 else 0
        if n.level == 1:
            code = walk_leaves(t, w, n, i, f)
            break
        if i + 1 < node_count(n):
            end = cell_at(page_of(n), i + 1)
            end_len = klen_at(page_of(n), i + 1)
        code = walk_to(t, w, ref_at(page_of(n), i), n.level - 1, &n.kids[i], &n, f)
    if code == OK and n != NULL and n.level == 0:
        walk_values(t, w, n)
    if code != OK:
        return code
    done[0] = end == NULL or (w.range.stop != NULL and compare(&t.s, end, end_len, w.range.stop, w.range.stop_len) >= 0)
    if not done[0]:
        walk_on(w, end, end_len)
    return OK


cdef Ahead *bring_range(TreeCore *t, Range *g) noexcept nogil:
    """Have the index pages of a range in memory, and the leaves in which values have spilled, as many as may be; and read ahead the index
    pages of those values (NULL: none)."""
    cdef Walk w
    cdef Fault ignored
    cdef bint done = False
    cdef int code = OK
    if g.start != NULL and g.start_len > <int> sizeof(w.key):  # no key is so long
        return NULL
    if g.start != NULL and g.stop != NULL and compare(&t.s, g.start, g.start_len, g.stop, g.stop_len) >= 0:
        return NULL
    memset(&w, 0, sizeof(Walk))
    memset(&ignored, 0, sizeof(Fault))
    aside_begin(&w.aside)
    w.range = g
    w.room = at_get64(&t.p.cache_bytes) / 2
    w.klen = g.start_len if g.start != NULL else -1
    if g.start != NULL:
        memcpy(w.key, g.start, g.start_len)
    while not done and code == OK:
        rw_lock_shared(&t.p.rw)
        rw_lock_shared(&t.rw)
        code = walk_step(t, &w, &done, &ignored)
        rw_unlock_shared(&t.rw)
        rw_unlock_shared(&t.p.rw)
        if code == OK or code == E_ASIDE:
            walk_read(t, &w)
        if code == E_ASIDE and w.room >= t.s.page_size:
            code = aside_read(t, &w.aside, &ignored)
            w.room -= t.s.page_size + NODE_SIZE
    aside_end(t, &w.aside)
    free(w.values)
    fault_forget(&ignored)
    ahead_sort(w.ahead)
    return w.ahead
