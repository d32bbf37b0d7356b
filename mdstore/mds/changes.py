"""A changed inode becomes event records, wherever the inode lives."""

from __future__ import annotations

from mdstore.mds.cache import Cache
from mdstore.mds.core import Core
from mdstore.mds.events import dir_set, entry_set
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.purge import needs_row
from mdstore.mds.records import FLAG_DATA


class Changes:
    """Makes the records of inodes that changed; the caller appends them."""

    def __init__(self, core: Core, cache: Cache) -> None:
        self._core = core
        self._cache = cache

    def inode(self, node: Inode, now: int, space: int = 0) -> bytes:
        """The records of `node`, whose fields were changed at `now`; `space`: by how many bytes its file grew."""
        core = self._core
        node.change += 1
        if isinstance(node, Directory):
            return self.directory(node, now)
        if node.parent:
            directory = self._cache.directory(node.parent)
            value = node.entry_value()  # first: what cannot be kept must leave the directory as it is
            directory.rbytes += space
            touched = core.bump(directory, now)
            directory.changed[node.name] = value
            return touched + entry_set(directory.ino, directory.version, node.name, value)
        if node.nlink:
            return self._of_several_names(node, now, space)
        return core.put_unnamed(node) if needs_row(core, node) else b""

    def directory(self, node: Directory, now: int) -> bytes:
        """The records of a directory whose own attributes changed."""
        if node.nlink == 0:
            return b""
        node.version += 1
        node.rctime = max(node.rctime, now)
        self._core.mark(node)
        return dir_set(node.ino, node.encode_header())

    def _of_several_names(self, node: Inode, now: int, space: int) -> bytes:
        row = self._core.put_unnamed(node)
        if not node.home:
            return row
        home = self._cache.directory(node.home)
        home.rbytes += space
        return row + self._core.bump(home, now)

    def backtrace_later(self, node: Inode) -> None:
        """What the data objects say about `node` is old; the next write-back puts it right."""
        if node.flags & FLAG_DATA:
            self._core.stale_backtraces[node.ino] = None
