"""An old writer that is not quite dead: paused at every step, replaced, resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest

from journal import Journal, JournalFenced, Layout, MemoryMedium, Options, StripedMedium
from journal.simulation import CrashObjects, Operation, Stepped

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
    journal = Journal.create(medium(store, 1))
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


def step_counts() -> tuple[int, int]:
    """Steps of the old writer's append, opening included, and of a takeover after it."""
    store = prepared()
    old = start_old(store, [], one_append)
    old.finish()
    takeover = Stepped(lambda hook: taken([], store, hook))
    takeover.finish()
    return old.steps, takeover.steps


def test_every_interleaving_of_the_last_two_steps_of_an_append_with_a_takeover() -> None:
    """The last steps are the write of the entry's last piece, and the flush; they fall everywhere among the takeover's."""
    old_steps, new_steps = step_counts()
    for gaps in combinations_with_replacement(range(new_steps + 1), 2):
        interleave(gaps, old_steps - 2)


@pytest.mark.parametrize("seed", [3])
def test_interleavings_of_a_whole_append_with_a_takeover(seed: int) -> None:
    """All steps of an append, those of its new generation included, at random places among the takeover's."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    old_steps, new_steps = step_counts()
    for _ in range(250):
        moved = rng.randrange(3, old_steps - 3)
        interleave(tuple(sorted(rng.randrange(new_steps + 1) for _ in range(moved))), old_steps - moved)


def taken(replayed: list[bytes], store: CrashObjects, hook: Callable[[Operation], None] | None) -> None:
    journal = Journal.take_over(medium(store, 2, hook))
    replayed.extend(entry.payload for entry in journal.entries())


def interleave(gaps: tuple[int, ...], before: int) -> None:
    """Old step i happens before the takeover's step `gaps[i]`; `before` of its steps are done at the start."""
    store, acknowledged, replayed = prepared(), list[bytes](), list[bytes]()
    old = start_old(store, acknowledged, one_append)
    for _ in range(before):
        old.step()
    takeover = Stepped(lambda hook: taken(replayed, store, hook))
    done = 0
    for gap in gaps:
        while done < gap:
            takeover.step()
            done += 1
        old.step()
    takeover.finish()
    assert takeover.error is None
    old.finish()
    assert is_suffix_superset(replayed, [b"begun", *acknowledged]), (gaps, replayed, acknowledged)
    third = [entry.payload for entry in Journal.take_over(medium(store, 3)).entries()]
    assert third == replayed, gaps


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
