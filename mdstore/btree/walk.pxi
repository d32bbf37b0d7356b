# Walks over every page of a view: the check of all invariants, and the list of pages reached.

cdef uint64_t NO_ADDRESS = 0xffffffffffffffffULL

cdef bint holds_bytes(const uint8_t *p, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if p[i]:
            return True
    return False


@cython.final
cdef class TreeCheck:
    """States every violated invariant (P, T of layout.pxi and tree.pxi) of a tree as it is when this is made."""

    cdef TreeView view
    cdef list problems
    cdef int64_t records

    def __cinit__(self, TreeView tree not None):
        self.view = tree.view()
        self.problems = []

    def run(self):
        cdef TreeCore *t = self.view.core
        cdef Node *root
        cdef Fault fault
        cdef int code
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            code = root_held(t, &root, &fault)
            if code == OK:
                at_add32(&root.refs, 1)
            rw_unlock_shared(&t.p.rw)
        if code != OK:
            self.note(&fault)
            return self.problems
        try:
            self.node(root, t.level, None, None)
        finally:
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
        cdef int i, count = node_count(n), total = 0, spilled = 0, code, heap, dead
        cdef bint held
        cdef Holes *h = &n.holes
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
        heap = <int> ld32(page + OFF_HEAP)
        dead = <int> ld32(page + OFF_DEAD)
        if total + dead != <int> n.cap - heap:
            self.problems.append(f"P2: {total} bytes of cells and {dead} dead ones do not fill the heap, from {heap} to {n.cap}, of {where}")
        for i in range(h.n):
            if h.at[i] < heap or h.at[i] + h.size[i] > <int> n.cap or holds_bytes(page + h.at[i], h.size[i]):
                self.problems.append(f"P5: a hole of {h.size[i]} bytes at byte {h.at[i]} holds bytes, or lies outside the heap, of {where}")
        spin_lock(&t.p.spin)
        held = level == 0 and holds_values(n)
        spin_unlock(&t.p.spin)
        if n.cap == <uint32_t> t.s.page_size and not held:
            if page_check(&t.s, page, &spilled, &f) != OK:
                self.problems.append(f"P: {place(&f)}, expected {wanted(&f)}, found {f.found:#x}, in {where}")
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
                code = kid_held(t, n, i, &kid, &f)
                if code == OK:
                    at_add32(&kid.refs, 1)
                rw_unlock_shared(&t.p.rw)
            if code != OK:
                self.note(&f)
                continue
            try:
                if not unsealed(kid) and names_kid(n, i, kid):
                    self.counted(ref_records(&t.s, ref_at(page, i)), page_records(&t.s, page_of(kid), kid.spilled), where)
                self.node(kid, level - 1, keys[i] if i else low, keys[i + 1] if i + 1 < count else high)
            finally:
                node_decref(t.p, kid)
        with nogil:
            make_room(t.p)
        return 0

    cdef int counted(self, uint64_t stated, uint64_t found, str where) except -1:
        if stated != found:
            self.problems.append(f"T3: a reference states {stated:#x} records below (the highest bit: values have spilled), there are "
                                 f"{found:#x}, at {where}")
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


cdef PyObject *walk_hook = NULL  # for tests: what the next step of a walk over pages calls


cdef void walk_looks() noexcept with gil:
    """Another thread may do anything while a walk looks at a child; a test does it here."""
    global walk_hook
    if walk_hook != NULL:
        hook = <object> walk_hook
        Py_DECREF(hook)
        walk_hook = NULL
        hook()


cdef int walk_kid(TreeCore *t, Node *n, int i, uint64_t *addresses, Node **kid, Fault *f) noexcept nogil:
    """Look at child `i` of a held index node, which only the lock keeps from being evicted: the addresses of its page, `copies` of them
    (the first is NO_ADDRESS where it has none, or one lies outside the device), and itself with a reference, where it has to be walked through; else NULL."""
    cdef PagerCore *p = t.p
    cdef const uint8_t *ref = ref_at(page_of(n), i)
    cdef Node *found
    cdef int k, code = OK
    cdef bint dirty
    kid[0] = NULL
    rw_lock_shared(&p.rw)
    found = kid_of(n, i)
    if walk_hook != NULL:
        walk_looks()
    dirty = found != NULL and (unsealed(found) or (unsealed(n) and not names_kid(n, i, found)))
    for k in range(t.s.copies):
        addresses[k] = NO_ADDRESS if dirty else ref_address(ref, k)
        if code == OK and not dirty:
            code = address_check(t, addresses[k], n.level - 1, f)
    if code != OK:
        addresses[0] = NO_ADDRESS
    elif dirty or n.level > 1 or ref_records(&t.s, ref) & REF_SPILLED:
        code = kid_held(t, n, i, kid, f)
        if code == OK:
            at_add32(&kid[0].refs, 1)
    rw_unlock_shared(&p.rw)
    return code


@cython.final
@cython.no_gc_clear
cdef class PageWalk:
    """(first page address, pages, level) of every page and overflow run that a tree reaches when this is made and has an address."""

    cdef TreeView view
    cdef list ready
    cdef Node *node[HEIGHT_MAX]
    cdef int at[HEIGHT_MAX]
    cdef int depth
    cdef bint running

    def __cinit__(self, TreeView tree not None):
        cdef TreeCore *t
        cdef Node *root = NULL
        cdef Fault fault
        cdef int code, k
        self.view = tree.view()
        t = self.view.core
        self.depth = -1
        self.ready = []
        if t.paged:
            self.ready = [(ref_address(t.ref, k), 1, t.level) for k in range(t.s.copies)]
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            code = root_held(t, &root, &fault)
            if code == OK:
                at_add32(&root.refs, 1)
            rw_unlock_shared(&t.p.rw)
        if code != OK:
            raised(&fault)
        self.push(root)

    def __dealloc__(self):
        while self.view is not None and self.depth >= 0:
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
        cdef uint64_t addresses[3]
        cdef Fault fault
        if i >= node_count(n):
            node_decref(t.p, n)
            self.depth -= 1
            return 0
        self.at[self.depth] += 1
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = walk_kid(t, n, i, addresses, &kid, &fault)
            make_room(t.p)
        try:
            for k in range(t.s.copies if addresses[0] != NO_ADDRESS else 0):
                self.ready.append((addresses[k], 1, n.level - 1))
        except MemoryError:
            if kid != NULL:
                node_decref(t.p, kid)
            raise
        if code != OK:
            raised(&fault)
        return self.push(kid) if kid != NULL else 0


def call_in_walk(hook):
    """Have the next step of a walk over pages call `hook` while it looks at a child; for tests. In the thread that walks, with
    the lock held that keeps pages from being evicted."""
    global walk_hook
    if not callable(hook):
        raise TypeError(f"a call is wanted, not {hook!r}")
    if walk_hook != NULL:
        Py_DECREF(<object> walk_hook)
    Py_INCREF(hook)
    walk_hook = <PyObject *> hook
