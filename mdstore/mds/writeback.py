"""From the log into the directory objects; then the log may forget.

Dirty directories are written oldest first, each in one transaction (or several, its header last, where it has very many
changes), with the rows of the tables. Nothing depends on two objects changing together: until everything that an event said
is durable, the event stays in the log, and replaying it changes nothing that is there already.

What is written was in the log before (`Core.push_log`): so no object is ever newer than the log a crash leaves.

A directory or table of which damage refuses some entries is set apart: what can be written of it is, and what cannot stays in
memory and in the log, where it is put once more when the log before is to go. Everything else goes on. It is tried again when it
has grown, before the log has it once more, and by `everything`. Where that is more than the limits allow, all changes end; they
do, too, where the next inode number cannot be written, which no event says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, NoReturn

from journal import JournalError
from mdstore.engines.protocol import Commit
from mdstore.errors import MdstoreError, PosixError, TransactionError
from mdstore.mds.cache import Cache
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.damage import note_damage
from mdstore.mds.events import Kind, dir_remove, dir_set, entry_remove, entry_set
from mdstore.mds.inode import Directory
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, META, Tab, data_object, directory_object, encode_backtrace
from mdstore.mds.purge import Purge
from mdstore.mds.statistics import Statistics
from mdstore.mds.tables import ROW_BYTES, Apart, Held, Table, held_in
from mdstore.store.transaction import Transaction

ENTRY_BYTES: Final = 1024  # a changed entry in a transaction takes no more, but for rare large attributes
STEP_ENTRIES: Final = 8192  # written by one bounded step
ENTRY_SHARE: Final = 32  # of the free blocks, that many for one changed entry: it may rewrite a path of a tree
CARRIED_TOGETHER: Final = 256  # records of one event


class Trace(NamedTuple):
    """A backtrace that a data object should have."""

    object_name: bytes
    value: bytes


Part = Directory | Table | Trace  # what is clean, or not, as a whole


class Refused(Exception):
    """A transaction met damage, and changed nothing."""

    def __init__(self, cause: MdstoreError) -> None:
        super().__init__(cause)
        self.cause = cause


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
        self._untold: list[tuple[Directory | Table, MdstoreError]] = []  # set apart, and not in the damage table yet
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
        tried = self._try_grown()
        while self._has_more() and (tried or core.changes > limits.dirty_entries_low):
            self.step()
        self._count()
        self.retire()
        if self.log_bytes >= limits.log_bytes:
            self._try_again()
            while self.log_bytes >= limits.log_bytes // 2 and self._has_more():
                self.step()
            self._carry()
            self._commit_and_retire()

    def everything(self) -> None:
        """Nothing is dirty but what damage refuses, everything is durable, and the log has nothing else when this returns."""
        self._try_again()
        while self._has_more() or self._core.stale_backtraces:
            self.step()
        self._commit_and_retire()
        journal = self._core.journal
        if journal is not None and journal.head.expire < journal.expire:
            journal.write_head()

    def _has_more(self) -> bool:
        """Whether something is dirty that is not set apart."""
        core = self._core
        return len(core.dirty) > len(core.apart) or any(table.apart is None for table in self._dirty_tables())

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
        engine's commits are ordered. What damage refuses is set apart; DeviceFailed, NoSpace and the like end all changes."""
        core = self._core
        self._try_grown()
        if not core.replaying:
            self._statistics.settle()
            core.push_log()
        self._at_once = self._fitting()
        directories = self._oldest(entries)
        core.stamp_server_table()
        tables = [table for table in core.tables.values() if table.changed and table.apart is None]
        parts: list[Part] = [*directories, *tables, *self._traces()]
        core.unlogged = True  # an interrupt within may leave something half clean: nothing may follow it
        self._write(parts)
        core.unlogged = False
        core.counters.write_backs += 1
        self._count()
        if self._untold and not core.replaying:
            self._tell_apart()
        self._note_expiry()

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

    def _write(self, parts: list[Part]) -> None:
        """Each is clean once the transaction with the last of it was submitted. Those of one that damage refuses are written by
        themselves, and set apart where that is refused, too."""
        transaction, waiting, rows = self._empty(), list[Part](), 0
        for number, part in enumerate(parts, 1):
            waiting.append(part)
            rows += 1 if isinstance(part, Trace) else len(part.changed) + 1
            try:
                transaction = self._add(part, transaction)
                if number < len(parts) and self._many and rows < self._at_once and not self._core.is_full(transaction):
                    continue
                self._submit(transaction)
            except Refused:
                for each in waiting:
                    self._write_alone(each)
            else:
                for each in waiting:
                    self._clean(each)
            transaction, waiting, rows = self._empty(), [], 0

    def _add(self, part: Part, transaction: Transaction) -> Transaction:
        """Add what writes `part`; where that is very much, part of it is submitted first, and the rest returned."""
        if isinstance(part, Trace):
            transaction.setattr(DATA, part.object_name, BACKTRACE_ATTRIBUTE, part.value)
            return transaction
        if isinstance(part, Table):
            return self._rows(transaction, part.object_name, part.changed, may_remove=True)
        name = directory_object(part.ino)
        if part.nlink == 0:
            if part.stored:
                transaction.remove(META, name)
            return transaction
        if not part.stored and len(part.changed) > self._at_once:  # a crash must find a header: of no version, so all is replayed
            transaction.map_set_header(META, name, part.encode_header(version=0))
            transaction = self._submit(transaction)
            part.stored = True
        transaction = self._rows(transaction, name, part.changed, may_remove=part.stored)
        transaction.map_set_header(META, name, part.encode_header())
        return transaction

    def _rows(
        self, transaction: Transaction, name: bytes, changed: Mapping[bytes, bytes | None], *, may_remove: bool
    ) -> Transaction:
        """Set and remove keys of one map, in several transactions where they are many; the last is not submitted. `may_remove`:
        the map is there already."""
        at_once = self._at_once
        items = sorted((key, raw) for key, raw in changed.items() if raw is not None)
        gone = [key for key, raw in changed.items() if raw is None] if may_remove or items else []
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

    def _clean(self, part: Part) -> None:
        """All of it was submitted."""
        if isinstance(part, Table):
            part.changed.clear()
            part.since = -1
        elif isinstance(part, Directory):
            self._clean_directory(part)

    def _clean_directory(self, directory: Directory) -> None:
        core = self._core
        directory.stored = directory.nlink > 0
        directory.stored_version = directory.version
        del core.dirty[directory.ino]
        directory.since = -1
        if directory.complete and len(directory.entries) != directory.size:
            directory.complete = False  # some entries were in memory only as the bytes that are forgotten now
        directory.changed = {}
        directory.listing = None
        if core.replaying and directory.unsettled:
            self.unsettled[directory.ino] = None
        if directory.nlink == 0:
            self._purge.released(directory)

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

    def _empty(self) -> Transaction:
        return Transaction(epoch=self._core.epoch)

    def _submit(self, transaction: Transaction) -> Transaction:
        """Submit it, and begin the next. `Refused`, nothing changed, where it meets damage."""
        if transaction.operations:
            try:
                self._commits.append(self._core.store.submit(transaction))
            except TransactionError as error:
                if isinstance(error.cause, UNREADABLE):
                    raise Refused(error.cause) from error
                raise self._core.fail(error) from error
            except MdstoreError as error:
                raise self._core.fail(error) from error
        return self._empty()

    # -- what cannot be written ----------------------------------------------------------------------------------------

    def _write_alone(self, part: Part) -> None:
        """Something that stood in a transaction with it, or it itself, is damaged: write what can be."""
        try:
            self._submit(self._add(part, self._empty()))
        except Refused as refused:
            if isinstance(part, Trace):
                return  # a hint
            if isinstance(part, Table) and part.number == Tab.SERVER:
                self._end_changes(refused.cause)
            if isinstance(part, Table) or (part.nlink and part.stored):
                self._write_fitting(part)
            if isinstance(part, Table) and not part.changed:  # read a moment later
                self._clean(part)
            else:
                self._set_apart(part, refused.cause)
        else:
            self._clean(part)

    def _write_fitting(self, part: Directory | Table) -> None:
        """Write every row that can be. A directory's header stays as it is, so that replay passes over none of the others."""
        name = part.object_name if isinstance(part, Table) else directory_object(part.ino)
        left = set(self._write_rows(name, list(part.changed.items())))
        for key in [key for key in part.changed if key not in left]:
            del part.changed[key]
        if isinstance(part, Directory):
            part.listing = None
            part.complete = part.complete and len(part.entries) == part.size

    def _write_rows(self, name: bytes, rows: list[tuple[bytes, bytes | None]]) -> list[bytes]:
        """Write rows of a map, as many together as can be; the keys of those that cannot."""
        try:
            self._submit(self._rows(self._empty(), name, dict(rows), may_remove=True))
        except Refused:
            if len(rows) == 1:
                return [rows[0][0]]
            middle = len(rows) // 2
            return self._write_rows(name, rows[:middle]) + self._write_rows(name, rows[middle:])
        return []

    def _set_apart(self, part: Directory | Table, cause: MdstoreError) -> None:
        """It stays dirty, its changes stay in the log, and nobody waits for it. As long as they are few: else all changes end."""
        core, apart = self._core, Apart(cause, held_in(part.changed))
        if isinstance(part, Table):
            part.apart = apart
        else:
            core.apart[part.ino] = apart
        self._untold.append((part, cause))
        if self._holds_too_much():
            self._end_changes(cause)

    def _end_changes(self, cause: MdstoreError) -> NoReturn:
        """The log is whole: all that it has is saved."""
        with suppress(MdstoreError):
            self._core.flush_log()
        raise self._core.fail(cause)

    def _holds_too_much(self) -> bool:
        """Whether what is set apart is more than memory may hold back, or than the log may carry: that would be rewritten for
        ever. Not in a replay: the limits were others when it was logged, and memory has to hold what the log does."""
        core = self._core
        if core.replaying:
            return False
        held = Held(0, 0)
        for ino in core.apart:
            directory = core.dirty[ino]
            held += Held(1, len(directory.encode_header()) + ROW_BYTES) + held_in(directory.changed)
        for table in core.tables.values():
            if table.apart is not None:
                held += held_in(table.changed)
        return held.entries > core.limits.dirty_entries or held.size > core.limits.log_bytes // 2

    def _try_grown(self) -> bool:
        """Most of what was changed since in something set apart can be written: whether there is such a thing. All is tried
        where it became too much."""
        core = self._core
        if self._holds_too_much():
            self._try_again()
            return True
        grown = [ino for ino, apart in core.apart.items() if apart.has_grown(core.dirty[ino].changed)]
        tables = [table for table in core.tables.values() if table.apart is not None and table.apart.has_grown(table.changed)]
        for ino in grown:
            del core.apart[ino]
        for table in tables:
            table.apart = None
        return bool(grown or tables)

    def _tell_apart(self) -> None:
        """Put what was set apart into the damage table."""
        while self._untold:
            part, cause = self._untold[-1]
            ino, name = (part.ino, b"") if isinstance(part, Directory) else (0, part.object_name)
            note_damage(self._core, ino, name, cause)
            self._untold.pop()

    def _try_again(self) -> None:
        """What was set apart is to be written like everything else."""
        self._core.apart.clear()
        for table in self._core.tables.values():
            table.apart = None

    def _carry(self) -> None:
        """Put what is set apart into the log once more, all that is not written, so that the log before may go: once all of it is
        there."""
        core = self._core
        for ino in list(core.apart):
            directory, position = core.dirty[ino], core.position()
            gone = directory.nlink == 0
            core.append(Kind.REPAIR, dir_remove(ino) if gone else dir_set(ino, directory.encode_header()))
            version = directory.version
            self._append_some(
                entry_remove(ino, version, name) if raw is None else entry_set(ino, version, name, raw)
                for name, raw in directory.changed.items()
            )
            core.unlogged = True  # C2: an interrupt between these may not let the log go
            del core.dirty[ino]
            directory.since = position
            core.dirty[ino] = directory
            core.unlogged = False
        for table in core.tables.values():
            if table.apart is not None:
                position = core.position()
                self._append_some(table.record(key, raw) for key, raw in table.changed.items())
                table.since = position
        self._note_expiry()

    def _append_some(self, records: Iterator[bytes]) -> None:
        while some := b"".join(islice(records, CARRIED_TOGETHER)):
            self._core.append(Kind.REPAIR, some)

    # -- letting the log forget ----------------------------------------------------------------------------------------

    def _note_expiry(self) -> None:
        """Once the commits so far are durable, nothing before the oldest change still in memory is needed."""
        core = self._core
        if core.replaying or core.journal is None:
            self._commits = self._commits[-1:] if core.ordered else self._commits
            return
        oldest = [directory.since for directory in list(core.dirty.values())[:1]]
        oldest += [table.since for table in self._dirty_tables()]
        commits = self._commits[-1:] if core.ordered else self._commits
        self._pending.append((commits, min(oldest, default=core.position())))
        self._commits = []  # interrupted before it, they are waited for twice

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
        written = all(commit.durable for commit in self._commits)  # of a replay, or of a step that was interrupted behind them
        if written and not self._pending and not core.dirty and not self._dirty_tables():
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
        if self._commits:
            self._note_expiry()
        for commits, _ in self._pending:
            for commit in commits:
                commit.wait()
        self.retire()

    def blocked_by(self) -> str:
        """What keeps the oldest log from being forgotten."""
        for directory in self._core.dirty.values():
            cause = self._core.apart.get(directory.ino)
            why = "" if cause is None else f", which cannot be written: {cause.error}"
            return f"directory {directory.ino:#x} with {len(directory.changed)} changed entries{why}"
        return "write-back not durable yet" if self._pending else "nothing"


