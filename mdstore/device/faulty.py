"""A device that remembers every write and flush, and fails on request.

Invariants:

1. `log.operations` holds exactly what the medium accepted, in order: a write that failed is not in it, of a short write
   only what went through, a lost write or a lost flush never.
2. `log.base` plus `log.operations` gives the device's content.
3. Once crashed, every call raises `Crashed`; once failed for good (a sticky fault, a failed flush), every later write
   and flush raises `DeviceFailed`, as `FileDevice` does.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from threading import Lock
from typing import Final, Literal

from mdstore.device.crashlog import CrashLog, Flush, Resize, Rot, Write
from mdstore.device.images import PagedImage
from mdstore.device.memory import SECTOR_SIZE_DEFAULT
from mdstore.device.protocol import Borrower, Buffer
from mdstore.device.ranges import check_growth, check_range
from mdstore.errors import DeviceFailed, InvalidRequest, StoreClosed

OperationName = Literal["read", "write", "flush", "discard", "resize"]


class Crashed(BaseException):
    """The device stopped at its crash point. Not an `Exception`: no code under test may swallow it by accident."""


class Effect(Enum):
    """What goes wrong."""

    EIO = "EIO"  # the call raises DeviceFailed; nothing of it happened
    ENOSPC = "ENOSPC"  # the same, with the words of a full host file system
    SHORT = "short"  # a write: part of it reaches the medium, then DeviceFailed
    LOST = "lost"  # a write or flush: says it is done, and did nothing
    TOLD_ONCE = "told once"  # a flush: EIO, and those it overlaps say that all is well, as fdatasync(2) on one open file does
    FLIP = "flip"  # a read or write: one bit of the bytes is wrong
    CRASH = "crash"  # the call raises Crashed; nothing of it happened, and everything after it raises too


ALLOWED_EFFECTS: Final[dict[OperationName, set[Effect]]] = {
    "read": {Effect.EIO, Effect.FLIP, Effect.CRASH},
    "write": {Effect.EIO, Effect.ENOSPC, Effect.SHORT, Effect.LOST, Effect.FLIP, Effect.CRASH},
    "flush": {Effect.EIO, Effect.ENOSPC, Effect.LOST, Effect.TOLD_ONCE, Effect.CRASH},
    "discard": {Effect.EIO, Effect.LOST, Effect.CRASH},
    "resize": {Effect.EIO, Effect.ENOSPC, Effect.CRASH},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`effect` strikes the `nth` call (counted from 0, since the device was made) of `operation`.

    `sticky`: the device is broken from then on (EIO, ENOSPC, SHORT): every later write and flush fails as well.
    """

    operation: OperationName
    nth: int
    effect: Effect
    sticky: bool = False

    def __post_init__(self) -> None:
        if self.effect not in ALLOWED_EFFECTS[self.operation]:
            raise InvalidRequest(f"a {self.operation} cannot suffer {self.effect.value}")


