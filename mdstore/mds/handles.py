"""Open files and directories."""

from __future__ import annotations

import errno
import os

from mdstore.errors import PosixError
from mdstore.mds.inode import Directory, Inode


class FileHandle:
    """An open file. `uid`: who opened it, for what writing does to set-id bits."""

    __slots__ = ("append", "node", "readable", "uid", "writable")

    def __init__(self, node: Inode, flags: int, uid: int) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.uid = uid


class DirectoryHandle:
    """An open directory. `reached`: the last name of an unbroken read from the first; `evictions`: how often entries had been
    dropped from memory when that began. Together they tell whether memory has seen the whole directory."""

    __slots__ = ("evictions", "node", "reached")

    def __init__(self, node: Directory) -> None:
        self.node = node
        self.reached: bytes | None = None
        self.evictions = -1


class Handles:
    """The open handles by number; numbers are not used again."""

    def __init__(self) -> None:
        self._open: dict[int, FileHandle | DirectoryHandle] = {}
        self._next = 1

    def add(self, handle: FileHandle | DirectoryHandle) -> int:
        """Give a handle its number; its inode stays in memory until `remove`."""
        number = self._next
        self._next = number + 1
        self._open[number] = handle
        handle.node.handles += 1
        return number

    def file(self, number: int) -> FileHandle:
        """The open file; EBADF."""
        handle = self._open.get(number)
        if not isinstance(handle, FileHandle):
            raise PosixError(errno.EBADF, number)
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """The open directory; EBADF, ENOTDIR for a file."""
        handle = self._open.get(number)
        if not isinstance(handle, DirectoryHandle):
            raise PosixError(errno.EBADF if handle is None else errno.ENOTDIR, number)
        return handle

    def get(self, number: int) -> FileHandle | DirectoryHandle | None:
        """What is open under the number."""
        return self._open.get(number)

    def node(self, number: int) -> Inode:
        """The inode of an open file or directory; EBADF."""
        handle = self._open.get(number)
        if handle is None:
            raise PosixError(errno.EBADF, number)
        return handle.node

    def remove(self, number: int) -> FileHandle | DirectoryHandle:
        """Close; EBADF."""
        handle = self._open.pop(number, None)
        if handle is None:
            raise PosixError(errno.EBADF, number)
        handle.node.handles -= 1
        return handle

    def items(self) -> list[tuple[int, FileHandle | DirectoryHandle]]:
        """Everything that is open, with its number."""
        return list(self._open.items())

    def drop(self, number: int) -> None:
        """The handle is none any more, and its inode not one that knows of it."""
        self._open.pop(number, None)

    def nodes(self) -> list[Inode]:
        """The inodes that are open, each as often as it is."""
        return [handle.node for handle in self._open.values()]

    def __len__(self) -> int:
        return len(self._open)
