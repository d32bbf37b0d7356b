# Iterators over views: records in order, and two sets of keys merged.

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

    def __cinit__(self, TreeView first, TreeView second, bint only_first, bint both, bint only_second):
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
        if self.view is not None:
            cursor_clear(&self.c)
            self.view.release()
            self.view = None
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        cdef Cursor *c = &self.c
        cdef int pos, vlen, code
        cdef Node *leaf
        cdef const uint8_t *value
        cdef Fault fault
        cdef bytes key, data
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
        leaf = c.node[c.depth]
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
        cdef int64_t size = <int64_t> ld64(body)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t *into = <uint8_t *> PyBytes_AS_STRING(data)
        cdef Fault fault
        cdef int code
        memset(&fault, 0, sizeof(Fault))
        self.running = True
        with nogil:
            rw_lock_shared(&self.c.t.p.rw)
            code = spill_read(self.c.t, body, 0, into, size, &fault)
            rw_unlock_shared(&self.c.t.p.rw)
        self.running = False
        if code != OK:
            raised(&fault)
        return data
