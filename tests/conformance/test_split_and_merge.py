"""Splitting and merging collections: what moves, what moves with it, and what forbids it."""

from __future__ import annotations

import crcmod.predefined
import pytest

from mdstore.engines import lmdb_apply, mem_check
from mdstore.engines.protocol import Revision
from mdstore.errors import AlreadyExists, FencedError, InvalidRequest, LimitExceeded, NotFound, TransactionError
from mdstore.store import validate
from mdstore.store.transaction import object_hash
from tests.conformance.subjects import Subject, T, everything

NAMES = [b"object-%d" % number for number in range(200)]
crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


def filled(store: Subject) -> None:
    """200 objects in `c`, each with something in every stream, and an empty collection `d`."""
    transaction = T().create_collection("d")
    for number, name in enumerate(NAMES):
        transaction.write("c", name, number * 50, name).setattr("c", name, "a", name).map_set("c", name, {name: b"v"})
    store.apply(transaction)


def selected(bits: int, remainder: int) -> set[bytes]:
    return {name for name in NAMES if crc32c(name) % (1 << bits) == remainder}


def cause_of(store: Subject, transaction: T) -> Exception:
    with pytest.raises(TransactionError) as caught:
        store.apply(transaction)
    return caught.value.cause


def test_the_hash_is_the_crc32c_of_the_name() -> None:
    assert object_hash(b"123456789") == object_hash("123456789") == 0xE3069283


@pytest.mark.parametrize(("bits", "remainder"), [(1, 0), (1, 1), (3, 5), (32, crc32c(NAMES[7])), (32, 1)])
def test_split_moves_the_objects_of_one_remainder_and_no_others(store: Subject, bits: int, remainder: int) -> None:
    filled(store)
    before = everything(store)[b"c"]
    store.apply(T().split("c", bits, remainder, "d"))
    moved = selected(bits, remainder)
    after = everything(store)
    assert after[b"d"] == {name: before[name] for name in moved}
    assert after[b"c"] == {name: before[name] for name in before.keys() - moved}
    assert store.list_objects("d") == sorted(moved)


def test_split_of_no_bits_moves_everything(store: Subject) -> None:
    filled(store)
    before = everything(store)[b"c"]
    store.apply(T().split("c", 0, 0, "d"))
    assert everything(store) == {b"c": {}, b"d": before}


def test_merge_moves_everything_and_removes_the_collection(store: Subject) -> None:
    filled(store)
    store.apply(T().touch("d", "there before"))
    before = everything(store)
    store.apply(T().merge("c", "d"))
    assert everything(store) == {b"d": before[b"c"] | before[b"d"]}
    store.apply(T().create_collection("c"))
    assert store.list_objects("c") == []


def test_split_and_merge_come_back_to_the_start(store: Subject) -> None:
    filled(store)
    before = everything(store)[b"c"]
    for bits in (1, 2, 3):
        transaction = T().create_collection("e").split("c", bits, 1, "e").split("c", bits, 0, "d").merge("e", "d")
        store.apply(transaction.split("d", 0, 0, "c"))
        assert everything(store) == {b"c": before, b"d": {}}


def test_revisions_move_with_their_names_also_of_objects_that_are_gone(store: Subject) -> None:
    filled(store)
    transaction = T(rev=5)
    for name in NAMES[::3]:
        transaction.write("c", name, 0, b"x")
    for name in NAMES[::5]:
        transaction.remove("c", name)
    store.apply(transaction)
    before = everything(store)[b"c"]
    store.apply(T().split("c", 2, 3, "d"))
    after, moved = everything(store), selected(2, 3)
    assert after[b"d"] == {key: found for key, found in before.items() if (key[0] if isinstance(key, tuple) else key) in moved}
    assert after[b"c"] | after[b"d"] == before
    gone = next(name for name in NAMES[::5] if name in moved)
    assert store.revisions("d", gone) == [Revision(5, 0)]
    store.apply(T(rev=9).merge("d", "c"))
    assert everything(store) == {b"c": before}


