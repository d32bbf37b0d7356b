"""A device in memory: for tests, for `mem:` engines, for scratch images."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Final

from mdstore.device.protocol import Borrower, Buffer
from mdstore.device.ranges import check_growth, check_range, check_size, positioned, size_of
from mdstore.errors import InvalidRequest, NoSpace, ReadOnly, StoreClosed

SECTOR_SIZE_DEFAULT: Final = 512


class MemoryDevice:
    """Bytes in one bytearray. Nothing is durable; `flush` has nothing to do and never fails.

    All methods may be called from any thread; one lock makes each of them atomic, which is more than the protocol asks.
    """

    def __init__(
        self,
        size_bytes: int,
        sector_size: int = SECTOR_SIZE_DEFAULT,
        name: str = "memory",
        *,
        read_only: bool = False,
    ) -> None:
        size = check_size(name, size_bytes)
        if check_size(name, sector_size) < 1:
            raise InvalidRequest(f"{name}: a device of {size} bytes in sectors of {sector_size} makes no sense")
        self._bytes = _zeros(name, size)
        self._sector_size = sector_size
        self._name = name
        self._read_only = read_only
        self._closed = False
        self._lock = Lock()

    @classmethod
    def from_bytes(
        cls,
        image: Buffer,
        sector_size: int = SECTOR_SIZE_DEFAULT,
        name: str = "memory",
        *,
        read_only: bool = False,
    ) -> MemoryDevice:
        """A device that holds a copy of `image`."""
        device = cls(0, sector_size, name, read_only=read_only)
        device._bytes = bytearray(memoryview(image))
        return device

    def image(self) -> bytes:
        """A copy of everything the device holds, closed or not."""
        with self._lock:
            return bytes(self._bytes)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return len(self._bytes)

    @property
    def sector_size(self) -> int:
        return self._sector_size

    @property
    def read_only(self) -> bool:
        return self._read_only

    def fileno(self) -> int:
        return -1

    def lend(self, borrower: Borrower) -> int:
        return -1

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._check_open()
            check_range(self._name, len(self._bytes), offset, length)
            return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._lock:
            self._check_writable()
            check_range(self._name, len(self._bytes), offset, sum(map(size_of, buffers)))
            for at, buffer in positioned(offset, buffers):
                self._bytes[at : at + size_of(buffer)] = bytes(buffer)

    def flush(self) -> None:
        with self._lock:
            self._check_open()

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            self._check_writable()
            check_range(self._name, len(self._bytes), offset, length)
            self._bytes[offset : offset + length] = bytes(length)

    def resize(self, size_bytes: int) -> None:
        with self._lock:
            self._check_writable()
            check_growth(self._name, len(self._bytes), size_bytes)
            self._bytes += _zeros(self._name, size_bytes - len(self._bytes))

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"{self._name} is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise ReadOnly(f"{self._name} is open read-only")


def _zeros(name: str, count: int) -> bytearray:
    try:
        return bytearray(count)
    except MemoryError:
        raise NoSpace(f"{name}: there is no memory for {count} bytes") from None
