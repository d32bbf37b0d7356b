# Iterators over views: records in order, two sets of keys merged, and a place that moves both ways.

@cython.final
cdef class KeyMerge:
    """Keys of two trees merged: those only in the first, in both, only in the second, as asked for."""

    cdef RecordIterator first
    cdef RecordIterator second
    cdef Shape s
    cdef bytes a
    cdef bytes b
    cdef bint only_first
    cdef bint both
    cdef bint only_second
    cdef bint running     # a thread is on its way to the next key

    def __cinit__(self, TreeView first not None, TreeView second not None, bint only_first, bint both, bint only_second):
        self.s = first.open_core().s
        if second.open_core().s.comparator != self.s.comparator or self.s.duplicates or second.core.s.duplicates:
            raise InvalidRequest("only trees with one comparator and without duplicates can be merged")
        self.first = first.iterate(None, None, False, True)
        self.second = second.iterate(None, None, False, True)
        self.only_first = only_first
        self.both = both
        self.only_second = only_second
        self.a = next(self.first, None)
        self.b = next(self.second, None)

    def __iter__(self):
        return self

    def __next__(self):
        if self.running:
            raise InvalidRequest("the iterator is in use by another thread")
        self.running = True
        try:
            return self.following()
        except BaseException:  # one side may have gone on without the other, so no key after this one would be right
            self.a = self.b = None
            self.first = self.second = None
            raise
        finally:
            self.running = False

    cdef bytes following(self):
        cdef int c
        cdef bytes key
        while self.a is not None or self.b is not None:
            if self.a is None or self.b is None:
                c = 1 if self.a is None else -1
            else:
                c = compare(&self.s, <uint8_t *> PyBytes_AS_STRING(self.a), <int> PyBytes_GET_SIZE(self.a),
                            <uint8_t *> PyBytes_AS_STRING(self.b), <int> PyBytes_GET_SIZE(self.b))
            key = self.b if c > 0 else self.a
            if c <= 0:
                self.a = next(self.first, None)
            if c >= 0:
                self.b = next(self.second, None)
            if (self.only_first if c < 0 else self.only_second if c > 0 else self.both):
                return key
        raise StopIteration


@cython.final
@cython.no_gc_clear
cdef class RecordIterator:
    """Records of a view in order; made by items, keys and prefix."""

    cdef Cursor c
    cdef TreeView view
    cdef bytes start
    cdef bytes stop
    cdef bint only_keys
    cdef bint running     # a thread is on its way to the next leaf

    def __dealloc__(self):
        if self.view is not None and self.view.core != NULL:
            cursor_clear(&self.c)

    cdef int finish(self) except -1:
        """Let go of the view, which lets other threads run: for them there is none any more by then."""
        cdef TreeView view = self.view
        if view is not None:
            cursor_clear(&self.c)
            self.view = None
            view.release()
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        cdef Cursor *c = &self.c
        cdef int pos, code
        cdef Fault fault
        if self.running:
            raise InvalidRequest("the iterator is in use by another thread")
        if c.pos >= c.end:
            if self.view is None:
                raise StopIteration
            if not c.last or c.depth < 0:
                memset(&fault, 0, sizeof(Fault))
                self.running = True
                with nogil:
                    code = cursor_more(c, &fault)
                self.running = False
                if code != OK:
                    self.finish()
                    raised(&fault)
            if c.pos >= c.end:
                self.finish()
                raise StopIteration
        if c.reverse:
            c.end -= 1
            pos = c.end
        else:
            pos = c.pos
            c.pos += 1
        return self.record(pos)

    cdef object record(self, int pos):
        """The record (or key) in slot `pos` of the leaf the cursor stands in."""
        cdef Cursor *c = &self.c
        cdef Node *leaf = c.node[c.depth]
        cdef int vlen
        cdef const uint8_t *value
        cdef bytes key, data
        if c.t.s.duplicates:
            return self.duplicate(cell_at(page_of(leaf), pos), klen_at(page_of(leaf), pos))
        key = PyBytes_FromStringAndSize(<char *> cell_at(page_of(leaf), pos), klen_at(page_of(leaf), pos))
        if self.only_keys:
            return key
        value = value_at(&c.t.s, page_of(leaf), leaf.cap, pos, &vlen)
        if vlen >= 0:
            data = PyBytes_FromStringAndSize(<char *> value, vlen)
        else:
            data = self.spilled(value)
        return (key, data)

    cdef object duplicate(self, const uint8_t *cell, int klen):
        cdef int cut = dup_split(cell, klen)
        cdef bytes key = PyBytes_FromStringAndSize(<char *> cell, cut)
        return key if self.only_keys else (key, PyBytes_FromStringAndSize(<char *> cell + cut, klen - cut - 2))

    cdef bytes spilled(self, const uint8_t *body):
        """A long value; until it is read no other thread may step."""
        self.running = True
        try:
            return self.read_spilled(body)
        finally:
            self.running = False

    cdef bytes read_spilled(self, const uint8_t *body):
        cdef TreeCore *t = self.c.t
        cdef int64_t size = <int64_t> ld64(body)
        cdef bytes data
        cdef uint8_t *into
        cdef Fault fault
        cdef int code = OK
        memset(&fault, 0, sizeof(Fault))
        if size > SPILL_UNPROVED:
            with nogil:  # no lock: the cursor holds the leaf, its view the pages
                code = spill_prove(t, body, size, &fault)
        if code != OK:
            raised(&fault)
        data = PyBytes_FromStringAndSize(NULL, size)
        into = <uint8_t *> PyBytes_AS_STRING(data)
        with nogil:
            code = spill_read(t, body, 0, into, size, &fault)
        if code != OK:
            raised(&fault)
        return data


