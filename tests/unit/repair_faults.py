"""Images with one thing wrong each, under right checksums, and images that lost pages: what tests of repair share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from mdstore.device.memory import MemoryDevice
from mdstore.store import Store, Transaction
from mdstore.store.onode import object_key
from mdstore.store.revisions import revision_key
from mdstore.tools.reader import superblock as superblocks
from mdstore.tools.reader.onode import decode_extent
from mdstore.tools.reader.snapshots import find_snapshot
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.reader.superblock import ROOT_OBJECTS, ROOT_REFERENCES
from mdstore.tools.repair.bench import DeviceImage
from tests.crash.test_damage_matrix import pages_of
from tests.unit.reader_images import (
    BLOCK,
    changed,
    newest,
    patched,
    place_of,
    store_image,
    superblock_start,
)
from tests.unit.test_reader_store import free_before_used, largest_free, reader_of

Inject = Callable[[bytes, Path], bytes]


def cloned_image() -> bytes:
    """With a clone that wrote: it shares blocks with its origin, counted one by one."""

    def overwrite(store: Store) -> None:
        store.apply(Transaction().write("c", "origin", 0, b"o" * 9000))
        store.apply(Transaction().clone("c", "origin", "twin"))
        store.apply(Transaction().write("c", "twin", 700, b"different"))

    return changed(store_image(), overwrite)


def leaked_extent(image: bytes, tmp_path: Path) -> bytes:
    _, at = largest_free(image, tmp_path)
    blocks = int.from_bytes(image[at : at + 8], "little")
    return patched(image, at, (blocks - 1).to_bytes(8, "little"))


def false_free(image: bytes, tmp_path: Path) -> bytes:
    _, blocks, at = free_before_used(image, tmp_path)
    return patched(image, at, (blocks + 1).to_bytes(8, "little"))


def shared_count(image: bytes, kind: int, step: int) -> bytes:
    record = newest(image).roots[kind]
    at = image.find(record, superblock_start(image)) + len(record) - 4
    count = int.from_bytes(image[at : at + 4], "little")
    return patched(image, at, (count + step).to_bytes(4, "little"))


def wrong_group(image: bytes, tmp_path: Path) -> bytes:
    return shared_count(image, superblocks.ROOT_GROUPS, 1)


def wrong_interval(image: bytes, tmp_path: Path) -> bytes:
    return shared_count(image, superblocks.ROOT_SHARED, 7)


def wrong_page_count(image: bytes, tmp_path: Path) -> bytes:
    key, value = next(iter(reader_of(image, tmp_path).root_tree(ROOT_REFERENCES).items()))
    at = place_of(image, key + value, tmp_path) + len(key)
    return patched(image, at, (5).to_bytes(4, "little"))


def two_objects_on_one_extent(image: bytes, tmp_path: Path) -> bytes:
    reader = reader_of(image, tmp_path)
    starts = []
    for name in (b"o0008", b"o0010"):
        onode = reader.find(1, name)
        assert onode is not None
        assert onode.data_root is not None
        starts.append(decode_extent(*next(reader.tree(onode.data_root, DATA_SHAPE).items())))
    one, other = starts
    wanted = other.start.to_bytes(8, "little") + other.blocks.to_bytes(2, "little") + b"\0\0"
    return patched(image, place_of(image, wanted, tmp_path), one.start.to_bytes(8, "little"))


def wrong_objects(image: bytes, tmp_path: Path) -> bytes:
    return superblock_number(image, 128)


def wrong_stored_bytes(image: bytes, tmp_path: Path) -> bytes:
    return superblock_number(image, 136)


def wrong_free_blocks(image: bytes, tmp_path: Path) -> bytes:
    return superblock_number(image, 144)


def superblock_number(image: bytes, offset: int) -> bytes:
    start = superblock_start(image)
    value = int.from_bytes(image[start + offset : start + offset + 8], "little") + 1
    return patched(image, start + offset, value.to_bytes(8, "little"))


def wrong_collection_count(image: bytes, tmp_path: Path) -> bytes:
    start = superblock_start(image)
    record = image.find(b"\x04maps\x01\0\0\0", start, start + 4096) + 5
    return patched(image, record + 12, (1).to_bytes(8, "little"))


def begins_at(image: bytes, key: bytes, created_rev: int, tmp_path: Path) -> bytes:
    """The object or revision of that key says that it is so since another revision."""
    value = dict(reader_of(image, tmp_path).root_tree(ROOT_OBJECTS).items())[key]
    return patched(image, place_of(image, value[:60], tmp_path) + 20, created_rev.to_bytes(8, "little"))


def revision_too_early(image: bytes, tmp_path: Path) -> bytes:
    """Of o0001 there are revisions 7, since 0, and 9, since 7; the object itself is so since 9."""
    return begins_at(image, revision_key(1, b"o0001", 9), 3, tmp_path)


def revision_behind_its_end(image: bytes, tmp_path: Path) -> bytes:
    return begins_at(image, revision_key(1, b"o0001", 9), 1 << 50, tmp_path)


def bytes_behind_a_long_value(image: bytes, tmp_path: Path) -> bytes:
    """The record of a revision lies in a page of its own."""
    value = dict(reader_of(image, tmp_path).root_tree(ROOT_OBJECTS).items())[revision_key(1, b"o0001", 9)]
    return patched(image, place_of(image, value[:60], tmp_path) // BLOCK * BLOCK + BLOCK - 1, b"x")


def bytes_behind_a_long_value_of_a_map(image: bytes, tmp_path: Path) -> bytes:
    onode = reader_of(image, tmp_path).find(2, b"m0")
    assert onode is not None
    assert onode.map_root is not None
    spilled: list[int] = []
    tree = reader_of(image, tmp_path).tree(onode.map_root, None)
    tree.on_pages = lambda page, _, is_overflow: (spilled.append(page) if is_overflow else None) is None
    list(tree.items())
    pages = [(page * BLOCK, image[page * BLOCK : (page + 1) * BLOCK]) for page in spilled]
    at = next(at for at, data in pages if data[4:8] != b"mbt1" and not any(data[-9:]))  # raw bytes, and not to the page's end
    return patched(image, at + BLOCK - 1, b"x")


def object_before_its_revision(image: bytes, tmp_path: Path) -> bytes:
    return begins_at(image, object_key(1, b"o0001"), 8, tmp_path)


FAULTS: list[tuple[Inject, set[str]]] = [
    (leaked_extent, {"space-leaked", "free-count"}),
    (false_free, {"space-false-free", "free-count"}),
    (wrong_group, {"group"}),
    (wrong_interval, {"references"}),
    (wrong_page_count, {"references"}),
    (two_objects_on_one_extent, {"space-shared", "space-leaked", "data-checksum"}),
    (wrong_objects, {"object-count"}),
    (wrong_stored_bytes, {"stored-bytes"}),
    (wrong_free_blocks, {"free-count"}),
    (wrong_collection_count, {"collection-count"}),
    (revision_too_early, {"revision"}),
    (revision_behind_its_end, {"revision"}),
    (object_before_its_revision, {"revision"}),
    (bytes_behind_a_long_value, {"overflow-tail"}),
    (bytes_behind_a_long_value_of_a_map, {"overflow-tail"}),
]


# -- pages gone ------------------------------------------------------------------------------------------------------
def large_image(*, is_closed: bool = True) -> bytes:
    """Enough objects for an object tree of three levels, maps and data of two."""
    random = Random(9)
    device = MemoryDevice(16 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=1 << 20, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(1500):
        name = f"object {number:05}"
        store.apply(Transaction().write("c", name, 0, random.randbytes(20)).setattr("c", name, "a", b"x"))
        if number % 5 == 0:
            store.apply(Transaction().map_set("c", "map", {b"key %05d" % number: random.randbytes(60)}))
            store.apply(Transaction().write("c", "data", number * 1024, random.randbytes(BLOCK)))
        if number % 400 == 399:
            store.checkpoint()
    store.apply(Transaction().remove("c", "object 00700"))
    if is_closed:
        store.close()
    return device.image()


def index_pages(image: bytes, tmp_path: Path, root: bytes) -> list[int]:
    """Pages of a tree above its leaves."""
    reader = reader_of(image, tmp_path)
    pages = pages_of(reader.tree(root, None))
    return [page for page in pages if image[page * BLOCK + 24]]


def without(image: bytes, pages: list[int]) -> bytes:
    damaged = bytearray(image)
    for page in pages:
        damaged[page * BLOCK : (page + 1) * BLOCK] = b"\xa5" * BLOCK
    return bytes(damaged)


def older_superblock_gone(image: bytes) -> bytes:
    """Only the newest superblock is left, so nothing can be had from the one before."""
    slot = 4096 - superblock_start(image)
    end = len(image) // 4096 * 4096 - 8192 + slot
    damaged = bytearray(image)
    for at in (slot, end):
        damaged[at : at + 4096] = bytes(4096)
    return bytes(damaged)


# -- blocks in each other's places -------------------------------------------------------------------------------------
def with_snapshot() -> bytes:
    """A store of which a part is only in its snapshot `kept`, another only in the live state."""
    random = Random(4)
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(200):
        store.apply(Transaction().write("c", f"o{number:03}", 0, random.randbytes(700)))
        store.apply(Transaction().map_set("c", "map", {b"key %03d" % number: random.randbytes(90)}))
    store.snapshot("kept")
    for number in range(0, 200, 2):
        store.apply(Transaction().write("c", f"o{number:03}", 0, random.randbytes(700)))
        store.apply(Transaction().map_set("c", "map", {b"key %03d" % number: b"changed"}))
    store.close()
    return device.image()


def blocks_of(image: bytes) -> tuple[list[int], list[int], list[int]]:
    """(pages of objects that only the snapshot reaches, such pages of the live state, blocks of data of the live state)."""
    opened = DeviceImage(MemoryDevice.from_bytes(image))
    reader = StoreReader(opened, newest(image))
    before = StoreReader(opened, find_snapshot(reader, b"kept").superblock)
    live, kept = (pages_of(one.root_tree(ROOT_OBJECTS)) for one in (reader, before))
    extents = [
        decode_extent(*record)
        for _, onode in reader.objects(1) if onode.data_root is not None
        for record in reader.tree(onode.data_root, DATA_SHAPE).items()
    ]  # fmt: skip
    blocks = [extent.start + index for extent in extents for index in range(extent.blocks)]
    return sorted(set(kept) - set(live)), sorted(set(live) - set(kept)), blocks


def swapped(image: bytes, one: int, other: int) -> bytes:
    """Two blocks in each other's places."""
    changed = bytearray(image)
    changed[one * BLOCK : (one + 1) * BLOCK] = image[other * BLOCK : (other + 1) * BLOCK]
    changed[other * BLOCK : (other + 1) * BLOCK] = image[one * BLOCK : (one + 1) * BLOCK]
    return bytes(changed)
