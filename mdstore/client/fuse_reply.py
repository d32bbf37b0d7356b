"""Replies that carry attributes, and how long the kernel may keep them."""

from __future__ import annotations

import stat
from typing import Final, NamedTuple

from mdstore.client.fuse_protocol import ATTR_OUT, ENTRY_OUT
from mdstore.mds.vfs import Attr

NS_PER_S: Final = 1_000_000_000
BLOCK_SIZE: Final = 4096  # st_blksize: what a program should read and write at a time
_PRIVILEGED: Final = stat.S_ISUID | stat.S_ISGID


class CacheTimes(NamedTuple):
    """Seconds for which the kernel may answer by itself.

    Every change of a mounted name space goes through the one kernel, which keeps its own caches right, so these may be
    long; with other writers behind the same name space they must be short, or each change be notified.
    """

    entry_s: float = 3600.0
    attr_s: float = 3600.0
    negative_s: float = 3600.0  # for a name that is not there


class ReplyEncoder:
    """`entry_out` and `attr_out` with the cache times of one mount."""

    def __init__(self, times: CacheTimes) -> None:
        self._entry_s, self._entry_ns = _split(times.entry_s)
        self._attr_s, self._attr_ns = _split(times.attr_s)
        negative_s, negative_ns = _split(times.negative_s)
        self.negative = ENTRY_OUT.pack(0, 0, negative_s, 0, negative_ns, 0, *([0] * 16))

    def entry(self, attr: Attr) -> bytes:
        """A name's inode, for LOOKUP and everything that makes one. Attributes of a stand-in, which has no links, are not kept:
        using it asks again, and is told what is wrong."""
        ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, generation = attr
        atime_s, atime_ns = divmod(atime, NS_PER_S)
        mtime_s, mtime_ns = divmod(mtime, NS_PER_S)
        ctime_s, ctime_ns = divmod(ctime, NS_PER_S)
        asks_again = not nlink or (mode & _PRIVILEGED and stat.S_ISREG(mode))
        attr_s, attr_ns = (0, 0) if asks_again else (self._attr_s, self._attr_ns)
        return ENTRY_OUT.pack(
            ino, generation, self._entry_s, attr_s, self._entry_ns, attr_ns,
            ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
        )  # fmt: skip

    def attributes(self, attr: Attr) -> bytes:
        """An inode's attributes, for GETATTR and SETATTR.

        Those of a set-uid or set-gid file are never cached: a write by an ordinary user clears the bits behind the
        kernel's back, which it learns only by asking again.
        """
        ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _generation = attr
        atime_s, atime_ns = divmod(atime, NS_PER_S)
        mtime_s, mtime_ns = divmod(mtime, NS_PER_S)
        ctime_s, ctime_ns = divmod(ctime, NS_PER_S)
        attr_s, attr_ns = (0, 0) if mode & _PRIVILEGED and stat.S_ISREG(mode) else (self._attr_s, self._attr_ns)
        return ATTR_OUT.pack(
            attr_s, attr_ns,
            ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
        )  # fmt: skip


def time_ns(seconds: int, nanoseconds: int) -> int:
    """The protocol's pair of numbers as nanoseconds since 1970."""
    return seconds * NS_PER_S + nanoseconds


def _split(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, min(NS_PER_S - 1, round((seconds - whole) * NS_PER_S))
