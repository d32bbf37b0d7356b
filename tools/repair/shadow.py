"""A device over another one that never writes to it: changes are kept aside, in order, and read back from there.

A plan is made by carrying it out here. What comes of it can then be checked as a whole before a byte of the image changes, and
the same writes, in the same order with the same flushes between them, are what is done to the image.

Invariants
1. `_units[n]`, where there is one, says where in the spool the present content of unit `n` lies, whole.
2. `_writes` has every write in the order it was made, None for a flush; each names whole units (the last may be short).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Final

from mdstore.device.protocol import Borrower, Buffer, Device
from mdstore.device.ranges import check_range
from mdstore.errors import InvalidRequest, NoSpace

UNIT: Final = 4096
SPOOL_BYTES: Final = 64 << 20  # of changes kept in memory; more go to a nameless temporary file


class NoRoomForPlan(NoSpace):
    """The changes do not fit the folder for temporary files. The image is untouched; name a folder with more room in TMPDIR."""

    def __init__(self, folder: str, cause: OSError) -> None:
        why = cause.strerror or str(cause)
        super().__init__(f"the plan of the repair does not fit {folder} ({why}): name a folder with more room in TMPDIR")


class Shadow:
    """`base` with changes that only this object knows. Memory: some 100 bytes for each 4 KiB changed, and `SPOOL_BYTES`; what
    changes beyond that is in a temporary file. Any thread may call. `base` is neither written nor closed."""

    def __init__(self, base: Device) -> None:
        self.base = base
        self._spool = tempfile.SpooledTemporaryFile(SPOOL_BYTES, prefix="mdstore-repair-")  # noqa: SIM115 (closed by `drop`)
        self._end = 0
        self._units: dict[int, int] = {}
        self._writes: list[tuple[int, int, int] | None] = []
        self._lock = Lock()

    # -- the device protocol -------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        return self.base.name

    @property
    def size_bytes(self) -> int:
        return self.base.size_bytes

    @property
    def sector_size(self) -> int:
        return self.base.sector_size

    @property
    def read_only(self) -> bool:
        return False

    def fileno(self) -> int:
        """None: pread(2) would not see the changes."""
        return -1

    def lend(self, borrower: Borrower) -> int:
        return -1

    def read(self, offset: int, length: int) -> bytes:
        """As it would be after the changes."""
        check_range(self.name, self.size_bytes, offset, length)
        with self._lock:
            return self._read(offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        units = range(offset // UNIT, -(-(offset + length) // UNIT))
        if not any(unit in self._units for unit in units):
            return self.base.read(offset, length)
        data = b"".join(map(self._unit, units))
        start = offset - units.start * UNIT
        return data[start : start + length]

    def _unit(self, unit: int) -> bytes:
        size = min(UNIT, self.size_bytes - unit * UNIT)
        at = self._units.get(unit)
        if at is None:
            return self.base.read(unit * UNIT, size)
        self._spool.seek(at)
        return self._spool.read(size)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Remembered; the base does not change."""
        data = b"".join(buffers)
        check_range(self.name, self.size_bytes, offset, len(data))
        if not data:
            return
        with self._lock:
            self._write(offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        first, last = offset // UNIT, (offset + len(data) - 1) // UNIT
        behind = min((last + 1) * UNIT, self.size_bytes)  # a unit that is written whole need not be readable
        before = self._unit(first)[: offset - first * UNIT] if offset > first * UNIT else b""
        after = self._unit(last)[offset + len(data) - last * UNIT :] if offset + len(data) < behind else b""
        whole = before + data + after
        self._spooled(whole)
        for unit in range(first, last + 1):
            self._units[unit] = self._end + (unit - first) * UNIT
        self._writes.append((first * UNIT, len(whole), self._end))
        self._end += len(whole)

    def _spooled(self, data: bytes) -> None:
        try:
            self._spool.seek(self._end)
            self._spool.write(data)
        except OSError as error:
            raise NoRoomForPlan(tempfile.gettempdir(), error) from error

    def flush(self) -> None:
        """A mark among the writes."""
        with self._lock:
            if self._writes and self._writes[-1] is not None:
                self._writes.append(None)

    def discard(self, offset: int, length: int) -> None:
        """Zeros."""
        self.write(offset, [bytes(length)])

    def resize(self, size_bytes: int) -> None:
        raise InvalidRequest(f"{self.name}: a repair does not change the size of an image")

    def close(self) -> None:
        """Nothing: whoever repairs goes on after the engine has closed its device."""

    # -- what was done -------------------------------------------------------------------------------------------------
    @property
    def is_changed(self) -> bool:
        return bool(self._units)

    @property
    def changed_bytes(self) -> int:
        """Bytes of the image that differ or were written over with the same."""
        return len(self._units) * UNIT

    def changed_places(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of everything that was written over, in order, a unit each."""
        for unit in sorted(self._units):
            yield unit * UNIT, min(UNIT, self.size_bytes - unit * UNIT)

    def changes(self) -> Iterator[tuple[int, bytes] | None]:
        """The writes in order, (offset, bytes) each; None: everything before is durable before what follows."""
        for write in self._writes:
            if write is None:
                yield None
                continue
            offset, length, at = write
            self._spool.seek(at)
            yield offset, self._spool.read(length)

    def drop(self) -> None:
        """Give the temporary file back."""
        self._spool.close()
