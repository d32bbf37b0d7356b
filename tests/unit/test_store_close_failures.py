"""Closing a store that cannot make durable what it accepted: `close` says so, until it has been told once."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from mdstore.device.faulty import Effect, Fault
from mdstore.errors import DeviceFailed
from mdstore.limits import MIB
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit.test_store_closing import HANG_S, Faulty


def made(*, background: bool = False) -> tuple[Store, Faulty]:
    """With a change that was accepted, and is not durable."""
    device = Faulty(2 * MIB, 1)
    store = Store.create(device, background=background)
    store.apply(Transaction().create_collection("c"))
    store.map("c", "m", sync=False).put(b"k", b"v")
    return store, device


def fail_next_flush(device: Faulty) -> None:
    device.inject(Fault("flush", device.calls("flush"), Effect.EIO))


def assert_told_once(store: Store) -> None:
    with pytest.raises(DeviceFailed):
        store.close()
    store.close()


def test_a_failure_in_the_background_that_nobody_was_told_is_told_by_close() -> None:
    """`close` returned as if all were well, and what had been accepted was lost."""
    store, device = made(background=True)
    fail_next_flush(device)
    store.checkpointer.want()
    assert store.checkpointer._thread is not None
    store.checkpointer._thread.join(HANG_S)
    assert not store.is_usable
    assert_told_once(store)


def test_a_failure_in_the_background_that_another_call_told_is_not_told_again() -> None:
    store, device = made(background=True)
    fail_next_flush(device)
    store.checkpointer.want()
    assert store.checkpointer._thread is not None
    store.checkpointer._thread.join(HANG_S)
    with pytest.raises(DeviceFailed):
        store.sync()
    store.close()


def test_a_failure_behind_which_everything_is_durable_is_no_failure_to_close() -> None:
    """Of a superblock: the log holds all."""
    store, device = made(background=True)
    store.sync()
    device.inject(Fault("write", device.calls("write"), Effect.EIO))
    store.checkpointer.want()
    assert store.checkpointer._thread is not None
    store.checkpointer._thread.join(HANG_S)
    assert not store.is_usable
    store.close()


def test_an_interrupt_hides_no_failure_of_the_last_checkpoint() -> None:
    """It was all that was told, and the next `close` returned as if all were well."""
    store, device = made()
    fail_next_flush(device)
    device.on_flush = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as raised:
        store.close()
    assert isinstance(raised.value.__cause__, DeviceFailed)
    assert_told_once(store)


def test_a_close_that_is_interrupted_before_its_checkpoint_hides_no_failure_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    store, device = made()
    fail_next_flush(device)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.checkpointer, "run_last", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        store.close()
    assert isinstance(raised.value.__cause__, DeviceFailed)
    assert_told_once(store)


def test_what_failed_in_a_close_inside_a_callback_is_told_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done in a thread of its own, which can only say so to `threading.excepthook`."""
    store, device = made()
    seen, over = list[object](), threading.Event()

    def hook(told: Any) -> None:
        seen.append(told.exc_type)
        over.set()

    def close(error: BaseException | None) -> None:
        store.map("c", "m", sync=False).put(b"k", b"w")
        fail_next_flush(device)
        store.close()

    monkeypatch.setattr(threading, "excepthook", hook)
    store.submit(Transaction().touch("c", "o")).add_done_callback(close)
    assert over.wait(HANG_S)
    assert seen == [DeviceFailed]
    assert_told_once(store)


def test_a_failed_store_raises_the_same_failure_without_all_that_it_passed_before() -> None:
    """Each time its traceback had become longer, and kept what those frames held."""
    store, device = made()
    fail_next_flush(device)
    with pytest.raises(DeviceFailed):
        store.checkpoint()
    lengths = set[int]()
    for _ in range(3):
        with pytest.raises(DeviceFailed) as raised:
            store.exists("c", "o")
        lengths.add(len(raised.traceback))
    assert len(lengths) == 1
