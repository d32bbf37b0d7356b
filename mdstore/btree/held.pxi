# What only views hold: what a tree changed, or let go of, before any seal reached it. No seal will ever write it, so it counts as
# held and not as dirty; the memory comes back when the last view that reaches it goes.
#
# Invariants of what is held:
#  L1  a node without an address that no tree reaches any more is HELD. It never becomes another's: only what is live is copied
#  L2  `lives` of a value in memory are the slots that point at it in nodes that are not HELD, and the batches that carry it to the
#      device; of a sheet, the values with lives that have it. What came down to 0 stays there
#  L3  dirty_bytes counts nodes that are DIRTY or SEALED, values and sheets with lives; held_bytes HELD nodes, values and sheets without

cdef inline bint unsealed(Node *n) noexcept nogil:
    """Whether no seal has reached a node (of a view or a tree) that is not embedded: it has no address."""
    cdef int state = at_get8(&n.state)
    return state == DIRTY or state == HELD


cdef void sheet_leave(PagerCore *p, Sheet *sheet) noexcept nogil:
    """One life less: a value that has it is only held from now on, or gives it up."""
    if at_add32(&sheet.lives, -1) == 0:
        at_add64(&p.held_bytes, p.page_size)
        at_add64(&p.dirty_bytes, -p.page_size)


cdef void spill_leave(PagerCore *p, Spill *v) noexcept nogil:
    """One life less; the caller still has its reference."""
    cdef int64_t i, padded
    if at_add32(&v.lives, -1) != 0:
        return
    if v.data != NULL:
        padded = div_up(v.length, p.page_size) * p.page_size
        at_add64(&p.held_bytes, padded)
        at_add64(&p.dirty_bytes, -padded)
    for i in range(v.count[0] if v.sheets != NULL else 0):
        if v.sheets[i] != NULL:
            sheet_leave(p, v.sheets[i])


cdef void node_leave(PagerCore *p, Node *n) noexcept nogil:
    """A tree stops reaching a node (not what is below it), to which the caller still has its reference. Nothing to do where the node has
    an address."""
    cdef int i
    cdef Spill *v
    if at_get8(&n.state) != DIRTY:
        return
    node_state(p, n, HELD)
    for i in range(node_count(n) if n.level == 0 and n.spilled else 0):
        v = leaf_spill(n, i)
        if v != NULL:
            spill_leave(p, v)


cdef void spill_drop(PagerCore *p, Spill *v) noexcept nogil:
    """Let go of a reference that counts among `lives`."""
    spill_leave(p, v)
    spill_free(p, v)


cdef void sheet_drop(PagerCore *p, Sheet *sheet) noexcept nogil:
    """Let go of a reference that counts among `lives`."""
    if sheet != NULL:
        sheet_leave(p, sheet)
        sheet_free(p, sheet)
