"""Closing a store beside other threads, from inside its own callbacks, and with interrupts at every step: what was accepted is
durable, what was not raises StoreClosed, and nobody hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed, StoreClosed
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.scrub import Scrub
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit import test_journal_interrupts as journal_interrupts

HANG_S = 120
LARGE = b"x" * 300_000


class Seams:
    """Before a device: runs `on_read`, `on_write` or `on_flush` inside the next such call, once."""

    on_read: Callable[[], None] | None = None
    on_write: Callable[[], None] | None = None
    on_flush: Callable[[], None] | None = None

    def _at(self, seam: str) -> None:
        action = getattr(self, seam)
        setattr(self, seam, None)
        if action is not None:
            action()

    def read(self, offset: int, length: int) -> bytes:
        self._at("on_read")
        return super().read(offset, length)  # type: ignore[misc, no-any-return]

    def write(self, offset: int, buffers: Any) -> None:
        self._at("on_write")
        super().write(offset, buffers)  # type: ignore[misc]

    def flush(self) -> None:
        self._at("on_flush")
        super().flush()  # type: ignore[misc]


class Memory(Seams, MemoryDevice):
    """In memory."""


class File(Seams, FileDevice):
    """On a file."""


class Faulty(Seams, FaultyDevice):
    """One that fails."""


def made() -> tuple[Store, Memory]:
    device = Memory(2 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, LARGE))
    return store, device


def reopened(device: Memory, *, clean: bool = True) -> Store:
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert again.recovery.clean == clean
    assert check(again, deep=True) == []
    return again


class Watched:
    """In place of a lock: `reached` is set once somebody finds it held."""

    def __init__(self, lock: Any, reached: threading.Event) -> None:
        self._lock = lock
        self._reached = reached

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._reached.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _is_owned(self) -> Any:
        return self._lock._is_owned()


def watch_the_turn(store: Store, waits: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on `waits` is set once a thread waits for another one to close the store."""
    monkeypatch.setattr(store._closer, "_turn", Watched(store._closer._turn, waits))


def test_of_two_who_close_at_once_the_second_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raised StoreClosed, or released the device under the last checkpoint of the first."""
    store, device = made()
    order, waits_or_done = list[str](), threading.Event()

    def close() -> None:
        store.close()
        order.append("second")
        waits_or_done.set()

    second = threading.Thread(target=close)

    def in_the_last_checkpoint() -> None:
        watch_the_turn(store, waits_or_done, monkeypatch)
        second.start()
        assert waits_or_done.wait(HANG_S)
        order.append("flushed")

    store.apply(Transaction().touch("c", "last"))
    device.on_flush = in_the_last_checkpoint
    store.close()
    second.join(HANG_S)
    assert order == ["flushed", "second"]
    assert reopened(device).exists("c", "last")


def test_of_two_who_close_at_once_both_learn_that_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Faulty(2 * MIB, 1)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c"))
    outcomes, waits_or_done = list[object](), threading.Event()

    def close() -> None:
        try:
            store.close()
        except DeviceFailed as error:
            outcomes.append(str(error))
        waits_or_done.set()

    second = threading.Thread(target=close)

    def in_the_last_checkpoint() -> None:
        watch_the_turn(store, waits_or_done, monkeypatch)
        second.start()
        assert waits_or_done.wait(HANG_S)
        device.inject(Fault("flush", device.calls("flush"), Effect.EIO))

    device.on_flush = in_the_last_checkpoint
    close()
    second.join(HANG_S)
    assert len(outcomes) == 2, outcomes
    assert outcomes[0] == outcomes[1]
    store.close()
    assert len(outcomes) == 2, "again: nothing"


def test_a_large_write_that_closing_overtakes_is_refused_and_keeps_no_block() -> None:
    """Its blocks are on the device, and no transaction names them."""
    store, device = made()
    free = store.statistics()["free_bytes"]
    closer = threading.Thread(target=store.close)

    def close() -> None:
        closer.start()
        while not store.closing:
            closer.join(0.001)

    device.on_write = close
    with pytest.raises(StoreClosed):
        store.apply(Transaction().write("c", "more", 0, LARGE))
    closer.join(HANG_S)
    again = reopened(device)
    assert not again.exists("c", "more")
    assert free - again.statistics()["free_bytes"] < len(LARGE)


def test_a_read_that_closing_overtakes_is_refused() -> None:
    """Its blocks may be another process's by then."""
    store, device = made()
    device.on_read = store.close
    with pytest.raises(StoreClosed):
        store.read("c", "o")
    assert reopened(device).read("c", "o") == LARGE


