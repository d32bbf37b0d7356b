"""Advisory locks of the model in memory: `Locking`, for one session."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from mdstore.mds.locks import RANGE_END, FileLocks, Lock, of_session


class MemoryLocks:
    """What `MemoryVfs` inherits. `ino_of` tells the inode of an open file, EBADF."""

    def __init__(self, ino_of: Callable[[int], int]) -> None:
        self._ino_of = ino_of
        self.locks = FileLocks()

    def test_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> Lock | None:
        return self.locks.table(flock=flock).conflict(*self._of(handle, wanted, flock=flock))

    def take_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> bool:
        return self.locks.acquire(*self._of(handle, wanted, flock=flock), flock=flock)

    def wait_for_lock(
        self, handle: int, wanted: Lock, token: Hashable, granted: Callable[[], None], *, flock: bool = False
    ) -> bool:
        return self.locks.wait(*self._of(handle, wanted, flock=flock), token, granted, flock=flock)

    def cancel_lock(self, token: Hashable) -> bool:
        return self.locks.cancel(0, token)

    def drop_lock(self, handle: int, owner: int, start: int, end: int, *, flock: bool = False) -> None:
        ino, lock = self._of(handle, Lock(owner, start, end, exclusive=False), flock=flock)
        self.locks.release(ino, lock.owner, lock.start, lock.end, flock=flock)

    def _of(self, handle: int, lock: Lock, *, flock: bool) -> tuple[int, Lock]:
        if flock:
            lock = Lock(handle, 0, RANGE_END, lock.exclusive, lock.pid)
        return self._ino_of(handle), of_session(0, lock)
