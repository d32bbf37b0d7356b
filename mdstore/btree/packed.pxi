# Packed pairs: what a bulk write carries, copied from Python once, in the bytes of the store's log. A tree takes them from there.

cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(object p, Py_ssize_t i)
    Py_ssize_t PyTuple_GET_SIZE(object p)
    int _PyBytes_Resize(PyObject **text, Py_ssize_t size) except -1

cdef int64_t map_key_max = MAP_KEY_MAX
cdef int64_t map_value_max = MAP_VALUE_MAX
cdef int64_t transaction_bytes_max = TRANSACTION_BYTES_MAX

cdef enum:
    PAIR_MARK = 0x92     # MessagePack: an array of two
    PAIR_HEADS = 11      # bytes that a pair has besides key and value, at most
    GUESS_MOST = 1 << 24 # bytes that are reserved for pairs not yet seen, at most

cdef struct Place:       # one pair of a packed buffer
    uint64_t head        # eight bytes of its key, behind what all keys have in common
    int64_t at           # where it begins


cdef inline uint8_t *bin_put(uint8_t *p, const uint8_t *data, int64_t size) noexcept nogil:
    """Write a byte string as MessagePack does, with the shortest head; returns where it ends."""
    if size < 256:
        p[0] = 0xc4
        p[1] = <uint8_t> size
        p += 2
    elif size < 65536:
        p[0] = 0xc5
        p[1] = <uint8_t> (size >> 8)
        p[2] = <uint8_t> size
        p += 3
    else:
        p[0] = 0xc6
        st32(p + 1, be32(<uint32_t> size))
        p += 5
    memcpy(p, data, size)
    return p + size


cdef inline const uint8_t *bin_get(const uint8_t *p, int64_t *size) noexcept nogil:
    """The bytes of a string that `bin_put` wrote, and how many."""
    if p[0] == 0xc4:
        size[0] = p[1]
        return p + 2
    if p[0] == 0xc5:
        size[0] = <int64_t> p[1] << 8 | p[2]
        return p + 3
    size[0] = be32(ld32(p + 1))
    return p + 5


cdef inline uint64_t eight_bytes(const uint8_t *p, int64_t n) noexcept nogil:
    """The first eight bytes as a big-endian number, zeros where there are fewer."""
    cdef uint64_t v = 0
    cdef int i
    if n >= 8:
        return be64(ld64(p))
    for i in range(<int> n):
        v |= <uint64_t> p[i] << (56 - 8 * i)
    return v


cdef void places_sort(Place *places, Place *other, int64_t n) noexcept nogil:
    """Bring neighbours together: by the heads' first bits, two passes of counting, so that an even number of them leaves the result
    in `places`. Pairs alike in these bits stay as they were given: of one key the last wins."""
    cdef uint32_t count[256]
    cdef uint32_t *counts = NULL
    cdef int bits = 11, turn, shift
    cdef uint32_t sum, here
    cdef int64_t i, at
    cdef Place *swap
    if n >= 2048:
        counts = <uint32_t *> take(sizeof(uint32_t) << bits)
    if counts == NULL:  # or there is no memory: sorted less finely
        counts = count
        bits = 8
    for turn in range(2):
        shift = 64 - 2 * bits + turn * bits
        memset(counts, 0, sizeof(uint32_t) << bits)
        for i in range(n):
            counts[places[i].head >> shift & (1 << bits) - 1] += 1
        sum = 0
        for i in range(1 << bits):
            here = counts[i]
            counts[i] = sum
            sum += here
        for i in range(n):
            at = places[i].head >> shift & (1 << bits) - 1
            other[counts[at]] = places[i]
            counts[at] += 1
        swap = places
        places = other
        other = swap
    if counts != count:
        free(counts)


cdef bytes pair_bytes(object data, Py_ssize_t number):
    try:
        return bytes(memoryview(data))
    except (TypeError, ValueError, BufferError):  # no buffer, or one that was released
        raise TypeError(f"pair {number}: bytes, or a buffer of them, are wanted, not {type(data).__name__}") from None


cdef object over_limit(str limit, int64_t value, int64_t most, Py_ssize_t number):
    error = LimitExceeded(limit, value, most)
    error.args = (f"pair {number}: {error}",)
    return error


