# Insertion: in place, else by rotation (balance.pxi), else by splitting; of index pages, which are gathered and written again.

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


cdef inline int sibling_cells(Path *path) noexcept nogil:
    """Cells of the fuller one of the leaf's siblings, as far as they are in memory."""
    cdef Node *parent = path.node[path.depth - 1]
    cdef int i, most = 0
    for i in range(path.pos[path.depth - 1] - 1, path.pos[path.depth - 1] + 2):
        if 0 <= i < node_count(parent) and parent.kids[i] != NULL:
            most = max(most, node_count(parent.kids[i]))
    return most


cdef int reserve(TreeCore *t, Path *path, int need, Fault *f) noexcept nogil:
    """Have all nodes and buffers that splitting the leaf may take, up to where a page surely has room (the leaf's parent for `need`
    bytes): what follows cannot fail. Released by `path_end`."""
    cdef int d = path.depth, level, cells
    cdef Node *n
    if path.items != NULL:
        return OK
    memset(path.spare, 0, sizeof(path.spare))
    while d > 0 and page_free(page_of(path.node[d - 1])) < need:
        need = 2 * t.s.key_max + t.s.ref_size + 8  # a separator made longer, and a new one
        d -= 1
    if d == 0 and t.level >= HEIGHT_MAX - 2:  # no room in a path for the level that a new root may make
        return too_high(t, path.node[0], HEIGHT_MAX - 2, f)
    level = path.depth - d  # of the highest page that splits; where that is the root, a new root is above it
    level += d == 0
    cells = node_count(path.node[path.depth]) + (sibling_cells(path) if path.depth else 0)
    if level:
        cells = max(cells, 2 * kids_most(t.s.page_size))
    path.items = <Item *> take((cells + 2) * sizeof(Item))
    path.scratch = <uint8_t *> take(scratch_size(t)) if level else NULL
    if path.items == NULL or (level and path.scratch == NULL):
        return fail(f, E_MEMORY, "page")
    while level >= 0:
        n = node_alloc(t.p, t.s.page_size, level, t.s.signature, DIRTY)
        if n == NULL:
            return fail(f, E_MEMORY, "page")
        page_head(page_of(n), n.cap, t.tree_id, level)
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
    page_init(page_of(root), root.cap, t.tree_id, root.level)
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
