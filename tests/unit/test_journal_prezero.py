"""Zeros ahead of the writer, probing for the end, and what a writer removes before its first append."""

from __future__ import annotations

import random

import pytest

from journal import Journal, Layout, Options, StripedMedium
from journal.simulation import CrashObjects, Operation

LAYOUT = Layout(64, 3, 128)
PERIOD = LAYOUT.period


def medium(store: CrashObjects, hook: object = None, periods: int = 2) -> StripedMedium:
    return StripedMedium(store.view(0, hook), "log", LAYOUT, prezero_periods=periods)  # type: ignore[arg-type]


def litter(store: CrashObjects, low: int, high: int) -> None:
    """What an older log may have left: whole objects of garbage."""
    for number, offset, size in LAYOUT.pieces(low, high - low):
        store.view().write(f"log.{number:08x}", offset, [b"\xee" * size])


@pytest.mark.parametrize("stripe_count", [1, 2, 5])
def test_layout_maps_every_position_to_one_byte_and_back(stripe_count: int) -> None:
    layout = Layout(8, stripe_count, 24)
    seen = set()
    for position in range(4 * layout.period):
        ((number, offset, size),) = layout.pieces(position, 1)
        assert size == 1
        assert layout.position_of(number, offset) == position
        assert (number, offset) not in seen
        seen.add((number, offset))
        for other in range(4 * stripe_count):
            below = sum(1 for n, _ in seen if n == other)
            assert layout.size_below(other, position + 1) == below


def test_impossible_layouts_are_refused() -> None:
    for unit, count, size in ((0, 1, 8), (8, 0, 8), (8, 1, 4), (8, 1, 12)):
        with pytest.raises(ValueError, match=r"layout|multiple"):
            Layout(unit, count, size)


def test_everything_behind_the_valid_end_is_removed_before_the_first_append() -> None:
    store = CrashObjects()
    journal = Journal.create(medium(store))
    journal.append(b"kept" * 30)
    journal.flush()
    litter(store, journal.safe, journal.safe + 7 * PERIOD + 50)
    again = Journal.open(medium(store))
    assert again.safe == journal.safe
    assert medium(store).reach(0) > journal.safe + 6 * PERIOD
    again.wait(again.append(b"next"))
    assert medium(store).reach(0) == medium(store).probe(again.safe) == again.safe
    assert [entry.payload for entry in Journal.open(medium(store)).entries()] == [b"kept" * 30, b"next"]


@pytest.mark.parametrize("seed", [1, 2])
def test_one_empty_period_is_kept_ahead_whatever_turns_up_there(seed: int) -> None:
    """Litter appears ahead of a running writer (another tool, a restored object): before a write comes within a period of
    it, it is durably gone, so probing by sizes finds the true end."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    store = CrashObjects()
    journal = Journal.create(medium(store), options=Options(buffer_bytes=200))
    journal.wait(journal.append(b"begin"))
    ahead = -(-(journal._writer._prezeroed + PERIOD) // PERIOD) * PERIOD
    litter(store, ahead, ahead + 3 * PERIOD)
    wanted = [b"begin"]
    while journal.write < ahead + 5 * PERIOD:
        wanted.append(rng.randbytes(rng.randrange(150)))
        journal.append(wanted[-1])
        if rng.random() < 0.5:
            journal.flush()
            assert medium(store).probe(journal.expire) == journal.safe
            low = journal.safe
            assert not any(medium(store).read(low, -(-low // PERIOD) * PERIOD + PERIOD - low))
    journal.flush()
    assert [entry.payload for entry in Journal.open(medium(store)).entries()] == wanted


def test_zeros_ahead_are_durable_before_the_write_they_are_ahead_of() -> None:
    done: list[Operation] = []
    store = CrashObjects()
    Journal.create(medium(store))
    journal = Journal.open(medium(store, done.append, periods=1))
    for _ in range(40):
        journal.wait(journal.append(b"x" * 100))
    pending = 0
    zeroed = journal.medium.start
    for operation in done:
        if operation.kind in ("remove", "truncate"):
            pending = max(pending, int(operation.name[4:], 16) // 3 + 1)
        elif operation.kind == "flush":
            zeroed = max(zeroed, pending * PERIOD)
        elif operation.kind == "write" and "head" not in operation.name:
            number = int(operation.name[4:], 16)
            last = LAYOUT.position_of(number, operation.offset + len(operation.data) - 1)
            assert last < zeroed - PERIOD or zeroed <= 3 * PERIOD
    assert zeroed > 8 * PERIOD


def test_a_trim_cut_short_by_a_crash_is_finished_by_the_next_writer() -> None:
    store = CrashObjects()
    journal = Journal.create(medium(store))
    for n in range(60):
        journal.append(b"%d" % n * 20)
    journal.flush()
    journal.set_expire(list(journal.entries())[50].position)
    before = {name: bytearray(data) for name, data in store.objects.items()}
    journal.trim()
    gone = set(before) - set(store.objects)
    assert len(gone) > 5
    for name in gone:
        store.objects[name] = before[name]  # the head was durable, the removals were not
    again = Journal.open(medium(store))
    again.wait(again.append(b"more"))
    assert not gone & set(store.objects)
