"""Collections, objects and their names: making, removing, moving, listing and paging."""

from __future__ import annotations

import pytest

from mdstore.errors import InvalidRequest, LimitExceeded, NotFound
from mdstore.limits import COLLECTION_NAME_MAX, OBJECT_NAME_MAX
from mdstore.store.transaction import HINT_UNCHECKED
from tests.conformance.subjects import Subject, T, everything

EVERY_BYTE = bytes(range(256))


def test_a_new_collection_is_listed_and_empty(store: Subject) -> None:
    store.apply(T().create_collection("b").create_collection("a"))
    assert store.list_collections() == [b"a", b"b", b"c"]
    assert store.list_objects("a") == []


def test_a_removed_collection_is_gone_and_its_name_starts_empty_again(store: Subject) -> None:
    store.apply(T().create_collection("d").write("d", "o", 0, b"old").setattr("d", "o", "a", b"old"))
    store.apply(T().remove("d", "o").remove_collection("d"))
    assert store.list_collections() == [b"c"]
    with pytest.raises(NotFound) as caught:
        store.list_objects("d")
    assert (caught.value.kind, caught.value.name) == ("collection", b"d")
    store.apply(T().create_collection("d"))
    assert store.list_objects("d") == []
    assert not store.exists("d", "o")


def test_create_and_touch_make_an_empty_object(store: Subject) -> None:
    store.apply(T().create("c", "made").touch("c", "touched"))
    for name in (b"made", b"touched"):
        assert store.stat("c", name)[:1] + store.stat("c", name)[2:] == (0, 0, 0, 0, "crc32c")
        assert store.read("c", name) == b""
        assert store.getattrs("c", name) == {}
        assert store.map_header("c", name) == b""
        assert list(store.map_items("c", name)) == []


def test_touch_changes_nothing_of_an_object_that_is_there(store: Subject) -> None:
    store.apply(T().write("c", "o", 3, b"data").setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v"}))
    before = everything(store)
    store.apply(T().touch("c", "o"))
    assert everything(store) == before


def test_remove_drops_every_stream_and_a_new_object_of_the_name_starts_empty(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"x" * 9000).setattr("c", "o", "a", b"1"))
    store.apply(T().map_set("c", "o", {b"k": b"v"}).map_set_header("c", "o", b"h"))
    store.apply(T().remove("c", "o"))
    assert not store.exists("c", "o")
    store.apply(T().create("c", "o").truncate("c", "o", 9000))
    assert store.read("c", "o") == bytes(9000)
    assert store.getattrs("c", "o") == {}
    assert store.map_header("c", "o") == b""
    assert list(store.map_items("c", "o")) == []


def test_remove_and_create_in_one_transaction_starts_empty_too(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"x" * 9000).setattr("c", "o", "a", b"1").map_set("c", "o", {b"k": b"v"}))
    store.apply(T().remove("c", "o").write("c", "o", 9000, b"y").map_set("c", "o", {b"n": b"w"}))
    assert store.read("c", "o") == bytes(9000) + b"y"
    assert store.getattrs("c", "o") == {}
    assert list(store.map_items("c", "o")) == [(b"n", b"w")]


def test_alloc_hint_makes_the_object_and_changes_nothing_that_is_read(store: Subject) -> None:
    store.apply(T().alloc_hint("c", "new", 1 << 22, 1 << 16).write("c", "o", 0, b"data"))
    assert store.read("c", "new") == b""
    before = everything(store)
    store.apply(T().alloc_hint("c", "o", 10, 0, HINT_UNCHECKED))
    assert everything(store) == before


@pytest.mark.parametrize("query", ["exists", "stat", "read", "extents", "getattrs", "map_header", "map_items"])
def test_a_query_of_what_is_not_there_says_which_part_is_missing(store: Subject, query: str) -> None:
    with pytest.raises(NotFound) as caught:
        getattr(store, query)("none", "o")
    assert (caught.value.kind, caught.value.name) == ("collection", b"none")
    if query != "exists":
        with pytest.raises(NotFound) as caught:
            getattr(store, query)("c", "o")
        assert (caught.value.kind, caught.value.name) == ("object", b"o")


