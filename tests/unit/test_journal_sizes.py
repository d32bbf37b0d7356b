"""Large entries, envelopes across every boundary, pads, and objects that are read alone."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from journal import PAYLOAD_MAX, Follower, Journal, JournalCorrupt, Layout, MemoryMedium, Options, StripedMedium
from journal.entry import HEADER_SIZE, PAD_TYPE, decode_header
from journal.medium import Buffer
from journal.scan import PIECE, Rule, Walk, find_headers
from journal.simulation import CrashObjects
from journal.survey import survey

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


class Counting:
    """Objects that keep small writes, and of large ones only that they are zeros."""

    epoch = 0

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.small: dict[str, list[tuple[int, bytes]]] = {}

    def read(self, name: str, offset: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, self.sizes.get(name, 0) - offset)))
        for begin, kept in self.small.get(name, []):
            low, high = max(begin, offset), min(begin + len(kept), offset + len(data))
            if low < high:
                data[low - offset : high - offset] = kept[low - begin : high - begin]
        return bytes(data)

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            if len(buffer) < 4096:
                self.small.setdefault(name, []).append((offset, bytes(buffer)))
            offset += len(buffer)
        self.sizes[name] = max(offset, self.sizes.get(name, 0))

    def truncate(self, name: str, size: int) -> None:
        if name in self.sizes:
            self.sizes[name] = min(size, self.sizes[name])
            self.small[name] = [(begin, kept[: size - begin]) for begin, kept in self.small.get(name, []) if begin < size]

    def remove(self, name: str) -> None:
        self.sizes.pop(name, None)
        self.small.pop(name, None)

    def stat(self, name: str) -> int | None:
        return self.sizes.get(name)

    def list_names(self, prefix: str) -> list[str]:
        return [name for name in self.sizes if name.startswith(prefix)]

    def flush(self) -> None:
        """Nothing here is durable."""


MIB = 1 << 20


def peak_of(action: Callable[[], int]) -> tuple[int, int]:
    """What `action` returned, and the bytes it needed beyond what was there."""
    tracemalloc.start()
    try:
        result = action()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [64 * MIB, pytest.param(PAYLOAD_MAX, marks=pytest.mark.slow)])
def test_memory_of_a_large_entry_is_the_entry_and_a_window(size: int) -> None:
    """A striped log, up to the limit: no copy is made on the way out, and one on the way in, whoever reads."""
    medium = StripedMedium(Counting(), "log", Layout(MIB, 2, 4 * MIB))  # type: ignore[arg-type]
    journal = Journal.create(medium)
    large = [bytes(size)]

    def append() -> int:
        journal.append(b"before")
        journal.append(large.pop())
        journal.flush()
        journal.append(b"after")
        journal.flush()
        return journal.counters.appends

    assert peak_of(append) == (3, pytest.approx(0, abs=MIB))
    readers: dict[str, Callable[[], int]] = {
        "entries": lambda: sum(len(entry.payload) for entry in journal.entries()),
        "recovery": lambda: Journal.open(medium).safe - journal.expire - 3 * HEADER_SIZE,
        "follower": lambda: sum(len(e.payload) for batch in Follower(medium).poll() for e in batch) + len("after"),
        "survey": lambda: survey(medium).end - journal.expire - 3 * HEADER_SIZE,
    }
    for reader, read in readers.items():
        total, peak = peak_of(read)
        assert total == size + len("beforeafter"), reader
        assert peak < size + 2 * PIECE + 4 * MIB, reader
