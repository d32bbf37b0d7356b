"""Scrub: what directories, links and backtraces say of each other, checked while the file system is in use.

A page of a directory is looked at under the lock at a time. One that has changed before its last page is looked at again, and
whole under the lock when it changes every time: so each is judged as it was at one moment, while others may change. Statistics
are handed up first. With `repair` a wrong count is set right by an event like any other change, so a crash in between loses
nothing. What cannot be repaired goes into the damage table. Numbers of the checks, as `Problem.check` gives them:

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
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError, NotFound, PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.core import Core
from mdstore.mds.damage import note_damage
from mdstore.mds.directories import Directories
from mdstore.mds.events import Kind
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, INO_KEY, LINK_VALUE, data_object, decode_backtrace
from mdstore.mds.purge import Purge
from mdstore.mds.records import FLAG_DATA, TYPE_DIRECTORY
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import ROOT_INO

PAGE: Final = 1000  # entries looked at under the lock at a time
RESTARTS: Final = 2  # of a directory that changes meanwhile, before it is looked at whole
LINKS_AT_ONCE: Final = 64  # inodes whose links are counted in one step


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
    """What a directory's entries add up to. `hidden`: some could not even be listed, so nobody knows how many there are."""

    __slots__ = ("entries", "hidden", "homed", "rbytes", "rdirs", "rfiles", "subdirectories", "unreadable")

    def __init__(self) -> None:
        self.entries = self.subdirectories = self.rbytes = self.rfiles = self.rdirs = self.unreadable = 0
        self.hidden = False
        self.homed: set[int] = set()


class _Look:
    """A directory being looked at, which stays in memory meanwhile."""

    __slots__ = ("after", "below", "directory", "restarts", "sums", "version")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.restarts = -1
        self.begin()

    def begin(self) -> None:
        """From the first entry on, once more."""
        self.restarts += 1
        self.version = self.directory.version
        self.after: bytes | None = None
        self.below: list[int] = []
        self.sums = _Sums()


