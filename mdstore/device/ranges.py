"""Checks that every device makes the same way, and the loop that turns buffers into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Final

from mdstore.device.protocol import Buffer
from mdstore.errors import InvalidRequest, show_number

SIZE_MAX: Final = (1 << 63) - 1  # of a file: off_t


def size_of(buffer: Buffer) -> int:
    """Bytes in a buffer (`len` of a memoryview counts items, not bytes). TypeError for what is none, or is not in one piece."""
    if type(buffer) is bytes or type(buffer) is bytearray:
        return len(buffer)
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise TypeError("a device writes buffers that are in one piece")
    return view.nbytes


def check_range(name: str, size_bytes: int, offset: int, length: int) -> None:
    """`InvalidRequest` unless `0 <= offset` and `offset + length <= size_bytes`; TypeError unless both are whole numbers."""
    if type(offset) is not int or type(length) is not int:
        offset, length = index(offset), index(length)
    if offset < 0 or length < 0 or offset + length > size_bytes:
        asked = f"{show_number(offset)}+{show_number(length)}"
        raise InvalidRequest(f"{name}: bytes {asked} are outside the device of {size_bytes} bytes")


def check_growth(name: str, size_bytes: int, wanted_bytes: int) -> None:
    """Raise `InvalidRequest` unless the new size is at least the old one: devices grow, they never shrink."""
    if check_size(name, wanted_bytes) < size_bytes:
        raise InvalidRequest(f"{name}: cannot shrink from {size_bytes} to {wanted_bytes} bytes")


def check_size(name: str, size_bytes: int) -> int:
    """The size as a plain number. Raise `InvalidRequest` unless a file can have it, TypeError when it is no whole number."""
    size = index(size_bytes)
    if not 0 <= size <= SIZE_MAX:
        raise InvalidRequest(f"{name}: a size of {show_number(size)} bytes makes no sense")
    return size


def positioned(offset: int, buffers: Sequence[Buffer]) -> Iterator[tuple[int, Buffer]]:
    """Each buffer with the offset at which it lands."""
    for buffer in buffers:
        yield offset, buffer
        offset += size_of(buffer)
