"""Recursive statistics: bytes, files, directories and latest change of everything below a directory.

A directory's own change is exact at once. What lies deeper is handed up by `settle`, before anything is written back and
before anybody asks: so a directory without unwritten changes is always settled, also after a crash. What lies in a directory
that cannot be read is handed up once it can: it is tried again by every `settle`, and once more before the server ends.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from mdstore.errors import PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind, dir_set
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.vfs import ROOT_INO

EVENT_DIRECTORIES: Final = 64  # settled by one event


class Statistics:
    """Hands differences up the tree. The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache) -> None:
        self._core = core
        self._cache = cache

    def settle(self) -> None:
        """Every directory's statistics contain everything below it, but for what cannot be handed up yet: `Core.unsettled`.
        Cost: one record per directory that has news."""
        core = self._core
        waiting, unread = self._waiting()
        held_up: dict[int, Directory] = {}
        unreadable: set[int] = set()  # parents: one look at each
        heap = [(-self._depth(d, unreadable), d.ino) for d in waiting]
        heapify(heap)
        queued = {ino for _, ino in heap}
        done: set[int] = set()
        records: list[bytes] = []
        while heap:
            depth, ino = heappop(heap)
            queued.discard(ino)
            done.add(ino)
            directory = self._cache.directory(ino)
            try:
                if directory.parent not in unreadable:
                    parent = self._cache.directory(directory.parent)
            except PosixError:
                continue  # nothing holds it, and counts it
            except UNREADABLE:
                unreadable.add(directory.parent)
            if directory.parent in unreadable:
                held_up[ino] = directory
                continue
            records.append(self._hand_up(directory, parent))
            if parent.ino in done and self._is_circle(parent):
                continue  # it never comes to rest
            if parent.ino != ROOT_INO and parent.ino not in queued and parent.unsettled:
                queued.add(parent.ino)
                heappush(heap, (depth + 1, parent.ino))
            if len(records) >= EVENT_DIRECTORIES:
                self._core.append(Kind.STATISTICS, b"".join(records))
                records.clear()
        if records:
            self._core.append(Kind.STATISTICS, b"".join(records))
        core.unsettled = dict.fromkeys([*unread, *held_up])
        if core.news is not None:
            core.news = held_up

    def _waiting(self) -> tuple[list[Directory], list[int]]:
        """Directories that have something to hand up: changed ones, and those that could not; which of these cannot be read."""
        core = self._core
        found = dict(core.dirty if core.news is None else core.news)
        unread: list[int] = []
        for ino in core.unsettled:
            try:
                found[ino] = self._cache.directory(ino)
            except PosixError:
                continue  # removed since
            except UNREADABLE:
                unread.append(ino)
        return [d for d in found.values() if d.ino != ROOT_INO and d.nlink and d.unsettled], unread

    def keep_news(self, *, wanted: bool) -> None:
        """From here on know at once whose statistics are not handed up, for whoever must ask often."""
        if wanted and self._core.news is None:
            self.settle()
            self._core.news = {}
        elif not wanted:
            self._core.news = None

    def _is_circle(self, directory: Directory) -> bool:
        """Whether it lies inside itself, as far as memory knows: who handed something up is there. One that does not was only
        handed up too early, because its place in the order could not be read."""
        passed = set()
        node: Inode | None = directory
        while isinstance(node, Directory) and node.ino != ROOT_INO:
            if node.ino in passed:
                return True
            passed.add(node.ino)
            node = self._core.nodes.get(node.parent)
        return False

    def _depth(self, directory: Directory, unreadable: set[int]) -> int:
        """How far below the root; less where the way there cannot be read, which `unreadable` gets: nobody looks twice."""
        depth, above = -1, directory
        try:
            for above in self._cache.upward(directory):
                depth += 1
                if above.parent in unreadable:
                    break
        except PosixError:
            pass
        except UNREADABLE:
            if above.parent not in self._core.nodes:  # else it lies inside itself
                unreadable.add(above.parent)
        return depth

    def _hand_up(self, directory: Directory, parent: Directory) -> bytes:
        """The parent's statistics get what they lack of the directory's."""
        self._core.unlogged = True
        parent.rbytes += directory.rbytes - directory.accounted_bytes
        parent.rfiles += directory.rfiles - directory.accounted_files
        parent.rdirs += directory.rdirs - directory.accounted_dirs
        directory.accounted_bytes = directory.rbytes
        directory.accounted_files = directory.rfiles
        directory.accounted_dirs = directory.rdirs
        directory.accounted_ctime = directory.rctime
        directory.version += 1
        self._core.mark(directory)
        return dir_set(directory.ino, directory.encode_header()) + self._core.bump(parent, directory.rctime)
