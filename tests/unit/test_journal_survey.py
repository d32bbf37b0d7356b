"""Surveys of damaged logs, and heads made from nothing but the entries."""

from __future__ import annotations

import pytest

from journal import Journal, Layout, NoJournal, Options, RingMedium, StripedMedium
from journal.simulation import CrashObjects, CrashRegion
from journal.survey import find_runs, install_head, recover_head, survey

LAYOUT = Layout(64, 2, 128)


def striped(store: CrashObjects) -> StripedMedium:
    return StripedMedium(store.view(), "log", LAYOUT)


def sample(*, close: bool = True, allow_split: bool = True) -> tuple[CrashObjects, Journal]:
    store = CrashObjects()
    journal = Journal.create(striped(store), options=Options(allow_split=allow_split))
    for n in range(60):
        journal.wait(journal.append(b"%d" % n * (n % 17)))
    if close:
        journal.close()
    return store, journal


def test_intact_log_is_said_to_be_intact() -> None:
    for close in (True, False):
        store, journal = sample(close=close)
        found = survey(striped(store))
        assert found.intact
        assert (found.start, found.end, found.entries) == (journal.expire, journal.safe, 60)
        assert len(found.runs) == 1
        assert found.tail.startswith("clean")


def test_damage_is_ranged_and_the_rest_is_counted() -> None:
    store, journal = sample()
    entries = list(Journal.open(striped(store), read_only=True).entries())
    medium = striped(store)
    medium.write(entries[10].position + 3, [b"\xff" * 4])
    medium.write(entries[30].position + 60, [b"\xff\xff"])
    medium.write(entries[31].position, [b"\xff"])
    found = survey(striped(store))
    assert not found.intact
    assert [(d.start, d.end) for d in found.damage] == [
        (entries[10].position, entries[11].position),
        (entries[30].position, entries[32].position),
    ]
    assert found.entries == 57
    assert [run.entries for run in found.runs] == [10, 19, 28]
    assert found.end == journal.safe


def test_missing_object_is_named() -> None:
    store, _ = sample(allow_split=False)
    del store.objects["log.0000000a"]
    found = survey(striped(store))
    assert [name for name, _ in found.missing] == ["log.0000000a"]
    assert found.damage


def test_damage_at_the_very_end_of_a_closed_log_is_found() -> None:
    store, journal = sample()
    striped(store).write(journal.safe - 1, [b"\xff"])
    found = survey(striped(store))
    assert [d.end for d in found.damage] == [journal.safe]


def test_torn_tail_is_no_damage() -> None:
    store, journal = sample(close=False)
    striped(store).write(journal.safe, [b"torn" * 5])
    found = survey(striped(store))
    assert found.intact
    assert found.tail.startswith("torn")


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("allow_split", [True, False])
def test_head_of_a_striped_log_is_recovered_from_its_entries(allow_split: bool, trimmed: bool) -> None:
    store, journal = sample(close=False, allow_split=allow_split)
    if trimmed:
        journal.set_expire(list(journal.entries())[40].position)
        journal.trim()
    wanted = [entry.payload for entry in journal.entries()]
    for name in ("log.head0", "log.head1"):
        store.objects.pop(name)
    with pytest.raises(NoJournal):
        Journal.open(striped(store))
    found = survey(striped(store))
    assert not found.intact
    assert found.runs[-1].end == journal.safe
    head = recover_head(striped(store))
    assert head.safe == journal.safe
    install_head(striped(store), head)
    again = Journal.open(striped(store))
    payloads = [entry.payload for entry in again.entries()]
    assert payloads[-len(wanted) :] == wanted
    again.wait(again.append(b"more"))
    assert again.next_sequence == journal.next_sequence + 1
    assert [entry.payload for entry in Journal.open(striped(store)).entries()] == [*payloads, b"more"]


@pytest.mark.parametrize("count", [3, 40, 100])
def test_head_of_a_ring_is_recovered_whatever_the_lap(count: int) -> None:
    region = CrashRegion(256 * 10)
    journal = Journal.create(RingMedium(region, block_size=256))
    for n in range(count):
        journal.wait(journal.append(b"%d" % n * (n % 40)))
        if journal.write - journal.expire > 1000:
            journal.set_expire(journal.safe)
            journal.trim()
    wanted = [entry.payload for entry in journal.entries()]
    region.content[:512] = b"\xaa" * 512
    head = recover_head(RingMedium(region, block_size=256), window=300)
    assert head.safe == journal.safe
    install_head(RingMedium(region, block_size=256), head)
    again = Journal.open(RingMedium(region, block_size=256))
    payloads = [entry.payload for entry in again.entries()]
    assert payloads[len(payloads) - len(wanted) :] == wanted


def test_recovery_after_damage_begins_behind_it() -> None:
    store, _ = sample()
    entries = list(Journal.open(striped(store), read_only=True).entries())
    striped(store).write(entries[20].position, [b"\xff"])
    assert recover_head(striped(store)).expire == entries[0].position
    head = recover_head(striped(store), after_damage=True)
    assert head.expire == entries[21].position
    assert len(list(find_runs(striped(store)))) == 2


def test_nothing_to_recover_is_said_so() -> None:
    for medium in (RingMedium(CrashRegion(4096), block_size=256), striped(CrashObjects())):
        with pytest.raises(NoJournal):
            recover_head(medium)
        assert not survey(medium).intact
