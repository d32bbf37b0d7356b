"""Reading a journal: entries in order, where it ends, and what lies behind its end. docs/format/journal.md.

Works over any `Medium`: the ring of the store's log, or the metadata server's striped objects. Memory: one entry and one
read-ahead chunk; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.entry import HEADER_SIZE, MAGIC, TYPE_PAD, Head, Header, decode_header
from mdstore.tools.reader.problems import Damage

CHUNK: Final = 1 << 20
SECTOR: Final = 4096  # what is tried by itself where a chunk does not read

CLEAN: Final = "clean"  # nothing, or what an earlier lap or writer left
TORN: Final = "torn"
ROT: Final = "rot"


class Medium(Protocol):
    """Where the bytes of a journal lie."""

    @property
    def unit(self) -> int:
        """Bytes of a unit that padding respects, 0 where there is none."""

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes of the stream from `position`; zeros where nothing was ever written."""

    def horizon(self, position: int) -> int:
        """The position before which everything that was ever appended behind `position` must lie."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the owner (pads are left out)."""

    header: Header
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the log ends and what follows: kind is CLEAN, TORN or ROT; `witness` is the position of the entry, or
    -1 for the head, that knew the lost bytes durable. `unreadable`: (position, end, evidence) of what does not read there."""

    end: int
    kind: str
    witness: int | None = None
    unreadable: tuple[tuple[int, int, Damage], ...] = ()


Gap = tuple[int, int, Damage]


class Source(Protocol):
    """Anything with bytes at positions: a medium, an image."""

    def read(self, position: int, length: int, /) -> bytes:
        """`length` bytes. Damage where they do not read."""


def readable_pieces(
    medium: Source, start: int, stop: int, gaps: list[Gap], overlap: int = 0
) -> Iterator[tuple[int, int, bytes]]:
    """(position, how much of it counts, bytes) of everything from `start` to `stop` that reads, in chunks; each has up to
    `overlap` bytes of the next one too. What does not read goes to `gaps`."""
    for at in range(start, stop, CHUNK):
        length = min(CHUNK, stop - at)
        try:
            yield at, length, medium.read(at, min(length + overlap, stop - at))
        except Damage:
            yield from _sectors(medium, at, at + length, gaps)


def _sectors(medium: Source, start: int, stop: int, gaps: list[Gap]) -> Iterator[tuple[int, int, bytes]]:
    """The same in runs between the sectors that do not read."""
    begin, parts, at = start, list[bytes](), start
    for end in (*range(start // SECTOR * SECTOR + SECTOR, stop, SECTOR), stop):
        try:
            parts.append(medium.read(at, end - at))
        except Damage as damage:
            if parts:
                yield begin, at - begin, b"".join(parts)
            begin, parts = end, []
            first, evidence = (gaps[-1][0], gaps.pop()[2]) if gaps and gaps[-1][1] == at else (at, damage)
            gaps.append((first, end, evidence))
        at = end
    if parts:
        yield begin, stop - begin, b"".join(parts)


class Scan:
    """One pass over a journal from `start`. Iterate `entries`, then ask `tail`."""

    def __init__(self, medium: Medium, head: Head, start: int) -> None:
        self._medium = medium
        self._head = head
        self.end = start
        self.last: Header | None = None
        self.count = 0
        self.pads = 0
        self.safe = 0
        self._window = b""
        self._window_at = start
        self._ahead = CHUNK
        self._blocked: Damage | None = None  # why the next entry cannot be read

    def entries(self) -> Iterator[Entry]:
        """Entries in order up to the end of the log, or up to where the medium does not give the next one."""
        while True:
            try:
                found = self._accept(self.end) or self._behind_gap()
            except Damage as damage:
                self._blocked = damage
                return
            if found is None:
                return
            header, payload = found
            self.last = header
            self.end = header.end
            self.safe = max(self.safe, header.safe)
            if header.type == TYPE_PAD:
                self.pads += 1
                continue
            self.count += 1
            yield Entry(header, payload)

    def tail(self) -> Tail:
        """What follows the end that `entries` reached."""
        gaps: list[Gap] = []
        witness = -1 if self._head.safe > self.end else self._search_behind(gaps)
        if self._blocked is not None and not gaps:
            gaps.append((self.end, self.end + HEADER_SIZE, self._blocked))
        unreadable = tuple(gaps)
        if witness is not None:
            return Tail(self.end, ROT, witness, unreadable)
        header = None if self._blocked is not None else decode_header(self._read(self.end, HEADER_SIZE))
        is_torn = header is not None and self._is_due(header, self.end)
        return Tail(self.end, TORN if is_torn else CLEAN, None, unreadable)

    # -- acceptance ----------------------------------------------------------------------------------------------------
    def _accept(self, position: int) -> tuple[Header, bytes] | None:
        """The entry at `position` when all four rules of acceptance hold."""
        header = decode_header(self._read(position, HEADER_SIZE))
        if header is None or not self._is_due(header, position):
            return None
        if header.end > self._medium.horizon(self.end):
            return None
        payload = self._read(position + HEADER_SIZE, header.length)
        return (header, payload) if crc32c(payload) == header.payload_crc else None

    def _is_due(self, header: Header, position: int) -> bool:
        head, last = self._head, self.last
        if header.position != position or header.log != head.log:
            return False
        if last is not None and (header.sequence != last.sequence + 1 or header.generation < last.generation):
            return False
        if header.generation > head.generation:
            return False
        return position < head.generation_start or header.generation == head.generation

    def _behind_gap(self) -> tuple[Header, bytes] | None:
        """The entry at the next unit boundary, when only zeros lie before it and its sequence is the due one."""
        unit = self._medium.unit
        if not unit or self.last is None or self.end % unit == 0:
            return None
        boundary = (self.end // unit + 1) * unit
        if any(self._read(self.end, boundary - self.end)):
            return None
        return self._accept(boundary)

    # -- what follows --------------------------------------------------------------------------------------------------
    def _search_behind(self, gaps: list[Gap]) -> int | None:
        """The position of an intact header of this log further on that knew the end durable. `gaps`: what does not read."""
        stop = self._medium.horizon(self.end)
        for at, length, data in readable_pieces(self._medium, self.end, stop, gaps, HEADER_SIZE):
            found = data.find(MAGIC)
            while 0 <= found < length:
                header = decode_header(data, found)
                if header is not None and self._is_witness(header, at + found):
                    return at + found
                found = data.find(MAGIC, found + 1)
        return None

    def _is_witness(self, header: Header, position: int) -> bool:
        if header.position != position or header.log != self._head.log or header.generation > self._head.generation:
            return False
        return header.safe > self.end

    def _read(self, position: int, length: int) -> bytes:
        """Bytes of the stream through one read-ahead window."""
        offset = position - self._window_at
        if offset < 0 or offset + length > len(self._window):
            self._window = self._read_ahead(position, length)
            self._window_at = position
            offset = 0
        return self._window[offset : offset + length]

    def _read_ahead(self, position: int, length: int) -> bytes:
        """As much as is there, up to a chunk; less and less where the medium does not give it."""
        while True:
            ahead = min(max(length, self._ahead), max(length, self._medium.horizon(self.end) - position))
            try:
                return self._medium.read(position, ahead)
            except Damage:
                if ahead <= length:
                    raise
                self._ahead = max(HEADER_SIZE, ahead // 2)
