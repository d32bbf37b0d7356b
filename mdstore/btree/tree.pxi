# The tree: descent, insertion with rotation before splitting, deletion with merging, ranges.
#
# Invariants of a tree (Tree.check states each by its number):
#  T1  every key below child i of an index page is >= separator i and < separator i + 1
#  T2  slot 0 of an index page has an empty key: the lower bound of a page is kept by its parent alone. A cell that moves to
#      a left sibling is given that bound as its key (`gather_pair`), and loses it when it comes first in a page
#  T3  all leaves have the same depth; `count` is the number of records
#  T4  dirty_nodes counts the DIRTY nodes of the tree, dirty_spill the pages (of one copy) of its values in memory
#  T5  no leaf is empty but a root

# -- shared addresses --------------------------------------------------------------------------------------------------
cdef int64_t extra_locked(TreeCore *refs, uint64_t address, Fault *f) noexcept nogil:
    cdef uint64_t key = be64(address)
    cdef Node *leaf
    cdef bint found
    cdef int pos
    if find_leaf(refs, <uint8_t *> &key, 8, &leaf, f) != OK:
        return -1
    pos = page_find(&refs.s, page_of(leaf), leaf.cap, 0, <uint8_t *> &key, 8, &found)
    return ld32(cell_at(page_of(leaf), pos) + 8) if found else 0


cdef int extra_add(TreeCore *t, uint64_t address, int delta, int64_t *before, Fault *f) noexcept nogil:
    """Change how many trees beyond one reach an address; `before` receives the old number. No sharing: no cost."""
    cdef TreeCore *refs = t.p.refs
    cdef uint64_t key = be64(address)
    cdef uint32_t value
    cdef bint existed
    cdef int code = OK
    before[0] = 0
    if refs == NULL:
        return fail(f, E_NO_REFS, "clone") if delta > 0 else OK
    if t == refs or (delta < 0 and at_get64(&refs.count) == 0):
        return OK
    rw_lock_exclusive(&refs.rw)
    before[0] = extra_locked(refs, address, f)
    if before[0] < 0:
        code = f.code
    elif before[0] + delta > 0:
        value = <uint32_t> (before[0] + delta)
        code = put_slow(refs, <uint8_t *> &key, 8, <uint8_t *> &value, 4, &existed, f)
    elif before[0] > 0:
        code = delete_slow(refs, <uint8_t *> &key, 8, &existed, f)
    rw_unlock_exclusive(&refs.rw)
    return code


cdef int share_below(TreeCore *t, Node *n, Fault *f) noexcept nogil:
    """Another tree now also reaches everything with an address that `n` names."""
    cdef int i, code
    cdef int64_t before
    cdef uint8_t *body
    for i in range(node_count(n)):
        if n.level:
            if n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
                continue
            code = extra_add(t, ref_address(ref_at(page_of(n), i), 0), 1, &before, f)
        else:
            body = spill_at(&t.s, page_of(n), i) if n.spilled else NULL
            if body == NULL or spill_pointer(body) != NULL:
                continue
            code = extra_add(t, ref_address(body + SPILL_FIXED, 0), 1, &before, f)
        if code != OK:
            return code
    return OK


# -- ownership ---------------------------------------------------------------------------------------------------------
cdef int own(TreeCore *t, Node **slot, const uint8_t *ref, Fault *f) noexcept nogil:
    """Make the node in `slot` one that may be changed: itself, or a copy whose original is freed (or left to the clones and
    views that still have it). `ref` is the reference beside the slot, used when the node has an address."""
    cdef Node *n = slot[0]
    cdef Node *c
    cdef int64_t before
    cdef int code, k
    if at_get8(&n.state) == DIRTY and at_get32(&n.refs) == 1:
        return OK
    if at_get8(&n.state) == EMBEDDED and at_get32(&n.refs) == 1:
        node_state(t.p, n, DIRTY)
        t.dirty_nodes += 1
        return OK
    c = node_copy(&t.s, t.p, n, n.cap)
    if c == NULL:
        return fail(f, E_MEMORY, "page")
    at_add64(&t.p.copies, 1)
    if at_get8(&n.state) != DIRTY:
        if at_get8(&n.state) != EMBEDDED:
            code = extra_add(t, ref_address(ref, 0), -1, &before, f)
            if code == OK and before > 0:
                code = share_below(t, n, f)
            elif code == OK:
                for k in range(t.s.copies):
                    freed_add(t.p, ref_address(ref, k), 1, ref_generation(&t.s, ref))
            if code != OK:
                node_decref(t.p, c)
                return code
        t.dirty_nodes += 1
    node_swap(t.p, slot, c)
    return OK


cdef inline int own_root(TreeCore *t, Fault *f) noexcept nogil:
    cdef Node *n
    cdef int code = root_of(t, &n, f)
    return code if code != OK else own(t, &t.root, t.ref, f)


cdef inline int own_kid(TreeCore *t, Node *n, int i, Fault *f) noexcept nogil:
    cdef Node *kid
    cdef int code = kid_at(t, n, i, &kid, f)
    return code if code != OK else own(t, &n.kids[i], ref_at(page_of(n), i), f)


cdef int spill_release(TreeCore *t, const uint8_t *body, Fault *f) noexcept nogil:
    """The tree stops reaching a spilled value that has addresses: free its pages, unless a clone has it too."""
    cdef int64_t before, length = <int64_t> ld64(body)
    cdef int depth, tops = spill_tops(&t.s, length, &depth)
    cdef int code = extra_add(t, ref_address(body + SPILL_FIXED, 0), -1, &before, f)
    if code != OK or before > 0 or batch_release(t, body):
        return code
    return spill_free_pages(t, body + SPILL_FIXED, tops, depth, length, ld64(body + 8), f)


