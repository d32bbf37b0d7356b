# Moving cells between siblings: rotation before splitting, two full pages into three, merging on delete.
#
# Leaves give cells to their siblings one by one and leave holes (layout.pxi, P5), so that a rotation touches few cache lines and
# no page is built anew. Index pages, which change a hundred times more seldom, are gathered and written again.

cdef enum:
    ROTATE_ROOM = 6  # a rotation must leave the pair a sixth of a page: less would be filled again at once

cdef struct Item:        # a cell on its way between pages
    const uint8_t *cell
    int size
    int klen
    Node *kid


cdef inline int64_t items_most(int page_size) noexcept nogil:
    """More cells than two pages and a cell have."""
    return 2 * (page_size / 9) + 8


# -- leaves ------------------------------------------------------------------------------------------------------------
cdef inline void cell_put(TreeCore *t, Node *n, int pos, const Item *item) noexcept nogil:
    """Put a cell into an owned page that has room."""
    cdef uint8_t *p = page_open(&t.s, page_of(n), n.cap, pos, item.cell, item.klen, item.size)
    memcpy(p, item.cell + item.klen, item.size - item.klen)
    if n.level:
        memmove(n.kids + pos + 1, n.kids + pos, (node_count(n) - 1 - pos) * sizeof(Node *))
        n.kids[pos] = item.kid
    elif t.s.fixed_value < 0 and ld16(p) >= SPILL_DATED:
        n.spilled += 1


cdef inline void item_at(TreeCore *t, Node *n, int i, Item *item) noexcept nogil:
    item.cell = cell_at(page_of(n), i)
    item.klen = klen_at(page_of(n), i)
    item.size = cell_size_at(&t.s, page_of(n), i)
    item.kid = n.kids[i] if n.level else NULL


cdef void cells_drop(TreeCore *t, Node *leaf, int lo, int hi) noexcept nogil:
    """Drop cells that another leaf has taken over, with what they spilled."""
    cdef int i
    for i in range(lo, hi if leaf.spilled else lo):
        leaf.spilled -= spill_at(&t.s, page_of(leaf), i) != NULL
    page_drop(&t.s, page_of(leaf), lo, hi)


cdef struct Peel:        # cells to take from one end of a leaf into which `item` is about to go
    int cells
    bint item            # the new one is among them
    int size
    Item edge            # the last one taken
    Item rest            # the first one left


cdef void peel(TreeCore *t, Node *leaf, int pos, const Item *item, bint front, int want, Peel *p) noexcept nogil:
    """Count off cells from the front or the back until about `want` bytes are taken; at least one stays. `pos`: where in the leaf
    the new cell goes, -1 where it does not."""
    cdef int count = node_count(leaf), at
    cdef bint is_item
    cdef Item next
    p.cells = p.size = 0
    p.item = False
    while True:
        at = p.cells if front else count - 1 - p.cells
        is_item = pos >= 0 and not p.item and (at == pos if front else at == pos - 1)
        if is_item:
            next = item[0]
        else:
            item_at(t, leaf, at, &next)
        if p.size + (next.size + 8) / 2 > want or p.cells + p.item == count + (pos >= 0) - 1:
            p.rest = next
            return
        p.edge = next
        p.size += next.size + 8
        if is_item:
            p.item = True
        else:
            p.cells += 1


cdef int rotate_leaf(TreeCore *t, Path *path, int pos, const Item *item, int side, bint *done) noexcept nogil:
    """Insert by giving cells of a full leaf to its sibling on `side` (-1, +1), when that leaves both some room."""
    cdef int d = path.depth, at = path.pos[d - 1] + side, right = path.pos[d - 1] + (side > 0), klen, count, k
    cdef int usable = t.s.page_size - HEADER, live, other
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *sibling
    cdef uint8_t key[1100]
    cdef Item moved
    cdef Peel p
    cdef Fault ignored
    sibling = parent.kids[at]
    live = page_live(page_of(n), n.cap) + item.size + 8
    other = page_live(page_of(sibling), sibling.cap)
    memset(&ignored, 0, sizeof(Fault))
    if own_kid(t, parent, at, &ignored) != OK:
        return fault_forget(&ignored)  # then the leaf is split
    sibling = parent.kids[at]
    peel(t, n, pos, item, side < 0, (live - other) / 2, &p)
    if p.size == 0 or other + p.size > usable or live - p.size > usable:
        return OK
    klen = separator(t, &p.edge, &p.rest, 0) if side < 0 else separator(t, &p.rest, &p.edge, 0)
    if not sep_fits(t, parent, right, klen):
        return OK
    memcpy(key, p.rest.cell if side < 0 else p.edge.cell, klen)
    set_separator(t, parent, right, key, klen)
    count = node_count(n)
    for k in range(p.cells):
        item_at(t, n, k if side < 0 else count - 1 - k, &moved)
        cell_put(t, sibling, node_count(sibling) if side < 0 else 0, &moved)
    cells_drop(t, n, 0 if side < 0 else count - p.cells, p.cells if side < 0 else count)
    if p.item:
        cell_put(t, sibling, node_count(sibling) - (p.cells - pos) if side < 0 else pos - (count - p.cells), item)
    else:
        cell_put(t, n, pos - p.cells if side < 0 else pos, item)
    at_add64(&t.p.rotations, 1)
    done[0] = True
    return OK


