"""`MetadataServer`: a POSIX name space over an object store.

The parts of it are modules of their own, put together and kept in order by `Care`; here they are opened, closed, and called under
one lock. Every verb of `Vfs` has the same shape: check the arguments (boundary.py) and that changes are possible, let the part do
it, count the reference a front was handed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Hashable

from journal import JournalError
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import InvalidRequest, NotAnImage, NotFound, PosixError, ReadOnly, StoreClosed
from mdstore.mds.boundary import changing, checked, typed
from mdstore.mds.care import Care
from mdstore.mds.clients import Clients
from mdstore.mds.core import Core, Limits
from mdstore.mds.events import Kind
from mdstore.mds.filedata import lost_bytes
from mdstore.mds.inode import Inode
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab, decode_server
from mdstore.mds.locks import OWNER_MASK, RANGE_END, Lock, of_session
from mdstore.mds.making import format_file_system
from mdstore.mds.replay import Progress
from mdstore.mds.vfs import Attr, Credentials, DirEntry, SetAttr, StatFs
from mdstore.mds.xattrs import OWN

O_EXCL = 0o200
S_IFREG = 0o100000


class MetadataServer(Care):
    """Implements `Vfs`. Make one with `mount`, on a store that `format` has been called with.

    All methods may be called from any thread. Changes are answered before they are durable; `fsync`, `syncfs` and `close`
    make them so, and `tick`, called by a `Driver` or by whoever owns the server, does it after a while without being asked.
    `keeps_acls`: access control lists are enforced, and the umask of `Credentials` is applied here.
    `count_references`: whether numbers handed out by lookup, create and so on keep an unlinked inode alive until `forget`;
    callers that never forget leave it out.
    """

    keeps_acls = True

    def __init__(self, core: Core, *, count_references: bool) -> None:
        super().__init__(core)
        self._checked: Credentials | None = None
        self._count = count_references
        self.clients = Clients(
            core, self._cache, self, self._sessions, self._holds, self._handles, self._locks, counts=count_references
        )  # fmt: skip

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

    @changing
    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        """See `Vfs`. EEXIST with O_EXCL, EISDIR, EACCES, ENOSPC, EDQUOT."""
        self._space.reserve()
        directory, entry = self._names.place_or_file(cred, parent, name)
        if entry is None:
            node = self._names.make_in(directory, cred, name, S_IFREG | mode & 0o7777, Kind.CREATE)
            handle = self._files.open_new(cred, node, flags)
        else:
            node = self._cache.resolve(directory, name, entry)
            if flags & O_EXCL:
                raise PosixError(errno.EEXIST, name)
            if node.is_directory:
                raise PosixError(errno.EISDIR, name)
            handle = self._files.open(cred, node, flags)
        return self._referred(node), handle

    @changing
    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr:
        """See `Vfs`. EEXIST, EMLINK and what `create` refuses."""
        self._space.reserve()
        return self._referred(self._names.mkdir(cred, parent, name, mode))

    @changing
    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        """See `Vfs`. EEXIST; EPERM for a device unless the superuser asks; EINVAL for another type."""
        self._space.reserve()
        return self._referred(self._names.mknod(cred, parent, name, mode, rdev))

    @changing
    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr:
        """See `Vfs`. EEXIST, ENAMETOOLONG."""
        self._space.reserve()
        return self._referred(self._names.symlink(cred, parent, name, target))

    @changing
    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr:
        """See `Vfs`. EEXIST, EPERM for a directory, EMLINK, ENOENT for an unlinked inode."""
        self._space.reserve()
        return self._referred(self._names.link(cred, ino, parent, name))

    @changing
    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`. EISDIR, EPERM (sticky), EACCES, ENOENT. The bytes go later; works on a full store."""
        self._names.unlink(cred, parent, name)

    @changing
    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`. ENOTDIR, ENOTEMPTY, EPERM (sticky), EACCES, ENOENT."""
        self._names.rmdir(cred, parent, name)

    @changing
    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """See `Vfs` and `Rename.rename`."""
        self._rename.rename(cred, parent, name, new_parent, new_name, flags)

    # -- inodes --------------------------------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Attr:
        """See `Vfs`. ESTALE for a number that means nothing any more."""
        with self._lock:
            self._before_read()
            return self._cache.node(ino).attr()

    @changing
    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        """See `Vfs`. EPERM, EACCES, EISDIR, EINVAL, EFBIG, EDQUOT; nothing is changed then."""
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

    @checked
    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """See `Vfs` and `Xattrs.set`."""
        with self._core.guard:
            if self._xattrs.asks_server(ino, name):
                self._before_read()  # what is asked for says itself whether it changes anything
            else:
                self._before_change()
            if not name.startswith(OWN):
                self._space.reserve(1024 + len(value))
            self._xattrs.set(cred, ino, name, bytes(value), flags)

    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        """See `Vfs`. ENODATA."""
        with self._core.guard if name.startswith(OWN) else self._lock:  # statistics are handed up for who asks for them
            self._before_read()
            return self._xattrs.get(cred, ino, name)

    def listxattr(self, ino: int) -> list[bytes]:
        """See `Vfs`."""
        with self._lock:
            self._before_read()
            return self._xattrs.names(ino)

    @changing
    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None:
        """See `Vfs`. ENODATA."""
        self._xattrs.remove(cred, ino, name)

    def forget(self, ino: int, lookups: int) -> None:
        """See `Vfs`. More than were handed out, and numbers nobody has, are ignored. InvalidRequest for less than none."""
        if lookups < 0:
            raise InvalidRequest(f"{lookups} references to inode {ino} cannot be given back")
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

    @checked
    def open_made(self, cred: Credentials, ino: int, flags: int) -> int:
        """A handle for whoever made the file, whatever its mode says: `create` again, for a reply that was lost. ESTALE."""
        with self._core.guard:
            self._before_read()
            return self._files.open_new(cred, self._cache.node(ino), flags)

    @checked
    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        """See `Vfs`. EACCES, EISDIR, ELOOP for a symbolic link, ESTALE."""
        with self._core.guard:
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

    @changing
    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """See `Vfs`. `data` is copied. EBADF, EFBIG, ENOSPC, EDQUOT; nothing was written then."""
        return self._files.write(handle, offset, data)

    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        """See `Vfs`. Cost: one wait for the store, where its commits are ordered; waiters share flushes."""
        handle = typed("fsync", "handle", handle, int)
        with self._core.guard:
            core = self._core
            core.assert_syncable()
            self._files.publish(handle)
            position = core.position()
            core.counters.fsyncs += 1
        core.flush_log(position)

    def release(self, handle: int) -> None:
        """See `Vfs`. EBADF. Nothing becomes durable by it. Whatever else fails, the handle is closed and its locks are gone."""
        handle = typed("release", "handle", handle, int)
        with self._core.guard:
            core = self._core
            self._unlock(handle)
            if core.failed is not None:
                self._handles.remove(handle)
                return
            core.request += 1
            self._files.release(handle)
            if core.journal is not None:
                self._relieve()  # last: what goes wrong in it is not the file's

    @changing
    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """See `Vfs` and `Files.fallocate`."""
        self._files.fallocate(handle, mode, offset, length)

    @checked
    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """See `Vfs`. Holes are told with the granularity of blocks. ENXIO, EINVAL, EBADF."""
        with self._core.guard:
            self._before_read()
            return self._files.seek(handle, offset, whence)

    @changing
    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """See `Vfs` and `Files.copy`. May copy less than asked."""
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

    def wait_for_lock(
        self, handle: int, wanted: Lock, token: Hashable, granted: Callable[[], None], *, flock: bool = False
    ) -> bool:
        """See `Locking`. `granted` is called under the server's lock. EBADF, EDEADLK."""
        with self._lock:
            return self._locks.wait(*self._lockable(handle, wanted, flock=flock), token, granted, flock=flock)

    def cancel_lock(self, token: Hashable) -> bool:
        """See `Locking`."""
        with self._lock:
            return self._locks.cancel(self._core.client, token)

    def drop_lock(self, handle: int, owner: int, start: int = 0, end: int = RANGE_END, *, flock: bool = False) -> None:
        """See `Locking`. EBADF."""
        with self._lock:
            ino, lock = self._lockable(handle, Lock(owner, start, end, exclusive=False), flock=flock)
            self._locks.release(ino, lock.owner, lock.start, lock.end, flock=flock)

    def _lockable(self, handle: int, lock: Lock, *, flock: bool) -> tuple[int, Lock]:
        """The inode, and the lock under its owner's number among all sessions'. Of flock(2) the owner is the open file, and the
        whole of it is locked. EBADF, InvalidRequest."""
        ino = self._handles.node(handle).ino
        if flock:
            lock = lock._replace(owner=handle, start=0, end=RANGE_END)
        return ino, of_session(self._core.client, lock)

    def _unlock(self, handle: int) -> None:
        """What goes with an open file or directory: its flock(2) locks; POSIX ones with its session's last of an inode. EBADF."""
        node, client = self._handles.node(handle), self._core.client
        self._locks.close(node.ino, client, handle)
        if self._handles.is_sessions_last(handle):
            self._locks.close_last(node.ino, client)

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
            for directory in self._cache.upward(self._cache.directory(ino)):
                if directory.nlink == 0:
                    raise PosixError(errno.ENOENT, ino, "the directory was removed")
                names.append(directory.name)
            return b"/" + b"/".join(reversed(names[:-1]))

    def releasedir(self, handle: int) -> None:
        """See `Vfs`. EBADF."""
        with self._lock:
            self._unlock(handle)
            closed = self._handles.remove(handle)
            self._purge.released(closed.node)

    # -- whole ---------------------------------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """See `Vfs`."""
        with self._lock:
            return self._space.statfs()

    def syncfs(self) -> None:
        """See `Vfs`. Cost: submits all buffered bytes; one wait for the store."""
        with self._core.guard:
            core = self._core
            if core.journal is None and core.fell_back is None:
                return
            core.assert_syncable()
            self._files.publish_all()
            position = core.position()
        core.flush_log(position)

    def close(self) -> None:
        """See `Vfs`. Afterwards the log is empty, so that the next opening replays nothing. The store stays open. Again: nothing.
        After a failure nothing is written any more; what was answered by fsync is on the medium, and `failure` tells. Where the
        bytes of single files cannot be saved, all others are, and ENOSPC or EIO says so. DeviceFailed where the end of the
        interpreter stopped a thread inside, here and from every other method: what was synced is in the log."""
        with self._core.guard:
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
                raise lost_bytes(lost)
