"""`Store.map`: an object's map as a mutable mapping, and that a view stays right whatever happens to its object."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import (
    InvalidRequest,
    LimitExceeded,
    NoSpace,
    NotFound,
    ReadOnly,
    StoreClosed,
)
from mdstore.limits import MAP_KEY_MAX
from mdstore.store import log
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

SMALL = {"block_size": 512, "log_bytes": 64 * 1024, "background": False, "onodes": 64}


def make(size: int = 1 << 20, **options: object) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(size)
    return Store.create(device, **{**SMALL, **options}), device  # type: ignore[arg-type]


def reopened(device: MemoryDevice) -> Store:
    return Store.open(MemoryDevice.from_bytes(device.image()), background=False)


def test_a_view_is_a_mutable_mapping() -> None:
    store, _ = make()
    view = store.map("settings", "app")
    assert isinstance(view, MutableMapping)
    view[b"b"] = b"2"
    view.update({b"a": b"1", b"c": b"3"})
    assert dict(view) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert list(view) == [b"a", b"b", b"c"]
    assert list(reversed(view)) == [b"c", b"b", b"a"]
    assert len(view) == 3
    assert view
    assert (b"a" in view, b"z" in view, "a" in view) == (True, False, False)
    assert view.get(b"z") is None
    assert view.get(b"z", b"other") == b"other"
    assert view.get_many([b"c", b"z", b"a"]) == [b"3", None, b"1"]
    assert view.pop(b"a") == b"1"
    assert view.pop(b"a", None) is None
    assert view.setdefault(b"b", b"kept out") == b"2"
    assert view.setdefault(b"d", b"4") == b"4"
    assert view.popitem() == (b"d", b"4")
    del view[b"b"]
    assert list(view.values()) == [b"3"]
    view.clear()
    assert not view
    for missing in (lambda: view[b"b"], lambda: view.pop(b"b"), view.popitem, lambda: view.__delitem__(b"b")):
        with pytest.raises(KeyError):
            missing()
    assert not check(store)


def test_ranges_run_both_ways_and_stand_still_under_writers() -> None:
    store, _ = make()
    view = store.map("c", "o", sync=False)
    view.update((b"%03d" % i, b"v%d" % i) for i in range(300))
    assert [key for key, _ in view.items(b"010", b"013")] == [b"010", b"011", b"012"]
    assert [key for key, _ in view.items(b"010", b"013", reverse=True)] == [b"012", b"011", b"010"]
    assert view.first() == (b"000", b"v0")
    assert view.last() == (b"299", b"v299")
    running = view.items()
    next(running)
    view.delete_range(b"100", None)
    assert len(list(running)) == 299
    assert len(view) == 100


def test_a_snapshot_stays_while_the_map_changes() -> None:
    store, _ = make()
    view = store.map("c", "o", sync=False)
    view.update({b"a": b"old", b"b": b"old"})
    with view.snapshot() as before:
        view[b"a"] = b"new"
        del view[b"b"]
        for _ in range(4):
            store.checkpoint()
        assert dict(before.items()) == {b"a": b"old", b"b": b"old"}
        assert (before[b"a"], before.get(b"z", 1), b"b" in before, len(before)) == (b"old", 1, True, 2)
    with pytest.raises(StoreClosed):
        before.get(b"a")
    assert dict(view) == {b"a": b"new"}


def test_collection_and_object_are_made_once_and_found_again() -> None:
    store, device = make()
    store.map("c", "o")[b"k"] = b"v"
    appends = store.journal.counters.appends
    assert store.map("c", "o")[b"k"] == b"v"
    assert store.journal.counters.appends == appends, "an object that is there is not made again"
    store.map("c", "other")
    again = reopened(device)
    assert again.list_objects("c") == [b"o", b"other"]


def test_a_read_only_store_gives_a_view_that_reads() -> None:
    store, device = make()
    store.map("c", "o")[b"k"] = b"v"
    again = Store.open(MemoryDevice.from_bytes(device.image()), read_only=True)
    assert again.map("c", "o")[b"k"] == b"v"
    assert dict(again.map("c", "nowhere")) == {}
    with pytest.raises(ReadOnly):
        again.map("c", "o")[b"k"] = b"w"


def test_a_put_is_durable_on_return_and_without_sync_after_sync() -> None:
    store, device = make()
    view = store.map("c", "o")
    flushes = store.journal.counters.flushes
    view[b"a"] = b"1"
    assert store.journal.counters.flushes == flushes + 1
    assert dict(reopened(device).map("c", "o")) == {b"a": b"1"}
    view.put(b"b", b"2", sync=False)
    assert store.journal.counters.flushes == flushes + 1
    assert view[b"b"] == b"2"
    assert store.journal.safe < store.journal.write
    view.sync()
    assert dict(reopened(device).map("c", "o")) == {b"a": b"1", b"b": b"2"}


def test_a_batch_is_one_transaction_and_an_exception_drops_it() -> None:
    store, _ = make()
    view = store.map("c", "o")
    view.update({b"keep": b"1", b"gone": b"1"})
    appends, flushes = store.journal.counters.appends, store.journal.counters.flushes
    with view.batch() as batch:
        batch[b"new"] = b"2"
        del batch[b"gone"]
        batch.update({b"more": b"3"})
        assert (batch[b"new"], batch.get(b"gone"), batch[b"keep"], b"gone" in batch, len(batch)) == (b"2", None, b"1", False, 3)
        with pytest.raises(KeyError):
            del batch[b"gone"]
        assert dict(view) == {b"keep": b"1", b"gone": b"1"}, "nothing shows before the commit"
    assert (store.journal.counters.appends, store.journal.counters.flushes) == (appends + 1, flushes + 1)
    assert dict(view) == {b"keep": b"1", b"new": b"2", b"more": b"3"}

    def stop_half_way() -> None:
        with view.batch() as batch:
            batch[b"x"] = b"y"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_half_way()
    assert b"x" not in view
    with view.batch():
        pass
    assert store.journal.counters.appends == appends + 1, "an empty batch is none"


@pytest.mark.parametrize(
    ("pair", "words"),
    [((b"z", 5), "not int"), (("z", b"5"), "not str"), ((1,), "pair 1: a key and a value"), ((), "pair 1: .*not tuple"),
     (7, "pair 1: .*not int"), ((b"a", b"b", b"c"), "pair 1: "), (b"ab", "not int")],
)  # fmt: skip
def test_a_batch_takes_all_pairs_of_an_update_or_none(pair: Any, words: str) -> None:
    """Those before the one that was refused stayed in the batch, and were committed with it."""
    store, _ = make()
    view = store.map("c", "o")
    batch = view.batch()
    batch[b"x"] = b"1"
    for given in ([(b"y", b"2"), pair], iter([(b"x", b"2"), pair])):
        with pytest.raises(TypeError, match=words):
            batch.update(given)
    assert (len(batch), batch.get(b"y"), batch[b"x"]) == (1, None, b"1")
    batch.commit()
    assert dict(view) == {b"x": b"1"}


def test_a_batch_that_is_refused_keeps_its_changes() -> None:
    """It was empty then, and committing it again did nothing."""
    store, _ = make()
    view = store.map("c", "o")
    view[b"gone"] = b"0"
    batch = view.batch()
    batch.update({b"x": b"1", b"k" * (MAP_KEY_MAX + 1): b"v"})
    del batch[b"gone"]
    for _ in range(2):
        with pytest.raises(LimitExceeded, match="MAP_KEY_MAX"):
            batch.commit()
        assert (len(batch), batch[b"x"], batch.get(b"gone")) == (3, b"1", None)
    assert dict(view) == {b"gone": b"0"}
    batch.delete(b"k" * (MAP_KEY_MAX + 1))
    store.apply(Transaction().remove("c", "o").remove_collection("c"))
    with pytest.raises(NotFound):
        batch.commit()
    store.apply(Transaction().create_collection("c").map_set("c", "o", {b"gone": b"again"}))
    batch.commit()
    assert (dict(view), len(batch)) == ({b"x": b"1"}, 0)


@pytest.mark.parametrize("bad", [5, "text", None])
def test_only_bytes_are_keys_and_values(bad: object) -> None:
    store, _ = make()
    view = store.map("c", "o")
    for write in (lambda: view.put(bad, b""), lambda: view.put(b"k", bad), lambda: view.batch().put(bad, b"")):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            write()
    view.put(bytearray(b"k"), memoryview(b"v"))
    assert dict(view) == {b"k": b"v"}


def test_refusals_come_as_themselves_and_change_nothing() -> None:
    store, _ = make(size=256 * 1024, log_bytes=16 * 1024)
    view = store.map("c", "o", sync=False)
    for key, error in ((b"", InvalidRequest), (b"k" * (MAP_KEY_MAX + 1), LimitExceeded)):
        with pytest.raises(error, match="MAP_KEY_MAX"):
            view[key] = b"v"
    written: list[int] = []

    def fill() -> None:
        for i in range(2000):
            view[b"%d" % i] = bytes(400)
            written.append(i)

    with pytest.raises(NoSpace):
        fill()
    assert len(view) == len(written)
    view.clear()
    view[b"again"] = b"room"
    store.apply(Transaction().remove("c", "o").remove_collection("c"))
    with pytest.raises(NotFound):
        view[b"k"] = b"v"


@pytest.mark.parametrize("key", [b"k", b"k" * 70, b"k" * 300])
@pytest.mark.parametrize("value", [b"", b"v" * 100, b"v" * 900, b"v" * 5000])
def test_the_short_way_of_a_put_logs_what_the_long_way_does(key: bytes, value: bytes) -> None:
    transaction = Transaction().map_set("collection", "object", {key: value})
    short = log.map_set_prefix(b"collection", b"object") + log.encode_pair(key, value)
    assert short == log.encode(transaction.operations, None)


def test_puts_of_any_size_are_there_after_a_reopen_with_tiny_pages() -> None:
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=256, log_bytes=1 << 20, background=False)
    view = store.map("c", "o", sync=False)
    expected = {}
    for i in range(400):
        key, value = b"%d" % i * (1 + i % 12), bytes([i % 256]) * (i * 7 % 1500)
        view[key] = expected[key] = value
    with pytest.raises(LimitExceeded):
        view[b"k" * 200] = b""
    view.sync()
    assert dict(view) == expected
    assert not check(store, deep=True)
    assert dict(reopened(device).map("c", "o")) == expected


def test_puts_take_the_short_way_also_through_the_view_that_made_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    # A view that had made its object never looked for it again unless something was read, and every put went the long way.
    store, _ = make(onodes=64)
    view = store.map("c", "o")
    view[b"first"] = b"makes the tree"
    submit, taken = store.submit, []
    monkeypatch.setattr(store, "submit", lambda transaction: taken.append(transaction) or submit(transaction))
    view[b"a"] = b"1"
    assert not taken
    monkeypatch.undo()
    for i in range(200):
        store.apply(Transaction().touch("c", f"other{i}"))  # drops the object from memory
    monkeypatch.setattr(store, "submit", lambda transaction: taken.append(transaction) or submit(transaction))
    view[b"b"] = b"2"
    assert not taken
    assert dict(view) == {b"a": b"1", b"b": b"2", b"first": b"makes the tree"}
    assert not check(store)
