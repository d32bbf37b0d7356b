"""Free space: what creates or writes is refused in time, so that what was answered can always be written back."""

from __future__ import annotations

import errno
from typing import Final

from mdstore.errors import PosixError
from mdstore.mds.core import Core
from mdstore.mds.vfs import StatFs

BLOCK: Final = 4096
LOOK_EVERY: Final = 4 << 20  # bytes reserved between two looks at the store's statistics
EVENT_COST: Final = 1024  # what one change of the name space is taken to need, log and write-back together


class Space:
    """An estimate of free bytes, refreshed from the store as it is used up. The caller holds the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._left = -1
        self._until_look = 0

    def reserve(self, size: int = EVENT_COST) -> None:
        """ENOSPC when `size` bytes more would touch what is kept back for the log and for write-back."""
        self._until_look -= size
        if self._until_look < 0:
            self.look()
        self._left -= size
        if self._left < 0:
            self.look()
            if self._left < size:
                raise PosixError(errno.ENOSPC)
            self._left -= size

    def look(self) -> None:
        """Ask the store what is free, less what is buffered and a fiftieth of the whole."""
        numbers = self._core.store.statistics()
        size, free = int(numbers["size_bytes"]), int(numbers["free_bytes"])
        kept_back = min(size // 50, 64 << 20)
        self._left = free - kept_back - self._core.buffered_bytes - 2 * EVENT_COST * self._core.changes
        self._until_look = min(LOOK_EVERY, max(BLOCK, self._left // 8))

    def statfs(self) -> StatFs:
        """What statvfs tells. The number of files has no limit of its own: free ones follow from free blocks."""
        numbers = self._core.store.statistics()
        blocks = int(numbers["size_bytes"]) // BLOCK
        free = max(0, int(numbers["free_bytes"]) - self._core.buffered_bytes) // BLOCK
        used = max(1, self._core.file_count())
        return StatFs(BLOCK, blocks, free, free, used + free, free, 255)
