"""Large entries, envelopes across every boundary, pads, and objects that are read alone."""

from __future__ import annotations

import random

import pytest

from journal import Journal, JournalCorrupt, Layout, MemoryMedium, Options, StripedMedium
from journal.entry import HEADER_SIZE, PAD_TYPE, decode_header
from journal.scan import Rule, Walk, find_headers
from journal.simulation import CrashObjects

UNIT = 128
WINDOW = 512


def striped(store: CrashObjects, stripe_count: int) -> StripedMedium:
    return StripedMedium(store.view(), "log", Layout(UNIT, stripe_count, 2 * UNIT))


def interesting_sizes(stripe_count: int) -> list[int]:
    """Whole entries around multiples of the unit, the period, the window, and ten windows."""
    period = 2 * UNIT * stripe_count
    marks = [UNIT, 2 * UNIT, 3 * UNIT, period, 2 * period, 3 * period, WINDOW, 2 * WINDOW, 10 * WINDOW]
    return sorted({mark + delta for mark in marks for delta in (-53, -52, -51, -1, 0, 1, 51, 52, 53)} - {0})


@pytest.mark.parametrize("allow_split", [True, False], ids=["split", "padded"])
@pytest.mark.parametrize("stripe_count", [1, 2, 3, 4, 5])
def test_entries_around_every_size_that_matters(stripe_count: int, allow_split: bool) -> None:
    store = CrashObjects()
    options = Options(allow_split=allow_split, window_bytes=WINDOW, buffer_bytes=700)
    journal = Journal.create(striped(store, stripe_count), options=options)
    rng = random.Random(stripe_count)
    wanted = []
    for size in interesting_sizes(stripe_count):
        if size >= HEADER_SIZE:
            wanted.append(rng.randbytes(size - HEADER_SIZE))
            journal.append(wanted[-1])
    journal.flush()
    assert [entry.payload for entry in journal.entries()] == wanted
    assert [entry.payload for entry in Journal.open(striped(store, stripe_count), options=options).entries()] == wanted


@pytest.mark.parametrize("allow_split", [True, False], ids=["split", "padded"])
def test_envelope_at_every_offset_of_an_object_boundary(allow_split: bool) -> None:
    for first in range(2 * UNIT + HEADER_SIZE):
        store = CrashObjects()
        journal = Journal.create(striped(store, 2), options=Options(allow_split=allow_split, window_bytes=64))
        wanted = [b"f" * first, b"second", b"", b"third" * 9]
        for payload in wanted:
            journal.append(payload)
        journal.flush()
        again = Journal.open(striped(store, 2))
        assert [entry.payload for entry in again.entries()] == wanted
        assert again.safe == journal.safe


def test_padded_entries_that_fit_a_unit_never_cross_one() -> None:
    store = CrashObjects()
    journal = Journal.create(striped(store, 3), options=Options(allow_split=False))
    rng = random.Random(9)
    for _ in range(300):
        journal.append(rng.randbytes(rng.choice([0, 5, 30, 70, 75, 76, 77, 200, 300])))
    journal.flush()
    for entry in journal.entries():
        if entry.end - entry.position <= UNIT:
            assert entry.position // UNIT == (entry.end - 1) // UNIT
        else:
            assert entry.position % UNIT == 0


def test_both_ways_of_writing_mix_in_one_log() -> None:
    store = CrashObjects()
    wanted = []
    Journal.create(striped(store, 2)).close()
    for round_ in range(8):
        journal = Journal.open(striped(store, 2), options=Options(allow_split=round_ % 2 == 0))
        for n in range(7):
            wanted.append(b"%d.%d" % (round_, n) * (n * 3))
            journal.append(wanted[-1])
        journal.close()
    journal = Journal.open(striped(store, 2))
    assert [entry.payload for entry in journal.entries()] == wanted
    assert journal.options.allow_split is False, "the head remembers how the last writer wrote"


