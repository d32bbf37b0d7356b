"""FUSE operations on locks, over two `LockTable`s: POSIX record locks and flock(2).

They are only served where a mount asks for it (`locks=server`): with one kernel in front of the name space, the kernel's own
lock tables are as right, and spare a message per close. A blocking lock costs no thread here: its request is answered when
the lock is granted, or with EINTR when the kernel interrupts it.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Hashable

from mdstore.client.fuse_operation import Operation, OperationTable, Reply
from mdstore.client.fuse_protocol import (
    FLUSH_IN,
    INTERRUPT_IN,
    LK_FLOCK,
    LK_IN,
    LK_OUT,
    RELEASE_FLOCK_UNLOCK,
    RELEASE_IN,
    Opcode,
)
from mdstore.mds.locks import RANGE_END, Lock, LockTable
from mdstore.mds.vfs import Credentials

Answer = Callable[[int, "bytes | int"], None]


class LockOperations:
    """Runs in the loop's thread only. `answer(unique, payload or errno)` completes a request that was left waiting."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._posix = LockTable()
        self._flock = LockTable(detects_deadlock=False)

    def table(self, release: Operation) -> OperationTable:
        """Takes the file operations' RELEASE, to which the end of flock locks is added."""

        def release_with_locks(unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
            _, _, flags, owner = RELEASE_IN.unpack_from(body)
            if flags & RELEASE_FLOCK_UNLOCK:
                self._release(self._flock, nodeid, owner)
            return release.function(unique, nodeid, cred, body)

        return {
            Opcode.GETLK: Operation(self.getlk),
            Opcode.SETLK: Operation(self.setlk),
            Opcode.SETLKW: Operation(self.setlkw),
            Opcode.FLUSH: Operation(self.flush),
            Opcode.RELEASE: Operation(release_with_locks),
            Opcode.INTERRUPT: Operation(self.interrupt),
        }

    def getlk(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        table, wanted, kind = self._decode(body)
        found = table.conflict(nodeid, wanted)
        if found is None:
            return LK_OUT.pack(wanted.start, wanted.end, fcntl.F_UNLCK, 0)
        kind = fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK
        return LK_OUT.pack(found.start, found.end, kind, found.pid)

    def setlk(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        table, wanted, kind = self._decode(body)
        if kind == fcntl.F_UNLCK:
            self._release(table, nodeid, wanted.owner, wanted.start, wanted.end)
            return b""
        if table.acquire(nodeid, wanted) is not None:
            return errno.EAGAIN
        self._wake(table, nodeid)
        return b""

    def setlkw(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        reply = self.setlk(unique, nodeid, cred, body)
        if reply != errno.EAGAIN:
            return reply
        table, wanted, _kind = self._decode(body)
        table.wait(nodeid, wanted, unique)
        return None

    def flush(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        """close(2) of any descriptor gives back all POSIX locks its process holds on the file."""
        _handle, owner = FLUSH_IN.unpack_from(body)
        self._release(self._posix, nodeid, owner)
        return b""

    def interrupt(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (waiting,) = INTERRUPT_IN.unpack_from(body)
        if self._posix.cancel(waiting) or self._flock.cancel(waiting):
            self._answer(waiting, errno.EINTR)
        return None

    def _decode(self, body: memoryview) -> tuple[LockTable, Lock, int]:
        _handle, owner, start, end, kind, pid, flags = LK_IN.unpack_from(body)
        wanted = Lock(owner, start, min(end, RANGE_END), kind == fcntl.F_WRLCK, pid)
        return (self._flock if flags & LK_FLOCK else self._posix), wanted, kind

    def _release(self, table: LockTable, ino: int, owner: int, start: int = 0, end: int = RANGE_END) -> None:
        table.release(ino, owner, start, end)
        self._wake(table, ino)

    def _wake(self, table: LockTable, ino: int) -> None:
        token: Hashable
        for token in table.wake(ino):
            assert isinstance(token, int)
            self._answer(token, b"")
