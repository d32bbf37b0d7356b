"""A log in memory: for tests, for tools, and as the buffer of a log that is being rewritten."""

from __future__ import annotations

from collections.abc import Sequence

from journal.head import COPIES
from journal.medium import Buffer


class MemoryMedium:
    """Bytes in a bytearray; survives nothing but the object itself. Grows with the log, shrinks when trimmed."""

    prezero_periods = 0

    def __init__(self, *, start: int = 4096, unit: int = 0, period: int = 4096) -> None:
        self.name = "memory"
        self.start = start
        self.unit = unit
        self.period = period
        self.capacity = None
        self._base = start
        self._bytes = bytearray()
        self._heads = [b""] * COPIES

    def read(self, position: int, length: int) -> bytes:
        begin = position - self._base
        if begin < 0:
            return bytes(min(length, -begin)) + self.read(self._base, max(0, length + begin))
        return bytes(self._bytes[begin : begin + length])

    def write(self, position: int, buffers: Sequence[Buffer]) -> None:
        begin = position - self._base
        if begin > len(self._bytes):
            self._bytes.extend(bytes(begin - len(self._bytes)))
        for buffer in buffers:
            self._bytes[begin : begin + len(buffer)] = buffer
            begin += len(buffer)

    def flush(self) -> None:
        """Memory is as durable as it gets."""

    def trim(self, before: int) -> None:
        if before > self._base:
            del self._bytes[: before - self._base]
            self._base = before

    def truncate(self, position: int, dirty_end: int | None = None) -> None:
        del self._bytes[max(0, position - self._base) :]

    def prezero(self, position: int, until: int) -> None:
        del self._bytes[max(0, position - self._base) :]

    def reach(self, low: int) -> int:
        return max(low, self._base + len(self._bytes))

    def probe(self, low: int) -> int:
        return self.reach(low)

    def lowest(self) -> int:
        return self._base

    def read_heads(self) -> list[bytes]:
        return list(self._heads)

    def write_head(self, slot: int, data: bytes) -> None:
        self._heads[slot] = bytes(data)

    def describe(self) -> dict[str, int]:
        return {"unit": self.unit}
