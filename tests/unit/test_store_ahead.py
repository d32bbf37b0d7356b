"""The steps ahead of a freeze: whatever changes between two, the checkpoint that follows is right, and little is left to it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.store import ahead
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.transactions import COLLECTIONS, Mixed, content_of
from tests.crash.store_workload import outcome

SIZE = 16 << 20


def make(**options: object) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(SIZE)
    geometry = {"block_size": 512, "log_bytes": 4 << 20, "dirty_bytes": SIZE, "background": False, **options}
    return Store.create(device, **geometry), device  # type: ignore[arg-type]


def reopened(device: MemoryDevice) -> Store:
    return Store.open(MemoryDevice.from_bytes(device.image()), background=False)


def take(steps: Iterator[None], store: Store) -> bool:
    with store.lock:
        return next(steps, steps) is not steps


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 8))])
def test_transactions_between_the_steps_leave_a_right_image(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print("seed", seed)
    monkeypatch.setattr(ahead, "PAGES", 1)
    monkeypatch.setattr(ahead, "ONODES_LEFT", 2)
    store, device = make()
    model, mixed, rng = MemStore(), Mixed(seed, large=9000), random.Random(seed)
    start = Transaction()
    for collection in COLLECTIONS:
        start.create_collection(collection)
    for one in (store, model):
        one.apply(start)
    taken = 0
    for round_ in range(4):
        if rng.random() < 0.5:
            store.snapshot(f"s{round_}")
        for _ in range(60):
            transaction = mixed.transaction()
            assert outcome(store, transaction) == outcome(model, transaction)
        steps = ahead.steps(store.tables)
        while take(steps, store):
            taken += 1
            if rng.random() < 0.3:
                transaction = mixed.transaction()
                assert outcome(store, transaction) == outcome(model, transaction)
        problems = check(store, deep=True)
        assert not problems, problems
        assert content_of(reopened(device)) == content_of(model), "nothing of it counts before the superblock"
        store.checkpoint()
        problems = check(store, deep=True)
        assert not problems, problems
        again = reopened(device)
        assert content_of(again) == content_of(store) == content_of(model)
        assert not check(again, deep=True)
    assert taken > 100
    store.close()


def test_little_is_left_to_the_freeze() -> None:
    store, _ = make()
    store.apply(Transaction().create_collection("c"))
    for first in range(0, 1500, 100):
        transaction = Transaction()
        for number in range(first, first + 100):
            transaction.setattr("c", b"o%d" % number, "a", b"v")
        store.apply(transaction.write("c", "data", first * 1000, bytes(100_000)))
        store.apply(Transaction().map_set("c", "map", {b"%d" % key: bytes(50) for key in range(10 * first, 10 * first + 1000)}))
    objects = store.tables.objects
    held = objects.dirty(next(key for key in objects.dirty_keys() if key.endswith(b"map")))
    assert held is not None
    assert held.map is not None
    assert objects.dirty_onodes > 1000
    pages = held.map.dirty_pages
    steps = ahead.steps(store.tables)
    while take(steps, store):
        pass
    assert objects.dirty_onodes <= ahead.ONODES_LEFT
    assert store.tables.space.changed_blocks <= ahead.PAGES
    assert held.map.dirty_pages < pages / 5
    assert store.tables.objects.tree.dirty_pages < 2 * ahead.PAGES
    store.checkpoint()
    assert not check(store, deep=True)
    store.close()


@pytest.mark.parametrize("passes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_image_in_many_pieces_still_finds_its_checkpoint(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs for the pages of the tree of free extents were given back when they were more than a superblock can name as spare,
    although all were needed; then others were taken, without end: NoSpace in the checkpoint of a store that was far from full."""
    monkeypatch.setattr(ahead, "PASSES", passes)
    store, device = make()
    store.apply(Transaction().create_collection("c"))
    rng = random.Random(3)
    for number in range(10_000):
        pairs = {rng.randbytes(8): rng.randbytes(90) for _ in range(100)}
        refused = outcome(store, Transaction().map_set("c", b"o%d" % (number % 7), pairs))
        if refused is not None:
            break
    assert refused is not None, "the image is full"
    store.checkpoint()
    assert len(store.tables.allocator.extents()) > 500
    assert not check(store)
    assert content_of(reopened(device)) == content_of(store)
    store.close()
