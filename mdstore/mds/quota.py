"""Quotas: how much may lie below a directory, in bytes and in files (directories count as files).

Usage comes from the recursive statistics, handed up before every check while few directories have news. With many, that is
done at every hundredth check; then what is exact is the way from the directory asked about up to the one with the quota, and
what other branches made since may exceed it.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from mdstore.errors import PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import Core
from mdstore.mds.events import Kind
from mdstore.mds.inode import Directory
from mdstore.mds.layout import INO_KEY
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import ROOT_INO

QUOTA: Final = struct.Struct("<QQ")  # bytes, files; 0: no limit
assert QUOTA.size == 16
SETTLED_AT_ONCE: Final = 32  # directories with news, at most, for which every check hands statistics up
SETTLE_EVERY: Final = 100  # checks, where there are more


class Allowance(NamedTuple):
    """What may lie below a directory; 0 means no limit."""

    max_bytes: int
    max_files: int


class Quota:
    """The quotas of the file system, all in memory. The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache, statistics: Statistics) -> None:
        self._core = core
        self._cache = cache
        self._statistics = statistics
        self._checks = 0
        self._allowances: dict[int, Allowance] = {}
        self.any = False

    def load(self) -> None:
        """Read the table, after recovery."""
        for key, raw in self._core.quotas.rows():
            self._allowances[INO_KEY.unpack(key)[0]] = Allowance(*QUOTA.unpack(raw))
        self.any = bool(self._allowances)

    def get(self, ino: int) -> Allowance:
        """The quota set on the directory itself."""
        return self._allowances.get(ino, Allowance(0, 0))

    def grant(self, ino: int, allowance: Allowance) -> None:
        """Set or, with both zero, remove a quota. Usage may be above it already; then nothing more is let in."""
        core = self._core
        key = INO_KEY.pack(ino)
        if allowance == (0, 0):
            self._allowances.pop(ino, None)
            core.append(Kind.SETXATTR, core.drop_row(core.quotas, key))
        else:
            self._allowances[ino] = allowance
            core.append(Kind.SETXATTR, core.put_row(core.quotas, key, QUOTA.pack(*allowance)))
        self.any = bool(self._allowances)

    def check(self, directory: Directory, *, files: int = 0, space: int = 0, moved_from: Directory | None = None) -> None:
        """EDQUOT when so much more below `directory` is over a quota of it or of a directory above. Where something is moved,
        quotas that hold both places do not count."""
        self._checks += 1
        if len(self._core.dirty) <= SETTLED_AT_ONCE or self._checks % SETTLE_EVERY == 0:
            self._statistics.settle()
        exempt = self._chain(moved_from) if moved_from is not None else set()
        pending_files = pending_bytes = 0
        node = directory
        while True:
            allowance = self._allowances.get(node.ino)
            if allowance is not None and node.ino not in exempt:
                used_files = node.rfiles + node.rdirs + pending_files
                used_bytes = node.rbytes + pending_bytes
                if files > 0 and 0 < allowance.max_files < used_files + files:
                    raise PosixError(errno.EDQUOT, node.ino, f"{allowance.max_files} files are allowed below")
                if space > 0 and 0 < allowance.max_bytes < used_bytes + space:
                    raise PosixError(errno.EDQUOT, node.ino, f"{allowance.max_bytes} bytes are allowed below")
            if node.ino == ROOT_INO:
                return
            pending_files += node.rfiles + node.rdirs - node.accounted_files - node.accounted_dirs
            pending_bytes += node.rbytes - node.accounted_bytes
            node = self._cache.directory(node.parent)

    def _chain(self, node: Directory) -> set[int]:
        found = {node.ino}
        while node.ino != ROOT_INO:
            node = self._cache.directory(node.parent)
            found.add(node.ino)
        return found
