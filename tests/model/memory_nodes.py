"""Inodes of the model and the rules of permission over them, as POSIX and Linux state them."""

from __future__ import annotations

import errno
import stat

from sortedcontainers import SortedDict

from mdstore.errors import PosixError
from mdstore.mds.vfs import Attr, Credentials
from tests.model.memory_file import SparseBytes

READ, WRITE, EXECUTE = 4, 2, 1


class Node:
    """One inode. `entries` is there for directories, `data` for regular files, `target` for symlinks."""

    __slots__ = (
        "atime_ns", "ctime_ns", "data", "entries", "generation", "gid", "ino", "lookups", "mode", "mtime_ns", "nlink",
        "opens", "parent", "rdev", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now_ns: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.nlink = 0
        self.rdev = 0
        self.generation = 1
        self.atime_ns = self.mtime_ns = self.ctime_ns = now_ns
        self.lookups = 0
        self.opens = 0
        self.parent = 0  # directories only
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.entries: SortedDict = SortedDict() if stat.S_ISDIR(mode) else None
        self.data = SparseBytes() if stat.S_ISREG(mode) else None

    @property
    def is_directory(self) -> bool:
        return self.entries is not None

    @property
    def size(self) -> int:
        if self.data is not None:
            return self.data.size
        return len(self.entries) if self.entries is not None else len(self.target)

    def attr(self) -> Attr:
        blocks = -(-self.data.allocated // 512) if self.data is not None else 0
        return Attr(
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size, blocks,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.generation,
        )  # fmt: skip


def in_group(cred: Credentials, gid: int) -> bool:
    return cred.gid == gid or gid in cred.groups


def permitted(node: Node, cred: Credentials, mask: int) -> bool:
    """Whether `mask` (READ | WRITE | EXECUTE) is allowed; one class of the mode counts: owner, group or others."""
    if cred.uid == 0:
        return node.is_directory or not mask & EXECUTE or bool(node.mode & 0o111)
    if cred.uid == node.uid:
        bits = node.mode >> 6
    elif in_group(cred, node.gid):
        bits = node.mode >> 3
    else:
        bits = node.mode
    return mask & ~(bits & 7) == 0


def require(node: Node, cred: Credentials, mask: int) -> None:
    if not permitted(node, cred, mask):
        raise PosixError(errno.EACCES, node.ino)


def require_owner(node: Node, cred: Credentials) -> None:
    if cred.uid not in (0, node.uid):
        raise PosixError(errno.EPERM, node.ino, "only the owner may")


def require_directory(node: Node) -> None:
    if not node.is_directory:
        raise PosixError(errno.ENOTDIR, node.ino)


def require_removable(parent: Node, child: Node, cred: Credentials) -> None:
    """Write permission on the directory, and in a sticky one ownership of the directory or of the child."""
    require(parent, cred, WRITE | EXECUTE)
    if parent.mode & stat.S_ISVTX and cred.uid not in (0, child.uid, parent.uid):
        raise PosixError(errno.EPERM, child.ino, "the directory is sticky and neither it nor the entry is yours")


def without_privilege_bits(mode: int) -> int:
    """What a write, truncation or change of owner leaves of a file's mode: no set-uid, no effective set-gid."""
    if not stat.S_ISREG(mode):
        return mode
    cleared = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    return mode & ~cleared