cdef bint batch_release(TreeCore *t, const uint8_t *body) noexcept nogil:
    """Free the pages of a value that still waits for write_sealed: its batch knows them all."""
    cdef PagerCore *p = t.p
    cdef Mapped *m
    cdef Batch *b = NULL
    cdef int64_t i
    spin_lock(&p.spin)
    m = map_find(p, ref_address(body + SPILL_FIXED, 0))
    if m != NULL and m.is_spill:
        b = <Batch *> m.owner
        at_add32(&b.refs, 1)
    spin_unlock(&p.spin)
    if b == NULL:
        return False
    for i in range(b.pages):
        freed_add(p, b.addresses[i], 1, ld64(body + 8))
    batch_free(p, b)
    return True


cdef int spill_free_pages(TreeCore *t, const uint8_t *entries, int64_t n, int depth, int64_t length,
                          uint64_t generation, Fault *f) noexcept nogil:
    cdef int64_t i, span = t.s.page_size, below
    cdef int k, d, code = OK
    cdef uint8_t *page
    for d in range(depth):
        span *= t.s.spill_fan
    page = NULL
    if depth:
        page = <uint8_t *> malloc(t.s.page_size)
        if page == NULL:
            return fail(f, E_MEMORY, "spilled value")
    for i in range(n):
        if depth:
            below = min(span, length - i * span)
            code = spill_page(t, entries + i * t.s.spill_entry, 1, depth, generation, page, f)
            if code == OK:
                code = spill_free_pages(t, page + HEADER, div_up(below, span / t.s.spill_fan), depth - 1, below,
                                        generation, f)
            if code != OK:
                break
        for k in range(t.s.copies):
            freed_add(t.p, ref_address(entries + i * t.s.spill_entry, k), 1, generation)
    free(page)
    return code


cdef int cell_release(TreeCore *t, Node *n, int pos, Fault *f) noexcept nogil:
    """Let go of what slot `pos` of an owned leaf has spilled."""
    cdef uint8_t *body = spill_at(&t.s, page_of(n), pos) if n.spilled else NULL
    cdef Spill *v
    cdef int code
    if body == NULL:
        return OK
    v = spill_pointer(body)
    if v != NULL:
        t.dirty_spill -= spill_pages(&t.s, v.length)
        spills_drop(t.p, n, v)
    else:
        code = spill_release(t, body, f)
        if code != OK:
            return code
    n.spilled -= 1
    return OK


# -- descent -----------------------------------------------------------------------------------------------------------
cdef int find_leaf(TreeCore *t, const uint8_t *key, int klen, Node **leaf, Fault *f) noexcept nogil:
    """The leaf that holds `key` or would. Caller holds pager.rw and, for a live tree, tree.rw."""
    cdef Node *n = NULL
    cdef int i, code = root_of(t, &n, f)
    while code == OK and n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        n_prefetch(n, i)
        code = kid_at(t, n, i, &n, f)
    leaf[0] = n
    return code


cdef inline void n_prefetch(Node *n, int i) noexcept nogil:
    cdef Node *kid = n.kids[i]
    if kid != NULL:
        prefetch_node(kid)


cdef int own_path(TreeCore *t, const uint8_t *key, int klen, Path *path, Fault *f) noexcept nogil:
    """Own every node from the root to the leaf of `key` (the leftmost leaf where key is NULL)."""
    cdef Node *n
    cdef int d = 0, i, code = own_root(t, f)
    if code != OK:
        return code
    n = t.root
    while n.level:
        if d + 1 >= HEIGHT_MAX:
            return fail(f, E_HEIGHT, "tree height")
        i = index_find(&t.s, page_of(n), n.cap, key, klen) if key != NULL else 0
        path.node[d] = n
        path.pos[d] = i
        code = own_kid(t, n, i, f)
        if code != OK:
            return code
        n = n.kids[i]
        d += 1
    path.node[d] = n
    path.pos[d] = 0
    path.depth = d
    return OK


# -- moving cells between pages ----------------------------------------------------------------------------------------
cdef int gather(TreeCore *t, Node *n, Item *items) noexcept nogil:
    cdef int i, count = node_count(n)
    cdef uint8_t *page = page_of(n)
    for i in range(count):
        items[i].cell = cell_at(page, i)
        items[i].klen = klen_at(page, i)
        items[i].size = cell_size_at(&t.s, page, i)
        items[i].kid = n.kids[i] if n.level else NULL
    return count


cdef int gather_pair(TreeCore *t, Node *parent, int at, Node **pair, Item *items, uint8_t *bound) noexcept nogil:
    """The cells of two siblings, the right one at position `at` of the parent; returns how many the left one has. Where they are
    index pages the right one's first cell gets the parent's separator, built in `bound`."""
    cdef int left = gather(t, pair[0], items), klen
    gather(t, pair[1], items + left)
    if pair[0].level:
        klen = klen_at(page_of(parent), at)
        memcpy(bound, cell_at(page_of(parent), at), klen)
        memcpy(bound + klen, items[left].cell, t.s.ref_size)
        items[left].cell = bound
        items[left].klen = klen
        items[left].size = klen + t.s.ref_size
    return left


cdef void fill_page(TreeCore *t, Node *n, Item *items, int count, uint8_t *page) noexcept nogil:
    """Build a page of `items` in `page` (n.cap bytes, apart from every item)."""
    cdef int i, heap = n.cap, first = 1 if n.level else 0, skip = 0, cut
    cdef uint8_t *slot = page + HEADER
    page_init(page, n.cap, t.tree_id, n.level)
    if plain_order(&t.s) and count > first + 1:
        skip = common_prefix(items[first].cell, items[first].klen, items[count - 1].cell, items[count - 1].klen)
        if skip < 3:
            skip = 0
    for i in range(count):
        cut = items[i].klen if i < first else 0  # T2
        heap -= items[i].size - cut
        memcpy(page + heap, items[i].cell + cut, items[i].size - cut)
        st32(slot, 0 if i < first else head_of(&t.s, items[i].cell, items[i].klen, skip))
        st16(slot + 4, heap)
        st16(slot + 6, items[i].klen - cut)
        slot += 8
    st16(page + OFF_COUNT, count)
    st32(page + OFF_HEAP, heap)
    st16(page + OFF_SKIP, skip)


