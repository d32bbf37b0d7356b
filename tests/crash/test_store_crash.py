"""The store under crashes: every write of a mixed workload a crash point, in every way the device allows."""

from __future__ import annotations

from functools import partial

import pytest

from mdstore.device.explore import explore
from mdstore.store import ahead
from mdstore.tools.crash.transactions import SIZE, reopen_transactions, workload_of_transactions


@pytest.mark.parametrize("seed", [1, 2])
def test_every_write_of_a_mixed_workload_is_a_crash_point(seed: int) -> None:
    workload, budget = workload_of_transactions(seed, 100), 4500
    report = explore(
        workload, reopen_transactions, seed=seed, size_bytes=SIZE, budget_states=budget, nested_states=budget // 400
    )
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert report.distinct > 1500


def test_crashes_around_checkpoints_prepared_in_the_smallest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so little data most of a freeze is never done ahead; here all of it is."""
    monkeypatch.setattr(ahead, "PAGES", 1)
    monkeypatch.setattr(ahead, "ONODES_LEFT", 0)
    workload = workload_of_transactions(3, 45)
    report = explore(workload, reopen_transactions, seed=3, size_bytes=SIZE, budget_states=1400, nested_states=2)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 60, "no write was left out"


def test_crashes_with_wipes_in_flight() -> None:
    """Freed blocks are overwritten between the checkpoint that frees them and their next use."""
    report = explore(
        workload_of_transactions(4, 30, wipe="zero"), partial(reopen_transactions, wipe="zero"), seed=4,
        size_bytes=SIZE, budget_states=1000, nested_states=1,
    )  # fmt: skip
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 40
