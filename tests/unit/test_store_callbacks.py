"""What a commit's callback does with its store, wherever the log is flushed: nobody waits for himself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit.test_store_closing import HANG_S, Memory

Use = Callable[[Store], object]


def fill_the_log(store: Store) -> None:
    for number in range(60):
        store.submit(Transaction().write("c", f"q{number}", 0, b"x" * 1500))


USES: dict[str, Use] = {
    "checkpoint": Store.checkpoint,
    "snapshot": lambda store: store.snapshot("s"),
    "large write": lambda store: store.apply(Transaction().write("c", "large", 0, b"x" * 300_000)),
    "full log": fill_the_log,
    "close": Store.close,
}


class Used:
    """A callback that uses the store, and what came of it."""

    def __init__(self, store: Store, use: Use) -> None:
        self.done = threading.Event()
        self.failure: BaseException | None = None
        self.held_the_lock = False
        self._store = store
        self._use = use

    def __call__(self, error: BaseException | None) -> None:
        self.held_the_lock = self._store.lock._is_owned()  # type: ignore[attr-defined]
        try:
            self._use(self._store)
        except BaseException as failure:
            self.failure = failure
        self.done.set()

    def check(self) -> None:
        assert self.done.wait(HANG_S)
        assert self.failure is None
        assert not self.held_the_lock


def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Memory]:
    device = Memory(4 * MIB)
    store = Store.create(device, background=False, log_bytes=64 * 1024)
    store.apply(Transaction().create_collection("c"))
    monkeypatch.setattr(store._committer, "kick", lambda: None)  # nobody flushes for those who wait by callback
    return store, device


def run_apart(work: Callable[[], object]) -> None:
    """In a thread, so that one that hangs ends the test and not the run."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("use", USES)
def test_a_callback_that_a_checkpoint_flushed_may_use_the_store(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was called inside the checkpoint; one of its own, or a transaction that needed one, waited for that for ever."""
    store, device = made(monkeypatch)
    used = Used(store, USES[use])
    store.submit(Transaction().touch("c", "o")).add_done_callback(used)
    run_apart(store.checkpoint)
    used.check()
    run_apart(store.close)
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert again.recovery.clean
    assert check(again, deep=True) == []


def shrink_the_buffer(store: Store, size: int) -> None:
    """Of the log, so that an append soon has to wait for a flush that does not keep up."""
    writer = store.journal._writer
    writer._options = replace(writer._options, buffer_bytes=size)
    writer._pack.hold_back = size


@pytest.mark.parametrize("use", USES)
def test_a_callback_that_an_append_flushed_may_use_the_store(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that has to wait for the log, because somebody's flush does not keep up, may have to flush it itself, and is
    inside a transaction: called back there, a checkpoint waited for the store's lock, and its caller, who held it, for that."""
    store, device = made(monkeypatch)
    shrink_the_buffer(store, 1024)
    used, turns = Used(store, USES[use]), store.journal._writer.turns
    appended, waited = threading.Event(), list[bool]()

    def append() -> None:
        store.submit(Transaction().touch("c", "o")).add_done_callback(used)
        store.submit(Transaction().write("c", "o", 0, b"x" * 3000))
        appended.set()

    appending = threading.Thread(target=append, daemon=True)

    def until_it_waits() -> None:
        appending.start()
        while not turns._parked and not appended.is_set():
            appended.wait(0.0002)
        waited.append(not appended.is_set())

    lead = store.submit(Transaction().touch("c", "lead"))
    lead.add_done_callback(lambda _: appended.wait(HANG_S))  # so that who leads now calls nobody else back
    device.on_flush = until_it_waits
    run_apart(lead.wait)
    appending.join(HANG_S)
    assert not appending.is_alive()
    assert waited == [True], "the append had to wait for the log"
    used.check()
    run_apart(store.close)
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert again.recovery.clean
    assert again.read("c", "o") == b"x" * 3000
    assert check(again, deep=True) == []
