"""Snapshots of a whole store: what they show, what they hold, and what deleting them gives back."""

from __future__ import annotations

import gc
import weakref

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import (
    AlreadyExists,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ReadOnly,
    StoreClosed,
)
from mdstore.limits import SNAPSHOT_NAME_MAX
from mdstore.store.check import check
from mdstore.store.snapshot_table import SnapshotTable
from mdstore.store.snapshots import open_in_image
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import COLLECTIONS, Mixed, content_of, outcome

SIZE = 2 << 20
GEOMETRY = {"block_size": 512, "log_bytes": 64 * 1024, "background": False}


def made(size: int = SIZE) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(size)
    store = Store.create(device, **GEOMETRY)  # type: ignore[arg-type]
    transaction = Transaction()
    for collection in COLLECTIONS:
        transaction.create_collection(collection)
    store.apply(transaction)
    return store, device


def killed(device: MemoryDevice) -> tuple[Store, MemoryDevice]:
    """What a crash at this moment leaves, opened."""
    survivor = MemoryDevice.from_bytes(device.image())
    return Store.open(survivor, background=False), survivor


def names(store: Store) -> list[bytes]:
    return [info.name for info in store.snapshots()]


def free_bytes(store: Store) -> int:
    """Once what the last checkpoints replaced is free."""
    store.checkpoint()
    store.checkpoint()
    return int(store.statistics()["free_bytes"])


# -- what they show ----------------------------------------------------------------------------------------------------


def test_snapshots_show_what_was_while_the_store_goes_on() -> None:
    store, device = made()
    mixed = Mixed(1)
    kept = {}
    for round_ in range(6):
        for _ in range(40):
            outcome(store, mixed.transaction())
        store.snapshot(f"s{round_}")
        kept[f"s{round_}"] = content_of(store)
    for _ in range(40):
        outcome(store, mixed.transaction())
    assert not check(store, deep=True)
    store.sync()
    store, device = killed(device)
    for name, content in kept.items():
        with store.open_snapshot(name) as view:
            assert content_of(view) == content
    assert [info.name for info in store.snapshots()] == [name.encode() for name in kept]
    for name in ("s2", "s0", "s5", "s3"):
        store.delete_snapshot(name)
        assert not check(store, deep=True), f"after {name}"
        del kept[name]
    for name, content in kept.items():
        with store.open_snapshot(name) as view:
            assert content_of(view) == content


def test_a_snapshot_tells_its_age_and_size() -> None:
    store, _ = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(range(250)) * 40))
    store.snapshot(b"\x00\xff")
    (info,) = store.snapshots()
    assert (info.name, info.objects, info.is_deleting) == (b"\x00\xff", 1, False)
    assert info.epoch < store.superblock.epoch
    before = info.held_bytes
    store.apply(Transaction().remove("alpha", "o"))
    store.checkpoint()
    (info,) = store.snapshots()
    assert info.held_bytes >= before + 10_000, "the data is the snapshot's alone now"
    with store.open_snapshot(b"\x00\xff") as view:
        rows = view.statistics()
        assert (rows["objects"], rows["stored_bytes"], rows["epoch"]) == (1, 10_000, info.epoch)
        assert view.created_ns == info.created_ns


def test_a_clean_store_is_kept_by_one_checkpoint_and_a_changed_one_by_two() -> None:
    store, _ = made()
    store.checkpoint()
    count = store.statistics()["checkpoints"]
    store.snapshot("first")
    assert store.statistics()["checkpoints"] == count + 1
    store.apply(Transaction().touch("alpha", "o"))
    store.snapshot("second")
    assert store.statistics()["checkpoints"] == count + 3
    store.snapshot("third")
    with store.open_snapshot("third") as third, store.open_snapshot("second") as second:
        assert content_of(third) == content_of(second)


def test_a_snapshot_never_changes() -> None:
    store, _ = made()
    store.snapshot("s")
    view = store.open_snapshot("s")
    assert view.read_only
    for change in (
        lambda: view.submit(Transaction().touch("alpha", "o")),
        lambda: view.apply(Transaction().touch("alpha", "o")),
        lambda: view.set_floor_and_read("alpha", "o", 1),
    ):
        with pytest.raises(ReadOnly):
            change()
    view.sync()
    view.close()
    view.close()
    with pytest.raises(StoreClosed):
        view.exists("alpha", "o")


