"""The in-memory engine's own promises: crashes, prefixes, failures to order."""

from __future__ import annotations

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import DeviceFailed, StoreClosed
from mdstore.store.transaction import Transaction

T = Transaction


def delayed() -> MemStore:
    """A delayed store with a durable, empty collection."""
    store = MemStore(delayed=True)
    store.apply(T().create_collection("c"))
    return store


def names(store: MemStore) -> list[bytes]:
    """The objects of the collection, if it is there."""
    return store.list_objects("c") if store.list_collections() else []


def test_a_crash_keeps_what_was_waited_for_and_drops_the_rest() -> None:
    store = delayed()
    commits = [store.submit(T().touch("c", f"{number}")) for number in range(5)]
    assert not any(commit.durable for commit in commits)
    commits[2].wait()
    assert [commit.durable for commit in commits] == [True, True, True, False, False]
    assert names(store.crash()) == [b"0", b"1", b"2"]


def test_a_crashed_store_is_dead_and_calls_nobody_back() -> None:
    store = delayed()
    answers: list[BaseException | None] = []
    commit = store.submit(T().touch("c", "o"))
    commit.add_done_callback(answers.append)
    survivor = store.crash()
    for call in (store.sync, commit.wait, lambda: store.exists("c", "o"), lambda: store.submit(T())):
        with pytest.raises(StoreClosed):
            call()
    store.close()
    assert answers == []
    survivor.apply(T().touch("c", "p"))
    assert names(survivor) == [b"p"]


def test_crashes_one_after_another_go_on_from_one_another() -> None:
    store = delayed()
    for round_number in range(4):
        store.apply(T().touch("c", f"kept {round_number}"))
        store.submit(T().touch("c", f"lost {round_number}"))
        store = store.crash()
    assert names(store) == [b"kept 0", b"kept 1", b"kept 2", b"kept 3"]


def test_durable_prefixes_are_every_state_a_crash_may_leave_and_independent() -> None:
    store = delayed()
    for number in range(3):
        store.submit(T().touch("c", f"{number}").map_set("c", "map", {b"count": b"%d" % number}))
    states = store.durable_prefixes()
    store.submit(T().touch("c", "later"))
    found = list(states)
    assert [names(state) for state in found] == [
        [],
        [b"0", b"map"],
        [b"0", b"1", b"map"],
        [b"0", b"1", b"2", b"map"],
    ]
    assert found[2].map_get("c", "map", b"count") == b"1"
    found[1].apply(T().remove("c", "0").map_clear("c", "map"))
    found[1].submit(T().touch("c", "not durable"))
    assert names(found[1].crash()) == [b"map"]
    assert names(found[2]) == [b"0", b"1", b"map"]
    assert dict(found[3].map_items("c", "map")) == {b"count": b"2"}
    assert names(store) == [b"0", b"1", b"2", b"later", b"map"]


def test_prefixes_of_a_store_that_delays_nothing_are_its_one_state() -> None:
    store = MemStore()
    store.submit(T().create_collection("c").touch("c", "o"))
    assert [names(state) for state in store.durable_prefixes()] == [[b"o"]]
    assert names(store.crash()) == [b"o"]


def test_a_broken_medium_fails_what_was_not_durable_and_every_later_call() -> None:
    store = delayed()
    answers: list[tuple[str, BaseException | None]] = []
    safe, lost = store.submit(T().touch("c", "safe")), store.submit(T().touch("c", "lost"))
    lost.add_done_callback(lambda error: answers.append(("before", error)))
    safe.wait()
    broken = DeviceFailed("flush", "memory", "told to")
    store.fail(broken)
    lost.add_done_callback(lambda error: answers.append(("after", error)))
    safe.add_done_callback(lambda error: answers.append(("safe", error)))
    assert answers == [("before", broken), ("after", broken), ("safe", None)]
    safe.wait()
    for call in (lost.wait, store.sync, lambda: store.submit(T()), lambda: store.read("c", "safe")):
        with pytest.raises(DeviceFailed):
            call()
    assert names(store.crash()) == [b"safe"]


def test_callbacks_come_in_the_order_of_their_commits() -> None:
    store = delayed()
    order: list[int] = []
    commits = [store.submit(T().noop()) for _ in range(5)]
    for number in (3, 0, 4, 1, 2):
        commits[number].add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    commits[1].wait()
    assert order == [0, 1]
    store.sync()
    assert order == [0, 1, 2, 3, 4]
