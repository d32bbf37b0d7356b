"""What a tree is: descriptors, comparators, root records, limits."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable

import pytest

from mdstore.btree import (
    COMPARE_BYTES,
    COMPARE_I64,
    COMPARE_PAIR,
    COMPARE_REVERSE,
    COMPARE_U64_BE,
    COMPARE_U64_LE,
    Descriptor,
    Tree,
    key_size_max,
)
from mdstore.btree._kernel import fail_memory
from mdstore.errors import CorruptionError, InvalidRequest, LimitExceeded, MdstoreError, UnsupportedFormat
from tests.model.btree_world import World, new_tree


def pair(a: bytes, b: bytes) -> bytes:
    return struct.pack("<H", len(a)) + a + struct.pack("<H", len(b)) + b


def unpair(key: bytes) -> tuple[bytes, bytes]:
    size = struct.unpack_from("<H", key)[0]
    return key[2 : 2 + size], key[4 + size :]


class Backwards(bytes):
    """Bytes that order the other way round."""

    def __lt__(self, other: bytes) -> bool:
        return bytes(self) > bytes(other)


ORDERS: list[tuple[int, int, Callable[[random.Random], bytes], Callable[[bytes], object]]] = [
    (COMPARE_BYTES, -2, lambda r: r.randbytes(r.randrange(20)), bytes),
    (COMPARE_U64_LE, 8, lambda r: r.randbytes(8), lambda k: int.from_bytes(k, "little")),
    (COMPARE_U64_BE, 8, lambda r: r.randbytes(8), lambda k: int.from_bytes(k, "big")),
    (COMPARE_I64, 8, lambda r: r.randbytes(8), lambda k: int.from_bytes(k, "little", signed=True)),
    (COMPARE_REVERSE, -1, lambda r: r.randbytes(r.randrange(12)), Backwards),
    (COMPARE_PAIR, -2, lambda r: pair(r.randbytes(r.randrange(4)), r.randbytes(r.randrange(4))), unpair),
]


@pytest.mark.parametrize(("comparator", "key_size", "make", "order"), ORDERS)
def test_each_comparator_orders_iterates_and_survives_reopening(
    comparator: int, key_size: int, make: Callable[[random.Random], bytes], order: Callable[[bytes], object]
) -> None:
    world = World(comparator)
    tree = new_tree(world, key_size=key_size, value_size=-1, comparator=comparator)
    keys = {make(world.random) for _ in range(400)}
    for key in keys:
        tree.put(key, key[:9])
    tree = Tree.open(world.pager, world.seal(tree))
    expected = sorted(keys, key=order)  # type: ignore[arg-type]
    assert list(tree.keys()) == expected
    assert tree.check() == []
    low, high = sorted(world.random.sample(expected, 2), key=order)  # type: ignore[arg-type]
    assert list(tree.keys(low, high)) == expected[expected.index(low) : expected.index(high)]
    for key in expected[::2]:
        assert tree.get(key) == key[:9]
        assert tree.delete(key)
    assert list(tree.keys(reverse=True)) == expected[1::2][::-1]
    assert tree.check() == []


@pytest.mark.parametrize("fields", [(8, 16), (-1, -2), (16, 0), (-2, -4), (-4, 4), (4, -1), (20, 300)])
def test_fixed_and_prefixed_sizes_round_trip_embedded_and_in_pages(fields: tuple[int, int]) -> None:
    key_size, value_size = fields
    for count, limit in itertools.product((1, 3, 60), (0, 2000)):
        world = World(count, page_size=512)
        tree = new_tree(world, key_size=key_size, value_size=value_size, embed_limit=limit)
        for n in range(count):
            key = b"%04d" % n + bytes(key_size - 4 if key_size > 0 else n % 20)
            tree.put(key, world.random.randbytes(value_size if value_size >= 0 else n % 50))
        expected = list(tree.items())
        assert len(expected) == count
        root = world.seal(tree)
        world.write()
        again = Tree.open(world.pager, root, tree.descriptor)
        assert list(again.items()) == expected
        assert again.descriptor == tree.descriptor
        assert again.check() == []


def test_a_changed_descriptor_is_refused() -> None:
    world = World(1)
    root = world.seal(new_tree(world, key_size=-1))
    with pytest.raises(UnsupportedFormat):
        Tree.open(world.pager, root, Descriptor(key_size=-2))
    assert Tree.open(world.pager, root, Descriptor(key_size=-1)).descriptor.key_size == -1


def test_unknown_version_and_comparator_are_refused() -> None:
    world = World(1)
    root = world.seal(new_tree(world))
    for offset, value in ((0, 3), (0, 0), (2, 0), (2, 7), (2, 255)):
        with pytest.raises(UnsupportedFormat):
            Tree.open(world.pager, root[:offset] + bytes([value]) + root[offset + 1 :])
    with pytest.raises(UnsupportedFormat):
        Descriptor(comparator=9)


def test_every_damaged_byte_of_a_root_record_is_refused_or_opens_safely() -> None:
    """The record carries no checksum of its own (its owner's covers it), so this asks for safety, not for detection."""
    world = World(1)
    tree = new_tree(world, embed_limit=500)
    tree.user_blob = b"blob"
    for n in range(9):
        tree.put(b"key%d" % n, b"value" * n)
    embedded = world.seal(tree)
    tree.update((b"%d" % n, b"v" * 30) for n in range(40))
    paged = world.seal(tree)
    for root, at, bit in itertools.product((embedded, paged), range(len(embedded)), range(8)):
        if at >= len(root):
            continue
        bad = bytearray(root)
        bad[at] ^= 1 << bit
        try:
            list(Tree.open(world.pager, bytes(bad)).items())
        except MdstoreError:
            pass
    for size in range(len(embedded)):
        with pytest.raises((CorruptionError, UnsupportedFormat)):
            Tree.open(world.pager, embedded[:size])


def test_an_embedded_record_costs_at_most_forty_bytes() -> None:
    world = World(1)
    tree = new_tree(world, embed_limit=100)
    tree.put(b"key", b"value")
    root = world.seal(tree)
    assert len(root) - len(b"keyvalue") <= 40
    assert world.asked == 0


def test_embedded_tree_grows_out_above_the_limit_and_back_in_below_half() -> None:
    world = World(1)
    tree = new_tree(world, key_size=4, value_size=6, embed_limit=100)
    sizes = []
    for n in range(11):
        tree.put(b"%04d" % n, b"sixsix")
        world.seal(tree)
        sizes.append(world.asked)
    assert sizes == [0] * 10 + [1]
    sizes = []
    for n in range(11):
        tree.delete(b"%04d" % n)
        world.seal(tree)
        sizes.append(world.asked)
    assert sizes == [1] * 5 + [0] * 6
    world.write()
    world.drain_freed()
    assert world.held == set()


def test_thousands_of_small_trees_as_values_of_another() -> None:
    world = World(3, page_size=4096)
    outer = new_tree(world, 1)
    for n in range(3000):
        inner = new_tree(world, 10 + n, embed_limit=200)
        inner.put(b"name", b"%d" % n)
        outer.put(b"%06d" % n, inner.seal(world.allocate))
    before = world.pager.counters()["dirty_bytes"]
    opened = [Tree.open(world.pager, root) for root in (value for _, value in outer.items())]
    assert [tree.get(b"name") for tree in opened] == [b"%d" % n for n in range(3000)]
    assert world.pager.counters()["dirty_bytes"] == before, "open embedded trees are not dirty"
    opened[5].put(b"name", b"x" * 400)
    assert opened[5].dirty_pages == 1
    assert opened[6].dirty_pages == 0


def test_limits_at_the_border_one_under_and_one_over() -> None:
    for page_size, copies in ((256, 1), (256, 3), (512, 1), (4096, 1), (4096, 3), (65536, 1)):
        most = key_size_max(page_size, copies)
        assert most == 1024 or page_size < 4096
        world = World(1, page_size=page_size)
        tree = new_tree(world, copies=copies)
        for size in (most - 1, most):
            for n in range(12):
                tree.put(b"%03d" % n + bytes(size - 3), b"v" * n * 9)
        with pytest.raises(LimitExceeded) as refused:
            tree.put(bytes(most + 1), b"")
        assert (refused.value.value, refused.value.maximum) == (most + 1, most)
        assert len(tree) == 24
        world.seal(tree)
        world.write()
        assert tree.check() == []
    tree = new_tree(World(1), key_size=-1, value_size=-1)
    tree.put(b"", b"v" * 255)
    with pytest.raises(LimitExceeded):
        tree.put(b"k", b"v" * 256)
    fixed = new_tree(World(1), key_size=4, value_size=4)
    for key, value in ((b"abc", b"1234"), (b"abcd", b"123")):
        with pytest.raises(InvalidRequest):
            fixed.put(key, value)
    with pytest.raises(LimitExceeded):
        fixed.user_blob = bytes(65537)


def test_sealed_blob_comes_back_with_the_root() -> None:
    world = World(1)
    tree = new_tree(world)
    root = world.seal(tree)
    tree.user_blob = b"header"
    assert tree.is_dirty
    assert tree.dirty_pages == 0
    assert Tree.open(world.pager, root).user_blob == b""
    assert Tree.open(world.pager, tree.seal(world.allocate)).user_blob == b"header"


@pytest.mark.parametrize("size", [1 << 31, (1 << 32) + 1])
def test_a_key_longer_than_a_c_int_says_is_not_taken_for_a_shorter_one(size: int) -> None:
    """Of a key of 4 GiB and one byte the lowest 32 bits of its length were looked at, and the first byte was found."""
    try:
        key = bytes(size)  # zeros that no one touches take no memory
    except MemoryError:
        pytest.skip("no room for so long a key")
    tree = new_tree(World(1))
    tree.put(b"\0", b"v")
    for ask in (lambda: tree.get(key), lambda: key in tree, lambda: tree.get_many([key])):
        with pytest.raises(LimitExceeded, match="KEY_SIZE_MAX"):
            ask()
    assert tree.get(bytes(70_000)) is None


def test_a_root_record_ends_with_its_last_record() -> None:
    world = World(1)
    tree = new_tree(world, embed_limit=200)
    tree.put(b"key", b"value")
    root = world.seal(tree)
    assert list(Tree.open(world.pager, root).items()) == [(b"key", b"value")]
    for wrong in (root + b"\0", root[:-1]):
        with pytest.raises(CorruptionError):
            Tree.open(world.pager, wrong)


@pytest.mark.parametrize("embed_limit", [0, 200])
def test_flags_of_a_root_record_that_have_no_meaning_are_refused(embed_limit: int) -> None:
    world = World(1)
    tree = new_tree(world, embed_limit=embed_limit)
    tree.put(b"key", b"value")
    root = bytearray(world.seal(tree))
    for bit in range(4, 8):
        root[1] ^= 1 << bit
        with pytest.raises(CorruptionError, match=r"\(flags, byte 1\): expected below 0x10"):
            Tree.open(world.pager, bytes(root))
        root[1] ^= 1 << bit
    assert Tree.open(world.pager, bytes(root)).get(b"key") == b"value"


def put(root: bytearray, at: int, value: int, size: int) -> None:
    root[at : at + size] = value.to_bytes(size, "little")


# The records of the embedded tree: u16 3 "cat" u32 3 "tom", u16 3 "dog" u32 3 "rex", from byte 32 on
EMBEDDED: dict[str, tuple[Callable[[bytearray], object], str, str, str]] = {
    "flags": (lambda root: put(root, 1, root[1] | 16, 1), "flags, byte 1", "below 0x10", "0x14"),
    "a blob past the record": (lambda root: put(root, 12, 25, 4), "length of the user blob, byte 12", "at most 0x18", "0x19"),
    "a blob longer than any": (
        lambda root: put(root, 12, 1 << 31, 4), "length of the user blob, byte 12", "at most 0x10000", "0x80000000"
    ),
    "records beyond counting": (
        lambda root: put(root, 24, 1 << 40, 8), "record count, byte 24", "below 0x10000000000", "0x10000000000"
    ),
    "more records than bytes": (lambda root: put(root, 24, 26, 8), "record count, byte 24", "at most 0x19", "0x1a"),
    "a record more": (
        lambda root: put(root, 24, 3, 8), "bytes left for the length of a key, slot 2, byte 56", "at least 0x2", "0x0"
    ),
    "a record less": (lambda root: put(root, 24, 1, 8), "bytes after the last record, byte 44", "0x0", "0xc"),
    "a level": (lambda root: put(root, 3, 1, 1), "level of an embedded tree, byte 3", "0x0", "0x1"),
    "a key past the record": (lambda root: put(root, 44, 11, 2), "key length, slot 1, byte 44", "at most 0xa", "0xb"),
    "no length of a value": (
        lambda root: put(root, 44, 7, 2), "bytes left for the length of a value, slot 1, byte 53", "at least 0x4", "0x3"
    ),
    "a value past the record": (lambda root: put(root, 49, 4, 4), "value length, slot 1, byte 49", "at most 0x3", "0x4"),
    "keys in no order": (
        lambda root: put(root, 46, 0x626262, 3), "key order, slot 1, byte 46", "above 0x6361740000000000", "0x6262620000000000"
    ),
}  # fmt: skip
PAGED: dict[str, tuple[Callable[[bytearray], object], str, str, str]] = {
    "length": (lambda root: root.append(0), "length", "0x3c", "0x3d"),
    "level": (lambda root: put(root, 3, 40, 1), "level, byte 3", "below 0x28", "0x28"),
    "no records": (lambda root: put(root, 24, 0, 8), "record count, byte 24", "at least 0x1", "0x0"),
    "another count": (lambda root: put(root, 24, 9, 8), "record count, byte 24", "0x2", "0x9"),
}


@pytest.mark.parametrize(
    ("embed_limit", "row"),
    [*((200, row) for row in EMBEDDED.values()), *((0, row) for row in PAGED.values())],
    ids=[*EMBEDDED, *PAGED],
)
def test_what_a_root_record_says_is_checked_and_the_evidence_is_told(
    embed_limit: int, row: tuple[Callable[[bytearray], object], str, str, str]
) -> None:
    edit, evidence, expected, found = row
    world = World(1)
    tree = new_tree(world, embed_limit=embed_limit)
    tree.update([(b"cat", b"tom"), (b"dog", b"rex")])
    root = bytearray(world.seal(tree))
    edit(root)
    with pytest.raises(CorruptionError) as caught:
        Tree.open(world.pager, bytes(root))
    error = caught.value
    assert (error.what, error.where) == ("root record", f"tree 7 ({evidence})")
    assert (error.expected, error.found) == (expected, found)


def test_an_embedded_tree_that_has_no_memory_is_not_called_damaged() -> None:
    world = World(1)
    tree = new_tree(world, embed_limit=200)
    tree.put(b"key", b"value")
    root = world.seal(tree)
    fail_memory(1)  # its core is had, its leaf is not
    try:
        with pytest.raises(MemoryError):
            Tree.open(world.pager, root)
    finally:
        fail_memory(-1)
    assert Tree.open(world.pager, root).get(b"key") == b"value"
