# Nodes: a page in memory with its reference count, state and, for an index page, its resident children.
#
# Invariants of nodes:
#  N1  a node is changed in place only while it is DIRTY, its tree's lock is held and refs == 1 - and so for all nodes
#      above it. Everything a view can reach is therefore unchanging, apart from `kids` (filled on load, emptied by
#      eviction), the sealing of references and the header, and spilled values' addresses (under the pager's spin lock).
#  N2  below a CLEAN or SEALED node nothing is DIRTY.
#  N3  a node without an address (DIRTY, HELD, EMBEDDED) belongs to one tree; besides it, views may hold it. Clones share only
#      what has an address, and the pager's tree of shared addresses counts them.
#  N4  a kid pointer is dropped only when the kid is CLEAN and the reference beside it names just that page (a view may
#      keep an old parent whose reference was never brought up to date, because only the tree's own parent is sealed).
#
#  state      address  in place?   next
#  DIRTY      no       N1          seal -> SEALED (EMBEDDED for a root that stays in its record); the tree lets go of it -> HELD
#  HELD       no       no          the last view that holds it goes (held.pxi)
#  EMBEDDED   no       no          first write -> DIRTY
#  SEALED     yes      no          write_sealed -> CLEAN
#  CLEAN      yes      no          eviction

cdef enum:
    DIRTY = 1
    SEALED = 2
    CLEAN = 3
    EMBEDDED = 4
    HELD = 5

cdef struct Node:        # NODE_SIZE bytes, the page behind it. What every search reads shares a cache line with the page's header
    Holes holes
    uint64_t address
    Node *prev           # index nodes hang in the pager's list, which the eviction hand walks
    Node *next
    uint32_t signature   # of the shape its cells have; copies in the lowest bits
    int16_t run          # consecutive insertions at the end (> 0) or the front (< 0): how to split next
    uint16_t spilled     # spilled values in a leaf
    int32_t refs
    uint32_t version
    uint8_t state
    uint8_t accessed
    uint8_t pending      # copies of a sealed page not yet written
    uint8_t level
    uint32_t cap
    Node **kids          # behind the page, as many as it can have slots

cdef struct Sheet:       # a page of a spilled value that the device does not have; its bytes follow
    int32_t refs
    int32_t lives        # values among them that are not only held (held.pxi)

cdef struct Spill:       # a spilled value that no seal has written out yet, or not all of it
    int32_t refs
    int32_t lives        # slots and batches among them that a seal writes, or wrote (held.pxi)
    int depth            # levels of overflow index pages
    int64_t length
    uint8_t *data        # whole, padded with zeros to whole pages; NULL where only what has changed is here (patch.pxi):
    int64_t dirty        # pages of one copy that the next seal writes
    int64_t owned        # index pages among them
    int64_t count[SPILL_LEVELS]     # at each level: data pages, index pages of level 1, ...
    int64_t room[SPILL_LEVELS]      # how many there is memory for
    uint8_t *entries[SPILL_LEVELS]  # what names each; known where the index page above has been read, or is the cell
    uint8_t *marks[SPILL_LEVELS]    # of each index page: whether it has been read, whether it is to be written
    Sheet **sheets       # of each data page; NULL: as the device has it

cdef struct Write:       # pages that wait for write_sealed; holds a reference on what it names
    uint64_t address
    int64_t pages
    const uint8_t *bytes
    Node *node           # a tree page,
    Batch *batch         # or pages of a spilled value

cdef struct Queue:       # the pages of one seal
    Queue *next
    int64_t n
    Write *writes

cdef struct Batch:       # a spilled value on its way to the device: one for each place it was sealed to
    int32_t refs
    int32_t pending      # runs not yet written
    Spill *spill
    uint8_t *index       # overflow index pages
    int64_t indexes      # how many are filled in
    uint64_t *addresses  # of all its pages, first copies
    int64_t pages        # how many are listed
    Batch *next          # in a seal's plan


cdef struct Mapped:
    uint64_t address
    void *owner
    const uint8_t *bytes # of a page of a spilled value, whose owner is a Batch; NULL for a Node

