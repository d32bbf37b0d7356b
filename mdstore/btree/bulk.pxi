# Many records at a time, from Python.

def ascending(Tree tree not None, items):
    """Pass records through, refusing one whose key is not above the one before it."""
    cdef Hold kept = tree.held
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


cdef int64_t change_many(Tree tree, object source, bint puts) except? -1:
    """Put records, or delete keys, from any iterator, a thousand at a time; how many keys were new, or there."""
    cdef Hold kept = tree.held
    cdef TreeCore *t = tree.open_core()
    cdef Work *w = <Work *> take(sizeof(Work))
    cdef Fault fault
    cdef int code = OK
    cdef int64_t total = 0
    cdef list held
    cdef bytes key, value
    if t.s.duplicates and not puts:
        free(w)
        for key in source:
            total += bool(tree.delete(key))
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
                    tree.check_record(key, value)
                    if t.s.duplicates:
                        key = duplicate_key(key, value)
                        value = b""
                    held.append(value)
                    w.value[w.n] = <uint8_t *> PyBytes_AS_STRING(value)
                    w.vlen[w.n] = PyBytes_GET_SIZE(value)
                else:
                    key = tree.search_key(item)
                held.append(key)
                w.key[w.n] = <uint8_t *> PyBytes_AS_STRING(key)
                w.klen[w.n] = <int> PyBytes_GET_SIZE(key)
                w.n += 1
                if w.n == WORK_CHUNK:
                    break
            if w.n == 0:
                return total - w.existed if puts else w.existed
            if tree.core != t:
                raise StoreClosed("the tree is closed")
            with nogil:
                code = put_batch(t, w, &fault) if puts else delete_batch(t, w, &fault)
            if code != OK:
                raised(&fault)
            total += w.n
    finally:
        free(w)


cdef bint takes_packed(Tree tree, PackedPairs pairs) except -1:
    """Whether all of them fit this tree without a look at each; otherwise they are put one by one, and refused by name."""
    cdef Shape *s = &tree.open_core().s
    return (s.key_size == -2 and s.value_size == -4 and not s.duplicates and s.comparator != CMP_PAIR
            and pairs.longest_key <= s.key_max and pairs.longest_value <= value_size_max)


cdef int64_t update_packed(Tree tree, PackedPairs pairs, bint puts) except? -1:
    """Put pairs that fit the tree (or only fetch the pages they would be put into); how many keys were new."""
    cdef Hold kept = tree.held
    cdef TreeCore *t = tree.open_core()
    cdef Work *w = <Work *> take(sizeof(Work))
    cdef Fault fault
    cdef int code
    cdef int64_t existed
    if w == NULL:
        raise MemoryError()
    memset(&fault, 0, sizeof(Fault))
    w.existed = 0
    with nogil:
        code = put_packed(t, pairs, w, &fault) if puts else fetch_packed(t, pairs, w, &fault)
    existed = w.existed
    free(w)
    if code != OK:
        raised(&fault)
    return pairs.count - existed