cdef Node *spare_take(TreeCore *t, Path *path, int level) noexcept nogil:
    """A node reserved for this level; it counts as the tree's."""
    cdef Node *n = path.spare[level]
    path.spare[level] = NULL
    t.dirty_nodes += 1
    return n


cdef void retune(TreeCore *t, Node *leaf) noexcept nogil:
    """Let slot heads skip a prefix that has become common; worth a look at all keys where they win two bytes."""
    cdef uint8_t *page = page_of(leaf)
    cdef int n = node_count(leaf), common
    if n < 2 or not t.s.plain:
        return
    common = common_prefix(cell_at(page, 0), klen_at(page, 0), cell_at(page, n - 1), klen_at(page, n - 1))
    if common > 2 and common > ld16(page + OFF_SKIP) + 1:
        page_reskip(&t.s, page, common)


cdef void up_item(TreeCore *t, Item *up, uint8_t *cell, const Item *left, const Item *right, Node *kid) noexcept nogil:
    """The parent's cell for a new node; its reference stays unset until a seal."""
    up.klen = separator(t, left, right, kid.level)
    memcpy(cell, right.cell, up.klen)
    memset(cell + up.klen, 0, t.s.ref_size)
    up.cell = cell
    up.size = up.klen + t.s.ref_size
    up.kid = kid


cdef int split_two_leaves(TreeCore *t, Path *path, int pos, const Item *item, int side, bint *done, Fault *f) noexcept nogil:
    """Insert by making three leaves of a full one and its full sibling on `side`, the new one between them: random insertions
    then split less often and leave leaves fuller than halves would."""
    cdef int d = path.depth, right = path.pos[d - 1] + (side > 0), third, klen, count, i, k
    cdef Node *parent = path.node[d - 1]
    cdef Node *left_leaf = parent.kids[right - 1]
    cdef Node *right_leaf = parent.kids[right]
    cdef Node *middle
    cdef int left_live = page_live(page_of(left_leaf), left_leaf.cap), right_live = page_live(page_of(right_leaf), right_leaf.cap)
    cdef int left_pos = pos if side > 0 else -1, right_pos = pos if side < 0 else -1, usable = t.s.page_size - HEADER
    cdef Peel a, b
    cdef uint8_t key[1100]
    cdef uint8_t cell[1100 + REF_MAX]
    cdef Item up
    if at_get8(&parent.kids[path.pos[d - 1] + side].state) != DIRTY or at_get32(&parent.kids[path.pos[d - 1] + side].refs) != 1:
        return OK  # a page that is not dirty yet would be one more to write
    left_live += item.size + 8 if side > 0 else 0
    right_live += item.size + 8 if side < 0 else 0
    third = (left_live + right_live) / 3
    peel(t, left_leaf, left_pos, item, False, left_live - third, &a)
    peel(t, right_leaf, right_pos, item, True, right_live - third, &b)
    if a.size == 0 or b.size == 0 or a.size + b.size > usable or left_live - a.size > usable or right_live - b.size > usable:
        return OK
    klen = separator(t, &b.edge, &b.rest, 0)
    if not sep_fits(t, parent, right, klen):
        return OK
    memcpy(key, b.rest.cell, klen)
    k = separator(t, &a.rest, &a.edge, 0) + t.s.ref_size + 8 + klen - klen_at(page_of(parent), right)
    if reserve(t, path, k, f) != OK:
        return f.code
    middle = spare_take(t, path, 0)
    up_item(t, &up, cell, &a.rest, &a.edge, middle)
    count = node_count(left_leaf)
    k = 0
    for i in range(count - a.cells, count + 1):
        if a.item and i == pos:
            path.items[k] = item[0]
            k += 1
        if i < count:
            item_at(t, left_leaf, i, &path.items[k])
            k += 1
    for i in range(b.cells + 1):
        if b.item and i == pos:
            path.items[k] = item[0]
            k += 1
        if i < b.cells:
            item_at(t, right_leaf, i, &path.items[k])
            k += 1
    fill_page(t, middle, path.items, k, page_of(middle))
    spilled_count(t, middle)
    cells_drop(t, left_leaf, count - a.cells, count)
    cells_drop(t, right_leaf, 0, b.cells)
    if side > 0 and not a.item:
        cell_put(t, left_leaf, pos, item)
    elif side < 0 and not b.item:
        cell_put(t, right_leaf, pos - b.cells, item)
    retune(t, left_leaf)
    retune(t, right_leaf)
    set_separator(t, parent, right, key, klen)
    at_add64(&t.p.splits, 1)
    insert_index(t, path, d - 1, right, &up)
    done[0] = True
    return OK


