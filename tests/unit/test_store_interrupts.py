"""Ctrl-C at every place of a durable put where the interpreter lets one in: the store goes on, for everybody."""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed
from mdstore.limits import MIB
from mdstore.store import checkpoint, uninterrupted
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit import test_journal_interrupts as journal_interrupts

STORE = tuple(f"store/{module}.py" for module in ("mapview", "store", "commit", "objects"))
HANG_S = 120


@pytest.fixture(autouse=True)
def _store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_interrupts, "FILES", (*journal_interrupts.FILES, *STORE))


class OnFlush:
    """Before a device: runs `on_flush` inside its next flush."""

    on_flush: Any = None

    def flush(self) -> None:
        action, self.on_flush = self.on_flush, None
        if action is not None:
            action()
        super().flush()  # type: ignore[misc]


class Flushed(OnFlush, MemoryDevice):
    """In memory."""


class FlushedFile(OnFlush, FileDevice):
    """On a file."""


def play(at: int, others: int) -> journal_interrupts.Interruption:
    """A put with an interrupt at place `at`, while `others` wait behind another's flush, and what is left afterwards."""
    device = Flushed(1 * MIB)
    store = Store.create(device, background=False)
    view = store.map("c", "m")
    view[b"before"] = b"1"
    view.put(b"unsynced", b"1", sync=False)
    interruption, over, flushing = journal_interrupts.Interruption(at), threading.Event(), threading.Event()
    threads = [threading.Thread(target=view.put, args=(b"other-%d" % number, b"1"), daemon=True) for number in range(others)]

    def stay() -> None:
        flushing.set()
        journal = store.journal._writer.turns
        while len(journal._parked) < others and not over.is_set():
            over.wait(0.0002)

    if others:
        device.on_flush = stay
        for thread in threads:
            thread.start()
        assert flushing.wait(HANG_S)
    with suppress(KeyboardInterrupt), interruption.traced():
        view.put(b"interrupted", b"1")
        view.put(b"acknowledged", b"1")
    acknowledged = not interruption.where
    over.set()
    said = f"place {at}: {interruption.where}"
    for thread in threads:
        thread.join(HANG_S)
        assert not thread.is_alive(), said
    view.put(b"after", b"1")
    wanted = {b"before", b"unsynced", b"after", *(b"other-%d" % number for number in range(others))}
    wanted |= {b"interrupted", b"acknowledged"} if acknowledged else set()
    assert wanted <= set(view), said
    image, held = device.image(), dict(view.items())
    again = Store.open(MemoryDevice.from_bytes(image), background=False)
    assert dict(again.map("c", "m").items()) == held, f"what is seen is not what is logged, {said}"
    assert check(again, deep=True) == [], said
    store.close()
    with Store.open(MemoryDevice.from_bytes(device.image()), background=False) as closed:
        assert closed.recovery.clean, said
        assert dict(closed.map("c", "m").items()) == held, said
    return interruption


@pytest.mark.parametrize("others", [0, 4])
def test_an_interrupt_of_a_durable_put_fails_nothing(others: int) -> None:
    """In 59 of 60 runs the next put raised "flush failed at log position 1041001: ", although none had failed."""
    at = 0
    while play(at, others).where:
        at += 1
    assert at > 60, "places were passed"


def test_an_interrupt_inside_the_flush_of_a_transaction_fails_nothing() -> None:
    device = Flushed(1 * MIB)
    store = Store.create(device, background=False)

    def interrupt() -> None:
        raise KeyboardInterrupt

    device.on_flush = interrupt
    with pytest.raises(KeyboardInterrupt):
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x" * 200_000))
    store.apply(Transaction().touch("c", "after"))
    assert store.read("c", "o") == b"x" * 200_000
    store.close()


