"""The entry that ends the log, at every crash point of checkpoints and of wiping: what was not emptied is never refused."""

from __future__ import annotations

from typing import Literal

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.store import superblock
from mdstore.store.store import Store
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


@pytest.mark.parametrize("wipe", ["off", "zero"])
def test_no_crash_leaves_a_log_that_is_taken_for_emptied(wipe: Literal["off", "zero"]) -> None:
    """Checkpoints with nothing behind them, one after the other, an opening, the last close: there the entry alone vouches."""

    def workload(device: Device, history: History) -> None:
        model, mixed, ended = MemStore(), Mixed(4), list[bool]()
        store = Store.create(device, **GEOMETRY, **SMALL, wipe=wipe)
        history.start(content_of(model))
        for step in range(12):
            transaction = first_collections() if step == 0 else mixed.transaction()
            expected = outcome(model, transaction)
            number = history.begin(content_of(model))
            assert outcome(store, transaction) == expected
            store.sync()
            history.acknowledge(number)
            if step % 3 == 0:
                store.checkpoint()
                store.checkpoint()
                ended.append(bool(store.superblock.flags & superblock.FLAG_LOG_ENDS))
            if step in (6, 10):  # right behind a checkpoint, and with an entry in the log
                store = Store.open(device, **SMALL, wipe=wipe)
        store.close()
        assert ended == [True] * 4

    report = explore(workload, reopen_transactions, size_bytes=SIZE, seed=11, budget_states=900)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 60