cdef struct Lent:         # a device's descriptor, for as long as it may be used
    int fd               # -1: the device has none
    int process          # that borrowed it
    int closed           # nothing more is read or written
    uint64_t file        # shared: whoever uses `fd`; `Loan.close` shuts it

cdef struct PagerCore:
    int page_size
    Lent *lent           # the device's descriptor, inside `loan`
    PyObject *loan       # owned
    uint64_t generation
    uint64_t rw          # shared: operations that load, own or free pages, and all on views; exclusive: the eviction hand
    uint32_t spin        # lists, the sealed map, freed runs, spilled bodies
    int read_only
    int32_t users        # trees and views
    void *owner          # the Pager object, borrowed
    int64_t cache_bytes
    int64_t clean_bytes
    int64_t dirty_bytes
    int64_t held_bytes
    int64_t sealed_pages
    int64_t dirty_pages
    int64_t hits
    int64_t misses
    int64_t evictions
    int64_t pages_read
    int64_t pages_written
    int64_t bytes_read
    int64_t bytes_written
    int64_t device_reads
    int64_t device_writes
    int64_t splits
    int64_t merges
    int64_t rotations
    int64_t copies
    int64_t copies_repaired
    int64_t copies_left
    Node *index_list
    Node *hand
    TreeCore *trees
    Queue *queue         # what seals left for write_sealed
    Mapped *map
    int64_t map_promised # entries that seals under way will make
    int64_t map_cap
    int64_t map_n
    uint64_t first_page  # addresses of pages are at or above,
    uint64_t end_page    # and below, as the owner says
    uint64_t pages_known # addresses below lie on the device, or were given by the owner
    uint64_t *freed      # triples
    int64_t freed_n
    int64_t freed_cap
    int64_t freed_promised  # runs that changes under way may add
    TreeCore *refs       # the tree of shared addresses

cdef struct AheadPage:
    uint64_t address
    int64_t number

cdef struct Ahead:       # pages of long values, read before the lock was taken under which they are wanted (ahead.pxi)
    int64_t n
    int64_t cap
    int64_t room         # bytes that more of them may have
    AheadPage *found     # of each page; by address, once all are read
    uint8_t *pages

cdef struct TreeCore:
    Shape s
    PagerCore *p
    uint64_t rw          # shared: reads, changes inside one leaf; exclusive: all else. Its tally is the number of records
    uint64_t tree_id
    uint64_t pinned
    Node *root
    int level
    int live             # a mutable tree, not a view
    int broken           # a change could be neither finished nor undone: no more are taken
    int is_dirty
    int paged            # `ref` names the root page (of the last seal, or of the view)
    int64_t dirty_nodes
    int64_t dirty_spill
    Ahead *ahead         # while rw is held exclusively; NULL: nothing was read ahead
    int dated            # values have spilled with a generation for each page: the root record says so
    TreeCore *prev
    TreeCore *next
    uint8_t ref[REF_MAX]

cdef struct Item         # balance.pxi

cdef struct Path:
    int depth            # index of the leaf
    Node *node[HEIGHT_MAX]
    int pos[HEIGHT_MAX]
    Item *items          # what `reserve` had for splitting: room for the cells of two pages,
    uint8_t *scratch     # for three pages,
    Node *spare[HEIGHT_MAX]  # and a new node for each level


cdef inline void know_pages(PagerCore *p, uint64_t end) noexcept nogil:
    """Addresses below `end` are the owner's. Threads that come here at once may forget each other's, which costs a question."""
    if end > <uint64_t> at_get64(<int64_t *> &p.pages_known):
        at_set64(<int64_t *> &p.pages_known, <int64_t> end)


cdef inline uint8_t *page_of(const Node *n) noexcept nogil:
    return <uint8_t *> n + sizeof(Node)


cdef inline int node_count(const Node *n) noexcept nogil:
    return page_count(page_of(n))


cdef inline Node *kid_of(const Node *n, int i) noexcept nogil:
    """Child `i` of an index node, NULL where it is not resident. Any thread that reads a view of the node may load it."""
    return <Node *> at_getp(&n.kids[i])


cdef inline int kids_most(int cap) noexcept nogil:
    """No index page has more children: each takes a slot and a reference."""
    return (cap - HEADER) / (8 + REF_MIN) + 1


