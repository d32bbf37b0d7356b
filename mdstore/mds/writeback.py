"""From the log into the directory objects; then the log may forget.

Dirty directories are written oldest first, each in one transaction (or several, its header last, where it has very many
changes), with the rows of the tables. Nothing depends on two objects changing together: until everything that an event said
is durable, the event stays in the log, and replaying it changes nothing that is there already.

What is written was in the log before (`Core.push_log`): so no object is ever newer than the log a crash leaves.

What damage refuses is set apart (setapart.py), and everything else goes on. All changes end where the next inode number cannot be
written, which no event says.

How it is written is in partwriter.py, when the log may forget it in expiry.py; here is what, and when.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mdstore.errors import PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.expiry import Expiry
from mdstore.mds.inode import Directory
from mdstore.mds.layout import DATA, data_object, encode_backtrace
from mdstore.mds.partwriter import Part, PartWriter, Trace
from mdstore.mds.purge import Purge
from mdstore.mds.setapart import SetApart
from mdstore.mds.statistics import Statistics

STEP_ENTRIES: Final = 8192  # written by one bounded step


class WriteBack:
    """The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache, statistics: Statistics, purge: Purge) -> None:
        self._core = core
        self._cache = cache
        self._statistics = statistics
        self.unsettled: dict[int, None] = {}  # written during replay before their statistics were handed up
        self._expiry = Expiry(core)
        self._apart = SetApart(core)
        self._writer = PartWriter(core, purge, self._expiry, self._apart, self.unsettled)

    @property
    def log_bytes(self) -> int:
        """Log that a crash at this moment would have to replay."""
        return self._expiry.log_bytes

    def retire(self) -> None:
        """See `Expiry.retire`."""
        self._expiry.retire()

    def blocked_by(self) -> str:
        """What keeps the oldest log from being forgotten."""
        return self._expiry.blocked_by()

    # -- when ----------------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether the caller of an operation must help: too many changed entries, or too much log."""
        limits = self._core.limits
        return self._core.changes >= limits.dirty_entries or self.log_bytes >= limits.log_bytes

    def relieve(self) -> None:
        """Write back until the limits are kept again. Waits for the medium only when the log is at its ceiling."""
        core, limits = self._core, self._core.limits
        tried = self._apart.try_grown()
        while self._has_more() and (tried or core.changes > limits.dirty_entries_low):
            self.step()
        self._count()
        self.retire()
        if self.log_bytes >= limits.log_bytes:
            self._apart.try_again()
            while self.log_bytes >= limits.log_bytes // 2 and self._has_more():
                self.step()
            self._carry()
            self._expiry.commit_and_retire()

    def everything(self) -> None:
        """Nothing is dirty but what damage refuses, everything is durable, and the log has nothing else when this returns."""
        self._apart.try_again()
        if self._core.unsettled:
            self._statistics.settle()
        while self._has_more() or self._core.stale_backtraces:
            self.step()
        self._expiry.commit_and_retire()
        journal = self._core.journal
        if journal is not None and journal.head.expire < journal.expire:
            journal.write_head()

    def _has_more(self) -> bool:
        """Whether something is dirty that is not set apart."""
        core = self._core
        return len(core.dirty) > len(core.apart) or any(table.apart is None for table in self._expiry.dirty_tables())

    def _carry(self) -> None:
        """What is set apart is in the log once more, and the log before may go."""
        self._apart.carry()
        self._expiry.note()

    def resettle(self) -> None:
        """After replay: directories written, now or by a replay that a crash cut short, before their statistics were handed up
        are dirty again, so that the next write-back does it."""
        unsettled = list(self.unsettled)
        self.unsettled.clear()
        for ino in unsettled:
            try:
                directory = self._cache.directory(ino)
            except PosixError:
                continue  # removed by a later event
            except UNREADABLE:
                self._core.unsettled.add(ino, ino)
                continue
            if directory.unsettled:
                self._core.mark(directory)

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self, entries: int = STEP_ENTRIES) -> None:
        """Write the oldest directories, about `entries` changed entries of them, and all tables. Waits for nothing where the
        engine's commits are ordered. What damage refuses is set apart; DeviceFailed, NoSpace and the like end all changes."""
        core = self._core
        self._apart.try_grown()
        if not core.replaying:
            self._statistics.settle(look_again=False)
            core.push_log()
        self._writer.measure()
        directories = self._oldest(entries)
        core.stamp_server_table()
        tables = [table for table in core.tables.values() if table.changed and table.apart is None]
        parts: list[Part] = [*directories, *tables, *self._traces()]
        core.unlogged = True  # an interrupt within may leave something half clean: nothing may follow it
        self._writer.write(parts)
        core.unlogged = False
        core.counters.write_backs += 1
        self._count()
        if not core.replaying:
            self._apart.tell()
        self._expiry.note()

    def _count(self) -> None:
        """What is to be written now."""
        core = self._core
        core.changes = sum(len(directory.changed) + 1 for ino, directory in core.dirty.items() if ino not in core.apart)

    def _oldest(self, entries: int) -> list[Directory]:
        """The directories that were dirty first, but for those set apart."""
        core = self._core
        found: list[Directory] = []
        for directory in core.dirty.values():
            if entries <= 0:
                break
            if directory.nlink and not directory.mode:
                continue  # replay has not come to the event that makes, or removes, it
            if directory.ino not in core.apart:
                found.append(directory)
                entries -= len(directory.changed) + 1
        return found

    def _traces(self) -> list[Trace]:
        """What data objects should say of files that were renamed or changed, some of them. One that cannot be looked at is left
        as it is: a backtrace is a hint."""
        core = self._core
        found = []
        for ino in list(core.stale_backtraces)[:1024]:
            node = core.nodes.get(ino)
            name = data_object(ino, 0)
            with suppress(*UNREADABLE):
                if node is not None and node.nlink and core.store.exists(DATA, name):
                    trace = encode_backtrace(node.parent, node.name, node.encode())
                    if len(trace) <= 60_000:
                        found.append(Trace(name, trace))
            del core.stale_backtraces[ino]
        return found
