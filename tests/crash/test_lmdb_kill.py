"""Another engine through the same adapter: LMDB under kill -9, sound as it promises, and unsound where it is told to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mdstore.device.kill import kill_loop
from mdstore.device.subject import Delete, Put, key_value_script

lmdb = pytest.importorskip("lmdb")


class LmdbSession:
    """One environment; `batch` operations to a transaction, acknowledged at its commit, or too early."""

    def __init__(self, path: str, batch: int, acknowledges_early: bool) -> None:
        self.environment = lmdb.open(path, map_size=1 << 24, sync=not acknowledges_early)
        self.batch = batch
        self.acknowledges_early = acknowledges_early
        self.applied = self.committed = 0
        self.transaction: Any = None

    def apply(self, operation: Put | Delete) -> None:
        self.transaction = self.transaction or self.environment.begin(write=True)
        if isinstance(operation, Put):
            self.transaction.put(operation.key, operation.value)
        else:
            self.transaction.delete(operation.key)
        self.applied += 1
        if self.applied % self.batch == 0:
            self.commit()

    def commit(self) -> None:
        if self.transaction is not None:
            self.transaction.commit()
        self.transaction, self.committed = None, self.applied

    def acknowledged(self) -> int:
        return self.applied if self.acknowledges_early else self.committed

    def dump(self) -> dict[bytes, bytes]:
        with self.environment.begin() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor()}

    def close(self) -> None:
        self.commit()
        self.environment.close()


class LmdbSubject:
    """LMDB in a directory."""

    def __init__(self, batch: int, acknowledges_early: bool = False) -> None:
        self.batch = batch
        self.acknowledges_early = acknowledges_early

    def format(self, path: str) -> LmdbSession:
        return self.open(path)

    def open(self, path: str) -> LmdbSession:
        return LmdbSession(path, self.batch, self.acknowledges_early)


@pytest.mark.parametrize("batch", [1, 7])
def test_lmdb_keeps_what_it_committed_whole_transactions_at_a_time(tmp_path: Path, batch: int) -> None:
    path, seed = str(tmp_path / "lmdb"), 11
    report = kill_loop(LmdbSubject(batch), lambda n, _: key_value_script(n, 70), path, seed=seed, rounds=10)
    assert report.clean, str(report)
    assert report.killed > 0
    assert report.acknowledged > 0


def test_acknowledging_before_the_commit_is_found(tmp_path: Path) -> None:
    path, subject = str(tmp_path / "lmdb"), LmdbSubject(7, acknowledges_early=True)
    report = kill_loop(subject, lambda n, _: key_value_script(n, 70), path, seed=12, rounds=40)
    assert not report.clean
