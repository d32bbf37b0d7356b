"""The journal's head: the one place that knows its bytes (docs/format/journal-head.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from journal.errors import HeadLost, NoJournal, UnsupportedJournal, WrongGeometry

UNREADABLE: Final = b"?"  # in place of a head copy that the medium does not give
MAGIC: Final = b"JRNLHEAD"
VERSION: Final = 1
COPIES: Final = 2  # slots; head number n goes to slot n % COPIES

FLAG_CLEAN: Final = 1  # `safe` is the exact end of the log
FLAG_UNSPLIT: Final = 2  # the writer pads, so that an entry that fits a unit never crosses one
KNOWN_FLAGS: Final = FLAG_CLEAN | FLAG_UNSPLIT

_BODY: Final = struct.Struct("<8sHHIIIQQQQQQQQQIIQ16s")
HEAD_SIZE: Final = _BODY.size + 4
assert HEAD_SIZE == 132


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What must be known to find the log again. Positions are stream positions, checked in `decode_head`:

    `trimmed <= expire <= safe`, and `generation_start <= safe`.
    """

    log: int  # random, chosen at creation: entries of another log in the same place never pass
    generation: int  # one more for every writer that appended
    number: int = 0  # of this head; the copy with the higher one is newer
    trimmed: int
    expire: int
    safe: int
    next_sequence: int  # of the entry that begins at `safe`
    generation_start: int  # from here on only entries of `generation` count
    epoch: int = 0  # of the writer, where the medium has floors
    capacity: int = 0  # bytes of the ring, 0 where the medium grows
    unit: int = 0
    stripe_count: int = 0
    object_size: int = 0
    clean: bool = False
    allow_split: bool = True

    def encode(self) -> bytes:
        """The bytes of one copy, `HEAD_SIZE` long."""
        flags = (FLAG_CLEAN if self.clean else 0) | (0 if self.allow_split else FLAG_UNSPLIT)
        body = _BODY.pack(
            MAGIC, VERSION, flags, self.log, self.generation, 0, self.number, self.trimmed, self.expire, self.safe,
            self.next_sequence, self.generation_start, self.epoch, self.capacity, self.object_size,
            self.unit, self.stripe_count, 0, b"",
        )  # fmt: skip
        return body + crc32c(body).to_bytes(4, "little")


def decode_head(data: bytes) -> Head | str:
    """The head in `data`, or one sentence that says why there is none. `UnsupportedJournal` for a newer format."""
    if data == UNREADABLE:
        return "unreadable: the medium does not give it"
    if len(data) < HEAD_SIZE:
        return "empty" if not any(data) else f"only {len(data)} bytes"
    data = data[:HEAD_SIZE]
    stored = int.from_bytes(data[-4:], "little")
    if data[:8] != MAGIC:
        return "empty" if not any(data) else f"no magic but {data[:8].hex()}"
    if crc32c(data[:-4]) != stored:
        return f"checksum {crc32c(data[:-4]):08x} where {stored:08x} is stored"
    return _decode_fields(data)


def _decode_fields(data: bytes) -> Head | str:
    (_, version, flags, log, generation, spare, number, trimmed, expire, safe, next_sequence, generation_start, epoch,
     capacity, object_size, unit, stripe_count, spare2, spare3) = _BODY.unpack_from(data)  # fmt: skip
    if version != VERSION or flags & ~KNOWN_FLAGS:
        raise UnsupportedJournal("journal head", f"version {version}, flags {flags:#x}")
    if spare or spare2 or any(spare3):
        return "reserved bytes are not zero"
    if not (trimmed <= expire <= safe and generation_start <= safe):
        return f"positions out of order: trimmed {trimmed}, expire {expire}, safe {safe}, from {generation_start}"
    return Head(
        log=log, generation=generation, number=number, trimmed=trimmed, expire=expire, safe=safe,
        next_sequence=next_sequence, generation_start=generation_start, epoch=epoch, capacity=capacity, unit=unit,
        stripe_count=stripe_count, object_size=object_size,
        clean=bool(flags & FLAG_CLEAN), allow_split=not flags & FLAG_UNSPLIT,
    )  # fmt: skip


def check_geometry(head: Head, geometry: dict[str, int]) -> None:
    """`WrongGeometry` when `geometry`, what a medium says of itself, is not what `head` says of the log."""
    for field, found in geometry.items():
        if getattr(head, field) != found:
            raise WrongGeometry(field, getattr(head, field), found)


def newest_head(copies: list[bytes], where: str, log: int | None = None) -> Head:
    """The intact copy with the highest number, of the log with that identity when one is given. `NoJournal` when all are empty,
    `HeadLost` when none is intact."""
    decoded = [decode_head(copy) for copy in copies]
    heads = [head for head in decoded if isinstance(head, Head) and log in (None, head.log)]
    if heads:
        return max(heads, key=lambda head: head.number)
    reasons = [f"of log {head.log:#x}, not {log:#x}" if isinstance(head, Head) else str(head) for head in decoded]
    if all(reason == "empty" for reason in reasons):
        raise NoJournal(where)
    raise HeadLost(where, reasons)