cdef void split_leaf(TreeCore *t, Path *path, int pos, const Item *item) noexcept nogil:
    """Insert into a full leaf by making a new sibling. Runs of insertions at the end (or the front) leave the old leaf full and
    begin another with the new cell; others are cut in the middle."""
    cdef int d = path.depth, count = node_count(path.node[d]), i, k = 0, at = path.pos[d - 1]
    cdef int live = page_live(page_of(path.node[d]), path.node[d].cap) + item.size + 8
    cdef Node *n = path.node[d]
    cdef Node *fresh = spare_take(t, path, 0)
    cdef Item up, edge
    cdef Peel p
    cdef uint8_t cell[1100 + REF_MAX]
    fresh.run = n.run
    if n.run < -1 and pos == 0:
        item_at(t, n, 0, &edge)
        up_item(t, &up, cell, item, &edge, n)
        page_init(page_of(fresh), fresh.cap, t.tree_id, 0)
        cell_put(t, fresh, 0, item)
        path.node[d - 1].kids[at] = fresh
    else:
        peel(t, n, pos, item, False, item.size + 8 if n.run > 1 and pos == count else live / 2, &p)
        up_item(t, &up, cell, &p.rest, &p.edge, fresh)
        for i in range(count - p.cells, count + 1):
            if p.item and i == pos:
                path.items[k] = item[0]
                k += 1
            if i < count:
                item_at(t, n, i, &path.items[k])
                k += 1
        fill_page(t, fresh, path.items, k, page_of(fresh))
        spilled_count(t, fresh)
        cells_drop(t, n, count - p.cells, count)
        if not p.item:
            cell_put(t, n, pos, item)
        retune(t, n)
    at_add64(&t.p.splits, 1)
    insert_index(t, path, d - 1, at + 1, &up)


cdef void spilled_count(TreeCore *t, Node *leaf) noexcept nogil:
    cdef int i
    leaf.spilled = 0
    for i in range(node_count(leaf) if t.s.fixed_value < 0 else 0):
        leaf.spilled += spill_at(&t.s, page_of(leaf), i) != NULL


# -- what both kinds of pages need --------------------------------------------------------------------------------------
cdef int separator(TreeCore *t, const Item *left, const Item *right, int level) noexcept nogil:
    """Bytes of the right item's key that the parent keeps: in a leaf the shortest prefix above the left key."""
    cdef int n
    if level or not t.s.plain:
        return right.klen
    n = common_prefix(left.cell, left.klen, right.cell, right.klen) + 1
    return n if n < right.klen else right.klen


cdef bint sep_fits(TreeCore *t, Node *parent, int pos, int klen) noexcept nogil:
    return page_free(page_of(parent)) + klen_at(page_of(parent), pos) >= klen


cdef void set_separator(TreeCore *t, Node *parent, int pos, const uint8_t *key, int klen) noexcept nogil:
    """Replace the separator of child `pos`; the caller made sure that it fits."""
    cdef uint8_t ref[REF_MAX]
    cdef uint8_t *page = page_of(parent)
    cdef uint8_t *old = cell_at(page, pos)
    cdef int skip = ld16(page + OFF_SKIP)
    if klen_at(page, pos) == klen and (skip == 0 or (skip <= klen and memcmp(old, key, skip) == 0)):
        memcpy(old, key, klen)  # as most are: a page whose keys share a prefix has them of one length
        st32(slot_at(page, pos), head_of(&t.s, key, klen, skip))
        return
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


cdef void fill_page(TreeCore *t, Node *n, Item *items, int count, uint8_t *page) noexcept nogil:
    """Build a page of `items` in `page` (n.cap bytes, apart from every item)."""
    cdef int i, heap = n.cap, first = 1 if n.level else 0, skip = 0, cut
    cdef uint8_t *slot = page + HEADER
    page_head(page, n.cap, t.tree_id, n.level)
    if t.s.plain and count > first + 1:
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
    memset(slot, 0, page + heap - slot)
    st16(page + OFF_COUNT, count)
    st32(page + OFF_HEAP, heap)
    st16(page + OFF_SKIP, skip)
