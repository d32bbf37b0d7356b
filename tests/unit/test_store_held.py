"""Snapshots of maps that stay open: what only they hold is memory, but no checkpoint writes it, and no space is kept for it."""

from __future__ import annotations

from mdstore.device.memory import MemoryDevice
from mdstore.store.check import check
from mdstore.store.mapview import MapSnapshot, MapView
from mdstore.store.store import Store

DIRTY = 256 * 1024
RECORDS = 6000


def made(size: int, *, held: bool) -> tuple[Store, MapView, list[MapSnapshot]]:
    """A store whose map was changed, looked at and changed again some 40 times: every look held the pages of the first change."""
    store = Store.create(MemoryDevice(size), block_size=512, log_bytes=1 << 20, background=False, dirty_bytes=DIRTY)
    view = store.map("app", "users", sync=False)
    view.update({b"%08d" % n: b"v" * 100 for n in range(RECORDS)})
    snapshots = []
    for first in range(0, RECORDS, RECORDS // 40):
        batch = {b"%08d" % n: b"r" * 100 for n in range(first, first + RECORDS // 40, 5)}
        view.update(batch)
        if held:
            snapshots.append(view.snapshot())
        view.update(batch)
    store.checkpoint()
    store.checkpoint()
    return store, view, snapshots


def checkpoints_of_puts(store: Store, view: MapView) -> int:
    before = store.statistics()["checkpoints"]
    for n in range(600):
        view[b"%08d" % (n * 7919 % RECORDS)] = b"2" * 100
    return int(store.statistics()["checkpoints"] - before)


def test_snapshots_that_stay_open_cost_no_checkpoint() -> None:
    """With more held than `dirty_bytes`, each transaction called for a checkpoint: 46 for 3000 puts, where none was due."""
    store, view, _ = made(16 << 20, held=False)
    expected = checkpoints_of_puts(store, view)
    store.close()
    store, view, snapshots = made(16 << 20, held=True)
    assert store.statistics()["cache_held_bytes"] > DIRTY
    assert store.room.pending_blocks() == 0, "all was written"
    assert checkpoints_of_puts(store, view) == expected
    assert snapshots[0][b"%08d" % 0] == b"r" * 100
    for snapshot in snapshots:
        snapshot.close()
    assert store.statistics()["cache_held_bytes"] == 0
    assert not check(store)


def test_snapshots_that_stay_open_keep_no_space_but_that_of_the_pages_they_reach() -> None:
    """What they hold in memory was counted as still to be written: a store refused space that it had."""
    store, _, _ = made(6 << 20, held=False)
    expected = store.room.blocks()
    store.close()
    store, _, snapshots = made(6 << 20, held=True)
    limbo = store.tables.allocator.limbo_blocks
    assert limbo > 0, "pages on the device that the map has given up"
    assert store.room.blocks() == expected - limbo
    for snapshot in snapshots:
        snapshot.close()
    store.checkpoint()
    store.checkpoint()
    assert store.room.blocks() >= expected
    assert not check(store)