def test_a_snapshot_read_that_closing_overtakes_is_refused() -> None:
    """Deleted meanwhile, its blocks may be used again: unchecked data was returned as it had never been."""
    store, device = made()
    store.snapshot("s")
    view = store.open_snapshot("s")
    device.on_read = view.close
    with pytest.raises(StoreClosed):
        view.read("c", "o")
    store.delete_snapshot("s")
    store.close()


def test_closing_waits_for_a_checkpoint_that_is_under_way() -> None:
    store, device = made()
    closer = threading.Thread(target=store.close)

    def close() -> None:
        closer.start()
        while not store.closing:
            closer.join(0.001)

    device.on_flush = close
    store.checkpoint()
    closer.join(HANG_S)
    assert reopened(device).read("c", "o") == LARGE


def test_a_checkpoint_that_waited_for_the_last_one_is_refused() -> None:
    """It was written behind the last one, and the image was not closed in order."""
    store, device = made()
    refused = list[object]()

    def one_more() -> None:  # by who was let in before the store was being closed
        try:
            store.checkpointer.run()
        except StoreClosed as error:
            refused.append(error)

    waiting = threading.Thread(target=one_more)
    device.on_flush = waiting.start
    store.close()
    waiting.join(HANG_S)
    assert len(refused) == 1
    assert reopened(device).read("c", "o") == LARGE


def test_a_change_whose_own_checkpoint_comes_too_late_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in the last checkpoint, and its caller was told StoreClosed."""
    store, device = made()

    def closed_first() -> bool:
        store.close()
        return True

    monkeypatch.setattr(store.room, "checkpoint_is_due", closed_first)
    commit = store.submit(Transaction().touch("c", "n"))
    commit.wait()
    assert reopened(device).exists("c", "n")


def test_a_scrub_that_closing_overtakes_finds_no_damage(tmp_path: Path) -> None:
    """What it could not read any more it reported as unreadable sectors."""
    store = Store.create(FileDevice.create(tmp_path / "image", 2 * MIB), background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, LARGE))
    store.map("c", "m").update((b"%d" % number, bytes(100)) for number in range(700))
    store.close()
    overtaken = 0
    for looks in range(1, 12):
        store = Store.open(FileDevice.open(tmp_path / "image"), background=False)
        left = [looks]

        def clock(store: Store = store, left: list[int] = left) -> float:
            left[0] -= 1
            if not left[0]:
                store.close()
            return 0.0

        scrub = Scrub(store, resume=False, clock=clock)
        try:
            scrub.run()
        except StoreClosed:
            overtaken += 1
        assert scrub.report.findings == scrub._unsaved == []
        store.close()
    assert overtaken > 3


def closing_callback(store: Store, told: list[BaseException | None]) -> Callable[[BaseException | None], None]:
    def called(error: BaseException | None) -> None:
        store.close()
        told.append(error)

    return called


@pytest.mark.parametrize("flushed_by", ["committer", "checkpoint", "wait", "sync"])
def test_a_store_closed_inside_a_callback_closes_in_order(
    flushed_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that called back waited for itself: for the end of the committer, or of the checkpoint that it was in."""
    device = File.create(tmp_path / "image", 2 * MIB)
    assert isinstance(device, File)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c"))
    told, called = list[BaseException | None](), threading.Event()
    if flushed_by != "committer":
        monkeypatch.setattr(store._committer, "kick", lambda: None)
    commit = store.submit(Transaction().touch("c", "o"))
    commit.add_done_callback(closing_callback(store, told))
    commit.add_done_callback(lambda _: called.set())
    with suppress(StoreClosed):
        if flushed_by != "committer":
            {"checkpoint": store.checkpoint, "wait": commit.wait, "sync": store.sync}[flushed_by]()
    assert called.wait(HANG_S)
    store.close()
    assert told == [None]
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as again:
        assert again.recovery.clean
        assert again.exists("c", "o")