@cython.final
cdef class PackedPairs:
    """Pairs of key and value in the order given, and the order in which a tree takes them fastest."""

    cdef PyObject *text      # a bytes object, changed by no one once it was given out
    cdef uint8_t *data       # its bytes: room for a prefix, then the pairs
    cdef int64_t first
    cdef int64_t used
    cdef int64_t cap
    cdef bint is_given
    cdef Place *places
    cdef Py_ssize_t count
    cdef readonly Py_ssize_t longest_key
    cdef readonly Py_ssize_t longest_value
    cdef readonly Py_ssize_t payload_bytes

    def __cinit__(self, items, Py_ssize_t room=0):
        cdef list given = items if type(items) is list else list(items)
        cdef Py_ssize_t n = len(given)
        if n > 0xffffffff:
            raise LimitExceeded("TRANSACTION_BYTES_MAX", n, transaction_bytes_max)
        self.places = <Place *> take(n * sizeof(Place) + 1)
        if self.places == NULL:
            raise MemoryError("pairs")
        self.begin(room, n)
        for item in given:
            if self.count == n:
                break
            if type(item) is tuple and PyTuple_GET_SIZE(item) == 2:
                self.add(<object> PyTuple_GET_ITEM(item, 0), <object> PyTuple_GET_ITEM(item, 1), n)
            else:
                try:
                    key, value = item
                except (TypeError, ValueError):
                    raise TypeError(f"pair {self.count}: a key and a value are wanted, not {type(item).__name__}") from None
                self.add(key, value, n)
        if self.count != n or n != len(given):
            raise InvalidRequest("the list of pairs changed while it was read")
        self.resize(self.used)
        self.order()

    def __dealloc__(self):
        Py_XDECREF(self.text)
        free(self.places)

    cdef int begin(self, Py_ssize_t room, Py_ssize_t n) except -1:
        """MessagePack's head of an array of n, behind the room."""
        cdef uint8_t *p
        if not 0 <= room <= transaction_bytes_max:
            raise InvalidRequest(f"room for {room} bytes: 0 to {transaction_bytes_max}")
        self.resize(room + 5)
        self.first = self.used = room
        p = self.data + room
        if n < 16:
            p[0] = 0x90 | n
            self.used += 1
        elif n < 65536:
            p[0] = 0xdc
            p[1] = n >> 8
            p[2] = n & 255
            self.used += 3
        else:
            p[0] = 0xdd
            st32(p + 1, be32(n))
            self.used += 5
        return 0

    cdef int resize(self, int64_t size) except -1:
        if self.text == NULL:
            kept = PyBytes_FromStringAndSize(NULL, size)
            Py_INCREF(kept)
            self.text = <PyObject *> kept
        else:
            _PyBytes_Resize(&self.text, size)
        self.data = <uint8_t *> PyBytes_AS_STRING(<object> self.text)
        self.cap = size
        return 0

    cdef inline int add(self, object key_given, object value_given, Py_ssize_t n) except -1:
        cdef bytes key = key_given if type(key_given) is bytes else pair_bytes(key_given, self.count)
        cdef bytes value = value_given if type(value_given) is bytes else pair_bytes(value_given, self.count)
        cdef Py_ssize_t klen = PyBytes_GET_SIZE(key), vlen = PyBytes_GET_SIZE(value), more
        cdef uint8_t *p
        if klen == 0:
            raise InvalidRequest(f"pair {self.count}: an empty key is not allowed (MAP_KEY_MAX counts from 1)")
        if klen > map_key_max:
            raise over_limit("MAP_KEY_MAX", klen, map_key_max, self.count)
        if vlen > map_value_max:
            raise over_limit("MAP_VALUE_MAX", vlen, map_value_max, self.count)
        self.payload_bytes += klen + vlen
        if self.payload_bytes > transaction_bytes_max:
            raise LimitExceeded("TRANSACTION_BYTES_MAX", self.payload_bytes, transaction_bytes_max)
        if self.used + PAIR_HEADS + klen + vlen > self.cap:  # as many as all would be, were they like this one, within reason
            more = PAIR_HEADS + klen + vlen + min((n - self.count) * (5 + klen + vlen), <Py_ssize_t> GUESS_MOST)
            self.resize(self.used + more + (self.used >> 1))
        p = self.data + self.used
        self.places[self.count].at = self.used
        self.places[self.count].head = eight_bytes(<uint8_t *> PyBytes_AS_STRING(key), klen)
        p[0] = PAIR_MARK
        p = bin_put(p + 1, <uint8_t *> PyBytes_AS_STRING(key), klen)
        self.used = bin_put(p, <uint8_t *> PyBytes_AS_STRING(value), vlen) - self.data
        self.count += 1
        self.longest_key = max(self.longest_key, klen)
        self.longest_value = max(self.longest_value, vlen)
        return 0

    cdef int order(self) except -1:
        """Where all heads begin alike, take those behind the common prefix; then sort."""
        cdef Place *other
        cdef int64_t i, common, klen
        cdef const uint8_t *first
        cdef const uint8_t *key
        if self.count < 2:
            return 0
        first = bin_get(self.data + self.places[0].at + 1, &common)
        for i in range(1, self.count):
            key = bin_get(self.data + self.places[i].at + 1, &klen)
            common = common_prefix(first, <int> common, key, <int> klen)
            if common == 0:
                break
        for i in range(self.count if common else 0):
            key = bin_get(self.data + self.places[i].at + 1, &klen)
            self.places[i].head = eight_bytes(key + common, klen - common)
        other = <Place *> take(self.count * sizeof(Place))
        if other == NULL:
            raise MemoryError("pairs")
        places_sort(self.places, other, self.count)
        free(other)
        return 0

    def __len__(self):
        return self.count

    def __iter__(self):
        cdef int64_t at = self.first + (1 if self.count < 16 else 3 if self.count < 65536 else 5), klen, vlen
        cdef const uint8_t *key
        cdef const uint8_t *value
        while at < self.used:
            key = bin_get(self.data + at + 1, &klen)
            value = bin_get(key + klen, &vlen)
            at = value + vlen - self.data
            yield PyBytes_FromStringAndSize(<char *> key, klen), PyBytes_FromStringAndSize(<char *> value, vlen)

    def encoded(self, bytes prefix not None=b""):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(prefix)
        cdef bytes joined
        if n == self.first and not self.is_given:
            memcpy(self.data, PyBytes_AS_STRING(prefix), n)
            self.is_given = True
            return <object> self.text
        joined = PyBytes_FromStringAndSize(NULL, n + self.used - self.first)
        memcpy(PyBytes_AS_STRING(joined), PyBytes_AS_STRING(prefix), n)
        memcpy(PyBytes_AS_STRING(joined) + n, self.data + self.first, self.used - self.first)
        return joined

    def values_above(self, Py_ssize_t size):
        cdef list found = []
        cdef int64_t klen, vlen
        cdef Py_ssize_t i
        cdef const uint8_t *key
        for i in range(self.count if self.longest_value > size else 0):
            key = bin_get(self.data + self.places[i].at + 1, &klen)
            bin_get(key + klen, &vlen)
            if vlen > size:
                found.append(vlen)
        return found


