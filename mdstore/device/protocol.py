"""The device protocol: what a store needs of a medium, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Borrower(Protocol):
    """Whoever reads a device by its descriptor."""

    def close(self) -> None:
        """On return no read of the descriptor is under way, and none will be. In a forked child it waits for nobody: there is
        one thread."""


class Device(Protocol):
    """A fixed-size, randomly addressed medium of bytes.

    What the medium must do, for the store's promises to hold:

    * after `flush` returns, every write that had returned before it was called survives a crash;
    * without a flush, any subset of the writes since the last flush may survive, in any order, and a write may be torn
      at any boundary of `sector_size` bytes (a torn sector holds old bytes or new bytes, or a mix of both);
    * bytes that were not written do not change.

    All offsets and lengths are bytes. Errors: `DeviceFailed` (with the operation and the byte range) for whatever the
    operating system reports; `InvalidRequest` for a range outside the device; `ReadOnly` for a write to a device opened
    read-only. All methods may be called from any thread.

    A device of one's own defines all of them. One without a descriptor (`fileno` says -1) is read by `read` alone, and its `lend`
    is never called. One that wraps another, and changes what is read, has no descriptor, whatever the inner one has.
    """

    @property
    def name(self) -> str:
        """What a person calls it: the path, or `memory`."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def sector_size(self) -> int:
        """Bytes that a single write never tears inside of (512 where nothing better is known)."""

    @property
    def read_only(self) -> bool: ...

    def fileno(self) -> int:
        """A descriptor on which pread(2) gives the same bytes as `read`, or -1 where there is none. `close` closes it without
        asking: whoever reads it beside other threads has it lent."""

    def lend(self, borrower: Borrower) -> int:
        """`fileno`, to be kept: `close` calls `borrower.close` first, where that still exists. Called where `fileno` is not -1.
        A method of the class: one that `__getattr__` finds belongs to another device, whose bytes may be others."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; a range past the end is `InvalidRequest`, a short read of the medium `DeviceFailed`."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another, starting at `offset`. Nothing is durable until `flush`."""

    def flush(self) -> None:
        """Make every write that has returned durable. After a failed flush every later write and flush fails, and every flush
        that overlaps it."""

    def discard(self, offset: int, length: int) -> None:
        """Give the range's space back where the medium can (punch, trim); it reads as zeros afterwards."""

    def resize(self, size_bytes: int) -> None:
        """Grow a file or memory device; a block device refuses with `InvalidRequest`. The new size is durable on
        return (other writes are not); `NoSpace` leaves the old one in force. Shrinking is `InvalidRequest`."""

    def close(self) -> None:
        """Release it. Further calls raise `StoreClosed`. Closing does not flush."""


def lends(device: Device) -> bool:
    """Whether the device has a descriptor, which is had by `lend`. TypeError where it has one, and its class has no `lend`."""
    if device.fileno() < 0:
        return False
    if not hasattr(type(device), "lend"):
        kind = type(device).__qualname__
        raise TypeError(
            f"a device with a descriptor lends it, and {kind} has no method `lend` of its own: "
            "define it as mdstore.device.protocol says, or have `fileno` return -1"
        )
    return True
