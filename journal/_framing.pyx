# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, binding=False
"""Framing and scanning, compiled: the two loops that make the speed of the log. `_framing.pyi` is its contract.

It knows the bytes of an entry (docs/format/journal.md) a second time, in C; importing it holds them against journal/entry.py.
It decides nothing: what is refused, padded or written, and what a broken entry means, is said in Python. A checksum of more than
`LONG` bytes is left to the crc32c package, which is faster there.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_Check
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from crc32c import crc32c as long_crc

from journal.entry import BODY_SIZE, HEADER_SIZE, PAD_TYPE, PAYLOAD_MAX, PREFIX, QUICK_HEADER, Entry

cdef extern from "crc32c.h" nogil:
    void journal_crc_prepare()
    uint32_t journal_crc(uint32_t crc, const void *data, size_t size, int portable)

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define JOURNAL_LE16 __builtin_bswap16
    #define JOURNAL_LE32 __builtin_bswap32
    #define JOURNAL_LE64 __builtin_bswap64
    #else
    #define JOURNAL_LE16(value) (value)
    #define JOURNAL_LE32(value) (value)
    #define JOURNAL_LE64(value) (value)
    #endif
    #pragma pack(push, 1)
    typedef struct {
        unsigned char prefix[6];
        uint16_t type;
        uint32_t length;
        uint64_t whose, sequence, position, safe;
        uint32_t payload_crc, header_crc;
    } journal_header;
    #pragma pack(pop)
    """
    uint16_t JOURNAL_LE16(uint16_t value) nogil
    uint32_t JOURNAL_LE32(uint32_t value) nogil
    uint64_t JOURNAL_LE64(uint64_t value) nogil
    ctypedef struct journal_header:
        unsigned char prefix[6]
        uint16_t type
        uint32_t length
        uint64_t whose
        uint64_t sequence
        uint64_t position
        uint64_t safe
        uint32_t payload_crc
        uint32_t header_crc

cdef enum:
    HEADER = 52
    BODY = 48
    GLUE_BELOW = 4096
    LONG_FROM = 1024

GLUED = GLUE_BELOW
LONG = LONG_FROM

cdef object _MAX64 = 0xFFFFFFFFFFFFFFFF
cdef unsigned char[6] _prefix
cdef uint16_t _pad_type = PAD_TYPE
cdef Py_ssize_t _payload_max = PAYLOAD_MAX


cdef uint32_t _crc_of(bytes data) except? 1:
    if PyBytes_GET_SIZE(data) < LONG_FROM:
        return journal_crc(0, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), 0)
    return long_crc(data)


cdef inline void _frame(
    char *at, uint16_t type_, uint32_t length, uint64_t whose, uint64_t sequence, uint64_t position, uint64_t safe, uint32_t crc
) noexcept nogil:
    """The header of an entry, at `at`."""
    cdef journal_header header
    memcpy(header.prefix, _prefix, 6)
    header.type = JOURNAL_LE16(type_)
    header.length = JOURNAL_LE32(length)
    header.whose = JOURNAL_LE64(whose)
    header.sequence = JOURNAL_LE64(sequence)
    header.position = JOURNAL_LE64(position)
    header.safe = JOURNAL_LE64(safe)
    header.payload_crc = JOURNAL_LE32(crc)
    header.header_crc = JOURNAL_LE32(journal_crc(0, &header, BODY, 0))
    memcpy(at, &header, HEADER)


