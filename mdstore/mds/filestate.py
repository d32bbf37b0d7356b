"""Bytes of a file that were written and are not in the store yet.

Invariants

 B1  extents are in order and neither overlap nor touch; `_starts[i]` is the offset of `_pieces[i]`
 B2  `size_bytes` is the sum of the lengths of the pieces
"""

from __future__ import annotations

from bisect import bisect_right


class WriteBuffer:
    """Sparse bytes in memory. Appending to what was written last costs a copy of the new bytes and nothing else."""

    __slots__ = ("_pieces", "_starts", "size_bytes")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[bytearray] = []
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._starts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put bytes over whatever is there."""
        if not len(data):
            return
        starts, pieces = self._starts, self._pieces
        if starts and starts[-1] + len(pieces[-1]) == offset:
            pieces[-1] += data
            self.size_bytes += len(data)
            return
        end = offset + len(data)
        low, high = self._touching(offset, end)
        if low == high:
            starts.insert(low, offset)
            pieces.insert(low, bytearray(data))
            self.size_bytes += len(data)
            return
        self._merge(low, high, offset, data)

    def _merge(self, low: int, high: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Pieces `low` to `high` overlap or touch the new bytes: make one of all."""
        starts, pieces = self._starts, self._pieces
        begin = min(starts[low], offset)
        last_end = starts[high - 1] + len(pieces[high - 1])
        end = offset + len(data)
        if high - low == 1 and begin == starts[low]:
            merged = pieces[low]
        else:
            merged = bytearray(max(end, last_end) - begin)
            for start, piece in zip(starts[low:high], pieces[low:high]):
                merged[start - begin : start - begin + len(piece)] = piece
        before = sum(len(piece) for piece in pieces[low:high])
        merged[offset - begin : end - begin] = data
        starts[low:high] = [begin]
        pieces[low:high] = [merged]
        self.size_bytes += len(merged) - before

    def _touching(self, offset: int, end: int) -> tuple[int, int]:
        """The range of pieces that overlap or touch `[offset, end)`."""
        starts, pieces = self._starts, self._pieces
        low = bisect_right(starts, offset)
        if low and starts[low - 1] + len(pieces[low - 1]) >= offset:
            low -= 1
        return low, max(low, bisect_right(starts, end))

    def over(self, offset: int, base: bytes) -> bytes:
        """`base`, the stored bytes from `offset`, with the buffered bytes on top."""
        end = offset + len(base)
        low, high = self._touching(offset, end)
        if low == high:
            return base
        merged = bytearray(base)
        for start, piece in zip(self._starts[low:high], self._pieces[low:high]):
            first, last = max(start, offset), min(start + len(piece), end)
            if first < last:
                merged[first - offset : last - offset] = memoryview(piece)[first - start : last - start]
        return bytes(merged)

    def covers(self, offset: int, end: int) -> bool:
        """Whether every byte of `[offset, end)` is here."""
        if offset >= end:
            return True
        at = bisect_right(self._starts, offset) - 1
        return at >= 0 and self._starts[at] + len(self._pieces[at]) >= end

    def truncate(self, size: int) -> None:
        """Forget everything at or past `size`."""
        while self._starts and self._starts[-1] >= size:
            self._starts.pop()
            self.size_bytes -= len(self._pieces.pop())
        if self._starts:
            excess = self._starts[-1] + len(self._pieces[-1]) - size
            if excess > 0:
                del self._pieces[-1][-excess:]
                self.size_bytes -= excess

    def extents(self) -> list[tuple[int, bytearray]]:
        """What is buffered, in order. The pieces belong to the buffer."""
        return list(zip(self._starts, self._pieces))

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._pieces.clear()
        self.size_bytes = 0


class FileState:
    """What is known of a regular file while it is open or has buffered bytes."""

    __slots__ = ("backtraced", "buffer", "published", "since", "times_changed")

    def __init__(self, size: int) -> None:
        self.buffer = WriteBuffer()
        self.published = size  # the size that the last event said
        self.since = 0  # when the oldest buffered byte was written, in nanoseconds
        self.backtraced = False
        self.times_changed = False  # the access time moved; journaled when the file is closed
