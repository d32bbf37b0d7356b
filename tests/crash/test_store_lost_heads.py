"""A store that lost both heads of its log: found by a search, and crashed at every write while it writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError
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
from tests.unit.reader_images import check
from tests.unit.repair_images import lost, repaired


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
    assert report.distinct > 220


@pytest.mark.parametrize("filling", [b"\0", b"\xaa"])
@pytest.mark.parametrize("ends", ["killed", "checkpointed", "closed"])
def test_a_log_that_is_gone_whole_is_refused_and_repair_goes_on_with_the_checkpoint(
    filling: bytes, ends: str, tmp_path: Path
) -> None:
    """It opened as an empty log, without a word: what had been acknowledged since the last checkpoint was gone."""
    device = MemoryDevice(SIZE)
    store = Store.create(device, **GEOMETRY, **SMALL)
    store.apply(first_collections())
    store.apply(Transaction().write("alpha", "kept", 0, b"before"))
    if ends != "killed":
        store.checkpoint()
    store.apply(Transaction().write("alpha", "lost", 0, b"since"))
    if ends == "closed":
        store.close()
    image, block = bytearray(device.image()), store.superblock
    at, size = block.log_start * block.block_size, block.log_blocks * block.block_size
    image[at : at + size] = filling * size
    for read_only in (False, True):
        with pytest.raises(CorruptionError, match=r"damaged log at .*mdstore repair.*last checkpoint"):
            Store.open(MemoryDevice.from_bytes(bytes(image)), read_only=read_only, **SMALL)
    found = check(bytes(image), tmp_path)
    assert {"log-gone", "journal-no-head"} <= {problem.code for problem in found}
    mended, after = repaired(bytes(image))
    assert [line for line in lost(mended) if "since the checkpoint" in line]
    with Store.open(MemoryDevice.from_bytes(after), **SMALL) as opened:
        held = opened.list_objects("alpha") if opened.list_collections() else []
        assert held == {"killed": [], "checkpointed": [b"kept"], "closed": [b"kept", b"lost"]}[ends]
        opened.checkpoint()


def test_heads_alone_lost_right_after_a_checkpoint_are_no_loss(tmp_path: Path) -> None:
    """The last entry before it is whole, so the ring was not emptied."""
    device = MemoryDevice(SIZE)
    store = Store.create(device, **GEOMETRY, **SMALL)
    store.apply(first_collections().write("alpha", "kept", 0, b"before"))
    store.checkpoint()
    image, at = bytearray(device.image()), store.superblock.log_start * store.superblock.block_size
    image[at : at + 1024] = bytes(1024)
    assert "log-gone" not in {problem.code for problem in check(bytes(image), tmp_path)}
    with Store.open(MemoryDevice.from_bytes(bytes(image)), **SMALL) as opened:
        assert opened.read("alpha", "kept") == b"before"


def test_reading_only_needs_no_heads_either() -> None:
    image, _, model = headless(3)
    device = MemoryDevice.from_bytes(image)
    with Store.open(device, read_only=True) as store:
        assert content_of(store) == content_of(model)
    assert device.image() == image
