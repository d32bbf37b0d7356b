"""Every engine against the model, under random transactions, reopenings and kills.

Replay one run with `MDSTORE_SEED=<the number printed> pytest tests/model/test_store_against_model.py -k <engine>`;
`MDSTORE_EXAMPLES` asks for more of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from mdstore.engines.mem import MemStore
from mdstore.limits import MIB
from mdstore.store.transaction import Transaction
from tests.conformance.subjects import RIGS, BtreeRig, DelayedMemRig, Rig
from tests.model.store_machine import ManyObjectsMachine, StoreMachine

SEED = int(os.environ.get("MDSTORE_SEED", "20080501"))
EXAMPLES = int(os.environ.get("MDSTORE_EXAMPLES", "25"))
LIMITS = settings(
    max_examples=EXAMPLES, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def run(machine: type[StoreMachine], limits: settings = LIMITS) -> None:
    """Drive the machine; the seed stands in the output of a failure."""
    print(f"MDSTORE_SEED={SEED} MDSTORE_EXAMPLES={EXAMPLES}")
    run_state_machine_as_test(seed(SEED)(machine), settings=limits)


def machine_on(machine: type[StoreMachine], rig: Callable[[Path], Rig], place: Path) -> type[StoreMachine]:
    """The machine, with a rig in a directory of its own for each run."""
    used = [0]

    def fresh() -> Rig:
        used[0] += 1
        medium = place / str(used[0])
        medium.mkdir()
        return rig(medium)

    discard = staticmethod(lambda: shutil.rmtree(place / str(used[0])))
    return type(machine.__name__, (machine,), {"make_rig": staticmethod(fresh), "discard": discard})


ENGINES: dict[str, Callable[[Path], Rig]] = {
    **RIGS,
    "btree-pages-of-256": lambda medium: BtreeRig(medium, log_bytes=3 * MIB, block_size=256),
    "btree-pages-of-512": lambda medium: BtreeRig(medium, log_bytes=2 * MIB, block_size=512),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_answers_as_the_model(engine: str, tmp_path: Path) -> None:
    run(machine_on(StoreMachine, ENGINES[engine], tmp_path))


MANY_LIMITS = settings(LIMITS, max_examples=max(2, EXAMPLES // 8), stateful_step_count=12)


@pytest.mark.parametrize("engine", ["btree", "btree-few-onodes"])
def test_engine_answers_as_the_model_with_thousands_of_objects(engine: str, tmp_path: Path) -> None:
    onodes = 128 if engine == "btree-few-onodes" else 16384

    class Machine(ManyObjectsMachine):
        make_rig = staticmethod(lambda: BtreeRig(tmp_path, size_bytes=64 * MIB, log_bytes=8 * MIB, onodes=onodes))

    run(Machine, MANY_LIMITS)


class ForgetfulStore(MemStore):
    """A canary: it loses the map when it truncates."""

    def submit(self, transaction: Transaction):  # type: ignore[no-untyped-def]
        for operation in list(transaction.operations):
            if operation[0].name == "TRUNCATE":
                forgetful = Transaction()
                forgetful.operations = [*transaction.operations]
                return super().submit(forgetful.map_clear(operation[1], operation[2]))
        return super().submit(transaction)


class ForgetfulRig(DelayedMemRig):
    """The canary, on the rig that reopens and kills it like any other."""

    def __init__(self, medium: Path) -> None:
        super().__init__(medium)
        self._store = ForgetfulStore(delayed=True)


def test_a_store_that_forgets_is_found(tmp_path: Path) -> None:
    class Machine(StoreMachine):
        make_rig = staticmethod(lambda: ForgetfulRig(tmp_path))

    with pytest.raises(AssertionError):
        run(Machine, settings(LIMITS, phases=[Phase.generate]))
