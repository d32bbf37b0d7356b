# What Python sees: the classes of `_kernel.pyi`.

crc32c_setup()
cdef int64_t value_size_max = VALUE_SIZE_MAX

COMPARE_BYTES = CMP_BYTES
COMPARE_U64_LE = CMP_U64_LE
COMPARE_U64_BE = CMP_U64_BE
COMPARE_I64 = CMP_I64
COMPARE_REVERSE = CMP_REVERSE
COMPARE_PAIR = CMP_PAIR
PAGE_HEADER_SIZE = HEADER
assert sizeof(Node) == NODE_SIZE and (NODE_SIZE + HEADER) % 64 == 0


def crc32c(data, unsigned int value=0):
    """CRC-32C of any buffer, continuing from `value`. Without the interpreter lock above 4 KiB."""
    cdef const unsigned char[::1] view
    cdef Py_ssize_t n
    cdef const unsigned char *p
    if type(data) is bytes:
        p = <const unsigned char *> PyBytes_AS_STRING(data)
        n = PyBytes_GET_SIZE(data)
    else:
        view = memoryview(data).cast("B")
        n = view.shape[0]
        p = &view[0] if n else NULL
    if n > 4096:
        with nogil:
            value = crc32c_update(value, p, n, 0)
        return value
    return crc32c_update(value, p, n, 0)


def crc32c_table(data, unsigned int value=0):
    """The same number by tables, as on a processor without the instruction; for tests."""
    cdef bytes copy = bytes(data)
    return crc32c_update(value, PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy), 1)


def fail_memory(int64_t after, int64_t failures=1):
    """Let the next `after` allocations of the kernel succeed and `failures` then fail; for tests. -1: none fails. Returns
    how many have failed since the last call."""
    cdef int64_t failed = memory_failed
    memory_fail(after, failures)
    return failed


def crc32c_blocks(data, Py_ssize_t block_size):
    """CRC-32C of each `block_size` bytes of `data` (the last may be short), packed as little-endian u32."""
    cdef const unsigned char[::1] view = memoryview(data).cast("B")
    cdef Py_ssize_t n = view.shape[0], i, count
    cdef const unsigned char *p
    cdef unsigned char *out
    if block_size <= 0:
        raise InvalidRequest(f"block size {block_size}")
    count = (n + block_size - 1) // block_size
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 4 * count)
    if n:
        p = &view[0]
        out = <unsigned char *> PyBytes_AS_STRING(result)
        with nogil:
            for i in range(count):
                st32(out + 4 * i, crc32c_update(0, p + i * block_size, min(block_size, n - i * block_size), 0))
    return result


cdef object raised(Fault *f):
    """Raise the typed error for a fault."""
    cdef object error
    what = (<bytes> f.what).decode() if f.what != NULL else ""
    if f.code == E_PYTHON:
        error = <object> f.error
        Py_DECREF(error)
        f.error = NULL
        raise error
    if f.code == E_MEMORY:
        raise MemoryError(what)
    if f.code == E_BROKEN:
        raise StoreClosed("the tree takes no more changes: one could be neither finished nor undone; open it from its last root")
    if f.code == E_CLOSED:
        raise StoreClosed(f"the {what} is closed")
    if f.code == E_NO_REFS:
        raise InvalidRequest("a clone needs Pager.refs, the tree that counts shared pages")
    if f.code == E_DEVICE:
        raise DeviceFailed(what, f"page {f.address}", OSError(f.found, "") if f.found else "end of the medium")
    raise CorruptionError("page", f"address {f.address}, tree {f.tree_id}, level {f.level} ({what})",
                          hex(f.expected), hex(f.found))


cdef bytes as_bytes(object value):
    if type(value) is bytes:
        return <bytes> value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"bytes are wanted, not {type(value).__name__}")


cdef bytes HIGHEST = b"\xff" * 1100  # above every value of a tree with duplicates


