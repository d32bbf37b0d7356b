# Tree: what changes one.

cdef inline int64_t value_most(Shape *s) noexcept nogil:
    """Bytes of the longest value that a tree takes."""
    if s.value_size >= 0:
        return s.value_size
    return min(value_size_max, (<int64_t> 1 << -8 * s.value_size) - 1)


cdef inline int value_fits(Shape *s, int64_t vlen) except -1:
    if s.value_size >= 0:
        if vlen != s.value_size:
            raise InvalidRequest(f"values of this tree have {s.value_size} bytes, not {vlen}")
    elif vlen > value_most(s):
        raise LimitExceeded("VALUE_SIZE_MAX", vlen, value_most(s))
    return 0


@cython.final
@cython.no_gc_clear
cdef class Tree(TreeView):
    """A mutable tree. Writes change memory only; `seal` makes a version of it that the owner can make durable."""

    cdef Descriptor _descriptor
    cdef bytes _root
    cdef bint _blob_dirty

    def __init__(self, Pager pager not None, Descriptor descriptor not None, tree_id):
        self.start(pager, descriptor, word("tree_id", tree_id))
        at_setp(&self.core.root, empty_leaf(self.core))
        if self.core.root == NULL:
            raise MemoryError()
        self.core.dirty_nodes = 1
        self.core.is_dirty = 1

    cdef int start(self, Pager pager, Descriptor descriptor, uint64_t tree_id) except -1:
        if self.core != NULL:
            raise InvalidRequest("the tree is made already")
        self._descriptor = descriptor
        self._blob = b""
        self.hold(pager, True)
        self.core.tree_id = tree_id
        shape_set(self.core, descriptor)
        return 0

    @classmethod
    def open(cls, Pager pager not None, root, Descriptor expect=None):
        """The tree that a root record names. UnsupportedFormat, CorruptionError: as the contract says. Cost: no page."""
        cdef bytes record = as_bytes(root)
        cdef const uint8_t *p = <uint8_t *> PyBytes_AS_STRING(record)
        cdef int64_t size = PyBytes_GET_SIZE(record), blob
        cdef Tree tree
        cdef TreeCore *t
        cdef Fault fault
        if size < ROOT_HEADER:
            raise CorruptionError("root record", "a tree's root", f"{ROOT_HEADER} bytes or more", size)
        if p[0] != ROOT_VERSION and p[0] != ROOT_DATED:
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
        memset(&fault, 0, sizeof(Fault))
        if root_header(p, size, &fault) != OK:
            root_refused(ld64(p + 16), &fault)
        blob = ld32(p + 12)
        tree = cls.__new__(cls)
        try:
            tree.start(pager, found if expect is None else expect, ld64(p + 16))
        except LimitExceeded as error:
            raise UnsupportedFormat(f"tree {ld64(p + 16)} in pages of {pager.page_size} bytes: {error}") from None
        t = tree.core
        rw_tally_add(&t.rw, <int64_t> ld64(p + ROOT_RECORDS))
        t.level = p[3]
        t.dated = p[0] == ROOT_DATED
        tree._blob = record[ROOT_HEADER:ROOT_HEADER + blob]
        tree._root = record
        if p[1] & ROOT_PAGED:
            root_paged(t, p, blob, size, &fault)
        elif t.level:
            refuse(&fault, "level of an embedded tree", -1, 3, NULL, 0, t.level)
        else:
            embedded_load(t, p, p + ROOT_HEADER + blob, p + size, &fault)
        if fault.code != OK:
            root_refused(t.tree_id, &fault)
        return tree

    @property
    def descriptor(self):
        """What the tree is. Cost: no page."""
        return self._descriptor

    @property
    def tree_id(self):
        """The number stamped in its pages. Cost: no page."""
        return self.open_core().tree_id

    @property
    def height(self):
        """Levels of pages, the leaves included; 1 for an embedded tree. Cost: no page."""
        return at_get32(<int32_t *> &self.open_core().level) + 1

    @property
    def is_dirty(self):
        """Whether the next seal makes another root record. Cost: no page."""
        return bool(at_get32(<int32_t *> &self.open_core().is_dirty) or self._blob_dirty)

    @property
    def dirty_pages(self):
        """Pages the next seal asks for, overflow pages and copies included. Cost: no page."""
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
        cdef int64_t pages
        lock_tree(t)
        pages = 0 if embeds(t) else (t.dirty_nodes + t.dirty_spill) * t.s.copies
        unlock_tree(t)
        return pages

    @property
    def user_blob(self):
        """The owner's bytes, committed with the root by the next seal. Cost: no page."""
        self.open_core()
        return self._blob

    @user_blob.setter
    def user_blob(self, blob):
        cdef bytes b = as_bytes(blob)
        self.open_core()
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
        return value_fits(&t.s, vlen)

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
        cdef Hold kept = self.held
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
            code = lock_to_change(t, kp, klen, 0, TO_THE_END, &fault)
            if code == OK:
                code = put_slow(t, kp, klen, vp, vlen, &existed, &fault)
            unlock_tree(t)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        return existed

    def write(self, key, offset, data):
        """Overwrite bytes of a value from `offset`, growing it (a gap reads as zeros), but where `data` is empty: that changes nothing,
        and grows nothing. The key must be there, else NotFound.
        Cost: of a spilled value the pages written, the index pages above them (both read where they are only changed in part), and the
        path to its leaf. Read whole and put again are a value that lies in its leaf, one that no seal has reached and that
        grows or is a view's too, and, once, one that was written before pages had generations of their own."""
        cdef bytes k = self.search_key(key), d = as_bytes(data)
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
        cdef const uint8_t *kp = <uint8_t *> PyBytes_AS_STRING(k)
        cdef const uint8_t *dp = <uint8_t *> PyBytes_AS_STRING(d)
        cdef int klen = <int> PyBytes_GET_SIZE(k), code
        cdef int64_t n = PyBytes_GET_SIZE(d), most = value_most(&t.s), length = 0
        cdef int64_t first = signed_word("offset", offset)
        cdef bint done = False
        cdef Fault fault
        if first < 0 or t.s.duplicates:
            raise InvalidRequest(f"write at {offset}" if first < 0 else "values of a tree with duplicates have no ranges")
        if n == 0:
            if self.find(key, True, None) is None:
                raise NotFound("key", key)
            return
        if first > <int64_t> 1 << 62:  # so that no sum overflows
            raise LimitExceeded("VALUE_SIZE_MAX", offset, most)
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = lock_to_change(t, kp, klen, first, first + n, &fault)
            if code == OK:
                code = write_part(t, kp, klen, first, dp, n, most, &done, &fault)
            if code == OK and not done:
                code = write_whole(t, kp, klen, first, dp, n, most, &length, &fault)
            unlock_tree(t)
            make_room(t.p)
        if code != OK:
            raised(&fault)
        if length < 0:
            raise NotFound("key", key)
        if length > most:
            value_fits(&t.s, length)

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
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
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
        record that was refused by its number from 0, with nothing of its group put; those of earlier groups are in the tree. Cost: as
        `put` for each."""
        if type(items) is PackedPairs and takes_packed(self, items):
            return update_packed(self, items, True)
        return change_many(self, iter(items.items() if isinstance(items, (dict, Mapping)) else items), True)

    def fetch(self, PackedPairs pairs not None):
        """Have every page in memory, read and checked, that `update` of these pairs will look at. Cost: a descent each, in the
        order of the keys; where a value has spilled, reading it. CorruptionError, DeviceFailed; LimitExceeded, InvalidRequest:
        `update` would refuse one of them."""
        cdef bytes k, v
        if takes_packed(self, pairs):
            update_packed(self, pairs, False)
            return
        for number, (k, v) in enumerate(pairs):
            try:
                self.check_record(k, v)
            except InvalidRequest as error:
                raise numbered(error, number)
            self.find_slow(duplicate_key(k, v) if self.core.s.duplicates else k, False, None)

    def delete_many(self, keys):
        """Remove many; how many were there. An error names the first key that was refused by its number from 0, as `update` does a
        record. Cost: as `delete` for each."""
        return change_many(self, iter(keys), False)

    def delete_range(self, start=None, stop=None):
        """Remove start <= key < stop; how many that were. Cost: the pages on the two borders, index pages of whole subtrees, and
        leaves only where a value has spilled."""
        cdef bytes a = self.search_key(start) if start is not None else None
        cdef bytes b = self.search_key(stop) if stop is not None else None
        return self.cut(a, b)

    cdef int64_t cut(self, bytes a, bytes b) except? -1:
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
        cdef Range r
        cdef Ahead *ahead
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
            code = bring_borders(t, r.start, r.start_len, r.stop, r.stop_len, &fault)
            if code == OK:
                ahead = bring_range(t, &r)
                code = lock_to_change(t, NULL, 0, 0, 0, &fault)
                t.ahead = ahead
                if code == OK:
                    code = delete_range_slow(t, &r, &records, &fault)
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
        the tree is not empty, or the records do not ascend (it is empty again then; where even that takes memory that is not
        there, a note on the error says so). Cost: reads none, and makes each page once."""
        if len(self):
            raise InvalidRequest("bulk_load fills an empty tree")
        try:
            change_many(self, ascending(self, items), True)
        except BaseException as error:
            try:
                self.clear()
            except (MemoryError, MdstoreError) as other:
                error.add_note(f"the records before it are still in the tree: clear it ({other!r})")
            raise

    def clone(self):
        """Another mutable tree with the same content and the same tree id. Sealed pages are shared and counted in
        `Pager.refs`; pages that are dirty are copied in memory, so a tree just sealed is cloned in O(1). Drop a clone with
        `clear()`, so that its pages are no longer counted. InvalidRequest: the pager has no `refs` tree. Cost: a path of
        `refs` where the tree is clean; the references of all its dirty pages else."""
        cdef Hold kept = self.held
        cdef TreeCore *t = self.open_core()
        cdef Tree copy = Tree.__new__(Tree)
        cdef Fault fault
        cdef int code
        if self.pager._refs is None:
            raise InvalidRequest("a clone needs Pager.refs, the tree that counts shared pages")
        copy.start(self.pager, self._descriptor, t.tree_id)
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = lock_to_change(t, NULL, 0, 0, 0, &fault)
            if code == OK:
                code = clone_core(t, copy.core, &fault)
            with gil:  # the next seal makes another root
                copy._blob = self._blob
                copy._blob_dirty = self._blob_dirty
                copy._root = None if copy.core.is_dirty else self._root
            unlock_tree(t)
            make_room(t.p)
        in_between("clone")
        if code != OK:
            raised(&fault)
        return copy

    # -- sealing -------------------------------------------------------------------------------------------------------
    def seal(self, allocate):
        """Give every dirty page its address and checksum; the root record. Cost: reads none, asks for `dirty_pages`; nothing is
        written before `Pager.write_sealed`."""
        return seal_tree(self, allocate)

    def seal_leaves(self, allocate, start, pages):
        """Do a part of the next seal ahead of it. Cost: reads none, asks for at most `pages` (of each copy)."""
        return seal_ahead(self, allocate, signed_word("start", start), signed_word("pages", pages))

    def root(self):
        """The root record of the last seal. Cost: no page."""
        self.open_core()
        if self._root is None:
            raise InvalidRequest("the tree was never sealed")
        return self._root

    def check(self):
        """Every violated invariant of the whole tree, in words; empty when sound. Through a view, so writers go on. Cost:
        every page once, spilled values left out."""
        return TreeCheck(self).run()

    def pages(self):
        """(first page address, pages, level) of all that is reached. Cost: index pages, leaves in which a value has spilled, and
        overflow index pages, once each."""
        return PageWalk(self)
