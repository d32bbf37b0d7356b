"""Crash at every operation, in every shape, then write on, crash again, and read: nothing acknowledged is lost, nothing
dropped comes back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from journal import Journal, JournalFull, Layout, Medium, NoJournal, Options, RingMedium, StripedMedium
from journal.commit import Parked
from journal.simulation import CrashObjects, CrashRegion

BLOCK = 256


@dataclass
class Ring:
    """A crashable ring."""

    region: CrashRegion = field(default_factory=lambda: CrashRegion(BLOCK * 14))

    def medium(self) -> Medium:
        return RingMedium(self.region, block_size=BLOCK)

    def count(self) -> int:
        return len(self.region.operations)

    def content(self) -> object:
        return bytes(self.region.content)

    def images(self, count: int, rng: random.Random) -> list[Ring]:
        return [Ring(region) for region in self.region.images(count, rng)]


@dataclass
class Stripes:
    """A crashable object store with one log in it."""

    store: CrashObjects = field(default_factory=CrashObjects)
    stripe_count: int = 3

    def medium(self) -> Medium:
        return StripedMedium(self.store.view(), "log", Layout(64, self.stripe_count, 128), prezero_periods=1)

    def count(self) -> int:
        return len(self.store.operations)

    def content(self) -> object:
        return tuple(sorted((name, bytes(data)) for name, data in self.store.objects.items()))

    def images(self, count: int, rng: random.Random) -> list[Stripes]:
        return [Stripes(store, self.stripe_count) for store in self.store.images(count, rng)]


Place = Ring | Stripes
PLACES: list[Callable[[], Place]] = [Ring, Stripes, lambda: Stripes(stripe_count=1)]
IDS = ["ring", "stripes", "one-stripe"]


@dataclass
class History:
    """What was appended, and what was known to be durable and expired after which operation."""

    appended: dict[int, bytes] = field(default_factory=dict)  # end position -> payload
    safe_at: list[tuple[int, int]] = field(default_factory=list)  # (operations done, safe)
    expire_at: list[tuple[int, int]] = field(default_factory=list)

    def note(self, place: Place, journal: Journal) -> None:
        self.safe_at.append((place.count(), journal.safe))

    def safe_after(self, count: int) -> int:
        return max((safe for at, safe in self.safe_at if at <= count), default=0)


def workload(place: Place, rng: random.Random, steps: int) -> History:
    journal = Journal.create(place.medium(), options=Options(allow_split=rng.random() < 0.5, buffer_bytes=600))
    history = History()
    history.note(place, journal)
    for _ in range(steps):
        payload = rng.randbytes(rng.choice([0, 3, 20, 90, 200, 300]))
        try:
            history.appended[journal.append(payload)] = payload
        except JournalFull:
            journal.flush()
            history.note(place, journal)
            journal.set_expire(journal.safe)
            journal.trim()
        if rng.random() < 0.4:
            journal.flush()
            history.note(place, journal)
        if rng.random() < 0.1:
            ends = [end for end in history.appended if journal.expire <= end <= journal.safe]
            if ends:
                journal.set_expire(rng.choice(ends))
                journal.trim()
    return history


def check(journal: Journal, history: History, count: int) -> None:
    """Entries are exactly those appended, in order and without a gap, from the expire position to beyond `safe`."""
    entries = list(journal.entries())
    assert journal.safe >= history.safe_after(count), "something acknowledged is lost"
    position = journal.expire
    for entry in entries:
        assert history.appended[entry.end] == entry.payload
    wanted = [end for end in sorted(history.appended) if position < end <= journal.safe]
    assert [entry.end for entry in entries] == wanted


def write_on(place: Place, rng: random.Random) -> History | None:
    """Recover, append shorter entries, flush; the history of that alone, on top of what recovery found."""
    journal = Journal.open(place.medium())
    history = History({entry.end: entry.payload for entry in journal.entries()})
    history.note(place, journal)
    for n in range(3):
        payload = b"%d" % n
        try:
            history.appended[journal.append(payload)] = payload
        except JournalFull:
            return None
        if rng.random() < 0.7:
            journal.flush()
            history.note(place, journal)
    return history


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", PLACES, ids=IDS)
def test_crash_write_on_crash_again(make: Callable[[], Place], seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    place = make()
    history = workload(place, rng, 60 if isinstance(place, Ring) else 20)
    created = next(count for count, _ in history.safe_at)
    states, distinct = 0, set[object]()
    for count in range(place.count() + 1):
        for image in place.images(count, rng):
            states += 1
            distinct.add(image.content())
            if count < created:
                with_nothing_acknowledged(image)
                continue
            check(Journal.open(image.medium()), history, count)
            if rng.random() < 0.05:
                second_crash(image, rng)
    print(f"seed {seed}, {states} states, {len(distinct)} distinct")
    assert states > 150
    assert len(distinct) > 50


def with_nothing_acknowledged(image: Place) -> None:
    """Creation was cut short: no head, or an empty log."""
    try:
        journal = Journal.open(image.medium())
    except NoJournal:
        return
    assert list(journal.entries()) == []


def second_crash(place: Place, rng: random.Random) -> None:
    history = write_on(place, rng)
    if history is None:
        return
    for count in range(place.count() + 1):
        for image in place.images(count, rng)[:: max(1, rng.randrange(6))]:
            check(Journal.open(image.medium()), history, count)


def test_later_stripes_landed_earlier_ones_not_and_shorter_entries_follow() -> None:
    """A striped flush was cut: the objects of later stripes hold whole entries, an earlier one is missing. The next writer's
    shorter entries end exactly where one of the old entries begins; it must not come back after the next crash."""
    place = Stripes()
    journal = Journal.create(place.medium())
    journal.append(b"kept")
    journal.flush()
    start = journal.write
    ends = [journal.append(b"x" * 40) for _ in range(8)]
    assert journal._writer.turns.take(Parked(ends[-1]))
    journal._writer.write_buffers()
    pending = [op for op in place.store.operations[-8:] if op.kind == "write"]
    lost = place.medium().layout.pieces(start, 92)  # type: ignore[attr-defined]
    number, offset, size = next(iter(lost))
    name = f"log.{number:08x}"
    place.store.objects[name][offset : offset + size] = bytes(size)
    assert pending
    again = Journal.open(place.medium())
    assert [entry.payload for entry in again.entries()] == [b"kept"]
    assert again.tail.kind == "torn"
    again.append(b"y" * (ends[0] - start - 52))  # ends where the old second entry begins
    again.flush()
    third = Journal.open(place.medium())
    assert [entry.payload for entry in third.entries()] == [b"kept", b"y" * 40]


def test_every_subset_of_the_objects_of_a_flush_then_shorter_entries_and_every_subset_again() -> None:
    """One flush over nine pieces: all 512 outcomes; after each a writer with shorter entries, and all outcomes of that."""
    rng = random.Random(0)
    place = Stripes()
    journal = Journal.create(place.medium())
    journal.append(b"kept")
    journal.flush()
    history = History({journal.safe: b"kept"})
    history.note(place, journal)
    for size in (40, 5, 90, 12, 30, 60, 3):
        history.appended[journal.append(bytes([size]) * size)] = bytes([size]) * size
    journal.flush()
    last = place.count() - 1  # the flush itself did not happen
    pieces = sum(operation.kind == "write" for operation in place.store.operations[-10:-1])
    assert pieces >= 8
    outcomes = set()
    for store in place.store.images(last, rng, every_up_to=12):
        image = Stripes(store)
        check(Journal.open(image.medium()), history, last)
        outcomes.add(Journal.open(image.medium()).safe)
        if rng.random() < 0.05:
            second_crash(image, rng)
    assert len(outcomes) >= 5


def test_canary_a_medium_that_forgets_flushed_writes_is_caught() -> None:
    """The checks above can fail: damage the last acknowledged entry and they do."""
    place = Ring()
    journal = Journal.create(place.medium())
    history = History()
    for n in range(5):
        history.appended[journal.append(b"%d" % n)] = b"%d" % n
    journal.flush()
    history.note(place, journal)
    check(Journal.open(place.medium()), history, place.count())
    place.medium().write(journal.safe - 1, [b"\xaa"])
    with pytest.raises(AssertionError, match="acknowledged is lost"):
        check(Journal.open(place.medium()), history, place.count())
