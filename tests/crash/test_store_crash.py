"""The store under crashes: every write of a mixed workload a crash point, in every way the device allows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from journal import JournalError
from mdstore.device.explore import History, Workload, explore
from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.protocol import Device
from mdstore.errors import DeviceFailed, MdstoreError
from mdstore.store import ahead
from mdstore.store.store import Store
from mdstore.tools.crash.transactions import GEOMETRY, SIZE, SMALL, reopen_transactions, workload_of_transactions


@pytest.mark.parametrize("seed", [1, 2])
def test_every_write_of_a_mixed_workload_is_a_crash_point(seed: int) -> None:
    workload, budget = workload_of_transactions(seed, 100), 4500
    report = explore(
        workload, reopen_transactions, seed=seed, size_bytes=SIZE, budget_states=budget, nested_states=budget // 400
    )
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert report.distinct > 2500


def test_crashes_around_checkpoints_prepared_in_the_smallest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so little data most of a freeze is never done ahead; here all of it is."""
    monkeypatch.setattr(ahead, "PAGES", 1)
    monkeypatch.setattr(ahead, "ONODES_LEFT", 0)
    workload = workload_of_transactions(3, 45)
    report = explore(workload, reopen_transactions, seed=3, size_bytes=SIZE, budget_states=1400, nested_states=2)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 60, "no write was left out"
    assert report.distinct > 750


def overlapped_by_a_failure(fails: str, seed: int) -> Workload:
    """Durable puts; in the flush of one of them, or of a head of the log, the other one is made in another thread and fails. The
    device tells that once: the flush in which it happened says that all is well."""

    def run(device: Device, history: History) -> None:
        assert isinstance(device, FaultyDevice)
        store = Store.create(device, **GEOMETRY, **SMALL)
        view, model = store.map("c", "m"), dict[bytes, bytes]()
        history.start(dict(model))

        def put(number: int) -> None:
            model[b"%d" % number] = b"value"
            history.begin(dict(model))
            view[b"%d" % number] = b"value"
            history.acknowledge(len(model))

        def fail(work: Callable[[], None]) -> None:
            def run() -> None:
                with suppress(MdstoreError, JournalError):
                    work()

            device.inject(Fault("flush", device.calls("flush"), Effect.TOLD_ONCE))
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

        for number in range(seed):
            put(number)
        one, other = partial(put, seed), store.journal.write_head
        if fails == "head":
            device.during_flush = partial(fail, other)
        else:
            one, other = other, one
            device.during_flush = lambda: setattr(device, "during_flush", partial(fail, other))  # in the second and last
        with pytest.raises((DeviceFailed, JournalError)):
            one()

    return run


def reopen_map(device: Device) -> dict[bytes, bytes]:
    store = Store.open(device, **SMALL)
    try:
        return dict(store.map("c", "m").items())
    finally:
        store.close()


@pytest.mark.parametrize("fails", ["head", "put"])
@pytest.mark.parametrize("seed", [1, 7])
def test_a_flush_that_overlaps_a_failed_one_acknowledges_nothing(seed: int, fails: str) -> None:
    """The put was acknowledged although the log refused everything by then, and the bytes were lost."""
    report = explore(overlapped_by_a_failure(fails, seed), reopen_map, seed=seed, size_bytes=SIZE, budget_states=300)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > seed
    assert report.distinct > 70


def test_crashes_with_wipes_in_flight() -> None:
    """Freed blocks are overwritten between the checkpoint that frees them and their next use."""
    report = explore(
        workload_of_transactions(4, 30, wipe="zero"), partial(reopen_transactions, wipe="zero"), seed=4,
        size_bytes=SIZE, budget_states=1000, nested_states=1,
    )  # fmt: skip
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 40
    assert report.distinct > 500
