"""Extended attributes: `user.`, `trusted.`, `security.`, POSIX access control lists, and what the server itself tells and takes
as `mdstore.*`."""

from __future__ import annotations

import errno
import stat
from contextlib import suppress
from typing import Final

from mdstore.errors import PosixError, TransactionError
from mdstore.limits import XATTR_NAME_MAX, XATTR_TOTAL_MAX, XATTR_VALUE_MAX
from mdstore.mds import acl
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.control import Control
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind
from mdstore.mds.filedata import FileData
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.permissions import R, W, in_group, require, require_owner
from mdstore.mds.quota import Allowance, Quota
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import XATTR_CREATE, XATTR_REPLACE, Credentials

DIRECTORY_TOTAL_MAX: Final = 48 << 10  # a directory's attributes live in the header of its object: ENOSPC
OWN: Final = b"mdstore."
SPACES: Final = (b"user.", b"trusted.", b"security.")
QUOTA_BYTES: Final = b"mdstore.quota.max_bytes"
QUOTA_FILES: Final = b"mdstore.quota.max_files"
REFUSALS: Final = 16  # files for which there is no room, before whoever asks for a statistic takes the whole store for full
STATISTICS_NAMES: Final = (b"mdstore.rbytes", b"mdstore.rfiles", b"mdstore.rsubdirs", b"mdstore.rentries", b"mdstore.rctime")