class FaultyDevice:
    """A memory device for proofs. `seed` decides how much of a short write goes through and which bit flips.

    All methods may be called from any thread; calls are numbered in the order in which they got the lock.
    """

    def __init__(
        self,
        base: int | Buffer | PagedImage,
        seed: int = 0,
        *,
        sector_size: int = SECTOR_SIZE_DEFAULT,
        name: str = "faulty memory",
        faults: Iterable[Fault] = (),
    ) -> None:
        """`base`: a size in bytes (all zeros), or the bytes to start from; a `PagedImage` is shared, not changed."""
        self._image = _image_of(base)
        self._log = CrashLog(self._image.copy(), sector_size)
        self._seed = seed
        self._name = name
        self._faults = {(fault.operation, fault.nth): fault for fault in faults}
        self._calls: Counter[str] = Counter()
        self._crash_point: int | None = None
        self._crashed = False
        self._failed = False
        self._told_once = False
        self.during_flush: Callable[[], None] | None = None  # called once, inside the next flush: what overlaps it
        self._closed = False
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    @property
    def sector_size(self) -> int:
        return self._log.sector_size

    @property
    def read_only(self) -> bool:
        return False

    @property
    def log(self) -> CrashLog:
        """What the medium accepted so far. Shared: it grows while the device is used."""
        return self._log

    @property
    def point(self) -> int:
        """How many operations the log holds: the point a crash right now would be at."""
        return len(self._log.operations)

    @property
    def crashed(self) -> bool:
        return self._crashed

    def calls(self, operation: OperationName) -> int:
        """How often `operation` was called: what `Fault.nth` counts."""
        return self._calls[operation]

    def inject(self, fault: Fault) -> None:
        """Add a fault; one for the same call replaces it."""
        with self._lock:
            self._faults[fault.operation, fault.nth] = fault

    def crash_after(self, point: int) -> None:
        """Let `point` operations (writes, flushes, discards, resizes) be accepted; whatever comes next raises `Crashed`."""
        with self._lock:
            self._crash_point = point

    def flip_bit(self, offset: int, bit: int) -> None:
        """Rot: one bit of the medium changes, durably, and nothing reports it."""
        with self._lock:
            check_range(self._name, self.size_bytes, offset, 1)
            self._image.flip_bit(offset, bit)
            self._log.operations.append(Rot(offset, self._image.read(offset, 1)))

    def fileno(self) -> int:
        return -1

    def lend(self, borrower: Borrower) -> int:
        return -1

    def image(self) -> bytes:
        """A copy of the content as a reader sees it, durable or not; works after a crash and after `close`."""
        with self._lock:
            return self._image.to_bytes()

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            fault = self._enter("read", offset, length)
            data = self._image.read(offset, length)
            return self._flipped(data, fault) if fault is not None and length else data

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        with self._lock:
            fault = self._enter("write", offset, len(data))
            if fault is None:
                self._accept(offset, data)
            elif fault.effect is Effect.FLIP:
                self._accept(offset, self._flipped(data, fault) if data else data)
            elif fault.effect is Effect.SHORT:
                kept = self._random(fault).randrange(len(data)) if data else 0
                self._accept(offset, data[:kept])
                raise DeviceFailed("write", self._where(offset, len(data)), f"short write of {kept} bytes")

    def flush(self) -> None:
        with self._lock:
            fault = self._enter("flush", 0, 0)
            meanwhile, self.during_flush = self.during_flush, None
        if meanwhile is not None:
            meanwhile()
        with self._lock:
            self._stop_at_crash_point(None)
            if self._failed and not self._told_once:
                raise DeviceFailed("flush", self._where(0, 0), "the device failed meanwhile")
            if fault is None and not self._failed:
                self._log.operations.append(Flush())

    def discard(self, offset: int, length: int) -> None:
        """Logged as a write of zeros: until a flush, any part of it may have happened."""
        with self._lock:
            if self._enter("discard", offset, length) is None:
                self._accept(offset, bytes(length))

    def resize(self, size_bytes: int) -> None:
        with self._lock:
            check_growth(self._name, self._image.size_bytes, size_bytes)
            self._enter("resize", 0, 0)
            self._image.resize(size_bytes)
            self._log.operations.append(Resize(size_bytes))

    def close(self) -> None:
        with self._lock:
            if self._crashed:
                raise Crashed(f"{self._name} crashed")
            self._closed = True

    def _enter(self, operation: OperationName, offset: int, length: int) -> Fault | None:
        """Count the call and let it fail. A fault that is returned is for the caller to act out."""
        nth = self._calls[operation]
        fault = self._faults.get((operation, nth))
        self._stop_at_crash_point(fault)
        if self._closed:
            raise StoreClosed(f"{self._name} is closed")
        check_range(self._name, self._image.size_bytes, offset, length)
        self._calls[operation] += 1
        if self._failed and operation != "read":
            raise DeviceFailed(operation, self._where(offset, length), "the device failed before")
        if fault is None:
            return None
        self._failed |= fault.sticky or (operation == "flush" and fault.effect is not Effect.LOST)
        self._told_once |= fault.effect is Effect.TOLD_ONCE
        if fault.effect in (Effect.EIO, Effect.ENOSPC, Effect.TOLD_ONCE):
            number = errno.ENOSPC if fault.effect is Effect.ENOSPC else errno.EIO
            raise DeviceFailed(operation, self._where(offset, length), os.strerror(number))
        return fault

    def _stop_at_crash_point(self, fault: Fault | None) -> None:
        at_point = self._crash_point is not None and len(self._log.operations) >= self._crash_point
        if at_point or (fault is not None and fault.effect is Effect.CRASH):
            self._crashed = True
        if self._crashed:
            raise Crashed(f"{self._name} crashed after operation {len(self._log.operations)}")

    def _accept(self, offset: int, data: bytes) -> None:
        self._image.write(offset, data)
        self._log.operations.append(Write(offset, data))

    def _random(self, fault: Fault) -> Random:
        return Random(f"{self._seed}/{fault.operation}/{fault.nth}")

    def _flipped(self, data: bytes, fault: Fault) -> bytes:
        bit = self._random(fault).randrange(len(data) * 8)
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _where(self, offset: int, length: int) -> str:
        return f"{self._name} bytes {offset}+{length}"


def _image_of(base: int | Buffer | PagedImage) -> PagedImage:
    if isinstance(base, PagedImage):
        return base.copy()
    if isinstance(base, int):
        if base < 0:
            raise InvalidRequest(f"a device of {base} bytes makes no sense")
        return PagedImage(base)
    return PagedImage.from_bytes(base)
