"""Clones: all streams, independent afterwards, whichever side changes."""

from __future__ import annotations

import pytest

from tests.conformance.subjects import Subject, T, everything
from tests.conformance.test_data import pattern

DATA = pattern(1000) * 200
MAP = {b"%04d" % number: b"v%d" % number * 5 for number in range(500)}


def filled(name: str) -> T:
    """A transaction that makes an object with something in every stream."""
    transaction = T().write("c", name, 0, DATA).write("c", name, 1 << 20, b"tail").setattr("c", name, "a", b"1")
    return transaction.map_set("c", name, MAP).map_set_header("c", name, b"header")


def test_a_clone_has_every_stream_of_its_origin(store: Subject) -> None:
    store.apply(filled("o"))
    store.apply(T().clone("c", "o", "copy"))
    found = everything(store)[b"c"]
    assert found[b"copy"] == found[b"o"]
    assert found[b"copy"].size == (1 << 20) + 4
    assert dict(found[b"copy"].map) == MAP


def test_a_clone_replaces_all_of_its_target(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"short").setattr("c", "o", "a", b"1"))
    store.apply(filled("t").setattr("c", "t", "b", b"2"))
    store.apply(T().clone("c", "o", "t"))
    found = everything(store)[b"c"]
    assert found[b"t"] == found[b"o"]
    assert store.read("c", "t") == b"short"


def test_the_clone_of_an_empty_object_is_empty(store: Subject) -> None:
    store.apply(filled("t").touch("c", "o").clone("c", "o", "t").clone("c", "o", "new"))
    found = everything(store)[b"c"]
    assert found[b"t"] == found[b"new"] == found[b"o"]


CHANGES = {
    "write": lambda n: T().write("c", n, 5000, b"new bytes").write("c", n, 1 << 20, b"TAIL and more"),
    "zero": lambda n: T().zero("c", n, 3, 150_000),
    "truncate": lambda n: T().truncate("c", n, 10).truncate("c", n, 300_000),
    "attributes": lambda n: T().setattr("c", n, "a", b"2").setattr("c", n, "b", b"3").rmattr("c", n, "a"),
    "map_set": lambda n: T().map_set("c", n, {b"0100": b"changed", b"9": b"new"}).map_set_header("c", n, b"other"),
    "map_remove": lambda n: T().map_remove("c", n, [b"0000", b"0499"]).map_remove_range("c", n, b"01", b"03"),
    "map_clear": lambda n: T().map_clear("c", n),
    "clone_range": lambda n: T().write("c", "x", 0, b"z" * 70_000).clone_range("c", "x", n, 1, 69_000, 2),
    "remove": lambda n: T().remove("c", n),
    "rename": lambda n: T().rename("c", n, "c", "elsewhere").write("c", "elsewhere", 0, b"other"),
    "clone": lambda n: T().touch("c", "bare").clone("c", "bare", n),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", ["o", "copy"])
def test_a_change_of_one_side_does_not_show_on_the_other(store: Subject, side: str, change: str) -> None:
    store.apply(filled("o"))
    store.apply(T().clone("c", "o", "copy"))
    other = "copy" if side == "o" else "o"
    before = everything(store)[b"c"][other.encode()]
    store.apply(CHANGES[change](side))
    after = everything(store)[b"c"]
    assert after[other.encode()] == before
    assert after.get(side.encode()) != before


@pytest.mark.parametrize("change", CHANGES)
def test_a_clone_in_the_same_transaction_shows_what_stood_before_it(store: Subject, change: str) -> None:
    store.apply(filled("o"))
    before = everything(store)[b"c"][b"o"]
    transaction = T().clone("c", "o", "copy")
    transaction.operations += CHANGES[change]("o").operations
    store.apply(transaction)
    after = everything(store)[b"c"]
    assert after[b"copy"] == before
    assert after.get(b"o") != before


def test_clones_of_clones_outlive_every_origin(store: Subject) -> None:
    store.apply(filled("g0"))
    wanted = everything(store)[b"c"][b"g0"]
    for generation in range(1, 6):
        older = f"g{generation - 1}"
        store.apply(T().clone("c", older, f"g{generation}").write("c", older, generation, b"spoiled"))
        store.apply(T().remove("c", older))
    assert everything(store) == {b"c": {b"g5": wanted}}


def test_overlapping_clones_read_right_while_the_origin_is_overwritten(store: Subject) -> None:
    """Each clone keeps the bytes of its moment, though all share what was not yet overwritten."""
    moments, current = [], bytearray(DATA)
    store.apply(T().write("c", "o", 0, current))
    for moment in range(12):
        store.apply(T().clone("c", "o", f"clone-{moment}").clone_range("c", "o", f"part-{moment}", 9000, 30_000, 100))
        moments.append(bytes(current))
        start, patch = moment * 7_000, pattern(15_000, seed=moment)
        current[start : start + len(patch)] = patch
        store.apply(T().write("c", "o", start, patch))
    assert store.read("c", "o") == bytes(current)
    for moment, wanted in enumerate(moments):
        assert store.read("c", f"clone-{moment}") == wanted
        assert store.read("c", f"part-{moment}") == bytes(100) + wanted[9000:39_000]
