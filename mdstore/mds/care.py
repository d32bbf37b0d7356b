"""What a metadata server does without being asked by a program: recovery, write-back, purging, scrubs; going on after its medium
failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from journal import Journal, JournalError
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import InternalError, MdstoreError, StoreClosed, TransactionError
from mdstore.mds.attributes import Attributes
from mdstore.mds.boundary import checked
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.control import Control
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.damage import Damage, forget_damage, list_damage
from mdstore.mds.directories import Directories
from mdstore.mds.fallback import recall_some, remember, restart, restore
from mdstore.mds.filedata import FileData
from mdstore.mds.files import Files
from mdstore.mds.handles import Handles
from mdstore.mds.holds import Holds
from mdstore.mds.layout import FIRST_FREE_INO, NEXT_INO, NEXT_INO_KEY, Tab
from mdstore.mds.locks import FileLocks
from mdstore.mds.making import event_medium, log_error
from mdstore.mds.names import Names
from mdstore.mds.purge import Purge
from mdstore.mds.quota import Quota
from mdstore.mds.rename import Rename
from mdstore.mds.replay import Progress, RecoveryReport, Replay
from mdstore.mds.scrub import Scrub
from mdstore.mds.scrubrun import ScrubRun
from mdstore.mds.sessions import Sessions
from mdstore.mds.space import Space
from mdstore.mds.statistics import Statistics
from mdstore.mds.vfs import ROOT_INO
from mdstore.mds.writeback import WriteBack
from mdstore.mds.xattrs import Xattrs

PURGES_WHEN_SHORT = 16  # steps of the purge queue, of 256 objects each, before the store is asked for its free space again
PIECE_ENTRIES = 1024  # changed entries written back before others have their turn


class Care:
    """The parts of a metadata server, put together, and their upkeep. `MetadataServer` adds the verbs of `Vfs`.

    `recovery` tells what was replayed at the last opening.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = core.lock
        self._closed = False
        self._to_recall: list[tuple[int, bytes]] = []
        self.recovery = RecoveryReport()
        self._cache = Cache(core)
        self._changes = Changes(core, self._cache)
        self._data = FileData(core, self._changes)
        self._purge = Purge(core)
        self._statistics = Statistics(core, self._cache)
        self._quota = Quota(core, self._cache, self._data, self._statistics)
        self._space = Space(core, self._settle)
        self._handles = Handles()
        self._writeback = WriteBack(core, self._cache, self._statistics, self._purge)
        self._holds = Holds(core)
        self._locks = FileLocks()
        self._sessions = Sessions(core, self._holds, self._purge)
        self._names = Names(core, self._cache, self._data, self._purge, self._quota, self._holds)
        self._rename = Rename(
            core, self._cache, self._names, self._data, self._changes, self._purge, self._quota
        )  # fmt: skip
        self._attributes = Attributes(core, self._cache, self._data, self._changes, self._handles, self._quota)
        self._directories = Directories(core, self._cache, self._handles)
        self.scrubbing = ScrubRun(core, lambda repair: self.scrub(repair=repair))
        control = Control(core, self._sessions, self.scrubbing, self.counters)
        self._xattrs = Xattrs(core, self._cache, self._data, self._changes, self._statistics, self._quota, control)
        self._files = Files(
            core, self._cache, self._data, self._changes, self._handles, self._purge, self._quota, self._space
        )

    # -- coming back ---------------------------------------------------------------------------------------------------

    def _recover(self, *, read_only: bool, progress: Progress | None = None) -> None:
        core = self._core
        began = time.monotonic()
        raw = core.tables[Tab.SERVER].get(NEXT_INO_KEY)
        core.next_ino = NEXT_INO.unpack(raw)[0] if raw is not None and len(raw) == NEXT_INO.size else FIRST_FREE_INO
        medium = event_medium(core.store, core.server)
        replay = Replay(core, self._writeback, medium, read_only=read_only, progress=progress)
        core.replaying = True
        try:
            journal = Journal.open(medium, read_only=read_only, visit=replay.visit)
        except JournalError as error:
            raise log_error(error) from error
        replay.finish(journal)
        replay.report.replay_seconds = time.monotonic() - began
        core.replaying = False
        core.first_ino_here = core.next_ino
        self.recovery = replay.report
        self._cache.directory(ROOT_INO)
        if not read_only:
            core.journal = journal
            self._writeback.resettle()
        self._quota.load()
        if not read_only:
            self._purge.start_from_table()
        self._sessions.load()
        self.recovery.seconds = time.monotonic() - began

    def fall_back(self, reopen: Callable[[], ObjectStore], cause: Exception | None = None) -> None:
        """After a failure: go on read-only, see `fallback`. Nothing where nothing has failed and no `cause` says that something
        has, such as the error that ended a `Driver`. `reopen` closes the store and opens it again, read-only; it is called
        with the lock held. Its errors, and those of `mount`, come through: then nothing is answered any more. Call
        `background_work` afterwards until there is none: it tells the front what may have changed."""
        with self._lock:
            core = self._core
            self._meet_failure()
            if cause is not None and core.is_writable():
                self._save(cause)
            if self._closed or core.failed is None:
                return
            cause, known = core.failed, remember(core, self._handles)
            self.scrubbing.stop()
            store = reopen()
            restart(core, self._cache, store, cause)
            sessions = self._sessions.forget_all()
            self._purge.forget_all()
            try:
                self._recover(read_only=True)
            except MdstoreError as error:
                core.failed = error
                raise
            restore(core, self._cache, self._handles, known)
            self._sessions.go_on(sessions, {number for number, _ in self._handles.items()})
            for ino in {ino for _, ino in known.open} - {node.ino for node in self._handles.nodes()}:
                self._locks.lose_inode(ino)
            self._to_recall = known.changed

    def _save(self, cause: Exception) -> None:
        """Before the server counts as failed although its store and its log have not: make durable what can be."""
        with suppress(Exception):  # one that ended half-way: what the log has until here is whole
            self._data.publish_what_fits()
        with suppress(MdstoreError):
            self._core.flush_log()
        self._core.fail(cause if isinstance(cause, MdstoreError) else InternalError("the metadata server", cause))

    @property
    def failure(self) -> MdstoreError | None:
        """The first thing that ended changes: of the medium, of another writer, of the server itself; None while all is well."""
        return self._core.failure

    @property
    def store(self) -> ObjectStore:
        """What everything is kept in."""
        return self._core.store

    def settled_store(self) -> ObjectStore:
        """`store`; of a server that is falling back, the one it goes on over."""
        with self._lock:
            return self._core.store

    def look_into(self, store: ObjectStore) -> None:
        """Go on over `store`, which holds exactly what the one before it did. For a server that is mounted read-only."""
        with self._lock:
            core = self._core
            assert core.journal is None, "what a writable server holds back belongs into its store"
            core.store = store
            for table in core.tables.values():
                table.store = store
            self._cache.look_in(store)

    # -- what every verb does first ------------------------------------------------------------------------------------

    def _before_change(self) -> None:
        """Raise what stands against changes; help with write-back where limits are reached."""
        core = self._core
        if core.failed is not None or core.journal is None:
            core.assert_writable()
        if core.completion is None:
            core.request += 1
        self._relieve()

    def _relieve(self) -> None:
        """Keep to the limits of what is held back and of what memory holds."""
        core = self._core
        if core.changes >= core.limits.dirty_entries or (core.counters.events & 255 == 0 and self._writeback.due()):
            self._writeback.relieve()
        if len(core.nodes) > self._cache.nodes_max:
            self._cache.evict()

    def _before_read(self) -> None:
        """A server whose log or store has failed still reads what it can; a closed one answers nothing."""
        core = self._core
        if self._closed:
            raise core.failed or StoreClosed("the file system is closed")
        if len(core.nodes) > self._cache.nodes_max:
            self._cache.evict()

    def _settle(self) -> bool:
        """Space is short: what is held back goes into the store, and files without a name out of it, a number of them at a time.
        False when there is nothing of either."""
        core = self._core
        held_back = bool(core.buffered or core.changes)
        if held_back:
            with suppress(*UNREADABLE):  # who syncs is told
                self._data.publish(list(core.buffered.values()))
        purged = sum(self._purge.step() for _ in range(PURGES_WHEN_SHORT))
        if held_back or purged:
            self._writeback.everything()
        return held_back or purged > 0

    # -- care ----------------------------------------------------------------------------------------------------------

    @checked
    def tick(self, now_ns: int) -> None:
        """What time brings: bytes and events older than a second go to the medium, some removed files are purged. Waits for
        the medium without holding the lock. Raises what the log or the store failed with, whoever met it."""
        core = self._core
        with core.guard:
            self._meet_failure()
            if core.failed is not None and not self._closed:
                raise core.failed
            if not core.is_writable():
                return
            with suppress(TransactionError, *UNREADABLE):  # who syncs is told; removing files, below, may make room
                self._data.publish_older_than(now_ns - core.limits.age_ns)
            position = core.position()
        core.flush_log(position)
        with core.guard:
            if not core.is_writable():
                return
            self._sessions.tick(now_ns)
            self._statistics.tick()
            self._purge.step()
            self._writeback.retire()

    def _meet_failure(self) -> None:
        """A store that failed outside the log (a checkpoint, a snapshot) has failed for the server, too. Cost: no read."""
        core = self._core
        if core.is_writable():
            try:
                core.store.statistics()
            except MdstoreError as error:
                core.fail(error)

    def background_work(self) -> bool:
        """A small piece of what is to be done beside everything else: writing back, once much is dirty; removing files without a
        name; a scrub. False when there is nothing more. Cost: some milliseconds under the lock; call it again after a pause."""
        core = self._core
        with core.guard:
            self._cache.recall_excess()
            writes = core.is_writable() and core.changes >= core.limits.dirty_entries_low
            if writes:
                self._writeback.step(PIECE_ENTRIES)
            purges = core.is_writable() and self._purge.step()
            recalls = recall_some(core, self._to_recall)
        return self.scrubbing.step() or writes or purges or recalls

    def purge_all(self) -> None:
        """Remove the bytes of every file that has no name and no user. Cost: one transaction per few hundred objects."""
        with self._core.guard:
            self._core.assert_writable()
            while self._purge.step():
                pass

    def write_back(self) -> None:
        """Bring every directory object up to date and empty the log. Durable on return."""
        with self._core.guard:
            self._core.assert_writable()
            self._data.publish(list(self._core.buffered.values()))
            self._writeback.everything()

    def drop_caches(self) -> None:
        """Write everything back and forget every inode that nobody has open."""
        with self._core.guard:
            self.write_back()
            self._cache.drop_all()

    def damage(self) -> list[Damage]:
        """What was found broken, and not forgotten since."""
        with self._lock:
            return list_damage(self._core)

    @checked
    def forget_damage(self, directory: int, name: bytes) -> bool:
        """Drop a row of the damage table; False when there is none. Repairs nothing."""
        with self._core.guard:
            self._before_change()
            return forget_damage(self._core, directory, name)

    def scrub(self, *, repair: bool = False) -> Scrub:
        """A check of the name space against itself, beside whatever else goes on; iterate over `Scrub.run`."""
        return Scrub(
            self._core, self._cache, self._directories, self._statistics, self._changes, self._purge, repair=repair
        )  # fmt: skip

    def counters(self) -> dict[str, int | str]:
        """Plain numbers of what was done since opening and of what is in memory now."""
        core = self._core
        with self._lock:
            found: dict[str, int | str] = {name: getattr(core.counters, name) for name in core.counters.__slots__}
            found.update(
                inodes_cached=len(core.nodes), references=len(core.references), dirty_directories=len(core.dirty),
                dirty_entries=core.changes, buffered_files=len(core.buffered), buffered_bytes=core.buffered_bytes,
                open_handles=len(self._handles), purge_backlog=self._purge.backlog, log_bytes=self._writeback.log_bytes,
                log_blocked_by=self._writeback.blocked_by(), next_ino=core.next_ino,
                failure=str(core.failure or ""),
            )  # fmt: skip
            return found

    def assert_state(self) -> None:
        """Check the invariants that memory alone can show; for tests."""
        with self._lock:
            self._core.assert_state()
