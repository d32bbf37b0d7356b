"""setattr and access: who may change what of an inode, and what follows from it."""

from __future__ import annotations

import errno
import stat

from mdstore.errors import PosixError
from mdstore.limits import FILE_SIZE_MAX
from mdstore.mds import acl
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.core import Core
from mdstore.mds.events import Kind
from mdstore.mds.filedata import FileData
from mdstore.mds.handles import Handles
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.permissions import W, allowed, in_group, require, require_owner
from mdstore.mds.quota import Quota
from mdstore.mds.vfs import NOW, ROOT_INO, Credentials, SetAttr


class Attributes:
    """The operations. The caller holds the core's lock."""

    def __init__(
        self, core: Core, cache: Cache, data: FileData, changes: Changes, handles: Handles, quota: Quota
    ) -> None:
        self._core = core
        self._cache = cache
        self._data = data
        self._changes = changes
        self._handles = handles
        self._quota = quota

    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Inode:
        """Change what `change` names, all or nothing. EPERM, EACCES, EISDIR, EINVAL, EFBIG, EDQUOT."""
        node = self._cache.node(ino)
        self._check(cred, node, change)
        now = self._core.clock()
        only_size = change.size is not None and change._replace(size=None, handle=None) == SetAttr()
        if not only_size:
            self._data.publish_with_others(node)
        if change.size is not None:
            self._data.truncate(node, change.size, now, last=only_size, drops_set_id=cred.uid != 0)
        if only_size:
            return node
        self._core.unlogged = True
        self._apply_owner(cred, node, change)
        if change.size is not None and cred.uid:
            node.drop_set_id()
        self._apply_times(node, change, now)
        self._core.append(Kind.SETATTR, self._changes.inode(node, now))
        self._changes.backtrace_later(node)
        return node

    def _check(self, cred: Credentials, node: Inode, change: SetAttr) -> None:
        if change.mode is not None:
            require_owner(node, cred)
            if node.mode >> 12 == 10:
                raise PosixError(errno.EOPNOTSUPP, node.ino, "a symbolic link has no mode of its own")
            acl.check_kept(node)
        if cred.uid:
            self._check_owner_change(cred, node, change)
        if change.size is not None:
            self._check_size(cred, node, change.size, change.handle)
        for moment in (change.atime_ns, change.mtime_ns):
            if moment is None or cred.uid in (0, node.uid):
                continue
            if moment != NOW:
                raise PosixError(errno.EPERM, node.ino)
            if not allowed(node, cred, W) and (change.size is None or change.handle is None):
                raise PosixError(errno.EACCES, node.ino)
        if change.ctime_ns is not None and cred.uid:
            raise PosixError(errno.EPERM, node.ino, "only the superuser sets the change time")

    def _check_owner_change(self, cred: Credentials, node: Inode, change: SetAttr) -> None:
        owner = cred.uid == node.uid
        if change.uid is not None and not (owner and change.uid == node.uid):
            raise PosixError(errno.EPERM, node.ino)
        if change.gid is not None and not (owner and (change.gid == node.gid or in_group(cred, change.gid))):
            raise PosixError(errno.EPERM, node.ino)

    def _check_size(self, cred: Credentials, node: Inode, size: int, handle: int | None) -> None:
        kind = node.mode >> 12
        if kind == 4:
            raise PosixError(errno.EISDIR, node.ino)
        if kind != 8 or size < 0:
            raise PosixError(errno.EINVAL, node.ino)
        if size > FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, node.ino)
        if handle is None:
            require(node, cred, W)
        elif not self._handles.file(handle).writable:
            raise PosixError(errno.EINVAL, node.ino, "the handle is not open for writing")
        if self._quota.any and size > node.size:
            self._quota.check(self._quota_directory(node), space=size - node.size)

    def _quota_directory(self, node: Inode) -> Directory:
        return self._cache.directory(node.home or ROOT_INO)

    def _apply_owner(self, cred: Credentials, node: Inode, change: SetAttr) -> None:
        if change.uid is not None or change.gid is not None:
            if not node.is_directory:
                node.drop_set_id()
            node.uid = node.uid if change.uid is None else change.uid
            node.gid = node.gid if change.gid is None else change.gid
        if change.mode is not None:
            mode = change.mode & 0o7777
            if cred.uid and not in_group(cred, node.gid):
                mode &= ~stat.S_ISGID
            node.mode = stat.S_IFMT(node.mode) | mode
            acl.follow_mode(node)

    @staticmethod
    def _apply_times(node: Inode, change: SetAttr, now: int) -> None:
        if change.atime_ns is not None:
            node.atime = now if change.atime_ns == NOW else change.atime_ns
        if change.mtime_ns is not None:
            node.mtime = now if change.mtime_ns == NOW else change.mtime_ns
        node.ctime = now if change.ctime_ns is None or change.ctime_ns == NOW else change.ctime_ns

    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        """EACCES unless every bit of `mask` (R_OK 4, W_OK 2, X_OK 1) is granted; 0 asks whether the inode is there."""
        node = self._cache.node(ino)
        if mask & ~7:
            raise PosixError(errno.EINVAL, ino)
        if mask and not allowed(node, cred, mask):
            raise PosixError(errno.EACCES, ino)