cdef int spread(TreeCore *t, Node **targets, int n, Item *items, const int *cuts, Fault *f) noexcept nogil:
    """Fill `n` nodes with runs of `items` (which may point into those nodes): target k gets items cuts[k] to cuts[k+1]."""
    cdef int i, k, count, total = 0, cap = t.s.page_size
    cdef uint8_t *scratch = <uint8_t *> malloc(<size_t> n * cap)
    cdef uint8_t *body
    if scratch == NULL:
        return fail(f, E_MEMORY, "page")
    for k in range(n):
        total += <int> targets[k].spills
    for k in range(n):
        count = cuts[k + 1] - cuts[k]
        if kids_room(t.p, targets[k], count if targets[k].level else total) != OK:
            free(scratch)
            return fail(f, E_MEMORY, "page")
    for k in range(n):
        fill_page(t, targets[k], items + cuts[k], cuts[k + 1] - cuts[k], scratch + k * cap)
    for k in range(n):
        memcpy(page_of(targets[k]), scratch + k * cap, targets[k].cap)
        count = cuts[k + 1] - cuts[k]
        if targets[k].level:
            for i in range(count):
                targets[k].kids[i] = items[cuts[k] + i].kid
            for i in range(count, <int> targets[k].kids_cap):
                targets[k].kids[i] = NULL
            continue
        targets[k].spilled = targets[k].spills = 0
        for i in range(count):
            body = spill_at(&t.s, page_of(targets[k]), i)
            if body == NULL:
                continue
            targets[k].spilled += 1
            if spill_pointer(body) != NULL:
                if spills_add(t.p, targets[k], spill_pointer(body)) != OK:
                    free(scratch)
                    return fail(f, E_MEMORY, "page")
    free(scratch)
    return OK


cdef int separator(TreeCore *t, Item *left, Item *right, int level) noexcept nogil:
    """Bytes of the right item's key that the parent keeps: in a leaf the shortest prefix above the left key."""
    cdef int n
    if level or not plain_order(&t.s):
        return right.klen
    n = common_prefix(left.cell, left.klen, right.cell, right.klen) + 1
    return n if n < right.klen else right.klen


cdef bint sep_fits(TreeCore *t, Node *parent, int pos, int klen) noexcept nogil:
    return page_free(page_of(parent)) + klen_at(page_of(parent), pos) >= klen


cdef void set_separator(TreeCore *t, Node *parent, int pos, const uint8_t *key, int klen) noexcept nogil:
    """Replace the separator of child `pos`; the caller made sure that it fits."""
    cdef uint8_t ref[REF_MAX]
    cdef uint8_t *page = page_of(parent)
    memcpy(ref, ref_at(page, pos), t.s.ref_size)
    page_erase(&t.s, page, pos)
    memcpy(page_open(&t.s, page, parent.cap, pos, key, klen, klen + t.s.ref_size), ref, t.s.ref_size)


cdef int items_bytes(Item *items, int lo, int hi) noexcept nogil:
    cdef int i, total = 0
    for i in range(lo, hi):
        total += items[i].size + 8
    return total


cdef int best_cut(Item *items, int n, int usable, int total) noexcept nogil:
    """Where to cut items in two most equal parts that both fit in a page; 0 where there is no such place."""
    cdef int i, left = 0, best = 0, gap, least = 1 << 30
    for i in range(n - 1):
        left += items[i].size + 8
        gap = total - 2 * left
        if gap < 0:
            gap = -gap
        if left <= usable and total - left <= usable and gap < least:
            least = gap
            best = i + 1
    return best


cdef enum:
    ROTATE_ROOM = 6  # a rotation must leave the pair a sixth of a page: less would be filled again at once


# -- insertion ---------------------------------------------------------------------------------------------------------
cdef int kids_insert(TreeCore *t, Node *n, int pos, Node *kid) noexcept nogil:
    cdef int count = node_count(n)  # the slot is in the page already
    memmove(n.kids + pos + 1, n.kids + pos, (count - 1 - pos) * sizeof(Node *))
    n.kids[pos] = kid
    return OK


cdef int place(TreeCore *t, Node *n, int pos, Item *item, bint *done, Fault *f) noexcept nogil:
    """Put a cell into a page that has room."""
    cdef uint8_t *p
    done[0] = False
    if page_free(page_of(n)) < item.size + 8:
        return OK
    if n.level and kids_room(t.p, n, node_count(n) + 1) != OK:
        return fail(f, E_MEMORY, "page")
    p = page_open(&t.s, page_of(n), n.cap, pos, item.cell, item.klen, item.size)
    memcpy(p, item.cell + item.klen, item.size - item.klen)
    if n.level:
        kids_insert(t, n, pos, item.kid)
    done[0] = True
    return OK


