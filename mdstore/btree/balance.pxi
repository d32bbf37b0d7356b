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
    elif t.s.fixed_value < 0 and ld16(p) == SPILL_MARK:
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
    if n < 2 or not plain_order(&t.s):
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


# -- pages written again -----------------------------------------------------------------------------------------------
cdef int gather(TreeCore *t, Node *n, Item *items) noexcept nogil:
    cdef int i, count = node_count(n)
    for i in range(count):
        item_at(t, n, i, &items[i])
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


cdef inline int64_t scratch_size(TreeCore *t) noexcept nogil:
    return 3 * (NODE_SIZE + <int64_t> t.s.page_size)


cdef void spread(TreeCore *t, Node **targets, int n, Item *items, const int *cuts, uint8_t *scratch) noexcept nogil:
    """Fill `n` nodes with runs of `items` (which may point into those nodes): target k gets items cuts[k] to cuts[k+1]."""
    cdef int i, k, count, stride = NODE_SIZE + t.s.page_size
    for k in range(n):
        fill_page(t, targets[k], items + cuts[k], cuts[k + 1] - cuts[k], scratch + k * stride + NODE_SIZE)
    for k in range(n):
        memcpy(page_of(targets[k]), scratch + k * stride + NODE_SIZE, targets[k].cap)
        targets[k].holes.n = 0
        if targets[k].level == 0:
            spilled_count(t, targets[k])
            continue
        count = cuts[k + 1] - cuts[k]
        for i in range(count):
            targets[k].kids[i] = items[cuts[k] + i].kid
        memset(targets[k].kids + count, 0, (kids_most(targets[k].cap) - count) * sizeof(Node *))


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