cdef inline int64_t records_of(TreeCore *t) noexcept nogil:
    return rw_tally(&t.rw)


cdef inline int64_t node_bytes(const Node *n) noexcept nogil:
    return <int64_t> NODE_SIZE + n.cap + (8 * kids_most(n.cap) if n.level else 0)


cdef inline void touch(Node *n) noexcept nogil:
    """Note a use for the eviction hand; the line is written only when it was not noted before."""
    if not at_get8(&n.accessed):
        at_set8(&n.accessed, 1)


cdef void account(PagerCore *p, int state, int64_t amount, int64_t pages) noexcept nogil:
    if state == CLEAN:
        at_add64(&p.clean_bytes, amount)
    elif state == HELD:
        at_add64(&p.held_bytes, amount)
    elif state != EMBEDDED:
        at_add64(&p.dirty_bytes, amount)
        if state == DIRTY:
            at_add64(&p.dirty_pages, pages)


cdef void node_state(PagerCore *p, Node *n, int state) noexcept nogil:
    account(p, n.state, -node_bytes(n), -1)
    at_set8(&n.state, state)
    account(p, n.state, node_bytes(n), 1)


cdef void list_add(PagerCore *p, Node *n) noexcept nogil:
    spin_lock(&p.spin)
    n.prev = NULL
    n.next = p.index_list
    if p.index_list != NULL:
        p.index_list.prev = n
    p.index_list = n
    spin_unlock(&p.spin)


cdef void list_drop(PagerCore *p, Node *n) noexcept nogil:
    spin_lock(&p.spin)
    if p.hand == n:
        p.hand = n.next
    if n.prev != NULL:
        n.prev.next = n.next
    else:
        p.index_list = n.next
    if n.next != NULL:
        n.next.prev = n.prev
    spin_unlock(&p.spin)


cdef Node *node_new(int cap, int level, uint32_t signature, int state) noexcept nogil:
    """A node with one reference and an unset page, which no one counts yet; NULL without memory."""
    cdef int64_t page_end = NODE_SIZE + <int64_t> (cap + 7 & ~7)
    cdef int64_t size = page_end + (8 * kids_most(cap) if level else 0)
    cdef Node *n = <Node *> take_aligned(size + 63 & ~63)
    if n == NULL:
        return NULL
    memset(n, 0, NODE_SIZE)
    n.refs = 1
    n.cap = cap
    n.level = level
    n.state = state
    n.signature = signature
    if level:
        n.kids = <Node **> (<uint8_t *> n + page_end)
        memset(n.kids, 0, 8 * kids_most(cap))
    return n


cdef void node_enter(PagerCore *p, Node *n) noexcept nogil:
    if n.level:
        list_add(p, n)
    account(p, n.state, node_bytes(n), 1)


cdef Node *node_alloc(PagerCore *p, int cap, int level, uint32_t signature, int state) noexcept nogil:
    """A node with one reference and an unset page; NULL without memory."""
    cdef Node *n = node_new(cap, level, signature, state)
    if n != NULL:
        node_enter(p, n)
    return n


cdef void spill_free(PagerCore *p, Spill *v) noexcept nogil:
    """Let go of a reference that does not count among `lives`: of a reader, or of a slot in a node that is HELD."""
    if at_add32(&v.refs, -1) == 0:
        if v.data != NULL:
            at_add64(&p.held_bytes, -div_up(v.length, p.page_size) * p.page_size)
        free(v.data)
        patch_free(p, v)
        free(v)


cdef void batch_free(PagerCore *p, Batch *b) noexcept nogil:
    if at_add32(&b.refs, -1) == 0:
        spill_drop(p, b.spill)
        free(b.index)
        free(b.addresses)
        free(b)


cdef inline Spill *spill_pointer(const uint8_t *body) noexcept nogil:
    """The value in memory that a leaf's body points at; NULL where the body holds addresses."""
    if ld64(body + 8) != IN_MEMORY:
        return NULL
    return <Spill *> <uintptr_t> ld64(body + 16)