cdef int rotate(TreeCore *t, Path *path, int d, int pos, Item *item, int side, Item *items, bint *done,
                Fault *f) noexcept nogil:
    """Insert by sharing the cells of a full node with its sibling on `side` (-1, +1), when that leaves both some room."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *pair[2]
    cdef int cuts[3]
    cdef int at = path.pos[d - 1] + side, count, left, code, usable = t.s.page_size - HEADER, total, klen
    cdef int right = path.pos[d - 1] + (1 if side > 0 else 0)
    cdef uint8_t key[1100]
    cdef uint8_t bound[1100 + REF_MAX]
    cdef Node *sibling
    done[0] = False
    if at < 0 or at >= node_count(parent):
        return OK
    sibling = <Node *> at_getp(&parent.kids[at])
    if sibling == NULL:
        return OK  # not resident: reading it would cost what a split costs
    total = page_live(page_of(n), n.cap) + page_live(page_of(sibling), sibling.cap) + item.size + 8
    if n.level:
        total += klen_at(page_of(parent), right)
    if total > 2 * usable - usable / ROTATE_ROOM:
        return OK
    code = own_kid(t, parent, at, f)
    if code != OK:
        return code
    pair[0] = parent.kids[at] if side < 0 else n
    pair[1] = n if side < 0 else parent.kids[at]
    left = gather_pair(t, parent, right, pair, items, bound)
    count = node_count(pair[0]) + node_count(pair[1])
    at = pos + left if side < 0 else pos
    memmove(items + at + 1, items + at, (count - at) * sizeof(Item))
    items[at] = item[0]
    count += 1
    cuts[0] = 0
    cuts[1] = best_cut(items, count, usable, total)
    cuts[2] = count
    if cuts[1] == 0:
        return OK
    klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
    if not sep_fits(t, parent, right, klen):
        return OK
    memcpy(key, items[cuts[1]].cell, klen)
    code = spread(t, pair, 2, items, cuts, f)
    if code != OK:
        return code
    set_separator(t, parent, right, key, klen)
    at_add64(&t.p.rotations, 1)
    done[0] = True
    return OK


cdef int grow_root(TreeCore *t, Path *path, Fault *f) noexcept nogil:
    """Put a new root with one child above the full one; everything on the path moves a level down."""
    cdef Node *root
    cdef int i
    cdef uint8_t *p
    if path.depth + 2 >= HEIGHT_MAX:
        return fail(f, E_HEIGHT, "tree height")
    root = node_alloc(t.p, t.s.page_size, t.level + 1, 4, DIRTY)
    if root == NULL:
        return fail(f, E_MEMORY, "page")
    root.signature = t.s.signature
    page_init(page_of(root), root.cap, t.tree_id, root.level)
    p = page_open(&t.s, page_of(root), root.cap, 0, p_empty, 0, t.s.ref_size)
    memset(p, 0, t.s.ref_size)
    root.kids[0] = t.root
    t.root = root
    at_set32(<int32_t *> &t.level, t.level + 1)
    t.dirty_nodes += 1
    i = path.depth
    while i >= 0:
        path.node[i + 1] = path.node[i]
        path.pos[i + 1] = path.pos[i]
        i -= 1
    path.node[0] = root
    path.pos[0] = 0
    path.depth += 1
    return OK


cdef const uint8_t *p_empty = b""


cdef bint three_cuts(Item *items, int n, int usable, int total, int *cuts) noexcept nogil:
    """Cut items into three parts of about a third each; False where one would not fit in a page."""
    cdef int i, sum = 0, part = 1, start = 0
    cuts[0] = 0
    cuts[3] = n
    for i in range(n):
        if part < 3 and i > cuts[part - 1] and sum + (items[i].size + 8) / 2 > part * total / 3:
            if sum - start > usable:
                return False
            cuts[part] = i
            start = sum
            part += 1
        sum += items[i].size + 8
    return part == 3 and sum - start <= usable


cdef int split_two(TreeCore *t, Path *path, int d, int pos, Item *item, int side, Item *items, bint *done,
                   Fault *f) noexcept nogil:
    """Insert by making three nodes of a full one and its full sibling on `side`, each two thirds full: random insertions then
    split less often and leave leaves fuller than halves would."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *trio[3]
    cdef Node *sibling
    cdef int cuts[4]
    cdef int at = path.pos[d - 1] + side, right = path.pos[d - 1] + (1 if side > 0 else 0), left, count, code, klen
    cdef uint8_t bound[1100 + REF_MAX]
    cdef uint8_t key[1100]
    cdef uint8_t cell[1100 + REF_MAX]
    cdef Item up
    done[0] = False
    if at < 0 or at >= node_count(parent):
        return OK
    sibling = <Node *> at_getp(&parent.kids[at])
    if sibling == NULL or at_get8(&sibling.state) != DIRTY or at_get32(&sibling.refs) != 1:
        return OK  # a page that is not dirty yet would be one more to write
    trio[0] = parent.kids[right - 1]
    trio[1] = parent.kids[right]
    left = gather_pair(t, parent, right, trio, items, bound)
    count = node_count(trio[0]) + node_count(trio[1])
    at = pos + left if side < 0 else pos
    memmove(items + at + 1, items + at, (count - at) * sizeof(Item))
    items[at] = item[0]
    count += 1
    if not three_cuts(items, count, t.s.page_size - HEADER, items_bytes(items, 0, count), cuts):
        return OK
    klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
    if not sep_fits(t, parent, right, klen):
        return OK
    memcpy(key, items[cuts[1]].cell, klen)
    up.klen = separator(t, &items[cuts[2] - 1], &items[cuts[2]], n.level)
    memcpy(cell, items[cuts[2]].cell, up.klen)
    memset(cell + up.klen, 0, t.s.ref_size)
    trio[2] = node_alloc(t.p, t.s.page_size, n.level, count - cuts[2], DIRTY)
    if trio[2] == NULL:
        return fail(f, E_MEMORY, "page")
    trio[2].signature = t.s.signature
    page_init(page_of(trio[2]), trio[2].cap, t.tree_id, n.level)
    code = spread(t, trio, 3, items, cuts, f)
    if code != OK:
        node_decref(t.p, trio[2])
        return code
    set_separator(t, parent, right, key, klen)
    t.dirty_nodes += 1
    at_add64(&t.p.splits, 1)
    done[0] = True
    up.cell = cell
    up.size = up.klen + t.s.ref_size
    up.kid = trio[2]
    return insert_at(t, path, d - 1, right + 1, &up, f)


