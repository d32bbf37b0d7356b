"""Advisory locks of the model in memory: `Locking`, for one session."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from mdstore.mds.locks import FileLocks, Lock


class MemoryLocks:
    """What `MemoryVfs` inherits. `ino_of` tells the inode of an open file, EBADF."""

    def __init__(self, ino_of: Callable[[int], int]) -> None:
        self._ino_of = ino_of
        self.locks = FileLocks()

    def test_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> Lock | None:
        return self.locks.table(flock=flock).conflict(*self._of(handle, wanted, flock=flock))

    def take_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> bool:
        return self.locks.acquire(*self._of(handle, wanted, flock=flock), flock=flock)

    def wait_for_lock(self, handle: int, wanted: Lock, granted: Callable[[], None], *, flock: bool = False) -> Hashable:
        return self.locks.wait(*self._of(handle, wanted, flock=flock), granted, flock=flock)

    def cancel_lock(self, token: Hashable) -> bool:
        return self.locks.cancel(token)

    def drop_lock(self, handle: int, owner: int, start: int, end: int, *, flock: bool = False) -> None:
        self.locks.release(self._ino_of(handle), handle if flock else owner, start, end, flock=flock)

    def _of(self, handle: int, lock: Lock, *, flock: bool) -> tuple[int, Lock]:
        return self._ino_of(handle), lock._replace(owner=handle) if flock else lock
