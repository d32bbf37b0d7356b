"""Programs that run over one object store in an order that a test decides: one order, or every order there is.

A program is run in a thread that stops before each operation on its medium. `explore` tries every interleaving of several
programs. Two interleavings that lead to the same state have the same future, so only one of them is gone on with: what is
left out is left out soundly (steps that commute lead to one state, whichever comes first), and nothing else is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from journal.errors import JournalError
from journal.simulation import CrashObjects, Hook, ObjectsView, Operation, split_at_flush

STEP_TIMEOUT_S = 20


class Abandoned(Exception):
    """The test has no more use for the program."""


class Stepped:
    """Runs `program` in a thread that stops before each operation until told to go on: no schedule is left to chance.

    `program` is called with the hook to give to its medium. `error` is the `JournalError` it ended with, if any.
    """

    def __init__(self, program: Callable[[Hook], None]) -> None:
        self.error: BaseException | None = None
        self.done = False
        self.steps = 0
        self.next: Operation | None = None  # what it stopped before
        self._program = program
        self._abandoned = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._stopped.acquire(timeout=STEP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._program(self._hook)
        except (JournalError, Abandoned) as error:
            self.error = error
        finally:
            self.done = True
            self._stopped.release()

    def _hook(self, operation: Operation) -> None:
        if self._abandoned:
            raise Abandoned
        self.next = operation
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned
        self.steps += 1

    def step(self) -> None:
        """Do the operation it stopped before, and stop before the next."""
        if not self.done:
            self._go.release()
            assert self._stopped.acquire(timeout=STEP_TIMEOUT_S)

    def finish(self) -> None:
        while not self.done:
            self.step()
        self._thread.join(STEP_TIMEOUT_S)

    def abandon(self) -> None:
        """End it here: what it does next, and everything after that, fails."""
        self._abandoned = True
        self.finish()


class Race(Protocol):
    """Programs over one store, made anew for each interleaving; deterministic but for the order of their steps."""

    store: CrashObjects
    runners: list[Stepped]
    views: list[ObjectsView]  # of each

    def stepped(self, index: int) -> None:
        """Look at the state after a step of that program."""

    def reached(self) -> None:
        """Look at a state that was not met before."""

    def ended(self) -> None:
        """Look at a state, not met before, after the last step of all."""

    def close(self) -> None:
        """Abandon every program that has not ended."""


@dataclass(slots=True)
class Explored:
    """What an exploration has gone through."""

    states: int = 0
    steps: int = 0  # from one state to another, each once
    ends: int = 0  # states in which every program has ended


def explore(make: Callable[[], Race]) -> Explored:
    """Every interleaving of the programs of a race, up to states met before. Cost: a run of all programs for each state."""
    found = Explored()
    met: set[tuple[Any, ...]] = set()
    prefixes: list[list[int]] = [[]]
    while prefixes:
        path = prefixes.pop()
        race = make()
        for index in path:
            race.runners[index].step()
            race.stepped(index)
        while (state := _state(race)) not in met:
            met.add(state)
            race.reached()
            choices = [index for index, runner in enumerate(race.runners) if not runner.done]
            found.steps += len(choices)
            if not choices:
                found.ends += 1
                race.ended()
                break
            prefixes += [[*path, index] for index in choices[1:]]
            path = [*path, choices[0]]
            race.runners[choices[0]].step()
            race.stepped(choices[0])
        race.close()
    found.states = len(met)
    return found


def _state(race: Race) -> tuple[Any, ...]:
    """All that the future depends on: the store, what of it a crash may take back, and of each program what it has seen,
    which decides what it does next."""
    store = race.store
    programs = tuple(
        (runner.steps, runner.done, view.seen, frozenset(view.touched))
        for runner, view in zip(race.runners, race.views, strict=True)
    )
    return store_state(store), frozenset(store.floors.items()), programs


def store_state(store: CrashObjects) -> tuple[Any, ...]:
    """What the objects hold, and what was done to each since the last flush: the same state, the same crash images."""
    objects = frozenset((name, bytes(data)) for name, data in store.objects.items())
    pending: dict[str, list[Operation]] = {}
    for operation in split_at_flush(store.operations)[1]:
        pending.setdefault(operation.name, []).append(operation)
    return objects, frozenset((name, tuple(done)) for name, done in pending.items())
