"""What the compiled framing and scanning does.

Calls keep the interpreter's lock, except while the crc32c package sums a long payload.
"""

from collections.abc import Iterable
from typing import Final

from journal.entry import Entry
from journal.medium import Buffer

GLUED: Final[int]
"""A payload below this many bytes is copied behind its header: one buffer instead of two."""

LONG: Final[int]
"""From this many bytes on, checksums are left to the crc32c package."""

class Framer:
    """Frames entries one behind another. Not thread-safe, but for `add_at_once` and `take`: with the interpreter's lock that
    each holds, either is one step for all other threads.

    position, sequence: of the next entry. safe: what entries say was durable when they were appended. buffers: the framed
    bytes of `[taken, position)`; its items may be replaced. limit, hold_back: see `add_at_once`; 0 at first.
    """

    position: int
    sequence: int
    safe: int
    taken: int
    limit: int
    hold_back: int
    buffers: list[Buffer]

    def __init__(self, whose: int, sequence: int, position: int) -> None:
        """`whose` is `log_and_generation` of every entry."""

    def add_at_once(self, payload: object, type_: object) -> int:
        """Append an entry; returns its end. 0, and nothing has changed, where that needs a closer look: when it is not plain
        `bytes` of a length and a type that are allowed, would end beyond `limit`, or further behind `taken` than `hold_back`."""

    def add(self, payload: bytes, length: int, crc: int, type_: int) -> int:
        """Append an entry; returns its end. `crc` is that of the payload.

        From `GLUED` bytes on the payload is a buffer of its own, by reference, and may be a stand-in for one of `length` bytes.
        `OverflowError` where a field does not fit its width; nothing has changed then.
        """

    def add_joined(self, payloads: Iterable[bytes], type_: int) -> int:
        """Append an entry for each payload, all as one buffer; returns the end of the last. Cost: one copy of the payloads."""

    def take(self) -> tuple[int, int, int, list[Buffer]]:
        """Everything appended since the last `take`: where it begins, where it ends, the sequence of the entry that comes
        next, and the bytes."""

def parse(
    data: Buffer, offset: int, last: int, position: int, sequence: int, whose: int, generation: int
) -> list[Entry]:
    """The entries that follow one another in `data` from `offset` on, as far as they are whole, intact, and those expected.

    last: no entry is taken that begins behind it. position, sequence: of the entry at `offset`. whose: `log_and_generation` of
    each; generation: what the entries say it is. Pads, and types that are never valid, end the list; so does a position or
    a sequence that does not fit 64 bits. Payloads are copies.
    """

def checksum(data: Buffer, crc: int = 0, *, portable: bool = False) -> int:
    """The CRC-32C of `data`, going on from `crc`. portable: by tables, even where the processor has an instruction."""
