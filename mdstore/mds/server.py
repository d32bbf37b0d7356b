"""`MetadataServer`: a POSIX name space over an object store.

The parts of it are modules of their own; here they are put together, opened, closed, and called under one lock. Every verb of
`Vfs` has the same shape: check that changes are possible, let the part do it, count the reference a front was handed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Hashable
from contextlib import suppress

from journal import Journal, JournalError
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import (
    MdstoreError,
    NotAnImage,
    NotFound,
    PosixError,
    ReadOnly,
    StoreClosed,
    TransactionError,
)
from mdstore.mds.attributes import Attributes
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.clients import Clients
from mdstore.mds.control import Control
from mdstore.mds.core import Core, Limits
from mdstore.mds.damage import Damage, forget_damage, list_damage
from mdstore.mds.directories import Directories
from mdstore.mds.events import Kind
from mdstore.mds.fallback import recall_some, remember, restart, restore
from mdstore.mds.filedata import FileData
from mdstore.mds.files import Files
from mdstore.mds.handles import Handles
from mdstore.mds.holds import Holds
from mdstore.mds.inode import Inode
from mdstore.mds.layout import (
    FIRST_FREE_INO,
    META,
    NEXT_INO,
    NEXT_INO_KEY,
    TABLE_OBJECTS,
    Tab,
    decode_server,
)
from mdstore.mds.locks import OWNER_MASK, RANGE_END, FileLocks, Lock, owner_of
from mdstore.mds.making import event_medium, format_file_system, log_error
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
from mdstore.mds.vfs import ROOT_INO, Attr, Credentials, DirEntry, SetAttr, StatFs
from mdstore.mds.writeback import WriteBack
from mdstore.mds.xattrs import OWN, Xattrs

PURGES_WHEN_SHORT = 16  # steps of the purge queue, of 256 objects each, before the store is asked for its free space again
PIECE_ENTRIES = 1024  # changed entries written back before others have their turn
O_EXCL = 0o200
O_TRUNC = 0o1000
S_IFREG = 0o100000


class MetadataServer:
    """Implements `Vfs`. Make one with `mount`, on a store that `format` has been called with.

    All methods may be called from any thread. Changes are answered before they are durable; `fsync`, `syncfs` and `close`
    make them so, and `tick`, called by a `Driver` or by whoever owns the server, does it after a while without being asked.
    `keeps_acls`: access control lists are enforced, and the umask of `Credentials` is applied here.
    `count_references`: whether numbers handed out by lookup, create and so on keep an unlinked inode alive until `forget`;
    callers that never forget leave it out.
    """

    keeps_acls = True

    def __init__(self, core: Core, *, count_references: bool) -> None:
        self._core = core
        self._lock = core.lock
        self._count = count_references
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
        self.clients = Clients(
            core, self._cache, self, self._sessions, self._holds, self._handles, self._locks, counts=count_references
        )  # fmt: skip
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

    # -- making one ----------------------------------------------------------------------------------------------------

    format = staticmethod(format_file_system)

    @classmethod
    def mount(
        cls, store: ObjectStore, *, clock: Callable[[], int] = time.time_ns, read_only: bool = False,
        limits: Limits | None = None, count_references: bool = True, client: bytes | None = None,
        progress: Progress | None = None,
    ) -> MetadataServer:  # fmt: skip
        """Recover and serve. `recovery` tells what was replayed. NotAnImage, UnsupportedFormat, CorruptionError.

        read_only: nothing is written, neither now nor later; what the log holds is replayed in memory only. `client`: the name
        of the session that the methods called here are for; it ends with `close`, or when the file system is next mounted.
        progress: called every few thousand events of a replay with (bytes of log replayed, bytes to replay in all): the latter
        is an upper bound until the last call, where both are equal. Not called where nothing is replayed.
        """
        try:
            server = decode_server(store.map_header(META, TABLE_OBJECTS[Tab.SERVER]))
        except NotFound:
            raise NotAnImage("the store holds no file system; make one with `mdstore mkfs`") from None
        lowered = (limits or Limits()).for_store(int(store.statistics()["size_bytes"]))
        core = Core(store, server, lowered, clock)
        self = cls(core, count_references=count_references)
        self._recover(read_only=read_only or store.read_only, progress=progress)
        if client is not None and core.journal is not None:
            core.client = self._sessions.open(client, 0).number
        return self

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
        self._quota.load()
        if not read_only:
            core.journal = journal
            self._writeback.resettle()
            self._purge.start_from_table()
        self._sessions.load()
        self.recovery.seconds = time.monotonic() - began

    # -- what every verb does first ------------------------------------------------------------------------------------

    def _before_change(self) -> None:
        """Raise what stands against changes; help with write-back where limits are reached."""
        core = self._core
        if core.failed is not None or core.journal is None:
            core.assert_writable()
        if core.completion is None:
            core.request += 1
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
            self._data.publish(list(core.buffered.values()))
        purged = sum(self._purge.step() for _ in range(PURGES_WHEN_SHORT))
        if held_back or purged:
            self._writeback.everything()
        return held_back or purged > 0

    def _referred(self, node: Inode) -> Attr:
        if self._count:
            references = self._core.references
            references[node.ino] = references.get(node.ino, 0) + 1
        return node.attr()

    # -- names ---------------------------------------------------------------------------------------------------------

    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr:
        """See `Vfs`. ENOENT, ENOTDIR, EACCES, ENAMETOOLONG."""
        with self._lock:
            self._before_read()
            return self._referred(self._names.lookup(cred, parent, name))

    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        """See `Vfs`. EEXIST with O_EXCL, EISDIR, EACCES, ENOSPC, EDQUOT."""
        with self._lock:
            self._before_change()
            self._space.reserve()
            directory, entry = self._names.place_or_file(cred, parent, name)
            if entry is None:
                node = self._names.make_in(directory, cred, name, S_IFREG | mode & 0o7777, Kind.CREATE)
                handle = self._files.open_new(cred, node, flags)
            else:
                node = self._cache.resolve(entry)
                if flags & O_EXCL:
                    raise PosixError(errno.EEXIST, name)
                if node.is_directory:
                    raise PosixError(errno.EISDIR, name)
                handle = self._files.open(cred, node, flags)
            return self._referred(node), handle

    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr:
        """See `Vfs`. EEXIST, EMLINK and what `create` refuses."""
        with self._lock:
            self._before_change()
            self._space.reserve()
            return self._referred(self._names.mkdir(cred, parent, name, mode))

    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        """See `Vfs`. EEXIST; EPERM for a device unless the superuser asks; EINVAL for another type."""
        with self._lock:
            self._before_change()
            self._space.reserve()
            return self._referred(self._names.mknod(cred, parent, name, mode, rdev))

    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr:
        """See `Vfs`. EEXIST, ENAMETOOLONG."""
        with self._lock:
            self._before_change()
            self._space.reserve()
            return self._referred(self._names.symlink(cred, parent, name, target))

    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr:
        """See `Vfs`. EEXIST, EPERM for a directory, EMLINK, ENOENT for an unlinked inode."""
        with self._lock:
            self._before_change()
            self._space.reserve()
            return self._referred(self._names.link(cred, ino, parent, name))

    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`. EISDIR, EPERM (sticky), EACCES, ENOENT. The bytes go later; works on a full store."""
        with self._lock:
            self._before_change()
            self._names.unlink(cred, parent, name)

    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`. ENOTDIR, ENOTEMPTY, EPERM (sticky), EACCES, ENOENT."""
        with self._lock:
            self._before_change()
            self._names.rmdir(cred, parent, name)

    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """See `Vfs` and `Rename.rename`."""
        with self._lock:
            self._before_change()
            self._rename.rename(cred, parent, name, new_parent, new_name, flags)

    # -- inodes --------------------------------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Attr:
        """See `Vfs`. ESTALE for a number that means nothing any more."""
        with self._lock:
            self._before_read()
            return self._cache.node(ino).attr()

    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        """See `Vfs`. EPERM, EACCES, EISDIR, EINVAL, EFBIG, EDQUOT; nothing is changed then."""
        with self._lock:
            self._before_change()
            return self._attributes.setattr(cred, ino, change).attr()

    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        """See `Vfs`."""
        with self._lock:
            self._before_read()
            self._attributes.access(cred, ino, mask)

    def readlink(self, ino: int) -> bytes:
        """See `Vfs`. EINVAL when it is no symbolic link."""
        with self._lock:
            self._before_read()
            node = self._cache.node(ino)
            if node.mode >> 12 != 10:
                raise PosixError(errno.EINVAL, ino)
            return node.target

    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """See `Vfs` and `Xattrs.set`."""
        with self._lock:
            self._before_change()
            if not name.startswith(OWN):
                self._space.reserve(1024 + len(value))
            self._xattrs.set(cred, ino, name, bytes(value), flags)

    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        """See `Vfs`. ENODATA."""
        with self._lock:
            self._before_read()
            return self._xattrs.get(cred, ino, name)

    def listxattr(self, ino: int) -> list[bytes]:
        """See `Vfs`."""
        with self._lock:
            self._before_read()
            return self._xattrs.names(ino)

    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None:
        """See `Vfs`. ENODATA."""
        with self._lock:
            self._before_change()
            self._xattrs.remove(cred, ino, name)

    def forget(self, ino: int, lookups: int) -> None:
        """See `Vfs`. Counts below zero, and numbers nobody has, are ignored."""
        with self._lock:
            core = self._core
            left = core.references.get(ino, 0) - lookups
            if left > 0:
                core.references[ino] = left
                return
            core.references.pop(ino, None)
            core.where.pop(ino, None)
            core.recalls_open -= core.recalls_open > 0
            node = core.nodes.get(ino)
            if node is not None and node.nlink == 0:
                self._purge.released(node)

    def recall_through(self, recall: Callable[[int, bytes], bool]) -> None:
        """See `Recalling`."""
        with self._lock:
            self._core.recall = recall

    # -- files ---------------------------------------------------------------------------------------------------------

    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        """See `Vfs`. EACCES, EISDIR, ELOOP for a symbolic link, ESTALE."""
        with self._lock:
            self._before_read()
            return self._files.open(cred, self._cache.node(ino), flags)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """See `Vfs`. The store is read without the server's lock. EBADF, EISDIR, EINVAL."""
        with self._lock:
            self._before_read()
            found = self._files.begin_read(handle, offset, length)
        if isinstance(found, bytes):
            return found
        data = self._data.fetch(found)
        if data is not None:
            return data
        with self._lock:
            return self._files.read(handle, offset, length)

    def read_cached(self, handle: int, offset: int, length: int) -> bytes | None:
        """`read`, or None where it would wait: for the medium, or for whoever holds the server's lock."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._before_read()
            found = self._files.begin_read(handle, offset, length)
            return found if isinstance(found, bytes) else None
        finally:
            self._lock.release()

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """See `Vfs`. `data` is copied. EBADF, EFBIG, ENOSPC, EDQUOT; nothing was written then."""
        with self._lock:
            self._before_change()
            return self._files.write(handle, offset, data)

    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        """See `Vfs`. Cost: one wait for the store, where its commits are ordered; waiters share flushes."""
        with self._lock:
            core = self._core
            core.assert_syncable()
            self._files.publish(handle)
            position = core.position()
            core.counters.fsyncs += 1
        core.flush_log(position)

    def release(self, handle: int) -> None:
        """See `Vfs`. EBADF. Nothing becomes durable by it."""
        with self._lock:
            if self._locks.any_flock():
                ino = self._handles.node(handle).ino
                self._locks.release(ino, owner_of(self._core.client, handle), flock=True)
            if self._core.failed is not None:
                self._handles.remove(handle)
                return
            if self._core.journal is not None:
                self._before_change()
            self._files.release(handle)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """See `Vfs` and `Files.fallocate`."""
        with self._lock:
            self._before_change()
            self._files.fallocate(handle, mode, offset, length)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """See `Vfs`. Holes are told with the granularity of blocks. ENXIO, EINVAL, EBADF."""
        with self._lock:
            self._before_read()
            return self._files.seek(handle, offset, whence)

    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """See `Vfs` and `Files.copy`. May copy less than asked."""
        with self._lock:
            self._before_change()
            return self._files.copy(source, source_offset, target, target_offset, length)

    # -- locks ---------------------------------------------------------------------------------------------------------

    def test_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> Lock | None:
        """See `Locking`. EBADF."""
        with self._lock:
            ino, wanted = self._lockable(handle, wanted, flock=flock)
            found = self._locks.table(flock=flock).conflict(ino, wanted)
            return found if found is None else found._replace(owner=found.owner & OWNER_MASK)

    def take_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> bool:
        """See `Locking`. EBADF."""
        with self._lock:
            return self._locks.acquire(*self._lockable(handle, wanted, flock=flock), flock=flock)

    def wait_for_lock(self, handle: int, wanted: Lock, granted: Callable[[], None], *, flock: bool = False) -> Hashable:
        """See `Locking`. `granted` is called under the server's lock. EBADF, EDEADLK."""
        with self._lock:
            return self._locks.wait(*self._lockable(handle, wanted, flock=flock), granted, flock=flock)

    def cancel_lock(self, token: Hashable) -> bool:
        """See `Locking`."""
        with self._lock:
            return self._locks.cancel(token)

    def drop_lock(self, handle: int, owner: int, start: int = 0, end: int = RANGE_END, *, flock: bool = False) -> None:
        """See `Locking`. EBADF."""
        with self._lock:
            ino, lock = self._lockable(handle, Lock(owner, start, end, exclusive=False), flock=flock)
            self._locks.release(ino, lock.owner, start, end, flock=flock)

    def _lockable(self, handle: int, lock: Lock, *, flock: bool) -> tuple[int, Lock]:
        """The inode, and the lock under its owner's number among all sessions': of flock(2) the owner is the open file."""
        owner = owner_of(self._core.client, handle if flock else lock.owner)
        return self._handles.node(handle).ino, lock._replace(owner=owner)

    # -- directories ---------------------------------------------------------------------------------------------------

    def opendir(self, cred: Credentials, ino: int) -> int:
        """See `Vfs`. ENOTDIR, EACCES."""
        with self._lock:
            self._before_read()
            return self._directories.opendir(cred, ino)

    def readdir(
        self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False
    ) -> list[DirEntry]:
        """See `Vfs`. EBADF, ENOTDIR."""
        with self._lock:
            self._before_read()
            return self._directories.readdir(handle, after, limit, count_lookups=count_lookups and self._count)

    def parent_of(self, ino: int) -> int:
        """See `Vfs`. ENOTDIR."""
        with self._lock:
            self._before_read()
            return self._cache.directory(ino).parent

    def path_of(self, ino: int) -> bytes:
        """Where a directory hangs, as a path from the root. ENOENT when it was removed, ENOTDIR."""
        with self._lock:
            self._before_read()
            names = []
            while ino != ROOT_INO:
                directory = self._cache.directory(ino)
                if directory.nlink == 0:
                    raise PosixError(errno.ENOENT, ino, "the directory was removed")
                names.append(directory.name)
                ino = directory.parent
            return b"/" + b"/".join(reversed(names))

    def releasedir(self, handle: int) -> None:
        """See `Vfs`. EBADF."""
        with self._lock:
            closed = self._handles.remove(handle)
            self._purge.released(closed.node)

    # -- whole ---------------------------------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """See `Vfs`."""
        with self._lock:
            return self._space.statfs()

    def syncfs(self) -> None:
        """See `Vfs`. Cost: submits all buffered bytes; one wait for the store."""
        with self._lock:
            core = self._core
            if core.journal is None and core.fell_back is None:
                return
            core.assert_syncable()
            self._files.publish_all()
            position = core.position()
        core.flush_log(position)

    def close(self) -> None:
        """See `Vfs`. Afterwards the log is empty, so that the next opening replays nothing. The store stays open. Again: nothing.
        After a failure nothing is written any more; what was answered by fsync is on the medium."""
        with self._lock:
            core = self._core
            if self._closed:
                return
            self._closed = True
            journal = core.journal
            if journal is None or core.failed is not None:
                core.failed = core.failed or ReadOnly("the file system is closed")
                return
            lost = self._data.publish_what_fits()
            self._files.publish_all()
            if core.client:
                self._sessions.end(core.client)
            self._writeback.everything()
            try:
                journal.close()
            except JournalError as error:
                raise core.fail(error) from error
            core.failed = StoreClosed("the file system is closed")
            if lost:
                raise PosixError(errno.ENOSPC, "close", f"buffered bytes of {lost} files found no room")

    def fall_back(self, reopen: Callable[[], ObjectStore]) -> None:
        """After a failure: go on read-only, see `fallback`. `reopen` closes the store and opens it again, read-only; it is called
        with the lock held. Its errors, and those of `mount`, come through: then nothing is answered any more. Call
        `background_work` afterwards until there is none: it tells the front what may have changed."""
        with self._lock:
            core = self._core
            self._meet_failure()
            if self._closed or core.failed is None:
                return
            cause, known = core.failed, remember(core, self._handles)
            self.scrubbing.stop()
            store = reopen()
            restart(core, self._cache, store, cause)
            self._sessions.forget_all()
            self._purge.forget_all()
            try:
                self._recover(read_only=True)
            except MdstoreError as error:
                core.failed = error
                raise
            restore(core, self._cache, self._handles, known)
            self._to_recall = known.changed

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

    # -- care ----------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """What time brings: bytes and events older than a second go to the medium, some removed files are purged. Waits for
        the medium without holding the lock. Raises what the log or the store failed with, whoever met it."""
        core = self._core
        with self._lock:
            self._meet_failure()
            if core.failed is not None and not self._closed:
                raise core.failed
            if not core.is_writable():
                return
            with suppress(TransactionError):  # no room: who syncs is told; removing files, below, may make some
                self._data.publish_older_than(now_ns - core.limits.age_ns)
            position = core.position()
        core.flush_log(position)
        with self._lock:
            if not core.is_writable():
                return
            self._sessions.tick(now_ns)
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
        with self._lock:
            self._cache.recall_excess()
            writes = core.is_writable() and core.changes >= core.limits.dirty_entries_low
            if writes:
                self._writeback.step(PIECE_ENTRIES)
            purges = core.is_writable() and self._purge.step()
            recalls = recall_some(core, self._to_recall)
        return self.scrubbing.step() or writes or purges or recalls

    def purge_all(self) -> None:
        """Remove the bytes of every file that has no name and no user. Cost: one transaction per few hundred objects."""
        with self._lock:
            self._core.assert_writable()
            while self._purge.step():
                pass

    def write_back(self) -> None:
        """Bring every directory object up to date and empty the log. Durable on return."""
        with self._lock:
            self._core.assert_writable()
            self._data.publish(list(self._core.buffered.values()))
            self._writeback.everything()

    def drop_caches(self) -> None:
        """Write everything back and forget every inode that nobody has open."""
        with self._lock:
            self.write_back()
            self._cache.drop_all()

    def damage(self) -> list[Damage]:
        """What was found broken, and not forgotten since."""
        with self._lock:
            return list_damage(self._core)

    def forget_damage(self, directory: int, name: bytes) -> bool:
        """Drop a row of the damage table; False when there is none. Repairs nothing."""
        with self._lock:
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
            )  # fmt: skip
            return found

    def assert_state(self) -> None:
        """Check the invariants that memory alone can show; for tests."""
        with self._lock:
            self._core.assert_state()
