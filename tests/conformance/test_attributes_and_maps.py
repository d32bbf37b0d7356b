"""Attributes, and the ordered map with its header."""

from __future__ import annotations

from typing import Any

import pytest

from mdstore.errors import InvalidRequest, LimitExceeded, NotFound
from mdstore.limits import ATTR_NAME_MAX, ATTR_VALUE_MAX, MAP_KEY_MAX, USER_BLOB_MAX
from tests.conformance.subjects import Subject, T

MANY = {b"%05d" % number: b"value %d" % number for number in range(3000)}


def items(store: Subject, *bounds: bytes | None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
    """The records of object `o` in the range."""
    return list(store.map_items("c", "o", *bounds, reverse=reverse))


# -- attributes ------------------------------------------------------------------------------------------------------------


def test_setattr_makes_the_object_and_replaces_the_value(store: Subject) -> None:
    store.apply(T().setattr("c", "o", "a", b"1").setattr("c", "o", "empty", b""))
    store.apply(T().setattr("c", "o", "a", b"longer than before"))
    assert store.getattr("c", "o", "a") == b"longer than before"
    assert store.getattr("c", "o", "empty") == b""
    assert store.getattrs("c", "o") == {b"a": b"longer than before", b"empty": b""}
    assert store.stat("c", "o").attributes == 2


def test_no_object_and_no_attribute_are_different_answers(store: Subject) -> None:
    store.apply(T().setattr("c", "o", "a", b"1"))
    for collection, name, kind in (("c", "o", "attribute"), ("c", "p", "object"), ("none", "o", "collection")):
        with pytest.raises(NotFound) as caught:
            store.getattr(collection, name, "b")
        assert caught.value.kind == kind


def test_an_attribute_name_over_the_limit_is_one_that_is_not_there(store: Subject) -> None:
    store.apply(T().setattr("c", "o", "a", b"1"))
    with pytest.raises(NotFound) as caught:
        store.getattr("c", "o", b"a" * (ATTR_NAME_MAX + 300))
    assert caught.value.kind == "attribute"


def test_rmattr_removes_one_attribute_only(store: Subject) -> None:
    store.apply(T().setattr("c", "o", "a", b"1").setattr("c", "o", "a\0", b"2").setattr("c", "o", "b", b"3"))
    store.apply(T().rmattr("c", "o", "a"))
    assert store.getattrs("c", "o") == {b"a\0": b"2", b"b": b"3"}
    assert store.stat("c", "o").attributes == 2


@pytest.mark.parametrize("size", [ATTR_VALUE_MAX - 1, ATTR_VALUE_MAX])
@pytest.mark.parametrize("length", [ATTR_NAME_MAX - 1, ATTR_NAME_MAX])
def test_attributes_up_to_their_limits(store: Subject, length: int, size: int) -> None:
    wanted = {b"n" * (length - 1) + tail: tail * size for tail in (b"a", b"b", b"\xff")}
    transaction = T()
    for name, value in wanted.items():
        transaction.setattr("c", "o", name, value)
    store.apply(transaction)
    assert store.getattrs("c", "o") == wanted
    store.apply(T().rmattr("c", "o", b"n" * (length - 1) + b"b"))
    assert len(store.getattrs("c", "o")) == 2


def test_an_object_may_have_many_attributes(store: Subject) -> None:
    wanted = {b"attribute %d" % number: b"v" * number for number in range(300)}
    transaction = T()
    for name, value in wanted.items():
        transaction.setattr("c", "o", name, value)
    store.apply(transaction)
    assert store.getattrs("c", "o") == wanted


# -- maps ------------------------------------------------------------------------------------------------------------------


def test_map_set_makes_the_object_and_the_last_pair_of_a_key_wins(store: Subject) -> None:
    store.apply(T().map_set("c", "o", [(b"k", b"1"), (b"l", b""), (b"k", b"2")]).map_set("c", "new", {}))
    store.apply(T().map_set("c", "o", {b"m": b"3"}))
    assert items(store) == [(b"k", b"2"), (b"l", b""), (b"m", b"3")]
    assert store.map_get("c", "o", b"k") == b"2"
    assert store.map_get("c", "o", b"l") == b""
    assert store.stat("c", "o").map_keys == 3
    assert items(store, b"n") == []
    assert store.exists("c", "new")


def test_pairs_are_copied_when_they_are_added_whatever_buffers_they_are(store: Subject) -> None:
    key, value = bytearray(b"key"), bytearray(b"value")
    pairs = [(key, memoryview(b"a value")[2:]), [memoryview(b"other"), value], (b"plain", b"bytes")]
    transaction = T().map_set("c", "o", (pair for pair in pairs))  # type: ignore[misc]
    key[:] = value[:] = b"changed"
    store.apply(transaction)
    assert items(store) == [(b"key", b"value"), (b"other", b"value"), (b"plain", b"bytes")]


@pytest.mark.parametrize("number", [0, 1, 5000])
def test_a_pair_that_cannot_be_is_refused_by_its_number(number: int) -> None:
    good = [(b"%d" % n, b"v") for n in range(number)]
    for bad, error in (((b"", b"v"), InvalidRequest), ((b"k" * (MAP_KEY_MAX + 1), b"v"), LimitExceeded), (("k", b"v"), TypeError),
                       ((b"k", 5), TypeError), ((5, b"v"), TypeError)):  # fmt: skip
        given: list[Any] = [*good, bad, (b"k", b"v")]
        with pytest.raises(error, match=f"pair {number}: "):
            T().map_set("c", "o", given)


def test_a_key_that_is_not_there_is_none(store: Subject) -> None:
    store.apply(T().map_set("c", "o", {b"k": b"v"}).touch("c", "bare"))
    assert store.map_get("c", "o", b"") is None
    assert store.map_get("c", "o", b"x" * 3000) is None
    assert store.map_get("c", "bare", b"k") is None
    assert store.map_get_many("c", "o", [b"z", b"k", b"a", b"k"]) == [None, b"v", None, b"v"]
    assert store.map_get_many("c", "bare", [b"k", b"l"]) == [None, None]
    assert store.map_get_many("c", "o", []) == []


@pytest.mark.parametrize("query", ["map_get", "map_get_many"])
def test_a_key_of_an_object_that_is_not_there_is_not_found(store: Subject, query: str) -> None:
    for collection, kind in (("c", "object"), ("none", "collection")):
        with pytest.raises(NotFound) as caught:
            getattr(store, query)(collection, "o", b"k" if query == "map_get" else [b"k"])
        assert caught.value.kind == kind


def test_map_remove_ignores_keys_that_are_not_there(store: Subject) -> None:
    store.apply(T().map_set("c", "o", {b"a": b"1", b"b": b"2", b"c": b"3"}).touch("c", "bare"))
    store.apply(T().map_remove("c", "o", [b"b", b"zz", b"", b"b", b"x" * 3000]).map_remove("c", "bare", [b"k"]))
    assert items(store) == [(b"a", b"1"), (b"c", b"3")]
    assert store.stat("c", "o").map_keys == 2


@pytest.mark.parametrize("start", [None, b"", b"00000", b"00500", b"00500x", b"02999", b"9"])
@pytest.mark.parametrize("stop", [None, b"", b"00000", b"00500", b"02000\0", b"9"])
def test_ranges_in_both_directions_and_removal_of_a_range(
    store: Subject, start: bytes | None, stop: bytes | None
) -> None:
    store.apply(T().map_set("c", "o", MANY))
    inside = [k for k in MANY if (start is None or k >= start) and (stop is None or k < stop)]
    wanted = [(key, MANY[key]) for key in inside]
    assert items(store, start, stop) == wanted
    assert items(store, start, stop, reverse=True) == wanted[::-1]
    store.apply(T().map_set_header("c", "o", b"h").map_remove_range("c", "o", start, stop))
    gone = set(inside)
    assert items(store) == [record for record in MANY.items() if record[0] not in gone]
    assert store.map_header("c", "o") == b"h"
    assert store.stat("c", "o").map_keys == len(MANY) - len(wanted)


def test_map_clear_removes_keys_and_header_and_nothing_else(store: Subject) -> None:
    store.apply(T().map_set("c", "o", MANY).map_set_header("c", "o", b"header").setattr("c", "o", "a", b"1"))
    store.apply(T().write("c", "o", 0, b"data").touch("c", "bare"))
    store.apply(T().map_clear("c", "o").map_clear("c", "bare"))
    assert items(store) == []
    assert items(store, reverse=True) == []
    assert store.map_header("c", "o") == b""
    assert store.getattrs("c", "o") == {b"a": b"1"}
    assert store.read("c", "o") == b"data"
    store.apply(T().map_set("c", "o", {b"again": b"1"}))
    assert items(store) == [(b"again", b"1")]


def test_the_header_is_no_key_and_makes_the_object(store: Subject) -> None:
    store.apply(T().map_set_header("c", "o", b"first").map_set_header("c", "empty", b""))
    store.apply(T().map_set_header("c", "o", b"header"))
    assert store.map_header("c", "o") == b"header"
    assert store.map_header("c", "empty") == b""
    assert items(store) == []
    assert items(store, None, None, reverse=True) == []
    assert store.map_get("c", "o", b"") is None
    assert store.stat("c", "o").map_keys == 0
    store.apply(T().map_set("c", "o", {b"k": b"v"}).map_remove_range("c", "o", None, None))
    assert store.map_header("c", "o") == b"header"
    store.apply(T().map_set_header("c", "o", b""))
    assert store.map_header("c", "o") == b""


@pytest.mark.parametrize("size", [USER_BLOB_MAX - 1, USER_BLOB_MAX])
def test_headers_up_to_the_limit(store: Subject, size: int) -> None:
    store.apply(T().map_set("c", "o", {b"k": b"v"}).map_set_header("c", "o", b"h" * size))
    assert store.map_header("c", "o") == b"h" * size
    assert items(store) == [(b"k", b"v")]


@pytest.mark.parametrize("length", [1, 500, 502, 503, 504, 511, MAP_KEY_MAX - 1, MAP_KEY_MAX])
def test_map_keys_of_any_bytes_up_to_the_limit(store: Subject, length: int) -> None:
    wanted = {b"k" * (length - 1) + bytes([tail]): bytes([tail]) * 3 for tail in range(256)}
    wanted[b"\0"] = b"nul"
    wanted[b"\xff" * length] = b"last"
    store.apply(T().map_set("c", "o", wanted).map_set("c", "p", {b"other": b"object"}))
    ordered = sorted(wanted.items())
    assert items(store) == ordered
    assert items(store, reverse=True) == ordered[::-1]
    for bound in (b"k" * (length - 1) + b"\x80", b"k" * length + b"\0", b"k" * (length + 1)):
        assert items(store, bound) == [record for record in ordered if record[0] >= bound]
        assert items(store, None, bound, reverse=True) == [record for record in ordered if record[0] < bound][::-1]
    gone = [key for key, _ in ordered[10:20]]
    store.apply(T().map_remove("c", "o", gone).map_remove_range("c", "o", ordered[30][0], ordered[40][0]))
    assert items(store) == ordered[:10] + ordered[20:30] + ordered[40:]
    assert store.stat("c", "o").map_keys == len(ordered) - 20
    assert store.map_get_many("c", "o", [*gone, ordered[0][0]]) == [None] * 10 + [ordered[0][1]]


@pytest.mark.parametrize("size", [1000, 4096, 100_000, 300_000])
def test_large_values_beside_small_ones(store: Subject, size: int) -> None:
    wanted = {b"a": b"small", b"b": bytes(range(250)) * (size // 250), b"c": b"v" * size, b"d": b""}
    store.apply(T().map_set("c", "o", wanted))
    assert dict(items(store)) == wanted
    store.apply(T().map_set("c", "o", {b"b": b"now small", b"d": b"w" * size}).map_remove("c", "o", [b"c"]))
    assert items(store) == [(b"a", b"small"), (b"b", b"now small"), (b"d", b"w" * size)]


# -- iteration beside writers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 1500])
def test_iteration_shows_the_map_as_it_was_at_the_call(store: Subject, taken: int, reverse: bool) -> None:
    store.apply(T().map_set("c", "o", MANY))
    walk = store.map_items("c", "o", reverse=reverse)
    seen = [next(walk) for _ in range(taken)]
    store.apply(T().map_set("c", "o", {b"00000x": b"new", b"02999": b"changed", b"9": b"new"}))
    store.apply(T().map_remove_range("c", "o", b"00100", b"02900"))
    store.apply(T().map_clear("c", "o"))
    store.apply(T().remove("c", "o"))
    store.apply(T().map_set("c", "o", {b"%05d" % number: b"other" for number in range(0, 3000, 7)}))
    seen += walk
    assert seen == (list(MANY.items())[::-1] if reverse else list(MANY.items()))


def test_several_iterations_of_different_moments_at_once(store: Subject) -> None:
    store.apply(T().map_set("c", "o", {b"moment": b"0", b"pad": b"p" * 5000}))
    walks = []
    plain = store.rig.store
    for moment in range(1, 20):
        walks.append(plain.map_items("c", "o", b"moment", b"n"))
        plain.apply(T().map_set("c", "o", {b"moment": b"%d" % moment}))
    assert [dict(walk)[b"moment"] for walk in walks] == [b"%d" % moment for moment in range(19)]


def test_an_iteration_left_unfinished_hinders_nobody(store: Subject) -> None:
    store.apply(T().map_set("c", "o", MANY))
    walks = [store.rig.store.map_items("c", "o") for _ in range(300)]
    assert {next(walk)[0] for walk in walks} == {b"00000"}
    store.apply(T().map_clear("c", "o").write("c", "o", 0, b"x" * 100_000))
    assert items(store) == []
