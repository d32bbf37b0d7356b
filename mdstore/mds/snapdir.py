"""`SnapshotVfs`: a name space with `.snap` in each directory.

    mkdir .snap/before          freeze the directory as it is
    ls .snap                    its snapshots
    cp .snap/before/a .         look into one; everything in it is read-only
    rmdir .snap/before          forget it

`.snap` is found by name and never listed, so what walks the tree does not walk into it. Making and removing a snapshot is the
directory's owner's right, and the superuser's: a snapshot holds space that is everybody's.

Numbers: those of living inodes stay as they are (below 2**44); a snapshot's inodes carry its slot in the bits above, and
`.snap` of directory D is D with the highest bit. Handles likewise.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Hashable
from typing import Final, TypeVar

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.frozen import INO_MASK, refuse
from mdstore.mds.locks import RANGE_END, Lock
from mdstore.mds.records import INO_BITS
from mdstore.mds.server import MetadataServer
from mdstore.mds.snaplist import TYPE_DIRECTORY, SnapshotLists
from mdstore.mds.snapshots import Snapshots, View
from mdstore.mds.vfs import Attr, Credentials, DirEntry, SetAttr, StatFs, unreadable

SNAP: Final = b".snap"
SNAPDIR: Final = 1 << 63
LIVING: Final = 1 << INO_BITS  # numbers and handles below belong to the living name space
T = TypeVar("T")


class SnapshotVfs:
    """Implements `Vfs` and `Locking` over a metadata server and the store it is in; `close` closes the server."""

    keeps_acls = True

    def __init__(self, server: MetadataServer) -> None:
        self.server = server
        self.snapshots = Snapshots(server)
        self._lists = SnapshotLists(self.snapshots, lambda directory, name: self._top_attr(directory, name, counted=False))
        self._lock = threading.Lock()
        self._coming_and_going = threading.Lock()  # no directory is removed while it is being frozen

    @property
    def failure(self) -> MdstoreError | None:
        """What ended changes, if anything did: see `MetadataServer`."""
        return self.server.failure

    # -- whose it is ---------------------------------------------------------------------------------------------------

    def _look(self, number: int, read: Callable[[View], T]) -> T:
        """`read` in the snapshot that a number or handle belongs to, which is not closed meanwhile. EROFS for `.snap` itself,
        which has neither bytes nor targets."""
        if number >= SNAPDIR:
            refuse(SNAP)
        view = self.snapshots.view(number >> INO_BITS, SNAPDIR)
        try:
            return read(view)
        finally:
            self.snapshots.leave(view)

    def _inside(self, number: int, read: Callable[[View], T]) -> T:
        """`_look`, and once more where it failed because a server that was falling back closed the store meanwhile."""
        store = self.server.store
        try:
            return self._look(number, read)
        except PosixError:
            raise
        except MdstoreError:
            if self.server.settled_store() is store:
                raise
        return self._look(number, read)

    def _handed(self, view: View, attr: Attr) -> Attr:
        with self._lock:
            view.references += 1
        return attr

    def _opened(self, view: View, handle: int, count: int = 1) -> int:
        with self._lock:
            view.handles += count
        return handle

    def _snapdir(self, directory: int) -> Attr:
        """What stat tells of `.snap`: the directory's own attributes, and how many snapshots there are."""
        attr = self.server.getattr(directory)
        if not stat.S_ISDIR(attr.mode):
            raise PosixError(errno.ENOTDIR, SNAP)
        count = len(self.snapshots.of(directory))
        return attr._replace(ino=SNAPDIR | directory, nlink=2, size=count, mode=attr.mode & ~0o7000)

    def _owned(self, cred: Credentials, directory: int) -> None:
        """EPERM unless the directory's owner, or the superuser, asks."""
        if cred.uid not in (0, self.server.getattr(directory).uid):
            raise PosixError(errno.EPERM, SNAP, "only the directory's owner makes and removes its snapshots")

    # -- names ---------------------------------------------------------------------------------------------------------

    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr:
        """See `Vfs`."""
        if parent < LIVING:
            if name != SNAP:
                return self.server.lookup(cred, parent, name)
            found = self._snapdir(parent)
            self.server.access(cred, parent, os.X_OK)
            return found
        if parent >= SNAPDIR:
            return self._top(cred, parent ^ SNAPDIR, name)
        return self._inside(parent, lambda view: self._handed(view, view.frozen.lookup(cred, parent, name)))

    def _top(self, cred: Credentials, directory: int, name: bytes) -> Attr:
        """`.snap/NAME`: the directory as it was."""
        self.server.access(cred, directory, os.X_OK)
        return self._top_attr(directory, name, counted=True)

    def _top_attr(self, directory: int, name: bytes, *, counted: bool) -> Attr:
        top = self.snapshots.slot(directory, name) << INO_BITS | directory

        def stat_top(view: View) -> Attr:
            attr = view.frozen.getattr(top)
            return self._handed(view, attr) if counted else attr

        return self._inside(top, stat_top)

    def stand_in(self, cred: Credentials, parent: int, name: bytes) -> Attr | None:
        """See `StandingIn`: a snapshot can be removed however damaged it is."""
        if parent < SNAPDIR:
            return None
        directory = parent ^ SNAPDIR
        self.server.access(cred, directory, os.X_OK)
        return unreadable(TYPE_DIRECTORY)._replace(ino=self.snapshots.slot(directory, name) << INO_BITS | directory)

    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        """See `Vfs`."""
        if parent < LIVING:
            _not_snap(name)
            return self.server.create(cred, parent, name, mode, flags)

        def create(view: View) -> tuple[Attr, int]:
            found, handle = view.frozen.create(cred, parent, name, mode, flags)
            return self._handed(view, found), self._opened(view, handle)

        return self._inside(parent, create)

    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr:
        """See `Vfs`; in `.snap` this makes a snapshot, durable on return (`Snapshots.create`)."""
        if parent < LIVING:
            _not_snap(name)
            return self.server.mkdir(cred, parent, name, mode)
        if parent < SNAPDIR:
            refuse(name)
        directory = parent ^ SNAPDIR
        with self._coming_and_going:
            self._owned(cred, directory)
            if self.server.getattr(directory).nlink == 0:
                raise PosixError(errno.ENOENT, SNAP, "the directory was removed")
            self.snapshots.create(directory, name)
        return self._top(cred, directory, name)

    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        """See `Vfs`."""
        _changeable(parent, name)
        return self.server.mknod(cred, parent, name, mode, rdev)

    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr:
        """See `Vfs`."""
        _changeable(parent, name)
        return self.server.symlink(cred, parent, name, target)

    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr:
        """See `Vfs`."""
        _changeable(parent, name)
        if ino >= LIVING:
            raise PosixError(errno.EXDEV, name, "a file in a snapshot gets no name outside")
        return self.server.link(cred, ino, parent, name)

    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`."""
        if parent >= SNAPDIR:
            raise PosixError(errno.EISDIR, name, "snapshots are removed with rmdir")
        if parent >= LIVING:
            refuse(name)
        self.server.unlink(cred, parent, name)

    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        """See `Vfs`; in `.snap` this removes a snapshot. ENOTEMPTY for a directory that has snapshots."""
        if parent >= SNAPDIR:
            self._owned(cred, parent ^ SNAPDIR)
            self.snapshots.delete(parent ^ SNAPDIR, name)
            return
        if parent >= LIVING:
            refuse(name)
        if name == SNAP:
            raise PosixError(errno.EBUSY, name, "`.snap` comes with the directory")
        with self._coming_and_going:
            self._without_snapshots(cred, parent, name)
            self.server.rmdir(cred, parent, name)

    def _without_snapshots(self, cred: Credentials, parent: int, name: bytes) -> None:
        """ENOTEMPTY when the directory of that name has snapshots, which would be out of reach without it."""
        if not self.snapshots.any:
            return
        try:
            found = self.server.lookup(cred, parent, name)
        except PosixError:
            return  # the verb itself says what is wrong
        self.server.forget(found.ino, 1)
        if self.snapshots.any_of(found.ino):
            raise PosixError(errno.ENOTEMPTY, name, "the directory has snapshots; remove them first (rmdir .snap/*)")

    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """See `Vfs`. A directory keeps its snapshots when it is moved."""
        _changeable(parent, name)
        _changeable(new_parent, new_name)
        with self._coming_and_going:
            if not flags and (parent, name) != (new_parent, new_name):  # with flags nothing is replaced
                self._without_snapshots(cred, new_parent, new_name)
            self.server.rename(cred, parent, name, new_parent, new_name, flags)

    # -- inodes --------------------------------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Attr:
        """See `Vfs`."""
        if ino < LIVING:
            return self.server.getattr(ino)
        return self._snapdir(ino ^ SNAPDIR) if ino >= SNAPDIR else self._inside(ino, lambda view: view.frozen.getattr(ino))

    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        """See `Vfs`."""
        if ino >= LIVING:
            refuse(ino)
        return self.server.setattr(cred, ino, change)

    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        """See `Vfs`."""
        if ino < LIVING:
            self.server.access(cred, ino, mask)
        elif ino >= SNAPDIR:
            self.server.access(cred, ino ^ SNAPDIR, mask)
        else:
            self._inside(ino, lambda view: view.frozen.access(cred, ino, mask))

    def readlink(self, ino: int) -> bytes:
        """See `Vfs`."""
        return self.server.readlink(ino) if ino < LIVING else self._inside(ino, lambda view: view.frozen.readlink(ino))

    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """See `Vfs`."""
        if ino >= LIVING:
            refuse(ino)
        self.server.setxattr(cred, ino, name, value, flags)

    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes:
        """See `Vfs`; `.snap` itself has none."""
        if ino < LIVING:
            return self.server.getxattr(cred, ino, name)
        if ino >= SNAPDIR:
            raise PosixError(errno.ENODATA, name)
        return self._inside(ino, lambda view: view.frozen.getxattr(cred, ino, name))

    def listxattr(self, ino: int) -> list[bytes]:
        """See `Vfs`."""
        if ino < LIVING:
            return self.server.listxattr(ino)
        return [] if ino >= SNAPDIR else self._inside(ino, lambda view: view.frozen.listxattr(ino))

    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None:
        """See `Vfs`."""
        if ino >= LIVING:
            refuse(ino)
        self.server.removexattr(cred, ino, name)

    def recall_through(self, recall: Callable[[int, bytes], bool]) -> None:
        """See `Recalling`."""
        self.server.recall_through(recall)
        self.snapshots.recall = recall

    def forget(self, ino: int, lookups: int) -> None:
        """See `Vfs`."""
        if ino < LIVING:
            self.server.forget(ino, lookups)
            return
        view = self.snapshots.open_view(ino >> INO_BITS)
        if ino < SNAPDIR and view is not None:
            view.frozen.forget(ino, lookups)
            with self._lock:
                view.references = max(0, view.references - lookups)

    # -- files ---------------------------------------------------------------------------------------------------------

    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        """See `Vfs`."""
        if ino < LIVING:
            return self.server.open(cred, ino, flags)
        return self._inside(ino, lambda view: self._opened(view, view.frozen.open(cred, ino, flags)))

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """See `Vfs`."""
        if handle < LIVING:
            return self.server.read(handle, offset, length)
        return self._inside(handle, lambda view: view.frozen.read(handle, offset, length))

    def read_cached(self, handle: int, offset: int, length: int) -> bytes | None:
        """See `MetadataServer`. What a snapshot has is always on the medium."""
        return self.server.read_cached(handle, offset, length) if handle < LIVING else None

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """See `Vfs`."""
        if handle < LIVING:
            return self.server.write(handle, offset, data)
        return self._look(handle, lambda view: view.frozen.write(handle, offset, data))

    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        """See `Vfs`."""
        if handle < LIVING:
            self.server.fsync(handle, data_only=data_only)

    def release(self, handle: int) -> None:
        """See `Vfs`."""
        if handle < LIVING:
            self.server.release(handle)
            return

        def release(view: View) -> None:
            view.frozen.release(handle)
            self._opened(view, handle, -1)

        self._look(handle, release)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """See `Vfs`."""
        if handle >= LIVING:
            raise PosixError(errno.EBADF, handle & INO_MASK)
        self.server.fallocate(handle, mode, offset, length)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """See `Vfs`."""
        if handle < LIVING:
            return self.server.lseek(handle, offset, whence)
        return self._inside(handle, lambda view: view.frozen.lseek(handle, offset, whence))

    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """See `Vfs`. EXDEV out of a snapshot: the kernel then copies by reading and writing."""
        if target >= LIVING:
            raise PosixError(errno.EBADF, target & INO_MASK)
        if source >= LIVING:
            raise PosixError(errno.EXDEV, source & INO_MASK)
        return self.server.copy_file_range(source, source_offset, target, target_offset, length)

    # -- locks ---------------------------------------------------------------------------------------------------------

    def _locking(self, handle: int) -> MetadataServer:
        return self.server if handle < LIVING else self._look(handle, lambda view: view.server)

    def test_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> Lock | None:
        """See `Locking`."""
        return self._locking(handle).test_lock(handle & INO_MASK, wanted, flock=flock)

    def take_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> bool:
        """See `Locking`."""
        return self._locking(handle).take_lock(handle & INO_MASK, wanted, flock=flock)

    def wait_for_lock(
        self, handle: int, wanted: Lock, token: Hashable, granted: Callable[[], None], *, flock: bool = False
    ) -> bool:
        """See `Locking`."""
        return self._locking(handle).wait_for_lock(handle & INO_MASK, wanted, token, granted, flock=flock)

    def cancel_lock(self, token: Hashable) -> bool:
        """See `Locking`. A snapshot in which somebody waits has a file open, so it is open itself."""
        return self.server.cancel_lock(token) or any(server.cancel_lock(token) for server in self.snapshots.open_servers())

    def drop_lock(self, handle: int, owner: int, start: int = 0, end: int = RANGE_END, *, flock: bool = False) -> None:
        """See `Locking`."""
        self._locking(handle).drop_lock(handle & INO_MASK, owner, start, end, flock=flock)

    # -- directories ---------------------------------------------------------------------------------------------------

    def opendir(self, cred: Credentials, ino: int) -> int:
        """See `Vfs`."""
        if ino < LIVING:
            return self.server.opendir(cred, ino)
        if ino < SNAPDIR:
            return self._inside(ino, lambda view: self._opened(view, view.frozen.opendir(cred, ino)))
        self.server.access(cred, ino ^ SNAPDIR, os.R_OK)
        return SNAPDIR | self._lists.open(ino ^ SNAPDIR)

    def readdir(
        self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False
    ) -> list[DirEntry]:
        """See `Vfs`."""
        if handle < LIVING:
            return self.server.readdir(handle, after, limit, count_lookups=count_lookups)
        if handle >= SNAPDIR:
            listed = self._lists.page(handle ^ SNAPDIR, after, limit)
            if count_lookups:
                self._count(listed)
            return listed

        def read(view: View) -> list[DirEntry]:
            page = view.frozen.readdir(handle, after, limit, count_lookups=count_lookups)
            if count_lookups:
                with self._lock:
                    view.references += sum(1 for _, attr in page if attr.ino)
            return page

        return self._inside(handle, read)

    def _count(self, tops: list[DirEntry]) -> None:
        """Once all of a page of `.snap` is read: the front is handed the numbers in it."""
        for view in [self.snapshots.open_view(attr.ino >> INO_BITS) for _, attr in tops if attr.ino]:
            if view is not None:  # of those opened for the page, the first may have made room for the last
                with self._lock:
                    view.references += 1

    def parent_of(self, ino: int) -> int:
        """See `Vfs`."""
        if ino < LIVING:
            return self.server.parent_of(ino)
        return ino ^ SNAPDIR if ino >= SNAPDIR else self._inside(ino, lambda view: view.frozen.parent_of(ino))

    def releasedir(self, handle: int) -> None:
        """See `Vfs`."""
        if handle < LIVING:
            self.server.releasedir(handle)
        elif handle >= SNAPDIR:
            self._lists.close(handle ^ SNAPDIR)
        else:

            def releasedir(view: View) -> None:
                view.frozen.releasedir(handle)
                self._opened(view, handle, -1)

            self._look(handle, releasedir)

    # -- whole ---------------------------------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """See `Vfs`."""
        return self.server.statfs()

    def syncfs(self) -> None:
        """See `Vfs`."""
        self.server.syncfs()

    def close(self) -> None:
        """See `Vfs`."""
        self.snapshots.close()
        self.server.close()


def _not_snap(name: bytes) -> None:
    """EEXIST for `.snap`, which every directory has."""
    if name == SNAP:
        raise PosixError(errno.EEXIST, name, "the name is that of the directory's snapshots")


def _changeable(parent: int, name: bytes) -> None:
    """EROFS in a snapshot and in `.snap`; EEXIST for the name `.snap`."""
    if parent >= LIVING:
        refuse(name)
    _not_snap(name)
