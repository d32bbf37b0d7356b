"""A view of a map stays right whatever happens to its object, to its store, and in other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain
from random import Random
from typing import Any

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.errors import (
    DeviceFailed,
    MdstoreError,
    StoreClosed,
)
from mdstore.store.check import check
from mdstore.store.mapview import MapView
from mdstore.store.onode import Onode
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit.test_store_mapview import SMALL, make, reopened

# -- the object behind the view ----------------------------------------------------------------------------------------


def remove(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().remove("c", "o"))
    return {}


def remove_and_make_again(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().remove("c", "o").map_set("c", "o", {b"k": b"again"}))
    return {b"k": b"again"}


def rename_away(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().rename("c", "o", "c", "elsewhere"))
    return {}


def rename_another_here(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().map_set("c", "p", {b"k": b"other"}))
    store.apply(Transaction().remove("c", "o").rename("c", "p", "c", "o"))
    return {b"k": b"other"}


def clone_another_here(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().map_set("c", "p", {b"k": b"cloned"}).clone("c", "p", "o"))
    return {b"k": b"cloned"}


def clone_from_here_and_write_both(store: Store, view: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().clone("c", "o", "p"))
    store.apply(Transaction().map_set("c", "p", {b"k": b"in the clone"}))
    view[b"l"] = b"in the origin"
    assert store.map_get("c", "p", b"k") == b"in the clone"
    return {b"k": b"v", b"l": b"in the origin"}


def remove_the_collection_and_make_it_again(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().remove("c", "o").remove_collection("c").create_collection("c").map_set("c", "o", {b"n": b"w"}))
    return {b"n": b"w"}


def crowd_out(store: Store) -> None:
    """Use more objects than are kept in memory."""
    for round_ in range(3):
        for i in range(200):
            store.submit(Transaction().map_set("c", f"filler-{i}", {b"x": b"%d" % round_}))


def evict(store: Store, _: MapView) -> dict[bytes, bytes]:
    crowd_out(store)
    assert all(not key.endswith(b"o") for key in store.tables.objects.cached)
    return {b"k": b"v"}


def evict_and_change_by_another_way(store: Store, view: MapView) -> dict[bytes, bytes]:
    evict(store, view)
    store.apply(Transaction().map_set("c", "o", {b"k": b"changed"}))
    return {b"k": b"changed"}


def evict_change_and_reuse_the_pages(store: Store, view: MapView) -> dict[bytes, bytes]:
    evict_and_change_by_another_way(store, view)
    for i in range(6):
        store.apply(Transaction().map_set("c", "o", {b"k": b"changed %d" % i}))
        store.checkpoint()
    return {b"k": b"changed 5"}


def checkpoint(store: Store, _: MapView) -> dict[bytes, bytes]:
    for _ in range(3):
        store.checkpoint()
    return {b"k": b"v"}


def clear_by_another_way(store: Store, _: MapView) -> dict[bytes, bytes]:
    store.apply(Transaction().map_clear("c", "o"))
    return {}


EVENTS = [
    remove, remove_and_make_again, rename_away, rename_another_here, clone_another_here, clone_from_here_and_write_both,
    remove_the_collection_and_make_it_again, evict, evict_and_change_by_another_way, evict_change_and_reuse_the_pages,
    checkpoint, clear_by_another_way,
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("filled", [0, 300])
def test_a_view_stays_right_when_its_object_is(event: Callable[[Store, MapView], dict[bytes, bytes]], filled: int) -> None:
    store, device = make(size=2 << 20)
    view = store.map("c", "o", sync=False)
    rest = {b"r%03d" % i: b"%d" % i for i in range(filled)}
    view.update(rest)
    view[b"k"] = b"v"
    assert view[b"k"] == b"v", "the object is held now"
    expected = event(store, view)
    there = dict(store.map_items("c", "o")) if store.exists("c", "o") else {}
    assert {key: value for key, value in there.items() if not key.startswith(b"r")} == expected
    assert all(view.get(key) == value for key, value in there.items())
    assert view.get(b"k") == expected.get(b"k")
    assert view.get(b"l") == expected.get(b"l")
    assert (dict(view), len(view)) == (there, len(there))
    view[b"after"] = b"written"
    assert view[b"after"] == b"written"
    assert store.map_get("c", "o", b"after") == b"written"
    assert not check(store, deep=True)
    store.sync()
    assert dict(reopened(device).map("c", "o")) == {**there, b"after": b"written"}


def test_a_closed_store_answers_no_read() -> None:
    store, _ = make()
    view = store.map("c", "o")
    view[b"k"] = b"v"
    assert view[b"k"] == b"v"
    store.close()
    for call in (lambda: view.get(b"k"), lambda: len(view), lambda: list(view), lambda: view.put(b"k", b"w")):
        with pytest.raises(StoreClosed):
            call()


@pytest.mark.parametrize("half_done", [False, True], ids=["whole", "half done"])
def test_a_put_that_comes_while_the_store_closes_is_durable_or_refused(
    half_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put after the last checkpoint was accepted and lost. One that was between its two steps when the store was marked as
    closed opened it again: later puts were accepted too, and reads answered."""
    store, device = make()
    view = store.map("c", "o", sync=False)
    view[b"a"] = b"1"
    accepted, refused = {b"a": b"1"}, []
    come, closed = threading.Event(), threading.Event()
    run, stop, mark_dirty = store.checkpointer.run_last, store._committer.stop, store.tables.objects.mark_dirty

    def put() -> None:
        try:
            view[b"b"] = b"2"
            accepted[b"b"] = b"2"
        except StoreClosed:
            refused.append(b"b")
        come.set()

    thread = threading.Thread(target=put)

    def between_two_steps(onode: Onode) -> None:
        mark_dirty(onode)
        if half_done:
            come.set()
            closed.wait()

    def last_checkpoint(flags: Any) -> None:
        run(flags)
        monkeypatch.setattr(store.tables.objects, "mark_dirty", between_two_steps)
        thread.start()
        come.wait()

    def marked_as_closed() -> None:
        stop()
        closed.set()
        thread.join()

    monkeypatch.setattr(store.checkpointer, "run_last", last_checkpoint)
    monkeypatch.setattr(store._committer, "stop", marked_as_closed)
    store.close()
    for call in (lambda: view.get(b"a"), lambda: view.put(b"c", b"3"), view.snapshot):
        with pytest.raises(StoreClosed):
            call()
    assert dict(reopened(device).map("c", "o")) == accepted
    assert refused == [b"b"]


