"""Taking, reading and deleting snapshots of a whole store. Format: docs/format/snapshots.md; rules: snapshot_table.py.

Taking one: the superblock of epoch E says everything; what it reaches is spared from the moment its roots are fixed; the
checkpoint of E + 1 records it. **It exists once that one's superblock is durable**; a crash before leaves no trace.

Deleting one gives up its dead: in one checkpoint when they are few; otherwise the first step also marks the record, and each
step frees some of them, or hands them to the snapshot before, with a checkpoint of its own. A crash leaves it marked as being
deleted; deleting it again goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Never

from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError, NoSpace, NotFound, ReadOnly, SnapshotBusy
from mdstore.limits import MIB
from mdstore.store import log, recovery, statistics, superblock, tables
from mdstore.store.answers import Capabilities, SnapshotInfo
from mdstore.store.exiting import EndingLock, are_free
from mdstore.store.operands import size
from mdstore.store.queries import Queries
from mdstore.store.recovery import Recovery
from mdstore.store.snapshot_table import Kept, snapshot_name
from mdstore.store.transaction import Name, Transaction

if TYPE_CHECKING:
    from mdstore.store.checkpoint import Freezer
    from mdstore.store.store import Store

CACHE_BYTES = 16 * MIB
ONODES = 1024
_STEP_RUNS = 4096  # dead runs given up by one checkpoint
_STEP_BLOCKS = 6  # that giving up one more dead run may take: leaves of it before and after, of free space, and what they replace
_LOOKS = 5  # at an image that another process writes


def reserve_blocks(block_size: int) -> int:
    """Blocks that are kept back, beside the store's own reserve, while there are snapshots: so that deleting one finds its room
    in a full image. The paths to a few records of each tree, and the record of a snapshot, whatever the size of pages."""
    return 24 + 4 * superblock.SLOT_SIZE // block_size


class Snapshots:
    """The snapshots of one store that is open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: dict[object, bytes] = {}  # the snapshot that each view reads; taken out in one step, also without the lock

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, name: Name) -> None:
        """See `Store.snapshot`."""
        raw = snapshot_name(name)
        with self._store.lock:
            self._store.tables.space.snapshots.check_new(raw)
        self._store.checkpointer.run_steps(lambda freezer: self._take(raw, freezer))

    def _take(self, name: bytes, checkpoint: Freezer) -> None:
        store, table = self._store, self._store.tables.space.snapshots
        self._make_room(checkpoint)
        with store.lock:
            table.check_new(name)
            kept = store.superblock if store.is_clean() else None
            if kept is not None:
                table.expect(kept.epoch)
        if kept is None:
            kept = checkpoint(lambda frozen: table.expect(frozen.epoch))
        with store.lock:
            store.guarded(lambda: table.add(Kept(name, replace(kept), time.time_ns())))
        checkpoint(None)

    def _make_room(self, checkpoint: Freezer) -> None:
        """NoSpace unless both checkpoints, and a deletion afterwards, find theirs. What waits in limbo is had by two more."""
        store = self._store
        needed = 2 * reserve_blocks(store.superblock.block_size)
        for attempt in range(3):
            with store.lock:
                room = store.room.blocks()
            if room >= needed:
                return
            if attempt < 2:
                checkpoint(None)
        raise NoSpace(f"a snapshot needs {needed} blocks beside the reserve, {max(0, room)} are free")

    # -- asking --------------------------------------------------------------------------------------------------------

    def list(self) -> list[SnapshotInfo]:
        """See `Store.snapshots`."""
        store, table = self._store, self._store.tables.space.snapshots
        size = store.superblock.block_size
        with store.lock:
            store.check_usable()
            return [
                SnapshotInfo(kept.name, kept.epoch, kept.created_ns, kept.superblock.objects, table.held_blocks(kept) * size,
                             kept.is_deleting)
                for kept in table
            ]  # fmt: skip

    def open(self, name: Name, cache_bytes: int) -> SnapshotView:
        """See `Store.open_snapshot`."""
        raw, cache_bytes = snapshot_name(name), size("cache_bytes", cache_bytes)
        reader = object()
        try:
            with self._store.lock:
                self._store.check_usable()
                kept = _readable(self._store.tables.space.snapshots.get(raw))
                self._readers[reader] = raw
            return SnapshotView(self._store.device, kept, cache_bytes, partial(self._readers.pop, reader, None))
        except BaseException:
            self._readers.pop(reader, None)
            raise

    # -- deleting ------------------------------------------------------------------------------------------------------

    def delete(self, name: Name, progress: Callable[[int], None] | None) -> None:
        """See `Store.delete_snapshot`."""
        raw, done = snapshot_name(name), 0
        while True:
            given, is_gone = self._store.checkpointer.run_steps(lambda freezer: self._give_up_some(raw, freezer))
            done += given
            if progress is not None:
                progress(done)
            if is_gone:
                return

    def _give_up_some(self, name: bytes, checkpoint: Freezer) -> tuple[int, bool]:
        """One step and its checkpoint: (dead runs given up, whether the snapshot is gone)."""
        store, table = self._store, self._store.tables.space.snapshots
        if store.room.blocks() < _STEP_RUNS:
            checkpoint(None)  # so that the step has to itself what little there is
        with store.lock:
            store.check_usable()
            kept = table.get(name)
            readers = list(self._readers.values()).count(name)
            if readers:
                raise SnapshotBusy(name, readers)
            fixed = reserve_blocks(store.superblock.block_size) // 2
            room = store.tables.allocator.free_blocks - store.room.pending_blocks() - fixed
            most = max(1, min(_STEP_RUNS, room // _STEP_BLOCKS))
            given, is_gone = store.guarded(lambda: table.give_up(kept, store.tables.allocator, most))
        checkpoint(None)
        return given, is_gone


def _readable(kept: Kept) -> Kept:
    if kept.is_deleting:
        raise NotFound("snapshot (it is being deleted)", kept.name)
    return kept


class SnapshotView(Queries):
    """A store as it was: every query of `Store`, and no change. Safe to call from many threads; `close` it, because while it is
    open its snapshot cannot be deleted."""

    def __init__(self, device: Device, kept: Kept, cache_bytes: int, on_close: Callable[[], object]) -> None:
        self.name = kept.name
        self.created_ns = kept.created_ns
        self._on_close = on_close
        self._closed = False
        live = tables.load(device, kept.superblock, cache_bytes, ONODES, to_read_only=True, tolerated=[])
        lock = EndingLock(self.is_at_rest, self._give_up, keeps_owner=False)  # so that a view that is dropped goes at once
        super().__init__(device, kept.superblock, live, lock)

    @property
    def read_only(self) -> bool:
        """Always True."""
        return True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(multi_object_transactions=True, durable=True, ordered_commits=True, snapshots=False)

    def submit(self, transaction: Transaction) -> Never:
        """ReadOnly."""
        self.check_usable()
        raise ReadOnly(f"snapshot {self.name.decode('utf-8', 'backslashreplace')!r} of {self.device.name} never changes")

    def apply(self, transaction: Transaction) -> None:
        """ReadOnly."""
        self.submit(transaction)

    def set_floor_and_read(
        self, collection: Name, name: Name, floor: int, offset: int = 0, length: int | None = None
    ) -> bytes:
        """ReadOnly."""
        self.submit(Transaction().set_floor(floor, collection, name=name))

    def sync(self) -> None:
        """Nothing: all of it is durable."""
        self.check_usable()

    def snapshot(self, name: Name) -> None:
        """ReadOnly."""
        self.submit(Transaction())

    def snapshots(self) -> list[SnapshotInfo]:
        """None: those of the store are the store's."""
        self.check_usable()
        return []

    def open_snapshot(self, name: Name) -> Never:
        """NotFound."""
        self.check_usable()
        raise NotFound("snapshot", snapshot_name(name))

    def delete_snapshot(self, name: Name) -> None:
        """ReadOnly."""
        self.submit(Transaction())

    def statistics(self) -> dict[str, int | float]:
        """Sizes in bytes and counts as they were, and the counters of the view's own page cache."""
        with self.lock:
            self.check_usable()
            rows = statistics.of_snapshot(self.superblock)
            rows.update(statistics.of_cache(self.tables.pager))
            return rows

    def check_usable(self) -> None:
        """StoreClosed after `close`."""
        if self._left is not None:
            raise self._left
        if self._closed:
            raise log.closed()

    def check_whole(self) -> None:
        """The same: nothing changes here."""
        self.check_usable()

    def close(self) -> None:
        """Let the snapshot go. Again: nothing."""
        if self._left is not None:
            return
        if sys.is_finalizing() and not are_free([self.lock]):
            self.left_behind(log.closed())  # with whatever the thread that was stopped inside holds
            return
        try:
            with self.lock:
                self._closed = True
                self.tables.pager.close()
        finally:
            self._on_close()  # again: nothing

    def __enter__(self) -> SnapshotView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_in_image(device: Device, name: Name, cache_bytes: int = CACHE_BYTES) -> SnapshotView:
    """A snapshot of an image that nobody here has open as a store; another process may be writing it. `close` closes the device.

    The log is not read. Whoever writes the image must not delete the snapshot meanwhile: reads then find damage. Errors:
    NotFound, NotAnImage, UnsupportedFormat, CorruptionError, DeviceFailed. Cost: as `Store.open` without a log.
    """
    raw = snapshot_name(name)
    for look in range(_LOOKS):
        try:
            _, live, _ = recovery.choose(device, cache_bytes, ONODES, Recovery(), read_only=True)
            kept = _readable(live.space.snapshots.get(raw))
            return SnapshotView(device, kept, cache_bytes, device.close)
        except CorruptionError:  # a checkpoint may have been reusing what this look was reading
            if look == _LOOKS - 1:
                raise
    raise AssertionError("the last look returns or raises")
