"""Takeover of a log kept in a real object store, with the floors of the store itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from journal import Journal, JournalFenced, Layout, Options, StripedMedium
from journal.medium import Buffer
from journal.schedules import Stepped
from journal.simulation import Hook, Operation
from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.mds.objectio import StoreObjects
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

LAYOUT = Layout(256, 2, 512)


class Watched(StoreObjects):
    """Tells its hook before every operation."""

    def __init__(self, store: ObjectStore, epoch: int, hook: Hook | None) -> None:
        super().__init__(store, b"log", epoch=epoch)
        self.hook = hook

    def _see(self, kind: str, name: str = "") -> None:
        if self.hook is not None:
            self.hook(Operation(kind, name))

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._see("read", name)
        return super().read(name, offset, length)

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._see("write", name)
        super().write(name, offset, buffers)

    def truncate(self, name: str, size: int) -> None:
        self._see("truncate", name)
        super().truncate(name, size)

    def remove(self, name: str) -> None:
        self._see("remove", name)
        super().remove(name)

    def flush(self) -> None:
        self._see("flush")
        super().flush()


def btree() -> ObjectStore:
    return Store.create(MemoryDevice(16 << 20), background=False)


@pytest.fixture(params=[MemStore, btree], ids=["mem", "btree"])
def make(request: pytest.FixtureRequest) -> Callable[[], ObjectStore]:
    factory: Callable[[], ObjectStore] = request.param

    def made() -> ObjectStore:
        store = factory()
        store.apply(Transaction().create_collection(b"log"))
        Journal.create(medium(store, 1)).close()
        return store

    return made


def medium(store: ObjectStore, epoch: int, hook: Hook | None = None) -> StripedMedium:
    return StripedMedium(Watched(store, epoch, hook), "log", LAYOUT, prezero_periods=1)


def old_writer(store: ObjectStore, acknowledged: list[bytes]) -> Callable[[Hook], None]:
    def run(hook: Hook) -> None:
        journal = Journal.open(medium(store, 1, hook), options=Options(allow_split=False))
        for n in range(4):
            payload = b"%d" % n * (n * 130 + 1)
            journal.wait(journal.append(payload))
            acknowledged.append(payload)
        journal.close()

    return run


def contents(store: ObjectStore) -> dict[bytes, bytes]:
    return {name: store.read(b"log", name) for name in store.list_objects(b"log")}


def test_old_writer_paused_at_every_step_over_an_engine(make: Callable[[], ObjectStore]) -> None:
    """A write that the store took before the floor rose is flushed with a success: the new writer has read it."""
    probe = Stepped(old_writer(make(), []))
    probe.finish()
    assert probe.error is None
    assert probe.steps > 25
    for pause in range(0, probe.steps, 2):
        store, acknowledged = make(), list[bytes]()
        old = Stepped(old_writer(store, acknowledged))
        for _ in range(pause):
            old.step()
        told = list(acknowledged)
        new = Journal.take_over(medium(store, 2))
        replayed = [entry.payload for entry in new.entries()]
        assert replayed[: len(told)] == told
        before = contents(store)
        old.finish()
        assert contents(store) == before
        assert acknowledged == replayed[: len(acknowledged)], "told of a success that the new writer has not read"
        assert len(acknowledged) <= len(told) + 1
        assert old.error is None or isinstance(old.error, JournalFenced)
        new.wait(new.append(b"new"))
        third = Journal.take_over(medium(store, 3))
        assert [entry.payload for entry in third.entries()] == [*replayed, b"new"]
