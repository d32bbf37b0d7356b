"""A ring whose heads are both lost: an owner who knows where its log begins finds the rest by a search."""

from __future__ import annotations

from random import Random

import pytest

from journal import HeadLost, Journal, JournalCorrupt, Layout, NoJournal, RingMedium, StripedMedium
from journal.simulation import CrashObjects, CrashRegion, ObjectsView

BLOCK, LOG = 256, 0x5EED


def ring(region: CrashRegion) -> RingMedium:
    return RingMedium(region, block_size=BLOCK)


def life(region: CrashRegion, random: Random, start: int | None, entries: int) -> Journal:
    """One process: appends, trims as a store does, is killed with a tail that was never flushed."""
    journal = Journal.open(ring(region), start=start, log=LOG) if start is not None else Journal.create(ring(region), log=LOG)
    for number in range(entries):
        journal.wait(journal.append(b"%d-%d" % (journal.generation, number) * random.randrange(1, 9)))
        if journal.write - journal.expire > 1000:
            journal.set_expire(journal.safe)
            journal.trim(recorded=True)
    return journal


def lose_heads(region: CrashRegion, filling: bytes = b"\xaa") -> None:
    region.content[: 2 * BLOCK] = filling * (2 * BLOCK)


@pytest.mark.parametrize("filling", [b"\0", b"\xaa"])
@pytest.mark.parametrize("seed", range(12))
def test_the_log_is_the_same_without_its_heads(seed: int, filling: bytes) -> None:
    random, region = Random(seed), CrashRegion(BLOCK * 10)
    journal = life(region, random, None, random.randrange(30))
    for _ in range(random.randrange(3)):  # the heads say where a generation began, and the entries of several may be needed
        journal = life(region, random, journal.expire, random.randrange(12))
    start = journal.expire
    known = Journal.open(ring(region), start=start, log=LOG)
    lose_heads(region, filling)
    found = Journal.open(ring(region), start=start, log=LOG)
    assert found.head_was_lost
    assert not known.head_was_lost
    assert list(found.entries()) == list(known.entries())
    assert (found.write, found.tail.kind) == (known.write, known.tail.kind)
    assert found.generation <= known.generation, "one of which nothing is left need not be known"
    assert found.next_sequence >= journal.next_sequence, "no number is used twice"
    found.wait(found.append(b"after"))
    again = Journal.open(ring(region), start=start, log=LOG)
    assert not again.head_was_lost, "the first append wrote both"
    assert [entry.payload for entry in again.entries()] == [entry.payload for entry in known.entries()] + [b"after"]


def test_without_a_start_or_an_identity_nothing_vouches_for_the_log() -> None:
    region = CrashRegion(BLOCK * 10)
    start = life(region, Random(1), None, 5).expire
    lose_heads(region)
    for known in ({}, {"start": start}, {"log": LOG}):
        with pytest.raises(HeadLost):
            Journal.open(ring(region), **known)
    lose_heads(region, b"\0")
    with pytest.raises(NoJournal):
        Journal.open(ring(region), start=start)


def test_a_damaged_entry_is_still_told_from_a_torn_one() -> None:
    region = CrashRegion(BLOCK * 10)
    journal = life(region, Random(1), None, 6)
    first, *_, last = journal.entries()
    lose_heads(region)
    right = ring(region).read(first.position + 8, 1)
    ring(region).write(first.position + 8, [b"\xff"])
    with pytest.raises(JournalCorrupt):
        Journal.open(ring(region), start=journal.expire, log=LOG)
    ring(region).write(first.position + 8, [right])
    ring(region).write(last.position + 8, [b"\xff"])
    opened = Journal.open(ring(region), start=journal.expire, log=LOG)
    assert opened.write == last.position, "nobody knew the last one durable"


def test_a_start_that_the_ring_has_come_round_to_again_is_refused() -> None:
    """An old superblock and no head: the log looked empty, and all that was acknowledged since would have been gone."""
    region = CrashRegion(BLOCK * 10)
    journal = life(region, Random(2), None, 3)
    start = journal.expire
    life(region, Random(3), start, 60)
    lose_heads(region)
    with pytest.raises(JournalCorrupt):
        Journal.open(ring(region), start=start, log=LOG)


def test_entries_of_another_log_in_the_same_place_do_not_count() -> None:
    region = CrashRegion(BLOCK * 10)
    Journal.create(ring(region), log=LOG + 2).close()
    other = Journal.open(ring(region))
    for _ in range(20):
        other.wait(other.append(b"not ours"))
    created = Journal.create(ring(region), log=LOG)
    created.wait(created.append(b"ours"))
    lose_heads(region)
    found = Journal.open(ring(region), start=created.expire, log=LOG)
    assert [entry.payload for entry in found.entries()] == [b"ours"]


class Unreadable(ObjectsView):
    """Some objects give an error instead of bytes."""

    lost: frozenset[str] = frozenset()

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name in self.lost:
            raise OSError(5, name)
        return super().read(name, offset, length)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_head_that_cannot_be_read_is_as_good_as_a_damaged_one(slot: int) -> None:
    objects = Unreadable(CrashObjects(), 0, None)
    medium = StripedMedium(objects, "log", Layout(stripe_unit=64, object_size=256))
    with Journal.create(medium) as journal:
        journal.append(b"event")
    objects.lost = frozenset({medium.head_name(slot)})
    assert [entry.payload for entry in Journal.open(medium).entries()] == [b"event"]
    objects.lost = frozenset({medium.head_name(0), medium.head_name(1)})
    with pytest.raises(OSError, match=r"log\.head1"):
        Journal.open(medium)
