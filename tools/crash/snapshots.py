"""Workload `snapshots`: transactions, and now and then a snapshot of the whole store taken or deleted. A snapshot is there whole
or not at all, holds what it held, and no block that it reaches is used again."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from mdstore.device.explore import History, Workload
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.store.store import Store
from mdstore.tools.crash.transactions import Content, Mixed, content_of, first_collections, outcome
from mdstore.tools.crash.verify import Inconsistent, require, require_sound

SIZE: Final = 768 * 1024
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 32 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 64 * 1024, "dirty_bytes": 48 * 1024, "background": False}
NAMES: Final = ("first", "second", "third")
SNAPSHOT_EVERY: Final = 5  # steps
SYNC_EVERY: Final = 3


def workload_of_snapshots(seed: int, steps: int) -> Workload:
    """`steps` transactions, every fifth step a snapshot taken or deleted instead, which is durable when it returns."""

    def workload(device: Device, history: History) -> None:
        run = _Run(device, history, seed)
        for step in range(steps):
            if step % SNAPSHOT_EVERY == SNAPSHOT_EVERY - 1:
                run.take_or_delete()
            else:
                run.change()
                if step % SYNC_EVERY == 0:
                    run.sync()
        run.finish()

    return workload


def reopen_snapshots(device: Device) -> Content:
    """Recover, check, finish a deletion that was under way, check again; hand out the content and that of each snapshot."""
    store = Store.open(device, **SMALL)
    try:
        content = everything_in(store)
        require_sound(store)
        for info in store.snapshots():
            if info.is_deleting:
                store.delete_snapshot(info.name)
                require_sound(store)
        require(everything_in(store) == content, "a checkpoint changed what is read")
        return content
    finally:
        store.close()


def everything_in(store: Store) -> Content:
    """The live content with that of every snapshot that is not on its way out."""
    kept: dict[str, Content] = {}
    for info in store.snapshots():
        if not info.is_deleting:
            with store.open_snapshot(info.name) as view:
                kept[info.name.decode()] = content_of(view)
    return whole(content_of(store), kept)


def whole(content: Content, kept: dict[str, Content]) -> Content:
    """The live content with what each snapshot holds."""
    return {**content, **{f"snapshot {name}": dict(held) for name, held in kept.items()}}


class _Run:
    def __init__(self, device: Device, history: History, seed: int) -> None:
        self._store = Store.create(device, **GEOMETRY, **SMALL)
        self._model = MemStore()
        self._kept: dict[str, Content] = {}
        self._history = history
        self._mixed = Mixed(seed)
        self._random = Random(f"{seed}/snapshots")
        for target in (self._store, self._model):
            target.apply(first_collections())
        history.start(self._whole())
        self._number = 0

    def change(self) -> None:
        transaction = self._mixed.transaction()
        expected = outcome(self._model, transaction)
        self._number = self._history.begin(self._whole())
        found = outcome(self._store, transaction)
        if found != expected:
            raise Inconsistent(f"{transaction.operations} gave {found}, the model says {expected}")

    def take_or_delete(self) -> None:
        name = self._random.choice(NAMES)
        if name in self._kept:
            del self._kept[name]
            self._number = self._history.begin(self._whole())
            self._store.delete_snapshot(name)
        else:
            self._kept[name] = content_of(self._model)
            self._number = self._history.begin(self._whole())
            self._store.snapshot(name)
        self._history.acknowledge(self._number)

    def sync(self) -> None:
        self._store.sync()
        self._history.acknowledge(self._number)

    def finish(self) -> None:
        require_sound(self._store)
        require(everything_in(self._store) == self._whole(), "the store and its model differ")
        self._store.close()
        self._history.acknowledge(self._number)

    def _whole(self) -> Content:
        return whole(content_of(self._model), self._kept)
