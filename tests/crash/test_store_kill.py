"""The store in real processes under SIGKILL: what was acknowledged is there, whole transactions at a time, and it checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.kill import kill_loop
from mdstore.device.subject import Delete, Put, key_value_script
from mdstore.store.check import check
from mdstore.store.commit import Commit
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction


class StoreSession:
    """Each operation a transaction; every `batch`-th is waited for. Small limits, so that checkpoints happen all the time."""

    def __init__(self, store: Store, batch: int) -> None:
        self.store = store
        self.batch = batch
        self.applied = 0
        self.last: Commit | None = None
        self.durable = 0

    def apply(self, operation: Put | Delete) -> None:
        transaction = Transaction()
        if isinstance(operation, Put):
            transaction.map_set("c", "map", {operation.key: operation.value}).write("c", "data", 0, operation.value * 40)
        else:
            transaction.touch("c", "map").map_remove("c", "map", [operation.key])
        self.last = self.store.submit(transaction)
        self.applied += 1
        if self.applied % self.batch == 0:
            self.last.wait()
            self.durable = self.applied

    def acknowledged(self) -> int:
        return self.durable

    def dump(self) -> dict[bytes, bytes]:
        problems = check(self.store, deep=True)
        assert not problems, problems
        return dict(self.store.map_items("c", "map")) if self.store.exists("c", "map") else {}

    def close(self) -> None:
        self.store.close()


class StoreSubject:
    """An image in a file."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def format(self, path: str) -> StoreSession:
        store = Store.create(FileDevice.create(path, 2 << 20, exclusive=False), log_bytes=64 * 1024, dirty_bytes=100_000)
        store.apply(Transaction().create_collection("c"))
        return StoreSession(store, self.batch)

    def open(self, path: str) -> StoreSession:
        return StoreSession(Store.open(FileDevice.open(path), dirty_bytes=100_000), self.batch)


@pytest.mark.parametrize("batch", [1, 9])
def test_killed_stores_keep_what_they_acknowledged(tmp_path: Path, batch: int) -> None:
    path = str(tmp_path / "store.img")
    report = kill_loop(StoreSubject(batch), lambda n, _: key_value_script(n, 120), path, seed=21, rounds=12)
    assert report.clean, str(report)
    assert report.killed > 0
    assert report.acknowledged > 0