INSIDE = ["flush", "sync", "change", "waiter", "commit thread", "checkpoint thread", "close"]


@pytest.mark.parametrize("place", INSIDE)
def test_a_store_closed_in_the_middle_of_a_call_of_the_same_thread_waits_for_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the handler of a signal does, or a finalizer: it waited for itself. Whoever closes later waits for the end of it."""
    device = Memory(2 * MIB)
    store = Store.create(device, background=True)
    store.apply(Transaction().create_collection("c"))
    handled, is_told = list[str](), threading.Event()

    def handle(real: Callable[..., Any], *given: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and not handled:
            handled.append(place)
            store.close()
        return real(*given)

    if place in ("flush", "sync"):
        device.on_flush = partial(handle, bool)
    if place == "change":
        monkeypatch.setattr(store._applier, "apply", partial(handle, store._applier.apply))
    if place == "waiter":
        turns = store.journal._writer.turns
        monkeypatch.setattr(turns, "add", partial(handle, turns.add))
    if "thread" in place:
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            handle(start, thread) if thread.name == "mdstore-" + place.split()[0] else start(thread)

        monkeypatch.setattr(threading.Thread, "start", started)
    if place == "close":
        monkeypatch.setattr(store, "mark_closed", partial(handle, store.mark_closed))
    commit = store.submit(Transaction().touch("c", "o"))
    with suppress(StoreClosed):
        if place == "sync":
            store.sync()
        if place == "checkpoint thread":
            store.checkpointer.want()
        if place in ("waiter", "commit thread"):
            commit.add_done_callback(partial(_set, is_told))
            assert is_told.wait(HANG_S)
    if place != "close":
        commit.wait()
    store.close()
    assert handled == [place]
    assert reopened(device).exists("c", "o")


def test_one_thread_makes_the_checkpoints_whoever_wants_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transactions that found none started one each; `close` waited for ever for the one that was not told to stop."""
    store = Store.create(Memory(2 * MIB), background=True)
    checkpointer, waits_or_done = store.checkpointer, threading.Event()

    def want() -> None:
        checkpointer.want()
        waits_or_done.set()

    second = threading.Thread(target=want)
    started, start = list[threading.Thread](), threading.Thread.start

    def while_another_wants_one(thread: threading.Thread) -> None:
        if thread.name == "mdstore-checkpoint":
            started.append(thread)
            if len(started) == 1:
                start(second)
                assert waits_or_done.wait(HANG_S)
        start(thread)

    monkeypatch.setattr(checkpointer, "_starting", Watched(threading.RLock(), waits_or_done))
    monkeypatch.setattr(threading.Thread, "start", while_another_wants_one)
    checkpointer.want()
    second.join(HANG_S)
    assert len(started) == 1
    store.close()
    assert not started[0].is_alive()
    checkpointer.want()
    assert len(started) == 1, "none is started behind the last"


ABANDONED = """
import sys, time
from mdstore.device.memory import MemoryDevice
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

def generator():
    with Store.create(MemoryDevice(1 << 20), background=BACKGROUND) as store:
        store.apply(Transaction().create_collection("c"))
        if BACKGROUND:
            told, made = [], store.checkpointer.count
            store.submit(Transaction().touch("c", "o")).add_done_callback(told.append)
            store.checkpointer.want()
            while not told or store.checkpointer.count == made:
                time.sleep(0.001)
            for threads in (store._committer, store.checkpointer):
                waits = type(threads._wanted).wait.__code__
                while sys._current_frames()[threads._thread.ident].f_code is not waits:
                    time.sleep(0.001)
        yield store

class Holder:
    pass

holder = Holder()
holder.itself, holder.held = holder, generator()
next(holder.held)
"""