def test_a_name_that_is_taken_refuses_the_move(store: Subject) -> None:
    filled(store)
    before = everything(store)
    name = sorted(selected(1, 1))[3]
    for taken in (T().touch("d", name), T().touch("d", name).at_revision(3).remove("d", name)):
        for move in (lambda t: t.split("c", 1, 1, "d"), lambda t: t.merge("c", "d")):
            transaction = T()
            transaction.operations += taken.operations
            cause = cause_of(store, move(transaction))
            assert isinstance(cause, AlreadyExists)
            assert cause.name == name
    assert everything(store) == before
    store.apply(T().touch("d", name).split("c", 1, 0, "d"))
    assert cause_of(store, T().split("c", 1, 1, "d")).name == name  # type: ignore[attr-defined]
    store.apply(T(rev=3).remove("c", name).at_revision(0).remove("d", name))
    store.apply(T().touch("d", "other").split("c", 1, 1, "d"))
    assert store.revisions("d", name) == [Revision(3, 0)]


def test_moves_see_what_stands_before_them_in_their_transaction_and_are_seen_after(store: Subject) -> None:
    filled(store)
    one, two, three = sorted(selected(1, 1))[:3]
    store.apply(
        T().write("c", one, 0, b"changed first").remove("c", two).rename("c", three, "c", three + b"-renamed")
        .split("c", 1, 1, "d").write("d", one, 13, b" then after").setattr("d", sorted(selected(1, 1))[5], "b", b"2")
        .create("c", one)
    )  # fmt: skip
    assert store.read("d", one)[:24] == b"changed first then after"
    assert (store.exists("d", two), store.exists("c", two)) == (False, False)
    assert store.getattrs("d", sorted(selected(1, 1))[5]).keys() == {b"a", b"b"}
    assert store.stat("c", one).size == 0
    assert store.exists("d" if crc32c(three + b"-renamed") & 1 else "c", three + b"-renamed")


def test_an_object_moved_twice_and_changed_in_one_transaction(store: Subject) -> None:
    filled(store)
    name = sorted(selected(1, 1))[0]
    store.apply(T().create_collection("e").split("c", 1, 1, "d").merge("d", "e").setattr("e", name, "b", b"2")
                .clone("e", name, "copy").remove("e", name))  # fmt: skip
    assert store.getattrs("e", "copy") == {b"a": name, b"b": b"2"}
    assert not store.exists("e", name)
    assert len(store.list_objects("e")) == len(selected(1, 1))


def test_merge_leaves_the_name_free_in_its_own_transaction(store: Subject) -> None:
    filled(store)
    store.apply(T().merge("c", "d").create_collection("c").write("c", NAMES[0], 0, b"another"))
    assert store.list_objects("c") == NAMES[:1]
    assert store.getattrs("c", NAMES[0]) == {}
    assert len(store.list_objects("d")) == len(NAMES)


def test_what_a_move_needs(store: Subject) -> None:
    filled(store)
    for move in (lambda a, b: T().split(a, 1, 1, b), lambda a, b: T().merge(a, b)):
        for pair in (("c", "none"), ("none", "c")):
            cause = cause_of(store, move(*pair))
            assert isinstance(cause, NotFound)
            assert (cause.kind, cause.name) == ("collection", b"none")
        assert isinstance(cause_of(store, move("c", "c")), InvalidRequest)
    assert isinstance(cause_of(store, T().merge("c", "d").touch("c", "o")), NotFound)


@pytest.mark.parametrize(("bits", "remainder"), [(-1, 0), (33, 0), (0, 1), (3, 8), (3, -1)])
def test_bits_and_remainder_are_checked_when_they_are_given(bits: int, remainder: int) -> None:
    with pytest.raises(InvalidRequest):
        T().split("c", bits, remainder, "d")


