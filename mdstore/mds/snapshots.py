"""Snapshots of directories, over the snapshots of the store.

A snapshot of a directory is a snapshot of the whole store under a name that says which directory is meant: copy-on-write below,
so it costs what is changed afterwards, and files of several names, open files and the log are in it as they were. The store's own
table of snapshots is the only list of them, so it cannot disagree with anything; it becomes durable with the snapshot.

What is in one: everything answered before it was asked for. It is crash-consistent: changes made meanwhile are in it as a prefix.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import AlreadyExists, MdstoreError, NotFound, PosixError, SnapshotBusy
from mdstore.limits import SNAPSHOT_NAME_MAX
from mdstore.mds.core import Limits
from mdstore.mds.frozen import FrozenVfs
from mdstore.mds.layout import INO_KEY
from mdstore.mds.permissions import check_name
from mdstore.mds.records import INO_BITS
from mdstore.mds.server import MetadataServer

PREFIX: Final = b"dir\0"  # then the directory's number, 8 bytes big-endian, then the snapshot's name
NAME_MAX: Final = SNAPSHOT_NAME_MAX - len(PREFIX) - INO_KEY.size
SLOTS_MAX: Final = 1 << (63 - INO_BITS)
VIEWS_MAX: Final = 16  # open at a time, but for those that somebody uses
VIEW_LIMITS: Final = Limits(cache_bytes=8 << 20, references_max=65536)


class DirectorySnapshot(NamedTuple):
    """A snapshot of a directory, as listed."""

    directory: int
    name: bytes
    created_ns: int
    held_bytes: int  # space that this snapshot alone keeps, as far as the engine knows


class View:
    """An open snapshot: the name space in it under outer numbers, the server of it, and the store below. `handles`: open files
    and directories; `references`: numbers that a front was handed and has not forgotten; `users`: calls that look into it now."""

    __slots__ = ("frozen", "handles", "references", "server", "slot", "store", "users")

    def __init__(self, slot: int, store: ObjectStore, server: MetadataServer, frozen: FrozenVfs) -> None:
        self.slot = slot
        self.store = store
        self.server = server
        self.frozen = frozen
        self.handles = 0
        self.references = 0
        self.users = 0  # guarded by the lock of `Snapshots`

    def look_into(self, store: ObjectStore) -> None:
        """Go on over the same snapshot, opened again: everything handed out stays what it is."""
        with suppress(MdstoreError):
            self.store.close()
        self.store = store
        self.server.look_into(store)

    def close(self) -> None:
        """Let go of the snapshot; what was handed out is stale."""
        self.frozen.close()
        self.store.close()


class Snapshots:
    """The snapshots of one file system. Safe to call from many threads.

    Where the server fell back to read-only over its store opened again, the first call after that opens the snapshots again.
    """

    def __init__(self, server: MetadataServer) -> None:
        self._server = server
        self._looked_in = server.store  # the store that the views are of: a server that fell back has another
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)  # some view's last user has left
        self._known: dict[int, dict[bytes, DirectorySnapshot]] = {}
        self._slots: dict[bytes, int] = {}  # by the store's name; a slot stands for one snapshot while the server runs
        self._views: dict[int, View] = {}  # by slot, the one used longest ago first
        self._next_slot = 1
        self.recall: Callable[[int, bytes], bool] | None = None  # what views ask their front through, see `Recalling`
        self._take_list()

    @property
    def _store(self) -> ObjectStore:
        return self._server.store

    # -- the list ------------------------------------------------------------------------------------------------------

    def _take_list(self) -> None:
        """What the store lists. Whoever looks without the lock sees the list before or the one after."""
        known: dict[int, dict[bytes, DirectorySnapshot]] = {}
        for found in self._store.snapshots() if self._store.capabilities.snapshots else ():
            key = found.name
            if key.startswith(PREFIX) and len(key) > len(PREFIX) + INO_KEY.size:
                (directory,) = INO_KEY.unpack_from(key, len(PREFIX))
                name = key[len(PREFIX) + INO_KEY.size :]
                snapshot = DirectorySnapshot(directory, name, found.created_ns, found.held_bytes)
                known.setdefault(directory, {})[name] = snapshot
        self._known = known

    def _look_again(self) -> None:
        """Called under the lock, first. Over another store, the open snapshots are opened again there; the numbers and handles of
        those that cannot be are stale."""
        store = self._store
        if self._looked_in is store:
            return
        self._take_list()
        self._looked_in = store
        there = {_key(one.directory, one.name) for names in self._known.values() for one in names.values()}
        for key, slot in list(self._slots.items()):
            view = self._views.get(slot)
            try:
                if view is not None and key in there:
                    view.look_into(store.open_snapshot(key))
            except MdstoreError:
                there.discard(key)
            if key not in there:
                del self._slots[key]
                lost = self._views.pop(slot, None)
                if lost is not None:
                    with suppress(MdstoreError):  # of a store that is closed already
                        lost.close()

    @property
    def any(self) -> bool:
        """Whether there is a snapshot at all."""
        return bool(self._known)

    def any_of(self, directory: int) -> bool:
        """Whether the directory has a snapshot."""
        return directory in self._known

    def of(self, directory: int) -> list[DirectorySnapshot]:
        """The snapshots of a directory, by name."""
        with self._lock:
            self._look_again()
            found = self._known.get(directory, {})
            return [found[name] for name in sorted(found)]

    def all(self) -> list[DirectorySnapshot]:
        """Every snapshot, by directory and name, with what the engine says now. Cost: the store's table of snapshots."""
        with self._lock:
            self._look_again()
            self._take_list()
            return [one for _, names in sorted(self._known.items()) for _, one in sorted(names.items())]

    def get(self, directory: int, name: bytes) -> DirectorySnapshot:
        """ENOENT."""
        with self._lock:
            self._look_again()
            found = self._known.get(directory, {}).get(name)
        if found is None:
            raise PosixError(errno.ENOENT, name, "no such snapshot")
        return found

    # -- making and removing -------------------------------------------------------------------------------------------

    def create(self, directory: int, name: bytes) -> DirectorySnapshot:
        """Freeze the directory as it is. Durable on return. EEXIST, EOPNOTSUPP where the engine cannot, ENOSPC, EROFS.

        Cost: what is dirty goes to the store, which writes a checkpoint; nothing is copied.
        """
        self._check(name)
        if name in self._known.get(directory, {}):
            raise PosixError(errno.EEXIST, name)
        key = _key(directory, name)
        self._server.write_back()
        try:
            self._store.snapshot(key)
        except AlreadyExists:
            raise PosixError(errno.EEXIST, name) from None
        with self._lock:
            self._take_list()
        return self.get(directory, name)

    def _check(self, name: bytes) -> None:
        check_name(name)
        if name in (b".", b".."):
            raise PosixError(errno.EINVAL, name, "no snapshot can be called so")
        if len(name) > NAME_MAX:
            raise PosixError(errno.ENAMETOOLONG, name, f"names of snapshots have at most {NAME_MAX} bytes")
        if not self._store.capabilities.snapshots:
            raise PosixError(errno.EOPNOTSUPP, name, "this engine keeps no snapshots; the `btree:` engine does")
        if self._store.read_only:
            raise PosixError(errno.EROFS, name)

    def delete(self, directory: int, name: bytes) -> None:
        """Forget a snapshot and give back what it alone kept. Durable on return. ENOENT, EBUSY while a file in it is open."""
        self.get(directory, name)
        if self._store.read_only:
            raise PosixError(errno.EROFS, name)
        key = _key(directory, name)
        with self._lock:
            self._close_unused(key, name)
            try:
                self._store.delete_snapshot(key)
            except NotFound:
                raise PosixError(errno.ENOENT, name, "no such snapshot") from None
            except SnapshotBusy:
                raise PosixError(errno.EBUSY, name, "the snapshot is open elsewhere") from None
            self._slots.pop(key, None)
            left = self._known[directory]
            del left[name]
            if not left:
                del self._known[directory]

    def _close_unused(self, key: bytes, name: bytes) -> None:
        """Under the lock: close the view once no call is in the middle of looking into it. EBUSY while a file is open."""
        while (view := self._views.get(self._slots.get(key, 0))) is not None:
            if view.handles:
                raise PosixError(errno.EBUSY, name, "a file or directory in the snapshot is open")
            if not view.users:
                self._close(view)
                return
            self._unused.wait()

    # -- looking into one ----------------------------------------------------------------------------------------------

    def slot(self, directory: int, name: bytes) -> int:
        """The number that stands for the snapshot while the server runs. ENOENT; EOVERFLOW after half a million."""
        self.get(directory, name)
        key = _key(directory, name)
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._next_slot
                if slot >= SLOTS_MAX:
                    raise PosixError(errno.EOVERFLOW, name, "too many snapshots were looked into; mount again")
                self._next_slot = slot + 1
                self._slots[key] = slot
            return slot

    def key_of(self, slot: int) -> bytes | None:
        """The name in the store of the snapshot that a slot stands for; None where it is gone."""
        with self._lock:
            return self._key_of(slot)

    def _key_of(self, slot: int) -> bytes | None:
        return next((key for key, number in self._slots.items() if number == slot), None)

    def view(self, slot: int, above: int) -> View:
        """The open snapshot of a slot; opened when it is not. ESTALE when it is gone. `above`: the parent of its top. It stays
        open until `leave`, and as long as a handle of it counts."""
        with self._lock:
            self._look_again()
            view = self._views.pop(slot, None)
            if view is None:
                self._make_room()
                view = self._open(slot, above)
            self._views[slot] = view
            view.users += 1
            return view

    def leave(self, view: View) -> None:
        """The call that took it from `view` is done, its handle counted."""
        with self._lock:
            view.users -= 1
            if not view.users:
                self._unused.notify_all()

    def open_view(self, slot: int) -> View | None:
        """The open snapshot of a slot, if it is open."""
        return self._views.get(slot)

    def open_servers(self) -> list[MetadataServer]:
        """The servers of all snapshots that are open."""
        with self._lock:
            return [view.server for view in self._views.values()]

    def _open(self, slot: int, above: int) -> View:
        key = self._key_of(slot)
        if key is None:
            raise PosixError(errno.ESTALE, slot, "the snapshot was deleted")
        (directory,) = INO_KEY.unpack_from(key, len(PREFIX))
        store = self._store.open_snapshot(key)
        try:
            inner = MetadataServer.mount(store, read_only=True, limits=VIEW_LIMITS)
        except BaseException:
            store.close()
            raise
        frozen = FrozenVfs(inner, tag=slot << INO_BITS, top=directory, above=above | directory)
        if self.recall is not None:
            frozen.recall_through(self.recall)
        return View(slot, store, inner, frozen)

    def _make_room(self) -> None:
        """Close what was used longest ago and has nothing open."""
        spare = [view for view in self._views.values() if not (view.handles or view.users)]
        spare.sort(key=lambda view: view.references > 0)  # stable: what nobody refers to goes first
        for view in spare[: max(0, len(self._views) + 1 - VIEWS_MAX)]:
            self._close(view)

    def _close(self, view: View | None) -> None:
        if view is not None:
            del self._views[view.slot]
            view.close()

    def close(self) -> None:
        """Close every view."""
        with self._lock:
            for view in list(self._views.values()):
                self._close(view)


def _key(directory: int, name: bytes) -> bytes:
    return PREFIX + INO_KEY.pack(directory) + name