cdef int split(TreeCore *t, Path *path, int d, int pos, Item *item, Item *items, Fault *f) noexcept nogil:
    """Insert into a full node by making a new right sibling, and hand its reference to the parent. Runs of insertions at
    the end (or the front) leave the old node full; others are cut in the middle."""
    cdef Node *pair[2]
    cdef Node *n = path.node[d]
    cdef int cuts[3]
    cdef int count = gather(t, n, items), klen, code, usable = t.s.page_size - HEADER
    cdef Item up
    cdef uint8_t cell[1100 + REF_MAX]
    memmove(items + pos + 1, items + pos, (count - pos) * sizeof(Item))
    items[pos] = item[0]
    count += 1
    cuts[0] = 0
    cuts[2] = count
    if n.run > 1 and pos == count - 1:
        cuts[1] = pos
    elif n.run < -1 and pos == 0:
        cuts[1] = 1
    else:
        cuts[1] = best_cut(items, count, usable, items_bytes(items, 0, count))
    pair[0] = n
    pair[1] = node_alloc(t.p, t.s.page_size, n.level, count - cuts[1], DIRTY)
    if pair[1] == NULL:
        return fail(f, E_MEMORY, "page")
    pair[1].signature = t.s.signature
    pair[1].run = n.run
    page_init(page_of(pair[1]), pair[1].cap, t.tree_id, n.level)
    klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
    memcpy(cell, items[cuts[1]].cell, klen)
    memset(cell + klen, 0, t.s.ref_size)
    code = spread(t, pair, 2, items, cuts, f)
    if code != OK:
        node_decref(t.p, pair[1])
        return code
    t.dirty_nodes += 1
    at_add64(&t.p.splits, 1)
    up.cell = cell
    up.size = klen + t.s.ref_size
    up.klen = klen
    up.kid = pair[1]
    return insert_at(t, path, d - 1, path.pos[d - 1] + 1, &up, f)


cdef int insert_at(TreeCore *t, Path *path, int d, int pos, Item *item, Fault *f) noexcept nogil:
    """Insert a cell at `pos` of the owned node path.node[d]: in place, else by rotation, else by splitting."""
    cdef Node *n = path.node[d]
    cdef int code, count = node_count(n), most
    cdef bint done
    cdef Item *items
    if n.cap < <uint32_t> t.s.page_size and page_free(page_of(n)) < item.size + 8:
        code = grow_page(t, path, d, item.size, f)
        if code != OK:
            return code
        n = path.node[d]
    if pos == count:
        n.run = n.run + 1 if 0 < n.run < 30000 else 1
    elif pos == (1 if n.level else 0):
        n.run = n.run - 1 if -30000 < n.run < 0 else -1
    else:
        n.run = 0
    code = place(t, n, pos, item, &done, f)
    if code != OK or done:
        return code
    if d == 0:
        code = grow_root(t, path, f)
        if code != OK:
            return code
        d = 1
    most = 3 * (t.s.page_size / 9) + 8
    items = <Item *> malloc(most * sizeof(Item))
    if items == NULL:
        return fail(f, E_MEMORY, "page")
    if not ((n.run > 1 and pos == count) or (n.run < -1 and pos <= 1)):
        code = rotate(t, path, d, pos, item, -1, items, &done, f)
        if code == OK and not done:
            code = rotate(t, path, d, pos, item, 1, items, &done, f)
        if code == OK and not done:
            code = split_two(t, path, d, pos, item, -1, items, &done, f)
        if code == OK and not done:
            code = split_two(t, path, d, pos, item, 1, items, &done, f)
    if code == OK and not done:
        code = split(t, path, d, pos, item, items, f)
    free(items)
    return code


cdef int grow_page(TreeCore *t, Path *path, int d, int size, Fault *f) noexcept nogil:
    """A small root leaf gets a larger page, twice as large until the cell fits."""
    cdef Node *n = path.node[d]
    cdef Node *c
    cdef int cap = n.cap, short = size + 8 - page_free(page_of(n))
    while cap - <int> n.cap < short and cap < t.s.page_size:
        cap *= 2
    if cap > t.s.page_size:
        cap = t.s.page_size
    c = node_copy(&t.s, t.p, n, cap)
    if c == NULL:
        return fail(f, E_MEMORY, "page")
    node_swap(t.p, &t.root, c)
    path.node[d] = c
    return OK


cdef int record_item(TreeCore *t, Item *item, uint8_t *cell, const uint8_t *key, int klen, const uint8_t *value,
                     int64_t vlen, Spill **made, Fault *f) noexcept nogil:
    """Encode a leaf cell in `cell`; a long value goes into memory of its own, which `made` receives."""
    cdef int n = klen
    cdef int64_t padded
    cdef Spill *v
    made[0] = NULL
    memcpy(cell, key, klen)
    if t.s.fixed_value < 0 and value_spills(&t.s, klen, vlen):
        padded = div_up(vlen, t.s.page_size) * t.s.page_size
        v = <Spill *> calloc(1, sizeof(Spill))
        if v != NULL:
            v.data = <uint8_t *> malloc(padded)
        if v == NULL or v.data == NULL:
            free(v)
            return fail(f, E_MEMORY, "value")
        memcpy(v.data, value, vlen)
        memset(v.data + vlen, 0, padded - vlen)
        v.refs = 1
        v.length = vlen
        at_add64(&t.p.dirty_bytes, padded)
        made[0] = v
        st16(cell + n, SPILL_MARK)
        n += 2
        memset(cell + n, 0, SPILL_BODY_MAX)
        st64(cell + n, vlen)
        st64(cell + n + 8, IN_MEMORY)
        st64(cell + n + 16, <uint64_t> <uintptr_t> v)
        n += spill_body(&t.s, vlen)
    else:
        if t.s.fixed_value < 0:
            st16(cell + n, <int> vlen)
            n += 2
        memcpy(cell + n, value, vlen)
        n += <int> vlen
        if n == 0:
            cell[0] = 0
            n = 1
    item.cell = cell
    item.size = n
    item.klen = klen
    item.kid = NULL
    return OK