cdef bint share_index(TreeCore *t, Path *path, int d, int pos, const Item *item, int side, bint rotation) noexcept nogil:
    """Insert into a full index page together with its sibling on `side`: by a rotation where that leaves both some room, else
    by making three pages of the two."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *nodes[3]
    cdef int cuts[4]
    cdef int at = path.pos[d - 1] + side, right = path.pos[d - 1] + (side > 0), left, count, klen, total
    cdef int usable = t.s.page_size - HEADER
    cdef uint8_t key[1100]
    cdef uint8_t bound[1100 + REF_MAX]
    cdef uint8_t cell[1100 + REF_MAX]
    cdef Item up
    cdef Fault ignored
    if at < 0 or at >= node_count(parent) or parent.kids[at] == NULL:
        return False
    total = page_live(page_of(n), n.cap) + page_live(page_of(parent.kids[at]), parent.kids[at].cap)
    total += item.size + 8 + klen_at(page_of(parent), right)
    if rotation and total > 2 * usable - usable / ROTATE_ROOM:
        return False
    memset(&ignored, 0, sizeof(Fault))
    if rotation and own_kid(t, parent, at, &ignored) != OK:
        fault_forget(&ignored)
        return False
    if at_get8(&parent.kids[at].state) != DIRTY or at_get32(&parent.kids[at].refs) != 1:
        return False  # a page that is not dirty yet would be one more to write
    nodes[0] = parent.kids[right - 1]
    nodes[1] = parent.kids[right]
    left = gather_pair(t, parent, right, nodes, path.items, bound)
    count = node_count(nodes[0]) + node_count(nodes[1])
    at = pos + left if side < 0 else pos
    memmove(path.items + at + 1, path.items + at, (count - at) * sizeof(Item))
    path.items[at] = item[0]
    count += 1
    cuts[0] = 0
    cuts[2] = count
    if rotation:
        cuts[1] = best_cut(path.items, count, usable, total)
        if cuts[1] == 0:
            return False
    elif not three_cuts(path.items, count, usable, items_bytes(path.items, 0, count), cuts):
        return False
    klen = path.items[cuts[1]].klen
    if not sep_fits(t, parent, right, klen):
        return False
    memcpy(key, path.items[cuts[1]].cell, klen)
    if rotation:
        spread(t, nodes, 2, path.items, cuts, path.scratch)
        at_add64(&t.p.rotations, 1)
    else:
        nodes[2] = spare_take(t, path, n.level)
        up_item(t, &up, cell, &path.items[cuts[2] - 1], &path.items[cuts[2]], nodes[2])
        spread(t, nodes, 3, path.items, cuts, path.scratch)
        at_add64(&t.p.splits, 1)
    set_separator(t, parent, right, key, klen)
    if not rotation:
        insert_index(t, path, d - 1, right + 1, &up)
    return True


cdef void split_index(TreeCore *t, Path *path, int d, int pos, const Item *item) noexcept nogil:
    """Insert into a full index page by making a new right sibling: runs leave the old page full, others are cut in the middle."""
    cdef Node *pair[2]
    cdef Node *n = path.node[d]
    cdef int cuts[3]
    cdef int count = gather(t, n, path.items)
    cdef Item up
    cdef uint8_t cell[1100 + REF_MAX]
    memmove(path.items + pos + 1, path.items + pos, (count - pos) * sizeof(Item))
    path.items[pos] = item[0]
    count += 1
    cuts[0] = 0
    cuts[2] = count
    if n.run > 1 and pos == count - 1:
        cuts[1] = pos
    else:
        cuts[1] = best_cut(path.items, count, t.s.page_size - HEADER, items_bytes(path.items, 0, count))
    pair[0] = n
    pair[1] = spare_take(t, path, n.level)
    pair[1].run = n.run
    up_item(t, &up, cell, &path.items[cuts[1] - 1], &path.items[cuts[1]], pair[1])
    spread(t, pair, 2, path.items, cuts, path.scratch)
    at_add64(&t.p.splits, 1)
    insert_index(t, path, d - 1, path.pos[d - 1] + 1, &up)


# -- insertion ---------------------------------------------------------------------------------------------------------
cdef void note_run(Node *n, int pos) noexcept nogil:
    """Count insertions in a row at the end or the front; the cell is not in yet."""
    if pos == node_count(n):
        n.run = n.run + 1 if 0 < n.run < 30000 else 1
    elif pos == (1 if n.level else 0):
        n.run = n.run - 1 if -30000 < n.run < 0 else -1
    else:
        n.run = 0


cdef int reserve(TreeCore *t, Path *path, int need, Fault *f) noexcept nogil:
    """Have all nodes and buffers that splitting the leaf may take, up to where a page surely has room (the leaf's parent for `need`
    bytes): what follows cannot fail. Released by `path_end`."""
    cdef int d = path.depth, level
    cdef Node *n
    if path.items != NULL:
        return OK
    memset(path.spare, 0, sizeof(path.spare))
    while d > 0 and page_free(page_of(path.node[d - 1])) < need:
        need = 2 * t.s.key_max + t.s.ref_size + 8  # a separator made longer, and a new one
        d -= 1
    level = path.depth - d  # of the highest page that splits; where that is the root, a new root is above it
    level += d == 0
    path.items = <Item *> take(items_most(t.s.page_size) * sizeof(Item))
    path.scratch = <uint8_t *> take(scratch_size(t)) if level else NULL
    if path.items == NULL or (level and path.scratch == NULL):
        return fail(f, E_MEMORY, "page")
    while level >= 0:
        n = node_alloc(t.p, t.s.page_size, level, t.s.signature, DIRTY)
        if n == NULL:
            return fail(f, E_MEMORY, "page")
        page_init(page_of(n), n.cap, t.tree_id, level)
        path.spare[level] = n
        level -= 1
    return OK


cdef void path_end(TreeCore *t, Path *path) noexcept nogil:
    """Give back what was reserved and not taken."""
    cdef int i
    for i in range(t.level + 2 if path.items != NULL else 0):
        if path.spare[i] != NULL:
            node_decref(t.p, path.spare[i])
    free(path.items)
    free(path.scratch)


cdef const uint8_t *p_empty = b""


cdef void grow_root(TreeCore *t, Path *path) noexcept nogil:
    """Put a new root with one child above the full one; everything on the path moves a level down."""
    cdef Node *root = spare_take(t, path, t.level + 1)
    cdef int i
    memset(page_open(&t.s, page_of(root), root.cap, 0, p_empty, 0, t.s.ref_size), 0, t.s.ref_size)
    root.kids[0] = t.root
    t.root = root
    at_set32(<int32_t *> &t.level, t.level + 1)
    for i in range(path.depth, -1, -1):
        path.node[i + 1] = path.node[i]
        path.pos[i + 1] = path.pos[i]
    path.node[0] = root
    path.pos[0] = 0
    path.depth += 1


cdef void insert_index(TreeCore *t, Path *path, int d, int pos, const Item *item) noexcept nogil:
    """Insert a cell at `pos` of the owned index page path.node[d]: in place, else by rotation, else by splitting."""
    cdef Node *n = path.node[d]
    cdef bint at_end = pos == node_count(n)
    note_run(n, pos)
    if page_free(page_of(n)) >= item.size + 8:
        cell_put(t, n, pos, item)
        return
    if d == 0:
        grow_root(t, path)
        d = 1
    if not (n.run > 1 and at_end):
        if (share_index(t, path, d, pos, item, -1, True) or share_index(t, path, d, pos, item, 1, True)
                or share_index(t, path, d, pos, item, -1, False) or share_index(t, path, d, pos, item, 1, False)):
            return
    split_index(t, path, d, pos, item)


cdef inline int sibling_free(Path *path, int side) noexcept nogil:
    """Free bytes of the leaf's sibling; -1 where there is none, or none in memory (reading it would cost what a split costs)."""
    cdef Node *parent = path.node[path.depth - 1]
    cdef int at = path.pos[path.depth - 1] + side
    if at < 0 or at >= node_count(parent) or parent.kids[at] == NULL:
        return -1
    return page_free(page_of(parent.kids[at]))


