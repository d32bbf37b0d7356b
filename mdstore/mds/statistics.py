"""Recursive statistics: bytes, files, directories and latest change of everything below a directory.

A directory's own change is exact at once. What lies deeper is handed up by `settle`, before anything is written back and
before anybody asks: so a directory without unwritten changes is always settled, also after a crash. What lies in a directory
that cannot be read is handed up once it can: that one, and none of those in it, is looked at again by whoever asks, by ticks,
ever more seldom, by the write-back of everything, and so before the server ends.
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
PAUSE_MAX: Final = 64  # ticks from one look at directories that cannot be read to the next, at most


class Statistics:
    """Hands differences up the tree. The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache) -> None:
        self._core = core
        self._cache = cache
        self._pause = 0  # ticks from one look at what cannot be read to the next
        self._ticks_left = 0

    def settle(self, *, look_again: bool = True) -> None:
        """Every directory's statistics contain everything below it, but for what cannot be handed up yet: `Core.unsettled`.
        `look_again`: whether the directories that others wait for are read again, where memory does not have them.
        Cost: one record per directory that has news; one look at each that is waited for, and none at those that wait."""
        core = self._core
        unreadable: set[int] = set()  # one look at each
        heap = [(-self._depth(d, unreadable), d.ino) for d in self._waiting(unreadable, look_again=look_again)]
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
                core.unsettled.discard(ino)
                continue  # nothing holds it, and counts it
            except UNREADABLE:
                unreadable.add(directory.parent)
            if directory.parent in unreadable:
                core.unsettled.add(ino, directory.parent)
                continue
            records.append(self._hand_up(directory, parent))
            core.unsettled.discard(ino)
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
        if core.news is not None:
            core.news = {}

    def try_again(self) -> bool:
        """`settle`, where one of the directories that others wait for can be read by now; whether. Cost: one look at each."""
        for ino in self._core.unsettled.awaited():
            if self._is_readable(ino):
                self.settle()
                return True
        return False

    def tick(self) -> None:
        """`try_again`, ever more seldom where it is in vain, unless another one is waited for since."""
        unsettled = self._core.unsettled
        if not unsettled:
            self._pause = 0
        elif unsettled.fresh or not self._ticks_left:
            unsettled.fresh = False
            self._pause = 0 if self.try_again() else min(max(1, 2 * self._pause), PAUSE_MAX)
            self._ticks_left = self._pause
        else:
            self._ticks_left -= 1

    def _is_readable(self, ino: int) -> bool:
        """Whether the directory is known, be it that it is no more."""
        try:
            self._cache.directory(ino)
        except PosixError:
            pass
        except UNREADABLE:
            return False
        return True

    def _waiting(self, unreadable: set[int], *, look_again: bool) -> list[Directory]:
        """Directories that have something to hand up: changed ones, and those that could not, as far as what they wait for can be
        read; what cannot gets into `unreadable`."""
        core = self._core
        found = dict(core.dirty if core.news is None else core.news)
        for awaited in core.unsettled.awaited():
            if (look_again or awaited in core.nodes) and self._is_readable(awaited):
                self._find_behind(awaited, found)
            else:
                unreadable.add(awaited)
        waiting = []
        for directory in found.values():
            if directory.ino == ROOT_INO or not directory.nlink or not directory.unsettled:
                core.unsettled.discard(directory.ino)
            elif directory.parent in unreadable:
                core.unsettled.add(directory.ino, directory.parent)
            else:
                waiting.append(directory)
        return waiting

    def _find_behind(self, awaited: int, found: dict[int, Directory]) -> None:
        """Into `found` those that wait for that one, as far as they can be read; the others wait for themselves."""
        unsettled = self._core.unsettled
        for ino in unsettled.behind(awaited):
            try:
                found[ino] = self._cache.directory(ino)
            except PosixError:
                unsettled.discard(ino)  # removed since
            except UNREADABLE:
                unsettled.add(ino, ino)

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
