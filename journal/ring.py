"""A log in a ring of device blocks (docs/format/journal.md, "Ring").

Block 0 and block 1 of the region are the head slots; the body is the rest. Position `p` lies at body offset
`p % body_size`, and the log begins at position `body_size`, so the lap of a position is `p // body_size`, from 1.
Bytes of an earlier lap are never cleared: an entry says its own position, so one left over from an earlier lap, or from
another log in the same place, is never taken for an entry of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from journal.errors import MediumUnreadable
from journal.head import COPIES, HEAD_SIZE, UNREADABLE
from journal.medium import Buffer, Region
from journal.pack import split_buffers

ZEROS_AT_ONCE = 1 << 20


class RingMedium:
    """The first two blocks of `region` hold the heads, the others the ring. Any thread may read; one writes."""

    prezero_periods = 0
    unit = 0

    def __init__(self, region: Region, *, block_size: int = 4096, name: str = "ring") -> None:
        if block_size < HEAD_SIZE:
            raise ValueError(f"block_size {block_size} is smaller than a head ({HEAD_SIZE} bytes)")
        body_blocks = region.size_bytes // block_size - COPIES
        if body_blocks < 2:
            raise ValueError(f"a ring needs {COPIES + 2} blocks of {block_size}, the region has {region.size_bytes} bytes")
        self.name = name
        self.period = block_size
        self.capacity = body_blocks * block_size
        self.start = self.capacity
        self._region = region
        self._block_size = block_size
        self._body = COPIES * block_size

    def read(self, position: int, length: int) -> bytes:
        offset = position % self.capacity
        length = min(length, self.capacity)
        first = min(length, self.capacity - offset)
        data = self._region.read(self._body + offset, first)
        if first == length:
            return data
        return data + self._region.read(self._body, length - first)

    def write(self, position: int, buffers: Sequence[Buffer]) -> None:
        offset = position % self.capacity
        room = self.capacity - offset
        total = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        assert total <= self.capacity, "a write longer than the ring"
        if total <= room:
            self._region.write(self._body + offset, buffers)
            return
        head, tail = split_buffers(buffers, room)
        self._region.write(self._body + offset, head)
        self._region.write(self._body, tail)

    def flush(self) -> None:
        self._region.flush()

    def trim(self, before: int) -> None:
        """Nothing to do: the room is taken again when the ring comes round."""

    def truncate(self, position: int, dirty_end: int | None = None) -> None:
        if dirty_end is None:
            raise ValueError("a ring must be told where to stop: behind the end lies its beginning")
        end = min(dirty_end, position + self.capacity)
        if end > position:
            self.prezero(position, end)
            self.flush()

    def prezero(self, position: int, until: int) -> None:
        while position < until:
            length = min(ZEROS_AT_ONCE, until - position, self.capacity)
            self.write(position, [bytes(length)])
            position += length

    def reach(self, low: int) -> int:
        return low + self.capacity

    def probe(self, low: int) -> int:
        return self.reach(low)

    def lowest(self) -> int:
        return self.start

    def read_heads(self) -> list[bytes]:
        return [self._head_copy(slot) for slot in range(COPIES)]

    def _head_copy(self, slot: int) -> bytes:
        try:
            return self._region.read(slot * self._block_size, self._block_size)
        except MediumUnreadable:
            return UNREADABLE

    def write_head(self, slot: int, data: bytes) -> None:
        self._region.write(slot * self._block_size, [data.ljust(self._block_size, b"\0")])

    def describe(self) -> dict[str, int]:
        return {"capacity": self.capacity}
