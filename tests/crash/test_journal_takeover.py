"""An old writer that is not quite dead: paused at every step, replaced, resumed.

Small cases are explored in every order (journal/schedules.py); how many states that are is asserted, so that an exploration that
misses some, or a program that takes other steps, is noticed. Long ones are sampled, from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from journal import Journal, JournalFenced, Layout, MemoryMedium, Options, StripedMedium
from journal.schedules import Stepped, explore, store_state
from journal.simulation import CrashObjects, ObjectsView, Operation

LAYOUT = Layout(64, 2, 128)
Program = Callable[[Journal, list[bytes]], None]


def medium(store: CrashObjects, epoch: int, hook: Callable[[Operation], None] | None = None) -> StripedMedium:
    return StripedMedium(store.view(epoch, hook), "log", LAYOUT, prezero_periods=1)


def old_writer(journal: Journal, acknowledged: list[bytes]) -> None:
    """Append, flush, head, trim, prezero, a large entry: every step a writer has."""
    for n in range(6):
        payload = b"%d" % n * (20 * n + 1)
        end = journal.append(payload)
        if n % 2:
            journal.wait(end)
            acknowledged.append(payload)
        if n == 3:
            journal.write_head()
            acknowledged.clear()  # expired: nobody needs those any more
            journal.set_expire(journal.safe)
            journal.trim()
    payload = b"large" * 150
    journal.wait(journal.append(payload))
    acknowledged.append(payload)
    journal.close()


def prepared() -> CrashObjects:
    """A store with a log that an epoch-1 writer has begun."""
    store = CrashObjects()
    journal = Journal.create(medium(store, 1), log=7)
    journal.append(b"begun")
    journal.flush()
    return store


def start_old(store: CrashObjects, acknowledged: list[bytes], program: Program) -> Stepped:
    def run(hook: Callable[[Operation], None]) -> None:
        program(Journal.open(medium(store, 1, hook)), acknowledged)

    return Stepped(run)


def contents(store: CrashObjects) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in store.objects.items()}


def is_suffix_superset(entries: list[bytes], acknowledged: list[bytes]) -> bool:
    """Every acknowledged payload is there, in order."""
    found = iter(entries)
    return all(payload in found for payload in acknowledged)


def steps_of(program: Program) -> int:
    old = start_old(prepared(), [], program)
    old.finish()
    assert old.error is None
    return old.steps


def test_old_writer_paused_at_every_step_changes_nothing_after_it_was_replaced() -> None:
    total = steps_of(old_writer)
    assert total > 60
    fenced = 0
    for pause in range(total + 1):
        store, acknowledged = prepared(), list[bytes]()
        old = start_old(store, acknowledged, old_writer)
        for _ in range(pause):
            old.step()
        acked_before = list(acknowledged)
        new = Journal.take_over(medium(store, 2))
        replayed = [entry.payload for entry in new.entries()]
        assert is_suffix_superset(replayed, acked_before)
        after_takeover = contents(store)
        old.finish()
        assert contents(store) == after_takeover, f"paused at step {pause}, the old writer changed something"
        assert acknowledged == acked_before, f"paused at step {pause}, the old writer was told of a success"
        assert old.error is None or isinstance(old.error, JournalFenced)
        fenced += old.error is not None
        new.append(b"new")
        new.flush()
        third = Journal.take_over(medium(store, 3))
        assert [entry.payload for entry in third.entries()] == [*replayed, b"new"]
    assert fenced > total * 0.8


def test_old_writer_resumed_amid_the_new_ones_appends() -> None:
    total = steps_of(old_writer)
    for pause in range(0, total, 3):
        store, acknowledged = prepared(), list[bytes]()
        old = start_old(store, acknowledged, old_writer)
        for _ in range(pause):
            old.step()
        acked_before = list(acknowledged)
        new = Journal.take_over(medium(store, 2), options=Options(allow_split=False))
        replayed = [entry.payload for entry in new.entries()]
        for n in range(12):
            payload = b"n" * (n * 17)
            replayed.append(payload)
            new.append(payload)
            if n % 3 == 2:
                new.flush()
            old.step()
        new.flush()
        old.finish()
        assert acknowledged == acked_before
        assert [e.payload for e in Journal.take_over(medium(store, 3)).entries()] == replayed


def one_append(journal: Journal, acknowledged: list[bytes]) -> None:
    journal.wait(journal.append(b"only" * 20))
    acknowledged.append(b"only" * 20)


def append_trim_append(journal: Journal, acknowledged: list[bytes]) -> None:
    """Everything that a writer does: append, flush, head, trim, prezero, a large entry, close."""
    one_append(journal, acknowledged)
    journal.write_head()
    acknowledged.clear()  # expired: nobody needs those any more
    journal.set_expire(journal.safe)
    journal.trim()
    journal.wait(journal.append(b"large" * 40))
    acknowledged.append(b"large" * 40)
    journal.close()


class Takeover:
    """An old writer; a new one that takes over from it, and may append; and after those a last one, which looks.

    The same for all schedules of a scene: `old_steps` the old writer has done before; `asleep`: it goes on only when all
    others have ended; `crashes`: every crash that a state allows is looked at, too, and these are the ones that were.
    """

    def __init__(
        self,
        program: Program,
        crashes: set[Any] | None = None,
        *,
        old_steps: int = 0,
        asleep: bool = False,
        appends: bool = False,
        takeovers: int = 1,
    ) -> None:
        self.store = prepared()
        self.acknowledged: dict[int, list[bytes]] = {1: []}
        self.replayed: dict[int, list[bytes]] = {}
        self.views: list[ObjectsView] = []
        self.runners = [self._run(1, lambda view: program(Journal.open(log_of(view)), self.acknowledged[1]))]
        for _ in range(old_steps):
            self.runners[0].step()
        for epoch in range(2, 2 + takeovers):
            self.runners.append(self._run(epoch, lambda view: self._take_over(view, appends=appends)))
        self._everybody = list(self.runners)
        if asleep:
            del self.runners[0], self.views[0]
        self._crashes = crashes
        self._before = contents(self.store)

    def _run(self, epoch: int, program: Callable[[ObjectsView], None]) -> Stepped:
        view = self.store.view(epoch)
        self.views.append(view)

        def run(hook: Callable[[Operation], None]) -> None:
            view.hook = hook
            program(view)

        return Stepped(run)

    def _take_over(self, view: ObjectsView, *, appends: bool) -> None:
        journal = Journal.take_over(log_of(view))
        self.replayed[view.epoch] = [entry.payload for entry in journal.entries()]
        if appends:
            journal.wait(journal.append(b"new"))
            self.acknowledged[view.epoch] = [b"new"]

    def stepped(self, index: int) -> None:
        """Nothing changed that only a newer writer may change."""
        epoch = self.views[index].epoch
        now = contents(self.store)
        for name in now.keys() | self._before.keys():
            if self.store.floor_of(name) > epoch:
                assert now.get(name) == self._before.get(name), f"the writer of epoch {epoch} changed {name} above its floor"
        self._before = now

    def _acknowledged(self, below: int) -> list[bytes]:
        return [payload for epoch, payloads in self.acknowledged.items() if epoch < below for payload in payloads]

    def reached(self) -> None:
        for epoch, replayed in self.replayed.items():
            assert is_suffix_superset(replayed, self._acknowledged(epoch)), f"epoch {epoch} lacks what was acknowledged"
        if self._crashes is None:
            return
        acknowledged = self._acknowledged(9)
        scene = (store_state(self.store), tuple(acknowledged))
        if scene not in self._crashes:
            self._crashes.add(scene)
            for image in self.store.images(len(self.store.operations), random.Random(0)):
                found = [entry.payload for entry in Journal.take_over(medium(image, 9)).entries()]
                assert is_suffix_superset(found, acknowledged), "a crash takes back what was acknowledged"

    def ended(self) -> None:
        """Who is the newest has got the log; whoever comes after it reads what it read, and what it appended."""
        newest = self.runners[-1]
        assert newest.error is None
        now = contents(self.store)
        self._everybody[0].finish()  # where it was asleep until now
        assert contents(self.store) == now
        assert all(runner.error is None or isinstance(runner.error, JournalFenced) for runner in self._everybody)
        epoch = self.views[-1].epoch
        expected = self.replayed[epoch] + self.acknowledged.get(epoch, [])
        last = Journal.take_over(medium(self.store, 9))
        assert [entry.payload for entry in last.entries()] == expected

    def close(self) -> None:
        for runner in self._everybody:
            runner.abandon()


def log_of(view: ObjectsView) -> StripedMedium:
    return StripedMedium(view, "log", LAYOUT, prezero_periods=1)


def test_every_interleaving_of_an_append_with_a_takeover_and_every_crash_in_it() -> None:
    """Opening, the first steps of a generation, the entry's pieces, the flush: all of the old writer's steps."""
    crashes: set[Any] = set()
    found = explore(lambda: Takeover(one_append, crashes))
    assert (found.states, found.ends) == (1251, 21)
    assert len(crashes) == 66


def test_every_interleaving_of_append_head_trim_prezero_and_close_with_a_takeover() -> None:
    crashes: set[Any] = set()
    found = explore(lambda: Takeover(append_trim_append, crashes))
    assert (found.states, found.ends) == (2596, 38)
    assert len(crashes) == 161


def test_every_interleaving_of_an_append_with_a_takeover_that_appends() -> None:
    crashes: set[Any] = set()
    found = explore(lambda: Takeover(one_append, crashes, appends=True))
    assert (found.states, found.ends) == (2361, 58)
    assert len(crashes) == 101


@pytest.mark.parametrize(("old_steps", "states", "ends"), [(11, 1052, 22), (20, 1655, 29), (22, 1463, 23)])
def test_every_interleaving_of_two_takeovers_from_a_writer_asleep(old_steps: int, states: int, ends: int) -> None:
    """Two both think that it is their turn. The old writer stopped between its first head's copies, after the first of
    its entry's three pieces, or before its flush, and wakes up when both are done."""
    found = explore(lambda: Takeover(one_append, old_steps=old_steps, asleep=True, takeovers=2))
    assert (found.states, found.ends) == (states, ends)


