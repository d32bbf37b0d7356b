# Data blocks read and checksummed in one go: each piece is checksummed while the processor's cache still holds it. Nothing here knows
# of trees.

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


def read_blocks(int fd, Py_ssize_t offset, Py_ssize_t length, Py_ssize_t block_size):
    cdef bytes content, checksums
    cdef uint8_t *into
    cdef uint8_t *found
    cdef int64_t at = 0, until, step
    if offset < 0 or length < 0 or block_size <= 0 or length % block_size:
        raise InvalidRequest(f"{length} bytes from {offset} on are not blocks of {block_size} bytes")
    content = PyBytes_FromStringAndSize(NULL, length)
    checksums = PyBytes_FromStringAndSize(NULL, length // block_size * 4)
    into = <uint8_t *> PyBytes_AS_STRING(content)
    found = <uint8_t *> PyBytes_AS_STRING(checksums)
    step = max(1, PIECE // block_size) * block_size
    with nogil:
        while at < length:
            until = min(at + step, length)
            if not read_piece(fd, offset + at, into + at, until - at):
                break
            while at < until:
                st32(found, crc32c_update(0, into + at, block_size, 0))
                found += 4
                at += block_size
    return (content, checksums) if at == length else None