def test_raw_zeros_to_the_boundary_are_skipped_whatever_their_size() -> None:
    """A pad need not be a record: an older or simpler writer may leave zeros, more than a header long too."""
    for zeros in range(1, UNIT - HEADER_SIZE):
        store = CrashObjects()
        medium = striped(store, 2)
        journal = Journal.create(medium)
        journal.append(b"a" * (UNIT - HEADER_SIZE - zeros))
        with journal._lock:
            journal._pack.buffers.append(bytes(zeros))
            journal._pack.position += zeros
        journal.append(b"after")
        journal.flush()
        assert [entry.payload for entry in Journal.open(striped(store, 2)).entries()][1] == b"after"


def test_zeros_are_not_skipped_beyond_one_boundary_nor_to_a_wrong_sequence() -> None:
    journal = Journal.create(MemoryMedium(start=0, unit=UNIT), options=Options(allow_split=False))
    journal.append(b"a" * 40)
    second = journal.append(b"b" * 60)
    journal.append(b"c" * 60)
    journal.flush()
    rule = Rule(journal.log, 1, 0, UNIT)
    medium = journal.medium
    assert len(list(Walk(medium.read, rule, 0, journal.safe))) == 3
    begin = second - 60 - HEADER_SIZE
    medium.write(begin, [bytes(60 + HEADER_SIZE)])
    walk = Walk(medium.read, rule, 0, journal.safe)
    assert [entry.payload[:1] for entry in walk] == [b"a"]
    assert walk.position == 40 + HEADER_SIZE
    assert walk.broken


@pytest.mark.parametrize("stripe_count", [1, 3])
def test_any_object_lost_leaves_every_other_entry_readable(stripe_count: int) -> None:
    store = CrashObjects()
    journal = Journal.create(striped(store, stripe_count), options=Options(allow_split=False))
    rng = random.Random(4)
    for _ in range(120):
        journal.append(rng.randbytes(rng.randrange(UNIT - HEADER_SIZE)))
    journal.flush()
    layout = Layout(UNIT, stripe_count, 2 * UNIT)
    entries = list(journal.entries())
    names = [name for name in store.objects if "head" not in name]
    assert len(names) > 10
    for name in names:
        kept = store.objects.pop(name)
        number = int(name.rpartition(".")[2], 16)
        lost = {e.position for e in entries for n, _, _ in layout.pieces(e.position, e.end - e.position) if n == number}
        medium = striped(store, stripe_count)
        found = [h.position for h in find_headers(medium.read, medium.start, journal.safe) if h.type != PAD_TYPE]
        assert found == [entry.position for entry in entries if entry.position not in lost]
        with pytest.raises(JournalCorrupt):
            list(journal.entries())
        store.objects[name] = kept


def test_pads_are_records_where_a_header_fits() -> None:
    medium = MemoryMedium(start=0, unit=UNIT)
    journal = Journal.create(medium, options=Options(allow_split=False))
    end = journal.append(b"a" * 10)
    journal.append(b"b" * 60)
    journal.flush()
    header = decode_header(medium.read(end, HEADER_SIZE))
    assert not isinstance(header, str)
    assert (header.type, header.end) == (PAD_TYPE, UNIT)
    assert [entry.sequence for entry in journal.entries()] == [1, 3]


def test_memory_of_reading_is_the_window_not_the_log() -> None:
    medium = MemoryMedium()
    journal = Journal.create(medium, options=Options(window_bytes=4096))
    for n in range(3000):
        journal.append(b"%d" % n * 20)
    journal.append(b"x" * 50_000)
    journal.flush()
    lengths: list[int] = []
    plain = medium.read
    medium.read = lambda position, length: lengths.append(length) or plain(position, length)  # type: ignore
    assert sum(1 for _ in journal.entries()) == 3001
    assert max(lengths) == 50_000
    assert sorted(lengths)[-2] == 4096
    assert sum(lengths) < 1.2 * (journal.safe - journal.expire)


@pytest.mark.slow
def test_a_payload_of_the_limit_is_written_and_read() -> None:
    """1 GiB through a striped log whose store only counts: no copy of it is made on the way out."""
    size = 1 << 30
    journal = Journal.create(MemoryMedium())
    journal.append(bytes(size))
    journal.flush()
    (entry,) = journal.entries()
    assert len(entry.payload) == size