def test_canary_the_exploration_notices_a_store_that_ignores_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectsView, "_check", lambda self, name: None)
    with pytest.raises(AssertionError, match="above its floor"):
        explore(lambda: Takeover(one_append))


@pytest.mark.parametrize("seed", [3])
def test_interleavings_of_a_long_program_with_two_takeovers_at_random(seed: int) -> None:
    """Too long to try every order: at each point any one of the three goes on."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(120):
        race = Takeover(old_writer, old_steps=rng.randrange(100), takeovers=2, appends=True)
        while choices := [index for index, runner in enumerate(race.runners) if not runner.done]:
            index = rng.choice(choices)
            race.runners[index].step()
            race.stepped(index)
            race.reached()
        race.ended()


@pytest.mark.parametrize("seed", [11])
def test_crash_during_takeover_and_after_loses_nothing_acknowledged(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    total = steps_of(old_writer)
    for pause in range(0, total, 7):
        store, acknowledged = prepared(), list[bytes]()
        old = start_old(store, acknowledged, old_writer)
        for _ in range(pause):
            old.step()
        acked = list(acknowledged)
        first = len(store.operations)
        new = Journal.take_over(medium(store, 2))
        new.wait(new.append(b"new"))
        old.finish()
        last = len(store.operations)
        for count in range(first, last + 1):
            for image in list(store.images(count, rng))[:: 1 + rng.randrange(4)]:
                found = [entry.payload for entry in Journal.take_over(medium(image, 3)).entries()]
                assert is_suffix_superset(found, acked + ([b"new"] if count == last else []))


def test_a_writer_older_than_the_floor_cannot_take_over() -> None:
    store = prepared()
    Journal.take_over(medium(store, 5))
    with pytest.raises(JournalFenced) as caught:
        Journal.take_over(medium(store, 4))
    assert (caught.value.epoch, caught.value.floor) == (4, 5)
    with pytest.raises(TypeError):
        Journal.take_over(MemoryMedium())


def test_fenced_writer_is_latched_with_the_same_error() -> None:
    store = prepared()
    old = Journal.open(medium(store, 1))
    Journal.take_over(medium(store, 2))
    end = old.append(b"late")
    with pytest.raises(JournalFenced) as first:
        old.wait(end)
    with pytest.raises(JournalFenced) as second:
        old.append(b"later")
    assert first.value is second.value


def test_canary_without_floors_the_old_writer_does_harm() -> None:
    """The same scene with a store that ignores floors: the checks above would notice."""
    store = prepared()
    old = start_old(store, [], one_append)
    for _ in range(old_steps_before_write(store)):
        old.step()
    Journal.take_over(medium(store, 2))
    store.floors.clear()
    before = contents(store)
    old.finish()
    assert contents(store) != before


def old_steps_before_write(store: CrashObjects) -> int:
    probe = prepared()
    old = start_old(probe, [], one_append)
    old.finish()
    return old.steps - 3
