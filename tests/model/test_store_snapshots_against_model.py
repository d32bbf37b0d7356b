"""Snapshots taken, read and deleted in any order among random transactions, reopenings and kills, against the model.

Replay one run with `MDSTORE_SEED=<the number printed> pytest tests/model/test_store_snapshots_against_model.py -k <engine>`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from mdstore.limits import MIB
from mdstore.store import snapshots as snapshots_module
from mdstore.store.check import check
from mdstore.store.store import Store
from tests.conformance.subjects import BtreeRig, DelayedMemRig, Rig, everything
from tests.model.store_machine import StoreMachine, outcome
from tests.model.test_store_against_model import EXAMPLES, machine_on, run

NAMES = (b"s", b"s\0", b"t", b"\xff" * 30)
ENGINES: dict[str, Callable[[Path], Rig]] = {
    "mem-delayed": DelayedMemRig,
    "btree": BtreeRig,
    "btree-pages-of-256": lambda medium: BtreeRig(medium, log_bytes=3 * MIB, block_size=256),
}
LIMITS = settings(
    max_examples=EXAMPLES // 2, stateful_step_count=30, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


class SnapshotMachine(StoreMachine):
    """The store machine, and snapshots: each goes on showing what it showed, and the image is sound."""

    @rule(name=st.sampled_from(NAMES))
    def take(self, name: bytes) -> None:
        self._same(lambda store: store.snapshot(name))

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: bytes) -> None:
        self._same(lambda store: store.delete_snapshot(name))

    @rule(name=st.sampled_from(NAMES))
    def keep_one_open(self, name: bytes) -> None:
        """Another cannot be taken under its name, and it cannot be deleted."""
        views = [outcome(partial(store.open_snapshot, name)) for store in (self.store, self.model)]
        if isinstance(views[1], tuple):
            assert views[0] == views[1]
            return
        assert everything(views[0]) == everything(views[1])
        self._same(lambda store: store.delete_snapshot(name))
        for view in views:
            view.close()

    @rule()
    def check_image(self) -> None:
        if isinstance(self.store, Store):
            assert check(self.store) == []

    @invariant()
    def same_snapshots(self) -> None:
        self._same(lambda store: [info[0] for info in store.snapshots()])
        self._same(lambda store: [info.objects for info in store.snapshots()])

    def teardown(self) -> None:
        for info in self.model.snapshots():
            views = [store.open_snapshot(info.name) for store in (self.store, self.model)]
            assert everything(views[0]) == everything(views[1])
            for view in views:
                view.close()
            self.store.delete_snapshot(info.name)
        if isinstance(self.store, Store):
            assert check(self.store, deep=True) == []
            assert not len(self.store.tables.space.snapshots.dead)
        super().teardown()


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_keeps_what_the_model_keeps(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "_STEP_RUNS", 7)
    run(machine_on(SnapshotMachine, ENGINES[engine], tmp_path), LIMITS)
