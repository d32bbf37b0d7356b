# What Python sees: the classes of `_kernel.pyi`.

crc32c_setup()
cdef int64_t value_size_max = VALUE_SIZE_MAX
cdef int64_t blob_size_max = USER_BLOB_MAX

COMPARE_BYTES = CMP_BYTES
COMPARE_U64_LE = CMP_U64_LE
COMPARE_U64_BE = CMP_U64_BE
COMPARE_I64 = CMP_I64
COMPARE_REVERSE = CMP_REVERSE
COMPARE_PAIR = CMP_PAIR
PAGE_HEADER_SIZE = HEADER
assert PAGE_COUNT == OFF_COUNT and PAGE_SKIP == OFF_SKIP and PAGE_SLOTS == HEADER  # search.h has them too
assert sizeof(Node) == NODE_SIZE and (NODE_SIZE + HEADER) % 64 == 0


cdef inline uint32_t checksum(Py_ssize_t value) except? 0:
    if not 0 <= value <= <Py_ssize_t> 0xffffffff:
        raise InvalidRequest(f"a checksum of {value}: 0 to 2**32 - 1")
    return <uint32_t> value


def crc32c(data, Py_ssize_t value=0):
    """CRC-32C of any buffer, continuing from `value`. Without the interpreter lock above 4 KiB."""
    cdef const unsigned char[::1] view
    cdef Py_ssize_t n
    cdef const unsigned char *p
    cdef uint32_t crc = checksum(value)
    if type(data) is bytes:
        p = <const unsigned char *> PyBytes_AS_STRING(data)
        n = PyBytes_GET_SIZE(data)
    else:
        view = memoryview(data).cast("B")
        n = view.shape[0]
        p = &view[0] if n else NULL
    if n > 4096:
        with nogil:
            crc = crc32c_update(crc, p, n, 0)
        return crc
    return crc32c_update(crc, p, n, 0)


def crc32c_table(data, Py_ssize_t value=0):
    """The same number by tables, as on a processor without the instruction; for tests."""
    cdef bytes copy = bytes(memoryview(data))
    return crc32c_update(checksum(value), PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy), 1)


def fail_memory(int64_t after, int64_t failures=1):
    """Let the next `after` allocations of the kernel succeed and `failures` then fail; for tests. -1: none fails. Returns
    how many have failed since the last call."""
    cdef int64_t failed = memory_failed
    memory_fail(after, failures)
    return failed


def bound_memory(int64_t largest):
    """Have every allocation of the kernel of more than `largest` bytes fail, until called with -1; for tests. Returns how many
    allocations have failed since the last call."""
    cdef int64_t failed = memory_failed
    memory_bound(largest)
    return failed


def call_at_refusal(hook):
    """Have the next key that the descent of a group does not take to a leaf, since a view reaches a page of its path, call `hook`
    before the next key of the group is looked at; for tests. In the thread that puts, with the tree's lock held."""
    global refusal_hook
    if not callable(hook):
        raise TypeError(f"a call is wanted, not {hook!r}")
    if refusal_hook != NULL:
        Py_DECREF(<object> refusal_hook)
    Py_INCREF(hook)
    refusal_hook = <PyObject *> hook


cdef dict between = {}  # what tests have called in the middle of an operation, by its name


def call_between(str operation not None, hook):
    """Have the next operation of that name call `hook` in its middle; for tests. "seal": with the tree's lock held, between
    sealing the pages and making the root record; "clone": as soon as the tree's lock was let go."""
    if not callable(hook):
        raise TypeError(f"a call is wanted, not {hook!r}")
    between[operation] = hook


cdef int in_between(str operation) except -1:
    hook = between.pop(operation, None) if between else None
    if hook is not None:
        hook()
    return 0


cdef PyObject *meeting_hook = NULL
MEETINGS = {MEET_READ: "read", MEET_COUNTED: "counted", MEET_WAIT: "wait", MEET_ASIDE: "aside", MEET_FILE: "file"}


cdef void met(int place) noexcept with gil:
    if meeting_hook != NULL:
        (<object> meeting_hook)(MEETINGS[place])


def call_where_threads_meet(hook):
    """Have `hook(place)` called wherever a thread could meet another, until None is given; for tests. "read": a
    reader has read a leaf and looks at the leaf's version next; "counted": a count knows one of its borders in a leaf; "wait": a
    lock or a latch is taken, and is waited for after the hook; "aside": a page will be read with no lock held; "file": a descriptor
    is read next, and not closed before. In the thread that is there, with the locks it holds."""
    global meeting, meeting_hook
    cdef PyObject *old = meeting_hook
    if hook is not None and not callable(hook):
        raise TypeError(f"a call is wanted, not {hook!r}")
    meeting = NULL
    meeting_hook = NULL
    if hook is not None:
        Py_INCREF(hook)
        meeting_hook = <PyObject *> hook
        meeting = met
    Py_XDECREF(old)


def is_free(TreeView tree not None):
    """Whether an operation of another thread would get the tree's lock and the pager's for itself at once; for tests."""
    cdef TreeCore *t = tree.open_core()
    cdef bint free = rw_try_exclusive(&t.p.rw)
    if free:
        free = rw_try_exclusive(&t.rw)
        if free:
            rw_unlock_exclusive(&t.rw)
        rw_unlock_exclusive(&t.p.rw)
    return free


