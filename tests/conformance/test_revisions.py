"""Object revisions: what is kept, what a read at a revision sees, and what becomes of revisions when names and objects move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdstore.engines.protocol import Revision
from mdstore.errors import FencedError, InvalidRequest, LimitExceeded, NotEmpty, NotFound, TransactionError
from mdstore.limits import OBJECT_NAME_MAX, REVISION_MAX
from tests.conformance.subjects import Subject, T, at_revision, everything
from tests.conformance.test_data import pattern

LARGE = pattern(300_000)


def refused(store: Subject, transaction: T) -> Exception:
    """The cause of the refusal."""
    with pytest.raises(TransactionError) as caught:
        store.apply(transaction)
    return caught.value.cause


def test_a_write_keeps_what_the_object_was(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"old").setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v"}))
    store.apply(T(rev=7).write("c", "o", 0, b"new"))
    assert store.read("c", "o") == b"new"
    assert store.revisions("c", "o") == [Revision(7, 0)]
    assert store.stat("c", "o").created_rev == 7
    for rev in (1, 6):
        assert store.read("c", "o", rev=rev) == b"old"
        assert store.stat("c", "o", rev=rev).created_rev == 0
    for rev in (7, 8, REVISION_MAX):
        assert store.read("c", "o", rev=rev) == b"new"


def test_every_stream_and_every_query_is_answered_at_a_revision(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, LARGE).setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v", b"l": b""}))
    store.apply(T().map_set_header("c", "o", b"head"))
    store.apply(T(rev=3).truncate("c", "o", 5).rmattr("c", "o", "a").map_clear("c", "o"))
    assert store.exists("c", "o", rev=2)
    assert store.stat("c", "o", rev=2)[:1] + store.stat("c", "o", rev=2)[2:4] == (len(LARGE), 1, 2)
    assert store.read("c", "o", rev=2) == LARGE
    assert store.read("c", "o", 70_000, 10, rev=2) == LARGE[70_000:70_010]
    assert sum(length for _, length in store.extents("c", "o", rev=2)) == len(LARGE)
    assert store.getattr("c", "o", "a", rev=2) == b"1"
    assert store.getattrs("c", "o", rev=2) == {b"a": b"1"}
    assert store.map_get("c", "o", b"k", rev=2) == b"v"
    assert store.map_get_many("c", "o", [b"l", b"m"], rev=2) == [b"", None]
    assert store.map_header("c", "o", rev=2) == b"head"
    assert list(store.map_items("c", "o", rev=2)) == [(b"k", b"v"), (b"l", b"")]
    assert list(store.map_items("c", "o", b"l", reverse=True, rev=2)) == [(b"l", b"")]
    assert (store.read("c", "o"), store.getattrs("c", "o"), store.map_get("c", "o", b"k")) == (LARGE[:5], {}, None)


CHANGES: dict[str, Callable[[T], T]] = {
    "write": lambda t: t.write("c", "o", 0, b"new"),
    "a write of nothing": lambda t: t.write("c", "o", 0, b""),
    "a large write": lambda t: t.write("c", "o", 3, LARGE),
    "zero": lambda t: t.zero("c", "o", 0, 2),
    "truncate": lambda t: t.truncate("c", "o", 1),
    "setattr": lambda t: t.setattr("c", "o", "a", b"2"),
    "rmattr": lambda t: t.rmattr("c", "o", "a"),
    "map_set": lambda t: t.map_set("c", "o", {b"k": b"w"}),
    "map_remove": lambda t: t.map_remove("c", "o", [b"k"]),
    "map_remove_range": lambda t: t.map_remove_range("c", "o", None, None),
    "map_clear": lambda t: t.map_clear("c", "o"),
    "map_set_header": lambda t: t.map_set_header("c", "o", b"h"),
    "clone": lambda t: t.clone("c", "other", "o"),
    "clone_range": lambda t: t.clone_range("c", "other", "o", 0, 3, 1),
    "remove": lambda t: t.remove("c", "o"),
    "rename": lambda t: t.rename("c", "o", "c", "elsewhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_keeps_the_state_before_it_once(store: Subject, change: str) -> None:
    store.apply(T().write("c", "o", 0, b"old").setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v"}))
    store.apply(T().write("c", "other", 0, b"another"))
    before = everything(store)[b"c"][b"o"]
    store.apply(CHANGES[change](T(rev=5)))
    assert store.revisions("c", "o") == [Revision(5, 0)]
    assert at_revision(store, "c", "o", 4) == before
    assert store.exists("c", "o", rev=5) == (change not in ("remove", "rename"))
    if change not in ("remove", "rename"):
        store.apply(T(rev=5).setattr("c", "o", "again", b"1"))
        assert store.revisions("c", "o") == [Revision(5, 0)]
        assert at_revision(store, "c", "o", 4) == before


@pytest.mark.parametrize(
    "untouched",
    [
        T(rev=5).touch("c", "o"),
        T(rev=5).alloc_hint("c", "o", 1, 1),
        T(rev=5).clone("c", "o", "copy"),
        T(rev=5).clone_range("c", "o", "copy", 0, 1, 0),
        T(rev=5).at_revision(0).write("c", "o", 0, b"new"),
        T().write("c", "o", 0, b"new"),
    ],
    ids=["touch", "alloc_hint", "clone of it", "clone_range of it", "revision taken back", "no revision"],
)
def test_what_does_not_change_the_object_or_has_no_revision_keeps_nothing(store: Subject, untouched: T) -> None:
    store.apply(T().write("c", "o", 0, b"old"))
    store.apply(untouched)
    assert store.revisions("c", "o") == []
    assert store.stat("c", "o").created_rev == 0


def test_a_revision_no_newer_than_the_object_keeps_nothing_and_changes_it(store: Subject) -> None:
    store.apply(T(rev=5).write("c", "o", 0, b"five"))
    store.apply(T(rev=5).write("c", "o", 0, b"FIVE"))
    store.apply(T(rev=3).write("c", "o", 4, b" late"))
    assert store.revisions("c", "o") == []
    assert store.read("c", "o", rev=5) == b"FIVE late"
    with pytest.raises(NotFound) as caught:
        store.read("c", "o", rev=4)
    assert caught.value.kind == "object"


def test_an_object_made_with_a_revision_was_not_there_before(store: Subject) -> None:
    store.apply(T(rev=9).touch("c", "o"))
    assert store.stat("c", "o").created_rev == 9
    assert not store.exists("c", "o", rev=8)
    assert store.exists("c", "o", rev=9)
    assert store.exists("c", "o", rev=0)


def test_each_revision_answers_for_its_own_stretch(store: Subject) -> None:
    store.apply(T(rev=2).write("c", "o", 0, b"two"))
    for rev, content in ((4, b"four"), (5, b"five"), (9, b"nine")):
        store.apply(T(rev=rev).truncate("c", "o", 0).write("c", "o", 0, content))
    assert store.revisions("c", "o") == [Revision(4, 2), Revision(5, 4), Revision(9, 5)]
    seen = {rev: store.read("c", "o", rev=rev) for rev in range(2, 11)}
    assert seen == {2: b"two", 3: b"two", 4: b"four", **dict.fromkeys(range(5, 9), b"five"), 9: b"nine", 10: b"nine"}
    assert not store.exists("c", "o", rev=1)


def test_removed_and_made_again_leaves_the_time_between_empty(store: Subject) -> None:
    store.apply(T(rev=2).write("c", "o", 0, b"first"))
    store.apply(T(rev=5).remove("c", "o"))
    assert not store.exists("c", "o")
    assert store.revisions("c", "o") == [Revision(5, 2)]
    store.apply(T(rev=8).write("c", "o", 0, b"second"))
    found = {rev: store.read("c", "o", rev=rev) for rev in range(1, 10) if store.exists("c", "o", rev=rev)}
    assert found == {2: b"first", 3: b"first", 4: b"first", 8: b"second", 9: b"second"}


def test_made_again_without_a_revision_begins_where_the_last_one_ended(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"first"))
    store.apply(T(rev=5).remove("c", "o"))
    store.apply(T().write("c", "o", 0, b"second"))
    assert store.stat("c", "o").created_rev == 5
    assert (store.read("c", "o", rev=4), store.read("c", "o", rev=5)) == (b"first", b"second")
    store.apply(T(rev=5).write("c", "o", 0, b"SECOND"))
    assert store.revisions("c", "o") == [Revision(5, 0)]


def test_removed_without_a_revision_keeps_what_was_kept(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"first"))
    store.apply(T(rev=5).write("c", "o", 0, b"later"))
    store.apply(T().remove("c", "o"))
    assert not store.exists("c", "o", rev=5)
    assert store.read("c", "o", rev=4) == b"first"


def test_listings_do_not_show_revisions(store: Subject) -> None:
    names = [b"\0", b"\0" * 8, b"\0" * 9, b"a", b"a\0", b"a" * 8, b"a" * 9, b"b", b"\xff" * 17]
    for name in names:
        store.apply(T().touch("c", name))
    for rev in (3, 300):
        store.apply(T(rev=rev).setattr("c", names[0], "a", b"").remove("c", b"b").touch("c", b"b"))
    for name in names[1:-2]:
        store.apply(T(rev=1 << 56).setattr("c", name, "a", b""))
    assert store.list_objects("c") == names
    assert store.list_revised("c") == [*names[:-2], b"b"]
    assert store.list_revised("c", names[1], names[4]) == names[1:4]
    assert store.list_revised("c", names[1] + b"\0", limit=2) == names[2:4]
    assert store.list_revised("c", limit=0) == []
    assert [store.revisions("c", name) for name in (b"\0", b"a", b"\xff" * 17)] == [
        [Revision(3, 0), Revision(300, 3)], [Revision(1 << 56, 0)], [],
    ]  # fmt: skip
    with pytest.raises(InvalidRequest):
        store.list_revised("c", limit=-1)


def test_revisions_of_the_longest_name_and_of_the_last_number(store: Subject) -> None:
    name = b"\0" * OBJECT_NAME_MAX
    store.apply(T().write("c", name, 0, b"old"))
    store.apply(T(rev=REVISION_MAX).write("c", name, 0, b"new"))
    assert store.revisions("c", name) == [Revision(REVISION_MAX, 0)]
    assert (store.read("c", name, rev=REVISION_MAX - 1), store.read("c", name, rev=REVISION_MAX)) == (b"old", b"new")
    store.apply(T().trim_revisions("c", name, REVISION_MAX))
    assert store.revisions("c", name) == []


@pytest.mark.parametrize("rev", [-1, REVISION_MAX + 1])
def test_a_revision_is_a_64_bit_number(rev: int) -> None:
    for build in (T().at_revision, lambda rev: T().trim_revisions("c", "o", rev), lambda rev: T(rev=rev)):
        with pytest.raises(InvalidRequest):
            build(rev)


def three_revisions(store: Subject, name: str = "o") -> None:
    """Revisions 2, 4 and 6, and an object."""
    store.apply(T().write("c", name, 0, b"0"))
    for rev in (2, 4, 6):
        store.apply(T(rev=rev).write("c", name, 0, b"%d" % rev))


def test_trimming_drops_what_no_later_read_is_answered_from(store: Subject) -> None:
    three_revisions(store)
    later = {rev: store.read("c", "o", rev=rev) for rev in range(4, 9)}
    store.apply(T().trim_revisions("c", "o", 4))
    assert store.revisions("c", "o") == [Revision(6, 4)]
    assert {rev: store.read("c", "o", rev=rev) for rev in range(4, 9)} == later
    assert not store.exists("c", "o", rev=3)
    store.apply(T().trim_revisions("c", "o", 4).trim_revisions("c", "nothing", 9))
    assert store.revisions("c", "o") == [Revision(6, 4)]


def test_one_revision_may_be_dropped_and_leaves_a_gap(store: Subject) -> None:
    three_revisions(store)
    store.apply(T().remove_revision("c", "o", 4))
    assert store.revisions("c", "o") == [Revision(2, 0), Revision(6, 4)]
    assert [store.exists("c", "o", rev=rev) for rev in (1, 2, 3, 4)] == [True, False, False, True]
    for missing in (4, 3, 0):
        cause = refused(store, T().remove_revision("c", "o", missing))
        assert isinstance(cause, NotFound)
        assert cause.kind == "revision"


def test_trimming_an_object_that_is_gone(store: Subject) -> None:
    three_revisions(store)
    store.apply(T(rev=8).remove("c", "o"))
    store.apply(T().trim_revisions("c", "o", 8))
    assert store.list_revised("c") == []
    assert store.list_objects("c") == []


def test_a_collection_with_revisions_is_not_empty(store: Subject) -> None:
    store.apply(T().create_collection("d").write("d", "o", 0, b"x"))
    store.apply(T(rev=1).remove("d", "o"))
    assert isinstance(refused(store, T().remove_collection("d")), NotEmpty)
    assert isinstance(refused(store, T(rev=2).touch("d", "p").remove("d", "p").write("d", "o", 0, b"")
                              .at_revision(3).remove("d", "o").remove_collection("d")), NotEmpty)  # fmt: skip
    store.apply(T().trim_revisions("d", "o", 1).remove_collection("d").create_collection("d"))
    assert (store.list_objects("d"), store.revisions("d", "o")) == ([], [])


def test_a_revision_made_in_the_transaction_keeps_the_collection(store: Subject) -> None:
    store.apply(T().create_collection("d").touch("d", "o"))
    assert isinstance(refused(store, T(rev=1).remove("d", "o").remove_collection("d")), NotEmpty)
    store.apply(T(rev=1).remove("d", "o").remove_revision("d", "o", 1).remove_collection("d"))
    assert store.list_collections() == [b"c"]


def test_rename_leaves_revisions_with_the_name(store: Subject) -> None:
    three_revisions(store)
    store.apply(T().rename("c", "o", "c", "p"))
    assert store.revisions("c", "p") == []
    assert store.stat("c", "p").created_rev == 6
    assert [store.exists("c", "p", rev=rev) for rev in (5, 6)] == [False, True]
    assert [rev for rev, _ in store.revisions("c", "o")] == [2, 4, 6]
    assert store.read("c", "o", rev=3) == b"2"
    store.apply(T().rename("c", "p", "c", "o"))
    assert (store.read("c", "o", rev=3), store.read("c", "o", rev=6)) == (b"2", b"6")


def test_rename_with_a_revision_shows_at_both_names(store: Subject) -> None:
    store.apply(T().create_collection("d").write("c", "o", 0, b"x"))
    store.apply(T(rev=4).rename("c", "o", "d", "p"))
    assert [(store.exists("c", "o", rev=rev), store.exists("d", "p", rev=rev)) for rev in (3, 4)] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_rename_onto_a_name_with_revisions_comes_after_them(store: Subject) -> None:
    three_revisions(store)
    store.apply(T(rev=8).remove("c", "o"))
    store.apply(T().write("c", "p", 0, b"other").rename("c", "p", "c", "o"))
    assert store.stat("c", "o").created_rev == 8
    assert (store.read("c", "o", rev=8), store.read("c", "o", rev=7)) == (b"other", b"6")


def test_a_clone_has_no_revisions_and_its_target_keeps_its_own(store: Subject) -> None:
    three_revisions(store)
    store.apply(T().write("c", "t", 0, b"target"))
    store.apply(T(rev=9).clone("c", "o", "t").clone("c", "o", "fresh"))
    assert store.revisions("c", "t") == [Revision(9, 0)]
    assert (store.read("c", "t", rev=8), store.read("c", "t", rev=9)) == (b"target", b"6")
    assert store.revisions("c", "fresh") == []
    assert store.stat("c", "fresh").created_rev == 9
    assert [rev for rev, _ in store.revisions("c", "o")] == [2, 4, 6]


def test_several_revisions_in_one_transaction(store: Subject) -> None:
    transaction = T().write("c", "o", 0, LARGE)
    for rev in range(1, 6):
        transaction.at_revision(rev).write("c", "o", rev * 10, b"rev%d" % rev).map_set("c", "o", {b"%d" % rev: b"x"})
    store.apply(transaction)
    expected = bytearray(LARGE)
    for rev in range(1, 6):
        expected[rev * 10 : rev * 10 + 4] = b"rev%d" % rev
        assert store.read("c", "o", rev=rev) == bytes(expected)
        assert store.stat("c", "o", rev=rev).map_keys == rev


def test_revisions_outlive_their_object_and_each_other(store: Subject) -> None:
    current, kept = bytearray(LARGE), {}
    store.apply(T().write("c", "o", 0, LARGE))
    for rev in range(1, 9):
        kept[rev - 1] = bytes(current)
        patch = pattern(20_000, seed=rev)
        current[rev * 9000 : rev * 9000 + len(patch)] = patch
        store.apply(T(rev=rev).write("c", "o", rev * 9000, patch))
    store.apply(T().remove("c", "o").remove_revision("c", "o", 3).remove_revision("c", "o", 8))
    for rev in (1, 3, 4, 5, 6):
        assert store.read("c", "o", rev=rev) == kept[rev]


def test_revisions_are_counted_as_objects(store: Subject) -> None:
    before = store.statistics()["objects"]
    three_revisions(store)
    assert store.statistics()["objects"] == before + 4


def test_no_revision_and_no_collection_are_different_answers(store: Subject) -> None:
    ask: list[Callable[[], Any]] = [
        lambda: store.revisions("none", "o"), lambda: store.list_revised("none"), lambda: store.read("none", "o", rev=1),
    ]  # fmt: skip
    for question in ask:
        with pytest.raises(NotFound) as caught:
            question()
        assert caught.value.kind == "collection"
    for transaction in (T().remove_revision("none", "o", 1), T().trim_revisions("none", "o", 1)):
        cause = refused(store, transaction)
        assert isinstance(cause, NotFound)
        assert cause.kind == "collection"
    assert store.revisions("c", "o") == []
    with pytest.raises(LimitExceeded):
        store.revisions("c", b"n" * (OBJECT_NAME_MAX + 1))


def test_floors_hold_for_revisions(store: Subject) -> None:
    three_revisions(store)
    store.apply(T().set_floor(10, "c", name="o"))
    for build in (lambda t: t.trim_revisions("c", "o", 9), lambda t: t.remove_revision("c", "o", 2)):
        assert isinstance(refused(store, build(T(epoch=9))), FencedError)
    store.apply(build(T(epoch=10)).at_revision(7))
    assert [rev for rev, _ in store.revisions("c", "o")] == [4, 6]


def test_a_refused_transaction_keeps_nothing(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"x"))
    refused(store, T(rev=5).write("c", "o", 0, b"y").remove("c", "missing"))
    assert store.revisions("c", "o") == []
    assert (store.stat("c", "o").created_rev, store.read("c", "o")) == (0, b"x")