class Xattrs:
    """The operations. The caller holds the core's lock."""

    def __init__(
        self, core: Core, cache: Cache, data: FileData, changes: Changes, statistics: Statistics, quota: Quota,
        control: Control,
    ) -> None:  # fmt: skip
        self._core = core
        self._cache = cache
        self._data = data
        self._changes = changes
        self._statistics = statistics
        self._quota = quota
        self._control = control

    def get(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        """The value. ENODATA, EOPNOTSUPP (a name space nobody keeps), EINVAL (a name space alone), ERANGE, EPERM, EACCES."""
        node = self._cache.node(ino)
        if name.startswith(OWN):
            return self._control.read(cred, name) if self._control.is_ours(ino, name) else self._own(node, name)
        if name not in acl.NAMES:
            self._check_access(cred, node, name, R)
        value = (node.xattrs or {}).get(name)
        if value is None:
            raise PosixError(errno.ENODATA, name)
        return value

    def asks_server(self, ino: int, name: bytes) -> bool:
        """Whether setting it asks something of the server and is no change of the name space, see control.py."""
        return self._control.is_ours(ino, name)

    def set(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set one. EEXIST and ENODATA by `flags`, EINVAL, ERANGE, E2BIG, ENOSPC, EOPNOTSUPP, EPERM, EACCES."""
        node = self._cache.node(ino)
        if self._control.is_ours(ino, name):
            self._control.write(cred, name, value)
            return
        if name.startswith(OWN):
            self._set_quota(cred, node, name, value)
            return
        if name not in acl.NAMES:
            self._check_access(cred, node, name, W)
        if flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            raise PosixError(errno.EINVAL, name)
        present = node.xattrs is not None and name in node.xattrs
        if flags == XATTR_CREATE and present:
            raise PosixError(errno.EEXIST, name)
        if flags == XATTR_REPLACE and not present:
            raise PosixError(errno.ENODATA, name)
        if name in acl.NAMES:
            self._set_list(cred, node, name, value)
            return
        if len(value) > XATTR_VALUE_MAX:
            raise PosixError(errno.E2BIG, name)
        self._store(node, {**(node.xattrs or {}), name: value})

    def _set_list(self, cred: Credentials, node: Inode, name: bytes, value: bytes | None) -> None:
        """Set an access control list, or, with None, remove it: the mode follows. EPERM, EINVAL, EACCES, EOPNOTSUPP."""
        require_owner(node, cred)
        mode, xattrs = acl.changed(node, name, value)
        if name == acl.ACCESS and cred.uid and not in_group(cred, node.gid):
            mode &= ~stat.S_ISGID
        self._store(node, xattrs, mode)

    def remove(self, cred: Credentials, ino: int, name: bytes) -> None:
        """Remove one. ENODATA and what `set` refuses."""
        node = self._cache.node(ino)
        if name.startswith(OWN):
            self._set_quota(cred, node, name, b"0")
            return
        if name not in acl.NAMES:
            self._check_access(cred, node, name, W)
        if node.xattrs is None or name not in node.xattrs:
            raise PosixError(errno.ENODATA, name)
        if name in acl.NAMES:
            self._set_list(cred, node, name, None)
            return
        self._store(node, {key: value for key, value in node.xattrs.items() if key != name} or None)

    def names(self, ino: int) -> list[bytes]:
        """The names kept, in order; those of the server itself are not listed."""
        return sorted(self._cache.node(ino).xattrs or ())

    def _store(self, node: Inode, xattrs: dict[bytes, bytes] | None, mode: int | None = None) -> None:
        total = sum(len(key) + len(held) for key, held in (xattrs or {}).items())
        if total > (DIRECTORY_TOTAL_MAX if isinstance(node, Directory) else XATTR_TOTAL_MAX):
            raise PosixError(errno.ENOSPC, node.ino, "the inode's attributes are too large together")
        self._data.publish_with_others(node)
        now = self._core.clock()
        self._core.unlogged = True
        node.xattrs = xattrs
        if mode is not None:
            node.mode = mode
        node.ctime = now
        self._core.append(Kind.SETXATTR, self._changes.inode(node, now))
        self._changes.backtrace_later(node)

    def _check_access(self, cred: Credentials, node: Inode, name: bytes, mask: int) -> None:
        if not name or len(name) > XATTR_NAME_MAX:
            raise PosixError(errno.ERANGE, name)
        if name.startswith(b"user."):
            self._check_user(cred, node, mask)
        elif name.startswith(b"trusted."):
            if cred.uid:
                raise PosixError(errno.ENODATA if mask == R else errno.EPERM, name)
        elif name.startswith(b"security."):
            if mask == W and cred.uid:
                raise PosixError(errno.EPERM, name)
        else:
            raise PosixError(errno.EOPNOTSUPP, name, "kept are user., trusted., security. and access control lists")
        if name in SPACES:
            raise PosixError(errno.EINVAL, name, "a name space alone is no name")

    def _check_user(self, cred: Credentials, node: Inode, mask: int) -> None:
        if node.mode >> 12 not in (4, 8):
            raise PosixError(errno.ENODATA if mask == R else errno.EPERM, node.ino, "user. is for files and directories")
        if mask == W and isinstance(node, Directory) and node.mode & stat.S_ISVTX:
            require_owner(node, cred)
        require(node, cred, mask)

    # -- the server's own ----------------------------------------------------------------------------------------------

    def _own(self, node: Inode, name: bytes) -> bytes:
        if isinstance(node, Directory):
            if name in STATISTICS_NAMES:
                if self._core.is_writable():
                    with suppress(TransactionError, *UNREADABLE):  # what stays in a buffer is not counted yet
                        self._data.publish(list(self._core.buffered.values()), refusals=REFUSALS)
                    self._statistics.settle()
                return self._statistic(node, name)
            if name in (QUOTA_BYTES, QUOTA_FILES):
                limit = self._quota.get(node.ino)[name == QUOTA_FILES]
                if limit:
                    return b"%d" % limit
        raise PosixError(errno.ENODATA, name)

    def _statistic(self, node: Directory, name: bytes) -> bytes:
        if name == b"mdstore.rctime":
            return b"%d.%09d" % divmod(node.rctime, 1_000_000_000)
        numbers = (node.rbytes, node.rfiles, node.rdirs, node.rfiles + node.rdirs)
        return b"%d" % numbers[STATISTICS_NAMES.index(name)]

    def _set_quota(self, cred: Credentials, node: Inode, name: bytes, value: bytes) -> None:
        if name not in (QUOTA_BYTES, QUOTA_FILES):
            raise PosixError(errno.EPERM, name, "this is told, not set")
        if cred.uid:
            raise PosixError(errno.EPERM, name)
        if not isinstance(node, Directory):
            raise PosixError(errno.ENOTDIR, name)
        if not value.isdigit() or len(value) > 18:
            raise PosixError(errno.EINVAL, name, "a quota is a number")
        old = self._quota.get(node.ino)
        if name == QUOTA_BYTES:
            self._quota.grant(node.ino, Allowance(int(value), old.max_files))
        else:
            self._quota.grant(node.ino, Allowance(old.max_bytes, int(value)))