cdef int packed_work(const uint8_t *data, const Place *places, int64_t n, Work *w) noexcept nogil:
    """The next pairs as work."""
    cdef int64_t klen
    cdef int i
    w.n = <int> min(<int64_t> WORK_CHUNK, n)
    for i in range(w.n):
        if i + 8 < w.n:
            prefetch(data + places[i + 8].at)
        w.key[i] = bin_get(data + places[i].at + 1, &klen)
        w.klen[i] = <int> klen
        w.value[i] = bin_get(w.key[i] + klen, &w.vlen[i])
    return w.n


cdef int put_packed(TreeCore *t, PackedPairs pairs, Work *w, Fault *f) noexcept nogil:
    cdef int64_t at = 0
    cdef int code = OK
    while at < pairs.count and code == OK:
        at += packed_work(pairs.data, pairs.places + at, pairs.count - at, w)
        code = put_batch(t, w, f)
    return code


cdef int fetch_group(TreeCore *t, const uint8_t **keys, const int *sizes, int n, Fault *f) noexcept nogil:
    """Have the leaves of a few keys read and checked, and what their values have spilled."""
    cdef Node *leaves[GROUP]
    cdef bint is_there[GROUP]
    cdef Out one
    cdef int j, code = OK
    core_lock_shared(t)
    descend_group(t, keys, sizes, n, TO_FETCH, leaves)
    race_begin()
    for j in range(n):
        is_there[j] = leaves[j] != NULL and leaves[j].spilled == 0
    race_end()
    core_unlock_shared(t)
    for j in range(n):
        if code == OK and not is_there[j]:
            code = get_copy(t, keys[j], sizes[j], &one, f)
            free(one.data)
    return code


cdef int fetch_packed(TreeCore *t, PackedPairs pairs, Work *w, Fault *f) noexcept nogil:
    cdef int64_t at = 0
    cdef int i, code = OK
    while at < pairs.count and code == OK:
        at += packed_work(pairs.data, pairs.places + at, pairs.count - at, w)
        i = 0
        while i < w.n and code == OK:
            code = fetch_group(t, w.key + i, w.klen + i, min(GROUP, w.n - i), f)
            i += GROUP
    note_hits(t, pairs.count)
    return code
