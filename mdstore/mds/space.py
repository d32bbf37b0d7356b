"""Free space: what creates or writes is refused in time, so that what was answered can always be written back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from mdstore.errors import PosixError
from mdstore.mds.core import Core
from mdstore.mds.vfs import StatFs

BLOCK: Final = 4096
LOOK_EVERY: Final = 4 << 20  # bytes reserved between two looks at the store's statistics
EVENT_COST: Final = 2048  # what one change of the name space is taken to need, log and write-back together
FILE_COST: Final = 8192  # what a file's first bytes take beside their own number: a block begun, an object, a backtrace


class Space:
    """An estimate of free bytes, refreshed from the store as it is used up. The caller holds the core's lock."""

    def __init__(self, core: Core, settle: Callable[[], bool]) -> None:
        """`settle` removes files that wait for it and brings what is buffered and dirty into the store, so that its true size
        counts and not the estimate; False when there was nothing to do."""
        self._core = core
        self._settle = settle
        self._left = -1
        self._until_look = 0

    def reserve(self, size: int = EVENT_COST) -> None:
        """ENOSPC when `size` bytes more would touch what is kept back for the log and for write-back."""
        self._until_look -= size
        if self._until_look < 0:
            self.look()
        self._left -= size
        if self._left < 0:
            self._look_closely(size)
            self._left -= size

    def _look_closely(self, size: int) -> None:
        self.look()
        while self._left < size and self._settle():
            self.look()
        if self._left < size:
            raise PosixError(errno.ENOSPC)

    def look(self) -> None:
        """Ask the store what is free, less what is buffered, and what the log and write-back may need."""
        core = self._core
        numbers = core.store.statistics()
        free, kept_back = int(numbers["free_bytes"]), self._kept_back(int(numbers["size_bytes"]))
        held = core.buffered_bytes + FILE_COST * len(core.buffered) + EVENT_COST * core.changes
        self._left = free - kept_back - held
        self._until_look = min(LOOK_EVERY, max(BLOCK, self._left // 8))

    def _kept_back(self, size: int) -> int:
        """For the log up to its ceiling, and for the pages that write-back makes anew before the old ones are free."""
        return min(size >> 5, 64 << 20) + self._core.limits.log_bytes + 2 * self._core.server.log_object_size

    def statfs(self) -> StatFs:
        """What statvfs tells. The number of files has no limit of its own: free ones follow from free blocks."""
        numbers = self._core.store.statistics()
        blocks = int(numbers["size_bytes"]) // BLOCK
        free = max(0, int(numbers["free_bytes"]) - self._core.buffered_bytes) // BLOCK
        available = max(0, free - self._kept_back(int(numbers["size_bytes"])) // BLOCK)
        used = max(1, self._core.file_count())
        return StatFs(BLOCK, blocks, free, available, used + available, available, 255)