@pytest.mark.parametrize("background", [False, True])
def test_a_store_that_the_end_of_the_interpreter_closes_waits_for_no_thread(background: bool) -> None:
    """There is none any more; it handed its last checkpoint to one, and the process never ended. With threads of its own, too."""
    script = ABANDONED.replace("BACKGROUND", str(background))
    ended = subprocess.run([sys.executable, "-c", script], timeout=HANG_S, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_callback_that_raises_concerns_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error came out of the `wait` of another thread, whose transaction was durable; of three, one was never called."""
    store, _ = made()
    failures, called = list[object](), list[BaseException | None]()
    monkeypatch.setattr(threading, "excepthook", lambda told: failures.append(told.exc_type))
    monkeypatch.setattr(store._committer, "kick", lambda: None)

    def bad(error: BaseException | None) -> None:
        raise ValueError(error)

    commit = store.submit(Transaction().touch("c", "n"))
    for callback in (bad, bad, called.append):
        commit.add_done_callback(callback)
    commit.wait()
    assert failures == [ValueError, ValueError]
    assert called == [None]


def test_who_waits_by_callback_on_a_failed_store_is_told_when_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint failed, not the log; nobody flushed that any more, so that a task that awaited its commit hung for ever."""
    device = Faulty(2 * MIB, 1)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x" * 5000))
    monkeypatch.setattr(store._committer, "kick", lambda: None)
    commit, told = store.submit(Transaction().touch("c", "n")), list[BaseException | None]()
    commit.add_done_callback(told.append)
    device.inject(Fault("write", device.calls("write"), Effect.EIO))
    with pytest.raises(DeviceFailed):
        store.checkpoint()
    store.close()
    assert told == [None]
    assert Store.open(MemoryDevice.from_bytes(device.image()), background=False).exists("c", "n")


def test_who_asks_a_closed_store_that_failed_is_told_at_once() -> None:
    device = Faulty(2 * MIB, 1)
    store = Store.create(device, background=False)
    commit, told = store.submit(Transaction().create_collection("c")), list[BaseException | None]()
    device.inject(Fault("flush", device.calls("flush"), Effect.EIO))
    with pytest.raises(DeviceFailed):
        store.checkpoint()
    store.close()
    commit.add_done_callback(told.append)
    assert isinstance(told[0], DeviceFailed)


def _set(event: threading.Event, error: BaseException | None) -> None:
    event.set()


CLOSING = (*(f"store/{module}.py" for module in ("closing", "store", "checkpoint", "commit", "uninterrupted")), "/threading.py")


@pytest.mark.parametrize("wipe", ["off", "zero"])
def test_an_interrupted_close_is_finished_by_the_next(wipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each place: nothing is lost, and nothing stays open."""
    monkeypatch.setattr(journal_interrupts, "FILES", CLOSING)
    at, where = 0, "the first"
    while where:
        device = Memory(1 * MIB)
        store = Store.create(device, background=True, wipe=wipe)
        store.map("c", "m", sync=False)[b"k"] = b"v"
        called = threading.Event()
        store.submit(Transaction().touch("c", "o")).add_done_callback(partial(_set, called))
        assert called.wait(HANG_S)
        interruption = journal_interrupts.Interruption(at)
        with suppress(KeyboardInterrupt), interruption.traced():
            store.close()
        where, at = interruption.where, at + 1
        store.close()
        with pytest.raises(StoreClosed):
            store.exists("c", "o")
        with pytest.raises(StoreClosed):
            device.read(0, 1)
        assert store._committer._thread is not None
        assert not store._committer._thread.is_alive(), where
        again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
        assert again.map("c", "m")[b"k"] == b"v", where
        assert again.exists("c", "o"), where
    assert at > 30, "places were passed"
