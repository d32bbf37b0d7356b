# What a change gives up and whom it shares with: lists of freed pages and of counts to change, made before anything is touched
# and carried out at once.
#
# A change first does all that may fail (loads, copies, its lists), then what cannot. The one step between that may fail half
# way is the counting of shared pages; it is undone then, and where even that fails the tree is stopped (`t.broken`): it
# refuses changes until its owner opens it again.

cdef struct Release:
    TreeCore *t
    TreeCore *refs       # locked, where sharing has to be looked at; else NULL
    uint64_t *runs       # triples: address, pages, generation
    int64_t runs_n
    int64_t runs_cap
    uint64_t *gains      # addresses that one tree more reaches
    int64_t gains_n
    int64_t gains_cap
    uint64_t *losses     # addresses that one tree less reaches, and others still
    int64_t losses_n
    int64_t losses_cap
    int64_t records


cdef void release_begin(Release *r, TreeCore *t, bint sharing) noexcept nogil:
    """Start the lists of a change. The tree of shared addresses stays locked to the end where it has any entry (or `sharing` may make
    one): a page's count must not change between the look at it and its change. Gains are counted before losses, so that the
    tree never looks empty to those who look without the lock."""
    cdef TreeCore *refs = t.p.refs
    memset(r, 0, sizeof(Release))
    r.t = t
    if refs != NULL and refs != t and (sharing or records_of(refs)):
        rw_lock_exclusive(&refs.rw)
        r.refs = refs


cdef void release_end(Release *r) noexcept nogil:
    if r.refs != NULL:
        rw_unlock_exclusive(&r.refs.rw)
    free(r.runs)
    free(r.gains)
    free(r.losses)


cdef int words_room(uint64_t **words, int64_t n, int64_t *cap, int64_t more) noexcept nogil:
    cdef uint64_t *grown
    if n + more <= cap[0]:
        return OK
    grown = <uint64_t *> take_more(words[0], (2 * cap[0] + more + 9) * 8)
    if grown == NULL:
        return E_MEMORY
    words[0] = grown
    cap[0] = 2 * cap[0] + more + 9
    return OK


cdef int address_check(TreeCore *t, uint64_t address, int level, Fault *f) noexcept nogil:
    """A page that is given up, or counted, without having been read lies where pages may, and on the device, or was given by the
    owner."""
    cdef PagerCore *p = t.p
    cdef uint64_t first = <uint64_t> at_get64(<int64_t *> &p.first_page), end = <uint64_t> at_get64(<int64_t *> &p.end_page)
    if first <= address < min(end, <uint64_t> at_get64(<int64_t *> &p.pages_known)):
        return OK
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    if address < first:
        return refuse(f, "page address", -1, -1, "at least", first, address)
    if end < ADDRESS_END and address >= end:
        return refuse(f, "page address", -1, -1, "below", end, address)
    with gil:
        return ask_device(t, address, level, f)


cdef int ask_device(TreeCore *t, uint64_t address, int level, Fault *f) noexcept:
    """A device may have grown since it was asked last."""
    cdef uint64_t size
    try:
        size = (<Pager> t.p.owner).device.size_bytes // t.p.page_size
    except BaseException as error:
        Py_INCREF(error)
        f.error = <void *> error
        f.code = E_PYTHON
        return E_PYTHON
    know_pages(t.p, size)
    if address < size:
        return OK
    f.address = address
    f.tree_id = t.tree_id
    f.level = level
    return refuse(f, "page address outside the device", -1, -1, "below", size, address)


cdef int release_page(Release *r, uint64_t address, uint64_t generation, int level, Fault *f) noexcept nogil:
    cdef uint64_t *last = r.runs + r.runs_n - 3
    if address_check(r.t, address, level, f) != OK:
        return f.code
    if r.runs_n and last[0] + last[1] == address and last[2] == generation:
        last[1] += 1
        return OK
    if words_room(&r.runs, r.runs_n, &r.runs_cap, 3) != OK:
        return fail(f, E_MEMORY, "freed pages")
    r.runs[r.runs_n] = address
    r.runs[r.runs_n + 1] = 1
    r.runs[r.runs_n + 2] = generation
    r.runs_n += 3
    return OK


cdef int release_gain(Release *r, uint64_t address, int level, Fault *f) noexcept nogil:
    if address_check(r.t, address, level, f) != OK:
        return f.code
    if words_room(&r.gains, r.gains_n, &r.gains_cap, 1) != OK:
        return fail(f, E_MEMORY, "shared pages")
    r.gains[r.gains_n] = address
    r.gains_n += 1
    return OK


cdef int release_loss(Release *r, uint64_t address, bint *shared, Fault *f) noexcept nogil:
    """The tree stops reaching an address; `shared`: others still do."""
    cdef int64_t extra = 0
    shared[0] = False
    if r.refs == NULL:
        return OK
    extra = extra_of(r.refs, address, f)
    if extra < 0:
        return f.code
    if extra == 0:
        return OK
    shared[0] = True
    if words_room(&r.losses, r.losses_n, &r.losses_cap, 1) != OK:
        return fail(f, E_MEMORY, "shared pages")
    r.losses[r.losses_n] = address
    r.losses_n += 1
    return OK


