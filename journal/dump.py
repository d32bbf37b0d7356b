"""Dumps: ranges of a log, and its head copies, in one file (docs/format/journal-dump.md).

A whole log is dumped to be moved or kept; an undo file is a dump of what a change is about to overwrite. Both are applied
by writing the ranges back where they were, then the heads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from crc32c import crc32c

from journal.errors import DumpDamaged
from journal.head import COPIES, HEAD_SIZE, Head, check_geometry, decode_head
from journal.medium import Medium

MAGIC: Final = b"JRNLDUMP"
VERSION: Final = 1
KIND_LOG: Final = 1  # everything from the expire position on; applied to an emptied place
KIND_UNDO: Final = 2  # what a change overwrote; applied over the log
CHUNK: Final = 1 << 20
CHUNK_MAX: Final = 1 << 24

_FRONT: Final = struct.Struct("<8sHHI")
_RANGE: Final = struct.Struct("<QII")
_END: Final = (1 << 64) - 1
assert _FRONT.size == 16
assert _RANGE.size == 16

Range = tuple[int, int]


def write_dump(medium: Medium, out: BinaryIO, kind: int, ranges: Iterable[Range]) -> int:
    """Write the heads and the bytes of `ranges` to `out`; returns how many bytes of the log that were.

    Runs of zeros of a chunk's length are left out of a KIND_LOG dump. Memory: one chunk. The caller makes `out` durable.
    """
    running = 0

    def put(data: bytes) -> None:
        nonlocal running
        running = crc32c(data, running)
        out.write(data)

    put(_FRONT.pack(MAGIC, VERSION, kind, COPIES))
    for copy in medium.read_heads():
        copy = copy[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0")
        put(copy + crc32c(copy).to_bytes(4, "little"))
    total = 0
    for low, high in ranges:
        for position in range(low, high, CHUNK):
            data = medium.read(position, min(CHUNK, high - position))
            if kind == KIND_UNDO or any(data):
                put(_RANGE.pack(position, len(data), crc32c(data)))
                put(data)
                total += len(data)
    out.write(_RANGE.pack(_END, 0, running))
    return total


class Dump:
    """Reads a dump. The heads are checked when it is made, each range as it is read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._offset = 0
        self._running = 0  # checksum of everything read so far
        magic, version, self.kind, copies = _FRONT.unpack(self._take(_FRONT.size))
        if magic != MAGIC or version != VERSION or self.kind not in (KIND_LOG, KIND_UNDO) or copies != COPIES:
            raise DumpDamaged(0, "not a dump of a journal of this version")
        self.heads = [self._head() for _ in range(COPIES)]

    def _head(self) -> bytes:
        data = self._take(HEAD_SIZE)
        if crc32c(data) != int.from_bytes(self._take(4), "little"):
            raise DumpDamaged(self._offset, "the checksum of a head is wrong")
        return data

    def head(self) -> Head:
        """The newer intact head. `DumpDamaged` when there is none."""
        heads = [head for copy in self.heads if isinstance(head := decode_head(copy), Head)]
        if not heads:
            raise DumpDamaged(_FRONT.size, "it holds no intact head")
        return max(heads, key=lambda head: head.number)

    def ranges(self) -> Iterator[tuple[int, bytes]]:
        """(position, bytes), to the end of the dump. `DumpDamaged` at the first that is wrong or missing."""
        while True:
            running = self._running
            position, length, crc = _RANGE.unpack(self._take(_RANGE.size))
            if position == _END:
                break
            if length > CHUNK_MAX:
                raise DumpDamaged(self._offset, f"a range of {length} bytes")
            data = self._take(length)
            if crc32c(data) != crc:
                raise DumpDamaged(self._offset, f"the checksum of the range at position {position} is wrong")
            yield position, data
        if length or crc != running:
            raise DumpDamaged(self._offset, "the checksum of the whole dump is wrong")

    def _take(self, length: int) -> bytes:
        data = self._source.read(length)
        self._offset += len(data)
        self._running = crc32c(data, self._running)
        if len(data) != length:
            raise DumpDamaged(self._offset, "it ends in the middle")
        return data


def check_dump(source: BinaryIO) -> Dump:
    """Read a dump to its end, so that nothing is written when its last byte is wrong, and rewind it. `source` seeks."""
    for _ in Dump(source).ranges():
        pass
    source.seek(0)
    return Dump(source)


def apply_dump(medium: Medium, source: BinaryIO) -> int:
    """Write a checked dump to `medium`; returns the bytes written. Durable on return.

    A KIND_LOG dump replaces whatever log was there; a KIND_UNDO dump takes back one change. `DumpDamaged` or
    `WrongGeometry`, before anything is written.
    """
    dump = check_dump(source)
    if dump.kind == KIND_LOG:
        check_geometry(dump.head(), medium.describe())
        low = medium.lowest()
        medium.truncate(low, medium.reach(low))
    total = 0
    for position, data in dump.ranges():
        medium.write(position, [data])
        total += len(data)
    medium.flush()
    for slot, copy in enumerate(dump.heads):
        medium.write_head(slot, copy)
    medium.flush()
    return total

