"""The store under crashes: every write of a mixed workload a crash point, in every way the device allows."""

from __future__ import annotations

import pytest

from mdstore.device.explore import explore
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
