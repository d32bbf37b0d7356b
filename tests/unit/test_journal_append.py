"""Append, group commit, expire, trim: the life of one journal over each medium."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from journal import (
    EntryTooLarge,
    Journal,
    JournalClosed,
    JournalFailed,
    JournalFull,
    JournalReadOnly,
    JournalTrimmed,
    Layout,
    Medium,
    MemoryMedium,
    NoJournal,
    Options,
    RingMedium,
    StripedMedium,
    WrongGeometry,
)
from journal.entry import HEADER_SIZE
from journal.simulation import CrashObjects, CrashRegion, Operation

Reopen = Callable[[], Medium]


def ring() -> Reopen:
    region = CrashRegion(256 * 64)
    return lambda: RingMedium(region, block_size=256)


def striped() -> Reopen:
    store = CrashObjects()
    return lambda: StripedMedium(store.view(), "log", Layout(64, 3, 256))


def memory() -> Reopen:
    medium = MemoryMedium(period=256)
    return lambda: medium


@pytest.fixture(params=[ring, striped, memory], ids=["ring", "striped", "memory"])
def reopen(request: pytest.FixtureRequest) -> Reopen:
    made: Reopen = request.param()
    return made


def payloads(journal: Journal) -> list[bytes]:
    return [entry.payload for entry in journal.entries()]


def test_what_was_flushed_is_read_after_reopening(reopen: Reopen) -> None:
    wanted = [bytes([n]) * (n * 7) for n in range(60)]
    journal = Journal.create(reopen())
    ends = [journal.append(payload, type=n + 1) for n, payload in enumerate(wanted)]
    assert journal.safe < ends[0]
    journal.flush()
    journal.assert_state()
    assert journal.safe == ends[-1]
    assert payloads(journal) == wanted
    again = Journal.open(reopen())
    entries = list(again.entries())
    assert [entry.payload for entry in entries] == wanted
    assert [entry.end for entry in entries] == ends
    assert [entry.type for entry in entries] == list(range(1, 61))
    assert [entry.sequence for entry in entries] == list(range(1, 61))
    assert again.tail.kind in ("clean", "stale")


def test_a_second_writer_continues_where_the_first_ended(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    journal.append(b"one")
    journal.close()
    for round_ in range(5):
        journal = Journal.open(reopen())
        assert journal.tail.kind == "clean"
        journal.append(b"round %d" % round_)
        journal.close()
    journal = Journal.open(reopen())
    assert payloads(journal) == [b"one"] + [b"round %d" % n for n in range(5)]
    assert [entry.sequence for entry in journal.entries()] == [1, 2, 3, 4, 5, 6]
    assert [entry.generation for entry in journal.entries()] == [1, 2, 3, 4, 5, 6]


def test_opening_writes_nothing(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    journal.append(b"one")
    journal.flush()
    before = journal.medium.read_heads()
    opened = Journal.open(reopen())
    opened.close()
    assert opened.medium.read_heads() == before
    assert opened.counters.writes == opened.counters.flushes == 0


def test_payload_in_several_buffers_is_one_entry_and_is_not_shared(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    changed = bytearray(b"abc")
    journal.append([b"12", changed, memoryview(b"345")])
    journal.append(changed)
    journal.append([])
    changed[:] = b"xyz"
    journal.flush()
    assert payloads(journal) == [b"12abc345", b"abc", b""]


def test_append_many_equals_many_appends(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    parts = [b"p" * n for n in range(20)]
    end = journal.append_many(parts, type=9)
    assert end == journal.write
    journal.wait(end)
    assert payloads(journal) == parts
    assert {entry.type for entry in journal.entries()} == {9}
    assert journal.append_many([]) == end


def test_expire_and_trim_give_up_the_past(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    ends = [journal.append(b"%04d" % n * 10) for n in range(100)]
    journal.flush()
    journal.set_expire(ends[49])
    assert payloads(journal)[0] == b"0050" * 10
    trimmed = journal.trim()
    assert ends[49] - journal.medium.period < trimmed <= ends[49]
    with pytest.raises(JournalTrimmed) as caught:
        list(journal.entries(journal.medium.start))
    assert caught.value.trimmed == trimmed
    again = Journal.open(reopen())
    assert payloads(again) == [b"%04d" % n * 10 for n in range(50, 100)]
    assert again.trimmed == trimmed


def test_expire_is_refused_outside_the_durable_entries(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    end = journal.append(b"a")
    with pytest.raises(ValueError, match="expire"):
        journal.set_expire(end)
    journal.flush()
    journal.set_expire(end)
    with pytest.raises(ValueError, match="expire"):
        journal.set_expire(journal.medium.start)


def test_every_entry_carries_what_was_safe_when_it_was_appended(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    first = journal.append(b"a")
    journal.append(b"b")
    journal.flush()
    second = journal.safe
    journal.append(b"c")
    journal.flush()
    assert [entry.safe for entry in journal.entries()] == [journal.medium.start, journal.medium.start, second]
    assert first < second


def test_ring_wraps_many_times_and_is_full_with_a_period_to_spare() -> None:
    region = CrashRegion(256 * 10)
    journal = Journal.create(RingMedium(region, block_size=256))
    capacity = journal.capacity
    assert capacity == 256 * 7
    for n in range(300):
        payload = b"%d" % n * (n % 23)
        free = journal.free
        assert free is not None
        if HEADER_SIZE + len(payload) > free:
            before = journal.write, journal.next_sequence
            with pytest.raises(JournalFull) as full:
                journal.append(payload)
            assert (full.value.need, full.value.free) == (HEADER_SIZE + len(payload), free)
            assert before == (journal.write, journal.next_sequence)
            journal.flush()
            journal.set_expire(journal.safe)
            journal.trim(recorded=True)
        end = journal.append(payload)
        journal.wait(end)
        journal.assert_state()
        reopened = Journal.open(RingMedium(region, block_size=256), start=journal.expire)
        assert list(reopened.entries())[-1].payload == payload
        assert reopened.safe == end
    assert journal.write > 5 * capacity


def test_entry_larger_than_the_ring_is_refused() -> None:
    journal = Journal.create(RingMedium(CrashRegion(256 * 8), block_size=256))
    with pytest.raises(JournalFull):
        journal.append(b"x" * (256 * 5 - HEADER_SIZE + 1))
    journal.append(b"x" * (256 * 5 - HEADER_SIZE))
    journal.flush()
    assert [len(entry.payload) for entry in journal.entries()] == [256 * 5 - HEADER_SIZE]


def test_entry_over_the_limit_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (1 << 30) + 1

    journal = Journal.create(MemoryMedium())
    with pytest.raises(EntryTooLarge):
        journal.append([Huge(b"x")])
    with pytest.raises(EntryTooLarge):
        journal.append_many([Huge(b"x")])
    for type_ in (0, 0xFFFF, -1, 1 << 20):
        with pytest.raises(ValueError, match="type"):
            journal.append(b"", type=type_)
    assert journal.write == journal.medium.start


def test_read_only_and_closed_journals_refuse(reopen: Reopen) -> None:
    journal = Journal.create(reopen())
    journal.append(b"one")
    journal.close()
    journal.close()
    with pytest.raises(JournalClosed):
        journal.append(b"two")
    reader = Journal.open(reopen(), read_only=True)
    assert payloads(reader) == [b"one"]
    for refused in (lambda: reader.append(b"x"), reader.write_head, reader.trim):
        with pytest.raises(JournalReadOnly):
            refused()
    reader.close()


def test_nothing_there_is_said_to_be_nothing() -> None:
    with pytest.raises(NoJournal):
        Journal.open(RingMedium(CrashRegion(4096), block_size=256))


def test_creating_over_an_older_log_hides_all_of_it() -> None:
    region = CrashRegion(256 * 32)
    old = Journal.create(RingMedium(region, block_size=256), log=7)
    old.append_many([b"old"] * 50)
    old.close()
    new = Journal.create(RingMedium(region, block_size=256), log=8)
    assert payloads(new) == []
    # An entry as long as the old first one: the old second one then lies exactly where the next is due.
    new.append(b"new")
    new.flush()
    assert payloads(Journal.open(RingMedium(region, block_size=256))) == [b"new"]


def test_creating_over_an_older_log_is_decided_by_the_first_head_copy() -> None:
    """The old log's head numbers were higher than those of a new log: a crash between the two head copies of `create` left
    the old head in force over a log that was gone."""
    rng = random.Random(0)
    region = CrashRegion(256 * 32)
    with Journal.create(RingMedium(region, block_size=256)) as old:
        for _ in range(5):
            old.append(b"old")
            old.write_head()
    again = CrashRegion(256 * 32, bytearray(region.content))
    Journal.create(RingMedium(again, block_size=256))
    first_flush = [n for n, operation in enumerate(again.operations) if operation.kind == "flush"][1]
    for count in range(first_flush + 1, len(again.operations) + 1):
        for image in again.images(count, rng):
            assert payloads(Journal.open(RingMedium(image, block_size=256))) == []


def test_a_ring_is_not_truncated_without_a_word_of_where_to_stop() -> None:
    ring = RingMedium(CrashRegion(256 * 8), block_size=256)
    with pytest.raises(ValueError, match="beginning"):
        ring.truncate(ring.start)


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_first_failure_latches_with_the_same_error(kind: str) -> None:
    region = CrashRegion(256 * 32)
    journal = Journal.create(RingMedium(region, block_size=256))
    journal.append(b"good")
    journal.flush()
    cause = OSError(5, "boom")

    def fail(operation: Operation) -> None:
        if operation.kind == kind:
            raise cause

    heard: list[BaseException | None] = []
    end = journal.append(b"bad")
    journal.add_waiter(end, heard.append)
    region.hook = fail
    with pytest.raises(JournalFailed) as first:
        journal.wait(end)
    region.hook = None
    assert first.value.cause is cause
    for refused in (journal.flush, lambda: journal.append(b"x"), lambda: journal.wait(end), journal.write_head):
        with pytest.raises(JournalFailed) as later:
            refused()
        assert later.value is first.value
    assert heard == [first.value]
    count = len(region.operations)
    journal.close()
    assert len(region.operations) == count, "a latched journal wrote"
    assert payloads(Journal.open(RingMedium(region, block_size=256)))[0] == b"good"


def test_buffered_bytes_are_written_without_being_asked() -> None:
    journal = Journal.create(MemoryMedium(), options=Options(buffer_bytes=1000))
    for _ in range(100):
        journal.append(b"x" * 100)
        assert journal.write - journal.flushed <= 2000 + 152
    assert journal.counters.writes > 5
    assert journal.safe == journal.medium.start


def test_what_is_written_without_being_asked_is_whole_periods_and_the_rest_stays_buffered() -> None:
    block = 256
    region = CrashRegion(block * 32)
    journal = Journal.create(RingMedium(region, block_size=block), options=Options(buffer_bytes=3 * block))
    journal.write_head()
    before = len(region.operations)
    ends = [journal.append(b"%03d" % n * 30) for n in range(30)]
    written = region.operations[before:]
    assert {operation.kind for operation in written} == {"write"}
    assert len(written) >= 3
    for operation in written:
        assert operation.offset % block == 0 == len(operation.data) % block
    assert journal.flushed % block == 0
    assert journal.safe == journal.medium.start
    assert 0 < journal.write - journal.flushed <= 3 * block + block
    journal.assert_state()
    journal.flush()
    journal.assert_state()
    found = Journal.open(RingMedium(region, block_size=block))
    assert [entry.end for entry in found.entries()] == ends
    assert [entry.payload for entry in found.entries()] == [b"%03d" % n * 30 for n in range(30)]


def test_more_than_is_held_back_is_written_whole_where_no_period_is_complete() -> None:
    medium = MemoryMedium(start=0, period=1 << 20)
    journal = Journal.create(medium, options=Options(buffer_bytes=1000))
    for _ in range(10):
        journal.append(b"x" * 200)
    assert journal.counters.writes == 2
    assert journal.flushed == 8 * 252, "four entries are more than a thousand bytes"


def test_an_owner_may_end_the_log_before_a_whole_entry_it_cannot_use() -> None:
    # The store's entries may name blocks that never arrived: such an entry is whole, and still must go, for good.
    medium = MemoryMedium()
    journal = Journal.create(medium)
    for payload in (b"first", b"second", b"third"):
        journal.append(payload)
    journal.flush()
    found = Journal.open(medium)
    second = list(found.entries())[1]
    found.cut_tail(second.position, second.sequence)
    assert [entry.payload for entry in found.entries()] == [b"first"]
    found.wait(found.append(b"new"))
    assert [entry.payload for entry in found.entries()] == [b"first", b"new"]
    again = Journal.open(medium)
    assert [entry.payload for entry in again.entries()] == [b"first", b"new"], "the cut entries never come back"


def test_a_log_is_not_opened_with_another_geometry() -> None:
    store = CrashObjects()
    Journal.create(StripedMedium(store.view(), "log", Layout(64, 3, 256)))
    others = [(Layout(32, 3, 256), "unit"), (Layout(64, 2, 256), "stripe_count"), (Layout(64, 3, 128), "object_size")]
    for layout, field in others:
        with pytest.raises(WrongGeometry) as caught:
            Journal.open(StripedMedium(store.view(), "log", layout))
        assert caught.value.field == field
    region = CrashRegion(256 * 20)
    Journal.create(RingMedium(region, block_size=256))
    smaller = CrashRegion(256 * 16, region.content[: 256 * 16])
    with pytest.raises(WrongGeometry):
        Journal.open(RingMedium(smaller, block_size=256))