cdef int put_slow(TreeCore *t, const uint8_t *key, int klen, const uint8_t *value, int64_t vlen, bint *existed,
                  Fault *f) noexcept nogil:
    """Put with the tree's lock held exclusively: owns the path, splits, spills."""
    cdef Path path
    cdef Item item
    cdef Spill *v
    cdef Node *leaf
    cdef uint8_t *cell
    cdef int pos, code = own_path(t, key, klen, &path, f)
    existed[0] = False
    if code != OK:
        return code
    leaf = path.node[path.depth]
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    t.is_dirty = 1
    cell = <uint8_t *> malloc(t.s.cell_max + SPILL_BODY_MAX + 16)
    if cell == NULL:
        return fail(f, E_MEMORY, "record")
    code = record_item(t, &item, cell, key, klen, value, vlen, &v, f)
    if code == OK and existed[0]:
        code = cell_release(t, leaf, pos, f)
        if code == OK:
            page_erase(&t.s, page_of(leaf), pos)
            at_add64(&t.count, -1)
    if code == OK and v != NULL:
        if spills_add(t.p, leaf, v) != OK:
            code = fail(f, E_MEMORY, "value")
        else:
            leaf.spilled += 1
            t.dirty_spill += spill_pages(&t.s, vlen)
            v = NULL  # the leaf's now
    if code == OK:
        code = insert_at(t, &path, path.depth, pos, &item, f)
    if code == OK:
        at_add64(&t.count, 1)
    elif v != NULL:
        spill_free(t.p, v)
    free(cell)
    return code