def test_floors_move_with_what_they_hold_for(store: Subject) -> None:
    """Who was fenced off from an object must not reach it in its new place."""
    filled(store)
    moved, stays = sorted(selected(1, 1)), sorted(selected(1, 0))
    store.apply(T().set_floor(5, "c", name=moved[0]).set_floor(6, "c", name=stays[0]).set_floor(4, "c", prefix=b"object-1"))
    store.apply(T().set_floor(9, "d", name=moved[1]).set_floor(3, "c"))
    store.apply(T().split("c", 1, 1, "d"))

    def is_fenced(epoch: int, name: bytes) -> bool:
        try:
            store.apply(T(epoch=epoch).setattr("d", name, "epoch", b""))
        except TransactionError as error:
            return type(error.cause) is FencedError
        return False

    assert [is_fenced(epoch, moved[0]) for epoch in (4, 5)] == [True, False]
    assert [is_fenced(epoch, b"object-1 new") for epoch in (3, 4)] == [True, False]
    assert [is_fenced(epoch, b"new") for epoch in (2, 3)] == [True, False]
    assert [is_fenced(epoch, moved[1]) for epoch in (8, 9)] == [True, False]
    assert [is_fenced(epoch, stays[0]) for epoch in (3, 4)] == [stays[0].startswith(b"object-1"), False]


def test_moving_takes_an_epoch_no_floor_of_either_collection_is_above(store: Subject) -> None:
    filled(store)
    store.apply(T().set_floor(5, "c", name="object-3").set_floor(7, "d", prefix="x").create_collection("e").set_floor(9, "e"))
    for epoch in (4, 6):
        assert isinstance(cause_of(store, T(epoch=epoch).split("c", 1, 1, "d")), FencedError)
        assert isinstance(cause_of(store, T(epoch=epoch).create_collection("c2").merge("c2", "d")), FencedError)
    store.apply(T(epoch=7).split("c", 1, 1, "d").split("d", 0, 0, "c").create_collection("c2").merge("c2", "d"))
    assert isinstance(cause_of(store, T(epoch=8).merge("d", "e")), FencedError)


def test_a_floor_carried_and_raised_in_one_transaction_may_not_fall(store: Subject) -> None:
    filled(store)
    store.apply(T().set_floor(5, "c"))
    assert isinstance(cause_of(store, T().split("c", 1, 1, "d").set_floor(4, "d")), FencedError)
    store.apply(T().split("c", 1, 1, "d").set_floor(5, "d"))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that a test reaches in no time."""
    for module in (validate, mem_check, lmdb_apply):
        monkeypatch.setattr(module, "MOVED_OBJECTS_MAX", 60)
    return 60


def test_more_than_the_limit_is_refused_and_moves_in_steps(store: Subject, limit: int) -> None:
    filled(store)
    before = everything(store)[b"c"]
    for move in (T().merge("c", "d"), T().split("c", 1, 0, "d")):
        cause = cause_of(store, move)
        assert isinstance(cause, LimitExceeded)
        assert (cause.limit, cause.maximum) == ("MOVED_OBJECTS_MAX", limit)
    for remainder in (0, 1, 2):
        store.apply(T().split("c", 2, remainder, "d"))
    store.apply(T().merge("c", "d"))
    assert everything(store) == {b"d": before}


def test_revisions_count_for_the_limit(store: Subject, limit: int) -> None:
    store.apply(T().create_collection("d").touch("c", "o"))
    transaction = T()
    for rev in range(1, limit + 1):
        transaction.at_revision(rev).setattr("c", "o", "a", b"%d" % rev)
    store.apply(transaction)
    assert isinstance(cause_of(store, T().merge("c", "d")), LimitExceeded)
    store.apply(T().remove_revision("c", "o", 7).merge("c", "d"))
    assert len(store.revisions("d", "o")) == limit - 1
