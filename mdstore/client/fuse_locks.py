"""FUSE operations on locks, over a name space that keeps them: POSIX record locks and flock(2).

They are only served where a mount asks for it (`locks=server`): with one kernel in front of the name space, the kernel's own
lock tables are as right, and spare a message per close. A blocking lock costs no thread here: its request is answered when
the lock is granted, or with EINTR when the kernel interrupts it.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable

from mdstore.client.fuse_operation import Operation, OperationTable, Reply
from mdstore.client.fuse_protocol import FLUSH_IN, INTERRUPT_IN, LK_FLOCK, LK_IN, LK_OUT, Opcode
from mdstore.mds.locks import RANGE_END, Lock
from mdstore.mds.vfs import Credentials, Locking

Answer = Callable[[int, "bytes | int"], None]


class LockOperations:
    """Runs in the loop's thread only, but for what grants a lock: that may be any. `answer(unique, payload or errno)` completes a
    request that was left waiting. flock(2) locks end with their handle, in the name space.

    What waits is known to the name space alone, by the request's number, and it decides between a grant and an interrupt: nothing
    is kept here that a grant in another thread could miss."""

    def __init__(self, vfs: Locking, answer: Answer) -> None:
        self._vfs = vfs
        self._answer = answer

    def table(self) -> OperationTable:
        return {
            Opcode.GETLK: Operation(self.getlk),
            Opcode.SETLK: Operation(self.setlk),
            Opcode.SETLKW: Operation(self.setlkw),
            Opcode.FLUSH: Operation(self.flush),
            Opcode.INTERRUPT: Operation(self.interrupt),
        }

    def getlk(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, wanted, _, flock = _decode(body)
        found = self._vfs.test_lock(handle, wanted, flock=flock)
        if found is None:
            return LK_OUT.pack(wanted.start, wanted.end, fcntl.F_UNLCK, 0)
        return LK_OUT.pack(found.start, found.end, fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK, found.pid)

    def setlk(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, wanted, kind, flock = _decode(body)
        if kind == fcntl.F_UNLCK:
            self._vfs.drop_lock(handle, wanted.owner, wanted.start, wanted.end, flock=flock)
            return b""
        return b"" if self._vfs.take_lock(handle, wanted, flock=flock) else errno.EAGAIN

    def setlkw(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, wanted, kind, flock = _decode(body)
        if kind == fcntl.F_UNLCK:
            return self.setlk(unique, nodeid, cred, body)
        held = self._vfs.wait_for_lock(handle, wanted, (self, unique), lambda: self._answer(unique, b""), flock=flock)
        return b"" if held else None

    def flush(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        """close(2) of any descriptor gives back all POSIX locks its process holds on the file."""
        handle, owner = FLUSH_IN.unpack_from(body)
        self._vfs.drop_lock(handle, owner, 0, RANGE_END)
        return b""

    def interrupt(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (waiting,) = INTERRUPT_IN.unpack_from(body)
        if self._vfs.cancel_lock((self, waiting)):
            self._answer(waiting, errno.EINTR)
        return None


def _decode(body: memoryview) -> tuple[int, Lock, int, bool]:
    """(handle, lock, F_RDLCK or F_WRLCK or F_UNLCK, whether it is flock's)."""
    handle, owner, start, end, kind, pid, flags = LK_IN.unpack_from(body)
    return handle, Lock(owner, start, min(end, RANGE_END), kind == fcntl.F_WRLCK, pid), kind, bool(flags & LK_FLOCK)
