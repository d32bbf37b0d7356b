"""References under right checksums which lie: past the end of the medium, to pages of something else, about what is below; values
and keys longer than their lengths can be written; and a walk beside eviction."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crc32c as reference
import pytest

from mdstore.btree import Pager, Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE, call_in_walk
from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, DeviceFailed
from tests.model.btree_world import World, new_tree

ROOT = 32  # bytes of a root record in front of the reference, without a blob
SPILLED = 1 << 63  # in a reference's count


def sealed(count: int = 100, **fields: object) -> tuple[World, bytes]:
    world = World(1, holes=False)
    tree = new_tree(world, **fields)
    for n in range(count):
        tree.put(b"%06d" % n, b"v" * 20)
    root = world.seal(tree)
    world.write()
    return world, root


def body_at(page: bytes | bytearray, slot: int) -> int:
    """Where what follows the key of a slot begins: a reference, or a value."""
    offset, size = struct.unpack_from("<HH", page, PAGE_HEADER_SIZE + 8 * slot + 4)
    return int(offset + size)


@contextmanager
def forging(world: World, root: bytes) -> Iterator[tuple[bytearray, bytearray]]:
    """The root page and the root record, to be changed; then the page has a right checksum, which the record names."""
    size = world.pager.page_size
    (address,) = struct.unpack_from("<Q", root, ROOT)
    page, forged = bytearray(world.device.image[address * size : (address + 1) * size]), bytearray(root)
    yield page, forged
    page[:4] = forged[ROOT + 8 : ROOT + 12] = reference.crc32c(bytes(page[4:])).to_bytes(4, "little")
    world.device.image[address * size : (address + 1) * size] = page


def on_file(world: World, path: Path) -> FileDevice:
    path.write_bytes(bytes(world.device.image) + bytes(4096))
    return FileDevice.open(str(path))


def everything_refused(tree: Tree, match: str) -> None:
    """Each way to the first leaf."""
    acts = (
        lambda: tree.get(b"000000"),
        lambda: tree.get_many([b"000000"]),
        tree.first,
        lambda: list(tree.items(reverse=True)),
        lambda: tree.snapshot().get(b"000000"),
        lambda: tree.count(b"000000", b"000001"),
        lambda: tree.put(b"000000", b"new"),
        lambda: tree.delete(b"000000"),
        lambda: tree.delete_range(b"000000", b"000002"),
    )
    for act in acts:
        with pytest.raises(CorruptionError, match=match):
            act()
    assert any(match in problem for problem in tree.check())


@pytest.mark.parametrize("address", [1 << 20, 1 << 40, (1 << 48) - 1])
@pytest.mark.parametrize("medium", ["memory", "file"])
def test_a_reference_past_the_end_of_the_medium_is_damage_not_a_failed_device(
    medium: str, address: int, tmp_path: Path
) -> None:
    world, root = sealed()
    with forging(world, root) as (page, forged):
        struct.pack_into("<Q", page, body_at(page, 0), address)
    pager = world.pager if medium == "memory" else Pager(on_file(world, tmp_path / "image"), page_size=256)
    with pytest.raises(CorruptionError, match="outside the device") as caught:
        Tree.open(pager, bytes(forged)).get(b"000000")
    end = (len(world.device.image) + (4096 if medium == "file" else 0)) // 256
    assert caught.value.where == f"address {address}, tree 7, level 1 (page address outside the device)"
    assert (caught.value.expected, caught.value.found) == (f"below {end:#x}", hex(address))
    with pytest.raises(CorruptionError, match="outside the device"):
        list(Tree.open(pager, bytes(forged)).items())


def test_the_largest_pages_at_the_largest_address_are_damage_on_a_file_too(tmp_path: Path) -> None:
    world = World(1, page_size=65536, holes=False)
    tree = new_tree(world)
    tree.put(b"key", b"v" * 100)
    root = bytearray(world.seal(tree))
    world.write()
    struct.pack_into("<Q", root, ROOT, (1 << 48) - 1)
    with pytest.raises(CorruptionError, match="outside the device"):
        Tree.open(Pager(on_file(world, tmp_path / "image"), page_size=65536), bytes(root)).get(b"key")


def test_a_file_that_has_shrunk_is_a_failed_device(tmp_path: Path) -> None:
    world, root = sealed()
    device = on_file(world, tmp_path / "image")
    (tmp_path / "image").write_bytes(b"")
    with pytest.raises(DeviceFailed, match="end of the medium"):
        Tree.open(Pager(device, page_size=256), root).get(b"000000")


@pytest.mark.parametrize("medium", ["memory", "file"])
def test_a_spilled_value_past_the_end_of_the_medium_is_damage(medium: str, tmp_path: Path) -> None:
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.put(b"long", b"L" * 2000)
    root = world.seal(tree)
    world.write()
    with forging(world, root) as (page, forged):
        struct.pack_into("<Q", page, body_at(page, 0) + 2 + 16, 1 << 30)
    pager = world.pager if medium == "memory" else Pager(on_file(world, tmp_path / "image"), page_size=256)
    with pytest.raises(CorruptionError, match="outside the device"):
        Tree.open(pager, bytes(forged)).get(b"long")


@pytest.mark.parametrize("count", [0, 1, 99, 1 << 39])
@pytest.mark.parametrize("mark", [0, SPILLED])
def test_a_reference_that_counts_other_records_than_its_leaf_has_is_refused(count: int, mark: int) -> None:
    world, root = sealed(20)
    with forging(world, root) as (page, forged):
        assert page[24] == 1
        at = body_at(page, 0) + 20
        before = struct.unpack_from("<Q", page, at)[0]
        assert before in range(2, 20)
        struct.pack_into("<Q", page, at, count | mark)
        total = 20 - before + count
        struct.pack_into("<Q", forged, ROOT + 20, total | mark)
        struct.pack_into("<Q", forged, 24, total)
    tree = Tree.open(world.pager, bytes(forged))
    everything_refused(tree, "records below")
    assert len(tree) == total


def test_a_mark_of_spilled_values_that_is_missing_is_refused() -> None:
    """It says which leaves have to be read to find the pages that their values have: without it they would be given away."""
    world = World(1, holes=False)
    tree = new_tree(world)
    for n in range(20):
        tree.put(b"%06d" % n, b"v" * (2000 if n == 0 else 20))
    root = world.seal(tree)
    world.write()
    with forging(world, root) as (page, forged):
        at = body_at(page, 0) + 20
        records = struct.unpack_from("<Q", page, at)[0]
        assert records & SPILLED
        struct.pack_into("<Q", page, at, records & ~SPILLED)
        struct.pack_into("<Q", forged, ROOT + 20, 20)
    everything_refused(Tree.open(world.pager, bytes(forged)), "records below")


def test_an_index_page_whose_references_count_too_much_or_not_what_is_stated_is_refused() -> None:
    for forged_count in (1 << 40, (1 << 63) - 1, 5):
        world, root = sealed()
        with forging(world, root) as (page, forged):
            struct.pack_into("<Q", page, body_at(page, 0) + 20, forged_count)
        tree = Tree.open(world.pager, bytes(forged))
        everything_refused(tree, "records below")
        with pytest.raises(CorruptionError, match=r"\(records below\)"):
            tree.count()


def test_a_root_record_that_counts_other_records_than_its_reference_is_refused() -> None:
    world, root = sealed()
    assert len(Tree.open(world.pager, root)) == 100
    for count in (1, 99, 101, (1 << 40) - 1):
        with pytest.raises(CorruptionError, match="record count"):
            Tree.open(world.pager, root[:24] + count.to_bytes(8, "little") + root[32:])


def test_the_check_compares_the_counts_of_pages_in_memory() -> None:
    """Pages that wait to be written are taken as they are; a page read from the device that counts them wrongly is told."""
    world = World(1, holes=False)
    tree = new_tree(world)
    for n in range(20):
        tree.put(b"%06d" % n, b"v" * 20)
    root = world.seal(tree)
    world.write()
    first = bytes(world.device.image)
    sealing = World(1, holes=False)  # the same pages once more, which its pager does not write
    again = new_tree(sealing)
    for n in range(20):
        again.put(b"%06d" % n, b"v" * 20)
    assert sealing.seal(again) == root
    (address,) = struct.unpack_from("<Q", root, ROOT)
    page = bytearray(first[address * 256 : address * 256 + 256])
    at = body_at(page, 0) + 20
    records = struct.unpack_from("<Q", page, at)[0]
    struct.pack_into("<Q", page, at, records + 1)
    page[:4] = reference.crc32c(bytes(page[4:])).to_bytes(4, "little")
    sealing.device.image.extend(bytes(1000 * 256) + page)
    forged = bytearray(root)
    struct.pack_into("<Q4s", forged, ROOT, 1000, bytes(page[:4]))
    struct.pack_into("<Q", forged, ROOT + 20, 21)
    struct.pack_into("<Q", forged, 24, 21)
    problems = Tree.open(sealing.pager, bytes(forged)).check()
    assert len(problems) == 1
    assert f"states {records + 1:#x} records below" in problems[0]
    assert f"there are {records:#x}" in problems[0]


def test_a_reference_with_another_checksum_does_not_name_a_page_that_waits_to_be_written() -> None:
    world = World(1, holes=False)
    tree = new_tree(world)
    for n in range(100):
        tree.put(b"%06d" % n, b"v" * 20)
    root = world.seal(tree)
    assert Tree.open(world.pager, root).get(b"000050") == b"v" * 20
    forged = bytearray(root)
    forged[ROOT + 8] ^= 1
    with pytest.raises(CorruptionError):
        Tree.open(world.pager, bytes(forged)).get(b"000050")


def test_a_spilled_value_does_not_read_the_pages_of_another_that_waits_to_be_written() -> None:
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.put(b"long", b"L" * 200)
    root = world.seal(tree)
    world.write()
    other = new_tree(world, 8)
    other.put(b"other", b"O" * 200)
    waiting = world.next_page
    world.seal(other)
    with forging(world, root) as (page, forged):
        struct.pack_into("<Q", page, body_at(page, 0) + 2 + 16, waiting + 1)  # behind the leaf
    with pytest.raises(CorruptionError):
        Tree.open(world.pager, bytes(forged)).get(b"long")


# -- lengths ---------------------------------------------------------------------------------------------------------------
def relabelled(root: bytes, *, key_size: int = -2, value_size: int = -4) -> bytes:
    forged = bytearray(root)
    struct.pack_into("<h", forged, 4, key_size)
    struct.pack_into("<i", forged, 8, value_size)
    return bytes(forged)


def one_record(key: bytes, value: bytes, page_size: int = 4096, **fields: object) -> tuple[World, bytes]:
    world = World(1, page_size=page_size, holes=False)
    tree = new_tree(world, **fields)
    tree.put(key, value)
    root = world.seal(tree)
    world.write()
    assert list(Tree.open(world.pager, root).items()) == [(key, value)]
    return world, root


@pytest.mark.parametrize("page_size", [256, 512, 4096])  # in the first two the longer value has spilled
@pytest.mark.parametrize(("value_size", "most"), [(-1, 255), (-2, 65535)])
def test_a_value_longer_than_its_length_can_be_written_is_refused(page_size: int, value_size: int, most: int) -> None:
    world, root = one_record(b"k", b"x" * most, page_size)
    assert Tree.open(world.pager, relabelled(root, value_size=value_size)).get(b"k") == b"x" * most
    world, root = one_record(b"k", b"x" * (most + 1), page_size)
    with pytest.raises(CorruptionError, match="value size"):
        Tree.open(world.pager, relabelled(root, value_size=value_size)).get(b"k")


def test_a_spilled_value_of_another_size_than_the_descriptor_fixes_is_refused() -> None:
    world, root = one_record(b"k", b"x" * 300, 256)
    assert Tree.open(world.pager, relabelled(root, value_size=300)).get(b"k") == b"x" * 300
    for size in (299, 301):
        with pytest.raises(CorruptionError, match="value size"):
            Tree.open(world.pager, relabelled(root, value_size=size)).get(b"k")


def test_a_key_longer_than_its_length_can_be_written_is_refused() -> None:
    world, root = one_record(b"k" * 255, b"")
    assert Tree.open(world.pager, relabelled(root, key_size=-1)).get(b"k" * 255) == b""
    world, root = one_record(b"k" * 256, b"")
    with pytest.raises(CorruptionError, match="key size"):
        Tree.open(world.pager, relabelled(root, key_size=-1)).first()


def test_a_value_among_duplicates_of_another_size_than_the_descriptor_says_is_refused() -> None:
    world, root = one_record(b"k", b"x" * 255, duplicates=True)
    assert Tree.open(world.pager, relabelled(root, value_size=-1)).get(b"k") == b"x" * 255
    assert Tree.open(world.pager, relabelled(root, value_size=255)).get(b"k") == b"x" * 255
    with pytest.raises(CorruptionError, match="value size"):
        Tree.open(world.pager, relabelled(root, value_size=254)).first()
    world, root = one_record(b"k", b"x" * 256, duplicates=True)
    with pytest.raises(CorruptionError, match="value size"):
        Tree.open(world.pager, relabelled(root, value_size=-1)).first()


# -- walks -----------------------------------------------------------------------------------------------------------------
def test_no_page_is_evicted_while_a_walk_looks_at_it() -> None:
    """The walk has a child's place in memory and nothing else that keeps it there."""
    world, root = sealed()
    tree = Tree.open(world.pager, root)
    assert tree.get_many([b"%06d" % n for n in range(100)]) == [b"v" * 20] * 100
    resident = world.pager.counters()["cached_bytes"]
    seen: list[int] = []

    def shrink() -> None:
        world.pager.cache_bytes = 0
        seen.append(world.pager.counters()["cached_bytes"])

    walk = tree.pages()
    call_in_walk(shrink)
    found = [next(walk), next(walk)]
    assert seen == [resident], "what the walk looks at is gone"
    assert world.pager.counters()["cached_bytes"] < resident, "the step makes room once it has let go"
    found.extend(walk)
    assert {address for address, _, _ in found} == world.held
