"""Callbacks that end with what is no Exception, wherever one is called: each begins once, none keeps another from being called,
and nobody hangs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import pytest

from journal import Journal, MemoryMedium
from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.scrub import Scrub
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit import test_journal_interrupts as journal_interrupts

HANG_S = 120
EXITS = [SystemExit, KeyboardInterrupt, GeneratorExit]
KINDS = [*EXITS, ValueError]
Kind = type[BaseException]


class Callbacks:
    """Some that raise, and some that do not, and how often each was called."""

    def __init__(self, kind: Kind) -> None:
        self.calls: dict[int, int] = {}
        self._kind = kind

    def make(self, number: int) -> Callable[[BaseException | None], None]:
        """Every other one raises."""

        def callback(_: BaseException | None) -> None:
            self.calls[number] = self.calls.get(number, 0) + 1
            if number % 2 == 0:
                raise self._kind

        return callback


def made() -> Store:
    store = Store.create(MemoryDevice(2 * MIB), background=False)
    store.apply(Transaction().create_collection("c"))
    return store


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    kinds = list[Kind]()
    monkeypatch.setattr(threading, "excepthook", lambda told: kinds.append(told.exc_type))
    return kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_that_raises_keeps_no_other_from_being_called(kind: Kind) -> None:
    """A SystemExit of its own was raised for ever inside the `wait` that had flushed, which never came back; behind two that
    raised an Exception the others were called by the next flush."""
    journal, callbacks = Journal.create(MemoryMedium()), Callbacks(kind)
    end = journal.append(b"event")
    for number in range(6):
        journal.add_waiter(end, callbacks.make(number))
    with pytest.raises(kind):
        journal.wait(end)
    assert sorted(callbacks.calls) == list(range(6))
    assert [callbacks.calls[number] for number in (1, 3, 5)] == [1, 1, 1]
    assert max(callbacks.calls.values()) <= (1 if kind is ValueError else 2)
    end = journal.append(b"event")
    journal.wait(end)
    assert journal.safe == end
    journal.assert_state()


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_of_a_commit_begins_once_whatever_it_raises(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, reported: list[Kind]
) -> None:
    store, callbacks = made(), Callbacks(kind)
    monkeypatch.setattr(store._committer, "kick", lambda: None)  # nobody flushes for those who wait by callback
    commit = store.submit(Transaction().touch("c", "o"))
    for number in range(6):
        commit.add_done_callback(callbacks.make(number))
    if kind is ValueError:
        commit.wait()
    else:
        with pytest.raises(kind):
            commit.wait()
    assert callbacks.calls == dict.fromkeys(range(6), 1)
    assert reported == ([ValueError] * 3 if kind is ValueError else [])
    store.apply(Transaction().touch("c", "after"))
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_thread_that_calls_back_outlives_what_callbacks_raise(kind: Kind, reported: list[Kind]) -> None:
    """Its SystemExit ended the thread, in silence: nobody who waited by callback was ever told again."""
    store, callbacks = made(), Callbacks(kind)
    for round_ in range(3):
        told = threading.Event()
        commit = store.submit(Transaction().touch("c", f"o{round_}"))
        if not commit.durable:
            commit.add_done_callback(callbacks.make(2 * round_))
        commit.add_done_callback(lambda _, told=told: told.set())  # type: ignore[misc]
        assert told.wait(HANG_S)
        thread = store._committer._thread
        assert thread is not None
        assert thread.is_alive()
    store.close()
    assert callbacks.calls == {0: 1, 2: 1, 4: 1}
    assert reported == [kind] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_that_a_checkpoint_put_off_begin_once(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, reported: list[Kind]
) -> None:
    store, callbacks = made(), Callbacks(kind)
    with monkeypatch.context() as patch:
        patch.setattr(store._committer, "kick", lambda: None)
        commit = store.submit(Transaction().touch("c", "o"))
        for number in range(6):
            commit.add_done_callback(callbacks.make(number))
    store.checkpoint()
    store.close()
    assert callbacks.calls == dict.fromkeys(range(6), 1)
    assert reported == [kind] * 3


@pytest.mark.parametrize("kind", EXITS)
def test_what_a_callback_raises_at_once_is_its_callers(kind: Kind) -> None:
    """The transaction is durable already."""
    store, callbacks = made(), Callbacks(kind)
    commit = store.submit(Transaction().touch("c", "o"))
    commit.wait()
    with pytest.raises(kind):
        commit.add_done_callback(callbacks.make(0))
    store.checkpoint()
    store.close()
    assert callbacks.calls == {0: 1}


def play(at: int) -> journal_interrupts.Interruption:
    """A flush for two callbacks with an interrupt at place `at`; each has begun once when the store is closed."""
    store, called, hidden = made(), list[int](), threading.Event()
    store._committer.kick = hidden.set  # type: ignore[method-assign]
    commit = store.submit(Transaction().touch("c", "o"))
    for number in range(2):

        def note(_: BaseException | None, number: int = number) -> None:
            called.append(number)

        commit.add_done_callback(note)
    interruption = journal_interrupts.Interruption(at)
    with suppress(KeyboardInterrupt), interruption.traced():
        commit.wait()
    store.close()
    assert sorted(called) == [0, 1], f"place {at}: {interruption.where}"
    return interruption


def test_an_interrupted_callback_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its last step it was called again; and where it came before the first one it must be."""
    files = (*journal_interrupts.FILES, "store/commit.py", "test_callbacks_that_exit.py")
    monkeypatch.setattr(journal_interrupts, "FILES", files)
    at, where = 0, list[str]()
    while (interruption := play(at)).where:
        where.append(interruption.where)
        at += 1
    assert any("note" in place for place in where), "callbacks were interrupted"


@pytest.mark.parametrize("kind", KINDS)
def test_what_hears_of_progress_may_end_it(kind: Kind) -> None:
    """Deleting a snapshot, and a scrub, end where it raised, and go on when they are asked again."""
    store = made()
    store.apply(Transaction().write("c", "o", 0, bytes(300_000)))
    store.snapshot("s")
    store.apply(Transaction().write("c", "o", 0, bytes(300_000)))
    calls = list[Any]()

    def refuse(told: object) -> NoReturn:
        calls.append(told)
        raise kind

    with pytest.raises(kind):
        store.delete_snapshot("s", progress=refuse)
    assert len(calls) == 1
    if store.snapshots():
        store.delete_snapshot("s")
    assert store.snapshots() == []
    with pytest.raises(kind):
        Scrub(store).run(progress=refuse)
    assert len(calls) == 2
    assert Scrub(store).run().complete
    assert check(store, deep=True) == []
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_fails_keeps_no_callback_from_being_called(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `threading.excepthook` raised ended the thread that calls back: the callbacks behind it, and all that came later, were
    called by nobody, and nobody was told."""
    last = threading.Event()

    def hook(_: object) -> None:
        raise kind("of the hook")

    def fail(_: BaseException | None) -> None:
        raise ValueError("of the callback")

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(sys, "excepthook", hook)
    store = made()
    for number in range(3):
        store.submit(Transaction().touch("c", f"{number}")).add_done_callback(fail)
        store.submit(Transaction().touch("c", f"{number}")).add_done_callback(lambda _: last.set())
        assert last.wait(HANG_S), "the thread that flushes has ended"
        last.clear()
    store.close()
