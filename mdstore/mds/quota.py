"""Quotas: how much may lie below a directory, in bytes and in files (directories count as files).

Usage is a directory's recursive statistics, what directories below it have not handed up yet, and what files below it hold in
their buffers. While there are quotas the few directories that have news are known (`Core.news`), so a check adds all up; where
they or the files are many they are handed up, or published, first. So nothing is let in that exceeds a quota, in however many
directories below it something is made. Only a removal can: when the name whose directory counted a file's bytes goes, the
directory of another name counts them.
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError, MdstoreError, PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.damage import note_damage
from mdstore.mds.events import Kind
from mdstore.mds.filedata import FileData
from mdstore.mds.inode import Directory
from mdstore.mds.layout import INO_KEY
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import ROOT_INO

QUOTA: Final = struct.Struct("<QQ")  # bytes, files; 0: no limit
assert QUOTA.size == 16
NEWS_MAX: Final = 32  # directories, and files, that a check adds up


class Allowance(NamedTuple):
    """What may lie below a directory; 0 means no limit."""

    max_bytes: int
    max_files: int


class Quota:
    """The quotas of the file system, all in memory. The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache, data: FileData, statistics: Statistics) -> None:
        self._core = core
        self._cache = cache
        self._data = data
        self._statistics = statistics
        self._allowances: dict[int, Allowance] = {}
        self._unread: MdstoreError | None = None  # why some are not known
        self.any = False

    def load(self) -> None:
        """Read the table, after recovery. What cannot be read of it keeps no file system from being read; one that is to be
        written must know its quotas: CorruptionError, DeviceFailed."""
        self._allowances.clear()
        self._unread = None
        try:
            for key, raw in self._core.quotas.rows():
                if len(key) != INO_KEY.size or len(raw) != QUOTA.size:
                    raise CorruptionError("quota", f"table.quotas row {key!r}", "a directory and two numbers", raw)
                self._allowances[INO_KEY.unpack(key)[0]] = Allowance(*QUOTA.unpack(raw))
        except UNREADABLE as error:
            if self._core.journal is not None:
                raise
            self._unread = error
            note_damage(self._core, 0, self._core.quotas.object_name, error)
        self._note_any()

    def get(self, ino: int) -> Allowance:
        """The quota set on the directory itself. What the table could not be read for, where nobody can know."""
        allowance = self._allowances.get(ino)
        if allowance is None and self._unread is not None:
            raise self._unread
        return allowance or Allowance(0, 0)

    def grant(self, ino: int, allowance: Allowance) -> None:
        """Set or, with both zero, remove a quota. Usage may be above it already; then nothing more is let in."""
        core = self._core
        key = INO_KEY.pack(ino)
        if allowance != (0, 0):
            self._statistics.keep_news(wanted=True)
        core.unlogged = True
        if allowance == (0, 0):
            self._allowances.pop(ino, None)
            core.append(Kind.SETXATTR, core.drop_row(core.quotas, key))
        else:
            self._allowances[ino] = allowance
            core.append(Kind.SETXATTR, core.put_row(core.quotas, key, QUOTA.pack(*allowance)))
        self._note_any()

    def _note_any(self) -> None:
        self.any = bool(self._allowances)
        if self._core.journal is not None:
            self._statistics.keep_news(wanted=self.any)

    def check(self, directory: Directory, *, files: int = 0, space: int = 0, moved_from: Directory | None = None) -> None:
        """EDQUOT when so much more below `directory` is over a quota of it or of a directory above. Where something is moved,
        quotas that hold both places do not count."""
        limited = self._limited(directory, moved_from)
        if not limited:
            return
        if len(self._core.buffered) > NEWS_MAX:
            with suppress(*UNREADABLE):  # what stays in a buffer is counted there
                self._data.publish(list(self._core.buffered.values()))
        if self._core.news is not None and len(self._core.news) > NEWS_MAX:
            self._statistics.settle()
        elif self._core.unsettled:
            self._statistics.try_again()
        waiting = self._not_handed_up()
        for node, allowance in limited:
            used_files, used_bytes = node.rfiles + node.rdirs, node.rbytes
            for above, more_files, more_bytes in waiting:
                if node.ino in above:
                    used_files += more_files
                    used_bytes += more_bytes
            if files > 0 and 0 < allowance.max_files < used_files + files:
                raise PosixError(errno.EDQUOT, node.ino, f"{allowance.max_files} files are allowed below")
            if space > 0 and 0 < allowance.max_bytes < used_bytes + space:
                raise PosixError(errno.EDQUOT, node.ino, f"{allowance.max_bytes} bytes are allowed below")

    def hand_up(self) -> None:
        """Before a directory is moved: it takes along what its parent knows of it, so that must be all."""
        self._statistics.settle()

    def _limited(self, directory: Directory, moved_from: Directory | None) -> list[tuple[Directory, Allowance]]:
        """The directories with a quota, from this one up to the root, that do not hold the other too."""
        exempt = self._chain(moved_from.ino) if moved_from is not None else set()
        found = []
        for node in self._cache.upward(directory):
            allowance = self._allowances.get(node.ino)
            if allowance is not None and node.ino not in exempt:
                found.append((node, allowance))
        return found

    def _not_handed_up(self) -> list[tuple[set[int], int, int]]:
        """What the directories above do not know yet: which these are, files, bytes."""
        found = []
        for node in (self._core.news or {}).values():
            if node.ino != ROOT_INO and node.nlink and node.unsettled:
                files = node.rfiles + node.rdirs - node.accounted_files - node.accounted_dirs
                found.append((self._chain(node.parent), files, node.rbytes - node.accounted_bytes))
        for file in self._core.buffered.values():
            if file.file is not None and file.home and file.size > file.file.published:
                found.append((self._chain(file.home), 0, file.size - file.file.published))
        return found

    def _chain(self, ino: int) -> set[int]:
        """The directory and all above it, as far as they can be read: what cannot has no quota that anybody could check."""
        found: set[int] = set()
        with suppress(PosixError, *UNREADABLE):
            found.update(directory.ino for directory in self._cache.upward(self._cache.directory(ino)))
        return found
