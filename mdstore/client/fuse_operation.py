"""What an operation of the mount is: a function from a request to a reply, in a table by operation code."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from mdstore.client.fuse_protocol import Opcode
from mdstore.mds.vfs import Credentials


class _Slow:
    """The type of `SLOW`."""

    def __repr__(self) -> str:
        return "SLOW"


SLOW: Final = _Slow()  # a function's answer "this waits for the medium: call my `worker` in another thread"

Reply = bytes | int | None | _Slow
"""A payload; an errno; None: no reply, now or at all; or SLOW."""

Function = Callable[[int, int, Credentials, memoryview], Reply]
"""(unique, nodeid, credentials, body). The body is the session's buffer: valid until the function returns."""


class Operation(NamedTuple):
    """How one operation code is served.

    `function` runs in the loop's thread and must not wait for the medium. `worker` runs in another thread with a body of its
    own, after `function` has said SLOW. `undo(nodeid, reply)` takes back the references a reply handed out when the kernel
    no longer wants it, because the process was killed meanwhile.
    """

    function: Function
    worker: Function | None = None
    undo: Callable[[int, bytes], None] | None = None


OperationTable = dict[Opcode, Operation]


def always_slow(unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
    """The `function` of an operation that always goes to a worker."""
    return SLOW


def refused(number: int) -> Operation:
    """An operation that is always answered with that errno."""

    def refuse(unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        return number

    return Operation(refuse)


UNSUPPORTED: Final = refused(errno.ENOSYS)  # for most operations the kernel then never asks again


def refused_operations() -> OperationTable:
    """Operations that are known and not offered: BMAP and POLL fall back in the kernel, IOCTL is for other files,
    TMPFILE and STATX have fallbacks. FLUSH is wanted only by locks, INTERRUPT only by what waits for a lock; DESTROY says
    what the descriptor will say too."""
    table = dict.fromkeys((Opcode.BMAP, Opcode.POLL, Opcode.TMPFILE, Opcode.STATX, Opcode.FLUSH), UNSUPPORTED)
    table[Opcode.IOCTL] = refused(errno.ENOTTY)
    table[Opcode.DESTROY] = Operation(lambda unique, nodeid, cred, body: b"")
    table[Opcode.INTERRUPT] = table[Opcode.NOTIFY_REPLY] = Operation(lambda unique, nodeid, cred, body: None)
    return table
