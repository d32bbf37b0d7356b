"""Open, read, write, close."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from mdstore.errors import PosixError, TransactionError
from mdstore.limits import FILE_SIZE_MAX
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind
from mdstore.mds.filedata import FileData, Wanted
from mdstore.mds.handles import FileHandle, Handles
from mdstore.mds.inode import Inode
from mdstore.mds.permissions import R, W, require
from mdstore.mds.purge import Purge
from mdstore.mds.quota import Quota
from mdstore.mds.space import FILE_COST, Space
from mdstore.mds.vfs import ROOT_INO, Credentials

KEEP_SIZE: Final = 1  # fallocate(2)
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16
FALLOCATE_MODES: Final = frozenset({0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE})
COPY_BYTES: Final = 8 << 20
RELATIME_NS: Final = 24 * 3600 * 1_000_000_000  # an access time older than that moves with every read


class Files:
    """The operations on open files. The caller holds the core's lock."""

    def __init__(
        self, core: Core, cache: Cache, data: FileData, changes: Changes, handles: Handles, purge: Purge, quota: Quota,
        space: Space,
    ) -> None:  # fmt: skip
        self._core = core
        self._cache = cache
        self._data = data
        self._changes = changes
        self._handles = handles
        self._purge = purge
        self._quota = quota
        self._space = space

    def open(self, cred: Credentials, node: Inode, flags: int) -> int:
        """A handle. EACCES, EISDIR (a directory to be written), ELOOP (a symbolic link). O_TRUNC empties the file."""
        access = flags & os.O_ACCMODE
        kind = node.mode >> 12
        if kind == 4 and (access != os.O_RDONLY or flags & os.O_TRUNC):
            raise PosixError(errno.EISDIR, node.ino)
        if kind == 10:
            raise PosixError(errno.ELOOP, node.ino)
        if cred.uid:
            wanted = (R, W, R | W, R | W)[access] | (W if flags & os.O_TRUNC else 0)
            require(node, cred, wanted)
        if flags & os.O_TRUNC and kind == 8:
            self._core.assert_writable()
            self._data.truncate(node, 0, self._core.clock(), drops_set_id=cred.uid != 0)
        return self._handles.add(FileHandle(node, flags, cred.uid, self._core.client))

    def open_new(self, cred: Credentials, node: Inode, flags: int) -> int:
        """A handle of a file that was made just now: whatever its mode says, its maker may use it."""
        return self._handles.add(FileHandle(node, flags, cred.uid, self._core.client))

    def begin_read(self, number: int, offset: int, length: int) -> bytes | Wanted:
        """The bytes, short at the end, where memory has them; else what to ask the store for. EBADF, EISDIR, EINVAL."""
        handle = self._handles.file(number)
        if not handle.readable:
            raise PosixError(errno.EBADF, number, "not open for reading")
        node = handle.node
        require_regular(node)
        if offset < 0 or length < 0:
            raise PosixError(errno.EINVAL, node.ino)
        self._note_access(node)
        return self._data.begin_read(node, offset, length)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes, short at the end; may wait for the medium with the lock held. EBADF, EISDIR, EINVAL."""
        found = self.begin_read(number, offset, length)
        return found if isinstance(found, bytes) else self._data.finish_read(found)

    def _note_access(self, node: Inode) -> None:
        """Move the access time as relatime does: when it is behind the last change, or a day old."""
        if self._core.journal is None:
            return
        if node.atime > node.mtime and node.atime > node.ctime:
            now = self._core.clock()
            if now - node.atime < RELATIME_NS:
                return
        else:
            now = self._core.clock()
        node.atime = now
        self._data.state(node).times_changed = True

    def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Take all of `data` into the buffer; how many bytes. EBADF, EFBIG, ENOSPC, EDQUOT; nothing was written then."""
        handle = self._handles.file(number)
        node = handle.node
        if not handle.writable:
            raise PosixError(errno.EBADF, number, "not open for writing")
        require_regular(node)
        if handle.append:
            offset = node.size
        if offset < 0:
            raise PosixError(errno.EINVAL, node.ino)
        end = offset + len(data)
        if end > FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, node.ino)
        if not len(data):
            return 0
        self._space.reserve(len(data) if node.ino in self._core.buffered else len(data) + FILE_COST)
        if self._quota.any and end > node.size:
            self._quota.check(self._cache.directory(node.home or ROOT_INO), space=end - node.size)
        if self._data.overdue:
            self._data.make_room(node)
        if handle.uid and node.mode & 0o6000:
            node.drop_set_id()
        self._data.write(node, offset, data, self._core.clock())
        return len(data)

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """Make room (the size grows), punch a hole, or zero a range. EBADF, EINVAL, EFBIG, ENOSPC, EOPNOTSUPP for other modes.

        Room is promised by the estimate of free space, not set aside: the range reads as zeros and may stay a hole."""
        handle = self._handles.file(number)
        node = handle.node
        if not handle.writable:
            raise PosixError(errno.EBADF, number, "not open for writing")
        require_regular(node)
        if offset < 0 or length <= 0:
            raise PosixError(errno.EINVAL, node.ino)
        if mode not in FALLOCATE_MODES:
            raise PosixError(errno.EOPNOTSUPP, node.ino, f"fallocate mode {mode:#x}")
        end = offset + length
        if end > FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG, node.ino)
        now = self._core.clock()
        if not mode & PUNCH_HOLE:
            self._space.reserve(length)
        grows = not mode & KEEP_SIZE and end > node.size
        if grows and self._quota.any:
            self._quota.check(self._cache.directory(node.home or ROOT_INO), space=end - node.size)
        zeros = (offset, min(end, node.size)) if mode & (PUNCH_HOLE | ZERO_RANGE) else None
        size = end if grows else node.size
        self._data.truncate(node, size, now, zeros=zeros, drops_set_id=handle.uid != 0)

    def seek(self, number: int, offset: int, whence: int) -> int:
        """SEEK_DATA, SEEK_HOLE. ENXIO at or past the end, or with no data behind; EINVAL for another `whence`."""
        node = self._handles.file(number).node
        require_regular(node)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise PosixError(errno.EINVAL, number)
        if not 0 <= offset < node.size:
            raise PosixError(errno.ENXIO, number)
        self._data.publish([node])
        for start, size in self._data.extents(node, offset):
            if whence == os.SEEK_DATA:
                return max(start, offset)
            if start > offset:
                return offset
            offset = start + size
        if whence == os.SEEK_DATA:
            raise PosixError(errno.ENXIO, number)
        return min(offset, node.size)

    def copy(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """Bytes from file to file, inside the server; how many, at most `COPY_BYTES` in one call. EBADF, EINVAL (the ranges
        overlap in one file), EFBIG, ENOSPC, EDQUOT."""
        data = self.read(source, source_offset, min(length, COPY_BYTES))
        same = self._handles.file(target).node is self._handles.file(source).node
        if same and abs(source_offset - target_offset) < len(data):
            raise PosixError(errno.EINVAL, target, "the ranges overlap")
        return self.write(target, target_offset, data)

    def publish(self, number: int) -> None:
        """Submit what is buffered of the file, and journal what memory alone knows of it; `fsync` waits afterwards. A directory
        has nothing of either: its changes are in the log already."""
        node = self._handles.node(number)
        self._data.publish([node])
        self._journal_times(node)

    def _journal_times(self, node: Inode) -> None:
        file = node.file
        if file is None or not file.times_changed or self._core.journal is None:
            return
        self._data.publish([node])
        try:
            self._space.reserve()
        except PosixError:
            file.times_changed = False
            return  # an access time is not worth the last blocks
        file.times_changed = False
        if node.nlink:
            self._core.append(Kind.SETATTR, self._changes.inode(node, node.ctime))

    def publish_all(self) -> None:
        """`publish` for every file that is open or has buffered bytes."""
        self._data.publish(list(self._core.buffered.values()))
        for node in self._handles.nodes():
            self._journal_times(node)

    def release(self, number: int) -> None:
        """Close. Buffered bytes stay buffered until they are old or many; a file without a name goes with its last handle."""
        handle = self._handles.remove(number)
        node = handle.node
        if node.handles:
            return
        if node.nlink == 0:
            self._purge.released(node)
        elif node.file is not None:
            if node.ino not in self._core.buffered:
                with suppress(TransactionError, *UNREADABLE):  # the file is closed, whatever becomes of an access time
                    self._journal_times(node)
            if node.handles == 0 and node.file is not None and not node.file.buffer:
                node.file = None


def require_regular(node: Inode) -> None:
    """EISDIR for a directory, EINVAL for anything else that holds no bytes."""
    kind = node.mode >> 12
    if kind != 8:
        raise PosixError(errno.EISDIR if kind == 4 else errno.EINVAL, node.ino)
