"""Splits in the store: one short log entry whatever moves, through checkpoints, kills and a bounded set of onodes."""

from __future__ import annotations

from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction, object_hash

OBJECTS = 5000


def filled(**options: int) -> Store:
    store = Store.create(MemoryDevice(64 * MIB), log_bytes=2 * MIB, background=False, **options)  # type: ignore[arg-type]
    transaction = Transaction().create_collection("c").create_collection("d")
    for number in range(OBJECTS):
        transaction.setattr("c", b"%d" % number, "a", b"%d" % number)
    store.apply(transaction)
    return store


def half() -> list[bytes]:
    return sorted(name for name in (b"%d" % number for number in range(OBJECTS)) if object_hash(name) & 1)


def assert_split(store: Store) -> None:
    assert store.list_objects("d") == half()
    assert len(store.list_objects("c")) == OBJECTS - len(half())
    assert store.getattrs("d", half()[7]) == {b"a": half()[7]}
    assert not check(store, deep=True)


def test_a_split_is_one_short_entry_and_replays() -> None:
    store = filled()
    logged = store.journal.counters.bytes
    store.apply(Transaction().split("c", 1, 1, "d"))
    assert store.journal.counters.bytes - logged < 200
    killed = Store.open(MemoryDevice.from_bytes(store.device.image()), background=False)  # type: ignore[attr-defined]
    assert_split(killed)
    assert_split(store)


def test_objects_dirty_in_memory_move_as_they_are() -> None:
    """More objects than are kept in memory, some of them changed since they were last written, some of those after the move."""
    store = filled(onodes=64)
    store.checkpoint()
    moved = half()
    change = Transaction()
    for name in moved[:200]:
        change.write("c", name, 0, name)
    store.apply(change)
    store.apply(Transaction().split("c", 1, 1, "d"))
    store.apply(Transaction().write("d", moved[3], 100, b"after"))
    store.checkpoint()
    reopened = Store.open(MemoryDevice.from_bytes(store.device.image()), background=False)  # type: ignore[attr-defined]
    for opened in (store, reopened):
        assert_split(opened)
        assert [opened.read("d", name) for name in moved[:3]] == moved[:3]
        assert opened.read("d", moved[3])[100:] == b"after"
        assert opened.read("d", moved[500]) == b""


def test_a_map_view_follows_no_object_that_was_moved_away() -> None:
    store = filled()
    view = store.map("c", half()[0])
    view[b"k"] = b"v"
    store.apply(Transaction().split("c", 1, 1, "d"))
    assert view.get(b"k") is None
    assert store.map_get("d", half()[0], b"k") == b"v"
    view[b"k"] = b"new"
    assert store.map_get("c", half()[0], b"k") == b"new"
    assert store.map_get("d", half()[0], b"k") == b"v"