cdef bint put_fast(TreeCore *t, const uint8_t *key, int klen, const uint8_t *value, int vlen,
                   bint *existed) noexcept nogil:
    """Put under the shared lock, where every node on the way is owned already and the leaf has room. False: not done."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef int i
    cdef bint done
    if n == NULL or at_get8(&n.state) != DIRTY or at_get32(&n.refs) != 1:
        return False
    while n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        n = <Node *> at_getp(&n.kids[i])
        if n == NULL:
            return False
        prefetch_node(n)
        if at_get8(&n.state) != DIRTY or at_get32(&n.refs) != 1:
            return False
    if n.spilled:
        return False
    latch_lock(&n.version)
    i = page_find(&t.s, page_of(n), n.cap, 0, key, klen, existed)
    if existed[0]:
        done = leaf_replace(&t.s, page_of(n), n.cap, i, value, vlen)
    else:
        done = leaf_insert(&t.s, page_of(n), n.cap, i, key, klen, value, vlen)
        if done:
            if i == node_count(n) - 1:
                n.run = n.run + 1 if 0 < n.run < 30000 else 1
            elif i == 0:
                n.run = n.run - 1 if -30000 < n.run < 0 else -1
            else:
                n.run = 0
    latch_unlock(&n.version)
    if done:
        if not existed[0]:
            at_add64(&t.count, 1)
        if not t.is_dirty:
            t.is_dirty = 1
    return done


# -- deletion ----------------------------------------------------------------------------------------------------------
cdef void drop_kid(TreeCore *t, Node *parent, int pos) noexcept nogil:
    """Take child `pos` out of an owned index page (the child itself is the caller's). T2: slot 0 stays."""
    cdef uint8_t *page = page_of(parent)
    cdef int count = node_count(parent)
    if pos == 0 and count > 1:
        memcpy(ref_at(page, 0), ref_at(page, 1), t.s.ref_size)
        page_erase(&t.s, page, 1)
    else:
        page_erase(&t.s, page, pos)
    memmove(parent.kids + pos, parent.kids + pos + 1, (count - 1 - pos) * sizeof(Node *))
    parent.kids[count - 1] = NULL


cdef bint forgive(Fault *f) noexcept nogil:
    """A sibling that cannot be read is no reason to fail a deletion that is done: leave the node underfull."""
    if f.code == E_MEMORY:
        return False
    if f.error != NULL:
        with gil:
            Py_DECREF(<object> f.error)
        f.error = NULL
    f.code = OK
    return True


cdef int join(TreeCore *t, Path *path, int d, int side, bint *done, Fault *f) noexcept nogil:
    """Mend an underfull node with its sibling on `side`: merge the two where they fit in one page, else even them out."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *pair[2]
    cdef Node *sibling
    cdef int cuts[3]
    cdef int at = path.pos[d - 1] + side, count, left, code, usable = t.s.page_size - HEADER, total, klen
    cdef int room, live = page_live(page_of(n), n.cap), right = path.pos[d - 1] + (1 if side > 0 else 0)
    cdef uint8_t key[1100]
    cdef uint8_t bound[1100 + REF_MAX]
    cdef Item *items
    done[0] = False
    if at < 0 or at >= node_count(parent):
        return OK
    code = kid_at(t, parent, at, &sibling, f)
    if code != OK:
        return OK if forgive(f) else code
    total = live + page_live(page_of(sibling), sibling.cap)
    if n.level:
        total += klen_at(page_of(parent), right)
    room = usable if node_count(n) < 2 else usable - usable / 16  # not so full that the next insertion splits it again
    if total > room and live * 4 > usable and node_count(n) > 1:
        return OK
    code = own_kid(t, parent, at, f)
    if code != OK:
        return code
    pair[0] = parent.kids[right - 1]
    pair[1] = parent.kids[right]
    items = <Item *> malloc((node_count(pair[0]) + node_count(pair[1])) * sizeof(Item) + 1)
    if items == NULL:
        return fail(f, E_MEMORY, "page")
    left = gather_pair(t, parent, right, pair, items, bound)
    count = node_count(pair[0]) + node_count(pair[1])
    cuts[0] = 0
    cuts[2] = count
    if total <= room:
        cuts[1] = count
        code = spread(t, pair, 2, items, cuts, f)
        if code == OK:
            drop_kid(t, parent, right)
            node_decref(t.p, pair[1])
            t.dirty_nodes -= 1
            path.pos[d - 1] = right - 1
            path.node[d] = pair[0]
            at_add64(&t.p.merges, 1)
            done[0] = True
    else:
        cuts[1] = best_cut(items, count, usable, total)
        if cuts[1] and cuts[1] != left:
            klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
            if sep_fits(t, parent, right, klen):
                memcpy(key, items[cuts[1]].cell, klen)
                code = spread(t, pair, 2, items, cuts, f)
                if code == OK:
                    set_separator(t, parent, right, key, klen)
                    at_add64(&t.p.rotations, 1)
    free(items)
    return code


cdef int mend(TreeCore *t, Path *path, Fault *f) noexcept nogil:
    """From the leaf up: drop what is empty, join what is less than half full; then drop a root with a single child."""
    cdef int d = path.depth, code
    cdef bint done
    cdef Node *n
    cdef Node *kid
    if d and node_count(path.node[d]) == 0:  # T5: with the pages above that hold nothing else
        d -= 1
        while d and node_count(path.node[d]) == 1:
            d -= 1
        if node_count(path.node[d]) > 1:
            n = path.node[d]
            kid = n.kids[path.pos[d]]
            drop_kid(t, n, path.pos[d])
            node_decref(t.p, kid)
            t.dirty_nodes -= path.depth - d
    while d > 0:
        n = path.node[d]
        if page_live(page_of(n), n.cap) * 2 < t.s.page_size - HEADER or node_count(n) < 2:
            code = join(t, path, d, -1, &done, f)
            if code == OK and not done:
                code = join(t, path, d, 1, &done, f)
            if code != OK:
                return code
        d -= 1
    while t.root.level and node_count(t.root) == 1:
        code = own_kid(t, t.root, 0, f)
        if code != OK:
            return code
        n = t.root
        kid = n.kids[0]
        n.kids[0] = NULL
        t.root = kid
        at_set32(<int32_t *> &t.level, t.level - 1)
        t.dirty_nodes -= 1
        node_decref(t.p, n)
    return OK


cdef int delete_slow(TreeCore *t, const uint8_t *key, int klen, bint *existed, Fault *f) noexcept nogil:
    """Delete with the tree's lock held exclusively. A key that is not there dirties nothing."""
    cdef Path path
    cdef Node *leaf
    cdef int pos, code = find_leaf(t, key, klen, &leaf, f)
    existed[0] = False
    if code != OK:
        return code
    page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    if not existed[0]:
        return OK
    code = own_path(t, key, klen, &path, f)
    if code != OK:
        return code
    leaf = path.node[path.depth]
    t.is_dirty = 1
    pos = page_find(&t.s, page_of(leaf), leaf.cap, 0, key, klen, existed)
    code = cell_release(t, leaf, pos, f)
    if code != OK:
        return code
    page_erase(&t.s, page_of(leaf), pos)
    leaf.run = 0
    at_add64(&t.count, -1)
    return mend(t, &path, f)


cdef bint delete_fast(TreeCore *t, const uint8_t *key, int klen, bint *existed) noexcept nogil:
    """Delete under the shared lock where nothing but an owned leaf changes, and stays half full. False: not done."""
    cdef Node *n = <Node *> at_getp(&t.root)
    cdef int i
    cdef bint done = False
    existed[0] = False
    if n == NULL or at_get8(&n.state) != DIRTY or at_get32(&n.refs) != 1:
        return False
    while n.level:
        i = index_find(&t.s, page_of(n), n.cap, key, klen)
        n = <Node *> at_getp(&n.kids[i])
        if n == NULL or at_get8(&n.state) != DIRTY or at_get32(&n.refs) != 1:
            return False
    if n.spilled:
        return False
    latch_lock(&n.version)
    i = page_find(&t.s, page_of(n), n.cap, 0, key, klen, existed)
    if not existed[0]:
        done = True
    elif t.level == 0 or (page_live(page_of(n), n.cap) - cell_size_at(&t.s, page_of(n), i) - 8) * 2 >= (
            t.s.page_size - HEADER) and node_count(n) > 2:
        page_erase(&t.s, page_of(n), i)
        n.run = 0
        done = True
    latch_unlock(&n.version)
    if done and existed[0]:
        at_add64(&t.count, -1)
        if not t.is_dirty:
            t.is_dirty = 1
    return done


# -- dropping whole subtrees -------------------------------------------------------------------------------------------
cdef int64_t records_below(TreeCore *t, Node *n) noexcept nogil:
    """Records under a node: counted where it is dirty, read from the references where it is not."""
    cdef int i
    cdef int64_t total = 0
    if n.level == 0:
        return node_count(n)
    for i in range(node_count(n)):
        if n.kids[i] != NULL and at_get8(&n.kids[i].state) == DIRTY:
            total += records_below(t, n.kids[i])
        else:
            total += <int64_t> (ref_records(&t.s, ref_at(page_of(n), i)) & ~REF_SPILLED)
    return total


cdef int drop_below(TreeCore *t, Node *n, int64_t *records, Fault *f) noexcept nogil:
    """Free what a node reaches (not the node): its children, or the spilled values of a leaf."""
    cdef int i, code = OK
    cdef uint8_t *body
    cdef Spill *v
    for i in range(node_count(n)):
        if n.level:
            code = drop_ref(t, n.kids[i], ref_at(page_of(n), i), n.level - 1, records, f)
        elif n.spilled:
            body = spill_at(&t.s, page_of(n), i)
            if body != NULL:
                v = spill_pointer(body)
                if v != NULL:
                    t.dirty_spill -= spill_pages(&t.s, v.length)
                else:
                    code = spill_release(t, body, f)
        if code != OK:
            return code
    if n.level == 0:
        records[0] += node_count(n)
    return OK


cdef int drop_ref(TreeCore *t, Node *kid, const uint8_t *ref, int level, int64_t *records, Fault *f) noexcept nogil:
    """The tree stops reaching a subtree, given by node (which stays where it is) or by reference. Leaves are read only where
    something in them spilled; pages read for this are not kept."""
    cdef int64_t before
    cdef int code, k
    cdef Node *n = kid
    if kid != NULL and (at_get8(&kid.state) == DIRTY or at_get8(&kid.state) == EMBEDDED):
        t.dirty_nodes -= at_get8(&kid.state) == DIRTY
        return drop_below(t, kid, records, f)
    code = extra_add(t, ref_address(ref, 0), -1, &before, f)
    if code != OK:
        return code
    if before > 0 or (level == 0 and not ref_records(&t.s, ref) & REF_SPILLED):
        records[0] += <int64_t> (ref_records(&t.s, ref) & ~REF_SPILLED)
    else:
        if n == NULL:
            code = load(t, ref, level, &n, f)
            if code != OK:
                return code
        code = drop_below(t, n, records, f)
        if kid == NULL:
            node_decref(t.p, n)
        if code != OK:
            return code
    if before == 0:
        for k in range(t.s.copies):
            freed_add(t.p, ref_address(ref, k), 1, ref_generation(&t.s, ref))
    return OK


cdef int clear_slow(TreeCore *t, Fault *f) noexcept nogil:
    """Free every page and put an empty leaf in the root's place."""
    cdef int64_t records = 0
    cdef int code
    cdef Node *leaf = empty_leaf(t)
    if leaf == NULL:
        return fail(f, E_MEMORY, "page")
    code = drop_ref(t, t.root, t.ref, t.level, &records, f)
    if code != OK:
        node_decref(t.p, leaf)
        return code
    node_swap(t.p, &t.root, leaf)
    at_set32(<int32_t *> &t.level, 0)
    t.is_dirty = 1
    t.dirty_nodes = 1
    t.dirty_spill = 0
    at_set64(&t.count, 0)
    return OK


cdef Node *empty_leaf(TreeCore *t) noexcept nogil:
    cdef Node *leaf = node_alloc(t.p, 128 if t.s.page_size > 128 else t.s.page_size, 0, 0, DIRTY)
    if leaf != NULL:
        leaf.signature = t.s.signature
        page_init(page_of(leaf), leaf.cap, t.tree_id, 0)
    return leaf


cdef struct Range:
    const uint8_t *start  # NULL: from the first
    int start_len
    const uint8_t *stop   # NULL: to the last
    int stop_len


cdef int cut_range(TreeCore *t, Node *n, const uint8_t *start, int start_len, const uint8_t *stop, int stop_len,
                   int64_t *records, Fault *f) noexcept nogil:
    """Remove start <= key < stop below an owned node. Children wholly inside go as subtrees; the one or two at the borders
    are cut themselves, and are mended by the caller."""
    cdef int lo, hi, i, code
    cdef bint found
    cdef Node *kid
    if n.level == 0:
        lo = page_find(&t.s, page_of(n), n.cap, 0, start, start_len, &found) if start != NULL else 0
        hi = page_find(&t.s, page_of(n), n.cap, 0, stop, stop_len, &found) if stop != NULL else node_count(n)
        while hi > lo:
            hi -= 1
            code = cell_release(t, n, hi, f)
            if code != OK:
                return code
            page_erase(&t.s, page_of(n), hi)
            records[0] += 1
        n.run = 0
        return OK
    lo = index_find(&t.s, page_of(n), n.cap, start, start_len) if start != NULL else -1
    hi = index_find(&t.s, page_of(n), n.cap, stop, stop_len) if stop != NULL else node_count(n)
    if lo == hi:
        code = own_kid(t, n, lo, f)
        return code if code != OK else cut_range(t, n.kids[lo], start, start_len, stop, stop_len, records, f)
    if hi < node_count(n):
        code = own_kid(t, n, hi, f)
        if code == OK:
            code = cut_range(t, n.kids[hi], NULL, 0, stop, stop_len, records, f)
        if code != OK:
            return code
    i = hi - 1
    while i > lo:
        if lo < 0 and i == 0 and hi == node_count(n):
            break  # an owned node keeps one child; its caller never asks for all of it
        kid = n.kids[i]
        code = drop_ref(t, kid, ref_at(page_of(n), i), n.level - 1, records, f)
        if code != OK:
            return code
        if kid != NULL:
            node_decref(t.p, kid)
        drop_kid(t, n, i)
        hi -= 1
        i -= 1
    if lo >= 0:
        code = own_kid(t, n, lo, f)
        return code if code != OK else cut_range(t, n.kids[lo], start, start_len, NULL, 0, records, f)
    if i == 0:
        code = own_kid(t, n, 0, f)
        return code if code != OK else cut_range(t, n.kids[0], NULL, 0, NULL, 0, records, f)
    return OK


cdef int delete_range_slow(TreeCore *t, Range *r, int64_t *records, Fault *f) noexcept nogil:
    cdef Path path
    cdef int code
    records[0] = 0
    if r.start == NULL and r.stop == NULL:
        records[0] = at_get64(&t.count)
        return clear_slow(t, f) if records[0] else OK
    if r.start != NULL and r.stop != NULL and compare(&t.s, r.start, r.start_len, r.stop, r.stop_len) >= 0:
        return OK
    if at_get64(&t.count) == 0:
        return OK
    code = own_root(t, f)
    if code == OK:
        code = cut_range(t, t.root, r.start, r.start_len, r.stop, r.stop_len, records, f)
    at_add64(&t.count, -records[0])
    t.is_dirty = 1
    if code == OK:
        code = own_path(t, r.start, r.start_len, &path, f)
    if code == OK:
        code = mend(t, &path, f)
    if code == OK and r.stop != NULL:
        code = own_path(t, r.stop, r.stop_len, &path, f)
        if code == OK:
            code = mend(t, &path, f)
    return code
