"""Opening, closing, losing the process, read-only stores, statistics, capabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import ReadOnly, StoreClosed
from tests.conformance.subjects import Rig, Subject, T, everything

CALLS: dict[str, Callable[[ObjectStore], Any]] = {
    "submit": lambda store: store.submit(T().noop()),
    "apply": lambda store: store.apply(T().touch("c", "o")),
    "sync": lambda store: store.sync(),
    "exists": lambda store: store.exists("c", "o"),
    "stat": lambda store: store.stat("c", "o"),
    "read": lambda store: store.read("c", "o"),
    "extents": lambda store: store.extents("c", "o"),
    "getattr": lambda store: store.getattr("c", "o", "a"),
    "getattrs": lambda store: store.getattrs("c", "o"),
    "map_get": lambda store: store.map_get("c", "o", b"k"),
    "map_get_many": lambda store: store.map_get_many("c", "o", [b"k"]),
    "map_header": lambda store: store.map_header("c", "o"),
    "map_items": lambda store: list(store.map_items("c", "o")),
    "list_objects": lambda store: store.list_objects("c"),
    "list_collections": lambda store: store.list_collections(),
    "statistics": lambda store: store.statistics(),
}
CHANGES = {"submit", "apply"}


def filled() -> T:
    """One object with something in every stream."""
    transaction = T().write("c", "o", 0, b"data" * 5000).setattr("c", "o", "a", b"1")
    return transaction.map_set("c", "o", {b"k": b"v"}).map_set_header("c", "o", b"h")


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_says_so(rig: Rig, call: str) -> None:
    rig.store.apply(filled())
    CALLS[call](rig.store)
    rig.store.close()
    with pytest.raises(StoreClosed):
        CALLS[call](rig.store)


def test_closing_twice_is_no_error(rig: Rig) -> None:
    rig.store.close()
    rig.store.close()


def test_closing_makes_everything_durable(rig: Rig) -> None:
    commits = [rig.store.submit(filled()), rig.store.submit(T().touch("c", "last"))]
    before = everything(rig.store)
    store = rig.store
    rig.reopen()
    assert all(commit.durable for commit in commits)
    assert everything(rig.store) == before
    if store is not rig.store:
        with pytest.raises(StoreClosed):
            store.exists("c", "o")


@pytest.mark.parametrize("waited", [0, 1, 17, 39])
def test_a_crash_leaves_a_prefix_that_holds_everything_waited_for(rig: Rig, waited: int) -> None:
    if not rig.store.capabilities.durable:
        assert type(rig.store).__name__ == "MemStore"  # the only engine that may promise nothing
        return
    commits = [
        rig.store.submit(
            T().map_set("c", "log", {b"%03d" % number: b"v" * 300}).write("c", "count", 0, b"%03d" % number)
        )
        for number in range(40)
    ]
    commits[waited].wait()
    rig.kill()
    keys = [key for key, _ in rig.store.map_items("c", "log")]
    assert len(keys) > waited
    assert keys == [b"%03d" % number for number in range(len(keys))]
    assert rig.store.read("c", "count") == keys[-1]
    rig.store.apply(T().write("c", "after", 0, b"goes on"))
    assert rig.store.read("c", "after") == b"goes on"


@pytest.mark.parametrize("call", CALLS)
def test_a_read_only_store_answers_and_refuses_changes(rig: Rig, call: str) -> None:
    rig.store.apply(filled())
    before = everything(rig.store)
    store = rig.open_read_only()
    if store is None:
        assert not rig.store.read_only
        return
    try:
        assert store.read_only
        if call in CHANGES:
            with pytest.raises(ReadOnly):
                CALLS[call](store)
        else:
            CALLS[call](store)
        assert everything(store) == before
    finally:
        store.close()
    rig.reopen()
    assert everything(rig.store) == before


def test_statistics_are_plain_numbers_that_follow_the_content(store: Subject) -> None:
    empty = store.statistics()
    transaction = T()
    for number in range(50):
        transaction.write("c", f"o{number}", 0, b"x" * 10_000)
    store.apply(transaction)
    full = store.statistics()
    assert all(type(value) in (int, float) for value in full.values())
    assert (empty["objects"], full["objects"]) == (0, 50)
    assert full["allocated_bytes"] >= empty["allocated_bytes"] + 50 * 10_000
    assert 0 <= full["free_bytes"] <= full["size_bytes"]
    assert full["allocated_bytes"] <= full["size_bytes"]
    transaction = T()
    for number in range(50):
        transaction.remove("c", f"o{number}")
    store.apply(transaction)
    assert store.statistics()["objects"] == 0


def test_capabilities_say_what_the_suite_relies_on(rig: Rig) -> None:
    assert rig.store.capabilities.multi_object_transactions
    assert rig.store.capabilities.ordered_commits
    assert rig.store.read_only is False