cdef int64_t extra_of(TreeCore *refs, uint64_t address, Fault *f) noexcept nogil:
    """How many trees beyond one reach an address; -1 with a fault."""
    cdef uint64_t key = be64(address)
    cdef Node *leaf
    cdef bint found
    cdef int pos
    if find_leaf(refs, <uint8_t *> &key, 8, &leaf, f) != OK:
        return -1
    pos = page_find(&refs.s, page_of(leaf), leaf.cap, 0, <uint8_t *> &key, 8, &found)
    return ld32(cell_at(page_of(leaf), pos) + 8) if found else 0


cdef int extra_add(TreeCore *refs, uint64_t address, int delta, Fault *f) noexcept nogil:
    cdef uint64_t key = be64(address)
    cdef int64_t extra = extra_of(refs, address, f)
    cdef uint32_t value
    cdef bint existed
    if extra < 0:
        return f.code
    value = <uint32_t> (extra + delta)
    if extra + delta > 0:
        return put_slow(refs, <uint8_t *> &key, 8, <uint8_t *> &value, 4, &existed, f)
    return delete_slow(refs, <uint8_t *> &key, 8, &existed, f)


cdef int release_commit(Release *r, Fault *f) noexcept nogil:
    """Count what is shared from now on and hand over what is free. All of it, or nothing and a fault."""
    cdef int64_t i, done = 0, wanted = r.gains_n + r.losses_n
    cdef int code = OK
    cdef Fault undo
    if r.gains_n and r.refs == NULL:
        return fail(f, E_NO_REFS, "clone")
    if freed_reserve(r.t.p, r.runs_n / 3) != OK:
        return fail(f, E_MEMORY, "freed pages")
    while code == OK and done < wanted:
        i = done
        code = extra_add(r.refs, r.gains[i] if i < r.gains_n else r.losses[i - r.gains_n], 1 if i < r.gains_n else -1, f)
        done += code == OK
    if code == OK:
        for i in range(0, r.runs_n, 3):
            freed_add(r.t.p, r.runs[i], r.runs[i + 1], r.runs[i + 2])
        freed_settle(r.t.p, r.runs_n / 3)
        at_set32(<int32_t *> &r.t.is_dirty, 1)
        return OK
    freed_settle(r.t.p, r.runs_n / 3)
    memset(&undo, 0, sizeof(Fault))
    while done and not r.t.broken:
        done -= 1
        if extra_add(r.refs, r.gains[done] if done < r.gains_n else r.losses[done - r.gains_n],
                     -1 if done < r.gains_n else 1, &undo) != OK:
            at_set32(<int32_t *> &r.t.broken, 1)
            at_set32(<int32_t *> &r.refs.broken, 1)
            fault_forget(&undo)
    return code


cdef int gain_below(Release *r, Node *n, Fault *f) noexcept nogil:
    """Another tree now also reaches everything with an address that `n` names."""
    cdef TreeCore *t = r.t
    cdef int i, code = OK
    cdef uint8_t *body
    cdef Node *kid
    for i in range(node_count(n)):
        if n.level:
            kid = kid_of(n, i)
            if kid == NULL or at_get8(&kid.state) != DIRTY:
                code = release_gain(r, ref_address(ref_at(page_of(n), i), 0), n.level - 1, f)
        elif n.spilled:
            body = spill_at(&t.s, page_of(n), i)
            if body != NULL:
                code = gain_spill(r, body, f)
        if code != OK:
            return code
    return OK


cdef int gain_spill(Release *r, const uint8_t *body, Fault *f) noexcept nogil:
    """Another tree now also reaches the pages that a spilled value has on the device: an undated value counts as one, by its first page,
    a dated one by the pages that its cell names."""
    cdef Shape *s = &r.t.s
    cdef const Form *form = form_of(s, body)
    cdef int depth, i, code = OK, tops = spill_tops(s.page_size, form, <int64_t> ld64(body), &depth)
    if not form.dated:
        tops = 1
    if spill_pointer(body) != NULL:
        return patch_gain(r, spill_pointer(body), f)
    for i in range(tops):
        if code == OK:
            code = release_gain(r, ref_address(body + SPILL_FIXED + i * form.entry, 0), depth, f)
    return code


# -- giving up spilled values and subtrees -----------------------------------------------------------------------------
cdef int release_spill(Release *r, const uint8_t *body, Fault *f) noexcept nogil:
    """The tree stops reaching a spilled value that has addresses: its pages are free, but for what a clone has too."""
    cdef Shape *s = &r.t.s
    cdef const Form *form = form_of(s, body)
    cdef bint shared = False
    cdef int64_t length = <int64_t> ld64(body)
    cdef int depth, tops = spill_tops(s.page_size, form, length, &depth), code = OK
    if not form.dated:
        code = release_loss(r, ref_address(body + SPILL_FIXED, 0), &shared, f)
    if code != OK or shared:
        return code
    return release_entries(r, form, body + SPILL_FIXED, tops, depth, length, ld64(body + 8), f)


