"""What a journal needs of the place it lives in.

Positions are byte positions of the stream, 64 bits wide, beginning at `start`; where a position's byte lies is the
medium's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


class Medium(Protocol):
    """A stream of bytes with two head slots beside it.

    What a medium must do, for the journal's promises to hold:

    * after `flush` returns, every `write`, `write_head` and `trim` that had returned before it was called survives a crash;
    * without a flush any subset of the bytes written since the last one may survive, and nothing else changes;
    * an error of any method other than `read` and `read_heads` leaves the range named in doubt; the journal latches;
    * a writer that has been replaced gets `JournalFenced`, where the medium knows of floors.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def start(self) -> int:
        """The first position of a new log."""

    @property
    def capacity(self) -> int | None:
        """Bytes that fit between the oldest position kept and the end, or None where the medium grows."""

    @property
    def unit(self) -> int:
        """Bytes that live in one piece (a stripe unit), a power of two or not; 0 where there is no such thing."""

    @property
    def period(self) -> int:
        """Granularity of `trim`."""

    @property
    def prezero_periods(self) -> int:
        """How many whole periods beyond anything written are kept empty; 0 where `reach` needs no such promise."""

    def read(self, position: int, length: int) -> bytes:
        """Bytes from `position`. Missing or unwritten bytes read as zeros; short only at a known end. `MediumUnreadable`."""

    def write(self, position: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another. Nothing is durable until `flush`."""

    def flush(self) -> None:
        """Make everything written durable. Where it fails, every later one fails, and every one that overlaps it: what is lost
        may be any writer's."""

    def trim(self, before: int) -> None:
        """The medium may forget every byte below `before`, a multiple of `period`."""

    def truncate(self, position: int, dirty_end: int | None = None) -> None:
        """Durable on return: nothing at or after `position` reads as anything but zeros.

        `dirty_end`: nothing from there on can be taken for an entry. A ring overwrites no more than that, and must be told;
        others need not be.
        """

    def prezero(self, position: int, until: int) -> None:
        """Nothing in `[position, until)` reads as anything but zeros afterwards. Durable with the next flush."""

    def reach(self, low: int) -> int:
        """A position from which on nothing has been written, given that nothing below `low` is of interest."""

    def probe(self, low: int) -> int:
        """`reach` without looking at everything: looks forward from `low` to the first whole period that is empty, which
        a writer keeps ahead of itself. What lies behind that, left by an older writer, is not seen."""

    def lowest(self) -> int:
        """A position below which nothing is kept. A ring cannot say, and answers `start`."""

    def read_heads(self) -> list[bytes]:
        """The bytes of every head slot; `b""` or zeros where none was written, `UNREADABLE` where one cannot be read."""

    def write_head(self, slot: int, data: bytes) -> None:
        """Write a head copy. Durable after `flush`."""

    def describe(self) -> dict[str, int]:
        """Fields of the head that name the geometry: any of `capacity`, `unit`, `stripe_count`, `object_size`."""


@runtime_checkable
class FencingMedium(Protocol):
    """A medium on which one writer can shut out another."""

    @property
    def epoch(self) -> int:
        """The epoch this medium's writes are tagged with."""

    def fence(self, floor: int) -> None:
        """Raise the floor of the heads and of every object of the log, those to come included, to `floor`.

        Afterwards a write tagged with a lower epoch is neither visible nor durable, whatever was in flight.
        """

    def read_fenced(self, position: int, length: int, floor: int) -> bytes:
        """`read`, raising the floor of every object touched in the same step as its bytes are read."""


class Region(Protocol):
    """A fixed range of a device: all that a ring needs."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. `MediumUnreadable` where the device does not give them."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None: ...

    def flush(self) -> None:
        """As that of `Medium`."""


class ObjectIO(Protocol):
    """Named objects of bytes: all that a striped medium needs of an object store.

    An implementation is bound to one writer's epoch and raises `JournalFenced` where the store refuses it. A missing
    object is None from `stat`, `b""` from `read`; to remove or truncate it is no error.
    """

    @property
    def epoch(self) -> int: ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of the object, short at its end; `b""` when there is no such object."""

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        """Create the object where needed and write. Visible on return, durable after `flush`."""

    def truncate(self, name: str, size: int) -> None:
        """Cut the object to `size` where it is longer. Durable after `flush`."""

    def remove(self, name: str) -> None:
        """Remove the object if it is there. Durable after `flush`."""

    def stat(self, name: str) -> int | None:
        """Size in bytes, or None."""

    def list_names(self, prefix: str) -> Iterable[str]:
        """Names of all objects that begin with `prefix`, in any order."""

    def flush(self) -> None:
        """Make everything this writer has written, and everything it has read, durable: a writer that takes over goes on
        from what it read, so that must not vanish, whoever wrote it. For a write taken before the floor rose it may end
        well, since the new writer reads that, or raise `JournalFenced`."""

    def set_floor(self, prefix: str, floor: int) -> None:
        """Raise the floor of every object, present or to come, whose name begins with `prefix`. Durable on return.

        `JournalFenced` when the floor is higher already.
        """

    def set_floor_and_read(self, name: str, floor: int, offset: int, length: int) -> bytes:
        """Atomically raise the object's floor and read. Durable on return; `JournalFenced` when it is higher already."""
