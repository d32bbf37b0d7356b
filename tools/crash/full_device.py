"""Workload `full`: an image so small that it is full all the time. What is refused for want of room must have changed nothing;
removing must always work; and every crash in between recovers."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from mdstore.device.explore import History, Workload
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.errors import NoSpace
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.transactions import Mixed, content_of, first_collections, outcome
from mdstore.tools.crash.verify import Inconsistent, require, require_sound

SIZE: Final = 104 * 1024
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 16 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 64 * 1024, "dirty_bytes": 16 * 1024, "background": False}
SYNC_EVERY: Final = 4  # transactions
LARGE: Final = 6000  # bytes about where writes go, so that a dozen objects fill the image


def workload_of_full_device(seed: int, steps: int) -> Workload:
    """`steps` transactions; after each refusal one object is removed, which must be accepted."""

    def workload(device: Device, history: History) -> None:
        run = _Run(device, history, seed)
        for step in range(steps):
            run.step()
            if step % SYNC_EVERY == 0:
                run.sync()
        run.finish()

    return workload


class _Run:
    def __init__(self, device: Device, history: History, seed: int) -> None:
        self.store = Store.create(device, **GEOMETRY, **SMALL)
        self.model = MemStore()
        self.refused = 0
        self._history = history
        self._mixed = Mixed(seed, large=LARGE)
        self._random = Random(f"{seed}/full")
        for target in (self.store, self.model):
            target.apply(first_collections())
        history.start(content_of(self.model))
        self._number = 0

    def step(self) -> None:
        if self._submit(self._mixed.transaction()):
            return
        self.refused += 1
        victims = [(home, name) for home in self.model.list_collections() for name in self.model.list_objects(home)]
        require(bool(victims), "an image without objects refuses a transaction for want of room")
        victim = self._random.choice(victims)
        require(self._submit(Transaction().remove(*victim)), f"removing {victim} was refused for want of room")

    def sync(self) -> None:
        self.store.sync()
        self._history.acknowledge(self._number)

    def finish(self) -> None:
        require_sound(self.store)
        require(content_of(self.store) == content_of(self.model), "a refused transaction left something behind")
        self.store.close()
        self._history.acknowledge(self._number)

    def _submit(self, transaction: Transaction) -> bool:
        """False when it was refused for want of room, which only the store knows; every other answer must be the model's."""
        issued_at = self._history.point
        try:
            found = outcome(self.store, transaction)
        except BaseException:  # of a device that failed: the transaction may be in the log
            outcome(self.model, transaction)
            self._history.begin(content_of(self.model), issued_at)
            raise
        if found is not None and found[1] is NoSpace:
            return False
        expected = outcome(self.model, transaction)
        if found != expected:
            raise Inconsistent(f"{transaction.operations} gave {found}, the model says {expected}")
        if found is None:
            self._number = self._history.begin(content_of(self.model), issued_at)
        return True
