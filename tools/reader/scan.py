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

CHUNK: Final = 1 << 20

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
    -1 for the head, that knew the lost bytes durable."""

    end: int
    kind: str
    witness: int | None = None


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

    def entries(self) -> Iterator[Entry]:
        """Entries in order up to the end of the log."""
        while True:
            found = self._accept(self.end) or self._behind_gap()
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
        if self._head.safe > self.end:
            return Tail(self.end, ROT, -1)
        witness = self._search_behind()
        if witness is not None:
            return Tail(self.end, ROT, witness)
        header = decode_header(self._read(self.end, HEADER_SIZE))
        is_torn = header is not None and self._is_due(header, self.end)
        return Tail(self.end, TORN if is_torn else CLEAN)

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
    def _search_behind(self) -> int | None:
        """The position of an intact header of this log further on that knew the end durable."""
        at, stop = self.end, self._medium.horizon(self.end)
        while at < stop:
            data = self._medium.read(at, min(CHUNK + HEADER_SIZE, stop - at))
            found = data.find(MAGIC)
            while 0 <= found < CHUNK:
                header = decode_header(data, found)
                if header is not None and self._is_witness(header, at + found):
                    return at + found
                found = data.find(MAGIC, found + 1)
            at += CHUNK
        return None

    def _is_witness(self, header: Header, position: int) -> bool:
        if header.position != position or header.log != self._head.log or header.generation > self._head.generation:
            return False
        return header.safe > self.end

    def _read(self, position: int, length: int) -> bytes:
        """Bytes of the stream through one read-ahead window."""
        offset = position - self._window_at
        if offset < 0 or offset + length > len(self._window):
            ahead = min(max(length, CHUNK), max(length, self._medium.horizon(self.end) - position))
            self._window = self._medium.read(position, ahead)
            self._window_at = position
            offset = 0
        return self._window[offset : offset + length]
