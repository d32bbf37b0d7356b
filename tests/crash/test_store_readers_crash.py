"""Readers that stay open over many checkpoints, every write a crash point: what they keep costs a crash nothing, and what is
reused beside them no superblock reaches that a crash may come back to."""

from __future__ import annotations

from random import Random

import pytest

from mdstore.device.explore import History, Workload, explore
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.wipe import Wipe
from mdstore.tools.crash.transactions import (
    GEOMETRY,
    SMALL,
    Mixed,
    content_of,
    first_collections,
    outcome,
    reopen_transactions,
)
from tests.model.store_readers import Readers

SIZE = 1 << 20
STEPS = 36
READERS = 4  # at most, and each for a quarter of the time or more: the image has room for what they keep


def make_workload(seed: int, wipe: Wipe, seen: dict[str, int]) -> Workload:
    """Transactions and readers; a checkpoint after every third of them."""

    def workload(device: Device, history: History) -> None:
        rng, model, mixed = Random(seed), MemStore(), Mixed(seed)
        store = Store.create(device, **GEOMETRY, **{**SMALL, "cache_bytes": 0}, wipe=wipe)
        readers = Readers(store, model, rng)
        for one in (store, model):
            one.apply(first_collections())
        history.start(content_of(model))
        for step in range(STEPS):
            transaction = mixed.transaction()
            expected = outcome(model, transaction)
            number = history.begin(content_of(model))
            assert outcome(store, transaction) == expected, transaction.operations
            if step % 3 == 0:
                store.checkpoint()
                history.acknowledge(number)
                seen["held"] = max(seen.get("held", 0), store.held_blocks())
                readers.look()
            if step % (STEPS // 4) == 1 and len(readers) == READERS:
                readers.close()
            if step % 5 == 1 and len(readers) < READERS:
                readers.open()
        problems = check(store, deep=True)
        assert not problems, problems
        while len(readers):
            readers.close()
        store.close()
        history.acknowledge(number)

    return workload


@pytest.mark.parametrize(("seed", "wipe", "states"), [(1, "off", 1800), pytest.param(2, "zero", 3000, marks=pytest.mark.slow)])
def test_what_is_reused_beside_long_readers_no_crash_needs(seed: int, wipe: Wipe, states: int) -> None:
    seen: dict[str, int] = {}

    def reopen(device: Device) -> object:
        return reopen_transactions(device, wipe=wipe)

    report = explore(make_workload(seed, wipe, seen), reopen, seed=seed, size_bytes=SIZE, budget_states=states, nested_states=2)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert seen["held"] > 20, "readers held what was given up"


def test_the_workload_finds_pins_that_are_one_epoch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was born in the epoch that a reader began in is let go. (Beside wiping: nobody has to come and take it.)"""
    pinned = Store._pinned_epochs
    monkeypatch.setattr(Store, "_pinned_epochs", lambda store: [epoch - 1 for epoch in pinned(store)])
    with pytest.raises(CorruptionError):
        explore(make_workload(2, "zero", {}), lambda device: None, seed=2, size_bytes=SIZE, budget_states=1)
