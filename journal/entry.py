"""The entry header: the one place that knows its bytes (docs/format/journal.md)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

from journal.errors import EntryTooLarge

MAGIC: Final = b"\xf3jrn"
VERSION: Final = 1
PAD_TYPE: Final = 0xFFFF  # an entry that carries nothing: it fills the rest of a unit
TYPE_MAX: Final = 0xFFFE  # types of callers are 1 .. TYPE_MAX; 0 is never valid
PAYLOAD_MAX: Final = 1 << 30  # one payload; checked before anything is appended, and before anything is allocated

BODY: Final = struct.Struct("<4sBBHIIIQQQI")  # all fields the header CRC covers
HEADER: Final = struct.Struct("<4sBBHIIIQQQII")
HEADER_SIZE: Final = HEADER.size
BODY_SIZE: Final = BODY.size
START_OFFSET: Final = 28

# The same bytes with neighbouring fields taken together, for the two loops that make the speed: appending and scanning.
# Magic, version and flags are one constant; log and generation one number.
PREFIX: Final = MAGIC + bytes([VERSION, 0])
QUICK_BODY: Final = struct.Struct("<6sHIQQQQI")
QUICK_HEADER: Final = struct.Struct("<6sHIQQQQII")

assert QUICK_BODY.size == BODY.size
assert QUICK_HEADER.size == HEADER.size
assert BODY_SIZE == 48
assert HEADER_SIZE == 52
assert struct.calcsize("<4sBBHIIIQ") == START_OFFSET


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the log. `position` is its first byte, `end` the first byte after it; both are stream positions.

    `safe` is the position the writer knew durable when it appended the entry; `payload` belongs to the caller.
    A struct that the garbage collector does not look at: replay makes hundreds of thousands a second, and a NamedTuple
    takes three times as long.
    """

    type: int
    position: int
    end: int
    sequence: int
    generation: int
    safe: int
    payload: bytes


class Header(NamedTuple):
    """A header whose own checksum is right. Nothing is said about its payload."""

    flags: int
    type: int
    length: int
    log: int
    generation: int
    sequence: int
    position: int
    safe: int
    payload_crc: int

    @property
    def end(self) -> int:
        return self.position + HEADER_SIZE + self.length


def log_and_generation(log: int, generation: int) -> int:
    """The two as the one number that the quick structs use."""
    return log | generation << 32


def encode_header(
    type_: int, length: int, log: int, generation: int, sequence: int, position: int, safe: int, payload_crc: int
) -> bytes:
    """The 52 bytes in front of a payload. `EntryTooLarge` over `PAYLOAD_MAX`."""
    if length > PAYLOAD_MAX:
        raise EntryTooLarge(length, PAYLOAD_MAX)
    body = BODY.pack(MAGIC, VERSION, 0, type_, length, log, generation, sequence, position, safe, payload_crc)
    return body + crc32c(body).to_bytes(4, "little")


def decode_header(data: bytes | bytearray | memoryview, offset: int = 0) -> Header | str:
    """The header at `offset` of `data`, or one sentence that says why there is none. Never raises."""
    if len(data) - offset < HEADER_SIZE:
        return f"only {max(0, len(data) - offset)} bytes where a header needs {HEADER_SIZE}"
    magic, version, flags, type_, length, log, generation, sequence, position, safe, payload_crc, header_crc = (
        HEADER.unpack_from(data, offset)
    )
    if magic != MAGIC:
        return "zeros" if not any(data[offset : offset + HEADER_SIZE]) else f"no magic but {bytes(magic).hex()}"
    found = crc32c(data[offset : offset + BODY_SIZE])
    if found != header_crc:
        return f"header checksum {found:08x} where {header_crc:08x} is stored"
    if version != VERSION or flags:
        return f"version {version}, flags {flags:#x}"
    if not type_ or length > PAYLOAD_MAX:
        return f"type {type_}, length {length}"
    return Header(flags, type_, length, log, generation, sequence, position, safe, payload_crc)