cdef int insert_leaf(TreeCore *t, Path *path, int pos, const Item *item, Fault *f) noexcept nogil:
    """Insert a cell at `pos` of the owned leaf at the end of the path: in place, else by rotation, else by splitting. A failure has
    changed nothing; there is none after `reserve`."""
    cdef Node *n = path.node[path.depth]
    cdef int code = OK, left, right, side, free_bytes = page_free(page_of(n))
    cdef bint done = False, is_run
    note_run(n, pos)
    if free_bytes >= item.size + 8:
        cell_put(t, n, pos, item)
        return OK
    is_run = (n.run > 1 and pos == node_count(n)) or (n.run < -1 and pos == 0)
    if path.depth and not is_run:
        left = sibling_free(path, -1)
        right = sibling_free(path, 1)
        side = 1 if right > left else -1
        if left >= 0 or right >= 0:
            if max(left, right) + free_bytes - item.size - 8 >= (t.s.page_size - HEADER) / ROTATE_ROOM:
                code = rotate_leaf(t, path, pos, item, side, &done)
            if code == OK and not done:
                code = split_two_leaves(t, path, pos, item, side, &done, f)
    if code != OK or done:
        return code
    code = reserve(t, path, t.s.key_max + t.s.ref_size + 8, f)
    if code != OK:
        return code
    if path.depth == 0:
        grow_root(t, path)
    split_leaf(t, path, pos, item)
    return OK


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


cdef bint join(TreeCore *t, Path *path, int d, int side) noexcept nogil:
    """Mend an underfull node with its sibling on `side`: merge the two where they fit in one page (True), else even them out. A
    sibling that cannot be had is no reason to fail a deletion that is done: the node stays underfull."""
    cdef Node *n = path.node[d]
    cdef Node *parent = path.node[d - 1]
    cdef Node *pair[2]
    cdef Node *sibling
    cdef Fault ignored
    cdef int cuts[3]
    cdef int at = path.pos[d - 1] + side, count, left, usable = t.s.page_size - HEADER, total, klen
    cdef int room, live = page_live(page_of(n), n.cap), right = path.pos[d - 1] + (1 if side > 0 else 0)
    cdef uint8_t key[1100]
    cdef uint8_t bound[1100 + REF_MAX]
    cdef Item *items
    cdef uint8_t *scratch
    cdef bint merged = False
    memset(&ignored, 0, sizeof(Fault))
    if at < 0 or at >= node_count(parent):
        return False
    if kid_at(t, parent, at, &sibling, &ignored) != OK:
        fault_forget(&ignored)
        return False
    total = live + page_live(page_of(sibling), sibling.cap)
    if n.level:
        total += klen_at(page_of(parent), right)
    room = usable if node_count(n) < 2 else usable - usable / 16  # not so full that the next insertion splits it again
    if total > room and live * 4 > usable and node_count(n) > 1:
        return False
    if own_kid(t, parent, at, &ignored) != OK:
        fault_forget(&ignored)
        return False
    pair[0] = parent.kids[right - 1]
    pair[1] = parent.kids[right]
    items = <Item *> take(items_most(t.s.page_size) * sizeof(Item))
    scratch = <uint8_t *> take(scratch_size(t))
    if items == NULL or scratch == NULL:
        free(items)
        free(scratch)
        return False
    left = gather_pair(t, parent, right, pair, items, bound)
    count = node_count(pair[0]) + node_count(pair[1])
    cuts[0] = 0
    cuts[2] = count
    if total <= room:
        cuts[1] = count
        spread(t, pair, 2, items, cuts, scratch)
        drop_kid(t, parent, right)
        node_decref(t.p, pair[1])
        t.dirty_nodes -= 1
        path.pos[d - 1] = right - 1
        path.node[d] = pair[0]
        at_add64(&t.p.merges, 1)
        merged = True
    else:
        cuts[1] = best_cut(items, count, usable, total)
        if cuts[1] and cuts[1] != left:
            klen = separator(t, &items[cuts[1] - 1], &items[cuts[1]], n.level)
            if sep_fits(t, parent, right, klen):
                memcpy(key, items[cuts[1]].cell, klen)
                spread(t, pair, 2, items, cuts, scratch)
                set_separator(t, parent, right, key, klen)
                at_add64(&t.p.rotations, 1)
    free(items)
    free(scratch)
    return merged


cdef void mend(TreeCore *t, Path *path) noexcept nogil:
    """From the leaf up: drop what is empty, join what is less than half full; then drop a root with a single child."""
    cdef int d = path.depth
    cdef Fault ignored
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
            if not join(t, path, d, -1):
                join(t, path, d, 1)
        d -= 1
    memset(&ignored, 0, sizeof(Fault))
    while t.root.level and node_count(t.root) == 1:
        if own_kid(t, t.root, 0, &ignored) != OK:
            fault_forget(&ignored)
            return
        n = t.root
        kid = n.kids[0]
        n.kids[0] = NULL
        t.root = kid
        at_set32(<int32_t *> &t.level, t.level - 1)
        t.dirty_nodes -= 1
        node_decref(t.p, n)