class Scrub:
    """One pass over the name space from the root: `step` until it says that there is nothing left, or iterate over `run`."""

    def __init__(
        self, core: Core, cache: Cache, directories: Directories, statistics: Statistics, changes: Changes, purge: Purge,
        *, repair: bool,
    ) -> None:  # fmt: skip
        self._core = core
        self._cache = cache
        self._directories = directories
        self._statistics = statistics
        self._changes = changes
        self._purge = purge
        self._repair = repair
        self._waiting = [ROOT_INO]
        self._look: _Look | None = None
        self._links_after: bytes | None = None
        self._noted: set[tuple[str, int, str]] = set()  # of the directory at hand, which may be looked at more than once
        self._found: list[Problem] = []
        self.progress = Progress(0, 1, 0)

    def run(self, told: Callable[[Progress], None] | None = None) -> Iterator[Problem]:
        """Every problem, directory by directory. Cost: one read of every directory, and of every file's backtrace."""
        try:
            while self.step():
                if told is not None:
                    told(self.progress)
                yield from self.take()
            yield from self.take()
        finally:
            self.close()

    def step(self) -> bool:
        """Look at up to `PAGE` entries, or count the links of some inodes; False when everything was looked at."""
        with self._core.guard:
            if self._look is None and not self._waiting:
                return self._count_links()
            try:
                self._step_in_directory()
            except CorruptionError as error:
                ino = self._look.directory.ino if self._look is not None else self._waiting.pop()
                self.close()
                self._note("S1", ino, str(error))
        return True

    def take(self) -> list[Problem]:
        """What was found since the last call."""
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Let go of the directory at hand; for a scrub that does not go on."""
        look, self._look = self._look, None
        self._noted.clear()
        if look is not None:
            with self._core.lock:
                look.directory.handles -= 1
                self._purge.released(look.directory)

    def _note(self, check: str, ino: int, message: str, *, repaired: bool = False) -> None:
        key = (check, ino, message)
        if key not in self._noted:
            self._noted.add(key)
            self._found.append(Problem(check, ino, message, repaired))

    # -- one directory -------------------------------------------------------------------------------------------------

    def _step_in_directory(self) -> None:
        look = self._look
        if look is None:
            look = self._begin()
            if look is None:
                return
        directory = look.directory
        if not self._page(look):
            return
        if directory.version != look.version:
            look.begin()
            if look.restarts < RESTARTS:
                return
            while not self._page(look):  # it changes whenever one looks: all of it at once
                pass
        if directory.nlink:
            if not look.sums.hidden:
                self._judge(directory, look.sums)
            self._waiting += look.below
            done = self.progress
            self.progress = Progress(
                done.directories + 1, done.directories_known + len(look.below), done.entries + look.sums.entries
            )
        self.close()

    def _begin(self) -> _Look | None:
        if self._core.is_writable():
            self._statistics.settle()
        try:
            directory = self._cache.directory(self._waiting[-1])
        except PosixError:
            self._waiting.pop()
            return None  # removed since it was found
        self._waiting.pop()
        if directory.nlink == 0:
            return None
        directory.handles += 1
        self._look = _Look(directory)
        return self._look

    def _page(self, look: _Look) -> bool:
        """Look at the next entries; True when there are no more."""
        directory = look.directory
        if not directory.nlink:
            return True
        names, hidden = self._directories.names_after(directory, look.after, PAGE)
        if hidden is not None:
            look.sums.hidden = True
            self._note("S1", directory.ino, str(hidden))
        self._cache.evict_excess()
        for name in names:
            entry = None
            try:
                entry = self._cache.find(directory, name)
                if entry is not None:
                    look.sums.entries += 1
                    self._entry(look, name, entry)
            except CorruptionError as error:
                look.sums.entries += entry is None
                look.sums.unreadable += 1
                self._note("S1", directory.ino, str(error))
        if names:
            look.after = names[-1]
        return len(names) < PAGE

    def _resolved(self, entry: Inode | int) -> Inode | None:
        """The inode; None for a link that leads nowhere."""
        try:
            return self._cache.node(entry >> 4) if isinstance(entry, int) else entry
        except PosixError:
            return None

    def _entry(self, look: _Look, name: bytes, entry: Inode | int) -> None:
        directory, sums = look.directory, look.sums
        node = self._resolved(entry)
        if node is None:
            self._lost(directory.ino, name, "S5", "links to an inode that is not there")
            sums.unreadable += 1
            return
        if isinstance(node, Directory):
            self._subdirectory(look, name, node)
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

    def _lost(self, directory: int, name: bytes, check: str, message: str) -> None:
        """Something that no repair brings back: it is damage from here on."""
        self._note(check, directory, f"entry {name!r} {message}")
        where = f"meta/{directory:016x} entry {name!r}"
        note_damage(self._core, directory, name, CorruptionError("directory entry", where, "an inode", message))

    def _subdirectory(self, look: _Look, name: bytes, node: Directory) -> None:
        directory, sums = look.directory, look.sums
        sums.subdirectories += 1
        sums.rdirs += 1 + node.accounted_dirs
        sums.rfiles += node.accounted_files
        sums.rbytes += node.accounted_bytes
        if (node.parent, node.name) != (directory.ino, name):
            message = f"entry {name!r} of {directory.ino} holds it, and it says {node.name!r} of {node.parent}"
            if self._repair:
                self._core.unlogged = True
                node.parent, node.name = directory.ino, name
                self._save(node)
            self._note("S4", node.ino, message, repaired=self._repair)
        look.below.append(node.ino)

    def _link(self, directory: Directory, name: bytes, node: Inode) -> None:
        key = INO_KEY.pack(node.ino) + INO_KEY.pack(directory.ino) + name
        if self._core.links.get(key) is None:
            if self._repair:
                self._core.append(Kind.REPAIR, self._core.put_row(self._core.links, key, LINK_VALUE))
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
        wrong = [("S2", "size", sums.entries)]
        wrong += [] if sums.unreadable else [
            ("S2", "nlink", 2 + sums.subdirectories), ("S3", "rbytes", sums.rbytes),
            ("S3", "rfiles", sums.rfiles), ("S3", "rdirs", sums.rdirs),
        ]  # fmt: skip
        wrong = [row for row in wrong if getattr(directory, row[1]) != row[2]]
        for check, field, right in wrong:
            message = f"{field} is {getattr(directory, field)}, should be {right}"
            if self._repair:
                self._core.unlogged = True
                setattr(directory, field, right)
            self._note(check, directory.ino, message, repaired=self._repair)
        if wrong and self._repair:
            self._save(directory)

    def _save(self, directory: Directory) -> None:
        core = self._core
        if core.news is not None:
            core.news[directory.ino] = directory
        core.append(Kind.REPAIR, self._changes.directory(directory, core.clock()))

    # -- links ---------------------------------------------------------------------------------------------------------

    def _count_links(self) -> bool:
        """S6, some inodes of several names; False when there are no more."""
        links = self._core.links
        for _ in range(LINKS_AT_ONCE):
            first = next(iter(links.rows(self._links_after)), None)
            if first is None:
                return False
            ino = INO_KEY.unpack_from(first[0])[0]
            self._links_after = INO_KEY.pack(ino + 1)
            self._count(ino, sum(1 for _ in links.rows(INO_KEY.pack(ino), self._links_after)))
        return True

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
            self._core.unlogged = True
            node.nlink = names
            self._core.append(Kind.REPAIR, self._changes.inode(node, self._core.clock()))
        self._note("S6", ino, message, repaired=self._repair)
