"""Checks that every device makes the same way, and the loop that turns buffers into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mdstore.device.protocol import Buffer
from mdstore.errors import InvalidRequest


def size_of(buffer: Buffer) -> int:
    """Bytes in a buffer (`len` of a memoryview counts items, not bytes)."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def check_range(name: str, size_bytes: int, offset: int, length: int) -> None:
    """Raise `InvalidRequest` unless `0 <= offset` and `offset + length <= size_bytes`."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise InvalidRequest(f"{name}: bytes {offset}+{length} are outside the device of {size_bytes} bytes")


def check_growth(name: str, size_bytes: int, wanted_bytes: int) -> None:
    """Raise `InvalidRequest` unless the new size is at least the old one: devices grow, they never shrink."""
    if wanted_bytes < size_bytes:
        raise InvalidRequest(f"{name}: cannot shrink from {size_bytes} to {wanted_bytes} bytes")


def positioned(offset: int, buffers: Sequence[Buffer]) -> Iterator[tuple[int, Buffer]]:
    """Each buffer with the offset at which it lands."""
    for buffer in buffers:
        yield offset, buffer
        offset += size_of(buffer)
