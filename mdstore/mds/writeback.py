"""From the log into the directory objects; then the log may forget.

Dirty directories are written oldest first, each in one transaction (or several, its header last, where it has very many
changes), with the rows of the tables. Nothing depends on two objects changing together: until everything that an event said
is durable, the event stays in the log, and replaying it changes nothing that is there already.

What is written was in the log before (`Core.push_log`): so no object is ever newer than the log a crash leaves.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Final

from journal import JournalError
from mdstore.engines.protocol import Commit
from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.inode import Directory
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, META, data_object, directory_object, encode_backtrace
from mdstore.mds.purge import Purge
from mdstore.mds.statistics import Statistics
from mdstore.mds.tables import Table
from mdstore.store.transaction import Transaction

ENTRY_BYTES: Final = 1024  # a changed entry in a transaction takes no more, but for rare large attributes
STEP_ENTRIES: Final = 8192  # written by one bounded step
ENTRY_SHARE: Final = 32  # of the free blocks, that many for one changed entry: it may rewrite a path of a tree


class WriteBack:
    """The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache, statistics: Statistics, purge: Purge) -> None:
        self._core = core
        self._cache = cache
        self._statistics = statistics
        self._purge = purge
        self._many = core.store.capabilities.multi_object_transactions
        self._pending: deque[tuple[list[Commit], int]] = deque()
        self._commits: list[Commit] = []
        self._at_once = 1
        self.unsettled: dict[int, None] = {}  # written during replay before their statistics were handed up

    # -- when ----------------------------------------------------------------------------------------------------------

    @property
    def log_bytes(self) -> int:
        """Log that a crash at this moment would have to replay."""
        journal = self._core.journal
        return 0 if journal is None else journal.write - journal.expire

    def due(self) -> bool:
        """Whether the caller of an operation must help: too many changed entries, or too much log."""
        limits = self._core.limits
        return self._core.changes >= limits.dirty_entries or self.log_bytes >= limits.log_bytes

    def relieve(self) -> None:
        """Write back until the limits are kept again. Waits for the medium only when the log is at its ceiling."""
        core, limits = self._core, self._core.limits
        while core.changes > limits.dirty_entries_low and (core.dirty or self._dirty_tables()):
            self.step()
        self.retire()
        if self.log_bytes >= limits.log_bytes:
            while self.log_bytes >= limits.log_bytes // 2 and (core.dirty or self._dirty_tables()):
                self.step()
            self._commit_and_retire()

    def everything(self) -> None:
        """Nothing is dirty, everything is durable and the log is empty when this returns."""
        while self._core.dirty or self._dirty_tables() or self._core.stale_backtraces:
            self.step()
        self._commit_and_retire()
        journal = self._core.journal
        if journal is not None and journal.head.expire < journal.expire:
            journal.write_head()

    def _dirty_tables(self) -> list[Table]:
        return [table for table in self._core.tables.values() if table.since >= 0]

    def resettle(self) -> None:
        """After replay: directories written, now or by a replay that a crash cut short, before their statistics were handed up
        are dirty again, so that the next write-back does it."""
        unsettled, self.unsettled = self.unsettled, {}
        for ino in unsettled:
            try:
                directory = self._cache.directory(ino)
            except PosixError:
                continue  # removed by a later event
            if directory.unsettled:
                self._core.mark(directory)

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self, entries: int = STEP_ENTRIES) -> None:
        """Write the oldest directories, about `entries` changed entries of them, and all tables. Waits for nothing where the
        engine's commits are ordered."""
        core = self._core
        if not core.replaying:
            self._statistics.settle()
            core.push_log()
        self._at_once = self._fitting()
        traces = self._traces()  # the last that is read: from here on memory calls clean what is not submitted yet
        core.unlogged = True
        transaction = Transaction(epoch=core.epoch)
        written = in_this = 0
        for directory in list(core.dirty.values()):
            if written >= entries:
                break
            if directory.nlink and not directory.mode:
                continue  # replay has not come to the event that makes, or removes, it
            written += len(directory.changed) + 1
            in_this += len(directory.changed) + 1
            transaction = self._directory(transaction, directory)
            if len(transaction) and (in_this >= self._at_once or core.is_full(transaction) or not self._many):
                transaction = self._submit(transaction)
                in_this = 0
        transaction = self._backtraces(self._tables(transaction), traces)
        if transaction.operations:
            self._submit(transaction)
        core.unlogged = False
        core.counters.write_backs += 1
        core.counters.entries_written += written
        core.changes = sum(len(directory.changed) + 1 for directory in core.dirty.values())
        self._note_expiry()

    def _directory(self, transaction: Transaction, directory: Directory) -> Transaction:
        """Add the operations for one directory; it is clean afterwards."""
        name = directory_object(directory.ino)
        if directory.nlink == 0:
            if directory.stored:
                transaction.remove(META, name)
        else:
            transaction = self._entries(transaction, directory, name)
            transaction.map_set_header(META, name, directory.encode_header())
            directory.stored_version = directory.version
        self._clean(directory)
        return transaction

    def _entries(self, transaction: Transaction, directory: Directory, name: bytes) -> Transaction:
        changed = directory.changed
        if not changed:
            return transaction
        items = sorted(item for item in changed.items() if item[1] is not None)
        gone = [key for key, raw in changed.items() if raw is None] if directory.stored or items else []
        return self._rows(transaction, name, items, gone)  # type: ignore[arg-type]

    def _rows(
        self, transaction: Transaction, name: bytes, items: list[tuple[bytes, bytes]], gone: list[bytes]
    ) -> Transaction:
        """Set and remove keys of one map, in several transactions where they are many; the last is not submitted."""
        at_once = self._at_once
        for start in range(0, len(items), at_once):
            transaction.map_set(META, name, items[start : start + at_once])
            if len(items) - start > at_once:
                transaction = self._submit(transaction)
        for start in range(0, len(gone), at_once):
            transaction.map_remove(META, name, gone[start : start + at_once])
            if len(gone) - start > at_once:
                transaction = self._submit(transaction)
        return transaction

    def _fitting(self) -> int:
        """How many changed entries may stand in one transaction: by its size, and, where space is short, by what the store may
        have to keep free for it."""
        free_blocks = int(self._core.store.statistics()["free_bytes"]) >> 12
        return max(8, min(self._core.transaction_bytes // ENTRY_BYTES, free_blocks // ENTRY_SHARE))

    def _clean(self, directory: Directory) -> None:
        core = self._core
        directory.stored = directory.nlink > 0
        directory.since = -1
        del core.dirty[directory.ino]
        if directory.complete and len(directory.entries) != directory.size:
            directory.complete = False  # some entries were in memory only as the bytes that are forgotten now
        directory.changed = {}
        directory.listing = None
        if core.replaying and directory.unsettled:
            self.unsettled[directory.ino] = None
        if directory.nlink == 0:
            self._purge.released(directory)

    def _tables(self, transaction: Transaction) -> Transaction:
        core = self._core
        core.stamp_server_table()
        for table in core.tables.values():
            if len(table.changed) > self._at_once // 2:
                transaction = self._submit(transaction)
            rows = sorted((key, raw) for key, raw in table.changed.items() if raw is not None)
            gone = [key for key, raw in table.changed.items() if raw is None]
            transaction = self._rows(transaction, table.object_name, rows, gone)
            if (rows or gone) and (core.is_full(transaction) or not self._many):
                transaction = self._submit(transaction)
            table.changed.clear()
            table.since = -1
        return transaction

    def _traces(self) -> list[tuple[bytes, bytes]]:
        """What data objects should say of files that were renamed or changed, some of them: object and attribute. One that
        cannot be looked at is left as it is: a backtrace is a hint."""
        core = self._core
        found = []
        for ino in list(core.stale_backtraces)[:1024]:
            node = core.nodes.get(ino)
            name = data_object(ino, 0)
            with suppress(*UNREADABLE):
                if node is not None and node.nlink and core.store.exists(DATA, name):
                    trace = encode_backtrace(node.parent, node.name, node.encode())
                    if len(trace) <= 60_000:
                        found.append((name, trace))
            del core.stale_backtraces[ino]
        return found

    def _backtraces(self, transaction: Transaction, traces: list[tuple[bytes, bytes]]) -> Transaction:
        core = self._core
        for name, trace in traces:
            transaction.setattr(DATA, name, BACKTRACE_ATTRIBUTE, trace)
            if core.is_full(transaction) or not self._many:
                transaction = self._submit(transaction)
        return transaction

    def _submit(self, transaction: Transaction) -> Transaction:
        if transaction.operations:
            try:
                self._commits.append(self._core.store.submit(transaction))
            except MdstoreError as error:  # memory calls these directories clean already: nothing may go on from here
                raise self._core.fail(error) from error
        return Transaction(epoch=self._core.epoch)

    # -- letting the log forget ----------------------------------------------------------------------------------------

    def _note_expiry(self) -> None:
        """Once the commits so far are durable, nothing before the oldest change still in memory is needed."""
        core = self._core
        if core.replaying or core.journal is None:
            self._commits = self._commits[-1:] if core.ordered else self._commits
            return
        oldest = [directory.since for directory in list(core.dirty.values())[:1]]
        oldest += [table.since for table in self._dirty_tables()]
        commits, self._commits = self._commits, []
        self._pending.append((commits[-1:] if core.ordered else commits, min(oldest, default=core.position())))

    def retire(self) -> None:
        """Tell the log what it may forget; whole periods of it are given up. Waits for nothing, except that giving up a period
        writes the log's heads."""
        core, journal = self._core, self._core.journal
        if journal is None:
            return
        expire = -1
        while self._pending:
            commits, position = self._pending[0]
            if position > journal.safe or not all(commit.durable for commit in commits):
                break
            self._pending.popleft()
            expire = position
        if not self._pending and not core.dirty and not self._dirty_tables():
            expire = journal.safe  # also what replay found to be in the objects already
        if expire <= journal.expire:
            return
        try:
            journal.set_expire(expire)
            journal.trim()
        except JournalError as error:
            raise core.fail(error) from error

    def _commit_and_retire(self) -> None:
        """Everything written back, and everything in the log, is durable when this returns."""
        core = self._core
        core.flush_log()
        for commits, _ in self._pending:
            for commit in commits:
                commit.wait()
        self.retire()

    def blocked_by(self) -> str:
        """What keeps the oldest log from being forgotten."""
        for directory in self._core.dirty.values():
            return f"directory {directory.ino:#x} with {len(directory.changed)} changed entries"
        return "write-back not durable yet" if self._pending else "nothing"


