# TreeView: what reads a tree.

cdef enum:
    INT_SIZE_MAX = 0x7fffffff  # of a key that is looked for as it came: what the C code takes for a size


@cython.final
@cython.no_gc_clear
cdef class Hold:
    """Keeps a core until the last who uses it lets go: the tree or view, and each operation that lets other threads run."""

    cdef TreeCore *core
    cdef Pager pager
    cdef bint pinned

    def __dealloc__(self):
        cdef TreeCore *t = self.core
        if t != NULL:
            if self.pinned:
                self.pager.unpin(t.pinned)
            with nogil:
                core_free(t)


@cython.no_gc_clear
cdef class TreeView:
    """Reads of a tree as it was at one moment."""

    cdef TreeCore *core   # NULL once closed
    cdef Hold held
    cdef readonly Pager pager
    cdef bytes _blob

    cdef int hold(self, Pager pager, bint live=False) except -1:
        self.pager = pager
        self.held = Hold.__new__(Hold)
        self.held.pager = pager
        self.held.core = core_new(pager, live)
        self.core = self.held.core
        return 0

    cdef int release(self) except -1:
        self.core = NULL
        self.held = None
        return 0

    cdef TreeCore *open_core(self) except NULL:
        if self.core == NULL:
            raise StoreClosed("the tree is closed")
        return self.core

    cdef TreeView view(self):
        """A view of the tree as it is now: O(1), no page read."""
        cdef Hold kept = self.held  # first: making an object may collect garbage, and let another thread close this one
        cdef TreeCore *t = self.open_core()
        cdef TreeView view = TreeView.__new__(TreeView)
        view.hold(self.pager)
        if t.live:
            lock_tree(t)
            view._blob = self._blob
            core_view(t, view.core)
            view.core.pinned = self.pager.core.generation
            unlock_tree(t)
        else:
            lock_pager(t.p)
            view._blob = self._blob
            core_view(t, view.core)
            rw_unlock_shared(&t.p.rw)
            view.core.pinned = t.pinned
        self.pager.pin(view.core.pinned)
        view.held.pinned = True
        return view

    cdef bytes search_key(self, object key, bint above=False):
        """A stored key to look for, checked as far as its comparison needs. In a tree with duplicates it stands before all values
        of `key`, or `above` them."""
        cdef bytes k = as_bytes(key)
        cdef TreeCore *t = self.open_core()
        self.check_order(k)
        if t.s.duplicates:
            return duplicate_key(k, HIGHEST if above else b"")
        return k

    cdef int check_order(self, bytes k) except -1:
        cdef TreeCore *t = self.open_core()
        cdef int c = t.s.comparator, n = <int> PyBytes_GET_SIZE(k)
        cdef uint8_t *p = <uint8_t *> PyBytes_AS_STRING(k)
        if PyBytes_GET_SIZE(k) > 65000:
            raise LimitExceeded("KEY_SIZE_MAX", PyBytes_GET_SIZE(k), t.s.key_max)
        if c == CMP_BYTES or c == CMP_REVERSE:
            return 0
        if c == CMP_PAIR:
            if n < 4 or 4 + ld16(p) > n or 4 + ld16(p) + ld16(p + 2 + ld16(p)) != n:
                raise InvalidRequest("the key is not a pair of byte strings with u16 length prefixes")
        elif PyBytes_GET_SIZE(k) != 8:
            raise InvalidRequest(f"keys of this tree have 8 bytes, not {len(k)}")
        return 0

    def __len__(self):
        """Records. Cost: no page."""
        return records_of(self.open_core())

    def __bool__(self):
        return True

    def __contains__(self, key):
        """Whether `key` is there. Cost: one page per level."""
        if self.open_core().s.duplicates:
            return next(self.values_of(key), None) is not None
        return self.find(key, True, None) is not None

    def get(self, key, default=None):
        """The value of `key`, or `default`. Cost: one page per level, read from the device where not cached; of a spilled value its
        pages too."""
        if self.core != NULL and self.core.s.duplicates:
            return next(self.values_of(key), (None, default))[1]
        return self.find(key, False, default)

    cdef RecordIterator values_of(self, object key):
        return self.iterate_stored(self.search_key(key), self.search_key(key, True), False, False)

    def get_all(self, key):
        """Every value of `key` in order: one at most without duplicates. Cost: one page per level and the leaves they lie in."""
        cdef object value
        if self.open_core().s.duplicates:
            return [value for _, value in self.values_of(key)]
        value = self.find(key, False, None)
        return [] if value is None else [value]

    def read(self, key, offset=0, length=-1):
        """Bytes of a value from `offset` (to its end where `length` is -1, or `length` of them), short at the end; None where there is
        no such key. InvalidRequest: another number below zero. Cost: as `get`, but of a spilled value only the pages that hold the
        range."""
        cdef bytes k = self.search_key(key)
        cdef Hold kept = self.held
        cdef TreeCore *t = self.core
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(k)
        cdef int klen = <int> PyBytes_GET_SIZE(k), code
        cdef int64_t first = signed_word("offset", offset), size = signed_word("length", length)
        cdef Out out
        cdef Fault fault
        if first < 0 or size < -1 or t.s.duplicates:
            raise InvalidRequest("values of a tree with duplicates have no ranges" if first >= 0 and size >= -1
                                 else f"read of {length} bytes from {offset}")
        if size < 0:
            size = 1 << 62
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = read_part(t, p, klen, first, size, &out, &fault)
        if code == E_ASIDE:
            return self.view().read(key, offset, length)
        if code != OK:
            raised(&fault)
        try:
            return PyBytes_FromStringAndSize(<char *> out.data, out.size) if out.found else None
        finally:
            free(out.data)

    def count(self, start=None, stop=None):
        """Records with start <= key < stop. Cost: two paths from the root; those that no seal has reached are in memory."""
        cdef bytes a = self.search_key(start) if start is not None else None
        cdef bytes b = self.search_key(stop) if stop is not None else None
        cdef TreeView view = self.view()
        cdef TreeCore *t = view.core
        cdef const uint8_t *ap = NULL
        cdef const uint8_t *bp = NULL
        cdef int an = 0, bn = 0, code
        cdef int64_t records = 0
        cdef Node *root
        cdef Fault fault
        memset(&fault, 0, sizeof(Fault))
        if a is not None:
            ap = <uint8_t *> PyBytes_AS_STRING(a)
            an = <int> PyBytes_GET_SIZE(a)
        if b is not None:
            bp = <uint8_t *> PyBytes_AS_STRING(b)
            bn = <int> PyBytes_GET_SIZE(b)
        if ap != NULL and bp != NULL and compare(&t.s, ap, an, bp, bn) >= 0:
            return 0
        with nogil:
            code = bring_borders(t, ap, an, bp, bn, &fault)
            rw_lock_shared(&t.p.rw)
            if code == OK:
                code = root_of(t, &root, &fault)
            if code == OK:
                code = count_range(t, root, ap, an, bp, bn, &records, &fault)
            rw_unlock_shared(&t.p.rw)
            make_room(t.p)
        view.release()
        if code != OK:
            raised(&fault)
        return records

    def union(self, TreeView other not None):
        """Keys of either tree, each once, in order, by merging. Both are read as they are now. Cost: each page of both
        trees once, spilled values left out."""
        return KeyMerge(self, other, True, True, True)

    def intersection(self, TreeView other not None):
        """Keys that both trees have, in order. Cost: as `union`."""
        return KeyMerge(self, other, False, True, False)

    def difference(self, TreeView other not None):
        """Keys of this tree that `other` does not have, in order. Cost: as `union`."""
        return KeyMerge(self, other, True, False, False)

    cdef object find(self, object key, bint only_presence, object default):
        cdef TreeCore *t = self.core
        cdef bytes k
        cdef Node *leaf
        cdef bint found = False
        cdef int pos, vlen, klen
        cdef uint32_t version
        cdef const uint8_t *value
        cdef uint8_t *p
        cdef PyObject *made
        cdef object result = default
        if t != NULL and t.s.comparator == CMP_BYTES and type(key) is bytes and PyBytes_GET_SIZE(<bytes> key) <= INT_SIZE_MAX:
            k = <bytes> key
        else:
            k = self.search_key(key)
            t = self.core
        klen = <int> PyBytes_GET_SIZE(k)
        p = <uint8_t *> PyBytes_AS_STRING(k)
        if not core_try_shared(t):
            return self.find_slow(k, only_presence, default)
        leaf = resident_leaf(t, p, klen)
        if leaf == NULL:
            core_unlock_shared(t)
            return self.find_slow(k, only_presence, default)
        note_hits(t, 1)
        vlen = 0
        while True:
            version = latch_read(&leaf.version)
            race_begin()
            pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, p, klen, &found)
            if found:
                value = value_at(&t.s, page_of(leaf), leaf.cap, pos, &vlen)
                if only_presence:
                    result = True
                elif vlen >= 0:
                    made = bytes_or_null(<char *> value, vlen)
                    if made == NULL:
                        race_end()
                        core_unlock_shared(t)
                        PyErr_Clear()
                        raise MemoryError()
                    result = <object> made
                    Py_DECREF(result)
            race_end()
            if latch_same(&leaf.version, version):
                break
            result = default
        core_unlock_shared(t)
        if found and vlen < 0 and not only_presence:
            return self.find_slow(k, only_presence, default)
        return result

    cdef object find_slow(self, bytes key, bint only_presence, object default):
        cdef Out out
        cdef Fault fault
        cdef Hold kept = self.held
        cdef TreeCore *t = self.core
        cdef int code
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(key)
        cdef int klen = <int> PyBytes_GET_SIZE(key)
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = read_part(t, p, klen, 0, 0, &out, &fault) if only_presence else get_copy(t, p, klen, &out, &fault)
        if code == E_ASIDE:
            return self.view().find_slow(key, only_presence, default)
        if code != OK:
            raised(&fault)
        note_hits(t, 1)
        if not out.found:
            return default
        try:
            return True if only_presence else PyBytes_FromStringAndSize(<char *> out.data, out.size)
        finally:
            free(out.data)

    def get_many(self, keys):
        """The values of many keys, None for those missing, without the interpreter lock. Cost: as `get` for each; a page is read once."""
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
        if t.s.duplicates:
            return [self.get(key) for key in keys]
        cdef list held = keys if type(keys) is list else list(keys)
        cdef Py_ssize_t n = len(held), i
        cdef object key
        cdef Found *out = <Found *> take((n + 1) * sizeof(Found))
        cdef const uint8_t **pointers = <const uint8_t **> take((n + 1) * sizeof(void *))
        cdef int *sizes = <int *> take((n + 1) * sizeof(int))
        cdef Arena arena
        cdef Fault fault
        cdef int code = OK
        cdef list checked = []
        cdef list result = []
        cdef bint plain = t.s.comparator == CMP_BYTES
        memset(&fault, 0, sizeof(Fault))
        memset(&arena, 0, sizeof(Arena))
        try:
            if out == NULL or pointers == NULL or sizes == NULL:
                raise MemoryError()
            for i in range(n):
                key = held[i]
                if not plain or type(key) is not bytes or PyBytes_GET_SIZE(<bytes> key) > INT_SIZE_MAX:
                    key = self.search_key(key)
                checked.append(key)  # the caller may change its list while we are at it
                pointers[i] = <uint8_t *> PyBytes_AS_STRING(<bytes> key)
                sizes[i] = <int> PyBytes_GET_SIZE(<bytes> key)
            with nogil:
                code = get_batch(t, pointers, sizes, n, &arena, out, &fault)
            if code == E_ASIDE:
                return self.view().get_many(checked)
            if code != OK:
                raised(&fault)
            for i in range(n):
                if out[i].size >= 0:
                    result.append(PyBytes_FromStringAndSize(<char *> arena.data + out[i].offset, out[i].size))
                else:
                    result.append(None)
            return result
        finally:
            free(arena.data)
            free(out)
            free(pointers)
            free(sizes)

    def first(self):
        """The first record, or None. Cost: one page per level."""
        return next(self.items(), None)

    def last(self):
        """The last record, or None. Cost: one page per level."""
        return next(self.items(reverse=True), None)

    def seek(self, key, *, bint reverse=False):
        """The first record at or after `key` (reverse: the last at or before it). Cost: one page per level; where it is the
        first (last) of the leaf beside, 2 * height - 1 pages at most, the root once."""
        cdef object value
        if not reverse:
            return next(self.items(key), None)
        if self.open_core().s.duplicates:
            return next(self.iterate_stored(None, self.search_key(key, True), True, False), None)
        value = self.find(key, False, None)
        return (bytes(key), value) if value is not None else next(self.items(None, key, reverse=True), None)

    def items(self, start=None, stop=None, *, bint reverse=False):
        """Records with start <= key < stop in order (reverse: from the end of that range), as the tree is now. Cost: one page per
        level, then each page of the range once, spilled values included."""
        return self.iterate(start, stop, reverse, False)

    def keys(self, start=None, stop=None, *, bint reverse=False):
        """Keys alone, as `items`. Cost: as `items`, spilled values left out."""
        return self.iterate(start, stop, reverse, True)

    def prefix(self, prefix, *, bint reverse=False):
        """Records whose keys begin with `prefix`, as `items`. InvalidRequest where keys do not order as bytes. Cost: as `items`."""
        cdef bytes start = as_bytes(prefix), stem = start.rstrip(b"\xff"), stop = None
        cdef Py_ssize_t n = len(stem)
        cdef int comparator = self.open_core().s.comparator
        if comparator not in (CMP_BYTES, CMP_U64_BE):
            raise InvalidRequest("prefixes mean something only where keys compare as bytes")
        if n:
            stop = stem[:n - 1] + bytes([stem[n - 1] + 1])
        if comparator == CMP_U64_BE:  # the bounds are keys too
            if len(start) > 8:
                raise InvalidRequest(f"keys of this tree have 8 bytes, the prefix {len(start)}")
            start = start.ljust(8, b"\0")
            stop = stop.ljust(8, b"\0") if n else None
        return self.iterate(start, stop, reverse, False)

    def __iter__(self):
        """Keys in order. Cost: as `keys`."""
        return self.iterate(None, None, False, True)

    cdef RecordIterator iterate(self, object start, object stop, bint reverse, bint only_keys):
        return self.iterate_stored(self.search_key(start) if start is not None else None,
                                   self.search_key(stop) if stop is not None else None, reverse, only_keys)

    cdef RecordIterator iterate_stored(self, bytes start, bytes stop, bint reverse, bint only_keys):
        cdef RecordIterator it = RecordIterator.__new__(RecordIterator)
        it.start = start
        it.stop = stop
        it.view = self.view()
        it.only_keys = only_keys
        it.c.t = it.view.core
        it.c.depth = -1
        it.c.reverse = reverse
        if it.start is not None:
            it.c.start = <uint8_t *> PyBytes_AS_STRING(it.start)
            it.c.start_len = <int> PyBytes_GET_SIZE(it.start)
        if it.stop is not None:
            it.c.stop = <uint8_t *> PyBytes_AS_STRING(it.stop)
            it.c.stop_len = <int> PyBytes_GET_SIZE(it.stop)
            if it.start is not None and compare(&it.c.t.s, it.c.start, it.c.start_len, it.c.stop, it.c.stop_len) >= 0:
                it.finish()
        return it

    def cursor(self):
        """A place among the records as they are now, that moves both ways. Cost: no page; pins its generation until closed."""
        return RecordCursor(self)

    @property
    def user_blob(self):
        """The owner's bytes, kept with the root. Cost: no page."""
        self.open_core()
        return self._blob

    def snapshot(self):
        """A read-only view of the tree as it is now. Cost: no page; writers copy the pages it holds before they change them."""
        return self.view()

    def close(self):
        """Release the pages and the pinned generation. Later calls raise StoreClosed. Cost: no page."""
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()
