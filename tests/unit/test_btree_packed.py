"""Packed pairs: whatever they are made from, they are the bytes of the log, and a tree takes them as it takes plain pairs."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdstore.btree import COMPARE_PAIR, COMPARE_U64_LE, Descriptor, PackedPairs, Tree, TreeView
from mdstore.btree._kernel import call_at_refusal, fail_memory
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest, LimitExceeded, MdstoreError, StoreClosed
from mdstore.limits import MAP_KEY_MAX, TRANSACTION_BYTES_MAX
from tests.model.btree_world import World
from tests.unit.test_btree_atomic import Scene

Pair = tuple[bytes, bytes]
AS_TYPES: tuple[Callable[[bytes], Any], ...] = (bytes, bytearray, memoryview, lambda data: memoryview(data * 2)[: len(data)])
SHAPES: tuple[Callable[[list[Any]], Any], ...] = (list, tuple, iter, lambda pairs: (pair for pair in pairs))

few = st.binary(min_size=1, max_size=3) | st.integers(0, 30).map(lambda n: b"a shared beginning %d" % n)
keys = few | st.integers(1, 36).map(lambda n: bytes([n]) * n)
values = st.binary(max_size=40) | st.sampled_from((0, 54, 60, 255, 256, 900, 65535, 65536)).map(lambda n: bytes([n & 7]) * n)
pairs_of = st.lists(st.tuples(keys, values), max_size=60)


@given(pairs_of, st.randoms(use_true_random=False), st.sampled_from(SHAPES), st.integers(0, 12))
def test_pairs_of_any_kind_are_packed_as_the_log_encodes_them(
    pairs: list[Pair], random: Any, shape: Callable[[list[Any]], Any], room: int
) -> None:
    mixed = [random.choice((tuple, list))((random.choice(AS_TYPES)(k), random.choice(AS_TYPES)(v))) for k, v in pairs]
    packed = PackedPairs(shape(mixed), room)
    plain = msgspec.msgpack.encode(pairs)
    for prefix in (b"in the room!"[:room], b"another one!"[:room], b"", b"of another length"):
        assert packed.encoded(prefix) == prefix + plain
    assert list(packed) == pairs
    assert len(packed) == len(pairs)
    assert packed.payload_bytes == sum(len(key) + len(value) for key, value in pairs)
    assert packed.longest_key == max((len(key) for key, _ in pairs), default=0)
    assert packed.longest_value == max((len(value) for _, value in pairs), default=0)
    assert sorted(packed.values_above(54)) == sorted(len(value) for _, value in pairs if len(value) > 54)


@pytest.mark.parametrize("count", [15, 16, 2047, 2048, 65535, 65536])
def test_any_number_of_pairs_is_packed_as_the_log_encodes_them(count: int) -> None:
    pairs = [(b"%x" % (n * 2654435761 % 2**32), b"%d" % n) for n in range(count)]
    packed = PackedPairs(pairs, 3)
    first = packed.encoded(b"abc")
    assert first == b"abc" + msgspec.msgpack.encode(pairs)
    assert packed.encoded(b"xyz") == b"xyz" + first[3:]
    assert first[:3] == b"abc", "what was given out does not change"
    assert list(packed) == pairs


def in_tree(tree: Tree, pairs: Iterable[Pair]) -> int:
    packed = PackedPairs(pairs)
    tree.fetch(packed)
    return tree.update(packed)


@settings(max_examples=150)
@given(st.lists(pairs_of, min_size=1, max_size=5), st.sampled_from((256, 4096)), st.booleans())
def test_a_tree_takes_packed_pairs_as_it_takes_plain_ones(batches: list[list[Pair]], page_size: int, sealed: bool) -> None:
    world = World(3, page_size=page_size, cache_bytes=1 << 14)
    tree, plain = Tree(world.pager, Descriptor(), 1), Tree(world.pager, Descriptor(), 2)
    expected: dict[bytes, bytes] = {}
    for pairs in batches:
        assert in_tree(tree, pairs) == plain.update(pairs) == len({key for key, _ in pairs} - expected.keys())
        expected.update(pairs)
        if sealed:
            world.seal(tree)
            world.write()
            world.pager.generation += 1
    assert dict(tree.items()) == dict(plain.items()) == expected
    assert tree.check() == []


@pytest.mark.parametrize("sizes", [(1, 60, 2, 58), (54, 1, 54), (3, 700, 5), (700, 3, 900)])
def test_of_one_key_the_last_pair_wins_however_full_its_leaf(sizes: tuple[int, ...]) -> None:
    """The first does not fit its leaf and waits for the exclusive lock; a smaller one behind it in the same group would fit."""
    for filled in range(30):
        tree = Tree(World(1).pager, Descriptor(), 1)
        tree.update((b"%04d" % n, b"v" * 7) for n in range(filled))
        expected = dict(tree.items())
        pairs = [(b"0003x", bytes([turn]) * size) for turn, size in enumerate(sizes)]
        in_tree(tree, [(b"0000", b"first"), *pairs, (b"9999", b"last")])
        assert dict(tree.items()) == expected | {b"0000": b"first", b"0003x": pairs[-1][1], b"9999": b"last"}
        assert tree.check() == []


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("between", [None, b"0011", b"0500"], ids=["neighbours", "another key of the leaf", "another leaf"])
@pytest.mark.parametrize(
    ("records", "page_size", "height", "root_is_copied"),
    [(3, 4096, 1, False), (100, 4096, 2, False), (100, 4096, 2, True), (300, 256, 4, True)],
)
def test_of_one_key_the_last_wins_though_a_snapshot_closes_between_two(
    packed: bool, between: bytes | None, records: int, page_size: int, height: int, root_is_copied: bool
) -> None:
    """A snapshot that closed while a group of keys descended let the later of two equal keys into the leaf at once; the earlier,
    refused while the snapshot was there, was put after it, and memory differed from the log."""
    tree = Tree(World(1, page_size=page_size).pager, Descriptor(), 1)
    tree.update((b"%04d" % (n * 10), b"v" * 30) for n in range(records))
    assert tree.height == height
    snapshot = tree.snapshot()
    if root_is_copied:  # then pages below it are what the snapshot reaches
        tree.put(b"%04d" % (records * 10 - 10), b"v" * 30)
    expected = dict(tree.items())
    pairs = [(b"0010", b"first"), *([(between, b"b")] if between else []), (b"0010", b"second"), (b"0010", b"last")]
    called: list[TreeView] = []

    def close() -> None:
        called.append(snapshot)
        snapshot.close()

    call_at_refusal(close)
    tree.update(PackedPairs(pairs) if packed else pairs)
    assert called, "no key was refused"
    assert dict(tree.items()) == expected | dict(pairs)
    assert tree.check() == []


SHAPES_OF_TREES = (
    Descriptor(8, 4), Descriptor(-1, -1), Descriptor(-2, -2), Descriptor(duplicates=True), Descriptor(comparator=5),
)  # fmt: skip


@pytest.mark.parametrize("descriptor", SHAPES_OF_TREES)
def test_trees_of_every_shape_take_packed_pairs(descriptor: Descriptor) -> None:
    pairs = [(b"%08d" % (n * 7 % 50), b"%04d" % n) for n in range(100)]
    tree, plain = Tree(World(1).pager, descriptor, 1), Tree(World(1).pager, descriptor, 1)
    assert in_tree(tree, pairs) == plain.update(pairs)
    assert list(tree.items()) == list(plain.items())
    assert tree.check() == []


def test_a_tree_refuses_a_packed_pair_that_does_not_fit_it() -> None:
    tree = Tree(World(1).pager, Descriptor(8, 4), 1)
    with pytest.raises(InvalidRequest, match="8 bytes, not 2"):
        tree.update(PackedPairs([(b"12345678", b"1234"), (b"no", b"1234")]))
    short = Tree(World(1).pager, Descriptor(), 1)
    with pytest.raises(LimitExceeded, match="KEY_SIZE_MAX"):
        short.update(PackedPairs([(b"k" * 60, b"")]))
    tree.close()
    with pytest.raises(StoreClosed):
        tree.update(PackedPairs([(b"12345678", b"1234")]))


@pytest.mark.parametrize(
    ("pair", "error", "words"),
    [
        ((b"", b"v"), InvalidRequest, "pair 2: an empty key"),
        ((b"k" * (MAP_KEY_MAX + 1), b"v"), LimitExceeded, "pair 2: .*MAP_KEY_MAX"),
        (("k", b"v"), TypeError, "pair 2: bytes, .* not str"),
        ((b"k", 5), TypeError, "pair 2: bytes, .* not int"),
        ((b"k", None), TypeError, "pair 2: bytes, .* not NoneType"),
        ((b"k",), TypeError, "pair 2: a key and a value are wanted, not tuple"),
        (7, TypeError, "pair 2: a key and a value are wanted, not int"),
    ],
)
def test_a_pair_that_cannot_be_is_named(pair: object, error: type[Exception], words: str) -> None:
    given_pairs: list[Any] = [(b"a", b"1"), (b"b", b"2"), pair, (b"c", b"3")]
    with pytest.raises(error, match=words):
        PackedPairs(given_pairs)
    assert list(PackedPairs([(b"k" * MAP_KEY_MAX, b"")])) == [(b"k" * MAP_KEY_MAX, b"")]


def test_a_list_that_changes_while_it_is_packed_is_refused() -> None:
    pairs: list[Any] = [(b"a", b"1")]

    class Growing:
        def __iter__(self) -> Any:
            pairs.append((b"c", b"3"))
            return iter((b"b", b"2"))

    pairs.append(Growing())
    with pytest.raises(InvalidRequest, match="changed"):
        PackedPairs(pairs)


def test_one_large_pair_reserves_no_memory_for_many_small_ones() -> None:
    """The room for all pairs was guessed from the first: four gigabytes for a million pairs of one byte behind one of a page."""
    pairs = [(b"k" * 8, b"v" * 4096)] + [(b"k", b"")] * 100_000
    tracemalloc.start()
    try:
        packed = PackedPairs(pairs)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert list(packed) == pairs


@pytest.mark.parametrize("room", [-1, TRANSACTION_BYTES_MAX + 1, 1 << 62, (1 << 63) - 3, (1 << 63) - 1])
def test_room_for_a_prefix_that_no_transaction_has_is_refused(room: int) -> None:
    """The largest number overflowed, and was a SystemError."""
    with pytest.raises(InvalidRequest, match="room"):
        PackedPairs([], room)


NEW = [(b"%04d" % n, b"new%d" % n * (1 + n % 5)) for n in range(1, 230, 7)] + [(b"0090", b"short"), (b"0091", b"long" * 999)]


def test_fetching_reads_what_updating_needs() -> None:
    """But for the index of a long value that is replaced: fetching has read and checked it, and no one keeps it."""
    scene = Scene(shared=False, dirty=False)
    pairs = [pair for pair in NEW if int(pair[0]) % 30]
    packed = PackedPairs(pairs)
    scene.tree.fetch(packed)
    before = scene.device.reads
    scene.tree.update(packed)
    assert scene.device.reads == before > 20
    scene.model.update(pairs)
    scene.sound(scene.model)


@pytest.mark.parametrize(
    ("descriptor", "pair"),
    [
        (Descriptor(8, comparator=COMPARE_U64_LE), (b"a", b"x")),
        (Descriptor(comparator=COMPARE_PAIR), (b"\0\1\0", b"x")),
        (Descriptor(8, 4), (b"12345678", b"123")),
        (Descriptor(8, 4, duplicates=True), (b"a", b"1234")),
        (Descriptor(), (b"k" * 100, b"x")),
    ],
)
def test_fetching_refuses_what_updating_would(descriptor: Descriptor, pair: Pair) -> None:
    """Keys were not checked, and of short ones bytes beyond their end were read."""
    tree = Tree(World(1).pager, descriptor, 1)
    packed = PackedPairs([pair])
    with pytest.raises(MdstoreError) as by_update:
        tree.update(packed)
    with pytest.raises(type(by_update.value)) as by_fetch:
        tree.fetch(packed)
    assert str(by_fetch.value) == str(by_update.value)
    tree.close()
    with pytest.raises(StoreClosed):
        tree.fetch(packed)


@pytest.mark.parametrize("descriptor", SHAPES_OF_TREES)
def test_fetching_into_trees_of_every_shape_reads_what_updating_needs(descriptor: Descriptor) -> None:
    world = World(1)
    made = Tree(world.pager, descriptor, 1)
    made.update((b"%08d" % n, b"%04d" % n) for n in range(400))
    tree = Tree.open(world.pager, world.seal(made))
    world.write()
    made.close()
    packed = PackedPairs([(b"%08d" % n, b"%04d" % n) for n in range(0, 400, 9)])
    before = world.pager.counters()["pages_read"]
    tree.fetch(packed)
    fetched = world.pager.counters()["pages_read"]
    tree.update(packed)
    assert world.pager.counters()["pages_read"] == fetched > before + 5
    tree.close()


@pytest.mark.parametrize("damage", [False, True], ids=["refused", "damaged"])
def test_a_page_that_cannot_be_read_is_found_by_fetching(damage: bool) -> None:
    expected = CorruptionError if damage else DeviceFailed
    found = 0
    for step in range(200):
        scene = Scene(shared=False, dirty=False)
        scene.device.damage, scene.device.reads_left = damage, step
        try:
            scene.tree.fetch(PackedPairs(NEW))
        except expected:
            scene.device.reads_left = -1
            scene.sound(scene.model)
            found += 1
            continue
        if not scene.device.failed:  # else a read of several pages was made again, page by page
            assert found > 20
            return
    raise AssertionError("it never got by without a failure")


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("failures", [1, 10**9], ids=["once", "from then on"])
def test_an_allocation_that_fails_leaves_each_pair_put_or_not(failures: int, shared: bool) -> None:
    new = dict(NEW)
    for step in range(2000):
        scene = Scene(shared=shared, dirty=False)
        fail_memory(step, failures)
        try:
            in_tree(scene.tree, NEW)
        except MemoryError:
            assert fail_memory(-1) > 0
            found = dict(scene.tree.items())
            assert found.keys() >= scene.model.keys()
            for key, value in found.items():
                assert value in (scene.model.get(key), new.get(key))
            scene.sound(found)
            continue
        scene.model.update(NEW)
        failed = fail_memory(-1)
        scene.sound(scene.model)
        if not failed:
            assert step > 20
            return
    raise AssertionError("it never got by without a failure")


def test_threads_may_fetch_and_update_one_tree_with_pairs_they_share() -> None:
    """Whoever comes last has won for a key; nothing else is ever there, and no record is lost or counted twice."""
    tree = Tree(World(1, page_size=512, cache_bytes=1 << 16).pager, Descriptor(), 1)
    lots = [PackedPairs([(b"%05d" % (n * 7919 % 9000), b"%d:%d" % (lot, n)) for n in range(3000)]) for lot in range(4)]
    added: list[int] = []

    def work(first: int) -> None:
        for turn in range(12):
            pairs = lots[(first + turn) % len(lots)]
            tree.fetch(pairs)
            added.append(tree.update(pairs))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    possible: dict[bytes, set[bytes]] = {}
    for key, value in (pair for pairs in lots for pair in pairs):
        possible.setdefault(key, set()).add(value)
    found = dict(tree.items())
    assert found.keys() == possible.keys()
    assert all(value in possible[key] for key, value in found.items())
    assert len(tree) == sum(added) == len(found)
    assert tree.check() == []
