"""Group commit: every schedule of a few waiters, with timeouts, interrupts and failures; and the real thing in threads."""

from __future__ import annotations

import threading
from _thread import LockType
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from journal import Journal, JournalFailed, MemoryMedium
from journal.commit import Parked, Turns

Step = tuple[str, int]  # what happens, to which waiter


class Interrupt:
    """A wake that is interrupted while it is waited for."""

    def acquire(self, timeout: float) -> bool:
        raise KeyboardInterrupt


@dataclass
class Waiter:
    """A thread in `Journal.wait`, as far as it has come."""

    position: int
    state: str = "new"  # then running, leads, writes, parked; done, failed, timed out or interrupted at the end
    parked: Parked | None = None
    covers: int = 0  # what its flush makes durable


@dataclass
class Schedule:
    """What `Journal.wait` does with a `Turns`, one step at a time, in an order that the test decides. Single-threaded."""

    count: int
    trouble: int  # how many timeouts, interrupts and failures there may be
    lock: LockType = field(default_factory=threading.Lock)
    safe: int = 0
    failed: bool = False
    troubles: int = 0

    def __post_init__(self) -> None:
        self.turns = Turns(self.lock)
        self.waiters = [Waiter(index + 1) for index in range(self.count)]

    def steps(self) -> Iterator[Step]:
        """Everything that can happen next."""
        trouble = self.troubles < self.trouble
        for index, waiter in enumerate(self.waiters):
            if waiter.state in ("new", "running", "leads", "writes"):
                yield "go on", index
                if waiter.state == "writes" and trouble:
                    yield "fail", index
            elif waiter.parked is not None:
                if not waiter.parked.wake.locked():
                    yield "go on", index
                if trouble:
                    yield "interrupt", index
                    if waiter.parked.wake.locked():
                        yield "time out", index

    def do(self, step: Step) -> None:
        what, index = step
        waiter = self.waiters[index]
        self.troubles += what != "go on"
        if waiter.parked is not None:
            self._wake(waiter, waiter.parked, what)
        elif waiter.state == "leads":
            waiter.covers = max(each.position for each in self.waiters if each.state != "new")
            waiter.state = "writes"
        elif waiter.state == "writes":
            self._end(waiter, what)
        else:
            self._wait(waiter)
        self.check()

    def _wait(self, waiter: Waiter) -> None:
        """One round of the loop in `Journal.wait`."""
        with self.lock:
            if self.safe >= waiter.position:
                waiter.state = "done"
            elif self.failed:
                waiter.state = "failed"
            else:
                me = Parked(waiter.position)
                leads = self.turns.take(me)
                waiter.parked = None if leads else me
                waiter.state = "leads" if leads else "parked"

    def _wake(self, waiter: Waiter, parked: Parked, what: str) -> None:
        wake = parked.wake
        if what == "interrupt":
            parked.wake = Interrupt()  # type: ignore[assignment]
        waiter.parked = None
        try:
            try:
                leads = self.turns.sleep(parked, 0.0 if what == "time out" else 5.0)
            finally:
                parked.wake = wake
            waiter.state = "leads" if leads else "running"
        except (TimeoutError, KeyboardInterrupt) as error:
            waiter.state = "timed out" if isinstance(error, TimeoutError) else "interrupted"
            self.turns.abandon(parked, self.safe, OSError(5) if self.failed else None)

    def _end(self, waiter: Waiter, what: str) -> None:
        error = OSError(5, "the medium") if what == "fail" else None
        with self.lock:
            if error is None and not self.failed:
                self.safe = waiter.covers
            self.failed |= error is not None
            self.turns.give(self.safe, error or (OSError(5) if self.failed else None))
        waiter.state = "running"

    def check(self) -> None:
        turns = self.turns
        leaders = [each for each in self.waiters if each.state in ("leads", "writes")]
        promised = [each for each in self.waiters if each.parked is not None and each.parked.leader]
        assert len(leaders) + len(promised) == turns.busy, "T1"
        for waiter in self.waiters:
            parked = waiter.parked
            if parked is not None and parked.wake.locked():
                assert (parked in turns._parked) + (parked.wake in turns._covered) == 1, "T2"
        assert turns.busy or not turns._parked, "T3"
        if any(each.parked is not None and each.parked.wake in turns._covered for each in self.waiters):
            assert any(each.parked is not None and not each.parked.wake.locked() for each in self.waiters), "T4"

    def key(self) -> tuple[Any, ...]:
        """Two schedules with the same key have the same future."""

        def of(waiter: Waiter) -> tuple[Any, ...]:
            parked = waiter.parked
            return waiter.state, waiter.covers, parked and (parked.leader, parked.wake.locked())

        order = {id(each.parked.wake): each.position for each in self.waiters if each.parked is not None}
        return (
            *map(of, self.waiters), self.safe, self.failed, self.troubles, self.turns.busy,
            tuple(parked.position for parked in self.turns._parked),
            tuple(order.get(id(wake), 0) for wake in self.turns._covered),
        )  # fmt: skip