cdef Spill *leaf_spill(Node *leaf, int i) noexcept nogil:
    """The value in memory behind slot `i` of a leaf in which something has spilled; the slot holds a reference on it."""
    cdef uint8_t *p = cell_at(page_of(leaf), i) + klen_at(page_of(leaf), i)
    return spill_pointer(p + 2) if ld16(p) >= SPILL_DATED else NULL


cdef void node_decref(PagerCore *p, Node *n) noexcept nogil:
    cdef int i
    cdef Spill *v
    if at_add32(&n.refs, -1) != 0:
        return
    account(p, n.state, -node_bytes(n), -1)
    if n.level:
        list_drop(p, n)
        for i in range(node_count(n)):
            if n.kids[i] != NULL:
                node_decref(p, n.kids[i])
    elif n.spilled:
        for i in range(node_count(n)):
            v = leaf_spill(n, i)
            if v != NULL and n.state == HELD:
                spill_free(p, v)
            elif v != NULL:
                spill_drop(p, v)
    free(n)


cdef int freed_reserve(PagerCore *p, int64_t runs) noexcept nogil:
    """Promise room for so many more freed runs, until `freed_settle`: what the counting of shared pages frees meanwhile, or another
    thread, does not take it."""
    cdef int code
    spin_lock(&p.spin)
    code = words_room(&p.freed, 3 * (p.freed_n + p.freed_promised), &p.freed_cap, 3 * runs)
    if code == OK:
        p.freed_promised += runs
    spin_unlock(&p.spin)
    return code


cdef void freed_settle(PagerCore *p, int64_t runs) noexcept nogil:
    """The runs that were promised room are there, or will not be."""
    spin_lock(&p.spin)
    p.freed_promised -= runs
    spin_unlock(&p.spin)


cdef void freed_add(PagerCore *p, uint64_t address, uint64_t pages, uint64_t generation) noexcept nogil:
    """Remember a freed run, for which there is room (`freed_reserve`)."""
    cdef uint64_t *last
    spin_lock(&p.spin)
    if p.freed_n:
        last = p.freed + 3 * (p.freed_n - 1)
        if last[0] + last[1] == address and last[2] == generation:
            last[1] += pages
            spin_unlock(&p.spin)
            return
    last = p.freed + 3 * p.freed_n
    last[0] = address
    last[1] = pages
    last[2] = generation
    p.freed_n += 1
    spin_unlock(&p.spin)


cdef Node *node_copy(Shape *s, PagerCore *p, Node *n, int cap) noexcept nogil:
    """A DIRTY copy with one reference, sharing the children; `cap` bytes of page, at least the old ones."""
    cdef int i, count = node_count(n), old = n.cap, shift = cap - old, heap
    cdef Node *c = node_alloc(p, cap, n.level, n.signature, DIRTY)
    cdef uint8_t *page
    cdef Spill *v
    if c == NULL:
        return NULL
    page = page_of(c)
    if shift == 0:
        memcpy(page, page_of(n), old)
        c.holes = n.holes
    else:
        heap = <int> ld32(page_of(n) + OFF_HEAP)
        memcpy(page, page_of(n), heap)
        memset(page + heap, 0, shift)
        memcpy(page + heap + shift, page_of(n) + heap, old - heap)
        st32(page + OFF_HEAP, heap + shift)
        for i in range(count):
            st16(slot_at(page, i) + 4, ld16(slot_at(page, i) + 4) + shift)
    c.run = n.run
    c.spilled = n.spilled
    if n.level:
        for i in range(count):
            c.kids[i] = <Node *> at_getp(&n.kids[i])
            if c.kids[i] != NULL:
                at_add32(&c.kids[i].refs, 1)
    elif n.spilled:
        for i in range(count):
            v = leaf_spill(c, i)
            if v != NULL:
                at_add32(&v.refs, 1)
                at_add32(&v.lives, 1)
    return c


cdef void node_swap(PagerCore *p, Node **slot, Node *fresh) noexcept nogil:
    """Point a live tree's `slot` at `fresh` (its reference passes over) and let go of what was there, which views may hold."""
    cdef Node *old = slot[0]
    at_setp(slot, fresh)
    if old != NULL:
        node_leave(p, old)
        node_decref(p, old)
