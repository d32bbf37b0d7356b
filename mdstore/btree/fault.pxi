# What goes wrong without the interpreter lock: told by a code, with its evidence, and raised at the border (`raised`, api.pxi).

cdef enum:
    OK = 0
    E_MEMORY = 1
    E_CORRUPT = 2
    E_DEVICE = 3
    E_PYTHON = 4
    E_NO_REFS = 5
    E_CLOSED = 6
    E_BROKEN = 7
    E_ASIDE = 8          # no failure: something has to be read first, with no lock held (aside.pxi)

cdef struct Fault:       # what went wrong without the interpreter lock; raised at the border
    int code
    const char *what
    uint64_t address
    uint64_t tree_id
    int level
    int slot             # where in the page: of a slot or entry, -1 for none,
    int byte             # and from which byte on, or -1
    const char *bound    # how `found` should stand to `expected`; NULL: equal
    uint64_t expected
    uint64_t found
    void *error          # an exception object, owned


cdef int raise_later(void *held) except -1:
    """What the interpreter calls in the main thread between two steps."""
    error = <object> held
    Py_DECREF(error)
    raise error


cdef int fault_forget(Fault *f) noexcept nogil:
    """Go on without what failed. What is no Exception, such as an interrupt from the keyboard, is raised in the main thread after
    it."""
    if f.error != NULL:
        with gil:
            if isinstance(<object> f.error, Exception) or Py_AddPendingCall(&raise_later, f.error) != 0:
                Py_DECREF(<object> f.error)
        f.error = NULL
    f.code = OK
    return OK


cdef bint is_interrupt(Fault *f) noexcept nogil:
    if f.code != E_PYTHON:
        return False
    with gil:
        return not isinstance(<object> f.error, Exception)


cdef bint may_retry(Fault *f) noexcept nogil:
    """Whether a copy may stand in for what failed, which is forgotten then. Not for an interrupt."""
    if is_interrupt(f):
        return False
    fault_forget(f)
    return True


cdef int fail(Fault *f, int code, const char *what) noexcept nogil:
    """A failure. Of damage `expected` and `found` are the evidence, set by the caller."""
    f.code = code
    f.what = what
    f.slot = f.byte = -1
    f.bound = NULL
    return code


cdef int refuse(Fault *f, const char *what, int slot, int64_t byte, const char *bound, uint64_t expected,
                uint64_t found) noexcept nogil:
    """Damage, with all its evidence but the page that holds it."""
    fail(f, E_CORRUPT, what)
    f.slot = slot
    f.byte = <int> byte
    f.bound = bound
    f.expected = expected
    f.found = found
    return E_CORRUPT
