"""Floors: whoever was replaced is refused, whatever the engine, across reopening and kills."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import FencedError, InvalidRequest, TransactionError
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.conformance.subjects import Subject
from tests.crash.store_workload import outcome


@pytest.fixture(name="store")
def two_collections(store: Subject) -> Subject:
    store.apply(Transaction().create_collection("log").create_collection("other"))
    return store


def refused(store: Subject | ObjectStore, transaction: Transaction) -> bool:
    """Whether it was refused as fenced, with nothing changed; False when it was applied."""
    refusal = outcome(store.rig.store if isinstance(store, Subject) else store, transaction)
    store.sync()
    assert refusal is None or refusal[1] is FencedError, refusal
    return refusal is not None


def old() -> Transaction:
    return Transaction(epoch=4)


def new() -> Transaction:
    return Transaction(epoch=5)


@pytest.mark.parametrize(
    ("raise_it", "guarded", "free"),
    [
        (lambda t: t.set_floor(5, "log", name="head"), ("log", "head"), ("log", "head2")),
        (lambda t: t.set_floor(5, "log", prefix="200."), ("log", "200.00000001"), ("log", "201.0")),
        (lambda t: t.set_floor(5, "log"), ("log", "anything"), ("other", "anything")),
        (lambda t: t.set_floor(5), ("other", "anything"), None),
    ],
    ids=["object", "prefix", "collection", "store"],
)
def test_a_floor_holds_for_what_it_names_and_nothing_else(
    store: Subject, raise_it: Callable[[Transaction], Transaction], guarded: tuple[str, str], free: tuple[str, str] | None
) -> None:
    store.apply(raise_it(Transaction()))
    assert refused(store, old().write(*guarded, 0, b"late"))
    assert not store.exists(*guarded), "an object that did not exist is covered too"
    assert not refused(store, new().write(*guarded, 0, b"new"))
    assert not refused(store, Transaction().write(*guarded, 0, b"untagged"))
    assert refused(store, old().remove(*guarded))
    if free is not None:
        assert not refused(store, old().write(*free, 0, b"fine"))


def test_every_operation_that_writes_is_refused(store: Subject) -> None:
    store.apply(Transaction().write("log", "o", 0, b"x").setattr("log", "o", "k", b"v").map_set("log", "o", {b"k": b"v"}))
    store.apply(Transaction().write("other", "source", 0, b"x").set_floor(5, "log"))
    for transaction in (
        old().touch("log", "o"), old().create("log", "n"), old().write("log", "o", 0, b"y"), old().zero("log", "o", 0, 1),
        old().truncate("log", "o", 0), old().remove("log", "o"), old().setattr("log", "o", "k", b"w"),
        old().rmattr("log", "o", "k"), old().map_set("log", "o", {b"k": b"w"}), old().map_remove("log", "o", [b"k"]),
        old().map_remove_range("log", "o", None, None), old().map_clear("log", "o"), old().map_set_header("log", "o", b"h"),
        old().rename("log", "o", "other", "moved"), old().rename("other", "source", "log", "moved"),
        old().clone("log", "o", "twin"), old().clone_range("log", "o", "twin", 0, 1, 0), old().remove_collection("log"),
        old().noop().write("other", "source", 0, b"y").touch("log", "o"),
    ):  # fmt: skip
        assert refused(store, transaction), transaction.operations
    assert store.read("log", "o") == b"x"
    assert store.read("other", "source") == b"x"


def test_reading_and_raising_are_one_step(store: Subject) -> None:
    store.apply(old().write("log", "head", 0, b"0123456789"))
    assert store.set_floor_and_read("log", "head", 5, 2, 5) == b"23456"
    assert refused(store, old().write("log", "head", 0, b"late"))
    assert store.set_floor_and_read("log", "missing", 5) == b""
    assert refused(store, old().touch("log", "missing"))


def test_a_floor_never_falls(store: Subject) -> None:
    store.apply(Transaction().set_floor(9, "log", name="head"))
    assert refused(store, Transaction().set_floor(8, "log", name="head"))
    with pytest.raises(TransactionError):
        store.set_floor_and_read("log", "head", 8)
    assert not refused(store, Transaction().set_floor(9, "log", name="head"))


def test_raising_a_floor_twice_in_one_transaction_may_not_lower_it(store: Subject) -> None:
    """Checked against the floors before the transaction alone, the second was found out only when it was applied."""
    assert refused(store, Transaction().touch("log", "o").set_floor(9, "log").set_floor(8, "log"))
    assert not store.exists("log", "o")
    assert not refused(store, Transaction(epoch=1).touch("log", "o"))
    assert not refused(store, Transaction().set_floor(8, "log").set_floor(9, "log"))
    assert refused(store, Transaction(epoch=8).touch("log", "o"))


def test_a_floor_does_not_hold_for_the_transaction_that_raises_it(store: Subject) -> None:
    assert not refused(store, old().touch("log", "head").set_floor(5, "log").write("log", "head", 0, b"last words"))
    assert store.read("log", "head") == b"last words"
    assert refused(store, old().touch("log", "head"))


def test_floors_for_names_of_any_length_and_for_what_is_removed(store: Subject) -> None:
    long = b"n" * 512
    store.apply(Transaction().set_floor(5, "log", name=long).set_floor(5, "log", prefix=long[:511] + b"o"))
    store.apply(Transaction().set_floor(5, b"c" * 255, name=long))
    store.apply(Transaction().touch("log", long).remove("log", long))
    assert refused(store, old().touch("log", long))
    assert refused(store, old().touch("log", long[:511] + b"o"))
    assert not refused(store, old().touch("log", long[:511]))
    assert not refused(store, old().create_collection(b"c" * 255))
    assert refused(store, old().touch(b"c" * 255, long))
    assert not refused(store, old().touch(b"c" * 255, long[:511]))


@pytest.mark.parametrize("arguments", [{"name": "o"}, {"prefix": "p"}, {"collection": "c", "name": "o", "prefix": "p"}])
def test_a_floor_for_nothing_in_particular_is_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        Transaction().set_floor(5, **arguments)
    with pytest.raises(InvalidRequest):
        Transaction().set_floor(-1)


def test_raising_a_floor_beside_writers_and_checkpoints_never_hangs() -> None:
    """It held the store's lock while its own transaction had to checkpoint, and waited for a checkpoint that wanted the lock."""
    store = Store.create(MemoryDevice(8 << 20), log_bytes=64 << 10, background=False)
    store.apply(Transaction().create_collection("log"))
    stop = threading.Event()

    def fill_the_log() -> None:
        while not stop.is_set():
            store.submit(Transaction().write("log", "o", 0, b"x" * 2000))

    def checkpoint() -> None:
        while not stop.is_set():
            store.checkpoint()

    threads = [threading.Thread(target=work, daemon=True) for work in (fill_the_log, fill_the_log, checkpoint)]
    raising = threading.Thread(
        target=lambda: [store.set_floor_and_read("log", "head", floor) for floor in range(100)], daemon=True
    )
    for thread in (*threads, raising):
        thread.start()
    try:
        raising.join()
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    store.close()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_floors_survive_a_kill_from_the_log_and_from_the_trees(checkpoint: bool) -> None:
    device = MemoryDevice(4 << 20)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("log").set_floor(5, "log", prefix="200."))
    store.set_floor_and_read("log", "head", 7)
    if checkpoint:
        store.checkpoint()
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert refused(again, old().touch("log", "200.0"))
    assert refused(again, Transaction(epoch=6).touch("log", "head"))
    assert not refused(again, Transaction(epoch=6).touch("log", "200.0"))
