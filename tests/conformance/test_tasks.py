"""Commits that tasks of asyncio await."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed
from mdstore.limits import MIB
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.conformance.subjects import Rig

TASKS, ROUNDS = 16, 5


def test_what_a_task_awaited_is_durable_and_came_in_order(rig: Rig) -> None:
    order: list[tuple[int, int]] = []

    async def put(task: int) -> None:
        for number in range(ROUNDS):
            commit = rig.store.submit(Transaction().map_set("c", f"{task}", {b"%d" % number: b"v"}))
            await commit
            assert commit.durable
            order.append((task, number))

    async def run() -> None:
        await asyncio.gather(*(put(task) for task in range(TASKS)))

    asyncio.run(run())
    rig.kill()
    for task in range(TASKS):
        assert [number for whose, number in order if whose == task] == list(range(ROUNDS))
        assert len(list(rig.store.map_items("c", f"{task}"))) == ROUNDS


class Gated(MemoryDevice):
    """A flush waits until the gate is open."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.gate = threading.Event()
        self.gate.set()

    def flush(self) -> None:
        self.gate.wait()
        super().flush()


def test_tasks_share_flushes() -> None:
    device = Gated(16 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c"))
    flushes = store.journal.counters.flushes
    device.gate.clear()

    async def put(task: int) -> None:
        await store.submit(Transaction().touch("c", f"{task}"))

    async def open_the_gate() -> None:
        device.gate.set()

    async def run() -> None:
        await asyncio.gather(*(put(task) for task in range(200)), open_the_gate())  # which is begun in this order

    asyncio.run(run())
    assert store.journal.counters.flushes - flushes <= 2, "that of those who came before it began, and that of the others"
    assert len(store.list_objects("c")) == 200


def test_a_task_is_told_of_a_failed_flush_and_one_that_is_cancelled_takes_nothing_back() -> None:
    device = FaultyDevice(16 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c"))

    async def cancelled() -> None:
        commit = store.submit(Transaction().touch("c", "kept"))
        task = asyncio.ensure_future(_await(commit))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.submit(Transaction().touch("c", "later"))

    async def failed() -> None:
        device.inject(Fault("flush", device.calls("flush"), Effect.EIO))
        await store.submit(Transaction().touch("c", "lost"))

    asyncio.run(cancelled())
    assert Store.open(MemoryDevice.from_bytes(device.image()), background=False).list_objects("c") == [b"kept", b"later"]
    with pytest.raises(DeviceFailed):
        asyncio.run(failed())


async def _await(commit: object) -> None:
    await commit  # type: ignore[misc]
