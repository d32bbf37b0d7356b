"""`MemoryVfs`: the whole name space in dictionaries. The model that other implementations are compared with.

It implements `mdstore.mds.vfs.Vfs`, with the errno POSIX (and, where POSIX leaves room, Linux) gives for each case, and in
that order: the parent is there and a directory, may be searched, the name is legal, it exists or does not, the directory may
be written, the sticky rule, the types, emptiness. Nothing is durable. Every method takes one lock, so calls are atomic.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

from mdstore import limits
from mdstore.errors import PosixError
from mdstore.mds.vfs import (
    NOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Attr,
    Credentials,
    DirEntry,
    SetAttr,
    StatFs,
)
from tests.model.memory_file import SparseBytes
from tests.model.memory_locks import MemoryLocks
from tests.model.memory_nodes import (
    EXECUTE,
    READ,
    WRITE,
    Node,
    in_group,
    require,
    require_directory,
    require_owner,
    require_removable,
    without_privilege_bits,
)
from tests.model.memory_tree import MemoryTree, check_name
from tests.model.memory_xattrs import MemoryXattrs

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16


def _locked(
    method: Callable[Concatenate[MemoryVfs, Arguments], Result],
) -> Callable[Concatenate[MemoryVfs, Arguments], Result]:
    @wraps(method)
    def call(self: MemoryVfs, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast("Callable[Concatenate[MemoryVfs, Arguments], Result]", call)


class _Handle:
    __slots__ = ("append", "node", "readable", "superuser", "writable")

    def __init__(self, node: Node, flags: int, cred: Credentials) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.superuser = cred.uid == 0


class MemoryVfs(MemoryXattrs, MemoryLocks):
    """A name space that lives as long as the object. `clock` gives nanoseconds since 1970."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        MemoryTree.__init__(self, clock)
        MemoryLocks.__init__(self, lambda handle: self._open(handle).node.ino)
        self._lock = threading.RLock()
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1

    # -- names ---------------------------------------------------------------------------------------------------------
    @_locked
    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr:
        return self._referenced(self._child(self._searchable(cred, parent), name))

    @_locked
    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        directory = self._searchable(cred, parent)
        check_name(name)
        ino = directory.entries.get(name)
        if ino is None:
            node = self._add(cred, directory, name, stat.S_IFREG | mode & 0o7777)
            return self._referenced(node), self._handle(node, flags, cred)
        if flags & os.O_EXCL:
            raise PosixError(errno.EEXIST, name)
        handle = self.open(cred, ino, flags)
        return self._referenced(self._nodes[ino]), handle

    @_locked
    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr:
        directory = self._searchable(cred, parent)
        node = self._add(cred, directory, name, stat.S_IFDIR | mode & 0o1777 | directory.mode & stat.S_ISGID)
        return self._referenced(node)

    @_locked
    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise PosixError(errno.EINVAL, name, "not a type mknod makes")
        directory = self._room(cred, parent, name)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and cred.uid != 0:
            raise PosixError(errno.EPERM, name, "only the superuser makes devices")
        node = self._add(cred, directory, name, kind | mode & 0o7777)
        node.rdev = rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return self._referenced(node)

    @_locked
    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr:
        if not target:
            raise PosixError(errno.ENOENT, name, "an empty target")
        if len(target) > limits.SYMLINK_MAX:
            raise PosixError(errno.ENAMETOOLONG, name)
        node = self._add(cred, self._searchable(cred, parent), name, stat.S_IFLNK | 0o777)
        node.target = target
        return self._referenced(node)

    @_locked
    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr:
        node = self._node(ino)
        directory = self._room(cred, parent, name)
        if node.is_directory:
            raise PosixError(errno.EPERM, ino, "a directory has one name")
        if node.nlink == 0:
            raise PosixError(errno.ENOENT, ino, "it has no name left")
        if node.nlink >= limits.LINK_MAX:
            raise PosixError(errno.EMLINK, ino)
        self._attach(directory, name, node)
        node.ctime_ns = directory.mtime_ns
        return self._referenced(node)

    @_locked
    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        directory = self._searchable(cred, parent)
        node = self._child(directory, name)
        require_removable(directory, node, cred)
        if node.is_directory:
            raise PosixError(errno.EISDIR, name)
        self._detach(directory, name, node)

    @_locked
    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        directory = self._searchable(cred, parent)
        if name == b".":
            raise PosixError(errno.EINVAL, name)
        if name == b"..":
            raise PosixError(errno.ENOTEMPTY, name)
        node = self._child(directory, name)
        require_removable(directory, node, cred)
        require_directory(node)
        if node.entries:
            raise PosixError(errno.ENOTEMPTY, name)
        self._detach(directory, name, node)

    @_locked
    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise PosixError(errno.EINVAL, name, f"rename flags {flags:#x}")
        old, new = self._searchable(cred, parent), self._searchable(cred, new_parent)
        source = self._child(old, name)
        check_name(new_name)
        if new.nlink == 0:
            raise PosixError(errno.ENOENT, new_parent)
        target = self._nodes[new.entries[new_name]] if new_name in new.entries else None
        self._check_rename(source, target, old, new, flags)
        if source is target:
            return
        self._check_rename_rights(cred, source, target, old, new, flags)
        if flags == RENAME_EXCHANGE:
            assert target is not None
            self._exchange(old, name, source, new, new_name, target)
        else:
            self._move(old, name, source, new, new_name, target)

    def _check_rename(self, source: Node, target: Node | None, old: Node, new: Node, flags: int) -> None:
        """What makes a rename impossible whoever asks."""
        if target is None and flags == RENAME_EXCHANGE:
            raise PosixError(errno.ENOENT, source.ino, "nothing to exchange with")
        if target is not None and flags == RENAME_NOREPLACE:
            raise PosixError(errno.EEXIST, target.ino)
        if source.is_directory and self._is_within(new, source):
            raise PosixError(errno.EINVAL, source.ino, "a directory cannot move into itself")
        if target is not None and target.is_directory and self._is_within(old, target):
            raise PosixError(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY, target.ino)

    @staticmethod
    def _check_rename_rights(
        cred: Credentials, source: Node, target: Node | None, old: Node, new: Node, flags: int
    ) -> None:
        exchange = flags == RENAME_EXCHANGE
        require_removable(old, source, cred)
        if target is None:
            require(new, cred, WRITE | EXECUTE)
        else:
            require_removable(new, target, cred)
            if not exchange and source.is_directory != target.is_directory:
                raise PosixError(errno.ENOTDIR if source.is_directory else errno.EISDIR, target.ino)
        if old is not new:  # '..' of a directory that moves is changed
            if source.is_directory:
                require(source, cred, WRITE)
            if exchange and target is not None and target.is_directory:
                require(target, cred, WRITE)
        if not exchange and target is not None and target.entries:
            raise PosixError(errno.ENOTEMPTY, target.ino)

    # -- inodes --------------------------------------------------------------------------------------------------------
    @_locked
    def getattr(self, ino: int) -> Attr:
        return self._node(ino).attr()

    @_locked
    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        node = self._node(ino)
        self._check_setattr(cred, node, change)
        now = self._clock()
        if change.uid is not None or change.gid is not None:
            node.uid = node.uid if change.uid is None else change.uid
            node.gid = node.gid if change.gid is None else change.gid
            node.mode = without_privilege_bits(node.mode)
        if change.mode is not None:
            bits = change.mode & 0o7777
            if cred.uid != 0 and not in_group(cred, node.gid):
                bits &= ~stat.S_ISGID
            node.mode = stat.S_IFMT(node.mode) | bits
        if change.size is not None:
            self._truncate(node, change.size, superuser=cred.uid == 0)
        if change.atime_ns is not None:
            node.atime_ns = now if change.atime_ns == NOW else change.atime_ns
        if change.mtime_ns is not None:
            node.mtime_ns = now if change.mtime_ns == NOW else change.mtime_ns
        node.ctime_ns = now if change.ctime_ns is None else change.ctime_ns
        return node.attr()

    def _check_setattr(self, cred: Credentials, node: Node, change: SetAttr) -> None:
        if change.mode is not None:
            require_owner(node, cred)
            if stat.S_ISLNK(node.mode):
                raise PosixError(errno.EOPNOTSUPP, node.ino, "a symlink has no mode of its own")
        if cred.uid != 0:
            if change.uid is not None and (cred.uid != node.uid or change.uid != node.uid):
                raise PosixError(errno.EPERM, node.ino, "only the superuser gives files away")
            if change.gid is not None and (
                cred.uid != node.uid or not (change.gid == node.gid or in_group(cred, change.gid))
            ):
                raise PosixError(errno.EPERM, node.ino, "only the owner, and only to a group of its own")
        if change.size is not None:
            self._check_truncate(cred, node, change.size, change.handle)
        for time_ns in (change.atime_ns, change.mtime_ns):
            if time_ns == NOW and cred.uid != node.uid:
                require(node, cred, WRITE)
            elif time_ns is not None:
                require_owner(node, cred)

    def _check_truncate(self, cred: Credentials, node: Node, size: int, handle: int | None) -> None:
        if node.is_directory:
            raise PosixError(errno.EISDIR, node.ino)
        if node.data is None or size < 0:
            raise PosixError(errno.EINVAL, node.ino)
        if handle is None:
            require(node, cred, WRITE)
        elif not self._open(handle).writable:
            raise PosixError(errno.EINVAL, node.ino, "the handle is not open for writing")
        if size > limits.FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, node.ino)

    @_locked
    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        require(self._node(ino), cred, mask)

    @_locked
    def readlink(self, ino: int) -> bytes:
        node = self._node(ino)
        if not stat.S_ISLNK(node.mode):
            raise PosixError(errno.EINVAL, ino, "not a symlink")
        return node.target

    setxattr = _locked(MemoryXattrs.setxattr)
    getxattr = _locked(MemoryXattrs.getxattr)
    listxattr = _locked(MemoryXattrs.listxattr)
    removexattr = _locked(MemoryXattrs.removexattr)

    @_locked
    def forget(self, ino: int, lookups: int) -> None:
        node = self._nodes.get(ino)
        if node is not None:
            assert node.lookups >= lookups, f"inode {ino}: {lookups} forgotten of {node.lookups}"
            node.lookups -= lookups
            self._drop_if_unused(node)

    # -- files ---------------------------------------------------------------------------------------------------------
    @_locked
    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        node = self._node(ino)
        if stat.S_ISLNK(node.mode):
            raise PosixError(errno.ELOOP, ino)
        truncate = flags & os.O_TRUNC
        wanted = (READ, WRITE, READ | WRITE, READ | WRITE)[flags & os.O_ACCMODE] | (WRITE if truncate else 0)
        if node.is_directory and wanted & WRITE:
            raise PosixError(errno.EISDIR, ino)
        require(node, cred, wanted)
        if truncate and node.data is not None:
            self._truncate(node, 0, superuser=cred.uid == 0)
        return self._handle(node, flags, cred)

    @_locked
    def read(self, handle: int, offset: int, length: int) -> bytes:
        opened = self._open(handle)
        if not opened.readable:
            raise PosixError(errno.EBADF, handle, "not open for reading")
        node, data = opened.node, _regular(opened.node)
        if node.atime_ns <= max(node.mtime_ns, node.ctime_ns):  # as relatime mounts do
            node.atime_ns = self._clock()
        return data.read(offset, length)

    def read_cached(self, handle: int, offset: int, length: int) -> bytes | None:
        """As `read`, or None where that would wait for the medium; here it never does."""
        return self.read(handle, offset, length)

    @_locked
    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        opened = self._open(handle)
        if not opened.writable:
            raise PosixError(errno.EBADF, handle, "not open for writing")
        content = _regular(opened.node)
        if opened.append:
            offset = content.size
        if offset + len(data) > limits.FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, opened.node.ino)
        content.write(offset, data)
        if data:
            self._data_changed(opened.node, superuser=opened.superuser)
        return len(data)

    @_locked
    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        self._open(handle)

    @_locked
    def release(self, handle: int) -> None:
        node = self._open(handle).node
        self.locks.close(node.ino, 0, handle)
        del self._handles[handle]
        node.opens -= 1
        self._drop_if_unused(node)

    @_locked
    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        opened = self._open(handle)
        if not opened.writable:
            raise PosixError(errno.EBADF, handle, "not open for writing")
        node, data = opened.node, _regular(opened.node)
        if offset < 0 or length <= 0:
            raise PosixError(errno.EINVAL, node.ino)
        if mode not in (
            0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE,
            FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
        ):  # fmt: skip
            raise PosixError(errno.EOPNOTSUPP, node.ino, f"fallocate mode {mode:#x}")
        if offset + length > limits.FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, node.ino)
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            data.punch(offset, length)
        if not mode & FALLOC_KEEP_SIZE and offset + length > data.size:
            data.resize(offset + length)
        if not mode & FALLOC_PUNCH_HOLE:
            data.allocate(offset, min(length, max(0, data.size - offset)))
        self._data_changed(node, superuser=opened.superuser)

    @_locked
    def lseek(self, handle: int, offset: int, whence: int) -> int:
        return _regular(self._open(handle).node).seek(offset, whence)

    @_locked
    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        data = self.read(source, source_offset, length)
        node = self._open(target).node
        if (
            self._open(source).node is node
            and source_offset < target_offset + len(data)
            and (target_offset < source_offset + len(data))
        ):
            raise PosixError(errno.EINVAL, node.ino, "the ranges overlap")
        return self.write(target, target_offset, data)

    # -- directories ---------------------------------------------------------------------------------------------------
    @_locked
    def opendir(self, cred: Credentials, ino: int) -> int:
        node = self._node(ino)
        require_directory(node)
        require(node, cred, READ)
        return self._handle(node, os.O_RDONLY, cred)

    @_locked
    def readdir(self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False) -> list[DirEntry]:
        directory = self._open(handle).node
        require_directory(directory)
        result: list[DirEntry] = []
        for name in directory.entries.irange(after, inclusive=(False, True)):
            if len(result) == limit:
                break
            node = self._nodes[directory.entries[name]]
            node.lookups += count_lookups
            result.append(DirEntry(name, node.attr()))
        return result

    @_locked
    def parent_of(self, ino: int) -> int:
        node = self._node(ino)
        require_directory(node)
        return node.parent

    @_locked
    def releasedir(self, handle: int) -> None:
        self.release(handle)

    # -- whole ---------------------------------------------------------------------------------------------------------
    @_locked
    def statfs(self) -> StatFs:
        blocks = 1 << 28
        used = sum(node.data.allocated for node in self._nodes.values() if node.data is not None) // 4096
        return StatFs(
            4096, blocks, blocks - used, blocks - used, 1 << 40, (1 << 40) - len(self._nodes), limits.NAME_MAX
        )

    def syncfs(self) -> None:
        """Nothing: memory is as durable as it gets."""

    def close(self) -> None:
        """Nothing is kept elsewhere."""

    @_locked
    def assert_state(self) -> None:
        """Check the invariants of `MemoryTree`."""
        super().assert_state()

    # -- beneath -------------------------------------------------------------------------------------------------------
    def _truncate(self, node: Node, size: int, *, superuser: bool) -> None:
        _regular(node).resize(size)
        self._data_changed(node, superuser=superuser)

    def _data_changed(self, node: Node, *, superuser: bool) -> None:
        node.mtime_ns = node.ctime_ns = self._clock()
        if not superuser:
            node.mode = without_privilege_bits(node.mode)

    def _handle(self, node: Node, flags: int, cred: Credentials) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = _Handle(node, flags, cred)
        node.opens += 1
        return number

    def _open(self, handle: int) -> _Handle:
        opened = self._handles.get(handle)
        if opened is None:
            raise PosixError(errno.EBADF, handle)
        return opened

def _regular(node: Node) -> SparseBytes:
    if node.data is None:
        raise PosixError(errno.EISDIR if node.is_directory else errno.EINVAL, node.ino)
    return node.data
