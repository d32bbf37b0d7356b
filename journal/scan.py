"""Reading a log: walking from entry to entry, and telling what follows the last one.

The walk accepts an entry at the position it stands on when all of this holds:

 S1  its header's CRC and its payload's CRC are right, its version is known and its flags are zero
 S2  it says it starts where it lies, and belongs to this log
 S3  its sequence is one more than the entry's before it (the first one may have any)
 S4  its generation is not below the one before it, not above the head's, and is the head's from the position on
     where the head says that generation began

Zeros up to the next unit boundary are stepped over when an acceptable entry begins there; pad entries always.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

from crc32c import crc32c

from journal._framing import parse
from journal.entry import (
    HEADER_SIZE,
    MAGIC,
    PAD_TYPE,
    START_OFFSET,
    Entry,
    Header,
    decode_header,
    log_and_generation,
)
from journal.errors import MediumUnreadable

Read = Callable[[int, int], bytes]

WINDOW: Final = 1 << 20  # bytes read ahead of the walk
PIECE: Final = 1 << 23  # bytes of a large entry read at once
_NEVER: Final = 1 << 64
UNREADABLE: Final = "unreadable"  # what `broken` begins with where the medium does not give the next entry
_LOW_BITS: Final = 24  # of a position, that the search does not look at
_UPPER_MAX: Final = 128  # different upper parts, that it does look at


@dataclass(frozen=True, slots=True)
class Rule:
    """What the head says every entry must satisfy. `unit` is 0 where there are no units."""

    log: int
    generation: int
    generation_start: int
    unit: int = 0

    def refuses(self, header: Header, position: int, sequence: int | None, generation: int) -> str | None:
        """Why `header`, found at `position`, is not the next entry; None when it is."""
        if header.log != self.log:
            return f"stale: an entry of log {header.log:08x}, not {self.log:08x}"
        if header.position != position:
            return f"stale: an entry written for position {header.position}"
        if header.generation > self.generation:
            return f"generation {header.generation} above the head's {self.generation}"
        if header.generation < generation:
            return f"stale: generation {header.generation} after {generation}"
        if position >= self.generation_start and header.generation != self.generation:
            return f"stale: generation {header.generation} where {self.generation} began at {self.generation_start}"
        if sequence is not None and header.sequence != sequence:
            return f"stale: sequence {header.sequence} where {sequence} was due"
        return None


class Walk:
    """Iterates over the entries of `[position, stop)`, in batches or one by one.

    After the iteration `position` is the end of the last good entry, and `broken` says why the next one is not good;
    `broken` is "" when `stop` was reached. Bytes that cannot be read end it only where an entry needs them.
    Holds one window, and one entry where that is larger. Pads are not yielded.
    """

    def __init__(
        self, read: Read, rule: Rule, position: int, stop: int, *, window: int = WINDOW, sequence: int | None = None,
        generation: int = 0, capacity: int | None = None,
    ) -> None:  # fmt: skip
        self.position = position
        self.stop = stop
        self.sequence = sequence
        self.first_sequence = sequence  # of the first entry, pads included
        self.generation = generation
        self.safe = 0  # the highest durable position any entry knew of
        self.broken = ""
        self._read = read
        self._rule = rule
        self._window = max(window, HEADER_SIZE)
        self._longest = min(capacity or _NEVER, _NEVER)
        self._data = b""
        self._base = position
        self._skipped_from: int | None = None  # where zeros began, until the entry behind them proves good

    def __iter__(self) -> Iterator[Entry]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Entry]]:
        """Lists of entries, each about one window long; faster than one by one."""
        while not self.broken and self.position < self.stop:
            batch = self._parse_window()
            if not batch:
                batch = self._step()
            if batch:
                yield batch

    def _parse_window(self) -> list[Entry]:
        """All plain entries that lie whole in the window; what is unusual in any way is left to `_step`.

        The loop is the speed of replay, and compiled.
        """
        if self.sequence is None or self._skipped_from is not None:
            return []
        whose = log_and_generation(self._rule.log, self.generation)
        offset, last = self.position - self._base, self._last_offset()
        batch = parse(self._data, offset, last, self.position, self.sequence, whose, self.generation)
        if batch:
            self.position, self.sequence = batch[-1].end, batch[-1].sequence + 1
            self.safe = max(self.safe, batch[-1].safe)
        return batch

    def _last_offset(self) -> int:
        """The last offset in the window where an entry of the present generation may begin."""
        last = len(self._data) - HEADER_SIZE
        if self.generation < self._rule.generation:
            last = min(last, self._rule.generation_start - 1 - self._base)
        return max(last, -1)

    def _step(self) -> list[Entry]:
        try:
            return self._next()
        except MediumUnreadable as error:
            return self._break(f"{UNREADABLE}: {error.cause}")

    def _next(self) -> list[Entry]:
        """Refill, skip a pad, cross a generation, or find the walk broken."""
        data = self._have(HEADER_SIZE)
        header = decode_header(data) if any(data) else "zeros"
        refused = header if isinstance(header, str) else self._refused(header)
        if refused is not None:
            return [] if self._skip_zeros() else self._break(refused)
        assert isinstance(header, Header)
        payload = self._payload(header)
        if len(payload) < header.length or crc32c(payload) != header.payload_crc:
            return self._break(f"payload checksum {crc32c(payload):08x} where {header.payload_crc:08x} is stored")
        return self._accept(header, payload)

    def _payload(self, header: Header) -> bytes:
        """Out of the window; or, where it is larger than one, read piece by piece, so that no two copies of it are held."""
        if HEADER_SIZE + header.length <= self._window:
            return self._have(HEADER_SIZE + header.length)[HEADER_SIZE:]
        payload, position = BytesIO(), self.position + HEADER_SIZE
        payload.seek(header.length - 1)
        payload.write(b"\0")  # of its full size at once: it need not grow, and is handed out without a copy
        payload.seek(0)
        while position < header.end:
            read = payload.write(self._read(position, min(max(self._window, PIECE), header.end - position)))
            if not read:
                payload.truncate()  # the medium's end
                break
            position += read
        return payload.getvalue()

    def _refused(self, header: Header) -> str | None:
        if header.end > self.stop or header.length + HEADER_SIZE > self._longest:
            return f"an entry that ends at {header.end}, beyond {self.stop}"
        return self._rule.refuses(header, self.position, self.sequence, self.generation)

    def _accept(self, header: Header, payload: bytes) -> list[Entry]:
        if self.first_sequence is None:
            self.first_sequence = header.sequence
        entry = Entry(header.type, self.position, header.end, header.sequence, header.generation, header.safe, payload)
        self.position, self.sequence, self.generation = header.end, header.sequence + 1, header.generation
        self.safe = max(self.safe, header.safe)
        self._skipped_from = None
        return [] if header.type == PAD_TYPE else [entry]

    def _skip_zeros(self) -> bool:
        """Step to the next unit boundary if only zeros lie before it and an acceptable entry begins there."""
        unit = self._rule.unit
        room = unit - self.position % unit if unit else 0
        if room in (0, unit) or self.position + room + HEADER_SIZE > self.stop:
            return False
        zeros = self._have(room + HEADER_SIZE)
        header = decode_header(zeros, room) if not any(zeros[:room]) else ""
        boundary = self.position + room
        if isinstance(header, str) or self._rule.refuses(header, boundary, self.sequence, self.generation):
            return False
        self._skipped_from, self.position = self.position, boundary
        return True

    def _break(self, reason: str) -> list[Entry]:
        self.broken = reason
        if self._skipped_from is not None:
            self.position = self._skipped_from
        return []

    def _have(self, need: int) -> bytes:
        """At least `need` bytes from `position`, fewer only before `stop`; reads a window, or `need` where larger."""
        offset = self.position - self._base
        if len(self._data) - offset < need:
            self._data = self._ahead(need)
            self._base, offset = self.position, 0
        return self._data[offset : offset + need]

    def _ahead(self, need: int) -> bytes:
        """A window; where one cannot be read ever smaller ones: the walk never comes past what it needs and cannot have."""
        while True:
            wanted = min(max(need, self._window), self.stop - self.position)
            try:
                return self._read(self.position, wanted)
            except MediumUnreadable:
                if wanted <= need:
                    raise
                self._window = max(HEADER_SIZE, wanted // 2)


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows the last good entry, at `position`.

    kind: `clean` (zeros or nothing), `torn` (a write that did not finish), `stale` (an older lap, generation or log), `rot`
    (it had been durable: `witness` is the position of a later entry that knew). From `dirty_end` on, nothing can ever be
    taken for an entry.
    """

    kind: Literal["clean", "torn", "stale", "rot"]
    position: int
    detail: str
    dirty_end: int
    witness: int = 0
    witness_safe: int = 0


