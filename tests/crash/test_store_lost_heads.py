"""A store that lost both heads of its log: found by a search, and crashed at every write while it writes them anew."""

from __future__ import annotations

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.transactions import (
    GEOMETRY,
    SIZE,
    SMALL,
    Mixed,
    content_of,
    first_collections,
    outcome,
    reopen_transactions,
)


def headless(seed: int) -> tuple[bytes, Mixed, MemStore]:
    """An image that was killed with entries in its log, without heads; what is done next; what it holds."""
    device = MemoryDevice(SIZE)
    store, model, mixed = Store.create(device, **GEOMETRY, **SMALL), MemStore(), Mixed(seed)
    for step in range(40):
        transaction = first_collections() if step == 0 else mixed.transaction()
        assert outcome(store, transaction) == outcome(model, transaction)
    store.apply(Transaction().write("alpha", "last", 0, b"acknowledged"))
    model.apply(Transaction().write("alpha", "last", 0, b"acknowledged"))
    image, start = bytearray(device.image()), store.superblock.log_start * store.superblock.block_size
    image[start : start + 1024] = bytes(1024)
    return bytes(image), mixed, model


@pytest.mark.parametrize("seed", [1, 2])
def test_every_write_after_the_heads_were_lost_is_a_crash_point(seed: int) -> None:
    image, mixed, model = headless(seed)

    def workload(device: Device, history: History) -> None:
        store = Store.open(device, **SMALL)
        assert store.recovery.entries > 1
        assert "heads" in store.recovery.warnings[0]
        assert content_of(store) == content_of(model)
        history.start(content_of(model))
        for _ in range(12):
            transaction = mixed.transaction()
            expected = outcome(model, transaction)
            number = history.begin(content_of(model))
            assert outcome(store, transaction) == expected
            store.sync()
            history.acknowledge(number)
        store.close()

    report = explore(workload, reopen_transactions, seed=seed, base=image, budget_states=500)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 20


def test_reading_only_needs_no_heads_either() -> None:
    image, _, model = headless(3)
    device = MemoryDevice.from_bytes(image)
    with Store.open(device, read_only=True) as store:
        assert content_of(store) == content_of(model)
    assert device.image() == image
