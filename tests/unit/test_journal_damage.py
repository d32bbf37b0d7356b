"""Every byte flipped, every prefix cut, garbage, hostile lengths: classified, never wrong, never without bound."""

from __future__ import annotations

import random

import pytest

from journal import HeadLost, Journal, JournalCorrupt, Layout, MemoryMedium, Options, RingMedium, StripedMedium
from journal.entry import HEADER_SIZE, MAGIC, PAYLOAD_MAX, encode_header
from journal.scan import WINDOW, Rule, Walk, find_headers
from journal.simulation import CrashObjects, CrashRegion

BLOCK = 256
PAYLOADS = [b"", b"a", b"bc" * 20, b"\0" * 70, b"d" * 130, MAGIC * 10, b"last"]


def sample(*, close: bool) -> tuple[CrashRegion, list[int]]:
    """A ring with `PAYLOADS`, each flushed on its own; and the end of each."""
    region = CrashRegion(BLOCK * 8)
    journal = Journal.create(RingMedium(region, block_size=BLOCK), log=0x1234)
    ends = []
    for payload in PAYLOADS:
        ends.append(journal.append(payload))
        journal.flush()
    if close:
        journal.close()
    return region, ends


def reopen(content: bytearray) -> tuple[Journal, list[bytes]]:
    found: list[bytes] = []
    journal = Journal.open(
        RingMedium(CrashRegion(len(content), content), block_size=BLOCK),
        visit=lambda batch: found.extend(entry.payload for entry in batch),
    )
    return journal, found


def entry_of(offset: int, ends: list[int], start: int) -> int:
    """The index of the entry in which the byte at `offset` of the ring's body lies."""
    return next(index for index, end in enumerate(ends) if offset < end - start)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_flipped_byte_of_a_live_log_is_rot_except_in_the_last_entry(mask: int) -> None:
    region, ends = sample(close=False)
    start = RingMedium(region, block_size=BLOCK).start
    body = 2 * BLOCK
    for offset in range(ends[-1] - start):
        content = bytearray(region.content)
        content[body + offset] ^= mask
        index = entry_of(offset, ends, start)
        if index == len(PAYLOADS) - 1:
            journal, found = reopen(content)
            assert found == PAYLOADS[:-1]
            assert journal.tail.kind == "torn"
            assert journal.safe == ends[-2]
        else:
            with pytest.raises(JournalCorrupt) as caught:
                reopen(content)
            assert caught.value.position == (ends[index - 1] if index else start)


def test_flipped_byte_of_a_closed_log_is_always_rot() -> None:
    region, ends = sample(close=True)
    for offset in range(ends[-1] - RingMedium(region, block_size=BLOCK).start):
        content = bytearray(region.content)
        content[2 * BLOCK + offset] ^= 0x10
        with pytest.raises(JournalCorrupt):
            reopen(content)


def test_flipped_byte_of_one_head_copy_changes_nothing() -> None:
    for close in (False, True):
        region, ends = sample(close=close)
        for offset in range(2 * BLOCK):
            content = bytearray(region.content)
            content[offset] ^= 0x20
            journal, found = reopen(content)
            assert found == PAYLOADS
            assert journal.safe == ends[-1]


def test_both_head_copies_damaged_is_said_so() -> None:
    region, _ = sample(close=True)
    region.content[20] ^= 1
    region.content[BLOCK + 20] ^= 1
    with pytest.raises(HeadLost) as caught:
        reopen(region.content)
    assert len(caught.value.reasons) == 2


def test_every_prefix_of_a_live_log_gives_a_prefix_of_its_entries() -> None:
    region, ends = sample(close=False)
    start = RingMedium(region, block_size=BLOCK).start
    for cut in range(ends[-1] - start):
        content = bytearray(region.content)
        content[2 * BLOCK + cut :] = b"\x0d" * (len(content) - 2 * BLOCK - cut)
        whole = sum(end - start <= cut for end in ends)
        journal, found = reopen(content)
        assert found == PAYLOADS[:whole]
        assert journal.safe == ([start, *ends])[whole]


def test_every_prefix_of_a_closed_log_is_damage() -> None:
    region, ends = sample(close=True)
    start = RingMedium(region, block_size=BLOCK).start
    for cut in range(ends[-1] - start):
        content = bytearray(region.content)
        content[2 * BLOCK + cut :] = b"\xee" * (len(content) - 2 * BLOCK - cut)
        with pytest.raises(JournalCorrupt):
            reopen(content)