def explore(count: int, trouble: int) -> tuple[int, set[str]]:
    """Every schedule, states met before not entered again; returns how many states there are, and how waits ended."""
    seen: set[tuple[Any, ...]] = set()
    ends: set[str] = set()
    paths: list[tuple[Step, ...]] = [()]
    while paths:
        path = paths.pop()
        schedule = Schedule(count, trouble)
        for step in path:
            schedule.do(step)
        key = schedule.key()
        if key in seen:
            continue
        seen.add(key)
        following = list(schedule.steps())
        if not any(step[0] == "go on" for step in following):
            states = [waiter.state for waiter in schedule.waiters]
            assert not set(states) & {"new", "running", "leads", "writes", "parked"}, f"hangs after {path}: {states}"
            assert not schedule.turns.busy
            ends.update(states)
        paths += [(*path, step) for step in following]
    return len(seen), ends


@pytest.mark.parametrize(
    ("count", "trouble", "states"),
    [(2, 2, 96), (3, 2, 1361), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 2, 16539), (5, 0, 18891)))],
)
def test_no_schedule_loses_a_wake_or_the_turn(count: int, trouble: int, states: int) -> None:
    found, ends = explore(count, trouble)
    assert found == states
    assert ends == ({"done", "failed", "timed out", "interrupted"} if trouble else {"done"})


def test_the_exploration_finds_a_broken_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "_wake_next", lambda self: None)
    with pytest.raises(AssertionError, match=r"T4|hangs"):
        explore(3, 0)


def test_the_exploration_finds_a_turn_taken_away_by_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "abandon", lambda self, me, safe, error: None)
    with pytest.raises(AssertionError, match=r"T1|T4|hangs"):
        explore(3, 1)


def test_those_covered_wake_one_after_the_other_behind_the_next_leader() -> None:
    lock = threading.Lock()
    turns = Turns(lock)
    with lock:
        assert turns.take(Parked(1))
        first, second, leader, third = line = [Parked(position) for position in (2, 3, 9, 4)]
        assert not any(turns.take(parked) for parked in line)
        turns.give(4, None)

    def awake() -> list[int]:
        return [parked.position for parked in (first, second, leader, third) if not parked.wake.locked()]

    assert awake() == [9]
    assert turns.sleep(leader, None)
    assert awake() == [2], "the leader's wake is taken, and it woke the first of the others"
    assert not turns.sleep(first, None)
    assert awake() == [3]
    assert not turns.sleep(second, None)
    assert awake() == [4]
    assert not turns.sleep(third, None)
    assert turns.busy


class Gated(MemoryMedium):
    """A flush says that it began, and waits to be let through."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.gated = False

    def flush(self) -> None:
        if self.gated:
            self.began.release()
            self.gate.acquire()


def test_sixteen_appenders_share_flushes() -> None:
    medium = Gated()
    journal = Journal.create(medium)
    journal.write_head()
    medium.gated = True
    writes = journal.counters.writes

    def appender() -> None:
        for _ in range(10):
            journal.wait(journal.append(b"event"))

    threads = [threading.Thread(target=appender) for _ in range(16)]
    for thread in threads:
        thread.start()
    ended = False
    while not ended:  # a flush ends only when everybody else waits for it, or is done
        if medium.began.acquire(timeout=0.01):
            while len(journal._writer.turns._parked) + 1 < sum(thread.is_alive() for thread in threads):
                threading.Event().wait(0.0005)
            medium.gate.release()
        ended = not any(thread.is_alive() for thread in threads)
    assert journal.counters.appends == 160
    assert journal.safe == journal.write
    assert journal.counters.writes - writes <= 2 * 10 + 2, "two groups that take turns"
    journal.assert_state()


def test_a_commit_beside_which_something_failed_acknowledges_nothing() -> None:
    """Of two flushes that overlap the medium tells one of what was lost. The other advanced `safe` although all was refused."""

    class Overlapped(MemoryMedium):
        overlap: threading.Thread | None = None

        def flush(self) -> None:
            if threading.current_thread() is self.overlap:
                raise OSError(5, "the medium")
            if self.overlap is not None:
                self.overlap.start()
                self.overlap.join()

    def head() -> None:
        with pytest.raises(JournalFailed, match="head"):
            journal.write_head()

    medium = Overlapped()
    journal = Journal.create(medium)
    journal.write_head()
    safe, end, told = journal.safe, journal.append(b"event"), list[BaseException | None]()
    journal.add_waiter(end, told.append)
    medium.overlap = threading.Thread(target=head)
    with pytest.raises(JournalFailed, match="head"):
        journal.wait(end)
    assert journal.safe == safe
    assert len(told) == 1
    assert isinstance(told[0], JournalFailed)
    journal.assert_state()