cdef bytes duplicate_key(bytes key, bytes value):
    """The stored key of a tree with duplicates: key, value, u16 length of the key."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(key)
    return key + value + bytes((n & 255, n >> 8))


def ascending(Tree tree, items):
    """Pass records through, refusing one whose key is not above the one before it."""
    cdef Shape *s = &tree.open_core().s
    cdef bytes last = None, stored
    for key, value in items:
        stored = tree.search_key(key)
        if s.duplicates:
            stored = duplicate_key(as_bytes(key), as_bytes(value))
        if last is not None and compare(s, <uint8_t *> PyBytes_AS_STRING(last), <int> PyBytes_GET_SIZE(last),
                                        <uint8_t *> PyBytes_AS_STRING(stored), <int> PyBytes_GET_SIZE(stored)) >= 0:
            raise InvalidRequest(f"bulk_load wants ascending records; {key!r} does not follow")
        last = stored
        yield key, value


cdef class Descriptor:
    """What a tree is. Kept in its root record; opening with another one is refused."""

    cdef readonly int key_size
    cdef readonly long long value_size
    cdef readonly int comparator
    cdef readonly bint duplicates
    cdef readonly int copies
    cdef readonly int embed_limit

    def __init__(self, key_size=-2, value_size=-4, *, comparator=1, duplicates=False, copies=1, embed_limit=0):
        if key_size not in (-1, -2, -4) and not 0 < key_size <= 1024:
            raise InvalidRequest(f"key_size {key_size}: 1 to 1024, or -1, -2, -4")
        if value_size not in (-1, -2, -4) and not 0 <= value_size < 1 << 30:
            raise InvalidRequest(f"value_size {value_size}: 0 to 2**30 - 1, or -1, -2, -4")
        if not CMP_BYTES <= comparator <= CMP_PAIR:
            raise UnsupportedFormat(f"comparator {comparator} is not known to this version")
        if comparator in (CMP_U64_LE, CMP_U64_BE, CMP_I64) and key_size != 8:
            raise InvalidRequest(f"comparator {comparator} orders keys of 8 bytes, key_size is {key_size}")
        if not 1 <= copies <= 3:
            raise InvalidRequest(f"copies {copies}: 1 to 3")
        if not 0 <= embed_limit <= 65535:
            raise InvalidRequest(f"embed_limit {embed_limit}: 0 to 65535")
        self.key_size = key_size
        self.value_size = value_size
        self.comparator = comparator
        self.duplicates = duplicates
        self.copies = copies
        self.embed_limit = embed_limit

    cdef tuple fields(self):
        return (self.key_size, self.value_size, self.comparator, self.duplicates, self.copies, self.embed_limit)

    def __eq__(self, other):
        return isinstance(other, Descriptor) and self.fields() == (<Descriptor> other).fields()

    def __hash__(self):
        return hash(self.fields())

    def __repr__(self):
        return ("Descriptor(key_size=%d, value_size=%d, comparator=%d, duplicates=%s, copies=%d, embed_limit=%d)"
                % self.fields())


cdef class Pager:
    """A bounded cache of checksummed pages over one device, shared by every tree of an image."""

    cdef PagerCore core
    cdef readonly object device
    cdef object _refs
    cdef dict _pins

    def __cinit__(self, device, *, page_size=4096, cache_bytes=64 << 20):
        if not 256 <= page_size <= PAGE_MAX:
            raise InvalidRequest(f"page_size {page_size}: 256 to 65536")
        memset(&self.core, 0, sizeof(PagerCore))
        self.device = device
        self.core.page_size = page_size
        self.core.cache_bytes = cache_bytes
        self.core.owner = <void *> self
        self.core.fd = device.fileno()
        self.core.read_only = device.read_only
        self._pins = {}

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

    @property
    def generation(self):
        return self.core.generation

    @generation.setter
    def generation(self, uint64_t value):
        self.core.generation = value

    @property
    def page_size(self):
        return self.core.page_size

    @property
    def cache_bytes(self):
        return self.core.cache_bytes

    @cache_bytes.setter
    def cache_bytes(self, int64_t value):
        self.core.cache_bytes = value
        with nogil:
            make_room(&self.core)

    @property
    def dirty_bytes(self):
        return at_get64(&self.core.dirty_bytes)

    @property
    def sealed_pages(self):
        return self.core.sealed_pages

    @property
    def oldest_pinned_generation(self):
        return min(self._pins, default=None)

    @property
    def refs(self):
        return self._refs

    @refs.setter
    def refs(self, Tree tree):
        if tree is not None and (tree.core.p != &self.core or tree.core.s.key_size != 8
                                 or tree.core.s.comparator != CMP_U64_BE or tree.core.s.fixed_value != 4):
            raise InvalidRequest("the tree of shared pages is one of this pager with REFS_DESCRIPTOR")
        self._refs = tree
        self.core.refs = tree.core if tree is not None else NULL

    cdef void pin(self, uint64_t generation):
        self._pins[generation] = self._pins.get(generation, 0) + 1

    cdef void unpin(self, uint64_t generation):
        cdef object left = self._pins[generation] - 1
        if left:
            self._pins[generation] = left
        else:
            del self._pins[generation]

    def write_sealed(self, int64_t max_bytes=-1):
        cdef PagerCore *p = &self.core
        cdef Queue *queue
        cdef Write *taken
        cdef int64_t n, done = 0, first, written = 0, i
        if p.closed:
            raise StoreClosed("the pager is closed")
        with nogil:
            queue = queue_take(p)
            if queue != NULL:
                qsort(queue.writes, queue.n, sizeof(Write), &by_address)
        if queue == NULL:
            if p.queue != NULL:
                raise MemoryError("sealed pages")
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
                p.device_writes += 1
        finally:
            p.pages_written += written // p.page_size
            p.bytes_written += written
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
        cdef PagerCore *p = &self.core
        cdef uint64_t *freed
        cdef int64_t n, i
        spin_lock(&p.spin)
        freed = p.freed
        n = p.freed_n
        p.freed = NULL
        p.freed_n = p.freed_cap = 0
        spin_unlock(&p.spin)
        try:
            return [(freed[3 * i], freed[3 * i + 1], freed[3 * i + 2]) for i in range(n)]
        finally:
            free(freed)

    def counters(self):
        cdef PagerCore *p = &self.core
        return {
            "hits": at_get64(&p.hits), "misses": at_get64(&p.misses), "evictions": at_get64(&p.evictions),
            "pages_read": at_get64(&p.pages_read), "pages_written": p.pages_written,
            "bytes_read": at_get64(&p.bytes_read), "bytes_written": p.bytes_written,
            "device_reads": at_get64(&p.device_reads), "device_writes": p.device_writes,
            "splits": at_get64(&p.splits), "merges": at_get64(&p.merges), "rotations": at_get64(&p.rotations),
            "page_copies": at_get64(&p.copies), "cached_bytes": at_get64(&p.clean_bytes),
            "dirty_pages": at_get64(&p.dirty_pages), "dirty_bytes": at_get64(&p.dirty_bytes),
            "sealed_pages": p.sealed_pages, "copies_repaired": at_get64(&p.copies_repaired),
        }

    def close(self):
        """Refuse further reads of the device. Trees in memory stay as they are; nothing is written."""
        self.core.closed = 1


cdef inline int lock_pager(PagerCore *p) except -1:
    """Take pager.rw shared, from Python code."""
    if not rw_try_shared(&p.rw):
        with nogil:
            rw_lock_shared(&p.rw)
    return 0


cdef TreeCore *core_new(Pager pager) except NULL:
    cdef TreeCore *t = <TreeCore *> take_zeroed(1, sizeof(TreeCore))
    if t == NULL:
        raise MemoryError()
    t.p = &pager.core
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
    rw_lock_shared(&t.p.rw)
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
    v.paged = t.paged and (t.root == NULL or at_get8(&t.root.state) == CLEAN or at_get8(&t.root.state) == SEALED)
    rw_tally_add(&v.rw, records_of(t))
    memcpy(v.ref, t.ref, REF_MAX)
    v.root = <Node *> at_getp(&t.root)
    if v.root != NULL:
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
    rw_unlock_exclusive(&t.rw)
    rw_unlock_shared(&t.p.rw)


@cython.no_gc_clear
cdef class TreeView:
    """Reads of a tree as it was at one moment."""

    cdef TreeCore *core
    cdef readonly Pager pager
    cdef bytes _blob
    cdef bint _pinned

    def __dealloc__(self):
        self.release()

    cdef int release(self) except -1:
        cdef TreeCore *t = self.core
        if t != NULL:
            self.core = NULL
            if self._pinned:
                self.pager.unpin(t.pinned)
                self._pinned = False
            with nogil:
                core_free(t)
        return 0

    cdef TreeCore *open_core(self) except NULL:
        if self.core == NULL:
            raise StoreClosed("the tree is closed")
        return self.core

    cdef TreeView view(self):
        """A view of the tree as it is now: O(1), no page read."""
        cdef TreeCore *t = self.open_core()
        cdef TreeView view = TreeView.__new__(TreeView)
        view.pager = self.pager
        view._blob = self._blob
        view.core = core_new(self.pager)
        if t.live:
            lock_tree(t)
            core_view(t, view.core)
            view.core.pinned = self.pager.core.generation
            unlock_tree(t)
        else:
            lock_pager(t.p)
            core_view(t, view.core)
            rw_unlock_shared(&t.p.rw)
            view.core.pinned = t.pinned
        self.pager.pin(view.core.pinned)
        view._pinned = True
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
        return records_of(self.open_core())

    def __bool__(self):
        return True

    def __contains__(self, key):
        if self.open_core().s.duplicates:
            return next(self.values_of(key), None) is not None
        return self.find(key, True, None) is not None

    def get(self, key, default=None):
        """The value of `key`, or `default`. Cost: one page per level, read from the device where not cached."""
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

    def read(self, key, int64_t offset=0, int64_t length=-1):
        """Bytes of a value from `offset` (to its end, or `length` of them), short at the end; None where there is no such key.
        Cost: as `get`, but of a spilled value only the pages that hold the range."""
        cdef bytes k = self.search_key(key)
        cdef TreeCore *t = self.core
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(k)
        cdef int klen = <int> PyBytes_GET_SIZE(k), code
        cdef Out out
        cdef Fault fault
        if offset < 0 or t.s.duplicates:
            raise InvalidRequest(f"read from {offset}" if offset < 0 else "values of a tree with duplicates have no ranges")
        if length < 0:
            length = 1 << 62
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = read_part(t, p, klen, offset, length, &out, &fault)
        if code != OK:
            raised(&fault)
        try:
            return PyBytes_FromStringAndSize(<char *> out.data, out.size) if out.found else None
        finally:
            free(out.data)

    def count(self, start=None, stop=None):
        """Records with start <= key < stop. Cost: two paths from the root, and the pages that no seal has reached."""
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
            rw_lock_shared(&t.p.rw)
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
        """Keys of either tree, each once, in order, by merging. Both are read as they are now."""
        return KeyMerge(self, other, True, True, True)

    def intersection(self, TreeView other not None):
        """Keys that both trees have, in order."""
        return KeyMerge(self, other, False, True, False)

    def difference(self, TreeView other not None):
        """Keys of this tree that `other` does not have, in order."""
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
        cdef object result = default
        if t != NULL and t.s.comparator == CMP_BYTES and type(key) is bytes:
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
                    result = PyBytes_FromStringAndSize(<char *> value, vlen)
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
        cdef TreeCore *t = self.core
        cdef int code
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(key)
        cdef int klen = <int> PyBytes_GET_SIZE(key)
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = get_copy(t, p, klen, &out, &fault)
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
        """The values of many keys, None for those missing, without the interpreter lock. Cost: as `get` for each."""
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
                if not plain or type(key) is not bytes:
                    key = self.search_key(key)
                checked.append(key)  # the caller may change its list while we are at it
                pointers[i] = <uint8_t *> PyBytes_AS_STRING(<bytes> key)
                sizes[i] = <int> PyBytes_GET_SIZE(<bytes> key)
            with nogil:
                code = get_batch(t, pointers, sizes, n, &arena, out, &fault)
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
        """The first record at or after `key` (reverse: the last at or before it). Cost: one page per level, or two leaves."""
        cdef object value
        if not reverse:
            return next(self.items(key), None)
        if self.open_core().s.duplicates:
            return next(self.iterate_stored(None, self.search_key(key, True), True, False), None)
        value = self.find(key, False, None)
        return (bytes(key), value) if value is not None else next(self.items(None, key, reverse=True), None)

    def items(self, start=None, stop=None, *, bint reverse=False):
        return self.iterate(start, stop, reverse, False)

    def keys(self, start=None, stop=None, *, bint reverse=False):
        return self.iterate(start, stop, reverse, True)

    def prefix(self, prefix, *, bint reverse=False):
        cdef bytes start = as_bytes(prefix)
        if self.open_core().s.comparator not in (CMP_BYTES, CMP_U64_BE):
            raise InvalidRequest("prefixes mean something only where keys compare as bytes")
        cdef bytes stem = start.rstrip(b"\xff")
        cdef Py_ssize_t n = len(stem)
        stop = stem[:n - 1] + bytes([stem[n - 1] + 1]) if n else None
        return self.iterate(start, stop, reverse, False)

    def __iter__(self):
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

    @property
    def user_blob(self):
        return self._blob

    def snapshot(self):
        """A read-only view of the tree as it is now. O(1); writers copy the pages it holds before they change them."""
        return self.view()

    def close(self):
        """Release the pages and the pinned generation. Later calls raise StoreClosed."""
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()


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
        if c.pos >= c.end:
            if self.view is None:
                raise StopIteration
            if not c.last or c.depth < 0:
                memset(&fault, 0, sizeof(Fault))
                with nogil:
                    code = cursor_more(c, &fault)
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
        with nogil:
            rw_lock_shared(&self.c.t.p.rw)
            code = spill_read(self.c.t, body, 0, into, size, &fault)
            rw_unlock_shared(&self.c.t.p.rw)
        if code != OK:
            raised(&fault)
        return data


cdef int shape_set(TreeCore *t, Descriptor d) except -1:
    t.s.page_size = t.p.page_size
    t.s.base_key = d.key_size
    t.s.base_value = d.value_size
    t.s.key_size = -2 if d.duplicates else d.key_size
    t.s.value_size = 0 if d.duplicates else d.value_size
    t.s.comparator = d.comparator
    t.s.copies = d.copies
    t.s.duplicates = d.duplicates
    t.s.embed_limit = d.embed_limit
    shape_init(&t.s)
    if d.key_size > t.s.key_max:
        raise LimitExceeded("KEY_SIZE_MAX", d.key_size, t.s.key_max)
    return 0


def key_size_max(int page_size, int copies=1):
    """The longest key a tree with such pages takes: at least three of them fit in an index page."""
    cdef Shape s
    memset(&s, 0, sizeof(Shape))
    s.page_size = page_size
    s.copies = copies
    shape_init(&s)
    return s.key_max


@cython.no_gc_clear
cdef class Tree(TreeView):
    """A mutable tree. Writes change memory only; `seal` makes a version of it that the owner can make durable."""

    cdef Descriptor _descriptor
    cdef bytes _root
    cdef bint _blob_dirty

    def __init__(self, Pager pager not None, Descriptor descriptor not None, uint64_t tree_id):
        self.start(pager, descriptor, tree_id)
        self.core.root = empty_leaf(self.core)
        if self.core.root == NULL:
            raise MemoryError()
        self.core.dirty_nodes = 1
        self.core.is_dirty = 1

    cdef int start(self, Pager pager, Descriptor descriptor, uint64_t tree_id) except -1:
        if self.core != NULL:
            raise InvalidRequest("the tree is made already")
        self.pager = pager
        self._descriptor = descriptor
        self._blob = b""
        self.core = core_new(pager)
        self.core.live = 1
        self.core.tree_id = tree_id
        shape_set(self.core, descriptor)
        return 0

    @classmethod
    def open(cls, Pager pager not None, root, Descriptor expect=None):
        cdef bytes record = as_bytes(root)
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(record)
        cdef int64_t size = PyBytes_GET_SIZE(record), blob
        cdef Tree tree
        cdef TreeCore *t
        cdef const char *fault = NULL
        if size < ROOT_HEADER:
            raise CorruptionError("root record", "a tree's root", f"{ROOT_HEADER} bytes or more", size)
        if p[0] != ROOT_VERSION:
            raise UnsupportedFormat(f"root record version {p[0]} is not known to this version")
        if not CMP_BYTES <= p[2] <= CMP_PAIR:
            raise UnsupportedFormat(f"comparator {p[2]} is not known to this version")
        try:
            found = Descriptor(<int16_t> ld16(p + 4), <int32_t> ld32(p + 8), comparator=p[2],
                               duplicates=bool(p[1] & ROOT_DUPLICATES), copies=p[1] >> 2 & 3, embed_limit=ld16(p + 6))
        except InvalidRequest as error:
            raise CorruptionError("root record", f"tree {ld64(p + 16)}", "a descriptor", str(error)) from None
        if expect is not None and expect != found:
            raise UnsupportedFormat(f"tree {ld64(p + 16)} is {found!r}, not {expect!r}")
        blob = ld32(p + 12)
        if blob > USER_BLOB_MAX or ROOT_HEADER + blob > size or p[1] >> 4 or ld64(p + 24) >> 40:
            raise CorruptionError("root record", f"tree {ld64(p + 16)}", "sane lengths and flags", record[:32].hex())
        tree = cls.__new__(cls)
        tree.start(pager, found if expect is None else expect, ld64(p + 16))
        t = tree.core
        rw_tally_add(&t.rw, <int64_t> ld64(p + 24))
        t.level = p[3]
        tree._blob = record[ROOT_HEADER:ROOT_HEADER + blob]
        tree._root = record
        if p[1] & ROOT_PAGED:
            if size != ROOT_HEADER + blob + t.s.ref_size or t.level >= HEIGHT_MAX or records_of(t) == 0:
                fault = "length or level"
            else:
                memcpy(t.ref, p + ROOT_HEADER + blob, t.s.ref_size)
                t.paged = 1
        elif t.level:
            fault = "level of an embedded tree"
        else:
            fault = embedded_load(t, p + ROOT_HEADER + blob, p + size)
        if fault != NULL:
            raise CorruptionError("root record", f"tree {t.tree_id}", "sound records", (<bytes> fault).decode())
        return tree

    @property
    def descriptor(self):
        return self._descriptor

    @property
    def tree_id(self):
        return self.open_core().tree_id

    @property
    def height(self):
        """Levels of pages, the leaves included; 1 for an embedded tree."""
        return self.open_core().level + 1

    @property
    def is_dirty(self):
        return bool(self.open_core().is_dirty or self._blob_dirty)

    @property
    def dirty_pages(self):
        cdef TreeCore *t = self.open_core()
        cdef int64_t pages
        lock_tree(t)
        pages = 0 if embeds(t) else (t.dirty_nodes + t.dirty_spill) * t.s.copies
        unlock_tree(t)
        return pages

    @property
    def user_blob(self):
        return self._blob

    @user_blob.setter
    def user_blob(self, blob):
        cdef bytes b = as_bytes(blob)
        if len(b) > USER_BLOB_MAX:
            raise LimitExceeded("USER_BLOB_MAX", len(b), USER_BLOB_MAX)
        self._blob = b
        self._blob_dirty = True

    # -- writes --------------------------------------------------------------------------------------------------------
    cdef int check_record(self, bytes key, bytes value) except -1:
        cdef TreeCore *t = self.open_core()
        cdef Py_ssize_t klen = PyBytes_GET_SIZE(key), vlen = PyBytes_GET_SIZE(value)
        if t.s.duplicates:
            return self.check_duplicate(key, value)
        if klen > t.s.key_max or (t.s.key_size == -1 and klen > 255):
            raise LimitExceeded("KEY_SIZE_MAX", klen, min(t.s.key_max, 255 if t.s.key_size == -1 else t.s.key_max))
        if t.s.key_size > 0 and klen != t.s.key_size:
            raise InvalidRequest(f"keys of this tree have {t.s.key_size} bytes, not {klen}")
        if t.s.comparator == CMP_PAIR:
            self.check_order(key)
        if t.s.value_size >= 0:
            if vlen != t.s.value_size:
                raise InvalidRequest(f"values of this tree have {t.s.value_size} bytes, not {vlen}")
        elif vlen > value_size_max or (t.s.value_size == -1 and vlen > 255) or (t.s.value_size == -2 and vlen > 65535):
            raise LimitExceeded("VALUE_SIZE_MAX", vlen, min(value_size_max, (1 << -8 * t.s.value_size) - 1))
        return 0

    cdef int check_duplicate(self, bytes key, bytes value) except -1:
        cdef TreeCore *t = self.core
        cdef Py_ssize_t klen = PyBytes_GET_SIZE(key), vlen = PyBytes_GET_SIZE(value)
        if klen + vlen + 2 > t.s.key_max:
            raise LimitExceeded("KEY_SIZE_MAX", klen + vlen + 2, t.s.key_max)
        if t.s.base_key > 0 and klen != t.s.base_key or t.s.base_value >= 0 and vlen != t.s.base_value:
            raise InvalidRequest(f"this tree keeps {self._descriptor!r}, not {klen} and {vlen} bytes")
        if t.s.base_key == -1 and klen > 255 or t.s.base_value == -1 and vlen > 255:
            raise LimitExceeded("KEY_SIZE_MAX", max(klen, vlen), 255)
        return self.check_order(key)

    def put(self, key, value=b""):
        """Set the value; True when the key was there before. Cost: one page per level; a page not yet dirty is copied, a full
        leaf also touches a sibling or makes one. LimitExceeded, InvalidRequest: nothing changed."""
        cdef bytes k = key if type(key) is bytes else as_bytes(key)
        cdef bytes v = value if type(value) is bytes else as_bytes(value)
        cdef TreeCore *t = self.core
        cdef bint existed = False, done = False
        cdef int klen = <int> PyBytes_GET_SIZE(k)
        cdef Py_ssize_t vlen = PyBytes_GET_SIZE(v)
        cdef const uint8_t *kp = <uint8_t *> PyBytes_AS_STRING(k)
        cdef const uint8_t *vp = <uint8_t *> PyBytes_AS_STRING(v)
        cdef Node *leaf
        cdef Fault fault
        cdef int code
        self.check_record(k, v)
        if t.s.duplicates:
            k = duplicate_key(k, v)
            v = b""
            kp = <uint8_t *> PyBytes_AS_STRING(k)
            klen = <int> PyBytes_GET_SIZE(k)
            vlen = 0
        if not value_spills(&t.s, klen, vlen) and rw_try_shared(&t.rw):
            leaf = owned_leaf(t, kp, klen)
            done = leaf != NULL and leaf_put(t, leaf, kp, klen, vp, <int> vlen, &existed)
            rw_unlock_shared_adding(&t.rw, 1 if done and not existed else 0)
        note_hits(t, 1)
        if done:
            return existed
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            rw_lock_exclusive(&t.rw)
            code = fail(&fault, E_BROKEN, "tree") if t.broken else put_slow(t, kp, klen, vp, vlen, &existed, &fault)
            unlock_tree(t)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        return existed

    def write(self, key, int64_t offset, data):
        """Overwrite bytes of a value from `offset`, growing it (a gap reads as zeros); the key must be there, else NotFound.
        Cost: inside a spilled value the pages touched and their overflow index (what no seal has reached is changed in place); where it
        grows, stays in a leaf, waits for write_sealed or is shared with a clone or a view, it is read whole and put again."""
        cdef bytes k = self.search_key(key), d = as_bytes(data), whole
        cdef TreeCore *t = self.core
        cdef const uint8_t *kp = <uint8_t *> PyBytes_AS_STRING(k)
        cdef const uint8_t *dp = <uint8_t *> PyBytes_AS_STRING(d)
        cdef int klen = <int> PyBytes_GET_SIZE(k), code
        cdef int64_t n = PyBytes_GET_SIZE(d)
        cdef bint done = False
        cdef Fault fault
        if offset < 0 or t.s.duplicates:
            raise InvalidRequest(f"write at {offset}" if offset < 0 else "values of a tree with duplicates have no ranges")
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            rw_lock_exclusive(&t.rw)
            code = fail(&fault, E_BROKEN, "tree") if t.broken else write_part(t, kp, klen, offset, dp, n, &done, &fault)
            unlock_tree(t)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        if done:
            return
        whole = self.find(key, False, None)
        if whole is None:
            raise NotFound("key", key)
        if offset + len(d) > value_size_max:
            raise LimitExceeded("VALUE_SIZE_MAX", offset + len(d), value_size_max)
        self.put(key, whole[:offset].ljust(offset, b"\0") + d + whole[offset + len(d):])

    def delete_value(self, key, value):
        """Remove one value of a key in a tree with duplicates; True when it was there. Cost: as `delete`."""
        if not self.open_core().s.duplicates:
            raise InvalidRequest("the tree keeps one value for a key: use delete")
        self.check_order(as_bytes(key))
        return self.remove(duplicate_key(as_bytes(key), as_bytes(value)))

    def delete(self, key):
        """Remove (all values of) a key; True when it was there. Cost: one page per level, and a sibling where a page falls under
        half full."""
        cdef bytes k = self.search_key(key)
        if self.core.s.duplicates:
            return self.cut(k, self.search_key(key, True)) > 0
        return self.remove(k)

    cdef object remove(self, bytes k):
        cdef TreeCore *t = self.core
        cdef bint existed = False, done = False
        cdef int klen = <int> PyBytes_GET_SIZE(k), code
        cdef const uint8_t *kp = <uint8_t *> PyBytes_AS_STRING(k)
        cdef Node *leaf
        cdef Fault fault
        if rw_try_shared(&t.rw):
            leaf = owned_leaf(t, kp, klen)
            done = leaf != NULL and leaf_delete(t, leaf, kp, klen, &existed)
            rw_unlock_shared_adding(&t.rw, -1 if done and existed else 0)
        if done:
            return existed
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = delete_key(t, kp, klen, &existed, &fault)
        if code != OK:
            raised(&fault)
        return existed

    def update(self, items):
        """Put many; how many keys were new. Without the interpreter lock, a thousand records at a time. An error names the first
        record that was refused; those of earlier groups are in the tree. Cost: as `put` for each."""
        return self.batch(iter(items.items() if isinstance(items, dict) else items), True)

    def delete_many(self, keys):
        """Remove many; how many were there. Cost: as `delete` for each."""
        return self.batch(iter(keys), False)

    cdef int64_t batch(self, object source, bint puts) except -1:
        cdef TreeCore *t = self.open_core()
        cdef Work *w = <Work *> take(sizeof(Work))
        cdef Fault fault
        cdef int code = OK
        cdef int64_t total = 0
        cdef list held
        cdef bytes key, value
        if t.s.duplicates and not puts:
            free(w)
            for key in source:
                total += bool(self.delete(key))
            return total
        if w == NULL:
            raise MemoryError()
        memset(&fault, 0, sizeof(Fault))
        w.existed = 0
        try:
            while True:
                held = []
                w.n = 0
                for item in source:
                    if puts:
                        k, v = item
                        key = k if type(k) is bytes else as_bytes(k)
                        value = v if type(v) is bytes else as_bytes(v)
                        self.check_record(key, value)
                        if t.s.duplicates:
                            key = duplicate_key(key, value)
                            value = b""
                        held.append(value)
                        w.value[w.n] = <uint8_t *> PyBytes_AS_STRING(value)
                        w.vlen[w.n] = PyBytes_GET_SIZE(value)
                    else:
                        key = self.search_key(item)
                    held.append(key)
                    w.key[w.n] = <uint8_t *> PyBytes_AS_STRING(key)
                    w.klen[w.n] = <int> PyBytes_GET_SIZE(key)
                    w.n += 1
                    if w.n == WORK_CHUNK:
                        break
                if w.n == 0:
                    return total - w.existed if puts else w.existed
                if self.core != t:
                    raise StoreClosed("the tree is closed")
                with nogil:
                    code = put_batch(t, w, &fault) if puts else delete_batch(t, w, &fault)
                if code != OK:
                    raised(&fault)
                total += w.n
        finally:
            free(w)

    def delete_range(self, start=None, stop=None):
        """Remove start <= key < stop; how many that were. Cost: the pages on the two borders, index pages of whole subtrees, and
        leaves only where a value has spilled."""
        cdef bytes a = self.search_key(start) if start is not None else None
        cdef bytes b = self.search_key(stop) if stop is not None else None
        return self.cut(a, b)

    cdef int64_t cut(self, bytes a, bytes b) except -1:
        cdef TreeCore *t = self.open_core()
        cdef Range r
        cdef int64_t records = 0
        cdef int code
        cdef Fault fault
        memset(&r, 0, sizeof(Range))
        memset(&fault, 0, sizeof(Fault))
        if a is not None:
            r.start = <uint8_t *> PyBytes_AS_STRING(a)
            r.start_len = <int> PyBytes_GET_SIZE(a)
        if b is not None:
            r.stop = <uint8_t *> PyBytes_AS_STRING(b)
            r.stop_len = <int> PyBytes_GET_SIZE(b)
        with nogil:
            rw_lock_shared(&t.p.rw)
            rw_lock_exclusive(&t.rw)
            code = fail(&fault, E_BROKEN, "tree") if t.broken else delete_range_slow(t, &r, &records, &fault)
            unlock_tree(t)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        return records

    def clear(self):
        """Remove everything and free every page. Cost: the index pages, and leaves only where a value has spilled."""
        self.delete_range()

    def bulk_load(self, items):
        """Fill an empty tree from ascending records: insertions at the right edge leave full leaves behind. InvalidRequest:
        the tree is not empty, or the records do not ascend (it is empty again then). Cost: each page once."""
        if len(self):
            raise InvalidRequest("bulk_load fills an empty tree")
        try:
            self.batch(ascending(self, items), True)
        except BaseException:
            self.clear()
            raise

    def clone(self):
        """Another mutable tree with the same content and the same tree id. Sealed pages are shared and counted in
        `Pager.refs`; pages that are dirty are copied in memory, so a tree just sealed is cloned in O(1). Drop a clone with
        `clear()`, so that its pages are no longer counted. InvalidRequest: the pager has no `refs` tree."""
        cdef TreeCore *t = self.open_core()
        cdef Tree copy = Tree.__new__(Tree)
        cdef Fault fault
        cdef int code
        if self.pager._refs is None:
            raise InvalidRequest("a clone needs Pager.refs, the tree that counts shared pages")
        copy.start(self.pager, self._descriptor, t.tree_id)
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            rw_lock_shared(&t.p.rw)
            rw_lock_exclusive(&t.rw)
            code = fail(&fault, E_BROKEN, "tree") if t.broken else clone_core(t, copy.core, &fault)
            unlock_tree(t)
        copy._blob = self._blob
        copy._blob_dirty = self._blob_dirty
        copy._root = None if t.is_dirty else self._root
        if code != OK:
            raised(&fault)
        return copy

    # -- sealing -------------------------------------------------------------------------------------------------------
    def seal(self, allocate):
        cdef TreeCore *t = self.open_core()
        cdef Plan plan
        cdef Fault fault
        cdef int code = OK
        cdef bint embedded
        cdef int64_t used = 0, i
        cdef bytes record
        if t.broken:
            fail(&fault, E_BROKEN, "tree")
            raised(&fault)
        memset(&plan, 0, sizeof(Plan))
        memset(&fault, 0, sizeof(Fault))
        plan.t = t
        try:
            lock_with_addresses(&plan, allocate)
            try:
                embedded = embeds(t)
                record = PyBytes_FromStringAndSize(NULL, root_size(t, self._blob, embedded))
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
                root_record(t, self._blob, embedded, record)
                self._root = record
                t.is_dirty = 0
                self._blob_dirty = False
                return record
            finally:
                unlock_tree(t)
        finally:
            for i in range(used, plan.given):  # what was not needed, or the seal did not come to use
                freed_add(t.p, plan.addresses[i], 1, t.p.generation)
            free(plan.addresses)

    def seal_leaves(self, allocate, int64_t start, int64_t pages):
        cdef TreeCore *t = self.open_core()
        cdef Plan plan
        cdef Fault fault
        cdef int code = OK
        cdef int64_t at = 0, i, k
        memset(&plan, 0, sizeof(Plan))
        memset(&fault, 0, sizeof(Fault))
        plan.t = t
        if start < 0 or pages < 1:
            raise InvalidRequest(f"seal_leaves from {start} on, {pages} pages")
        plan.total = min(pages, dirty_below_root(t))
        if not plan.total:
            return -1
        try:
            take_addresses(&plan, allocate, plan.total * t.s.copies)
            lock_tree(t)
            try:
                if t.root != NULL and t.root.level and at_get8(&t.root.state) == DIRTY:
                    with nogil:
                        code = fail(&fault, E_BROKEN, "tree") if t.broken else seal_reserve(&plan, &fault)
                        if code == OK:
                            seal_leaves_below(&plan, t.root, start, &at)
                            seal_finish(&plan)
            finally:
                unlock_tree(t)
            if code != OK:
                raised(&fault)
            return at if plan.next_page == plan.total else -1
        finally:
            for k in range(t.s.copies):
                for i in range(plan.next_page, plan.total):
                    if k * plan.total + i < plan.given:
                        freed_add(t.p, plan.addresses[k * plan.total + i], 1, t.p.generation)
            free(plan.addresses)

    def root(self):
        if self._root is None or self.core == NULL:
            raise InvalidRequest("the tree was never sealed")
        return self._root

    def check(self):
        """Every violated invariant of the whole tree, in words; empty when sound. Reads every page (through a view, so
        writers go on)."""
        cdef TreeView view = self.view()
        try:
            return TreeCheck(view, self.pager).run()
        finally:
            view.release()

    def pages(self):
        return PageWalk(self.view())


cdef int64_t dirty_below_root(TreeCore *t) except -1:
    """How many pages of a tree of several levels no seal has reached, the root not counted."""
    cdef int64_t n = 0
    lock_tree(t)
    if t.root != NULL and t.root.level and at_get8(&t.root.state) == DIRTY:
        n = t.dirty_nodes - 1
    unlock_tree(t)
    return n


cdef int lock_with_addresses(Plan *plan, object allocate) except -1:
    """Lock the tree with at least as many addresses in hand as it has dirty pages. The owner is asked with no lock held; where
    writers raced it, it is asked again, and pages left over are handed back as freed by the caller."""
    cdef TreeCore *t = plan.t
    while True:
        lock_tree(t)
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
    runs = allocate(wanted)
    wanted += n
    for first, pages in runs:
        address = first
        count = pages
        if count > <uint64_t> (wanted - n) or address + count > <uint64_t> 1 << 48:
            raise InvalidRequest(f"allocate gave {runs!r} where {wanted - plan.given} pages were asked for")
        for i in range(<int64_t> count):
            plan.addresses[n] = address + <uint64_t> i
            n += 1
    if n != wanted:
        raise InvalidRequest(f"allocate gave pages for {n - plan.given} of {wanted - plan.given}")
    plan.given = n
    return 0


cdef Node *clone_node(Release *r, TreeCore *c, Node *n, Fault *f) noexcept nogil:
    """A copy of a dirty node and of the dirty nodes below it; what has an address is shared and listed."""
    cdef Node *copy = node_copy(&c.s, c.p, n, n.cap)
    cdef Node *kid
    cdef Spill *v
    cdef int i
    if copy == NULL:
        fail(f, E_MEMORY, "page")
        return NULL
    c.dirty_nodes += 1
    for i in range(node_count(n) if n.level == 0 and n.spilled else 0):
        v = leaf_spill(copy, i)
        if v != NULL and v.pages != NULL:  # S2
            v = spill_whole(r.t, v, f)
            if v == NULL:
                node_decref(c.p, copy)
                return NULL
            spill_free(c.p, leaf_spill(copy, i))
            st64(spill_at(&c.s, page_of(copy), i) + 16, <uint64_t> <uintptr_t> v)
        if v != NULL:
            c.dirty_spill += spill_pages(&c.s, v.length)
    if gain_below(r, n, f) != OK:
        node_decref(c.p, copy)
        return NULL
    for i in range(node_count(n) if n.level else 0):
        if n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
            kid = clone_node(r, c, n.kids[i], f)
            if kid == NULL:
                node_decref(c.p, copy)
                return NULL
            node_swap(c.p, &copy.kids[i], kid)
    return copy


cdef int clone_core(TreeCore *t, TreeCore *c, Fault *f) noexcept nogil:
    cdef Release r
    cdef int code = OK
    rw_tally_add(&c.rw, records_of(t))
    c.level = t.level
    c.is_dirty = t.is_dirty
    c.paged = t.paged
    memcpy(c.ref, t.ref, REF_MAX)
    release_begin(&r, t, True)
    if t.root != NULL and (at_get8(&t.root.state) == DIRTY or at_get8(&t.root.state) == EMBEDDED):
        c.root = clone_node(&r, c, t.root, f)
        code = OK if c.root != NULL else f.code
        if code == OK and at_get8(&t.root.state) == EMBEDDED:
            node_state(t.p, c.root, EMBEDDED)
            c.dirty_nodes = 0
    else:
        code = release_gain(&r, ref_address(t.ref, 0), f)
        c.root = t.root
        if c.root != NULL:
            at_add32(&c.root.refs, 1)
    if code == OK and r.gains_n:
        code = release_commit(&r, f)
        t.is_dirty = c.is_dirty
    release_end(&r)
    return code


include "walk.pxi"
REFS_DESCRIPTOR = Descriptor(8, 4, comparator=COMPARE_U64_BE)
