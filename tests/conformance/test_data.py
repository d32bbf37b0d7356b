"""The data stream: writes, holes, zeros, truncation, extents, copies of ranges."""

from __future__ import annotations

import random

import pytest

from mdstore.errors import InvalidRequest
from mdstore.limits import OBJECT_SIZE_MAX
from tests.conformance.subjects import Subject, T

HOLE = 1 << 20  # aligned and long enough that every engine keeps it as a hole
EDGES = [0, 1, 4095, 4096, 4097, 8191, 8192, 65535, 65536, 65537]


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes without a zero, so that zeros in an answer came from a hole."""
    source = random.Random(seed)
    return bytes(source.randrange(1, 256) for _ in range(length))


def test_what_was_written_is_read(store: Subject) -> None:
    data = pattern(70_000)
    store.apply(T().write("c", "o", 0, data))
    assert store.read("c", "o") == data
    assert store.stat("c", "o").size == len(data)


@pytest.mark.parametrize("offset", EDGES)
@pytest.mark.parametrize("length", [1, 4096, 5000])
def test_a_write_inside_changes_only_its_range(store: Subject, offset: int, length: int) -> None:
    old, new = pattern(80_000), pattern(length, seed=2)
    store.apply(T().write("c", "o", 0, old))
    store.apply(T().write("c", "o", offset, new))
    assert store.read("c", "o") == old[:offset] + new + old[offset + length :]


def test_later_writes_of_one_transaction_win(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"aaaaaa").write("c", "o", 2, b"bb").write("c", "o", 3, b"c"))
    assert store.read("c", "o") == b"aabcaa"


def test_an_empty_write_makes_the_object_and_extends_nothing(store: Subject) -> None:
    store.apply(T().write("c", "new", 100, b"").write("c", "o", 0, b"abc"))
    store.apply(T().write("c", "o", 100, b""))
    assert store.read("c", "new") == b""
    assert store.stat("c", "new").size == 0
    assert store.stat("c", "o").size == 3


@pytest.mark.parametrize("offset", EDGES)
def test_a_write_past_the_end_leaves_a_hole_of_zeros(store: Subject, offset: int) -> None:
    store.apply(T().write("c", "o", 0, b"abc"))
    store.apply(T().write("c", "o", 3 + offset, b"xyz"))
    assert store.read("c", "o") == b"abc" + bytes(offset) + b"xyz"


def test_reads_are_short_at_the_end_and_empty_past_it(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"abcdef"))
    assert store.read("c", "o", 4, 100) == b"ef"
    assert store.read("c", "o", 2) == b"cdef"
    assert store.read("c", "o", 1, 3) == b"bcd"
    assert store.read("c", "o", 3, 0) == b""
    assert store.read("c", "o", 6, 1) == b""
    assert store.read("c", "o", 6) == b""
    assert store.read("c", "o", OBJECT_SIZE_MAX, 1) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (-1, None)])
def test_negative_windows_are_invalid(store: Subject, offset: int, length: int | None) -> None:
    store.apply(T().write("c", "o", 0, b"abc"))
    with pytest.raises(InvalidRequest):
        store.read("c", "o", offset, length)
    with pytest.raises(InvalidRequest):
        store.extents("c", "o", offset, length)


# -- zero and truncate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", EDGES)
@pytest.mark.parametrize("length", [1, 4096, 5000, 66_000])
def test_zero_inside_makes_zeros_of_its_range_only(store: Subject, offset: int, length: int) -> None:
    data = pattern(140_000)
    store.apply(T().write("c", "o", 0, data))
    store.apply(T().zero("c", "o", offset, length))
    assert store.read("c", "o") == data[:offset] + bytes(length) + data[offset + length :]


def test_zero_past_the_end_extends_and_zero_of_nothing_does_not(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"abc").zero("c", "new", 10, 5).zero("c", "empty", 10, 0))
    store.apply(T().zero("c", "o", 2, 7))
    assert store.read("c", "o") == b"ab" + bytes(7)
    assert store.read("c", "new") == bytes(15)
    assert store.stat("c", "empty").size == 0
    store.apply(T().zero("c", "o", 100, 0))
    assert store.stat("c", "o").size == 9


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 99_999])
def test_truncate_down_and_up_never_shows_old_bytes(store: Subject, size: int) -> None:
    data = pattern(100_000)
    store.apply(T().write("c", "o", 0, data))
    store.apply(T().truncate("c", "o", size))
    assert store.read("c", "o") == data[:size]
    store.apply(T().truncate("c", "o", 100_000))
    assert store.read("c", "o") == data[:size] + bytes(100_000 - size)


@pytest.mark.parametrize("size", [0, 1, 4096, 5000])
def test_a_write_past_a_truncated_end_shows_zeros_between(store: Subject, size: int) -> None:
    data = pattern(20_000)
    store.apply(T().write("c", "o", 0, data).truncate("c", "o", size).write("c", "o", 19_000, b"end"))
    assert store.read("c", "o") == data[:size] + bytes(19_000 - size) + b"end"


def test_an_object_may_end_at_the_size_limit(store: Subject) -> None:
    store.apply(T().write("c", "o", OBJECT_SIZE_MAX - 3, b"end").write("c", "o", 0, b"start"))
    assert store.stat("c", "o").size == OBJECT_SIZE_MAX
    assert store.read("c", "o", OBJECT_SIZE_MAX - 5) == b"\0\0end"
    assert store.read("c", "o", 0, 7) == b"start\0\0"
    store.apply(T().truncate("c", "o", 4))
    assert store.read("c", "o") == b"star"
    store.apply(T().truncate("c", "o", OBJECT_SIZE_MAX).zero("c", "o", 2, OBJECT_SIZE_MAX - 2))
    assert store.read("c", "o", 0, 10) == b"st" + bytes(8)
    assert store.stat("c", "o").size == OBJECT_SIZE_MAX


# -- extents ---------------------------------------------------------------------------------------------------------------


def assert_extents_tell_the_truth(store: Subject, name: str) -> list[tuple[int, int]]:
    """Sorted, disjoint, not empty, inside the size, and everything outside them is zeros."""
    plain = store.rig.store
    extents = plain.extents("c", name)
    size = plain.stat("c", name).size
    data, position = plain.read("c", name), 0
    for start, length in extents:
        assert start >= position
        assert length > 0
        assert not data[position:start].strip(b"\0")
        position = start + length
    assert position <= size
    assert not data[position:].strip(b"\0")
    return list(extents)


def test_holes_read_as_zeros(store: Subject) -> None:
    store.apply(T().write("c", "o", 3 * HOLE + 5, b"far").write("c", "o", 10, b"near").truncate("c", "o", 5 * HOLE))
    assert store.exists("c", "o")
    extents = assert_extents_tell_the_truth(store, "o")
    assert not any(start < 3 * HOLE and start + length > HOLE for start, length in extents)
    assert not any(start + length > 4 * HOLE for start, length in extents)
    assert store.stat("c", "o").allocated < 2 * HOLE


def test_zeroed_and_truncated_ranges_give_their_space_back(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, pattern(1000) * 4096))
    store.apply(T().zero("c", "o", HOLE, HOLE))
    assert store.exists("c", "o")
    extents = assert_extents_tell_the_truth(store, "o")
    assert not any(start < 2 * HOLE and start + length > HOLE for start, length in extents)
    assert store.stat("c", "o").allocated <= 4_096_000 - HOLE + 65536
    store.apply(T().truncate("c", "o", 0))
    assert store.extents("c", "o") == []
    assert store.stat("c", "o").allocated == 0


def test_extents_keep_to_the_window(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, pattern(100_000)))
    assert store.extents("c", "o", 10, 90_000) == [(10, 90_000)]
    assert store.extents("c", "o", 99_990) == [(99_990, 10)]
    assert store.extents("c", "o", 100_000) == []
    assert store.extents("c", "o", 50, 0) == []


# -- clone_range -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "length", "target"), [(0, 4096, 0), (1, 9000, 4096), (4096, 5000, 3), (100, 65536, 70_000)]
)
def test_clone_range_copies_the_range_and_nothing_else(store: Subject, source: int, length: int, target: int) -> None:
    origin, old = pattern(150_000), pattern(120_000, seed=2)
    store.apply(T().write("c", "o", 0, origin).setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v"}))
    store.apply(T().write("c", "t", 0, old).setattr("c", "t", "b", b"2"))
    store.apply(T().clone_range("c", "o", "t", source, length, target))
    wanted = old[:target].ljust(target, b"\0") + origin[source : source + length] + old[target + length :]
    assert store.read("c", "t") == wanted
    assert store.read("c", "o") == origin
    assert store.getattrs("c", "t") == {b"b": b"2"}
    assert list(store.map_items("c", "t")) == []


def test_clone_range_copies_holes_over_data(store: Subject) -> None:
    store.apply(
        T().write("c", "o", 0, b"head").write("c", "o", 2 * HOLE, b"tail").write("c", "t", 0, pattern(1000) * 2000)
    )
    store.apply(T().clone_range("c", "o", "t", 0, 2 * HOLE + 4, 100))
    wanted = pattern(1000)[:100] + b"head" + bytes(2 * HOLE - 4) + b"tail"
    assert store.read("c", "t")[: len(wanted)] == wanted
    assert store.stat("c", "t").size == len(wanted)


def test_clone_range_stops_at_the_source_end_and_may_extend_the_target(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"abc").truncate("c", "o", 6).write("c", "t", 0, b"0123456789"))
    store.apply(T().clone_range("c", "o", "t", 2, 100, 8))
    assert store.read("c", "t") == b"01234567c" + bytes(3)
    store.apply(T().clone_range("c", "o", "t", 6, 100, 500).clone_range("c", "o", "t", 0, 0, 900))
    assert store.stat("c", "t").size == 12


def test_clone_range_makes_its_target_even_for_nothing(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"abc"))
    store.apply(T().clone_range("c", "o", "empty", 3, 10, 50).clone_range("c", "o", "copy", 1, 2, 4))
    assert store.read("c", "empty") == b""
    assert store.read("c", "copy") == bytes(4) + b"bc"