def test_an_interrupt_inside_applying_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what of the transaction is in memory: the store is to be opened again, and the reason is named."""
    device = Flushed(1 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"kept"))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._applier, "apply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.apply(Transaction().touch("c", "n"))
    with pytest.raises(DeviceFailed, match="KeyboardInterrupt"):
        store.apply(Transaction().touch("c", "n"))
    store.close()
    with Store.open(MemoryDevice.from_bytes(device.image()), background=False) as again:
        assert again.read("c", "o") == b"kept"
        assert not again.exists("c", "n")


@pytest.mark.parametrize("how", ["checkpoint", "snapshot", "resize", "close"])
def test_an_interrupt_of_a_checkpoint_comes_after_it(tmp_path: Path, how: str) -> None:
    """At each flush of it. The store goes on, and what was closed was closed in order."""
    number = 0
    while True:
        device = FlushedFile.create(tmp_path / f"image-{number}", 1 * MIB)
        assert isinstance(device, FlushedFile)
        store = Store.create(device, background=False)
        store.map("c", "m")[b"k"] = b"v"
        left = [number]

        def count(left: list[int] = left, device: FlushedFile = device) -> None:
            if left[0]:
                left[0] -= 1
                device.on_flush = count
            else:
                signal.raise_signal(signal.SIGINT)

        device.on_flush = count
        interrupted = False
        work = {"snapshot": partial(store.snapshot, "s"), "resize": partial(store.resize, 2 * MIB)}.get(how, getattr(store, how))
        try:
            work()
        except KeyboardInterrupt:
            interrupted = True
        device.on_flush = None
        if how == "resize":
            store.apply(Transaction().write("c", "more", 0, bytes(3 * MIB // 2)))
        if how != "close":
            store.map("c", "m")[b"after"] = b"v"
            store.close()
        with Store.open(FileDevice.open(device.name), background=False) as again:
            assert again.recovery.clean
            assert set(again.map("c", "m")) == ({b"k"} if how == "close" else {b"k", b"after"})
            assert [info.name for info in again.snapshots()] == ([b"s"] if how == "snapshot" else [])
        if not interrupted:
            break
        number += 1
    assert number >= 2, "flushes were interrupted"


def test_a_checkpoint_whose_caller_got_away_holds_back_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second interrupt let its caller go, and with it the lock that keeps another checkpoint from running beside it."""
    flushing, over = threading.Event(), threading.Event()
    threads = list[threading.Thread]()

    def interrupted_twice(work: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=work))
        threads[0].start()
        assert flushing.wait(HANG_S)
        raise KeyboardInterrupt

    def stay() -> None:
        flushing.set()
        assert over.wait(HANG_S)

    device = FlushedFile.create(tmp_path / "image", 1 * MIB)
    assert isinstance(device, FlushedFile)
    store = Store.create(device, background=False)
    store.map("c", "m")[b"k"] = b"v"
    device.on_flush = stay
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "uninterrupted", interrupted_twice)
        with pytest.raises(KeyboardInterrupt):
            store.checkpoint()
    held_back = store.checkpointer._one_at_a_time.locked()
    over.set()
    threads[0].join(HANG_S)
    assert held_back
    store.close()
    with Store.open(FileDevice.open(device.name), background=False) as again:
        assert again.recovery.clean
        assert set(again.map("c", "m")) == {b"k"}


OBJECTS = 80  # more than are kept in memory
EVERYWHERE = tuple(f"store/{path.name}" for path in Path(checkpoint.__file__).parent.glob("*.py"))


def look_at_all(store: Store) -> None:
    for number in range(OBJECTS):
        store.stat("c", f"o{number}")
    store.read("c", "large")
    store.statistics()


def take_and_delete(store: Store) -> None:
    store.snapshot("s")
    store.open_snapshot("s").close()
    store.delete_snapshot("s")