def test_exists_answers_for_an_object_and_not_for_a_collection(store: Subject) -> None:
    store.apply(T().create("c", "o"))
    assert store.exists("c", "o") is True
    assert store.exists("c", "p") is False
    with pytest.raises(NotFound):
        store.exists("none", "o")


# -- moving ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_collection", ["c", "d"])
def test_rename_moves_all_streams(store: Subject, to_collection: str) -> None:
    store.apply(T().create_collection("d").write("c", "o", 5000, b"data").setattr("c", "o", "a", b"1"))
    store.apply(T().map_set("c", "o", {b"k": b"v", b"l": b"w" * 9000}).map_set_header("c", "o", b"h"))
    before = everything(store)[b"c"][b"o"]
    store.apply(T().rename("c", "o", to_collection, "p"))
    after = everything(store)
    assert after[to_collection.encode()][b"p"] == before
    assert b"o" not in after[b"c"]


def test_a_renamed_object_goes_on_under_its_new_name_and_the_old_name_is_free(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"abc").setattr("c", "o", "a", b"1"))
    store.apply(
        T().rename("c", "o", "c", "p").write("c", "p", 1, b"X").rmattr("c", "p", "a").write("c", "o", 0, b"new")
    )
    assert store.read("c", "p") == b"aXc"
    assert store.getattrs("c", "p") == {}
    assert store.read("c", "o") == b"new"


def test_two_names_can_be_exchanged_in_one_transaction(store: Subject) -> None:
    store.apply(T().write("c", "a", 0, b"was a").write("c", "b", 0, b"was b"))
    store.apply(T().rename("c", "a", "c", "tmp").rename("c", "b", "c", "a").rename("c", "tmp", "c", "b"))
    assert (store.read("c", "a"), store.read("c", "b")) == (b"was b", b"was a")
    assert store.list_objects("c") == [b"a", b"b"]


# -- names -----------------------------------------------------------------------------------------------------------------


def test_names_of_every_byte_value_and_ordered_by_their_bytes(store: Subject) -> None:
    names = [bytes([value]) for value in range(256)] + [
        b"a\0b",
        b"a/b",
        b"\0\0",
        b"\xff\xff",
        EVERY_BYTE,
        EVERY_BYTE * 2,
    ]
    transaction = T()
    for name in names:
        transaction.write("c", name, 0, b"I am " + name).setattr("c", name, name[:255], name)
        transaction.map_set("c", name, {name: name})
    store.apply(transaction)
    assert store.list_objects("c") == sorted(names)
    for name, found in everything(store)[b"c"].items():
        assert found.chunks == {0: b"I am " + name}
        assert found.attributes == {name[:255]: name}
        assert found.map == [(name, name)]


def test_names_are_listed_from_either_end(store: Subject) -> None:
    names = [b"\0", b"a", b"a\0", b"a/", b"ab", b"b", b"\xff", b"\xff\xff"]
    transaction = T().create_collection("b").touch("b", "z").create_collection("d").touch("d", "\0")
    for name in names:
        transaction.touch("c", name)
    store.apply(transaction)
    bounds = [None, *names, b"a.", b"zz"]
    for start in bounds:
        for stop in bounds:
            listed = store.list_objects("c", start, stop)
            assert listed == [name for name in names if (start or b"") <= name and (stop is None or name < stop)]
            for limit in (None, 0, 1, 3, 100):
                assert store.list_objects("c", start, stop, limit, reverse=True) == listed[::-1][:limit]


def test_collections_of_any_bytes_do_not_mix(store: Subject) -> None:
    names = [b"\0", b"\0\0", b"a", b"a\0", b"a\0b", b"a\xff", b"b", b"\xff", EVERY_BYTE[1:]]
    transaction = T()
    for collection in names:
        transaction.create_collection(collection)
        for name in names:
            transaction.write(collection, name, 0, collection + b"|" + name)
    store.apply(transaction)
    assert store.list_collections() == sorted([*names, b"c"])
    for collection in names:
        assert store.list_objects(collection) == sorted(names)
        for name in names:
            assert store.read(collection, name) == collection + b"|" + name


