"""The compiled framing against the same thing in Python: on good, random, damaged and hostile bytes, with one printed seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from enum import IntEnum

import crcmod.predefined
import pytest
from crc32c import crc32c

from journal._framing import GLUED, LONG, Framer, checksum, parse
from journal.entry import BODY_SIZE, HEADER_SIZE, PAD_TYPE, PREFIX, QUICK_BODY, QUICK_HEADER, Entry, log_and_generation
from journal.pack import Packer
from journal.scan import Rule, Walk

LOG, GENERATION = 0xC0FFEE, 7
WHOSE = log_and_generation(LOG, GENERATION)
MAX64 = (1 << 64) - 1
WINDOWS = 6000


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("MDSTORE_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed} (MDSTORE_SEED={seed} repeats it)")
    return random.Random(seed)


def framed(payload: bytes, type_: int, sequence: int, position: int, safe: int, whose: int = WHOSE) -> bytes:
    body = QUICK_BODY.pack(PREFIX, type_, len(payload), whose, sequence, position, safe, crc32c(payload))
    return body + crc32c(body).to_bytes(4, "little") + payload


def parse_in_python(
    data: bytes, offset: int, last: int, position: int, sequence: int, whose: int, generation: int
) -> list[Entry]:
    """What `parse` has to find, said in Python."""
    base, size = position - offset, len(data)
    last = min(last, size - HEADER_SIZE)
    batch: list[Entry] = []
    while offset <= last:
        prefix, type_, length, whom, number, start, safe, payload_crc, header_crc = QUICK_HEADER.unpack_from(
            data, offset
        )
        begin = offset + HEADER_SIZE
        end = begin + length
        if number != sequence or start != position or whom != whose or prefix != PREFIX or end > size:
            break
        payload = data[begin:end]
        if crc32c(payload) != payload_crc or crc32c(data[offset : offset + BODY_SIZE]) != header_crc:
            break
        if not 0 < type_ < PAD_TYPE:
            break
        position = base + end
        batch.append(Entry(type_, start, position, sequence, generation, safe, payload))
        sequence += 1
        offset = end
    return batch


def payload_of(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 7, 8, rng.randrange(300), rng.randrange(300), LONG - 1, LONG, LONG + 1, GLUED))
    return rng.randbytes(size)


def window_of(rng: random.Random, position: int, sequence: int) -> bytearray:
    """Entries one behind another; some of a type, a length, a sequence or a writer that does not fit."""
    made = bytearray()
    for number in range(sequence, sequence + rng.randrange(8)):
        type_ = rng.choice((1, 2, 77, PAD_TYPE - 1)) if rng.random() < 0.95 else rng.choice((0, PAD_TYPE))
        odd = rng.random()
        made += framed(
            payload_of(rng), type_, number + (odd < 0.02), position + len(made) + (0.02 < odd < 0.04),
            rng.choice((0, position, MAX64)), WHOSE + (rng.choice((1, 1 << 32)) if 0.04 < odd < 0.06 else 0),
        )  # fmt: skip
    return made


def flip_bit(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def append_garbage(rng: random.Random, data: bytearray) -> None:
    data += rng.choice((bytes, rng.randbytes))(rng.randrange(200))


def overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + 20] = rng.choice((bytes(20), b"\xff" * 20, rng.randbytes(20)))


def lie(rng: random.Random, data: bytearray) -> None:
    """Another value in a field of the first header, under a checksum that is right."""
    if len(data) >= HEADER_SIZE:
        begin, size = rng.choice(((0, 4), (4, 1), (5, 1), (6, 2), (8, 4), (12, 8), (20, 8), (28, 8), (36, 8), (44, 4)))
        near = int.from_bytes(data[begin : begin + size], "little") + rng.choice((-1, 1))
        value = rng.choice((0, (1 << 8 * size) - 1, near % (1 << 8 * size), rng.getrandbits(8 * size)))
        data[begin : begin + size] = value.to_bytes(size, "little")
        data[BODY_SIZE:HEADER_SIZE] = crc32c(bytes(data[:BODY_SIZE])).to_bytes(4, "little")


def leave(rng: random.Random, data: bytearray) -> None:
    """No damage."""


DAMAGE: tuple[Callable[[random.Random, bytearray], None], ...] = (
    leave,
    leave,
    flip_bit,
    cut,
    append_garbage,
    overwrite,
    lie,
)


def test_parse_finds_what_the_python_loop_finds_in_good_damaged_and_hostile_windows(rng: random.Random) -> None:
    entries = 0
    for _ in range(WINDOWS):
        offset = rng.choice((0, 0, 1, 13, 100))
        position = rng.choice((0, 4096, rng.getrandbits(40), 1 << 63)) + offset
        sequence = rng.choice((0, 1, rng.getrandbits(32), 1 << 63))
        window = window_of(rng, position, sequence)
        rng.choice(DAMAGE)(rng, window)
        data = rng.randbytes(offset) + bytes(window)
        last = rng.choice((len(data), len(data), rng.randrange(-1, len(data) + 1)))
        expected = parse_in_python(data, offset, last, position, sequence, WHOSE, GENERATION)
        assert parse(data, offset, last, position, sequence, WHOSE, GENERATION) == expected
        entries += len(expected)
    assert entries > WINDOWS, "the windows hold too little to compare"


def test_parse_finds_what_the_python_loop_finds_with_each_byte_of_an_entry_changed(rng: random.Random) -> None:
    data = framed(b"first", 1, 5, 4096, 0) + framed(rng.randbytes(30), 2, 6, 4096 + HEADER_SIZE + 5, 4096)
    assert len(parse(data, 0, len(data), 4096, 5, WHOSE, GENERATION)) == 2
    for index in range(len(data)):
        for value in {data[index] ^ 1, data[index] ^ 0x80, 0, 255} - {data[index]}:
            changed = data[:index] + bytes([value]) + data[index + 1 :]
            found = parse(changed, 0, len(data), 4096, 5, WHOSE, GENERATION)
            assert found == parse_in_python(changed, 0, len(data), 4096, 5, WHOSE, GENERATION)
            assert len(found) == (index >= HEADER_SIZE + 5)


@pytest.mark.parametrize("position", [0, 5, 1 << 40])
def test_a_length_beyond_the_window_ends_the_list_before_anything_is_allocated(position: int) -> None:
    body = QUICK_BODY.pack(PREFIX, 1, 0xFFFFFFFF, WHOSE, 1, position, 0, 0)
    data = body + crc32c(body).to_bytes(4, "little") + bytes(100)
    assert parse(data, 0, len(data), position, 1, WHOSE, GENERATION) == []


def test_nothing_follows_the_last_sequence_and_the_last_position() -> None:
    data = framed(b"x", 1, MAX64, 4096, 0)
    data += framed(b"y", 1, 0, 4096 + len(data), 0)
    assert [entry.payload for entry in parse(data, 0, len(data), 4096, MAX64, WHOSE, GENERATION)] == [b"x"]
    position = MAX64 - HEADER_SIZE
    data = framed(b"x", 1, 1, position, 0) + framed(b"y", 1, 2, 0, 0)
    found = parse(data, 0, len(data), position, 1, WHOSE, GENERATION)
    assert [(entry.payload, entry.end) for entry in found] == [(b"x", MAX64 + 1)]


@pytest.mark.parametrize(
    ("position", "sequence", "whose"),
    [(MAX64 + 1, 1, WHOSE), (4096, MAX64 + 1, WHOSE), (4096, 1, MAX64 + 1), (-1, 1, WHOSE)],
)
def test_what_no_header_can_say_is_found_nowhere(position: int, sequence: int, whose: int) -> None:
    data = framed(b"x", 1, 1, 4096, 0)
    assert parse(data, 0, len(data), 4096, 1, WHOSE, GENERATION)
    assert parse(data, 0, len(data), position, sequence, whose, GENERATION) == []


@pytest.mark.parametrize("offset", [-1, -(1 << 60), 53, 1 << 60])
def test_an_offset_outside_the_window_finds_nothing(offset: int) -> None:
    data = framed(b"x", 1, 1, 4096, 0)
    assert parse(data, offset, 1 << 60, 4096, 1, WHOSE, GENERATION) == []
    assert parse(b"", 0, 0, 4096, 1, WHOSE, GENERATION) == []


def test_a_walk_begun_far_above_where_the_generation_began_breaks_and_does_not_overflow() -> None:
    position = MAX64 - 4096
    data = framed(b"x", 1, 1, position, 0, log_and_generation(LOG, 1))
    walk = Walk(
        lambda at, length: data[at - position :][:length], Rule(LOG, 2, 0), position, MAX64, sequence=1, generation=1
    )
    assert list(walk) == []
    assert walk.broken.startswith("stale")


def test_entries_are_framed_as_python_frames_them_one_by_one_and_joined(rng: random.Random) -> None:
    for _ in range(300):
        position, sequence = rng.getrandbits(62), rng.getrandbits(63)
        type_, safe = rng.randrange(1, PAD_TYPE), rng.getrandbits(64)
        payloads = [payload_of(rng) for _ in range(rng.randrange(6))]
        expected = b""
        for number, payload in enumerate(payloads, sequence):
            expected += framed(payload, type_, number, position + len(expected), safe)
        single, joined, quick = (Framer(WHOSE, sequence, position) for _ in range(3))
        single.safe = joined.safe = quick.safe = safe
        quick.limit = quick.hold_back = MAX64
        for payload in payloads:
            assert single.add(payload, len(payload), crc32c(payload), type_) == single.position
            assert quick.add_at_once(payload, type_) == quick.position
        assert joined.add_joined(payloads, type_) == position + len(expected)
        for framer in (single, joined, quick):
            *where, buffers = framer.take()
            assert b"".join(buffers) == expected
            assert where == [position, position + len(expected), sequence + len(payloads)]
            assert (framer.position, framer.sequence, framer.taken, framer.buffers) == (*where[1:], where[1], [])


class Bytes(bytes):
    """Like bytes, but not quite."""


@pytest.mark.parametrize("payload", [b"x" * 100, b"y" * LONG, b"z" * GLUED])
def test_an_entry_is_added_at_once_up_to_the_limit_and_what_is_held_back(payload: bytes) -> None:
    size = HEADER_SIZE + len(payload)
    framer = Framer(WHOSE, 1, 1000)
    assert framer.add_at_once(payload, 1) == 0, "closed at first"
    framer.limit = 1000 + 4 * size
    framer.hold_back = 2 * size
    assert framer.add_at_once(payload, 1) == 1000 + size
    assert framer.add_at_once(payload, 1) == 1000 + 2 * size
    assert framer.add_at_once(payload, 1) == 0, "more than is held back"
    framer.take()
    assert framer.add_at_once(payload, 1) == 1000 + 3 * size
    assert framer.add_at_once(payload, 1) == 1000 + 4 * size
    framer.take()
    assert framer.add_at_once(payload, 1) == 0, "beyond the limit"
    framer.limit -= 1
    assert (framer.position, framer.sequence, framer.buffers) == (1000 + 4 * size, 5, [])


@pytest.mark.parametrize("type_", [0, PAD_TYPE, -1, 1 << 16, 1 << 63, 1 << 70, -(1 << 70), True, 1.0, "1", None])
def test_a_type_that_is_not_one_is_not_added_at_once(type_: object) -> None:
    framer = Framer(WHOSE, 1, 0)
    framer.limit = framer.hold_back = MAX64
    assert framer.add_at_once(b"good", type_) == 0
    assert (framer.position, framer.sequence, framer.buffers) == (0, 1, [])


@pytest.mark.parametrize("payload", [bytearray(b"good"), memoryview(b"good"), Bytes(b"good"), "text", None, [b"good"]])
def test_a_payload_that_is_not_plain_bytes_is_not_added_at_once(payload: object) -> None:
    framer = Framer(WHOSE, 1, 0)
    framer.limit = framer.hold_back = MAX64
    assert framer.add_at_once(payload, 1) == 0
    assert (framer.position, framer.sequence, framer.buffers) == (0, 1, [])


@pytest.mark.parametrize("length", [GLUED - 1, GLUED, GLUED + 1])
def test_a_payload_is_copied_below_the_limit_and_kept_by_reference_from_there(length: int) -> None:
    framer, payload = Framer(WHOSE, 1, 0), bytes(length)
    framer.add(payload, length, crc32c(payload), 1)
    assert [len(buffer) for buffer in framer.buffers] == (
        [HEADER_SIZE + length] if length < GLUED else [HEADER_SIZE, length]
    )
    assert (framer.buffers[-1] is payload) == (length >= GLUED)


def test_an_entry_that_does_not_fit_its_fields_is_refused_and_nothing_has_changed() -> None:
    framer = Framer(WHOSE, 1, 0)
    too_large = ((0, 1 << 32, 1), (0, 0, 1 << 16), (1 << 32, 0, 1), (-1, 0, 1))
    for length, crc, type_ in too_large:
        with pytest.raises(OverflowError):
            framer.add(b"", length, crc, type_)
    for field in ("position", "sequence", "safe", "taken", "limit", "hold_back"):
        with pytest.raises(OverflowError):
            setattr(framer, field, 1 << 64)
    with pytest.raises(ValueError, match="length 5 of a payload of 4 bytes"):
        framer.add(b"four", 5, 0, 1)
    with pytest.raises(TypeError):
        framer.add("text", 4, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        framer.add_joined([b"good", 5], 1)  # type: ignore[list-item]
    assert (framer.position, framer.sequence, framer.buffers) == (0, 1, [])


def test_many_payloads_of_any_kind_of_buffer_are_copied() -> None:
    class Text(bytes):
        pass

    packer, changing = Packer(LOG, GENERATION, 1, 4096, 0), bytearray(b"changing")
    packer.add_many([Text(b"sub"), changing, memoryview(b"view")], 1)  # type: ignore[list-item]
    changing[:] = b"changed!"
    assert packer.add(Text(b"alone"), 5, crc32c(b"alone"), 1) == packer.position
    data = b"".join(packer.take()[3])
    found = parse(data, 0, len(data), 4096, 1, WHOSE, GENERATION)
    assert [entry.payload for entry in found] == [b"sub", b"changing", b"view", b"alone"]


@pytest.mark.parametrize("portable", [False, True])
def test_three_checksums_agree_on_random_buffers(rng: random.Random, portable: bool) -> None:
    independent = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
    assert checksum(b"123456789", portable=portable) == 0xE3069283
    for size in [*range(70), *(rng.randrange(5000) for _ in range(100))]:
        data, before = rng.randbytes(size), rng.randbytes(rng.randrange(40))
        view = memoryview(rng.randbytes(rng.randrange(8)) + data)[-size or 1 << 30 :]  # at any alignment
        start = checksum(before, portable=portable)
        found = checksum(view, start, portable=portable)
        assert found == crc32c(data, crc32c(before)) == independent(before + data)


def test_a_type_may_be_a_number_of_the_owners_own_class() -> None:
    """Owners name their types by an enumeration: such a one is appended in one step, too, and as the number it is."""

    class Kind(IntEnum):
        CREATE = 7

    def framed(type_: int) -> bytes:
        framer = Framer(1 << 32, 0, 0)
        framer.limit = framer.hold_back = 1 << 20
        assert framer.add_at_once(b"payload", type_), "in one step"
        return b"".join(framer.buffers)

    assert framed(Kind.CREATE) == framed(7)
