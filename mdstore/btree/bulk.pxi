# Many records at a time, from Python.

cdef tuple pair_of(object item):
    """A key and a value, whatever they are."""
    try:
        key, value = item
    except (TypeError, ValueError):
        raise TypeError(f"a key and a value are wanted, not {type(item).__name__}") from None
    return key, value


cdef object numbered(object error, int64_t number):
    """The error, which names what was refused by its place among all that were given."""
    error.args = (f"record {number}: {error}",)
    return error


def ascending(Tree tree not None, items):
    """Pass records through, refusing one whose key is not above the one before it."""
    cdef Hold kept = tree.held
    cdef Shape *s = &tree.open_core().s
    cdef int64_t number = 0
    cdef bytes last = None, stored
    for item in items:
        try:
            key, value = pair_of(item)
            stored = tree.search_key(key)
            if s.duplicates:
                stored = duplicate_key(as_bytes(key), as_bytes(value))
            if last is not None and compare(s, <uint8_t *> PyBytes_AS_STRING(last), <int> PyBytes_GET_SIZE(last),
                                            <uint8_t *> PyBytes_AS_STRING(stored), <int> PyBytes_GET_SIZE(stored)) >= 0:
                raise InvalidRequest(f"bulk_load wants ascending records; {key!r} does not follow")
        except (TypeError, InvalidRequest) as error:
            raise numbered(error, number)
        last = stored
        number += 1
        yield key, value


cdef inline int take_record(Tree tree, Work *w, list held, object item) except -1:
    """Check a record and note it in the group; `held` keeps what the group points at."""
    cdef object k, v
    cdef bytes key, value
    k, v = item if type(item) is tuple and len(<tuple> item) == 2 else pair_of(item)
    key = k if type(k) is bytes else as_bytes(k)
    value = v if type(v) is bytes else as_bytes(v)
    tree.check_record(key, value)
    if tree.core.s.duplicates:
        key = duplicate_key(key, value)
        value = b""
    held.append(value)
    held.append(key)
    w.value[w.n] = <uint8_t *> PyBytes_AS_STRING(value)
    w.vlen[w.n] = PyBytes_GET_SIZE(value)
    w.key[w.n] = <uint8_t *> PyBytes_AS_STRING(key)
    w.klen[w.n] = <int> PyBytes_GET_SIZE(key)
    w.n += 1
    return 0


cdef inline int take_key(Tree tree, Work *w, list held, object item) except -1:
    """Check a key to be deleted, and note it in the group."""
    cdef bytes key = tree.search_key(item)
    held.append(key)
    w.key[w.n] = <uint8_t *> PyBytes_AS_STRING(key)
    w.klen[w.n] = <int> PyBytes_GET_SIZE(key)
    w.n += 1
    return 0


cdef int take_group(Tree tree, Work *w, list held, object source, int64_t before, bint puts) except -1:
    """Fill a group. What is refused is named by its number (`before` it there were so many); what the iterator raises, is not."""
    cdef bint looking = False
    w.n = 0
    try:
        for item in source:
            looking = True
            if puts:
                take_record(tree, w, held, item)
            else:
                take_key(tree, w, held, item)
            looking = False
            if w.n == WORK_CHUNK:
                return 0
    except (TypeError, InvalidRequest) as error:
        if looking:
            numbered(error, before + w.n)
        raise
    return 0


cdef int64_t change_many(Tree tree, object source, bint puts) except? -1:
    """Put records, or delete keys, from any iterator, a thousand at a time; how many keys were new, or there."""
    cdef Hold kept = tree.held
    cdef TreeCore *t = tree.open_core()
    cdef Work *w = <Work *> take(sizeof(Work))
    cdef Fault fault
    cdef int code = OK
    cdef int64_t total = 0
    cdef list held
    if w == NULL:
        raise MemoryError()
    memset(&fault, 0, sizeof(Fault))
    w.existed = 0
    try:
        while True:
            held = []
            take_group(tree, w, held, source, total, puts)
            if w.n == 0:
                return total - w.existed if puts else w.existed
            if tree.core != t:
                raise StoreClosed("the tree is closed")
            if t.s.duplicates and not puts:
                w.existed += cut_values(tree, held)
            else:
                with nogil:
                    code = put_batch(t, w, &fault) if puts else delete_batch(t, w, &fault)
            if code != OK:
                raised(&fault)
            total += w.n
    finally:
        free(w)


cdef int64_t cut_values(Tree tree, list lowest) except -1:
    """Remove all values of keys, given by what stands before them; how many had any."""
    cdef int64_t existed = 0
    cdef bytes low
    for low in lowest:
        existed += tree.cut(low, duplicate_key(low[:len(low) - 2], HIGHEST)) > 0
    return existed


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
    cdef TreeView view
    cdef Fault fault
    cdef int code
    cdef int64_t existed
    if w == NULL:
        raise MemoryError()
    memset(&fault, 0, sizeof(Fault))
    w.existed = 0
    try:
        with nogil:
            code = put_packed(t, pairs, w, &fault) if puts else fetch_packed(t, pairs, w, &fault)
        if code == E_ASIDE:
            view = tree.view()
            with nogil:
                code = fetch_packed(view.core, pairs, w, &fault)
        existed = w.existed
    finally:
        free(w)
    if code != OK:
        raised(&fault)
    return pairs.count - existed