@pytest.mark.parametrize("seed", range(4))
def test_garbage_behind_the_end_is_torn_and_gone_after_the_next_append(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    region, ends = sample(close=False)
    medium = RingMedium(region, block_size=BLOCK)
    room = medium.capacity - BLOCK - (ends[-1] - medium.start)
    medium.write(ends[-1], [rng.randbytes(room)])
    journal = Journal.open(medium)
    assert journal.tail.kind == "torn"
    journal.append(b"next")
    journal.flush()
    _, found = reopen(region.content)
    assert found == [*PAYLOADS, b"next"]


def test_an_older_lap_behind_the_end_is_stale() -> None:
    region = CrashRegion(BLOCK * 6)
    journal = Journal.create(RingMedium(region, block_size=BLOCK))
    for _ in range(40):
        journal.append(b"x" * (128 - HEADER_SIZE))
        journal.flush()
        journal.set_expire(journal.safe)
        journal.trim(recorded=True)
    again = Journal.open(RingMedium(region, block_size=BLOCK), start=journal.expire)
    assert again.tail.kind == "stale"
    assert again.safe == journal.safe


def counted(data: bytes, base: int = 0) -> tuple[list[int], MemoryMedium]:
    """A medium holding `data` that notes the length of every read."""
    medium = MemoryMedium(start=base)
    medium.write(base, [data])
    lengths: list[int] = []
    plain = medium.read

    def read(position: int, length: int) -> bytes:
        lengths.append(length)
        return plain(position, length)

    medium.read = read  # type: ignore[method-assign]
    return lengths, medium


def test_hostile_length_reads_no_more_than_there_is() -> None:
    header = encode_header(1, PAYLOAD_MAX, 1, 1, 1, 0, 0, 0)
    lengths, medium = counted(header + b"x" * 1000)
    walk = Walk(medium.read, Rule(1, 1, 0), 0, medium.reach(0))
    assert list(walk) == []
    assert "beyond" in walk.broken
    assert max(lengths) <= 1000 + HEADER_SIZE


def test_search_among_hostile_headers_stays_linear() -> None:
    """A thousand headers that each claim everything behind them: their payloads must not all be summed up."""
    size = HEADER_SIZE * 20000
    data = b"".join(
        encode_header(1, size - n * HEADER_SIZE - HEADER_SIZE, 1, 1, n, n * HEADER_SIZE, 0, 1) for n in range(20000)
    )
    lengths, medium = counted(data)
    assert sum(1 for _ in find_headers(medium.read, 0, size, window=4096)) == 20000
    assert sum(lengths) < 5 * size
    assert max(lengths) <= 4096 + HEADER_SIZE


def test_search_finds_every_header_at_every_alignment_to_the_window() -> None:
    for window in range(60, 200, 7):
        journal = Journal.create(MemoryMedium())
        rng = random.Random(window)
        starts = []
        for _ in range(50):
            starts.append(journal.write)
            journal.append(rng.randbytes(rng.randrange(300)))
        journal.flush()
        found = [header.position for header in find_headers(journal.medium.read, 4096, journal.safe, window=window)]
        assert found == starts


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_never_entries_and_never_an_unexpected_error(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        data = bytearray(rng.randbytes(rng.randrange(4000)))
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(data) + 1)
            data[at:at] = MAGIC
        medium = MemoryMedium(start=0)
        medium.write(0, [data])
        walk = Walk(medium.read, Rule(1, 1, 0, rng.choice([0, 64])), 0, medium.reach(0), window=rng.randrange(1, 3000))
        assert list(walk) == []
        assert list(find_headers(medium.read, 0, len(data), window=rng.randrange(1, 3000))) == []


@pytest.mark.parametrize("seed", range(3))
def test_spliced_logs_give_only_entries_that_were_written(seed: int) -> None:
    """Ranges of a real log copied, moved and zeroed at random: what is read is always a prefix, or an error is raised."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    region, _ = sample(close=False)
    for _ in range(300):
        content = bytearray(region.content)
        for _ in range(rng.randrange(1, 4)):
            source, target = rng.randrange(len(content)), rng.randrange(2 * BLOCK, len(content))
            piece = rng.choice([content[source : source + rng.randrange(200)], bytes(rng.randrange(100))])
            content[target : target + len(piece)] = piece[: len(content) - target]
        try:
            _, found = reopen(content)
        except JournalCorrupt:
            continue
        assert found == PAYLOADS[: len(found)]


def test_a_missing_object_in_the_middle_is_damage_and_is_named() -> None:
    store = CrashObjects()
    medium = StripedMedium(store.view(), "log", Layout(64, 2, 128))
    journal = Journal.create(medium)
    for n in range(20):
        journal.append(b"%d" % n * 10)
        journal.flush()
    del store.objects["log.00000005"]
    with pytest.raises(JournalCorrupt):
        Journal.open(StripedMedium(store.view(), "log", Layout(64, 2, 128)))
    assert [name for name, _ in medium.missing(journal.expire, journal.safe)] == ["log.00000005"]


def test_a_large_entry_is_read_through_a_small_window() -> None:
    medium = MemoryMedium()
    journal = Journal.create(medium, options=Options(window_bytes=64))
    payload = random.Random(1).randbytes(3 * WINDOW)
    journal.append(b"before")
    journal.append(payload)
    journal.append(b"after")
    journal.flush()
    assert [entry.payload for entry in journal.entries()] == [b"before", payload, b"after"]


@pytest.mark.parametrize("start", [(1 << 24) - 3000, (1 << 32) - 3000, (1 << 62), 0])
def test_search_finds_headers_wherever_the_log_has_got_to(start: int) -> None:
    """The search looks at the upper bytes of positions: across the places where they change, and far up."""
    medium = MemoryMedium(start=start)
    journal = Journal.create(medium)
    wanted = []
    for n in range(100):
        wanted.append(journal.write)
        journal.append(b"%d" % n)
    journal.flush()
    for stop in (journal.safe, start + (130 << 24)):
        found = [header.position for header in find_headers(medium.read, start, stop, window=1 << 16)]
        assert found[:100] == wanted
