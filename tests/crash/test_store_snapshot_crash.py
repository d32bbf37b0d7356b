"""Snapshots under crashes: taken and deleted, in one step and in many, every write a crash point. No state leaks a block or frees
one that a snapshot reaches: the checker says so after each."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mdstore.device.explore import History, Report, explore
from mdstore.device.faulty import Fault, FaultyDevice
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.store import snapshots as snapshots_module
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import COLLECTIONS, Mixed, content_of, outcome

SIZE = 768 * 1024
GEOMETRY: dict[str, Any] = {"block_size": 512, "log_bytes": 32 * 1024}
SMALL: dict[str, Any] = {"cache_bytes": 64 * 1024, "dirty_bytes": 48 * 1024, "background": False}
NAMES = ("first", "second", "third")

Content = dict[str, object]


def whole(content: Content, kept: dict[str, Content]) -> Content:
    """The live content with that of every snapshot."""
    return {**content, **{f"snapshot {name}": dict(kept[name]) for name in kept}}


def make_workload(seed: int, steps: int):  # type: ignore[no-untyped-def]
    """Transactions, and now and then a snapshot taken or deleted; both are durable when they return."""

    def workload(device: FaultyDevice, history: History) -> None:
        store, model, mixed, random = Store.create(device, **GEOMETRY, **SMALL), MemStore(), Mixed(seed), Random(seed)
        first = Transaction()
        for collection in COLLECTIONS:
            first.create_collection(collection)
        store.apply(first)
        model.apply(first)
        kept: dict[str, Content] = {}
        history.start(whole(content_of(model), kept))
        for step in range(steps):
            if step % 5 == 4:
                name = random.choice(NAMES)
                if name in kept:
                    del kept[name]
                    number = history.begin(whole(content_of(model), kept))
                    store.delete_snapshot(name)
                else:
                    kept[name] = content_of(model)
                    number = history.begin(whole(content_of(model), kept))
                    store.snapshot(name)
                history.acknowledge(number)
                continue
            transaction = mixed.transaction()
            expected = outcome(model, transaction)
            number = history.begin(whole(content_of(model), kept))
            assert outcome(store, transaction) == expected, transaction.operations
            if step % 3 == 0:
                store.sync()
                history.acknowledge(number)
        assert not check(store, deep=True)
        store.close()
        history.acknowledge(number)

    return workload


def reopen(device: Device) -> Content:
    """Recover, check everything, go on with a deletion that was under way, check again; hand out the content."""
    store = Store.open(device, **SMALL)
    content = everything(store)
    problems = check(store, deep=True)
    assert not problems, problems
    for info in store.snapshots():
        if info.is_deleting:
            store.delete_snapshot(info.name)
            problems = check(store, deep=True)
            assert not problems, problems
    assert everything(store) == content, "a checkpoint changed what is read"
    store.close()
    return content


def everything(store: Store) -> Content:
    kept = {}
    for info in store.snapshots():
        if not info.is_deleting:
            with store.open_snapshot(info.name) as view:
                kept[info.name.decode()] = content_of(view)
    return whole(content_of(store), kept)


def run(seed: int, steps: int, budget: int, faults: tuple[Fault, ...] = ()) -> Report:
    return explore(
        make_workload(seed, steps), reopen, seed=seed, size_bytes=SIZE, budget_states=budget, nested_states=budget // 400,
        faults=faults,
    )  # fmt: skip


@pytest.mark.parametrize(("seed", "step_runs"), [(1, 4096), (2, 4), (3, 1)])
def test_snapshots_taken_and_deleted_are_whole_or_gone(seed: int, step_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "_STEP_RUNS", step_runs)
    report = run(seed, steps=45, budget=2400)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert report.distinct > 750