cdef int release_entries(Release *r, const Form *form, const uint8_t *entries, int64_t n, int depth, int64_t length,
                         uint64_t generation, Fault *f) noexcept nogil:
    """The tree stops reaching what entries name, `length` bytes of a value."""
    cdef Shape *s = &r.t.s
    cdef int64_t i, span = s.page_size, below, count
    cdef int k, d, code = OK
    cdef bint shared = False
    cdef uint8_t *page = NULL
    cdef const uint8_t *entry
    for d in range(depth):
        span *= form.fan
    if depth:
        page = <uint8_t *> take(s.page_size)
        if page == NULL:
            return fail(f, E_MEMORY, "spilled value")
    for i in range(n):
        entry = entries + i * form.entry
        generation = entry_generation(s, form, entry, generation)
        if form.dated:
            code = release_loss(r, ref_address(entry, 0), &shared, f)
        if depth and code == OK and not shared:
            below = min(span, length - i * span)
            count = div_up(below, span / form.fan)
            code = spill_page(r.t, form, entry, 1, depth, count, generation, page, f)
            if code == OK:
                code = release_entries(r, form, page + HEADER, count, depth - 1, below, generation, f)
        for k in range(0 if shared else s.copies):
            if code == OK:
                code = release_page(r, ref_address(entry, k), generation, depth, f)
        if code != OK:
            break
    free(page)
    return code


cdef int release_cell(Release *r, Node *n, int pos, Fault *f) noexcept nogil:
    """List what slot `pos` of a leaf has spilled to the device."""
    cdef uint8_t *body = spill_at(&r.t.s, page_of(n), pos) if n.spilled else NULL
    if body == NULL:
        return OK
    return release_spill(r, body, f) if spill_pointer(body) == NULL else patch_release(r, spill_pointer(body), f)


cdef void forget_cell(TreeCore *t, Node *n, int pos) noexcept nogil:
    """Let go of what slot `pos` of an owned leaf has spilled; what is on the device was listed before."""
    cdef uint8_t *body = spill_at(&t.s, page_of(n), pos) if n.spilled else NULL
    if body == NULL:
        return
    n.spilled -= 1
    if spill_pointer(body) != NULL:
        t.dirty_spill -= spill_dirty(t, spill_pointer(body))
        spill_drop(t.p, spill_pointer(body))


cdef int release_below(Release *r, Node *n, Fault *f) noexcept nogil:
    """List what a node reaches (not the node): its children, or the spilled values of a leaf."""
    cdef int i, code = OK
    for i in range(node_count(n) if n.level or n.spilled else 0):
        if n.level:
            code = release_ref(r, kid_of(n, i), ref_at(page_of(n), i), n.level - 1, f)
        else:
            code = release_cell(r, n, i, f)
        if code != OK:
            return code
    if n.level == 0:
        r.records += node_count(n)
    return OK


cdef int release_ref(Release *r, Node *kid, const uint8_t *ref, int level, Fault *f) noexcept nogil:
    """The tree stops reaching a subtree, given by node or by reference. Leaves are read only where something in them spilled;
    pages read for this are not kept."""
    cdef TreeCore *t = r.t
    cdef bint shared
    cdef int code, k
    cdef Node *n = kid
    if kid != NULL and (at_get8(&kid.state) == DIRTY or at_get8(&kid.state) == EMBEDDED):
        return release_below(r, kid, f)
    code = release_loss(r, ref_address(ref, 0), &shared, f)
    if code != OK:
        return code
    if shared or (level == 0 and not ref_records(&t.s, ref) & REF_SPILLED):
        r.records += <int64_t> (ref_records(&t.s, ref) & ~REF_SPILLED)
    else:
        if n == NULL:
            code = load(t, ref, level, &n, f)
            if code != OK:
                return code
        code = release_below(r, n, f)
        if kid == NULL:
            node_decref(t.p, n)
    for k in range(0 if shared else t.s.copies):
        if code == OK:
            code = release_page(r, ref_address(ref, k), ref_generation(&t.s, ref), level, f)
    return code


cdef void forget_dirty(TreeCore *t, Node *n) noexcept nogil:
    """Take a subtree that the tree lets go out of the tallies of dirty pages (T4); what views hold of it is HELD from now on. Before
    its reference is given up."""
    cdef int i
    if at_get8(&n.state) != DIRTY:
        return
    t.dirty_nodes -= 1
    for i in range(node_count(n) if n.level or n.spilled else 0):
        if n.level == 0:
            if leaf_spill(n, i) != NULL:
                t.dirty_spill -= spill_dirty(t, leaf_spill(n, i))
        elif kid_of(n, i) != NULL:
            forget_dirty(t, kid_of(n, i))
    node_leave(t.p, n)