def test_a_latched_store_answers_no_read() -> None:
    device = FaultyDevice(1 << 20, 1)
    store = Store.create(device, **SMALL)  # type: ignore[arg-type]
    view = store.map("c", "o")
    view[b"k"] = b"v"
    assert view[b"k"] == b"v"
    device.inject(Fault("flush", device.calls("flush"), Effect.EIO))
    with pytest.raises(DeviceFailed):
        store.checkpoint()
    with pytest.raises(DeviceFailed):
        view.get(b"k")


def test_readers_never_see_half_of_a_transaction() -> None:
    """A transaction clears the map and sets both keys anew: a reader without the lock once saw the moment in between."""
    store, _ = make(size=8 << 20, log_bytes=1 << 20)
    view = store.map("c", "o", sync=False)
    view.update({b"a": b"0", b"b": b"0"})
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                first = view.get(b"a")
                second = view.get(b"b")
                if first is None or second is None or int(second) < int(first):
                    wrong.append((first, second))
        except MdstoreError as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1, 1500):
        value = b"%d" % i
        store.submit(Transaction().map_clear("c", "o").map_set("c", "o", {b"a": value}).map_set("c", "o", {b"b": value}))
        if i % 300 == 0:
            crowd_out(store)
            store.checkpoint()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]


def test_pop_and_setdefault_are_one_step_for_all_threads() -> None:
    store, _ = make(size=8 << 20, log_bytes=1 << 20)
    view = store.map("c", "o", sync=False)
    view.update((b"%04d" % i, b"x") for i in range(400))
    popped: list[list[bytes]] = [[] for _ in range(4)]
    made: list[int] = []

    def work(mine: int) -> None:
        order = list(range(400))
        Random(mine).shuffle(order)
        for i in order:
            if view.pop(b"%04d" % i, None) is not None:
                popped[mine].append(b"%04d" % i)
            if view.setdefault(b"new%04d" % i, b"%d" % mine) == b"%d" % mine:
                made.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chain.from_iterable(popped)) == [b"%04d" % i for i in range(400)], "each key went to exactly one thread"
    assert sorted(made) == list(range(400))
    assert not check(store)
