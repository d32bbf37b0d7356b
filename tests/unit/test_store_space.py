"""The reserve: whatever fills an image, the checkpoint that writes it back finds its room."""

from __future__ import annotations

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import NoSpace
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
