"""Arguments that are none: every operand of every operation, every argument of every query, of a wrong type or out of reach.

A float was acknowledged as durable and then kept the image from ever being checkpointed again; text for a bound of a range
latched the whole store; `bytes(5)` made names of five zeros; a model that had changed half of a transaction raised from the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import InvalidRequest, MdstoreError, NotFound, StoreClosed
from tests.conformance.subjects import Rig, T, everything

WRONG: dict[str, list[Any]] = {
    "name": [None, 5, 10**9, 1.5, [1, 2], object(), {}, True],
    "optional name": [5, 1.5, [1, 2], object(), {}, True],
    "number": [None, 1.5, 2.0, "1", b"1", [], object(), float("nan")],
    "optional number": [1.5, 2.0, "1", b"1", [], object(), float("inf")],
    "bytes": [None, 5, 10**9, 1.5, "x", [1, 2], object(), {}],
    "bound": [5, "a", 1.5, [1], object()],
    "keys": [None, 5, b"k", "k", bytearray(b"k"), [None], [b"k", 5], ["k"], object()],
    "items": [None, 5, b"kv", [b"kv"], [(b"a",)], [("a", b"b")], [(b"a", 1)], {b"a": "x"}, {"a": b"x"}, [None], object()],
}
FAR: list[int] = [-1, -(1 << 63), -(1 << 70), 1 << 32, (1 << 60) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64,
                  1 << 70, 10**5000, -(10**5000)]  # fmt: skip
NAMES_OUT_OF_REACH: list[Any] = ["", b"", "\udc80", b"n" * 100_000, bytearray(), memoryview(b"")]
Call = tuple[tuple[str, ...], tuple[Any, ...]]  # the kinds of the arguments, and good ones

OPERATIONS: dict[str, Call] = {
    "create_collection": (("name",), ("n",)),
    "remove_collection": (("name",), ("e",)),
    "split": (("name", "number", "number", "name"), ("c", 1, 0, "e")),
    "merge": (("name", "name"), ("c", "e")),
    "create": (("name", "name"), ("c", "n")),
    "touch": (("name", "name"), ("c", "n")),
    "remove": (("name", "name"), ("c", "o")),
    "rename": (("name", "name", "name", "name"), ("c", "o", "e", "z")),
    "clone": (("name", "name", "name"), ("c", "o", "z")),
    "at_revision": (("number",), (3,)),
    "remove_revision": (("name", "name", "number"), ("c", "o", 1)),
    "trim_revisions": (("name", "name", "number"), ("c", "o", 1)),
    "write": (("name", "name", "number", "bytes"), ("c", "o", 0, b"data")),
    "zero": (("name", "name", "number", "number"), ("c", "o", 0, 10)),
    "truncate": (("name", "name", "number"), ("c", "o", 5)),
    "clone_range": (("name", "name", "name", "number", "number", "number"), ("c", "o", "z", 0, 4, 0)),
    "alloc_hint": (("name", "name", "number", "number", "number"), ("c", "o", 1, 1, 0)),
    "setattr": (("name", "name", "name", "bytes"), ("c", "o", "a", b"v")),
    "rmattr": (("name", "name", "name"), ("c", "o", "a")),
    "map_set": (("name", "name", "items"), ("c", "o", {b"k": b"v"})),
    "map_remove": (("name", "name", "keys"), ("c", "o", [b"k"])),
    "map_remove_range": (("name", "name", "bound", "bound"), ("c", "o", b"a", b"z")),
    "map_clear": (("name", "name"), ("c", "o")),
    "map_set_header": (("name", "name", "bytes"), ("c", "o", b"h")),
    "set_floor": (("number", "optional name"), (1, "c")),
}
QUERIES: dict[str, Call] = {
    "exists": (("name", "name"), ("c", "o")),
    "stat": (("name", "name"), ("c", "o")),
    "read": (("name", "name", "number", "optional number"), ("c", "o", 0, 3)),
    "extents": (("name", "name", "number", "optional number"), ("c", "o", 0, 3)),
    "getattr": (("name", "name", "name"), ("c", "o", "a")),
    "getattrs": (("name", "name"), ("c", "o")),
    "map_get": (("name", "name", "bytes"), ("c", "o", b"k")),
    "map_get_many": (("name", "name", "keys"), ("c", "o", [b"k"])),
    "map_header": (("name", "name"), ("c", "o")),
    "map_items": (("name", "name", "bound", "bound"), ("c", "o", b"a", b"z")),
    "list_objects": (("name", "optional name", "optional name", "optional number"), ("c", "a", "z", 3)),
    "list_revised": (("name", "optional name", "optional name", "optional number"), ("c", "a", "z", 3)),
    "revisions": (("name", "name"), ("c", "o")),
}
AT_A_REVISION = ("exists", "stat", "read", "extents", "getattr", "getattrs", "map_get", "map_get_many", "map_header", "map_items")


def fill(rig: Rig) -> dict[bytes, dict[Any, Any]]:
    """Something to be changed; `bare` has no map, which must make no difference."""
    first = T().create_collection("e").write("c", "o", 0, b"hello").setattr("c", "o", "a", b"v").touch("c", "bare")
    rig.store.apply(first.map_set("c", "o", {b"k": b"v", b"l": b"w"}))
    return everything(rig.store)


def each_with(table: dict[str, Call], values: Callable[[str], list[Any]]) -> list[tuple[str, tuple[Any, ...], Any]]:
    """Every call of the table with one argument replaced by each of the values."""
    return [
        (name, (*good[:at], value, *good[at + 1 :]), value)
        for name, (kinds, good) in table.items()
        for at, kind in enumerate(kinds)
        for value in values(kind)
    ]


def named(kind: str) -> list[Any]:
    return WRONG[kind]


def far(kind: str) -> list[Any]:
    return FAR if kind.endswith("number") else NAMES_OUT_OF_REACH if kind == "name" else []


def test_an_operand_of_a_wrong_type_is_refused_while_building() -> None:
    for name, arguments, value in each_with(OPERATIONS, named):
        transaction = T().touch("c", "first")
        with pytest.raises(TypeError):
            print(name, arguments, getattr(transaction, name)(*arguments))
        assert (len(transaction), transaction.payload_bytes) == (1, 0), (name, value)
    for value in WRONG["optional number"]:
        with pytest.raises(TypeError):
            T(epoch=value)
    for value in WRONG["number"]:
        with pytest.raises(TypeError):
            T(rev=value)


def test_operands_out_of_reach_are_refused_or_applied_whole(rig: Rig) -> None:
    """Whatever is accepted can be made durable, checkpointed and replayed."""
    fill(rig)
    for name, arguments, _ in each_with(OPERATIONS, far):
        before = everything(rig.store)
        transaction = T().touch("c", "first")
        try:
            getattr(transaction, name)(*arguments)
        except InvalidRequest:
            assert (len(transaction), transaction.payload_bytes) == (1, 0), (name, arguments)
            continue
        try:
            rig.store.apply(transaction)
        except MdstoreError:
            assert everything(rig.store) == before, (name, arguments)
        rig.store.apply(T().touch("c", "o"))
    for how in (rig.kill, rig.reopen):
        held = everything(rig.store)
        how()
        assert everything(rig.store) == held


def test_numbers_are_plain_in_the_log(rig: Rig) -> None:
    """True is 1 to Python, and something else to MessagePack and to a checker."""
    fill(rig)
    transaction = T(epoch=True, rev=True).write("c", "o", True, b"x").truncate("c", "o", True)
    rig.store.apply(transaction.set_floor(True, "c").alloc_hint("c", "o", True, True, True))
    numbers = [operand for row in transaction.operations for operand in row[1:] if not isinstance(operand, bytes)]
    assert {type(operand) for operand in (*numbers, transaction.epoch)} == {int}


def test_what_is_no_transaction_is_refused(rig: Rig) -> None:
    before = fill(rig)
    for given in (None, 5, "x", [], [T()]):
        for way in (rig.store.submit, rig.store.apply):
            with pytest.raises(TypeError, match="a Transaction is submitted"):
                way(given)  # type: ignore[arg-type]
    for epoch, error in (("x", TypeError), (1.5, TypeError), (1 << 64, InvalidRequest), (-1, InvalidRequest)):
        transaction = T().touch("c", "first")
        transaction.epoch = epoch  # type: ignore[assignment]
        with pytest.raises(error):
            rig.store.submit(transaction)
    with pytest.raises(TypeError, match="a callback is wanted"):
        rig.store.submit(T().noop()).add_done_callback(5)  # type: ignore[arg-type]
    assert everything(rig.store) == before


def test_an_argument_of_a_query_of_a_wrong_type_is_refused(rig: Rig) -> None:
    before = fill(rig)
    calls = each_with(QUERIES, named)
    calls += [(name, ("c", "bare", *arguments[2:]), value) for name, arguments, value in calls if arguments[:2] == ("c", "o")]
    Random(5).shuffle(calls)
    for name, arguments, _ in calls:
        with pytest.raises(TypeError):
            print(name, arguments, list(getattr(rig.store, name)(*arguments)))
    for name in AT_A_REVISION:
        for value in WRONG["number"]:
            with pytest.raises(TypeError):
                print(name, value, getattr(rig.store, name)(*QUERIES[name][1], rev=value))
    assert everything(rig.store) == before


OUT_OF_REACH: dict[str, Any] = {"name": "\udc80", "optional name": "\udc80", "number": -1, "optional number": -1}


def looked_at(query: str) -> list[tuple[int | str, str]]:
    """Places and kinds of a query's arguments in the order in which they are looked at: what is asked for (of a listing, the
    limit before the bounds), collection, name, revision."""
    kinds = QUERIES[query][0]
    names = 1 if query.startswith("list_") else 2
    asked = sorted(range(names, len(kinds)), key=lambda at: (not query.startswith("list_") or at != 3, at))
    order: list[tuple[int | str, str]] = [(at, kinds[at]) for at in (*asked, *range(names))]
    return [*order, ("rev", "number")] if query in AT_A_REVISION else order


def asked(store: ObjectStore, query: str, changed: dict[int | str, Any], collection: str = "c") -> list[Any] | None:
    """The answer to a query with some of its arguments changed."""
    good = (collection, *QUERIES[query][1][1:])
    arguments = [changed.get(at, value) for at, value in enumerate(good)]
    answer = getattr(store, query)(*arguments, **({"rev": changed["rev"]} if "rev" in changed else {}))
    return list(answer) if hasattr(answer, "__next__") else None


@pytest.mark.parametrize("query", QUERIES)
def test_of_two_arguments_that_are_none_every_engine_names_the_same(rig: Rig, query: str) -> None:
    fill(rig)
    order = looked_at(query)
    for at, (first, kind) in enumerate(order):
        for second, other in order[at + 1 :]:
            if other in OUT_OF_REACH:
                with pytest.raises(TypeError):
                    asked(rig.store, query, {first: WRONG[kind][-2], second: OUT_OF_REACH[other]})
            if kind in OUT_OF_REACH:
                with pytest.raises(InvalidRequest):
                    asked(rig.store, query, {first: OUT_OF_REACH[kind], second: WRONG[other][-2]})


@pytest.mark.parametrize("query", QUERIES)
def test_arguments_are_looked_at_before_the_store(rig: Rig, query: str) -> None:
    """A missing collection was told before a name that is none, by some engines; by others, that the store was closed."""
    fill(rig)
    with pytest.raises(NotFound, match="collection"):
        asked(rig.store, query, {}, "gone")

    def refused_all(collection: str) -> None:
        for place, kind in looked_at(query):
            with pytest.raises(TypeError):
                asked(rig.store, query, {place: WRONG[kind][-2]}, collection)
            if kind in OUT_OF_REACH:
                with pytest.raises(InvalidRequest):
                    asked(rig.store, query, {place: OUT_OF_REACH[kind]}, collection)

    refused_all("gone")
    rig.store.close()
    refused_all("c")
    with pytest.raises(StoreClosed):
        asked(rig.store, query, {})


def test_numbers_of_a_query_out_of_reach_are_refused_or_answered(rig: Rig) -> None:
    before = fill(rig)
    for name, arguments, _ in each_with(QUERIES, far):
        try:
            getattr(rig.store, name)(*arguments)
        except MdstoreError:
            continue
    for name in AT_A_REVISION:
        for value in FAR:
            try:
                getattr(rig.store, name)(*QUERIES[name][1], rev=value)
            except MdstoreError:
                continue
            assert 0 <= value < 1 << 64, (name, value)
    for value in (*FAR, *WRONG["number"]):
        with pytest.raises((MdstoreError, TypeError)):
            rig.store.set_floor_and_read("c", "o", -1, value)
        with pytest.raises((MdstoreError, TypeError)):
            rig.store.set_floor_and_read("c", "o", value if not isinstance(value, int) else -1)
    assert rig.store.read("c", "o", 0, 1 << 70) == b"hello"
    assert rig.store.read("c", "o", 1 << 70, 5) == b""
    assert rig.store.list_objects("c", limit=1 << 70) == [b"bare", b"o"]
    assert everything(rig.store) == before


def test_buffers_are_copied_as_bytes_whatever_their_items(rig: Rig) -> None:
    """`len` of a view of numbers counts numbers; a mutable bound of a range was kept, not copied."""
    fill(rig)
    wide, every_other, start = memoryview(b"abcdefgh").cast("H"), memoryview(b"abcdefgh")[::2], bytearray(b"k")
    transaction = T().write("c", "o", 0, wide).setattr("c", "o", "a", every_other).map_remove_range("c", "o", start, None)  # type: ignore[arg-type]
    assert transaction.payload_bytes == 8 + 1 + 4
    start[:] = b"z"
    rig.store.apply(transaction)
    assert rig.store.read("c", "o") == b"abcdefgh"
    assert rig.store.getattr("c", "o", "a") == b"aceg"
    assert list(rig.store.map_items("c", "o")) == []
    assert rig.store.map_get("c", "o", bytearray(b"k")) is None
