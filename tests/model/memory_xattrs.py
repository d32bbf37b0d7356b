"""Extended attributes of the model in memory."""

from __future__ import annotations

import errno
import stat

from mdstore import limits
from mdstore.errors import PosixError
from mdstore.mds.vfs import XATTR_CREATE, XATTR_REPLACE, Credentials
from tests.model.memory_nodes import READ, WRITE, Node, require
from tests.model.memory_tree import MemoryTree


class MemoryXattrs(MemoryTree):
    """What `MemoryVfs` inherits. The caller locks."""

    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        node = self._node(ino)
        _check_xattr(node, cred, name, WRITE)
        if len(value) > limits.XATTR_VALUE_MAX:
            raise PosixError(errno.E2BIG, name)
        if flags & XATTR_CREATE and name in node.xattrs:
            raise PosixError(errno.EEXIST, name)
        if flags & XATTR_REPLACE and name not in node.xattrs:
            raise PosixError(errno.ENODATA, name)
        others = sum(len(key) + len(old) for key, old in node.xattrs.items() if key != name)
        if others + len(name) + len(value) > limits.XATTR_TOTAL_MAX:
            raise PosixError(errno.ENOSPC, name, "attributes are over their total")
        node.xattrs[name] = bytes(value)
        node.ctime_ns = self._clock()

    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        node = self._node(ino)
        _check_xattr(node, cred, name, READ)
        if name not in node.xattrs:
            raise PosixError(errno.ENODATA, name)
        return node.xattrs[name]

    def listxattr(self, ino: int) -> list[bytes]:
        return sorted(self._node(ino).xattrs)

    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None:
        node = self._node(ino)
        _check_xattr(node, cred, name, WRITE)
        if node.xattrs.pop(name, None) is None:
            raise PosixError(errno.ENODATA, name)
        node.ctime_ns = self._clock()


def _check_xattr(node: Node, cred: Credentials, name: bytes, mask: int) -> None:
    """Who may use which prefix: `user.` by the file's mode, on files and directories only; `trusted.` the superuser."""
    if not name or len(name) > limits.XATTR_NAME_MAX:
        raise PosixError(errno.ERANGE, name)
    if name.startswith(b"user."):
        if not (node.is_directory or stat.S_ISREG(node.mode)):
            raise PosixError(errno.EPERM if mask == WRITE else errno.ENODATA, name)
        if mask == WRITE and node.mode & stat.S_ISVTX and node.is_directory and cred.uid not in (0, node.uid):
            raise PosixError(errno.EPERM, name)
        require(node, cred, mask)
    elif name.startswith(b"trusted."):
        if cred.uid != 0:
            raise PosixError(errno.EPERM if mask == WRITE else errno.ENODATA, name)
    else:
        raise PosixError(errno.EOPNOTSUPP, name, "only user. and trusted. attributes are kept")
    if name in (b"user.", b"trusted."):
        raise PosixError(errno.EINVAL, name)