@pytest.mark.parametrize(
    ("work", "stride"),
    [
        (look_at_all, 31), (lambda store: store.submit(Transaction().write("c", "large", 0, bytes(200_000))), 3),
        (Store.checkpoint, 1), (Store.wipe, 1), (lambda store: store.resize(3 * MIB), 1), (take_and_delete, 3),
    ],
    ids=["reads", "large write", "checkpoint", "wipe", "resize", "snapshot"],
)  # fmt: skip
def test_an_interrupt_anywhere_loses_nothing_and_fails_nothing(
    work: Callable[[Store], object], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, where a checkpoint was latched by one. A reader that was interrupted while it made room for an object left
    behind one that the next checkpoint wrote for ever, with the lock held; and a large write leaked its blocks. Only inside
    applying a transaction nobody knows what is in memory: then the store says so."""
    monkeypatch.setattr(journal_interrupts, "FILES", EVERYWHERE)
    at, where = 0, "the first"
    while True:
        device = MemoryDevice(2 * MIB)
        store = Store.create(device, background=False, onodes=64, wipe="zero" if work is Store.wipe else "off")
        made = Transaction().create_collection("c").write("c", "large", 0, b"x" * 100_000)
        for number in range(OBJECTS):
            made.touch("c", f"o{number}")
        store.apply(made)
        for number in range(OBJECTS):
            store.submit(Transaction().setattr("c", f"o{number}", "a", b"%d" % number))
        applying = list[bool]()
        monkeypatch.setattr(store, "guarded", partial(_noted, applying, store.guarded))
        interruption = journal_interrupts.Interruption(at)
        with suppress(KeyboardInterrupt), interruption.traced():
            work(store)
        where, at = interruption.where, at + stride
        if not where:
            break
        if not any(applying):
            store.apply(Transaction().touch("c", "after"))
            store.checkpoint()
            assert check(store, deep=True) == [], where
        store.close()
        again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
        assert check(again, deep=True) == [], where
        for number in range(OBJECTS):
            assert again.getattr("c", f"o{number}", "a") == b"%d" % number, where
    assert at > 3 * stride, "places were passed"


def _noted(applying: list[bool], guarded: Callable[[Any], Any], action: Any) -> Any:
    """Whether it was interrupted."""
    try:
        return guarded(action)
    except KeyboardInterrupt:
        applying.append(True)
        raise


def test_an_interrupted_read_pins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One between the pin and the `try` behind it kept what was freed from being used again until the image was reopened."""
    monkeypatch.setattr(journal_interrupts, "FILES", ("store/queries.py",))
    store = Store.create(MemoryDevice(1 * MIB), background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x" * 100_000))
    at, where = 0, "the first"
    while where:
        interruption = journal_interrupts.Interruption(at)
        with suppress(KeyboardInterrupt), interruption.traced():
            store.read("c", "o")
            with store.pinned():
                pass
        at, where = at + 1, interruption.where
        assert not any(store._pins.values()), where
    assert at > 15, "places were passed"


def opcode_names(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


class AtTheLoop:
    """Raises KeyboardInterrupt in this thread where a loop of a frame that it traces jumps back, once."""

    def __init__(self) -> None:
        self.raised = False
        self._before = (0, "")

    def trace(self, frame: FrameType | None, file: str) -> None:
        """That frame and its callers, as far as they are in `file`."""
        sys.settrace(lambda *_: None)
        while frame is not None and frame.f_code.co_filename.endswith(file):
            frame.f_trace_lines, frame.f_trace_opcodes, frame.f_trace = False, True, self._step
            frame = frame.f_back

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            offset, name = self._before
            self._before = frame.f_lasti, opcode_names(frame.f_code)[frame.f_lasti]
            if "JUMP_BACKWARD" in name and frame.f_lasti < offset:
                self.raised = True
                sys.settrace(None)
                raise KeyboardInterrupt("second")
        return self._step


def test_interrupts_that_come_one_behind_the_other_wait_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second came where the first had just been dealt with, and its caller left beside the work that it guarded."""
    second, over, ended = AtTheLoop(), threading.Event(), list[bool]()

    class Wake:
        """What the caller waits for. There it is interrupted the first time, and at the next place once more."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._calls = 0

        def acquire(self) -> None:
            self._calls += 1
            if self._calls == 2:
                second.trace(sys._getframe().f_back, "store/uninterrupted.py")
                raise KeyboardInterrupt("first")
            if self._calls == 3:
                over.set()
            self._lock.acquire()

        def release(self) -> None:
            self._lock.release()

    def work() -> None:
        assert over.wait(HANG_S)
        ended.append(True)

    prepare = uninterrupted._Job.__init__

    def prepared(job: Any, work: Callable[[], object]) -> None:
        prepare(job, work)
        job.wake = Wake()
        job.wake.acquire()

    monkeypatch.setattr(uninterrupted._Job, "__init__", prepared)
    try:
        with pytest.raises(KeyboardInterrupt):
            uninterrupted.uninterrupted(work)
        ended_before = list(ended)
    finally:
        sys.settrace(None)
        over.set()
    assert second.raised
    assert ended_before == [True]


def test_reads_that_make_room_for_objects_hand_nothing_to_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the store's lock held; beside a busy thread each such read took 10 ms."""
    store = Store.create(MemoryDevice(2 * MIB), background=False, onodes=64)
    made = Transaction().create_collection("c").write("c", "large", 0, b"x" * 1000)
    for number in range(4 * OBJECTS):
        made.touch("c", f"o{number}")
    store.apply(made)
    store.checkpoint()
    evicted, evict = list[object](), store.tables.objects._evict

    def refuse(job: object) -> None:
        raise AssertionError(job)

    monkeypatch.setattr(store.tables.objects, "_evict", lambda: (evicted.append(0), evict()))
    monkeypatch.setattr(uninterrupted._threads, "hand_over", refuse)
    for number in range(4 * OBJECTS):
        store.stat("c", f"o{number}")
    assert len(evicted) > 3
    assert len(store.tables.objects.cached) <= 64


def test_a_large_write_hands_nothing_to_another_thread_with_the_lock_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers waited for two changes of threads, 10 ms beside a busy one, while it took its blocks."""
    store = Store.create(MemoryDevice(2 * MIB), background=False)
    store.apply(Transaction().create_collection("c").touch("c", "o"))
    held, hand_over = list[bool](), uninterrupted._threads.hand_over

    def noted(job: Any) -> None:
        held.append(store.lock._is_owned())  # type: ignore[attr-defined]
        hand_over(job)

    monkeypatch.setattr(uninterrupted._threads, "hand_over", noted)
    store.apply(Transaction().write("c", "o", 0, bytes(200_000)))
    assert held == [False]
    assert check(store, deep=True) == []