def classify_tail(read: Read, rule: Rule, walk: Walk, reach: int) -> Tail:
    """Look at everything between where `walk` stopped and `reach`. Cost: reads all of it, once, a window at a time."""
    dirty_end, witness = walk.position, None
    for header in find_headers(read, walk.position, reach):
        if header.log != rule.log:
            continue
        dirty_end = max(dirty_end, min(header.end, reach))
        believed = rule.refuses(header, header.position, None, walk.generation) is None
        if believed and header.safe > walk.position and witness is None:
            witness = header
    reason = walk.broken or "nothing follows"
    if witness is not None:
        return Tail("rot", walk.position, reason, dirty_end, witness.position, witness.safe)
    kind: Literal["clean", "torn", "stale"] = "torn"
    if reason in ("zeros", "nothing follows"):
        kind = "clean" if dirty_end == walk.position else "torn"
    elif reason.startswith("stale"):
        kind = "stale"
    return Tail(kind, walk.position, reason, max(dirty_end, min(walk.position + HEADER_SIZE, reach)))


def find_headers(read: Read, position: int, stop: int, *, window: int = WINDOW) -> Iterator[Header]:
    """Every intact header in `[position, stop)` that says it starts where it lies, whatever its log and generation.

    The search is byte by byte, so it finds its way again after any damage. Payloads that are whole and intact are not
    looked into. Memory is one window, and the time linear, whatever lengths the headers claim: once payloads that turned
    out not intact add up to the length of the search, the search goes on inside payloads too.
    """
    doubted = 0
    limit = stop - position
    pattern = _candidates(position, stop)
    while position < stop:
        wanted = min(window + HEADER_SIZE, stop - position)
        data = read(position, wanted)
        after = max(1, len(data) - HEADER_SIZE + 1)
        offset = _next_header(data, position, 0, pattern)
        while offset >= 0:
            header = decode_header(data, offset)
            assert isinstance(header, Header)
            yield header
            intact = header.end <= stop and doubted <= limit and _payload_intact(read, header, data, offset, window)
            doubted += 0 if intact else header.length
            following = offset + (HEADER_SIZE + header.length if intact else 1)
            after = max(after, following)
            offset = _next_header(data, position, following, pattern)
        if len(data) < wanted:
            return  # the medium's end
        position += after


