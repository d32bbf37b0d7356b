# Seals, as Python asks for them: which leaves go ahead, addresses for the pages from the owner, the root record.

cdef int leaves_in_plan(Plan *plan, int64_t start, int64_t *at, Fault *f) except -1:
    """Count the leaves that `seal_leaves` finds, or seal them where the plan has addresses."""
    cdef TreeCore *t = plan.t
    cdef int code = OK
    plan.next_page = at[0] = 0
    lock_tree(t)
    if t.root != NULL and t.root.level and at_get8(&t.root.state) == DIRTY:
        with nogil:
            if plan.addresses == NULL:
                seal_leaves_below(plan, t.root, start, at)
            else:
                code = fail(f, E_BROKEN, "tree") if t.broken else seal_reserve(plan, f)
                if code == OK:
                    seal_leaves_below(plan, t.root, start, at)
                    seal_finish(plan)
    unlock_tree(t)
    return code


cdef int lock_with_addresses(Plan *plan, object allocate) except -1:
    """Lock the tree with at least as many addresses in hand as it has dirty pages. The owner is asked with no lock held; where
    writers raced it, it is asked again, and pages left over are handed back as freed by the caller. A broken tree is refused."""
    cdef TreeCore *t = plan.t
    cdef Fault fault
    while True:
        lock_tree(t)
        if t.broken:
            unlock_tree(t)
            memset(&fault, 0, sizeof(Fault))
            fail(&fault, E_BROKEN, "tree")
            raised(&fault)
        plan.total = 0
        if t.root != NULL and at_get8(&t.root.state) == DIRTY and not embeds(t):
            plan.total = t.dirty_nodes + t.dirty_spill
        if plan.total * t.s.copies <= plan.given:
            return 0
        unlock_tree(t)
        take_addresses(plan, allocate, plan.total * t.s.copies - plan.given)


cdef int take_addresses(Plan *plan, object allocate, int64_t wanted) except -1:
    """Ask the owner for pages and list them one by one behind those it gave before. Where it fails or lies, none of this call's count."""
    cdef int64_t i, n = plan.given
    cdef uint64_t address, count
    cdef uint64_t *grown = <uint64_t *> take_more(plan.addresses, (n + wanted) * 8)
    if grown == NULL:
        raise MemoryError()
    plan.addresses = grown
    if freed_reserve(plan.t.p, wanted) != OK:  # so that those not used can be given back
        raise MemoryError()
    plan.promised += wanted
    runs = allocate(wanted)
    try:
        pairs = [(first, pages) for first, pages in runs]
    except (TypeError, ValueError) as error:
        raise TypeError(f"allocate gave {runs!r}: runs are wanted, each (first page address, pages)") from error
    wanted += n
    for first, pages in pairs:
        address = word("an address from allocate", first)
        count = word("pages from allocate", pages)
        if count > <uint64_t> (wanted - n) or address > ADDRESS_END - count:
            raise InvalidRequest(f"allocate gave {runs!r} where {wanted - plan.given} pages were asked for")
        for i in range(<int64_t> count):
            plan.addresses[n] = address + <uint64_t> i
            n += 1
    if n != wanted:
        raise InvalidRequest(f"allocate gave pages for {n - plan.given} of {wanted - plan.given}")
    for i in range(plan.given, n):
        know_pages(plan.t.p, plan.addresses[i] + 1)
    plan.given = n
    return 0


cdef bytes seal_tree(Tree tree, object allocate):
    cdef Hold kept = tree.held
    cdef TreeCore *t = tree.open_core()
    cdef Plan plan
    cdef Fault fault
    cdef int code = OK
    cdef bint embedded
    cdef int64_t used = 0, i
    cdef bytes record, blob
    memset(&plan, 0, sizeof(Plan))
    memset(&fault, 0, sizeof(Fault))
    plan.t = t
    try:
        lock_with_addresses(&plan, allocate)
        blob = tree._blob  # the owner may set another at any moment
        try:
            embedded = embeds(t)
            record = PyBytes_FromStringAndSize(NULL, root_size(t, blob, embedded))
            if plan.total:
                with nogil:
                    code = seal_all(&plan, &fault)
                if code != OK:
                    raised(&fault)
                used = plan.total * t.s.copies
            elif embedded and at_get8(&t.root.state) == DIRTY:
                node_state(t.p, t.root, EMBEDDED)
                t.dirty_nodes = 0
                t.paged = 0
            in_between("seal")
            root_record(t, blob, embedded, record)
            tree._root = record
            at_set32(<int32_t *> &t.is_dirty, 0)
            if tree._blob is blob:
                tree._blob_dirty = False
            return record
        finally:
            unlock_tree(t)
    finally:
        for i in range(used, plan.given):  # what was not needed, or the seal did not come to use
            freed_add(t.p, plan.addresses[i], 1, t.p.generation)
        freed_settle(t.p, plan.promised)
        free(plan.addresses)


cdef object seal_ahead(Tree tree, object allocate, int64_t start, int64_t pages):
    cdef Hold kept = tree.held
    cdef TreeCore *t = tree.open_core()
    cdef Plan plan
    cdef Fault fault
    cdef int code = OK
    cdef int64_t at = 0, i, k
    memset(&plan, 0, sizeof(Plan))
    memset(&fault, 0, sizeof(Fault))
    plan.t = t
    if start < 0 or pages < 1:
        raise InvalidRequest(f"seal_leaves from {start} on, {pages} pages")
    plan.total = pages
    leaves_in_plan(&plan, start, &at, &fault)
    plan.total = plan.next_page
    if not plan.total:
        return -1
    try:
        take_addresses(&plan, allocate, plan.total * t.s.copies)
        code = leaves_in_plan(&plan, start, &at, &fault)
        if code != OK:
            raised(&fault)
        return at if plan.total == pages else -1
    finally:  # where a writer came in between, or it failed
        for k in range(t.s.copies):
            for i in range(plan.next_page, plan.total):
                if k * plan.total + i < plan.given:
                    freed_add(t.p, plan.addresses[k * plan.total + i], 1, t.p.generation)
        freed_settle(t.p, plan.promised)
        free(plan.addresses)
