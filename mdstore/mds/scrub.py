"""Scrub: what directories, links and backtraces say of each other, checked while the file system is in use.

One directory is looked at under the lock at a time, so each is judged at one moment; others may change in between. Statistics
are handed up first. With `repair` a wrong count is set right by an event like any other change, so a crash in between loses
nothing. Numbers of the checks, as `Problem.check` gives them:

 S1  a directory's entries can be read
 S2  its size is the number of its entries, its nlink 2 and its subdirectories
 S3  its statistics are those of its files and what its subdirectories have handed up
 S4  a subdirectory knows its parent and its name
 S5  a link leads to a row of the inode table, and stands in the link table
 S6  an inode's nlink is the number of its rows in the link table
 S7  the backtrace with a file's bytes names its entry
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mdstore.errors import CorruptionError, NotFound, PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.core import Core
from mdstore.mds.directories import Directories
from mdstore.mds.events import Kind
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, INO_KEY, LINK_VALUE, data_object, decode_backtrace
from mdstore.mds.records import FLAG_DATA, TYPE_DIRECTORY
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import ROOT_INO

PAGE = 1000  # entries read at a time


class Problem(NamedTuple):
    """Something wrong. `ino`: the directory or inode; `repaired`: it is right now."""

    check: str
    ino: int
    message: str
    repaired: bool


class Progress(NamedTuple):
    """How far a scrub is; `directories_known`: found so far, looked at or not."""

    directories: int
    directories_known: int
    entries: int


class _Sums:
    """What a directory's entries add up to."""

    __slots__ = ("entries", "homed", "rbytes", "rdirs", "rfiles", "subdirectories")

    def __init__(self) -> None:
        self.entries = self.subdirectories = self.rbytes = self.rfiles = self.rdirs = 0
        self.homed: set[int] = set()


