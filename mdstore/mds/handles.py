"""Open files and directories."""

from __future__ import annotations

import errno
import os

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.inode import Directory, Inode


class FileHandle:
    """An open file. `uid`: who opened it, for what writing does to set-id bits. `session`: for which session."""

    __slots__ = ("append", "node", "readable", "session", "uid", "writable")

    def __init__(self, node: Inode, flags: int, uid: int, session: int) -> None:
        access = flags & os.O_ACCMODE
        self.node = node
        self.session = session
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.uid = uid


class DirectoryHandle:
    """An open directory. `reached`: the last name of an unbroken read from the first; `evictions`: how often entries had been
    dropped from memory when that began. Together they tell whether memory has seen the whole directory. `session`: for which.
    `unread`: why some entries were left out since it was last read from the first."""

    __slots__ = ("evictions", "node", "reached", "session", "unread")

    def __init__(self, node: Directory, session: int) -> None:
        self.node = node
        self.session = session
        self.reached: bytes | None = None
        self.evictions = -1
        self.unread: MdstoreError | None = None


class Handles:
    """The open handles by number; numbers are not used again."""

    def __init__(self) -> None:
        self._open: dict[int, FileHandle | DirectoryHandle] = {}
        self._by_session: dict[int, dict[int, int]] = {}  # by session, by inode: how many of them
        self._next = 1

    def add(self, handle: FileHandle | DirectoryHandle) -> int:
        """Give a handle its number; its inode stays in memory until `remove`."""
        number = self._next
        self._next = number + 1
        self._open[number] = handle
        handle.node.handles += 1
        of_session = self._by_session.setdefault(handle.session, {})
        of_session[handle.node.ino] = of_session.get(handle.node.ino, 0) + 1
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
        self._forget(handle)
        return handle

    def is_sessions_last(self, number: int) -> bool:
        """Whether its session has the inode open by no other handle; EBADF."""
        handle = self._open.get(number)
        if handle is None:
            raise PosixError(errno.EBADF, number)
        return self._by_session[handle.session][handle.node.ino] == 1

    def inodes_of(self, session: int) -> list[int]:
        """What the session has open, each once. Cost: by how many these are."""
        return list(self._by_session.get(session, ()))

    def _forget(self, handle: FileHandle | DirectoryHandle) -> None:
        of_session = self._by_session[handle.session]
        of_session[handle.node.ino] -= 1
        if not of_session[handle.node.ino]:
            del of_session[handle.node.ino]
        if not of_session:
            del self._by_session[handle.session]

    def items(self) -> list[tuple[int, FileHandle | DirectoryHandle]]:
        """Everything that is open, with its number."""
        return list(self._open.items())

    def drop(self, number: int) -> None:
        """The handle is none any more, and its inode not one that knows of it."""
        handle = self._open.pop(number, None)
        if handle is not None:
            self._forget(handle)

    def nodes(self) -> list[Inode]:
        """The inodes that are open, each as often as it is."""
        return [handle.node for handle in self._open.values()]

    def __len__(self) -> int:
        return len(self._open)