cdef class Framer:
    """Where the next entry goes, and the framed bytes so far."""

    cdef public uint64_t position
    cdef public uint64_t sequence
    cdef public uint64_t safe
    cdef public uint64_t taken
    cdef public uint64_t limit
    cdef public uint64_t hold_back
    cdef public list buffers
    cdef uint64_t _whose

    def __init__(self, uint64_t whose, uint64_t sequence, uint64_t position):
        self._whose = whose
        self.sequence = sequence
        self.position = self.taken = self.safe = position
        self.limit = self.hold_back = 0
        self.buffers = []

    def add_at_once(self, payload, type_):
        cdef uint64_t end
        cdef Py_ssize_t length
        cdef long number
        cdef int too_wide
        cdef uint32_t crc
        if not PyBytes_CheckExact(payload) or not PyLong_Check(type_) or type_ is True:
            return 0
        length = PyBytes_GET_SIZE(payload)
        number = PyLong_AsLongAndOverflow(type_, &too_wide)
        if too_wide or not 0 < number < _pad_type or length > _payload_max:
            return 0
        crc = _crc_of(payload)  # may let other threads run; from here on nobody does
        end = self.position + HEADER + <uint64_t>length
        if end > self.limit or end - self.taken > self.hold_back:
            return 0
        self._put(payload, length, crc, number)
        return end

    cdef int _put(self, object payload, uint32_t length, uint32_t crc, uint16_t type_) except -1:
        cdef bytes framed
        if length < GLUE_BELOW:
            framed = PyBytes_FromStringAndSize(NULL, HEADER + length)
            memcpy(PyBytes_AS_STRING(framed) + HEADER, PyBytes_AS_STRING(payload), length)
        else:
            framed = PyBytes_FromStringAndSize(NULL, HEADER)
        _frame(PyBytes_AS_STRING(framed), type_, length, self._whose, self.sequence, self.position, self.safe, crc)
        self.buffers.append(framed)
        if length >= GLUE_BELOW:
            self.buffers.append(payload)
        self.sequence += 1
        self.position += HEADER + <uint64_t>length
        return 0

    def add(self, payload, uint32_t length, uint32_t crc, uint16_t type_):
        if not PyBytes_Check(payload):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        if length < GLUE_BELOW and <Py_ssize_t>length != PyBytes_GET_SIZE(payload):
            raise ValueError(f"length {length} of a payload of {PyBytes_GET_SIZE(payload)} bytes")
        self._put(payload, length, crc, type_)
        return self.position

    def add_joined(self, payloads, uint16_t type_):
        cdef list given = [item if type(item) is bytes else bytes(memoryview(item)) for item in payloads]
        cdef uint64_t position = self.position
        cdef uint64_t sequence = self.sequence
        cdef Py_ssize_t total = 0, length
        cdef bytes payload, framed
        cdef char *at
        for payload in given:
            length = PyBytes_GET_SIZE(payload)
            if <uint64_t>length > 0xFFFFFFFF:
                raise OverflowError(f"a payload of {length} bytes")
            total += HEADER + length
        framed = PyBytes_FromStringAndSize(NULL, total)
        at = PyBytes_AS_STRING(framed)
        for payload in given:
            length = PyBytes_GET_SIZE(payload)
            _frame(at, type_, length, self._whose, sequence, position, self.safe, _crc_of(payload))
            memcpy(at + HEADER, PyBytes_AS_STRING(payload), length)
            at += HEADER + length
            position += HEADER + length
            sequence += 1
        if total:
            self.buffers.append(framed)
        self.sequence = sequence
        self.position = position
        return self.position

    def take(self):
        begin, buffers = self.taken, self.buffers
        self.taken, self.buffers = self.position, []
        return begin, self.position, self.sequence, buffers


def parse(const unsigned char[::1] data, Py_ssize_t offset, Py_ssize_t last, position, sequence, whose, generation):
    cdef list found = []
    cdef journal_header header
    cdef Py_ssize_t size = data.shape[0], begin, length
    cdef uint64_t start, number, ours, safe, known_safe = 0
    cdef uint16_t type_
    cdef bytes payload
    cdef object end, safe_object = 0
    if not (0 <= position <= _MAX64 and 0 <= sequence <= _MAX64 and 0 <= whose <= _MAX64):
        return found  # no header can say so
    start, number, ours = position, sequence, whose
    last = min(last, size - HEADER)
    while 0 <= offset <= last:
        memcpy(&header, &data[offset], HEADER)
        begin = offset + HEADER
        length = JOURNAL_LE32(header.length)
        if JOURNAL_LE64(header.sequence) != number or JOURNAL_LE64(header.position) != start:
            break
        if JOURNAL_LE64(header.whose) != ours or memcmp(header.prefix, _prefix, 6) or length > size - begin:
            break
        payload = PyBytes_FromStringAndSize(<const char *>&data[0] + begin, length)
        if _crc_of(payload) != JOURNAL_LE32(header.payload_crc):
            break
        if journal_crc(0, &header, BODY, 0) != JOURNAL_LE32(header.header_crc):
            break
        type_ = JOURNAL_LE16(header.type)
        if not 0 < type_ < _pad_type:
            break
        safe = JOURNAL_LE64(header.safe)
        if safe != known_safe:
            known_safe, safe_object = safe, safe
        end = position + (HEADER + length)
        found.append(Entry(type_, position, end, number, generation, safe_object, payload))
        start += HEADER + length
        number += 1
        if number == 0 or start < HEADER:
            break  # past 64 bits: what follows is not an entry of this log
        position = end
        offset = begin + length
    return found


def checksum(const unsigned char[::1] data, uint32_t crc=0, *, bint portable=False):
    return journal_crc(crc, &data[0], data.shape[0], portable) if data.shape[0] else crc


def _check():
    """The header in C is the one in journal/entry.py, or the import fails."""
    cdef char made[HEADER]
    memcpy(_prefix, PyBytes_AS_STRING(PREFIX), 6)
    journal_crc_prepare()
    sample = [0x0102, 0x03040506, 0x0708090A0B0C0D0E, 0x0F10111213141516, 0x1718191A1B1C1D1E, 0x1F20212223242526, 0x2728292A]
    _frame(made, sample[0], sample[1], sample[2], sample[3], sample[4], sample[5], sample[6])
    body = QUICK_HEADER.pack(PREFIX, *sample, 0)[:BODY]
    assert len(PREFIX) == 6 and HEADER_SIZE == HEADER and BODY_SIZE == BODY and sizeof(journal_header) == HEADER
    assert made[:HEADER] == body + long_crc(body).to_bytes(4, "little")


_check()