class Scrub:
    """One pass over the name space from the root. Iterate over it; each step holds the lock for one directory."""

    def __init__(
        self, core: Core, cache: Cache, directories: Directories, statistics: Statistics, changes: Changes, *, repair: bool
    ) -> None:
        self._core = core
        self._cache = cache
        self._directories = directories
        self._statistics = statistics
        self._changes = changes
        self._repair = repair
        self._waiting = [ROOT_INO]
        self._found: list[Problem] = []
        self.progress = Progress(0, 1, 0)

    def run(self, told: Callable[[Progress], None] | None = None) -> Iterator[Problem]:
        """Every problem, directory by directory. Cost: one read of every directory, and of every file's backtrace."""
        while self._waiting:
            ino = self._waiting.pop()
            with self._core.lock:
                self._one(ino)
            if told is not None:
                told(self.progress)
            yield from self._take()
        yield from self._link_counts()

    def _take(self) -> list[Problem]:
        found, self._found = self._found, []
        return found

    def _note(self, check: str, ino: int, message: str, *, repaired: bool = False) -> None:
        self._found.append(Problem(check, ino, message, repaired))

    # -- one directory -------------------------------------------------------------------------------------------------

    def _one(self, ino: int) -> None:
        sums = _Sums()
        try:
            if self._core.journal is not None:
                self._statistics.settle()
            directory = self._cache.directory(ino)
            if directory.nlink == 0:
                return
            self._entries(directory, sums)
        except CorruptionError as error:
            self._note("S1", ino, str(error))
            return
        except PosixError:
            return  # removed since it was found
        self._judge(directory, sums)
        self.progress = Progress(
            self.progress.directories + 1, self.progress.directories_known + sums.subdirectories,
            self.progress.entries + sums.entries,
        )  # fmt: skip

    def _entries(self, directory: Directory, sums: _Sums) -> None:
        directory.handles += 1  # it stays in memory while its entries come and go
        try:
            for name, node in self._children(directory):
                sums.entries += 1
                self._entry(directory, name, node, sums)
        finally:
            directory.handles -= 1

    def _children(self, directory: Directory) -> Iterator[tuple[bytes, Inode | None]]:
        """Names with inodes; None for a link that leads nowhere."""
        after: bytes | None = None
        while page := self._directories.names_after(directory, after, PAGE):
            self._cache.evict_excess()
            for name in page:
                entry = self._cache.find(directory, name)
                if entry is None:
                    continue
                try:
                    yield name, self._cache.resolve(entry)
                except PosixError:
                    yield name, None
            after = page[-1]

    def _entry(self, directory: Directory, name: bytes, node: Inode | None, sums: _Sums) -> None:
        if node is None:
            self._note("S5", directory.ino, f"entry {name!r} links to an inode that is not there")
            return
        if isinstance(node, Directory):
            self._subdirectory(directory, name, node, sums)
            return
        sums.rfiles += 1
        size = node.size if node.file is None else node.file.published
        if node.parent:
            sums.rbytes += size
        elif node.home == directory.ino and node.ino not in sums.homed:
            sums.homed.add(node.ino)
            sums.rbytes += size
        if not node.parent:
            self._link(directory, name, node)
        self._backtrace(node)

    def _subdirectory(self, directory: Directory, name: bytes, node: Directory, sums: _Sums) -> None:
        sums.subdirectories += 1
        sums.rdirs += 1 + node.accounted_dirs
        sums.rfiles += node.accounted_files
        sums.rbytes += node.accounted_bytes
        if (node.parent, node.name) != (directory.ino, name):
            message = f"entry {name!r} of {directory.ino} holds it, and it says {node.name!r} of {node.parent}"
            if self._repair:
                node.parent, node.name = directory.ino, name
                self._save(node)
            self._note("S4", node.ino, message, repaired=self._repair)
        self._waiting.append(node.ino)

    def _link(self, directory: Directory, name: bytes, node: Inode) -> None:
        key = INO_KEY.pack(node.ino) + INO_KEY.pack(directory.ino) + name
        if self._core.links.get(key) is None:
            if self._repair:
                self._core.append(Kind.TABLE, self._core.put_row(self._core.links, key, LINK_VALUE))
            self._note("S5", node.ino, f"{name!r} of {directory.ino} is not in the link table", repaired=self._repair)

    def _backtrace(self, node: Inode) -> None:
        """A rename leaves an old backtrace until the next write-back, which is known and no problem."""
        if not node.flags & FLAG_DATA or node.ino in self._core.stale_backtraces or node.file is not None:
            return
        try:
            raw = self._core.store.getattr(DATA, data_object(node.ino, 0), BACKTRACE_ATTRIBUTE)
            parent, name, _ = decode_backtrace(raw, f"data/{node.ino:016x}")
        except (NotFound, CorruptionError):
            parent, name = -1, b""
        if (parent, name) != (node.parent, node.name) and (node.parent or parent > 0):
            if self._repair:
                self._changes.backtrace_later(node)
            self._note("S7", node.ino, f"its bytes say {name!r} of {parent}", repaired=self._repair)

    def _judge(self, directory: Directory, sums: _Sums) -> None:
        wrong = [
            ("S2", "size", sums.entries), ("S2", "nlink", 2 + sums.subdirectories), ("S3", "rbytes", sums.rbytes),
            ("S3", "rfiles", sums.rfiles), ("S3", "rdirs", sums.rdirs),
        ]  # fmt: skip
        wrong = [row for row in wrong if getattr(directory, row[1]) != row[2]]
        for check, field, right in wrong:
            message = f"{field} is {getattr(directory, field)}, should be {right}"
            if self._repair:
                setattr(directory, field, right)
            self._note(check, directory.ino, message, repaired=self._repair)
        if wrong and self._repair:
            self._save(directory)

    def _save(self, directory: Directory) -> None:
        now = self._core.clock()
        self._core.append(Kind.SETATTR, self._changes.directory(directory, now))

    # -- links ---------------------------------------------------------------------------------------------------------

    def _link_counts(self) -> Iterator[Problem]:
        """S6, one inode under the lock at a time."""
        after: bytes | None = None
        while True:
            with self._core.lock:
                first = next(iter(self._core.links.rows(after)), None)
                if first is None:
                    return
                ino = INO_KEY.unpack_from(first[0])[0]
                after = INO_KEY.pack(ino + 1)
                self._count(ino, sum(1 for _ in self._core.links.rows(INO_KEY.pack(ino), after)))
            yield from self._take()

    def _count(self, ino: int, names: int) -> None:
        try:
            node = self._cache.node(ino)
        except PosixError:
            self._note("S6", ino, f"{names} names and no row")
            return
        except CorruptionError as error:
            self._note("S1", ino, str(error))
            return
        if node.nlink == names or node.mode >> 12 == TYPE_DIRECTORY:
            return
        message = f"nlink is {node.nlink}, should be {names}"
        if self._repair:
            node.nlink = names
            self._core.append(Kind.SETATTR, self._changes.inode(node, self._core.clock()))
        self._note("S6", ino, message, repaired=self._repair)
