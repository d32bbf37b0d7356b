"""The store under crashes: every write of a mixed workload a crash point, in every way the device allows."""

from __future__ import annotations

import pytest

from mdstore.device.explore import History, Report, explore
from mdstore.device.faulty import Fault, FaultyDevice
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import COLLECTIONS, Content, Mixed, content_of, outcome

SIZE = 512 * 1024
GEOMETRY = {"block_size": 512, "log_bytes": 32 * 1024}
SMALL = {"cache_bytes": 64 * 1024, "dirty_bytes": 48 * 1024, "background": False}


def make_workload(seed: int, transactions: int, *, sync_every: int = 3):  # type: ignore[no-untyped-def]
    """Transactions with a checkpoint whenever one is due (inline: one seed, one order) and an acknowledgement now and then."""

    def workload(device: FaultyDevice, history: History) -> None:
        store, model, mixed = Store.create(device, **GEOMETRY, **SMALL), MemStore(), Mixed(seed)
        first = Transaction()
        for collection in COLLECTIONS:
            first.create_collection(collection)
        store.apply(first)
        model.apply(first)
        history.start(content_of(model))
        for step in range(transactions):
            transaction = mixed.transaction()
            expected = outcome(model, transaction)
            number = history.begin(content_of(model))
            assert outcome(store, transaction) == expected, transaction.operations
            if step % sync_every == 0:
                store.sync()
                history.acknowledge(number)
        assert not check(store, deep=True)
        store.close()
        history.acknowledge(number)

    return workload


def reopen(device: Device) -> Content:
    """Recover, check everything, and hand out the content; then once more, read from the trees the checker's checkpoint wrote."""
    store = Store.open(device, **SMALL)
    content = content_of(store)
    problems = check(store, deep=True)
    assert not problems, problems
    assert content_of(store) == content, "a checkpoint changed what is read"
    store.close()
    return content


def run(seed: int, transactions: int, budget: int, faults: tuple[Fault, ...] = ()) -> Report:
    return explore(
        make_workload(seed, transactions), reopen, seed=seed, size_bytes=SIZE, budget_states=budget, nested_states=budget // 400,
        faults=faults,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_every_write_of_a_mixed_workload_is_a_crash_point(seed: int) -> None:
    report = run(seed, transactions=100, budget=4500)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert report.distinct > 1500
