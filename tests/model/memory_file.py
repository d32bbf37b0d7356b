"""The bytes of one file of the model: sparse pages in a dictionary."""

from __future__ import annotations

import errno

from mdstore.errors import PosixError

PAGE = 4096
SEEK_DATA = 3
SEEK_HOLE = 4


class SparseBytes:
    """A byte string with holes. Holes come in whole pages; what was never written reads as zeros.

    Invariants: 1. no page lies wholly past `size`; 2. the bytes of the last page past `size` are zero.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pages: dict[int, bytearray] = {}

    @property
    def allocated(self) -> int:
        """Bytes of pages that exist."""
        return len(self._pages) * PAGE

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; short at the end, empty past it."""
        length = max(0, min(length, self.size - offset))
        result = bytearray(length)
        for index, start, stop, place in _pages(offset, length):
            page = self._pages.get(index)
            if page is not None:
                result[place : place + stop - start] = page[start:stop]
        return bytes(result)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Replace or add bytes; a gap before `offset` becomes a hole."""
        length = len(data)
        for index, start, stop, place in _pages(offset, length):
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray(PAGE)
            page[start:stop] = data[place : place + stop - start]
        if length:
            self.size = max(self.size, offset + length)

    def resize(self, size: int) -> None:
        """Cut or extend with a hole. Cut bytes never come back."""
        if size < self.size:
            self.punch(size, self.size - size)
            first_dead = -(-size // PAGE)
            for index in [index for index in self._pages if index >= first_dead]:
                del self._pages[index]
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Make a range read as zeros; whole pages of it become holes. The size stays."""
        length = max(0, min(length, self.size - offset))
        for index, start, stop, _place in _pages(offset, length):
            page = self._pages.get(index)
            if page is None:
                continue
            if start == 0 and (stop == PAGE or index * PAGE + stop >= self.size):
                del self._pages[index]
            else:
                page[start:stop] = bytes(stop - start)

    def allocate(self, offset: int, length: int) -> None:
        """Pages for the whole range, zeros where there was nothing. The size stays."""
        for index, _start, _stop, _place in _pages(offset, length):
            if index not in self._pages:
                self._pages[index] = bytearray(PAGE)

    def seek(self, offset: int, whence: int) -> int:
        """SEEK_DATA: the first byte of data at or after `offset`; SEEK_HOLE: the first of a hole (the end is one)."""
        if offset < 0 or offset >= self.size:
            raise PosixError(errno.ENXIO, reason="past the end")
        index = offset // PAGE
        if whence == SEEK_HOLE:
            while index in self._pages:
                index += 1
            return min(max(offset, index * PAGE), self.size)
        later = [other for other in self._pages if other >= index and other * PAGE < self.size]
        if not later:
            raise PosixError(errno.ENXIO, reason="no data from here on")
        return max(offset, min(later) * PAGE)


def _pages(offset: int, length: int) -> list[tuple[int, int, int, int]]:
    """The pages a range touches: (page index, first byte, byte after the last, place within the range)."""
    pieces = []
    place = 0
    while place < length:
        index, start = divmod(offset + place, PAGE)
        stop = min(PAGE, start + length - place)
        pieces.append((index, start, stop, place))
        place += stop - start
    return pieces
