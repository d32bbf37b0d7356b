"""What all parts of the metadata server share: the store, the log, the inodes in memory, and which of them are dirty.

Invariants

 C1  every change goes: what must be read of the store, memory, then one event (`append`), under one lock, `guard`; after an
     append that failed, and after a change that ended between the two (`unlogged`), nothing is logged or written back any
     more (`failed`)
 C2  `dirty` holds exactly the directories with `since` >= 0, in the order of `since`
 C3  everything at or after the smallest `since` of directories and tables is still in the log
 C4  bytes of files are submitted to the store before the event that makes them visible is appended; what an object holds
     beyond a file's size means nothing, and is cut off before the size grows over it
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

from journal import Journal, JournalError, JournalFenced
from mdstore.engines.protocol import Commit, ObjectStore
from mdstore.errors import CorruptionError, DeviceFailed, FencedError, InternalError, MdstoreError, ReadOnly
from mdstore.mds.events import CLIENT_KINDS_END, client_request
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import FIRST_FREE_INO, HOME, INO_KEY, NEXT_INO, NEXT_INO_KEY, ServerRecord, Tab
from mdstore.mds.records import INO_END
from mdstore.mds.tables import Apart, Table
from mdstore.mds.unsettled import Unsettled
from mdstore.mds.vfs import ROOT_INO
from mdstore.store.exiting import STOPPED, EndingLock, are_free
from mdstore.store.transaction import Transaction

log = logging.getLogger(__name__)

UNREADABLE: Final = (CorruptionError, DeviceFailed)  # what a look into the store may end with; nothing has changed then


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the server keeps before it writes back. All may be changed freely between two openings."""

    cache_bytes: int = 64 << 20  # inodes and directory entries in memory, about
    references_max: int = 262144  # numbers a front may hold before it is asked to let go of some; about 350 bytes each
    dirty_entries: int = 32768  # changed entries before the oldest directories are written back
    dirty_entries_low: int = 16384  # and how many are left when that stops
    log_bytes: int = 32 << 20  # log to replay after a crash, at most; the same in seconds at 100,000 events per second
    file_buffer: int = 4 << 20  # written bytes of one file held back
    data_buffer: int = 16 << 20  # of all files together
    age_ns: int = 1_000_000_000  # bytes and events older than that go to the medium with the next tick

    def for_store(self, size_bytes: int) -> Limits:
        """The same, lowered where a store of that size is small: what is held back must find room in it."""
        entries = min(self.dirty_entries, max(128, size_bytes >> 13))
        data = min(self.data_buffer, max(64 << 10, size_bytes >> 5))
        return replace(
            self, log_bytes=min(self.log_bytes, max(256 << 10, size_bytes >> 4)), dirty_entries=entries,
            dirty_entries_low=min(self.dirty_entries_low, max(1, entries // 2)), data_buffer=data,
            file_buffer=min(self.file_buffer, max(32 << 10, data // 2)),
        )  # fmt: skip


@dataclass(slots=True)
class Counters:
    """What the server has done since it was opened."""

    events: int = 0
    event_bytes: int = 0
    lookups: int = 0
    store_reads: int = 0
    write_backs: int = 0
    entries_written: int = 0
    data_bytes_written: int = 0
    data_bytes_read: int = 0
    evicted: int = 0
    recalled: int = 0
    purged_files: int = 0
    purged_objects: int = 0
    fsyncs: int = 0


class Guard:
    """`with core.guard:` the lock, for what changes something; see `Core.meet` for what becomes of an error."""

    __slots__ = ("_core", "_lock", "_release")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = core.lock
        self._release = core.lock.release

    def __enter__(self) -> None:
        self._lock.acquire()  # looked up anew: the end of the interpreter changes it (exiting.py)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._core.meet(error)
        finally:
            self._release()


class Core:
    """See the head of the module. Not a public class; `lock` guards all of it."""

    def __init__(self, store: ObjectStore, server: ServerRecord, limits: Limits, clock: Callable[[], int]) -> None:
        self.store = store
        self.ordered = store.capabilities.ordered_commits
        self.server = server
        self.object_size = server.object_size
        self.transaction_bytes = transaction_bytes(store)
        self.limits = limits
        self.clock = clock
        self.lock = EndingLock(self._is_at_rest, self._give_up)
        self.guard = Guard(self)
        self.unlogged = False  # a change of memory has begun, and no event says so yet
        self.counters = Counters()
        self.journal: Journal | None = None
        self.failed: MdstoreError | None = None
        self.failure: MdstoreError | None = None  # the first, for whoever asks in the end
        self.fell_back: MdstoreError | None = None  # the failure after which the server went on read-only
        self.replaying = False
        self.nodes: dict[int, Inode] = {}
        self.where: dict[int, tuple[int, bytes]] = {}  # where inodes that somebody refers to are, though not in memory
        self.references: dict[int, int] = {}  # how often a front was handed an inode's number
        self.recall: Callable[[int, bytes], bool] | None = None  # asks the front to let go of a name in a directory
        self.recalls_open = 0  # numbers it was asked for and has not given back, about
        self.dirty: dict[int, Directory] = {}
        self.apart: dict[int, Apart] = {}  # directories, all dirty, that damage keeps from being written
        self.news: dict[int, Directory] | None = None  # whose statistics changed since they were handed up; None: not kept
        self.unsettled = Unsettled()  # directories whose statistics were not handed up: the parent could not be read
        self.buffered: dict[int, Inode] = {}  # files with bytes not submitted yet, the oldest first
        self.buffered_bytes = 0
        self.stale_backtraces: dict[int, None] = {}
        self.epoch: int | None = None  # tags every write, for fencing
        self.changes = 0  # changed entries since the last write-back, counted generously
        self.tables = {number: Table(store, number) for number in Tab}
        self.inodes = self.tables[Tab.INODES]
        self.links = self.tables[Tab.LINKS]
        self.strays = self.tables[Tab.STRAYS]
        self.damage = self.tables[Tab.DAMAGE]
        self.quotas = self.tables[Tab.QUOTAS]
        self.damage_told: set[bytes] = set()  # keys of its rows that the server's messages have named
        self.next_ino = FIRST_FREE_INO
        self.next_session = 1
        self.client = 0  # the session for which events are made; 0: nobody's
        self.request = 0  # its number of the request
        self.completion: Callable[[], bytes] | None = None  # makes the records that go with a request's last event
        self.held: dict[int, set[int]] = {}  # inodes without a name, and the sessions that keep them over a restart
        self.held_by: dict[int, set[int]] = {}  # the same by session
        self.first_ino_here = FIRST_FREE_INO  # numbers from here on were given out since the server was opened

    # -- the end of the interpreter ------------------------------------------------------------------------------------

    def _is_at_rest(self) -> bool:
        """Where no other thread runs any more: whether none was stopped inside."""
        return are_free([self.lock]) and (self.journal is None or self.journal.is_at_rest())

    def _give_up(self) -> MdstoreError:
        """One was: nothing more is logged or written back, and every call raises why."""
        error = DeviceFailed("lock", "the metadata server", STOPPED)
        if self.journal is not None:
            self.journal.left_behind(str(error))
        return self.fail(error)

    # -- the log -------------------------------------------------------------------------------------------------------

    def append(self, kind: int, payload: bytes, *, completes: bool = True) -> None:
        """Put an event in the log. C1: whoever made it has changed memory already, so a failure here is final.
        `completes`: the request it is made for is done with it; only then is it remembered as done."""
        journal = self.journal
        if journal is None:
            raise ReadOnly("the file system is open read-only")
        if self.client and kind < CLIENT_KINDS_END:
            payload += client_request(self.client, self.request)
            if completes and self.completion is not None:
                payload += self.completion()
        try:
            journal.append(payload, kind)
        except JournalError as error:
            raise self.fail(error) from error
        self.unlogged = False
        self.counters.events += 1
        self.counters.event_bytes += len(payload)

    def fail(self, error: Exception) -> MdstoreError:
        """Remember that the log is gone; every later call raises the same."""
        if self.failed is None:
            if isinstance(error, JournalFenced):
                self.failed = FencedError(error.where, error.epoch, error.floor)
            else:
                self.failed = error if isinstance(error, MdstoreError) else DeviceFailed("metadata log", "log", error)
            self.failure = self.failure or self.failed
        return self.failed

    def meet(self, error: BaseException) -> None:
        """A change ends with `error`, under the lock. Where it may be half-done the log is saved, which is whole up to here, and
        nothing follows it: the server is latched before anybody else gets the lock. Errors of our own, wrong types, want of
        memory and interrupts leave it as it is where no change has begun; of anything else nobody knows what it spoiled, and
        `InternalError` is raised instead."""
        foreseen = isinstance(error, MdstoreError)
        harmless = foreseen or isinstance(error, TypeError | MemoryError) or not isinstance(error, Exception)
        if harmless and not self.unlogged:
            return
        if self.failed is None:
            log.error("the metadata server stops: a change ended half-way", exc_info=error)
            with suppress(MdstoreError):
                self.flush_log()
            self.fail(InternalError("the metadata server", error))
        if not foreseen and isinstance(error, Exception):
            raise self.failed or error from error

    def position(self) -> int:
        """Where the next event will begin."""
        assert self.journal is not None
        return self.journal.write

    def flush_log(self, position: int | None = None) -> None:
        """Every event before `position` (default: all) survives a crash when this returns; with ordered commits also
        everything submitted to the store before. May be called without the lock."""
        journal = self.journal
        if journal is None:
            return
        try:
            journal.wait(journal.write if position is None else position)
        except JournalError as error:
            raise self.fail(error) from error

    def push_log(self) -> None:
        """Every event appended so far will be durable before anything that is submitted to the store after this returns."""
        journal = self.journal
        assert journal is not None
        if journal.flushed == journal.write:
            return
        if not self.ordered:
            self.flush_log()
            return
        try:
            journal.push()
        except JournalError as error:
            raise self.fail(error) from error

    def settle_commits(self, commits: list[Commit]) -> None:
        """What `commits` did will be durable before anything submitted or appended after this returns."""
        if not self.ordered:
            for commit in commits:
                commit.wait()

    def is_full(self, transaction: Transaction) -> bool:
        """Whether a transaction should be submitted before more is added to it."""
        operations = len(transaction.operations)
        return (
            operations >= _TRANSACTION_OPERATIONS
            or transaction.payload_bytes + _OPERATION_BYTES * operations >= self.transaction_bytes
        )

    # -- what is dirty -------------------------------------------------------------------------------------------------

    def mark(self, directory: Directory) -> None:
        """Before the event that changes it is appended: `directory` is dirty from here on (C2)."""
        if directory.since < 0:
            directory.since = self.position()
            self.dirty[directory.ino] = directory

    def mark_table(self, table: Table) -> None:
        """Before an event with rows of `table` is appended."""
        if table.since < 0:
            table.since = self.position()

    def touch(self, directory: Directory, now: int, entries: int, links: int, files: int, dirs: int, space: int) -> bytes:
        """Entries came or went: counts, times, version. Returns the event record. `entries` etc. are differences."""
        self.unlogged = True
        directory.size += entries
        directory.nlink += links
        directory.rfiles += files
        directory.rdirs += dirs
        directory.rbytes += space
        directory.mtime = directory.ctime = now
        return self.bump(directory, now)

    def bump(self, directory: Directory, now: int) -> bytes:
        """Something in or about an entry changed: version and latest change. Returns the event record."""
        if now > directory.rctime:
            directory.rctime = now
        directory.version += 1
        directory.change += 1
        self.changes += 1
        self.unlogged = True
        if directory.since < 0:
            self.mark(directory)
        if self.news is not None:
            self.news[directory.ino] = directory
        return directory.touch_record()

    # -- numbers and rows ----------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        """A number no inode ever had. Durable with the event that uses it. CorruptionError where none is left:
        that many were never given out."""
        ino = self.next_ino
        if ino >= INO_END:
            raise CorruptionError("next inode number", "meta/table.server", "one below 2^44", ino)
        self.next_ino = ino + 1
        return ino

    def put_row(self, table: Table, key: bytes, value: bytes) -> bytes:
        """Set a row of a table; returns the event record."""
        self.unlogged = True
        self.mark_table(table)
        return table.put(key, value)

    def drop_row(self, table: Table, key: bytes) -> bytes:
        """Remove a row of a table; returns the event record."""
        self.unlogged = True
        self.mark_table(table)
        return table.drop(key)

    def put_unnamed(self, node: Inode, value: bytes | None = None) -> bytes:
        """Keep an inode of several names, or of none, in its table; returns the event record. `value`: the row, if it is made
        already."""
        table = self.inodes if node.nlink else self.strays
        row = HOME.pack(node.home) + node.encode() if value is None else value
        return self.put_row(table, INO_KEY.pack(node.ino), row)

    def stamp_server_table(self) -> None:
        """Let the next write-back keep the next free number."""
        self.tables[Tab.SERVER].changed[NEXT_INO_KEY] = NEXT_INO.pack(self.next_ino)

    def file_count(self) -> int:
        """Files and directories of the whole file system, as far as the root's statistics know."""
        root = self.nodes.get(ROOT_INO)
        return root.rfiles + root.rdirs + 1 if isinstance(root, Directory) else 1

    # -- checks --------------------------------------------------------------------------------------------------------

    def is_writable(self) -> bool:
        """Whether `assert_writable` would return."""
        return self.failed is None and self.journal is not None

    def assert_writable(self) -> None:
        """Raise what stands against a change: a failed or fenced log, a read-only file system."""
        if self.failed is not None:
            raise self.failed
        if self.fell_back is not None:
            raise ReadOnly(f"the file system fell back to read-only: {self.fell_back}")
        if self.journal is None:
            raise ReadOnly("the file system is open read-only")

    def assert_syncable(self) -> None:
        """`assert_writable` for who wants to know whether earlier changes are durable: they are not after a failure."""
        if self.fell_back is not None:
            raise self.fell_back
        self.assert_writable()

    def assert_state(self) -> None:
        """Check the invariants that memory alone can show."""
        last = -1
        for ino, directory in self.dirty.items():
            assert directory.ino == ino, "C2"
            assert directory.since >= last, "C2"
            last = directory.since
        for node in self.nodes.values():
            if isinstance(node, Directory):
                assert node.since < 0 or node.ino in self.dirty, "C2"
                assert node.since >= 0 or not node.changed, "C2"


_OPERATION_BYTES: Final = 64  # names and numbers of one operation, about
_TRANSACTION_OPERATIONS: Final = 512  # where space is short, an engine keeps blocks free for every operation
_TRANSACTION_BYTES_MAX: Final = 8 << 20


def transaction_bytes(store: ObjectStore) -> int:
    """Payload of one transaction, about. An engine with a log of its own must find room in it for a whole one, and a small
    image has a small log: a quarter leaves room for the last thing added and for what the engine adds."""
    log_bytes = int(store.statistics().get("log_bytes", 0))
    return min(_TRANSACTION_BYTES_MAX, log_bytes // 4) if log_bytes else _TRANSACTION_BYTES_MAX