def test_another_opening_of_the_image_reads_a_snapshot_while_the_store_goes_on() -> None:
    store, device = made()
    mixed = Mixed(2)
    for _ in range(30):
        outcome(store, mixed.transaction())
    store.snapshot("s")
    content = content_of(store)
    view = open_in_image(device, "s")
    for _ in range(30):
        outcome(store, mixed.transaction())
        store.checkpoint()
        assert content_of(view) == content
    with pytest.raises(NotFound, match="snapshot"):
        open_in_image(MemoryDevice.from_bytes(device.image()), "other")


def test_what_changes_between_the_two_checkpoints_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has fixed what the snapshot reaches, the second is yet to record it: a removal in between frees nothing of it."""
    store, _ = made()
    store.apply(Transaction().write("alpha", "o", 0, b"kept" * 1000))
    flush = store.checkpointer._flush_pages_and_log
    done: list[object] = []

    def flush_beside_a_writer(position: int) -> None:
        if not done:
            done.append(store.submit(Transaction().remove("alpha", "o")))
        flush(position)

    monkeypatch.setattr(store.checkpointer, "_flush_pages_and_log", flush_beside_a_writer)
    store.snapshot("s")
    assert_kept(store)


def test_what_changes_after_a_clean_superblock_was_chosen_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = made()
    store.apply(Transaction().write("alpha", "o", 0, b"kept" * 1000))
    store.checkpoint()
    expect = SnapshotTable.expect

    def expect_then_write(table: SnapshotTable, epoch: int) -> None:
        expect(table, epoch)
        store.submit(Transaction().remove("alpha", "o"))

    monkeypatch.setattr(SnapshotTable, "expect", expect_then_write)
    store.snapshot("s")
    assert_kept(store)


def assert_kept(store: Store) -> None:
    """The object that was removed is in the snapshot, whatever is written afterwards."""
    assert not store.exists("alpha", "o")
    assert not check(store, deep=True)
    for i in range(40):
        store.apply(Transaction().write("alpha", f"p{i}", 0, bytes([i]) * 20_000))
    store.checkpoint()
    with store.open_snapshot("s") as view:
        assert view.read("alpha", "o") == b"kept" * 1000
    assert not check(store, deep=True)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    store, _ = made(8 << 20)
    store.snapshot("s")
    with pytest.raises(AlreadyExists, match="snapshot 's' exists"):
        store.snapshot(b"s")
    with pytest.raises(InvalidRequest):
        store.snapshot("")
    with pytest.raises(LimitExceeded, match="SNAPSHOT_NAME_MAX"):
        store.snapshot(b"n" * (SNAPSHOT_NAME_MAX + 1))
    for missing in (store.open_snapshot, store.delete_snapshot):
        with pytest.raises(NotFound, match="no snapshot 't'"):
            missing("t")
    assert names(store) == [b"s"]


def test_the_longest_name_of_small_and_large_pages() -> None:
    store, _ = made()
    with pytest.raises(LimitExceeded):
        store.snapshot(b"n" * SNAPSHOT_NAME_MAX)  # three keys must fit an index page of 512 bytes
    assert not names(store)
    large = Store.create(MemoryDevice(4 << 20), background=False)
    large.snapshot(b"n" * SNAPSHOT_NAME_MAX)
    assert names(large) == [b"n" * SNAPSHOT_NAME_MAX]


def test_a_store_opened_to_be_read_takes_and_deletes_none() -> None:
    store, device = made()
    store.snapshot("s")
    reader = Store.open(MemoryDevice.from_bytes(device.image()), read_only=True)
    for change in (reader.snapshot, reader.delete_snapshot):
        with pytest.raises(ReadOnly):
            change("s")
    with reader.open_snapshot("s") as view:
        assert view.list_collections() == list(COLLECTIONS)


@pytest.mark.parametrize("of_an_image", [False, True])
def test_a_view_that_is_dropped_goes_at_once_and_its_cache_with_it(of_an_image: bool) -> None:
    """Its lock remembered it, and its pager a tree of its own: up to 16 MiB stayed until the garbage collector came."""
    store, device = made()
    mixed = Mixed(1)
    for _ in range(40):
        outcome(store, mixed.transaction())
    store.snapshot("s")
    content = content_of(store)
    gc.collect()
    gc.disable()
    try:
        view = open_in_image(device, "s") if of_an_image else store.open_snapshot("s")
        assert content_of(view) == content
        assert not check(view, deep=True)
        alive = [weakref.ref(view), weakref.ref(view.tables.pager)]
        del view
        assert [known() for known in alive] == [None, None]
    finally:
        gc.enable()
