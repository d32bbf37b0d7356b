"""Transactions: all or nothing, the index and reason of a refusal, order, stages, many submitters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mdstore.errors import AlreadyExists, InvalidRequest, MdstoreError, NotEmpty, NotFound, TransactionError
from tests.conformance.subjects import Rig, Subject, T, everything

Refusal = tuple[Callable[[T], Any], str, type[MdstoreError], str | None]

REFUSED: dict[str, Refusal] = {
    "a collection that exists": (lambda t: t.create_collection("c"), "create_collection", AlreadyExists, "collection"),
    "no collection to remove": (lambda t: t.remove_collection("none"), "remove_collection", NotFound, "collection"),
    "a collection that is not empty": (lambda t: t.remove_collection("c"), "remove_collection", NotEmpty, None),
    "an object that exists": (lambda t: t.create("c", "o"), "create", AlreadyExists, "object"),
    "create in no collection": (lambda t: t.create("none", "x"), "create", NotFound, "collection"),
    "touch in no collection": (lambda t: t.touch("none", "x"), "touch", NotFound, "collection"),
    "write in no collection": (lambda t: t.write("none", "x", 0, b"d"), "write", NotFound, "collection"),
    "empty write in no collection": (lambda t: t.write("none", "x", 0, b""), "write", NotFound, "collection"),
    "zero in no collection": (lambda t: t.zero("none", "x", 0, 1), "zero", NotFound, "collection"),
    "truncate of no object": (lambda t: t.truncate("c", "x", 1), "truncate", NotFound, "object"),
    "truncate in no collection": (lambda t: t.truncate("none", "o", 1), "truncate", NotFound, "collection"),
    "remove of no object": (lambda t: t.remove("c", "x"), "remove", NotFound, "object"),
    "remove in no collection": (lambda t: t.remove("none", "o"), "remove", NotFound, "collection"),
    "hint in no collection": (lambda t: t.alloc_hint("none", "x", 1, 1), "alloc_hint", NotFound, "collection"),
    "setattr in no collection": (lambda t: t.setattr("none", "x", "a", b""), "setattr", NotFound, "collection"),
    "rmattr of no attribute": (lambda t: t.rmattr("c", "o", "x"), "rmattr", NotFound, "attribute"),
    "rmattr of no object": (lambda t: t.rmattr("c", "x", "a"), "rmattr", NotFound, "object"),
    "rmattr in no collection": (lambda t: t.rmattr("none", "o", "a"), "rmattr", NotFound, "collection"),
    "clone of no object": (lambda t: t.clone("c", "x", "y"), "clone", NotFound, "object"),
    "clone in no collection": (lambda t: t.clone("none", "o", "y"), "clone", NotFound, "collection"),
    "clone onto itself": (lambda t: t.clone("c", "o", "o"), "clone", InvalidRequest, None),
    "clone of no object onto itself": (lambda t: t.clone("c", "x", "x"), "clone", NotFound, "object"),
    "clone_range of no object": (lambda t: t.clone_range("c", "x", "o", 0, 1, 0), "clone_range", NotFound, "object"),
    "clone_range in no collection": (
        lambda t: t.clone_range("none", "o", "y", 0, 1, 0), "clone_range", NotFound, "collection",
    ),
    "clone_range onto itself": (lambda t: t.clone_range("c", "o", "o", 0, 1, 9), "clone_range", InvalidRequest, None),
    "rename of no object": (lambda t: t.rename("c", "x", "c", "y"), "rename", NotFound, "object"),
    "rename from no collection": (lambda t: t.rename("none", "o", "c", "y"), "rename", NotFound, "collection"),
    "rename to no collection": (lambda t: t.rename("c", "o", "none", "y"), "rename", NotFound, "collection"),
    "rename of no object to no collection": (lambda t: t.rename("c", "x", "none", "y"), "rename", NotFound, "object"),
    "rename to a name that is taken": (lambda t: t.rename("c", "o", "d", "p"), "rename", AlreadyExists, "object"),
    "rename to its own name": (lambda t: t.rename("c", "o", "c", "o"), "rename", AlreadyExists, "object"),
    "map_set in no collection": (lambda t: t.map_set("none", "x", {b"k": b"v"}), "map_set", NotFound, "collection"),
    "map_remove of no object": (lambda t: t.map_remove("c", "x", [b"k"]), "map_remove", NotFound, "object"),
    "map_remove in no collection": (lambda t: t.map_remove("none", "o", []), "map_remove", NotFound, "collection"),
    "map_remove_range of no object": (
        lambda t: t.map_remove_range("c", "x", None, None), "map_remove_range", NotFound, "object",
    ),
    "map_clear of no object": (lambda t: t.map_clear("c", "x"), "map_clear", NotFound, "object"),
    "map_clear in no collection": (lambda t: t.map_clear("none", "o"), "map_clear", NotFound, "collection"),
    "header in no collection": (lambda t: t.map_set_header("none", "x", b""), "map_set_header", NotFound, "collection"),
}  # fmt: skip


def inhabited() -> T:
    """Two collections with one object each, something in every stream."""
    transaction = T().create_collection("d")
    for collection, name in (("c", "o"), ("d", "p")):
        transaction.write(collection, name, 0, b"data" * 3000).setattr(collection, name, "a", b"1")
        transaction.map_set(collection, name, {b"k": b"v", b"l": b"w" * 5000}).map_set_header(collection, name, b"h")
    return transaction


def disturbing() -> T:
    """Every kind of change, to be undone as if it had never been: leaves `o`, `p`, their attributes and `c` in place."""
    transaction = T().write("c", "o", 5, b"changed").zero("c", "o", 100, 9000).truncate("d", "p", 17)
    transaction.setattr("c", "o", "b", b"2").rmattr("d", "p", "a").map_set("c", "o", {b"k": b"changed", b"new": b"n"})
    transaction.map_remove("d", "p", [b"k"]).map_set_header("d", "p", b"changed").map_clear("c", "o")
    transaction.clone("c", "o", "copy").clone_range("c", "o", "range", 0, 9000, 50).touch("c", "made").remove(
        "c", "made"
    )
    return (
        transaction.rename("c", "copy", "d", "moved").create_collection("e").touch("e", "q").alloc_hint("e", "r", 1, 1)
    )


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_operation_leaves_nothing_behind(store: Subject, case: str) -> None:
    refused, operation, kind, missing = REFUSED[case]
    store.apply(inhabited())
    before = everything(store)
    transaction = disturbing()
    index = len(transaction)
    refused(transaction)
    transaction.write("c", "after", 0, b"never").remove_collection("never")
    with pytest.raises(TransactionError) as caught:
        store.apply(transaction)
    assert (caught.value.index, caught.value.operation) == (index, operation)
    assert type(caught.value.cause) is kind
    assert missing is None or caught.value.cause.kind == missing  # type: ignore[attr-defined]
    assert caught.value.errno == caught.value.cause.errno
    assert everything(store) == before
    store.apply(disturbing())
    assert everything(store) != before


def test_the_first_refused_operation_is_the_one_that_is_named(store: Subject) -> None:
    with pytest.raises(TransactionError) as caught:
        store.apply(T().noop().remove("c", "first").remove_collection("second"))
    assert (caught.value.index, type(caught.value.cause)) == (1, NotFound)


# -- operations see those before them ---------------------------------------------------------------------------------------


def test_operations_see_what_those_before_them_did(store: Subject) -> None:
    transaction = T().create_collection("e").create("e", "o").setattr("e", "o", "a", b"1").clone("e", "o", "p")
    transaction.rmattr("e", "p", "a").remove("e", "o").create("e", "o").rename("e", "p", "c", "q")
    transaction.remove("e", "o").remove_collection("e").create_collection("e").write("e", "last", 0, b"x")
    store.apply(transaction)
    assert store.list_collections() == [b"c", b"e"]
    assert store.list_objects("e") == [b"last"]
    assert store.list_objects("c") == [b"q"]
    assert store.getattrs("c", "q") == {}


UNDONE_BY_ITSELF: dict[str, tuple[T, type[MdstoreError]]] = {
    "attribute removed twice": (T().setattr("c", "o", "a", b"").rmattr("c", "o", "a").rmattr("c", "o", "a"), NotFound),
    "attribute gone with its object": (
        T().setattr("c", "o", "a", b"").remove("c", "o").touch("c", "o").rmattr("c", "o", "a"), NotFound,
    ),
    "attribute replaced by a clone": (
        T().setattr("c", "o", "a", b"").touch("c", "e").clone("c", "e", "o").rmattr("c", "o", "a"), NotFound,
    ),
    "object removed twice": (T().touch("c", "o").remove("c", "o").remove("c", "o"), NotFound),
    "object used after it moved away": (T().touch("c", "o").rename("c", "o", "c", "p").truncate("c", "o", 0), NotFound),
    "object created twice": (T().create("c", "o").create("c", "o"), AlreadyExists),
    "moved onto one just made": (T().touch("c", "o").touch("c", "p").rename("c", "o", "c", "p"), AlreadyExists),
    "collection created twice": (T().create_collection("d").create_collection("d"), AlreadyExists),
    "collection just filled": (T().create_collection("d").touch("d", "o").remove_collection("d"), NotEmpty),
    "collection filled by a move": (
        T().create_collection("d").touch("c", "o").rename("c", "o", "d", "o").remove_collection("d"), NotEmpty,
    ),
    "collection just removed": (T().create_collection("d").remove_collection("d").touch("d", "o"), NotFound),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDONE_BY_ITSELF)
def test_an_operation_refused_because_of_those_before_it(store: Subject, case: str) -> None:
    transaction, kind = UNDONE_BY_ITSELF[case]
    with pytest.raises(TransactionError) as caught:
        store.apply(transaction)
    assert (caught.value.index, type(caught.value.cause)) == (len(transaction) - 1, kind)
    assert everything(store) == {b"c": {}}


# -- the transaction as a value ---------------------------------------------------------------------------------------------


def test_a_transaction_is_not_used_up_by_submitting_it(store: Subject) -> None:
    """A store of old took the operations off the list while applying, and then logged an empty list."""
    transaction = inhabited()
    store.apply(transaction)
    once = everything(store)
    store.apply(T().remove("c", "o").remove("d", "p").remove_collection("d"))
    store.apply(transaction)
    assert everything(store) == once


def test_buffers_and_transactions_may_be_reused_after_submit(store: Subject) -> None:
    data, value = bytearray(b"data" * 2000), bytearray(b"value")
    transaction = T().write("c", "o", 0, data).setattr("c", "o", "a", value)
    transaction.map_set("c", "o", {b"k": value})  # type: ignore[arg-type]
    transaction.map_set_header("c", "o", value)
    store.submit(transaction)
    data[:] = bytes(len(data))
    value[:] = b"other"
    transaction.remove("c", "o")
    assert store.read("c", "o") == b"data" * 2000
    assert store.getattrs("c", "o") == {b"a": b"value"}
    assert store.map_get("c", "o", b"k") == b"value"
    assert store.map_header("c", "o") == b"value"


def test_empty_transactions_and_noop_commit_like_any_other(store: Subject) -> None:
    before = everything(store)
    for transaction in (T(), T().noop(), T().noop().noop()):
        store.submit(transaction).wait()
    assert everything(store) == before


def test_a_transaction_of_many_operations(store: Subject) -> None:
    transaction = T()
    for number in range(400):
        transaction.write("c", f"o{number:05}", number % 7, b"%d" % number).setattr("c", f"o{number:05}", "n", b"x")
    store.apply(transaction)
    names = store.list_objects("c")
    assert names == [b"o%05d" % number for number in range(400)]
    assert store.read("c", "o00399") == b"399"


# -- stages and order -------------------------------------------------------------------------------------------------------


def test_reads_see_a_transaction_as_soon_as_submit_returns(rig: Rig) -> None:
    for number in range(50):
        rig.store.submit(T().write("c", "o", 0, b"%02d" % number).map_set("c", "o", {b"k": b"%02d" % number}))
        assert rig.store.read("c", "o") == b"%02d" % number
        assert rig.store.map_get("c", "o", b"k") == b"%02d" % number


def test_waiting_for_one_commit_makes_every_earlier_one_durable(rig: Rig) -> None:
    commits = [rig.store.submit(T().touch("c", f"{number}")) for number in range(20)]
    commits[12].wait()
    assert rig.store.capabilities.ordered_commits
    assert all(commit.durable for commit in commits[:13])
    rig.store.sync()
    assert all(commit.durable for commit in commits)
    for commit in commits:
        commit.wait(0)


def test_a_callback_is_called_once_before_or_after_the_commit_is_durable(rig: Rig) -> None:
    answers: list[tuple[int, BaseException | None]] = []
    called = threading.Semaphore(0)

    def note(number: int) -> Callable[[BaseException | None], None]:
        def done(error: BaseException | None) -> None:
            answers.append((number, error))
            called.release()

        return done

    commits = [rig.store.submit(T().touch("c", f"{number}")) for number in range(5)]
    for number, commit in enumerate(commits):
        commit.add_done_callback(note(number))
    rig.store.sync()
    commits[0].add_done_callback(note(5))
    for _ in range(6):
        called.acquire()
    assert sorted(answers, key=lambda answer: answer[0]) == [(number, None) for number in range(6)]


def test_a_callback_may_use_the_store(rig: Rig) -> None:
    seen: list[bytes] = []
    called = threading.Event()
    commit = rig.store.submit(T().write("c", "o", 0, b"data"))

    def read_back(_: BaseException | None) -> None:
        seen.append(rig.store.read("c", "o"))
        rig.store.submit(T().touch("c", "from the callback"))
        called.set()

    commit.add_done_callback(read_back)
    commit.wait()
    called.wait()
    assert seen == [b"data"]
    assert rig.store.exists("c", "from the callback")


# -- many threads -----------------------------------------------------------------------------------------------------------

THREADS, ROUNDS = 6, 40


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run `work(0)`, `work(1)` ... at once; the first exception of any is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_every_transaction_of_concurrent_submitters_is_there(store: Subject) -> None:
    def submit(thread: int) -> None:
        for number in range(ROUNDS):
            transaction = T().write("c", f"own-{thread}", 4 * number, b"%04d" % number)
            transaction.map_set("c", "shared", {b"%d-%04d" % (thread, number): b"%d" % number, b"last": b"%d" % thread})
            commit = store.rig.store.submit(transaction)
            if number % 8 == 0:
                commit.wait()

    in_threads(submit)
    store.sync()
    for thread in range(THREADS):
        assert store.read("c", f"own-{thread}") == b"".join(b"%04d" % number for number in range(ROUNDS))
    keys = [key for key, _ in store.map_items("c", "shared")]
    wanted = [b"%d-%04d" % (thread, number) for thread in range(THREADS) for number in range(ROUNDS)]
    assert keys == [*wanted, b"last"]


def test_only_one_of_many_concurrent_creators_succeeds(store: Subject) -> None:
    winners: list[tuple[int, int]] = []
    refusals: list[tuple[int, type[MdstoreError]]] = []

    def create(thread: int) -> None:
        for number in range(ROUNDS):
            try:
                store.rig.store.submit(T().touch("c", f"by-{thread}-{number}").create("c", f"o{number}"))
                winners.append((thread, number))
            except TransactionError as refusal:
                refusals.append((refusal.index, type(refusal.cause)))

    in_threads(create)
    store.sync()
    assert sorted(number for _, number in winners) == list(range(ROUNDS))
    assert refusals == [(1, AlreadyExists)] * (THREADS - 1) * ROUNDS
    made = [name for name in store.list_objects("c") if name.startswith(b"by-")]
    assert made == sorted(b"by-%d-%d" % winner for winner in winners)


def test_a_reader_never_sees_half_a_map_change(store: Subject) -> None:
    plain = store.rig.store
    keys = [b"%03d" % number for number in range(60)]
    plain.apply(T().map_set("c", "o", dict.fromkeys(keys, b"start")))
    stop = threading.Event()

    def work(thread: int) -> None:
        if thread == 0:
            for number in range(ROUNDS):
                plain.submit(T().map_set("c", "o", dict.fromkeys(keys, b"%d" % number)))
            stop.set()
            return
        while not stop.is_set():
            assert len(set(plain.map_get_many("c", "o", keys))) == 1
            assert len({value for _, value in plain.map_items("c", "o", reverse=thread == 2)}) == 1

    in_threads(work, 3)
    store.sync()
    assert set(store.map_get_many("c", "o", keys)) == {b"%d" % (ROUNDS - 1)}
