# Data blocks read and checksummed in one go: each piece is checksummed while the processor's cache still holds it. Nothing here knows
# of trees; the pager stands for its device (G4).

cdef enum:
    PIECE = 256 * 1024  # read at once, then checksummed: fits the second-level cache


cdef bint read_piece(int fd, int64_t offset, uint8_t *into, int64_t length) noexcept nogil:
    """False when an error or the file's end comes first."""
    cdef int64_t have = 0, n
    while have < length:
        n = pread(fd, into + have, length - have, offset + have)
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            return False
        have += n
    return True


cdef bint read_pieces(int fd, int64_t offset, uint8_t *into, int64_t length, int64_t block_size, uint8_t *checksums) noexcept nogil:
    """Whole blocks, and their checksums. False as above."""
    cdef int64_t at = 0, until, step = max(1, PIECE // block_size) * block_size
    while at < length:
        until = min(at + step, length)
        if not read_piece(fd, offset + at, into + at, until - at):
            return False
        while at < until:
            st32(checksums, crc32c_update(0, into + at, block_size, 0))
            checksums += 4
            at += block_size
    return True


def read_blocks(Pager pager not None, Py_ssize_t offset, Py_ssize_t length, Py_ssize_t block_size):
    cdef bytes content, checksums
    cdef uint8_t *into
    cdef uint8_t *found
    cdef bint is_read = False
    cdef PagerCore *p = &pager.core
    cdef Fault refused
    if offset < 0 or length < 0 or block_size <= 0 or length % block_size:
        raise InvalidRequest(f"{length} bytes from {offset} on are not blocks of {block_size} bytes")
    if p.lent.fd < 0:
        return None
    content = PyBytes_FromStringAndSize(NULL, length)
    checksums = PyBytes_FromStringAndSize(NULL, length // block_size * 4)
    into = <uint8_t *> PyBytes_AS_STRING(content)
    found = <uint8_t *> PyBytes_AS_STRING(checksums)
    with nogil:
        if file_enter(p, &refused) == OK:
            is_read = read_pieces(p.lent.fd, offset, into, length, block_size, found)
            file_leave(p)
    return (content, checksums) if is_read else None
