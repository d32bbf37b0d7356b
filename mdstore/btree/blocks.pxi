# Data blocks read and checksummed in one go: each piece is checksummed while the processor's cache still holds it, the pieces of a
# large range are taken in turns by two threads. Nothing here knows of trees.

cdef enum:
    PIECE = 256 * 1024          # read at once, then checksummed: fits the second-level cache
    SPLIT_MIN = 2 * 1024 * 1024 # from here on starting a thread (20 to 30 us) pays

cdef struct BlockRead:
    int fd
    uint8_t *into
    uint8_t *checksums
    int64_t offset
    int64_t length
    int64_t block_size
    int64_t step      # bytes of a piece, whole blocks
    int64_t taken     # pieces that some thread has begun
    int32_t failed


cdef void *read_pieces(void *argument) noexcept nogil:
    """Take pieces until none is left: fill `into` from the file, and `checksums` from that."""
    cdef BlockRead *r = <BlockRead *> argument
    cdef int64_t at
    while not at_get32(&r.failed):
        at = (at_add64(&r.taken, 1) - 1) * r.step
        if at >= r.length:
            break
        if not read_piece(r, at, min(r.step, r.length - at)):
            at_set32(&r.failed, 1)
    return NULL


cdef bint read_piece(BlockRead *r, int64_t at, int64_t length) noexcept nogil:
    """False when an error or the file's end comes first."""
    cdef int64_t have = 0, n
    while have < length:
        n = pread(r.fd, r.into + at + have, length - have, r.offset + at + have)
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            return False
        have += n
    while have > 0:
        st32(r.checksums + at / r.block_size * 4, crc32c_update(0, r.into + at, r.block_size, 0))
        at += r.block_size
        have -= r.block_size
    return True


def read_blocks(int fd, int64_t offset, int64_t length, int64_t block_size, int threads=1):
    cdef BlockRead r
    cdef bytes content, checksums
    cdef pthread_t helper
    cdef bint helped = False
    if offset < 0 or length < 0 or block_size <= 0 or length % block_size:
        raise InvalidRequest(f"{length} bytes from {offset} on are not blocks of {block_size} bytes")
    content = PyBytes_FromStringAndSize(NULL, length)
    checksums = PyBytes_FromStringAndSize(NULL, length // block_size * 4)
    r.fd = fd
    r.into = <uint8_t *> PyBytes_AS_STRING(content)
    r.checksums = <uint8_t *> PyBytes_AS_STRING(checksums)
    r.offset = offset
    r.length = length
    r.block_size = block_size
    r.step = max(1, PIECE // block_size) * block_size
    r.taken = 0
    r.failed = 0
    with nogil:
        if threads > 1 and length >= SPLIT_MIN:
            helped = pthread_create(&helper, NULL, read_pieces, &r) == 0
        read_pieces(&r)
        if helped:
            pthread_join(helper, NULL)
    return None if r.failed else (content, checksums)