def hold(TreeView tree not None, str lock not None, bytes key not None, bint taken):
    """Take a lock (or let go of it) as an operation of another thread would; for tests. "leaf": the latch of the leaf of `key`,
    which is in memory; "tree", "tree shared", "pager", "pager shared": their reader-writer words."""
    cdef TreeCore *t = tree.open_core()
    cdef uint64_t *word = &t.rw if lock.startswith("tree") else &t.p.rw
    cdef Node *leaf
    if lock not in ("leaf", "tree", "tree shared", "pager", "pager shared"):
        raise InvalidRequest(f"there is no lock {lock!r}")
    if lock == "leaf":
        tree.check_order(key)
        leaf = resident_leaf(t, <uint8_t *> PyBytes_AS_STRING(key), <int> PyBytes_GET_SIZE(key))
        if leaf == NULL:
            raise InvalidRequest(f"the leaf of {key!r} is not in memory")
        if taken:
            latch_lock(&leaf.version)
        else:
            latch_unlock(&leaf.version)
    elif lock.endswith("shared"):
        if taken:
            rw_lock_shared(word)
        else:
            rw_unlock_shared(word)
    elif taken:
        rw_lock_exclusive(word)
    else:
        rw_unlock_exclusive(word)


def crc32c_blocks(data, Py_ssize_t block_size):
    """CRC-32C of each `block_size` bytes of `data` (the last may be short), packed as little-endian u32."""
    cdef const unsigned char[::1] view = memoryview(data).cast("B")
    cdef Py_ssize_t n = view.shape[0], i, count
    cdef const unsigned char *p
    cdef unsigned char *out
    if block_size <= 0:
        raise InvalidRequest(f"block size {block_size}")
    count = n // block_size + (n % block_size > 0)
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
    raise CorruptionError("page", f"address {f.address}, tree {f.tree_id}, level {f.level} ({place(f)})", wanted(f), hex(f.found))


cdef object root_refused(uint64_t tree_id, Fault *f):
    """Raise the typed error for a root record that is not believed."""
    if f.code != E_CORRUPT:
        raised(f)
    raise CorruptionError("root record", f"tree {tree_id} ({place(f)})", wanted(f), hex(f.found))


cdef str place(Fault *f):
    """What was refused, and where in the page (or the root record) it stands."""
    cdef str text = (<bytes> f.what).decode()
    if f.slot >= 0:
        text += f", slot {f.slot}"
    if f.byte >= 0:
        text += f", byte {f.byte}"
    return text


cdef str wanted(Fault *f):
    """What was expected in the place of `found`: a number, or a bound."""
    return f"{(<bytes> f.bound).decode()} {f.expected:#x}" if f.bound != NULL else hex(f.expected)


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


cdef object whole(str what, object given):
    """A number that is not cut off to be one."""
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{what}: a whole number is wanted, not {type(given).__name__}") from None


cdef uint64_t word(str what, object given) except? 0:
    """A number that 64 bits hold."""
    number = whole(what, given)
    if not 0 <= number < 1 << 64:
        raise InvalidRequest(f"{what}: {number}, where 0 to 2**64 - 1 is wanted")
    return number


cdef int64_t signed_word(str what, object given) except? -1:
    """A number that 64 bits hold with a sign; whether it may be below zero the caller says."""
    number = whole(what, given)
    if not -1 << 63 <= number < 1 << 63:
        raise InvalidRequest(f"{what}: {number}, where a number below 2**63 is wanted")
    return number


@cython.final
cdef class Descriptor:
    """What a tree is. Kept in its root record; opening with another one is refused."""

    cdef readonly int key_size
    cdef readonly long long value_size
    cdef readonly int comparator
    cdef readonly bint duplicates
    cdef readonly int copies
    cdef readonly int embed_limit

    def __cinit__(self, key_size=-2, value_size=-4, *, comparator=1, duplicates=False, copies=1, embed_limit=0):
        key_size = whole("key_size", key_size)
        value_size = whole("value_size", value_size)
        comparator = whole("comparator", comparator)
        copies = whole("copies", copies)
        embed_limit = whole("embed_limit", embed_limit)
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


def compare_torn(Descriptor descriptor not None, key, memory, int size):
    """How `key` compares (below zero, zero, above) with the cell in the first `size` bytes of `memory`, whatever they hold; for
    tests."""
    cdef bytes k = as_bytes(key), m = as_bytes(memory)
    cdef Shape s
    memset(&s, 0, sizeof(Shape))
    s.comparator = descriptor.comparator
    s.duplicates = descriptor.duplicates
    if not 0 <= size <= PyBytes_GET_SIZE(m):
        raise InvalidRequest(f"a cell of {size} bytes in {len(m)}")
    return compare(&s, <uint8_t *> PyBytes_AS_STRING(k), <int> PyBytes_GET_SIZE(k), <uint8_t *> PyBytes_AS_STRING(m), size)


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


def key_size_max(Py_ssize_t page_size, Py_ssize_t copies=1):
    """The longest key a tree with such pages takes: at least three of them fit in an index page."""
    cdef Shape s
    memset(&s, 0, sizeof(Shape))
    if not 256 <= page_size <= PAGE_MAX or not 1 <= copies <= 3:
        raise InvalidRequest(f"pages of {page_size} bytes, {copies} copies")
    s.page_size = <int> page_size
    s.copies = <int> copies
    shape_init(&s)
    return s.key_max
