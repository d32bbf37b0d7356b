"""What fails in the middle: nothing that was applied is given back, and what cannot be finished latches the store."""

from __future__ import annotations

import os
import threading

import pytest

from mdstore.btree import Tree
from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, MdstoreError
from mdstore.store import Store, Transaction
from mdstore.store.check import check
from mdstore.store.snapshots import open_in_image


def test_blocks_of_an_applied_write_stay_its_own_when_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(MemoryDevice(64 << 20), background=True, dirty_bytes=1)
    store.apply(Transaction().create_collection("c"))
    content = os.urandom(1 << 20)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(store.checkpointer, "_thread", None)
        patched.setattr(threading.Thread, "start", refuse)
        store.apply(Transaction().write("c", "a", 0, content).map_set("c", "a", {b"%d" % n: b"x" * 50 for n in range(100)}))
    for number in range(40):
        store.apply(Transaction().write("c", f"b{number}", 0, os.urandom(1 << 20)))
    assert store.read("c", "a") == content
    assert not check(store, deep=True)
    store.close()


@pytest.mark.leaves_damage
@pytest.mark.parametrize("what", ["taking", "deleting"])
def test_a_snapshot_half_taken_or_half_deleted_latches_the_store(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = MemoryDevice(64 << 20)
    store = Store.create(device, background=False, block_size=512)
    store.apply(Transaction().create_collection("c"))
    store.apply(Transaction().map_set("c", "o", {b"%08d" % n: b"v" * 100 for n in range(3000)}))
    store.snapshot("s0")
    store.apply(Transaction().map_set("c", "o", {b"%08d" % n: b"w" * 100 for n in range(0, 100, 7)}))
    store.snapshot("s1")
    store.apply(Transaction().map_set("c", "o", {b"%08d" % n: b"z" * 100 for n in range(3000)}))
    store.checkpoint()
    table = store.tables.space.snapshots

    class Failing:
        """A tree that meets a damaged page at its fourth change."""

        def __init__(self, tree: Tree, left: int) -> None:
            self._tree, self._left = tree, left

        def __getattr__(self, name: str) -> object:
            return getattr(self._tree, name)

        def __len__(self) -> int:
            return len(self._tree)

        def put(self, key: bytes, value: bytes) -> bool:
            self._left -= 1
            if self._left < 0:
                raise CorruptionError("page", "block 7", "a checksum", "another")
            return self._tree.put(key, value)

    if what == "taking":
        monkeypatch.setattr(table, "records", Failing(table.records, 0))
    else:
        monkeypatch.setattr(table, "dead", Failing(table.dead, 3))
    with pytest.raises(CorruptionError):
        store.snapshot("s2") if what == "taking" else store.delete_snapshot("s1")
    with pytest.raises(MdstoreError):
        store.apply(Transaction().touch("c", "p"))
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert [found.name for found in again.snapshots()] == [b"s0", b"s1"]
    assert not check(again, deep=True)
    again.close()


@pytest.mark.leaves_damage
def test_a_snapshot_is_opened_beside_damage_of_the_newest_superblock() -> None:
    device = MemoryDevice(64 << 20)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "a", 0, b"hello"))
    store.snapshot("s0")
    store.snapshot("s1")
    for page, _, _ in store.tables.free_tree.pages():
        device.write(page * store.superblock.block_size, [b"\xff" * store.superblock.block_size])
    with open_in_image(MemoryDevice.from_bytes(device.image()), "s0") as view:
        assert view.read("c", "a") == b"hello"
