"""Entries that were appended and not yet handed to the medium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crc32c import crc32c

from journal._framing import GLUED, Framer
from journal.entry import HEADER_SIZE, PAD_TYPE, log_and_generation
from journal.medium import Buffer

Taken = tuple[int, int, int, list[Buffer]]  # where it begins and ends, the sequence of what follows, the bytes
SMALL: Final = 1 << 15  # buffers below this are joined before they are handed to the medium


class Packer(Framer):
    """Frames entries and keeps them until `take`. The journal's lock guards it, except for `add_at_once`.

    K1  the buffers hold exactly the bytes of `[taken, position)`
    K2  `sequence` is that of the entry that will begin at `position`
    K3  nothing is added at once beyond `limit`, nor what would make more than `hold_back` bytes of buffers: whoever needs
        the packer to stand still holds the lock and has closed it
    """

    __slots__ = ("first_sequence", "generation", "log", "pads", "unit")

    def __init__(self, log: int, generation: int, sequence: int, position: int, unit: int) -> None:
        super().__init__(log_and_generation(log, generation), sequence, position)
        self.log = log
        self.generation = generation
        self.first_sequence = sequence
        self.unit = unit  # 0: entries follow one another without pads
        self.pads = 0  # that were entries

    def still(self) -> Still:
        """With the lock held: nothing is added at once meanwhile."""
        return Still(self)

    def padding(self, length: int) -> int:
        """Bytes of padding that an entry with a payload of `length` needs in front of it."""
        room = self.unit - self.position % self.unit if self.unit else 0
        return room if HEADER_SIZE + length > room and room != self.unit else 0

    def add_parts(self, parts: Sequence[Buffer], length: int, crc: int, type_: int) -> int:
        """Append an entry whose payload is several buffers; returns its end."""
        if length < GLUED:
            return self.add(b"".join(parts), length, crc, type_)
        before = self.position
        try:
            self.add(b"", length, crc, type_)
        finally:  # an interrupt behind the call would leave a header without its payload
            if self.position != before:
                self.buffers[-1:] = parts
        return self.position

    def add_many(self, payloads: Sequence[bytes], type_: int) -> int:
        """Append an entry for each payload; returns the end of the last."""
        if self.unit:
            for payload in payloads:
                self.pad(self.padding(len(payload)))
                self.add(payload, len(payload), crc32c(payload), type_)
            return self.position
        return self.add_joined(payloads, type_)

    def pad(self, size: int) -> None:
        """Fill `size` bytes: with a pad entry where one fits, with zeros where not."""
        if size >= HEADER_SIZE:
            fill = bytes(size - HEADER_SIZE)
            self.add(fill, len(fill), crc32c(fill), PAD_TYPE)
            self.pads += 1
        elif size:
            self.buffers.append(bytes(size))
            self.position += size

    def take_to(self, stop: int, into: list[Taken]) -> None:
        """With the lock held: move everything below `stop` into `into`; what lies behind stays. Interrupted it may be in both."""
        with self.still():
            taken, left = split_buffers(self.buffers, stop - self.taken)
            into.append((self.taken, stop, 0, taken))
            self.buffers, self.taken = left, stop

    def restart(self, position: int, sequence: int) -> None:
        """Go on from an earlier entry boundary; nothing has been added yet."""
        assert not self.buffers, "entries were added behind it"
        self.position = self.taken = position
        self.sequence = self.first_sequence = sequence

    def assert_state(self) -> None:
        """With the lock held: check the invariants."""
        with self.still():
            assert sum(map(len, self.buffers)) == self.position - self.taken, "K1"

    @property
    def appended(self) -> int:
        """Entries so far, pads not counted."""
        return self.sequence - self.first_sequence - self.pads


class Still:
    """See `Packer.still`. No generator: one that an interrupt leaves behind restores the limit when it is freed, whenever that
    is, without the lock and over whatever closed the packer meanwhile."""

    __slots__ = ("_limit", "_pack")

    def __init__(self, pack: Packer) -> None:
        self._pack = pack

    def __enter__(self) -> None:
        self._limit, self._pack.limit = self._pack.limit, 0

    def __exit__(self, *_: object) -> None:
        self._pack.limit = self._limit


def split_buffers(buffers: Sequence[Buffer], room: int) -> tuple[list[Buffer], list[Buffer]]:
    """The same bytes as two lists, the first `room` bytes long."""
    for index, buffer in enumerate(buffers):
        if len(buffer) > room:
            view = memoryview(buffer)
            return [*buffers[:index], view[:room]], [view[room:], *buffers[index + 1 :]]
        room -= len(buffer)
    return list(buffers), []


def join_small(buffers: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes in fewer buffers: runs of small ones joined, large ones as they are."""
    if len(buffers) == 1:
        return list(buffers)
    if max(map(len, buffers), default=0) < SMALL:
        return [b"".join(buffers)]
    joined: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < SMALL:
            run.append(buffer)
        else:
            joined += [b"".join(run), buffer]
            run = []
    if run:
        joined.append(b"".join(run))
    return [buffer for buffer in joined if len(buffer)]


def own(payload: Buffer | Sequence[Buffer]) -> tuple[list[Buffer], int, int]:
    """The parts of a payload as bytes nobody else can change, their total length, and their checksum. TypeError for what is no
    buffer: `bytes(3)` would be three zeros."""
    given = [payload] if isinstance(payload, bytes | bytearray | memoryview) else payload
    parts: list[Buffer] = [part if isinstance(part, bytes) else bytes(memoryview(part)) for part in given]
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return parts, sum(map(len, parts)), crc


def own_each(payloads: Sequence[Buffer]) -> list[bytes]:
    """Several payloads, each as bytes nobody else can change. TypeError for what is no buffer, and for one buffer alone."""
    if isinstance(payloads, (bytes, bytearray, memoryview)):
        raise TypeError("several payloads are wanted, not one")
    return [payload if isinstance(payload, bytes) else bytes(memoryview(payload)) for payload in payloads]