@cython.final
@cython.no_gc_clear
cdef class RecordCursor:
    """A place among the records of a tree as it was when the cursor was made; moves both ways."""

    cdef RecordIterator it
    cdef int pos          # of the record in the leaf; -1 before the first record, past the last one behind it
    cdef bint lost        # a move failed on its way, and no other has found a place since

    def __cinit__(self, TreeView view not None):
        self.it = view.iterate(None, None, False, False)

    cdef Cursor *cursor(self) except NULL:
        if self.it is None:
            raise StoreClosed("the cursor is closed")
        if self.it.running:
            raise InvalidRequest("the cursor is in use by another thread")
        return &self.it.c

    cdef object move(self, int step, bint anew):
        """To the next leaf in a direction (+1, -1), or `anew` to the first one there; the record at the place reached, or None."""
        cdef Cursor *c = self.cursor()
        cdef RecordIterator it = self.it
        cdef Fault fault
        cdef int code = OK
        memset(&fault, 0, sizeof(Fault))
        it.running = True
        with nogil:
            if anew:
                cursor_clear(c)
            c.reverse = step < 0
            c.last = 0
            code = cursor_more(c, &fault)
        it.running = False
        self.lost = code != OK
        if code != OK:
            cursor_clear(c)
            raised(&fault)
        if c.pos < c.end:
            self.pos = c.end - 1 if step < 0 else c.pos
        else:
            self.pos = -1 if step < 0 else node_count(c.node[c.depth])
        return self.here(c)

    cdef object here(self, Cursor *c):
        if c.depth < 0 or not 0 <= self.pos < node_count(c.node[c.depth]):
            return None
        return self.it.record(self.pos)

    cdef object step(self, int step):
        cdef Cursor *c = self.cursor()
        cdef int count
        if self.lost:
            raise InvalidRequest("the cursor lost its place when a move failed: first, last or seek give it another")
        if c.depth < 0:
            return self.move(step, True)
        count = node_count(c.node[c.depth])
        if 0 <= self.pos + step < count:
            self.pos += step
            return self.it.record(self.pos)
        c.pos = c.end
        return self.move(step, False)

    def first(self):
        """Go to the first record and return it; None in an empty tree. Cost: one page per level."""
        return self.move(1, True)

    def last(self):
        """Go to the last record and return it; None in an empty tree. Cost: one page per level."""
        return self.move(-1, True)

    def seek(self, key):
        """Go to the first record at or after `key` and return it; None, and behind the last one, where there is none. Cost: one
        page per level; where the record is the first of the next leaf, 2 * height - 1 pages at most, the root once."""
        cdef bytes k = as_bytes(key)
        cdef Cursor *c = self.cursor()
        k = self.it.view.search_key(k)
        c.start = <uint8_t *> PyBytes_AS_STRING(k)
        c.start_len = <int> PyBytes_GET_SIZE(k)
        try:
            return self.move(1, True)
        finally:
            c.start = NULL

    def next(self):
        """Go to the next record (of a fresh cursor, the first) and return it; None behind the last. Cost: no page inside a leaf,
        else the next leaf; where index pages end with the leaf, height - 1 pages at most, all but the root. And those of a spilled
        value."""
        return self.step(1)

    def prev(self):
        """Go to the record before (of a fresh cursor, the last) and return it; None before the first. Cost: as `next`."""
        return self.step(-1)

    @property
    def record(self):
        """The record at the place; None before the first, behind the last, and in a fresh cursor. Cost: no page."""
        return self.here(self.cursor())

    def close(self):
        """Release the pages and the pinned generation; later calls raise StoreClosed. Cost: no page."""
        cdef RecordIterator it = self.it
        if it is not None:
            self.cursor()
            self.it = None
            it.finish()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
