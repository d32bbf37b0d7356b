"""A changed inode becomes event records, wherever the inode lives."""

from __future__ import annotations

from mdstore.errors import PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import dir_set, entry_set
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import HOME
from mdstore.mds.purge import needs_row
from mdstore.mds.records import FLAG_DATA


class Changes:
    """Makes the records of inodes that changed; the caller appends them. Nothing here fails because the store cannot be read."""

    def __init__(self, core: Core, cache: Cache) -> None:
        self._core = core
        self._cache = cache

    def inode(self, node: Inode, now: int, space: int = 0) -> bytes:
        """The records of `node`, whose fields were changed at `now`; `space`: by how many bytes its file grew."""
        self._core.unlogged = True
        if isinstance(node, Directory):
            node.change += 1
            return self.directory(node, now)
        return self.keep(node, self.value(node), now, space)

    def directory(self, node: Directory, now: int) -> bytes:
        """The records of a directory whose own attributes changed."""
        if node.nlink == 0:
            return b""
        self._core.unlogged = True
        node.version += 1
        node.rctime = max(node.rctime, now)
        self._core.mark(node)
        return dir_set(node.ino, node.encode_header())

    def value(self, node: Inode) -> bytes:
        """What is to be kept of `node`, no directory, for `keep`: its entry's value or its row's; nothing of an inode without
        a name or bytes. What no record can hold fails here, before anything is changed but the inode's own counter."""
        node.change += 1
        if node.parent:
            return node.entry_value()
        return HOME.pack(node.home) + node.encode() if node.nlink or needs_row(self._core, node) else b""

    def keep(self, node: Inode, value: bytes, now: int, space: int) -> bytes:
        """The records that say `value` of `node` from now on."""
        core = self._core
        core.unlogged = True
        if node.parent:
            directory = self._cache.directory(node.parent)
            directory.rbytes += space
            touched = core.bump(directory, now)
            directory.changed[node.name] = value
            return touched + entry_set(directory.ino, directory.version, node.name, value)
        row = core.put_unnamed(node, value) if value else b""
        home = self._home(node) if node.nlink else None
        if home is None:
            return row
        home.rbytes += space
        return row + core.bump(home, now)

    def _home(self, node: Inode) -> Directory | None:
        """The directory that counts the bytes of an inode with several names; one that cannot be read counts nothing."""
        try:
            return self._cache.directory(node.home) if node.home else None
        except (PosixError, *UNREADABLE):
            return None

    def backtrace_later(self, node: Inode) -> None:
        """What the data objects say about `node` is old; the next write-back puts it right."""
        if node.flags & FLAG_DATA:
            self._core.stale_backtraces[node.ino] = None