def test_text_names_are_utf8(store: Subject) -> None:
    store.apply(T().create_collection("räume").setattr("räume", "größe", "маска", b"1"))
    assert store.list_objects("räume".encode()) == ["größe".encode()]
    assert store.getattr("räume", "größe", "маска".encode()) == b"1"


@pytest.mark.parametrize("length", [1, 479, 480, 481, 502, 503, 504, 505, OBJECT_NAME_MAX - 1, OBJECT_NAME_MAX])
def test_object_names_up_to_the_limit(store: Subject, length: int) -> None:
    names = sorted({b"n" * (length - 1) + tail for tail in (b"\0", b"a", b"b", b"\xff")})
    transaction = T()
    for name in names:
        transaction.write("c", name, 0, name[-1:])
    store.apply(transaction)
    assert store.list_objects("c") == names
    assert [store.read("c", name) for name in names] == [name[-1:] for name in names]
    store.apply(T().remove("c", names[1]).rename("c", names[2], "c", "moved"))
    assert store.list_objects("c") == sorted([names[0], names[3], b"moved"])
    assert store.read("c", "moved") == names[2][-1:]


@pytest.mark.parametrize("length", [COLLECTION_NAME_MAX - 1, COLLECTION_NAME_MAX])
def test_collection_names_up_to_the_limit(store: Subject, length: int) -> None:
    names = [b"n" * (length - 1) + tail for tail in (b"\0", b"\xff")]
    store.apply(T().create_collection(names[1]).create_collection(names[0]).write(names[0], "o", 0, b"data"))
    assert store.list_collections() == [b"c", *names]
    assert store.read(names[0], "o") == b"data"
    assert not store.exists(names[1], "o")


@pytest.mark.parametrize(
    ("collection", "name"), [("x" * (COLLECTION_NAME_MAX + 1), "o"), ("c", "x" * (OBJECT_NAME_MAX + 1))]
)
def test_a_query_by_a_name_over_the_limit_is_refused_as_such(store: Subject, collection: str, name: str) -> None:
    with pytest.raises(LimitExceeded):
        store.exists(collection, name)
    with pytest.raises(LimitExceeded):
        store.read(collection, name)


def test_a_query_by_an_empty_name_is_an_invalid_request(store: Subject) -> None:
    for collection, name in (("", "o"), ("c", "")):
        with pytest.raises(InvalidRequest):
            store.stat(collection, name)


# -- listing ---------------------------------------------------------------------------------------------------------------

LISTED = sorted([b"", b"a", b"a\0", b"a\0\0", b"aa", b"ab", b"b", b"\xff", b"\xff\xff", b"z" * OBJECT_NAME_MAX][1:])


def test_paging_is_exact_for_every_page_size(store: Subject) -> None:
    transaction = T()
    for name in LISTED:
        transaction.touch("c", name)
    store.apply(transaction)
    for limit in range(1, len(LISTED) + 2):
        pages, start = [], None
        while page := store.list_objects("c", start, None, limit):
            assert len(page) <= limit
            pages.append(page)
            start = page[-1] + b"\0"
        assert [name for page in pages for name in page] == LISTED
        assert all(len(page) == limit for page in pages[:-1])


def test_listing_between_any_two_bounds(store: Subject) -> None:
    transaction = T().create_collection("b").create_collection("d").touch("b", "x").touch("d", "x")
    for name in LISTED:
        transaction.touch("c", name)
    store.apply(transaction)
    assert len(store.list_objects("c")) == len(LISTED)
    listing = store.rig.store.list_objects  # a thousand queries: one disturbance is enough
    bounds = [None, b"", b"\0", *LISTED, b"z" * (OBJECT_NAME_MAX + 1), b"\xff" * 600]
    for start in bounds:
        for stop in bounds:
            wanted = [n for n in LISTED if (start is None or n >= start) and (stop is None or n < stop)]
            assert listing("c", start, stop) == wanted, (start, stop)
            assert listing("c", start, stop, 2) == wanted[:2], (start, stop)


def test_a_listing_with_limit_zero_is_empty_and_a_negative_one_invalid(store: Subject) -> None:
    store.apply(T().touch("c", "o"))
    assert store.list_objects("c", limit=0) == []
    with pytest.raises(InvalidRequest):
        store.list_objects("c", limit=-1)
