"""Reading `.snap`: the snapshots of a directory, in pages behind a name."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.snapshots import Snapshots
from mdstore.mds.vfs import Attr, DirEntry, unreadable

GONE: Final = (errno.ENOENT, errno.ESTALE)
TYPE_DIRECTORY: Final = 4


class SnapshotLists:
    """The open handles of `.snap` directories. `look(directory, name)` tells what stat says of a snapshot, ENOENT or ESTALE for
    one that was deleted. Safe to call from many threads."""

    def __init__(self, snapshots: Snapshots, look: Callable[[int, bytes], Attr]) -> None:
        self._snapshots = snapshots
        self._look = look
        self._open: dict[int, int] = {}  # the directory, by handle
        self._next = 1
        self._lock = threading.Lock()

    def open(self, directory: int) -> int:
        """A handle, of a number that is not used again."""
        with self._lock:
            number = self._next
            self._next = number + 1
            self._open[number] = directory
        return number

    def close(self, number: int) -> None:
        """EBADF."""
        with self._lock:
            if self._open.pop(number, None) is None:
                raise PosixError(errno.EBADF, number)

    def page(self, number: int, after: bytes | None, limit: int) -> list[DirEntry]:
        """Up to `limit` snapshots behind `after`. One that is deleted meanwhile is left out; one that cannot be opened hides none
        beside it: it is listed as `unreadable`. EBADF, EINVAL."""
        directory = self._open.get(number)
        if directory is None:
            raise PosixError(errno.EBADF, number)
        if limit <= 0:
            raise PosixError(errno.EINVAL, number)
        page: list[DirEntry] = []
        for found in self._snapshots.of(directory):
            if len(page) == limit:
                break
            if after is None or found.name > after:
                page += self._entry(directory, found.name)
        return page

    def _entry(self, directory: int, name: bytes) -> list[DirEntry]:
        try:
            return [DirEntry(name, self._look(directory, name))]
        except MdstoreError as error:
            if isinstance(error, PosixError) and error.errno in GONE:
                return []
            return [DirEntry(name, unreadable(TYPE_DIRECTORY))]
