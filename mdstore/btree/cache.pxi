# The Pager as Python sees it, and how Python code takes its locks and makes trees and views in it.

@cython.final
@cython.no_gc
cdef class Loan:
    """What a pager was lent by its device, who finds it by a weak reference. The garbage collector does not know it: a weak reference
    to what it does, it clears for good when that has become garbage, though a finalizer may have it live on, and read."""

    cdef Lent lent
    cdef object __weakref__

    def __cinit__(self):
        self.lent.fd = -1
        self.lent.process = getpid()

    def close(self):
        """`Pager.close`."""
        cdef bint is_shut = False
        at_set32(<int32_t *> &self.lent.closed, 1)
        while not is_shut:
            with nogil:
                is_shut = rw_shut(&self.lent.file)
            if self.lent.process != getpid() or is_finalizing():  # a forked child has none of the threads that were reading
                is_shut = True
            PyErr_CheckSignals()


@cython.final
cdef class Pager:
    """A bounded cache of checksummed pages over one device, shared by every tree of an image."""

    cdef PagerCore core
    cdef object __weakref__
    cdef readonly object device
    cdef Tree _refs
    cdef Hold _refs_held  # so that they are counted in it though its owner closes it
    cdef dict _pins
    cdef object _writing  # a lock: one write_sealed at a time

    def __cinit__(self, device, *, page_size=16384, cache_bytes=64 << 20):
        page_size = whole("page_size", page_size)
        cache_bytes = signed_word("cache_bytes", cache_bytes)
        if not 256 <= page_size <= PAGE_MAX or page_size & page_size - 1:
            raise InvalidRequest(f"page_size {page_size}: a power of two from 256 to 65536")
        if cache_bytes < 0:
            raise InvalidRequest(f"cache_bytes {cache_bytes}: 0 or more")
        memset(&self.core, 0, sizeof(PagerCore))
        self.device = device
        self.core.page_size = page_size
        self.core.cache_bytes = cache_bytes
        self.core.end_page = ADDRESS_END
        self.core.owner = <void *> self
        self.borrow(Loan())
        self.core.read_only = device.read_only
        self._pins = {}
        self._writing = RLock()

    cdef void borrow(self, Loan loan) except *:
        self.core.lent = &loan.lent
        self.core.loan = <PyObject *> loan
        Py_INCREF(loan)
        if lends(self.device):
            loan.lent.fd = self.device.lend(loan)

    def __dealloc__(self):
        cdef Queue *queue
        cdef int64_t i
        while self.core.queue != NULL:
            queue = self.core.queue
            self.core.queue = queue.next
            for i in range(queue.n):
                write_done(&self.core, &queue.writes[i])
            queue_free(queue)
        free(self.core.map)
        free(self.core.freed)
        Py_XDECREF(self.core.loan)

    @property
    def generation(self):
        """What the next seals stamp into pages. It never falls, so that no page names a younger one: InvalidRequest. Cost: no page."""
        return self.core.generation

    @generation.setter
    def generation(self, value):
        cdef uint64_t generation = word("generation", value), before = <uint64_t> at_get64(<int64_t *> &self.core.generation)
        if generation < before:
            raise InvalidRequest(f"generation {generation}: {before} or more, which pages may have")
        at_set64(<int64_t *> &self.core.generation, <int64_t> generation)

    @property
    def page_bounds(self):
        """(first, end): where pages may lie, as their owner says. Cost: no page."""
        return <uint64_t> at_get64(<int64_t *> &self.core.first_page), <uint64_t> at_get64(<int64_t *> &self.core.end_page)

    @page_bounds.setter
    def page_bounds(self, bounds):
        try:
            first, end = bounds
        except (TypeError, ValueError):
            raise TypeError(f"page_bounds: (first, end) is wanted, not {bounds!r}") from None
        cdef uint64_t low = word("the first page", first), high = word("the end of pages", end)
        if low > high or high > ADDRESS_END:
            raise InvalidRequest(f"pages from {low} to {high}: first and end, up to 2**48")
        at_set64(<int64_t *> &self.core.first_page, <int64_t> low)
        at_set64(<int64_t *> &self.core.end_page, <int64_t> high)

    @property
    def page_size(self):
        """Bytes of a page. Cost: no page."""
        return self.core.page_size

    @property
    def cache_bytes(self):
        """The bound of clean pages in memory. Cost: no page; a lower one evicts at once."""
        return at_get64(&self.core.cache_bytes)

    @cache_bytes.setter
    def cache_bytes(self, value):
        cdef int64_t size = signed_word("cache_bytes", value)
        if size < 0:
            raise InvalidRequest(f"cache_bytes {value}: 0 or more")
        at_set64(&self.core.cache_bytes, size)
        with nogil:
            make_room(&self.core)

    @property
    def dirty_bytes(self):
        """Memory of what the next seals, and `write_sealed`, have to write: pages that the device does not have yet, and that a tree
        reaches or did when it was sealed. Cost: no page."""
        return at_get64(&self.core.dirty_bytes)

    @property
    def held_bytes(self):
        """Memory of pages that never were sealed and never will be: their tree has changed them since, or let go of them, and only views
        (snapshots, iterators, cursors) hold them. Cost: no page."""
        return at_get64(&self.core.held_bytes)

    @property
    def sealed_pages(self):
        """Pages that wait for `write_sealed`. Cost: no page."""
        return at_get64(&self.core.sealed_pages)

    @property
    def oldest_pinned_generation(self):
        """The smallest generation a living view or iterator holds, or None. Cost: no page."""
        return min(self._pins, default=None)

    @property
    def pinned_generations(self):
        """The generations that living views and iterators hold, ascending, each once. Cost: no page."""
        return sorted(self._pins)

    @property
    def refs(self):
        """The tree that counts shared pages, or None. It counts until another is set, also after it was closed. Cost: no page."""
        return self._refs

    @refs.setter
    def refs(self, Tree tree):
        cdef TreeCore *t = tree.open_core() if tree is not None else NULL
        cdef Hold held = tree.held if tree is not None else None, before
        cdef Tree last
        if t != NULL and (t.p != &self.core or t.s.key_size != 8 or t.s.comparator != CMP_U64_BE or t.s.fixed_value != 4):
            raise InvalidRequest("the tree of shared pages is one of this pager with REFS_DESCRIPTOR")
        with nogil:
            rw_lock_exclusive(&self.core.rw)
        before, last = self._refs_held, self._refs  # which are not let go of with the lock held
        self._refs = tree
        self._refs_held = held
        self.core.refs = t
        rw_unlock_exclusive(&self.core.rw)

    cdef void pin(self, uint64_t generation):
        self._pins[generation] = self._pins.get(generation, 0) + 1

    cdef void unpin(self, uint64_t generation):
        if self._pins is None:  # the garbage collector came to the pager before whoever pinned
            return
        cdef object left = self._pins[generation] - 1
        if left:
            self._pins[generation] = left
        else:
            del self._pins[generation]

    def write_sealed(self, max_bytes=-1):
        """Write sealed pages in address order, until `max_bytes` are written; the bytes written. Not durable before a flush. One thread
        at a time: another waits, and writes what is left then, so that on return without a bound everything sealed before the call
        is written, whoever wrote it. Cost: each sealed page once, neighbours in one write of up to 1 MiB."""
        cdef int64_t most = signed_word("max_bytes", max_bytes)
        with self._writing:
            return self.write_queue(most)

    cdef int64_t write_queue(self, int64_t max_bytes) except -1:
        cdef PagerCore *p = &self.core
        cdef Queue *queue
        cdef Write *taken
        cdef int64_t n, done = 0, first, written = 0, i
        cdef int code
        if at_get32(<int32_t *> &p.lent.closed):
            raise StoreClosed("the pager is closed")
        with nogil:
            code = queue_take(p, &queue)
            if queue != NULL:
                qsort(queue.writes, queue.n, sizeof(Write), &by_address)
        if code != OK:
            raise MemoryError("sealed pages")
        if queue == NULL:
            return 0
        taken = queue.writes
        n = queue.n
        try:
            while done < n and (max_bytes < 0 or written < max_bytes):
                first = done
                buffers = []
                size = 0
                while done < n and (done == first or (taken[done].address == taken[done - 1].address
                                                      + <uint64_t> taken[done - 1].pages
                                                      and size < 1 << 20 and len(buffers) < 256)):
                    buffers.append(PyMemoryView_FromMemory(<char *> taken[done].bytes,
                                                           taken[done].pages * p.page_size, 0x100))
                    size += taken[done].pages * p.page_size
                    done += 1
                try:
                    self.device.write(taken[first].address * p.page_size, buffers)
                except BaseException:
                    done = first
                    raise
                for i in range(first, done):
                    write_done(p, &taken[i])
                written += size
                at_add64(&p.device_writes, 1)
        finally:
            at_add64(&p.pages_written, written // p.page_size)
            at_add64(&p.bytes_written, written)
            with nogil:
                if done < n:
                    memmove(taken, taken + done, (n - done) * sizeof(Write))
                    queue.n = n - done
                    queue_add(p, queue)
                else:
                    queue_free(queue)
                make_room(p)
        return written

    def take_freed(self):
        """(address, pages, generation) of what the trees stopped reaching since the last call. Cost: no page."""
        cdef PagerCore *p = &self.core
        cdef uint64_t *freed
        cdef int64_t n, i
        cdef uint64_t *fresh = NULL
        cdef int64_t cap = 0
        spin_lock(&p.spin)
        if words_room(&fresh, 0, &cap, 3 * p.freed_promised) != OK:
            spin_unlock(&p.spin)
            raise MemoryError("freed pages")
        freed = p.freed
        n = p.freed_n
        p.freed = fresh
        p.freed_n = 0
        p.freed_cap = cap
        spin_unlock(&p.spin)
        try:
            return [(freed[3 * i], freed[3 * i + 1], freed[3 * i + 2]) for i in range(n)]
        finally:
            free(freed)

    def counters(self):
        """What was done so far, by name. Cost: no page."""
        cdef PagerCore *p = &self.core
        return {
            "hits": at_get64(&p.hits), "misses": at_get64(&p.misses), "evictions": at_get64(&p.evictions),
            "pages_read": at_get64(&p.pages_read), "pages_written": at_get64(&p.pages_written),
            "bytes_read": at_get64(&p.bytes_read), "bytes_written": at_get64(&p.bytes_written),
            "device_reads": at_get64(&p.device_reads), "device_writes": at_get64(&p.device_writes),
            "splits": at_get64(&p.splits), "merges": at_get64(&p.merges), "rotations": at_get64(&p.rotations),
            "page_copies": at_get64(&p.copies), "cached_bytes": at_get64(&p.clean_bytes),
            "dirty_pages": at_get64(&p.dirty_pages), "dirty_bytes": at_get64(&p.dirty_bytes),
            "held_bytes": at_get64(&p.held_bytes),
            "sealed_pages": at_get64(&p.sealed_pages), "copies_repaired": at_get64(&p.copies_repaired),
            "copies_left": at_get64(&p.copies_left),
        }

    def close(self):
        """Refuse further reads and writes of the device, and wait for the reads that use its descriptor at the moment. Trees in memory
        stay as they are; nothing is written. Interrupted, it has refused already; again, it waits. At the end of the interpreter, which
        has stopped the threads that were reading, it does not: the descriptor's number must stay taken then. Cost: no page."""
        (<Loan> self.core.loan).close()


cdef inline int lock_pager(PagerCore *p) except -1:
    """Take pager.rw shared, from Python code."""
    if not rw_try_shared(&p.rw):
        with nogil:
            rw_lock_shared(&p.rw)
    return 0


cdef TreeCore *core_new(Pager pager, bint live) except NULL:
    cdef TreeCore *t = <TreeCore *> take_zeroed(1, sizeof(TreeCore))
    if t == NULL:
        raise MemoryError()
    t.p = &pager.core
    t.live = live  # before the eviction hand can see it, which locks live trees
    lock_pager(t.p)  # keeps the eviction hand away from the list
    spin_lock(&t.p.spin)
    t.next = t.p.trees
    if t.next != NULL:
        t.next.prev = t
    t.p.trees = t
    spin_unlock(&t.p.spin)
    rw_unlock_shared(&t.p.rw)
    return t


cdef void core_free(TreeCore *t) noexcept nogil:
    """Unlink and free. Waits for the eviction hand, so the interpreter lock must not be held."""
    rw_lock_shared_again(&t.p.rw)
    if t.live and t.root != NULL:
        forget_dirty(t, t.root)  # no seal will write it; views may hold some
    spin_lock(&t.p.spin)
    if t.prev != NULL:
        t.prev.next = t.next
    else:
        t.p.trees = t.next
    if t.next != NULL:
        t.next.prev = t.prev
    spin_unlock(&t.p.spin)
    rw_unlock_shared(&t.p.rw)
    if t.root != NULL:
        node_decref(t.p, t.root)
    free(t)


cdef void core_view(TreeCore *t, TreeCore *v) noexcept nogil:
    """Make `v` a view of `t`. Caller holds pager.rw, and tree.rw exclusively where `t` is live."""
    v.s = t.s
    v.tree_id = t.tree_id
    v.level = t.level
    cdef Node *root = <Node *> at_getp(&t.root)  # of a view another reader may fill it in
    v.paged = t.paged and (root == NULL or at_get8(&root.state) == CLEAN or at_get8(&root.state) == SEALED)
    rw_tally_add(&v.rw, records_of(t))
    memcpy(v.ref, t.ref, REF_MAX)
    v.root = root
    if root != NULL:
        at_add32(&v.root.refs, 1)


cdef inline int lock_tree(TreeCore *t) except -1:
    """Take pager.rw shared and tree.rw exclusively, from Python code."""
    if rw_try_shared(&t.p.rw):
        if rw_try_exclusive(&t.rw):
            return 0
        rw_unlock_shared(&t.p.rw)
    with nogil:
        rw_lock_shared(&t.p.rw)
        rw_lock_exclusive(&t.rw)
    return 0


cdef inline void unlock_tree(TreeCore *t) noexcept nogil:
    cdef Ahead *ahead = t.ahead
    t.ahead = NULL
    rw_unlock_exclusive(&t.rw)
    rw_unlock_shared(&t.p.rw)
    if ahead != NULL:
        ahead_free(ahead)