def _candidates(position: int, stop: int) -> re.Pattern[bytes]:
    """Matches wherever a header of `[position, stop)` may begin: the magic, and a position whose upper bytes fit.

    In a ring full of entries of the lap before, that leaves it to the regular expression to pass over them all.
    """
    upper = range(position >> _LOW_BITS, (stop >> _LOW_BITS) + 1)
    if len(upper) > _UPPER_MAX:
        return re.compile(re.escape(MAGIC))
    choices = b"|".join(re.escape(value.to_bytes(8 - _LOW_BITS // 8, "little")) for value in upper)
    gap = START_OFFSET + _LOW_BITS // 8 - len(MAGIC)
    return re.compile(re.escape(MAGIC) + b".{%d}(?:%s)" % (gap, choices), re.DOTALL)


def _next_header(data: bytes, base: int, offset: int, pattern: re.Pattern[bytes]) -> int:
    """Where, from `offset` on, the first header lies that is whole in `data` and names its own position; -1: nowhere."""
    while (match := pattern.search(data, offset)) is not None and match.start() <= len(data) - HEADER_SIZE:
        offset = match.start()
        at = offset + START_OFFSET
        if int.from_bytes(data[at : at + 8], "little") == base + offset and not isinstance(
            decode_header(data, offset), str
        ):
            return offset
        offset += 1
    return -1


def _payload_intact(read: Read, header: Header, data: bytes, offset: int, window: int) -> bool:
    body = offset + HEADER_SIZE
    if body + header.length <= len(data):
        return crc32c(data[body : body + header.length]) == header.payload_crc
    return payload_intact(read, header, window)


def payload_intact(read: Read, header: Header, window: int) -> bool:
    """Whether the payload that belongs to an intact header is there. Reads it, a window at a time."""
    value, position = 0, header.position + HEADER_SIZE
    while position < header.end:
        part = read(position, min(window, header.end - position))
        if not part:
            return False
        value = crc32c(part, value)
        position += len(part)
    return value == header.payload_crc
