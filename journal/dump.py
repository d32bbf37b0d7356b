"""Dumps: ranges of a log, and its head copies, in one file (docs/format/journal-dump.md).

A whole log is dumped to be moved or kept; an undo file is a dump of what a change is about to overwrite. Both are applied
by writing the ranges back where they were, then the heads.

An undo file also knows the heads as its change leaves them. Whoever writes to a log makes its heads durable before its first
entry, so where they are neither those from before nor those the change left, somebody has written since.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final

from crc32c import crc32c

from journal.errors import DumpDamaged, LogChanged
from journal.head import COPIES, HEAD_SIZE, Head, check_geometry, decode_head
from journal.medium import Medium

MAGIC: Final = b"JRNLDUMP"
VERSION: Final = 2
READ_VERSIONS: Final = (1, 2)
KIND_LOG: Final = 1  # everything from the expire position on; applied to an emptied place
KIND_UNDO: Final = 2  # what a change overwrote; applied over the log
CHUNK: Final = 1 << 20
CHUNK_MAX: Final = 1 << 24

_FRONT: Final = struct.Struct("<8sHHI")
_RANGE: Final = struct.Struct("<QII")
_COUNT: Final = struct.Struct("<I")
_END: Final = (1 << 64) - 1
assert _FRONT.size == 16
assert _RANGE.size == 16

Range = tuple[int, int]


def heads_of(medium: Medium) -> list[bytes]:
    """The head copies of a medium as a dump has them, 132 bytes each."""
    return [copy[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0") for copy in medium.read_heads()]


def write_dump(
    medium: Medium, out: BinaryIO, kind: int, ranges: Iterable[Range], left: Sequence[bytes] = ()
) -> int:
    """Write the heads and the bytes of `ranges` to `out`; returns how many bytes of the log that were.

    `left`: the heads as the change leaves them that this is the undo file of.
    Runs of zeros of a chunk's length are left out of a KIND_LOG dump. Memory: one chunk. The caller makes `out` durable.
    """
    running = 0

    def put(data: bytes) -> None:
        nonlocal running
        running = crc32c(data, running)
        out.write(data)

    put(_FRONT.pack(MAGIC, VERSION, kind, COPIES))
    for copy in heads_of(medium):
        put(copy + crc32c(copy).to_bytes(4, "little"))
    put(_COUNT.pack(len(left)))
    for copy in left:
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
        if magic != MAGIC or version not in READ_VERSIONS or self.kind not in (KIND_LOG, KIND_UNDO) or copies != COPIES:
            raise DumpDamaged(0, "not a dump of a journal of this version")
        self.heads = [self._head() for _ in range(COPIES)]
        self.version = version
        self.left = self._left() if version > 1 else []

    def _head(self) -> bytes:
        data = self._take(HEAD_SIZE)
        if crc32c(data) != int.from_bytes(self._take(4), "little"):
            raise DumpDamaged(self._offset, "the checksum of a head is wrong")
        return data

    def _left(self) -> list[bytes]:
        (count,) = _COUNT.unpack(self._take(_COUNT.size))
        if count not in (0, COPIES):
            raise DumpDamaged(self._offset, f"{count} heads of a change")
        return [self._head() for _ in range(count)]

    def head(self) -> Head:
        """The newer intact head. `DumpDamaged` when there is none."""
        head = _newest(self.heads)
        if head is None:
            raise DumpDamaged(_FRONT.size, "it holds no intact head")
        return head

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


def apply_dump(medium: Medium, source: BinaryIO, *, replaces: bool = False) -> int:
    """Write a checked dump to `medium`; returns the bytes written. Durable on return. `replaces`: in place of any log.

    A KIND_LOG dump replaces whatever log was there; an undo file takes back one change. `DumpDamaged` or `WrongGeometry`, before
    anything is written; so is `LogChanged` where the log is not as the change left it: another log, or written since.
    """
    dump = check_dump(source)
    if dump.kind == KIND_LOG:
        check_geometry(dump.head(), medium.describe())
    if not replaces:
        check_untouched(medium, dump)
    if dump.kind == KIND_LOG:
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


def check_untouched(medium: Medium, dump: Dump) -> None:
    """`LogChanged` unless each head is as the change left it, or as it was before (a change, or an undo, cut short). A dump to
    keep may be put in place of any log."""
    if dump.kind == KIND_LOG and not dump.left:
        return
    found = heads_of(medium)
    if dump.version == 1:
        untouched = _is_one_change_on(dump, found)
    else:
        untouched = all(there in both for there, *both in zip(found, dump.heads, dump.left or dump.heads, strict=True))
    if not untouched:
        raise LogChanged(medium.name)


def _is_one_change_on(dump: Dump, found: list[bytes]) -> bool:
    """Version 1 did not keep the heads that the change left: the same ones, or the next two, of a log nobody opened since."""
    if found == dump.heads:
        return True
    now, then = _newest(found), _newest(dump.heads)
    if now is None or then is None:
        return False
    return now.log == then.log and now.number in (then.number + 1, then.number + 2) and now.clean


def _newest(copies: list[bytes]) -> Head | None:
    heads = [head for copy in copies if isinstance(head := decode_head(copy), Head)]
    return max(heads, key=lambda head: head.number, default=None)
