"""The reserve: whatever fills an image, the checkpoint that writes it back finds its room."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import InvalidRequest, NoSpace, TransactionError
from mdstore.store import extents
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import outcome


@pytest.mark.parametrize(("block_size", "size"), [(512, 1 << 20), (4096, 8 << 20)])
@pytest.mark.parametrize("attribute", [40, 6000])
def test_attributes_fill_an_image_and_the_checkpoint_still_fits(block_size: int, size: int, attribute: int) -> None:
    """Each transaction was measured alone, and attributes in memory counted for a quarter block: the checkpoint met NoSpace,
    and latched a store that had acknowledged all of it."""
    device = MemoryDevice(size)
    store = Store.create(device, block_size=block_size, log_bytes=size // 2, background=False)
    store.apply(Transaction().create_collection("c"))
    for count in range(100_000):
        refusal = outcome(store, Transaction().setattr("c", f"o{count}", "a", bytes(attribute)))
        if refusal is not None:
            break
    assert refusal == (0, NoSpace)
    store.checkpoint()
    assert not check(store)
    assert store.getattr("c", f"o{count - 1}", "a") == bytes(attribute)


def test_a_checkpoint_between_a_large_writes_blocks_and_its_entry_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The superblock called the blocks used although nothing reached them: a crash leaked them, and where the entry had become
    durable, replay found them taken and the image could not be opened."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=512, log_bytes=256 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))
    place = store.large_writes.place

    def place_and_checkpoint(transaction: Transaction, mapped: Any) -> Any:
        placed = place(transaction, mapped)
        store.checkpoint()
        return placed

    monkeypatch.setattr(store.large_writes, "place", place_and_checkpoint)
    store.apply(Transaction().write("c", "a", 0, b"x" * 200_000))
    before = MemoryDevice.from_bytes(device.image())
    recovered = Store.open(before, background=False)
    assert recovered.read("c", "a") == b"x" * 200_000
    assert not check(recovered, deep=True)
    with pytest.raises(TransactionError):
        store.apply(Transaction().write("c", "b", 0, b"y" * 200_000).remove("c", "not there"))
    assert not check(store, deep=True), "what was refused is free again"


def test_the_cache_forgets_only_blocks_that_nothing_reaches(tmp_path: Path) -> None:
    forgotten: list[tuple[int, int]] = []

    class Device(FileDevice):
        def uncache(self, offset: int, length: int) -> None:
            within = range(offset // 4096, (offset + length) // 4096)
            free = {block for start, count in store.tables.allocator.extents() for block in range(start, start + count)}
            assert free.isdisjoint(within), "they may be taken only afterwards"
            forgotten.append((offset, length))
            super().uncache(offset, length)

    store = Store.create(Device.create(tmp_path / "image", 8 << 20), log_bytes=1 << 20, background=False)
    content = Random(1).randbytes(1 << 20)
    store.apply(Transaction().create_collection("c").write("c", "kept", 0, content).write("c", "gone", 0, content))
    store.checkpoint()
    store.apply(Transaction().remove("c", "gone"))
    store.checkpoint()
    assert sum(length for _, length in forgotten) >= len(content)
    assert store.read("c", "kept") == content
    assert not check(store, deep=True)
    store.close()


def test_large_objects_lie_on_whole_stripes_also_after_a_reopen() -> None:
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=512, log_bytes=256 * 1024, background=False, stripe_bytes=16384, stripe_offset=1024)
    store.apply(Transaction().create_collection("c").write("c", "a", 0, bytes([1]) * 200_000))
    store.close()
    store = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert (store.superblock.stripe_bytes, store.superblock.stripe_offset) == (16384, 1024)
    store.apply(Transaction().write("c", "b", 0, bytes([2]) * (20 * 16384)))
    onode = store.tables.objects.get(1, b"b")
    assert onode is not None
    assert onode.data is not None
    starts = [extent.start * 512 for extent in extents.overlapping(onode.data, 0, 1 << 30) if not extent.logical % 32]
    assert starts
    assert all((start - 1024) % 16384 == 0 for start in starts)
    found = store.statistics()
    assert (found["stripes_whole"], found["stripes_partial"]) == (20, 0)
    assert not check(store, deep=True)
    store.close()
    for stripe in ({"stripe_bytes": 1000}, {"stripe_bytes": 4096, "stripe_offset": 4096}, {"stripe_offset": 512}):
        with pytest.raises(InvalidRequest, match="stripe"):
            Store.create(MemoryDevice(8 << 20), block_size=512, **stripe)
