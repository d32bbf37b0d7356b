# Walks over every page of a view: the check of all invariants, and the list of pages reached.

cdef bint holds_bytes(const uint8_t *p, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if p[i]:
            return True
    return False


cdef class TreeCheck:
    """States every violated invariant (P, T of layout.pxi and tree.pxi) of one view."""

    cdef TreeView view
    cdef Pager pager
    cdef list problems
    cdef int64_t records

    def __cinit__(self, TreeView view, Pager pager):
        self.view = view
        self.pager = pager
        self.problems = []

    def run(self):
        cdef TreeCore *t = self.view.core
        cdef Node *root
        cdef Fault fault
        cdef int code
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            code = root_of(t, &root, &fault)
            if code == OK:
                at_add32(&root.refs, 1)
            rw_unlock_shared(&t.p.rw)
        if code != OK:
            self.note(&fault)
            return self.problems
        self.node(root, t.level, None, None)
        node_decref(t.p, root)
        if self.records != records_of(t) and not self.problems:
            self.problems.append(f"T3: the root counts {records_of(t)} records, the leaves hold {self.records}")
        with nogil:
            make_room(t.p)
        return self.problems

    cdef int note(self, Fault *fault) except -1:
        try:
            raised(fault)
        except MdstoreError as error:
            self.problems.append(str(error))
        return 0

    cdef int node(self, Node *n, int level, bytes low, bytes high) except -1:
        cdef TreeCore *t = self.view.core
        cdef uint8_t *page = page_of(n)
        cdef int i, count = node_count(n), total = 0, spilled = 0, code, held = 0
        cdef Holes *h = &n.holes
        cdef const char *fault = NULL
        cdef Node *kid
        cdef Fault f
        cdef list keys
        where = f"address {n.address}" if at_get8(&n.state) == CLEAN or at_get8(&n.state) == SEALED else "a dirty page"
        where = f"{where}, tree {t.tree_id}, level {n.level}"
        if n.level != level:
            self.problems.append(f"T3: level {level} was expected at {where}")
            return 0
        for i in range(count):
            total += cell_size_at(&t.s, page, i)
        if total + <int> ld32(page + OFF_DEAD) != <int> n.cap - <int> ld32(page + OFF_HEAP):
            self.problems.append(f"P2: cells and dead bytes do not fill the heap of {where}")
        for i in range(h.n):
            if h.at[i] < ld32(page + OFF_HEAP) or h.at[i] + h.size[i] > <int> n.cap or holds_bytes(page + h.at[i], h.size[i]):
                self.problems.append(f"P5: a hole holds bytes of {where}")
        for i in range(count if level == 0 and n.spilled else 0):
            held += leaf_spill(n, i) != NULL
        if n.cap == <uint32_t> t.s.page_size and held == 0:
            fault = page_check(&t.s, page, &spilled)
            if fault != NULL:
                self.problems.append(f"P: {(<bytes> fault).decode()} in {where}")
        keys = [PyBytes_FromStringAndSize(<char *> cell_at(page, i), klen_at(page, i)) for i in range(count)]
        if level == 0:
            self.records += count
            if count == 0 and t.level:
                self.problems.append(f"T5: empty leaf at {where}")
            for i in range(count):
                self.inside(keys[i], low, high, where)
            return 0
        if count == 0 or keys[0] != b"":
            self.problems.append(f"T2: slot 0 has the key {keys[:1]} at {where}")
        for i in range(count):
            if i:
                self.inside(keys[i], low, high, where)
            memset(&f, 0, sizeof(Fault))
            with nogil:
                rw_lock_shared(&t.p.rw)
                code = kid_at(t, n, i, &kid, &f)
                if code == OK:
                    at_add32(&kid.refs, 1)
                rw_unlock_shared(&t.p.rw)
            if code != OK:
                self.note(&f)
                continue
            self.node(kid, level - 1, keys[i] if i else low, keys[i + 1] if i + 1 < count else high)
            node_decref(t.p, kid)
        with nogil:
            make_room(t.p)
        return 0

    cdef int inside(self, bytes key, bytes low, bytes high, str where) except -1:
        cdef Shape *s = &self.view.core.s
        cdef uint8_t *p = <uint8_t *> PyBytes_AS_STRING(key)
        cdef int n = <int> PyBytes_GET_SIZE(key)
        if low is not None and len(low) and compare(s, p, n, <uint8_t *> PyBytes_AS_STRING(low), <int> len(low)) < 0:
            self.problems.append(f"T1: key {key!r} is below its separator {low!r} at {where}")
        if high is not None and compare(s, p, n, <uint8_t *> PyBytes_AS_STRING(high), <int> len(high)) >= 0:
            self.problems.append(f"T1: key {key!r} is not below the next separator {high!r} at {where}")
        return 0


@cython.no_gc_clear
cdef class PageWalk:
    """(first page address, pages, level) of every page and overflow run a view reaches that has an address."""

    cdef TreeView view
    cdef list ready
    cdef Node *node[HEIGHT_MAX]
    cdef int at[HEIGHT_MAX]
    cdef int depth
    cdef bint running

    def __cinit__(self, TreeView view):
        cdef TreeCore *t = view.core
        cdef Node *root
        cdef Fault fault
        cdef int code, k
        self.view = view
        self.depth = -1
        self.ready = []
        if t.paged:
            self.ready = [(ref_address(t.ref, k), 1, t.level) for k in range(t.s.copies)]
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            code = root_of(t, &root, &fault)
            if code == OK:
                at_add32(&root.refs, 1)
            rw_unlock_shared(&t.p.rw)
        if code != OK:
            raised(&fault)
        self.push(root)

    def __dealloc__(self):
        while self.depth >= 0:
            node_decref(self.view.core.p, self.node[self.depth])
            self.depth -= 1

    cdef int push(self, Node *n) except -1:
        """Take a referenced node; a leaf is done at once."""
        cdef int i
        cdef uint8_t *body
        if n.level:
            self.depth += 1
            self.node[self.depth] = n
            self.at[self.depth] = 0
            return 0
        try:
            for i in range(node_count(n) if n.spilled else 0):
                body = spill_at(&self.view.core.s, page_of(n), i)
                if body != NULL:
                    self.spilled(body)
        finally:
            node_decref(self.view.core.p, n)
        return 0

    cdef int spilled(self, const uint8_t *body) except -1:
        """What a value has on the device; of one that was changed in memory, the pages that were not."""
        cdef TreeCore *t = self.view.core
        cdef uint8_t copy[SPILL_BODY_MAX + 2]
        cdef Spill *v
        cdef Release r
        cdef Fault fault
        cdef int64_t i
        memset(&fault, 0, sizeof(Fault))
        memset(&r, 0, sizeof(Release))
        r.t = t
        v = spill_find(t, body, copy)
        with nogil:
            if v == NULL:
                release_spill(&r, copy + 2, &fault)
            else:
                patch_release(&r, v, &fault)
                spill_free(t.p, v)
        try:
            if fault.code != OK:
                raised(&fault)
            for i in range(0, r.runs_n, 3):
                self.ready.append((r.runs[i], r.runs[i + 1], 0))
        finally:
            free(r.runs)
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.running:
            raise InvalidRequest("the iterator is in use by another thread")
        self.running = True
        try:
            while not self.ready and self.depth >= 0:
                self.step()
        finally:
            self.running = False
        if self.ready:
            return self.ready.pop()
        self.view.release()
        raise StopIteration

    cdef int step(self) except -1:
        """Visit the next child of the deepest node: its addresses, and itself where there is more below."""
        cdef TreeCore *t = self.view.core
        cdef Node *n = self.node[self.depth]
        cdef Node *kid
        cdef int i = self.at[self.depth], k, code
        cdef uint8_t *ref
        cdef Fault fault
        cdef bint dirty
        if i >= node_count(n):
            node_decref(t.p, n)
            self.depth -= 1
            return 0
        self.at[self.depth] += 1
        ref = ref_at(page_of(n), i)
        kid = <Node *> at_getp(&n.kids[i])
        dirty = kid != NULL and (at_get8(&kid.state) == DIRTY or (at_get8(&n.state) == DIRTY and not names_kid(n, i, kid)))
        if not dirty:
            for k in range(t.s.copies):
                self.ready.append((ref_address(ref, k), 1, n.level - 1))
            if n.level == 1 and not ref_records(&t.s, ref) & REF_SPILLED:
                return 0
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            code = kid_at(t, n, i, &kid, &fault)
            if code == OK:
                at_add32(&kid.refs, 1)
            rw_unlock_shared(&t.p.rw)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        return self.push(kid)
