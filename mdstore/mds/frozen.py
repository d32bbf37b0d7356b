"""A name space as it was, under numbers of its own: what `.snap/NAME` and `mdstore snapshot mount` show.

Inside it is a metadata server, mounted read-only over a snapshot of the store. Its inode numbers are those of the living name
space, so outside they carry a tag in their upper bits, and one directory may stand for the root. Every change is EROFS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, NoReturn

from mdstore.errors import PosixError
from mdstore.mds.records import INO_END
from mdstore.mds.vfs import ROOT_INO, Attr, Credentials, DirEntry, Recalling, SetAttr, StatFs, Vfs

INO_MASK: Final = INO_END - 1


class FrozenVfs:
    """Implements `Vfs`, read-only. `inner`: the name space inside; `tag`: the upper bits of every number and handle;
    `top`: the directory inside that is the root here, known outside as `top_as` (default: its number with the tag), and whose
    parent is known outside as `above` (default: itself)."""

    keeps_acls = True

    def __init__(
        self, inner: Vfs, *, tag: int = 0, top: int = ROOT_INO, top_as: int | None = None, above: int | None = None
    ) -> None:
        self.inner = inner
        self.top = top
        self._tag = tag
        self._top_as = tag | top if top_as is None else top_as
        self._above = self._top_as if above is None else above

    # -- numbers -------------------------------------------------------------------------------------------------------

    def _in(self, ino: int) -> int:
        return self.top if ino == self._top_as else ino & INO_MASK

    def _out(self, ino: int) -> int:
        return self._top_as if ino == self.top else ino | self._tag

    def _attr(self, attr: Attr) -> Attr:
        return attr._replace(ino=self._out(attr.ino))

    # -- names ---------------------------------------------------------------------------------------------------------

    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr:
        """See `Vfs`."""
        return self._attr(self.inner.lookup(cred, self._in(parent), name))

    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        """Opens a file that is there; EROFS for a new one, EEXIST with O_EXCL."""
        try:
            found = self.lookup(cred, parent, name)
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            refuse(name)
        try:
            if flags & os.O_EXCL:
                raise PosixError(errno.EEXIST, name)
            return found, self.open(cred, found.ino, flags)
        except PosixError:
            self.forget(found.ino, 1)
            raise

    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr:
        """EROFS."""
        refuse(name)

    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        """EROFS."""
        refuse(name)

    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr:
        """EROFS."""
        refuse(name)

    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr:
        """EROFS."""
        refuse(name)

    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        """EROFS."""
        refuse(name)

    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        """EROFS."""
        refuse(name)

    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """EROFS."""
        refuse(name)

    # -- inodes --------------------------------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Attr:
        """See `Vfs`."""
        return self._attr(self.inner.getattr(self._in(ino)))

    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        """EROFS."""
        refuse(ino)

    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        """See `Vfs`; EROFS for W_OK of what is not a device, socket or FIFO."""
        inside = self._in(ino)
        if mask & os.W_OK and self.inner.getattr(inside).mode >> 12 in (4, 8, 10):
            refuse(ino)
        self.inner.access(cred, inside, mask)

    def readlink(self, ino: int) -> bytes:
        """See `Vfs`."""
        return self.inner.readlink(self._in(ino))

    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """EROFS."""
        refuse(ino)

    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        """See `Vfs`. The recursive statistics are those of the moment of the snapshot."""
        return self.inner.getxattr(cred, self._in(ino), name)

    def listxattr(self, ino: int) -> list[bytes]:
        """See `Vfs`."""
        return self.inner.listxattr(self._in(ino))

    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None:
        """EROFS."""
        refuse(ino)

    def forget(self, ino: int, lookups: int) -> None:
        """See `Vfs`."""
        self.inner.forget(self._in(ino), lookups)

    def recall_through(self, recall: Callable[[int, bytes], bool]) -> None:
        """See `Recalling`."""
        if isinstance(self.inner, Recalling):
            self.inner.recall_through(lambda directory, name: recall(self._out(directory), name))

    # -- files ---------------------------------------------------------------------------------------------------------

    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        """See `Vfs`; EROFS for writing or emptying."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            refuse(ino)
        return self.inner.open(cred, self._in(ino), flags) | self._tag

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """See `Vfs`."""
        return self.inner.read(handle & INO_MASK, offset, length)

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """EBADF: no handle here is open for writing."""
        raise PosixError(errno.EBADF, handle & INO_MASK)

    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        """Returns: everything here is durable."""

    def release(self, handle: int) -> None:
        """See `Vfs`."""
        self.inner.release(handle & INO_MASK)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """EBADF."""
        raise PosixError(errno.EBADF, handle & INO_MASK)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """See `Vfs`."""
        return self.inner.lseek(handle & INO_MASK, offset, whence)

    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """EBADF: the target cannot be written."""
        raise PosixError(errno.EBADF, target & INO_MASK)

    # -- directories ---------------------------------------------------------------------------------------------------

    def opendir(self, cred: Credentials, ino: int) -> int:
        """See `Vfs`."""
        return self.inner.opendir(cred, self._in(ino)) | self._tag

    def readdir(
        self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False
    ) -> list[DirEntry]:
        """See `Vfs`."""
        page = self.inner.readdir(handle & INO_MASK, after, limit, count_lookups=count_lookups)
        return [DirEntry(name, self._attr(attr) if attr.ino else attr) for name, attr in page]

    def parent_of(self, ino: int) -> int:
        """See `Vfs`; the top's is what it was told to be."""
        return self._above if ino == self._top_as else self._out(self.inner.parent_of(self._in(ino)))

    def releasedir(self, handle: int) -> None:
        """See `Vfs`."""
        self.inner.releasedir(handle & INO_MASK)

    # -- whole ---------------------------------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """See `Vfs`. Nothing is free: nothing can be written."""
        return self.inner.statfs()._replace(blocks_free=0, blocks_available=0, files_free=0)

    def syncfs(self) -> None:
        """Returns: everything here is durable."""

    def close(self) -> None:
        """Let go of the snapshot."""
        self.inner.close()


def refuse(subject: object) -> NoReturn:
    """EROFS."""
    raise PosixError(errno.EROFS, subject, "a snapshot cannot be changed")
