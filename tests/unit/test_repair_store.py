"""Repair of the store: each injected fault is found exactly and set right; trees without their index; snapshots stay whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import NotFound, TransactionError
from mdstore.store import Store, Transaction
from mdstore.store.check import check as check_engine
from mdstore.store.onode import object_key
from mdstore.store.revisions import revision_key
from mdstore.store.transaction import HINT_UNCHECKED
from mdstore.tools.reader import superblock as superblocks
from mdstore.tools.reader.onode import decode_extent
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.snapshots import find_snapshot
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.reader.superblock import ROOT_FREE, ROOT_OBJECTS, ROOT_REFERENCES, ROOT_SNAPSHOTS
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from tests.crash.test_damage_matrix import Content, codes_in, content_of, pages_of, table
from tests.unit.reader_images import (
    BLOCK,
    changed,
    check,
    codes,
    newest,
    patched,
    place_of,
    reachable,
    store_image,
    superblock_start,
)
from tests.unit.repair_images import lost, repaired
from tests.unit.test_reader_snapshots import store_with_snapshots
from tests.unit.test_reader_store import free_before_used, largest_free, reader_of

Inject = Callable[[bytes, Path], bytes]


@pytest.fixture(scope="module")
def image() -> bytes:
    """With a clone that wrote: it shares blocks with its origin, counted one by one."""

    def overwrite(store: Store) -> None:
        store.apply(Transaction().write("c", "origin", 0, b"o" * 9000))
        store.apply(Transaction().clone("c", "origin", "twin"))
        store.apply(Transaction().write("c", "twin", 700, b"different"))

    return changed(store_image(), overwrite)


@pytest.fixture(scope="module")
def content(image: bytes) -> Content:
    return content_of(image, None)


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


@pytest.mark.parametrize(("inject", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_found_exactly_and_set_right(
    inject: Inject, expected: set[str], image: bytes, content: Content, tmp_path: Path
) -> None:
    damaged = inject(image, tmp_path)
    assert codes(check(damaged, tmp_path, "deep")) == expected
    made, after = repaired(damaged)
    assert content_of(after, None) == content
    assert lost(made) == []


def test_the_page_lists_every_fault() -> None:
    listed = {row[0]: (codes_in(row[1]), row[2]) for row in table("Matrix", "Under right checksums")}
    assert listed == {inject.__name__.replace("_", " "): (expected, "`same`") for inject, expected in FAULTS}


def answers_at(image: bytes, name: str) -> list[bytes | None]:
    """What reads of an object at revisions 1 to 11 get."""
    store = Store.open(MemoryDevice.from_bytes(image), background=False)

    def read(rev: int) -> bytes | None:
        try:
            return store.read("c", name, rev=rev)
        except NotFound:
            return None

    return [read(rev) for rev in range(1, 12)]


@pytest.mark.parametrize("inject", [revision_too_early, revision_behind_its_end, object_before_its_revision])
def test_revisions_that_do_not_fit_are_repaired_to_what_they_were(inject: Inject, image: bytes, tmp_path: Path) -> None:
    """They were reported, and never mended."""
    damaged = inject(image, tmp_path)
    made, after = repaired(damaged)
    assert answers_at(after, "o0001") == answers_at(image, "o0001")
    said = [line for step in made.steps for line in step.details if "begins at revision" in line]
    assert len(said) == 1
    assert said[0].startswith("c/o0001")


def test_all_revisions_of_many_names_are_mended_at_once(tmp_path: Path) -> None:
    """Names up to the limit, so that keys are longer than any object's; a second revision that is right stays what it is."""
    device = MemoryDevice(16 << 20)
    store = Store.create(device, log_bytes=512 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    names = [f"{number:03}".encode() + b"n" * random for number, random in enumerate([0, 1, 300, 444, 445, 500, 509] * 5)]
    for rev in (0, 3, 7):
        for name in names:
            store.apply(Transaction(rev=rev).write("c", name, rev, b"%d" % rev * 300))
    store.apply(Transaction(rev=9).remove("c", names[0]))
    objects = store.tables.objects
    expected = {name: [store.read("c", name, rev=rev) for rev in range(1, 8)] for name in names}
    for number, name in enumerate(names):
        key = [object_key(1, name), revision_key(1, name, 3), revision_key(1, name, 7)][number % 3]
        onode = objects.at(key)
        if onode is not None:
            onode.created_rev = [2, 99, 1][number % 3]
            objects.mark_dirty(onode)
    store.close()
    assert codes(check(device.image(), tmp_path)) == {"revision"}
    made, after = repaired(device.image())
    assert lost(made) == []
    again = Store.open(MemoryDevice.from_bytes(after), background=False)
    assert {name: [again.read("c", name, rev=rev) for rev in range(1, 8)] for name in names} == expected
    assert check_engine(again) == []


def test_revisions_of_long_names_outlive_the_repair_of_their_tree(tmp_path: Path) -> None:
    """Their keys are longer than those of objects: each was taken for damage, and dropped."""
    device = MemoryDevice(16 << 20)
    store = Store.create(device, log_bytes=512 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    names = [b"%03d" % number + b"n" * 509 for number in range(40)]
    for rev in (0, 3):
        for name in names:
            store.apply(Transaction(rev=rev).write("c", name, rev, b"%d" % rev * 300))
    store.close()
    image = device.image()
    root = reader_of(image, tmp_path).root_tree(ROOT_OBJECTS).root.content
    assert isinstance(root, Reference)
    at = root.addresses[0] * 4096
    made, after = repaired(older_superblock_gone(image[:at] + bytes(4096) + image[at + 4096 :]))
    assert lost(made) == []
    again = Store.open(MemoryDevice.from_bytes(after), background=False)
    assert all(again.read("c", name, rev=1) == b"0" * 300 for name in names)


def test_a_revision_whose_key_makes_no_sense_goes_and_is_named(image: bytes, tmp_path: Path) -> None:
    key = revision_key(1, b"o0001", 9)
    at = place_of(image, key, tmp_path)
    damaged = patched(image, at + 8 + 8, b"\x09")
    assert "onode" in codes(check(damaged, tmp_path))
    made, after = repaired(damaged)
    assert any("a revision" in line for line in lost(made))
    before, now = answers_at(image, "o0001"), answers_at(after, "o0001")
    assert [got for got in zip(now, before) if got[0] != got[1]] == [(None, before[7])] * 2  # it held for 7 and 8


def test_a_revision_numbered_0_goes_and_is_named(image: bytes, tmp_path: Path) -> None:
    """No read is answered from it, and no beginning is before its end."""
    key = revision_key(1, b"o0001", 7)
    at = place_of(image, key, tmp_path)
    damaged = patched(image, at + len(key) - 8, bytes(8))
    assert codes(check(damaged, tmp_path)) == {"revision"}
    made, after = repaired(damaged)
    assert any("at revision 0" in line for line in lost(made))
    assert answers_at(after, "o0001")[6:] == answers_at(image, "o0001")[6:]


def test_faults_together_are_set_right(image: bytes, content: Content, tmp_path: Path) -> None:
    damaged = image
    for inject in (leaked_extent, wrong_interval, wrong_stored_bytes, wrong_objects):
        damaged = inject(damaged, tmp_path)
    _, after = repaired(damaged)
    assert content_of(after, None) == content


def test_objects_of_a_collection_that_is_gone_are_found_in_another(image: bytes, content: Content, tmp_path: Path) -> None:
    """A stray map: its collection's record names another number."""
    start = superblock_start(image)
    record = image.find(b"\x04maps\x01\0\0\0", start, start + 4096) + 5
    number = int.from_bytes(image[record + 4 : record + 12], "little")
    damaged = patched(image, record + 4, (number + 1).to_bytes(8, "little"))
    assert "object-stray" in codes(check(damaged, tmp_path))
    _, after = repaired(damaged)
    found = content_of(after, None)
    for (collection, name), answers in content.items():
        if collection == b"maps" and name:
            assert found[b"recovered.%d" % number, name] == answers


# -- trees without their index -----------------------------------------------------------------------------------------
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


@pytest.fixture(scope="module")
def large() -> bytes:
    return large_image()


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


@pytest.mark.parametrize("has_free_tree", [True, False])
def test_an_object_table_without_any_index_page_is_made_from_its_leaves(
    has_free_tree: bool, large: bytes, tmp_path: Path
) -> None:
    """Without the free tree, pages of the past are there too: the newest generation wins."""
    expected = content_of(large, None)
    roots = newest(large).roots
    pages = index_pages(large, tmp_path, roots[ROOT_OBJECTS])
    assert len(pages) > 5
    if not has_free_tree:
        pages += pages_of(reader_of(large, tmp_path).root_tree(ROOT_FREE))
    damaged = older_superblock_gone(without(large, pages))
    made, after = repaired(damaged)
    if has_free_tree:
        assert lost(made) == []
        assert content_of(after, None) == expected
        return
    found = content_of(after, None)
    names = set(expected) - {(b"c", b"")}
    assert names <= set(found) <= names | {(b"c", b""), (b"c", b"object 00700")}
    assert all(found[name] == expected[name] for name in names)


@pytest.mark.parametrize("kind", [ROOT_FREE, ROOT_REFERENCES])
def test_a_counting_tree_that_lost_a_page_is_made_anew(kind: int, large: bytes, image: bytes, tmp_path: Path) -> None:
    """Nothing else is wrong, and there is no superblock to fall back to."""
    subject = large if kind == ROOT_FREE else image
    pages = pages_of(reader_of(subject, tmp_path).root_tree(kind))
    made, after = repaired(older_superblock_gone(without(subject, pages[-1:])))
    assert lost(made) == []
    assert content_of(after, None) == content_of(subject, None)


@pytest.mark.parametrize("stream", ["map", "data"])
def test_an_objects_tree_without_its_index_is_made_from_its_leaves(stream: str, large: bytes, tmp_path: Path) -> None:
    expected = content_of(large, None)
    onode = reader_of(large, tmp_path).find(1, stream.encode())
    assert onode is not None
    root = onode.map_root if stream == "map" else onode.data_root
    assert root is not None
    pages = index_pages(large, tmp_path, root)
    assert pages
    made, after = repaired(older_superblock_gone(without(large, pages)))
    assert lost(made) == []
    assert content_of(after, None) == expected


def test_a_lost_leaf_costs_its_objects_and_says_how_many(large: bytes, tmp_path: Path) -> None:
    expected = content_of(large, None)
    pages = pages_of(reader_of(large, tmp_path).root_tree(ROOT_OBJECTS))
    leaf = next(page for page in pages[10:] if not large[page * BLOCK + 24])
    records = int.from_bytes(large[leaf * BLOCK + 26 : leaf * BLOCK + 28], "little")
    made, after = repaired(older_superblock_gone(without(large, [leaf])))
    found = content_of(after, None)
    gone = {key for key in expected.keys() - found.keys() if key[1]}
    assert len(gone) == records
    assert f"{records} of {len(expected) - 1} records" in lost(made)[0]
    assert all(found[key] == expected[key] for key in found if key[1])


def test_what_is_intact_keeps_its_bytes(large: bytes, tmp_path: Path) -> None:
    """Leaves and data stay where they are: only index pages, counts and superblocks are written."""
    pages = index_pages(large, tmp_path, newest(large).roots[ROOT_OBJECTS])
    made, after = repaired(older_superblock_gone(without(large, pages)))
    kept = [page for page in reachable(large, tmp_path) if page not in pages and large[page * BLOCK + 24] == 0]
    same = sum(large[page * BLOCK : (page + 1) * BLOCK] == after[page * BLOCK : (page + 1) * BLOCK] for page in kept)
    assert same > 0.9 * len(kept)
    assert made.bench.shadow.changed_bytes < len(large) // 4


def test_revisions_clones_and_unchecked_data_come_through(tmp_path: Path) -> None:
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=1 << 20, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(300):
        name = f"object {number:04}"
        change = Transaction().alloc_hint("c", name, 0, 0, HINT_UNCHECKED) if number % 2 else Transaction()
        store.apply(change.write("c", name, 0, bytes([number % 256]) * 700))
        if number % 3 == 0:
            store.apply(Transaction(rev=5).write("c", name, 10, b"new"))
        if number % 7 == 0:
            store.apply(Transaction().clone("c", name, name + " clone").write("c", name + " clone", 0, b"changed"))
    store.close()
    image = device.image()
    expected = content_of(image, None)
    pages = index_pages(image, tmp_path, newest(image).roots[ROOT_OBJECTS])
    for damaged in (older_superblock_gone(without(image, pages)), leaked_extent(image, tmp_path)):
        made, after = repaired(damaged)
        assert lost(made) == []
        assert content_of(after, None) == expected


# -- snapshots ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def kept(large: bytes) -> bytes:
    """The image with two snapshots, changed before, between and after."""

    def change(store: Store) -> None:
        for name in ("first", "second"):
            store.snapshot(name)
            for number in range(0, 1500, 7):
                store.apply(Transaction().write("c", f"object {number:05}", 3, name.encode()))
            store.apply(Transaction().write("c", "data", 0, name.encode() * 500))

    return changed(large, change)


def snapshot_content(image: bytes) -> dict[str, object]:
    """What the live state and each snapshot answer."""
    store = Store.open(MemoryDevice.from_bytes(image), background=False)
    found: dict[str, object] = {"": {name: store.read("c", name) for name in store.list_objects("c")}}
    for row in store.snapshots():
        name = row.name
        with store.open_snapshot(name) as view:
            found[str(name)] = {name: view.read("c", name) for name in view.list_objects("c")}
    return found


def test_counts_are_made_anew_around_snapshots(kept: bytes, tmp_path: Path) -> None:
    assert check(kept, tmp_path, "deep") == []
    expected = snapshot_content(kept)
    assert len(expected) == 3
    for inject in (leaked_extent, wrong_stored_bytes):
        _, after = repaired(inject(kept, tmp_path))
        assert snapshot_content(after) == expected


def test_trees_are_put_together_around_snapshots(kept: bytes, tmp_path: Path) -> None:
    """Pages that only snapshots reach are of the past, and are not taken for what the live state lost."""
    expected = snapshot_content(kept)
    root = newest(kept).roots[ROOT_OBJECTS]
    shared = {page for snapshot in ("first", "second") for page in _snapshot_pages(kept, tmp_path, snapshot)}
    pages = [page for page in index_pages(kept, tmp_path, root) if page not in shared]
    assert pages
    made, after = repaired(older_superblock_gone(without(kept, pages)))
    assert lost(made) == []
    assert snapshot_content(after) == expected


def test_damage_that_only_a_snapshot_reaches_is_left_alone(kept: bytes, tmp_path: Path) -> None:
    live = set(pages_of(reader_of(kept, tmp_path).root_tree(ROOT_OBJECTS)))
    page = next(page for page in _snapshot_pages(kept, tmp_path, "first") if page not in live)
    made = plan(MemoryDevice.from_bytes(without(kept, [page])), RepairOptions(is_deep=True))
    assert made.steps == []
    assert made.left
    assert "page-checksum" in made.after.codes


def test_a_snapshot_whose_record_is_lost_goes_and_is_named(kept: bytes, tmp_path: Path) -> None:
    expected = snapshot_content(kept)
    (value,) = [value for name, value in reader_of(kept, tmp_path).root_records(ROOT_SNAPSHOTS) if name == b"second"]
    damaged = patched(kept, kept.index(value[:24]), b"\x09")
    assert "snapshot" in codes(check(damaged, tmp_path))
    made, after = repaired(damaged)
    assert any("second" in line for line in lost(made))
    del expected["b'second'"]
    assert snapshot_content(after) == expected


def test_the_dead_of_a_snapshot_that_is_gone_go_to_the_one_before_though_that_is_damaged(kept: bytes, tmp_path: Path) -> None:
    """They stayed listed under a snapshot that nobody has: damage of two snapshots together was never mended."""
    live = set(pages_of(reader_of(kept, tmp_path).root_tree(ROOT_OBJECTS)))
    second = set(_snapshot_pages(kept, tmp_path, "second"))
    page = next(page for page in _snapshot_pages(kept, tmp_path, "first") if page not in live | second)
    (value,) = [value for name, value in reader_of(kept, tmp_path).root_records(ROOT_SNAPSHOTS) if name == b"second"]
    damaged = patched(without(kept, [page]), kept.index(value[:24]), b"\x09")
    made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
    assert any("second" in line for line in lost(made))
    assert set(made.after.codes) <= {"page-checksum", "tree-count"}, made.after.codes
    assert all("snapshot first" in str(problem.place) for problem in made.after.problems)


def _snapshot_pages(image: bytes, tmp_path: Path, name: str) -> list[int]:
    reader = reader_of(image, tmp_path)
    kept = find_snapshot(reader, name.encode())
    tree = StoreReader(reader.image, kept.superblock).root_tree(ROOT_OBJECTS)
    assert isinstance(tree.root.content, Reference)
    return pages_of(tree)


def test_what_only_a_snapshot_reaches_is_counted_once_as_left() -> None:
    """The engine finds it too, in its own words: three were said to be left, and fsck found two."""
    store, device = store_with_snapshots()
    store.apply(Transaction().write("alpha", "victim", 0, b"victim" * 900))
    store.snapshot("d")
    at = device.image().rindex(b"victim" * 80)
    store.apply(Transaction().remove("alpha", "victim"))
    store.close()
    damaged = bytearray(device.image())
    damaged[at : at + 3] = b"rot"
    damaged[:8192] = bytes(8192)  # and something that can be mended
    made = plan(MemoryDevice.from_bytes(bytes(damaged)), RepairOptions(is_deep=True))
    assert made.steps
    assert made.engine, "the engine finds it too"
    assert made.left == made.after.open_problems == 1


def test_the_rest_of_a_damaged_value_that_a_snapshot_shares_stays_in_use() -> None:
    """The walk of a spilled value ended at its first damaged page: what lies behind it, which the live state let go of, was taken
    for free though the snapshot names it, and given to whoever wrote next."""
    device = MemoryDevice(2 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    value = b"".join(b"%08d" % number for number in range(16_000))
    store.apply(Transaction().create_collection("c").create("c", "x").map_set("c", "x", {b"large": value, b"small": b"s"}))
    store.snapshot("kept")
    store.apply(Transaction().map_set("c", "x", {b"later": b"l"}))
    store.close()
    image = device.image()
    first, last = (image.rindex(value[at : at + 8]) // BLOCK for at in (0, len(value) - 8))
    assert last - first >= len(value) // BLOCK > 200
    for page in (first, first + 3, (first + last) // 2):
        made = plan(MemoryDevice.from_bytes(without(image, [page])), RepairOptions(is_deep=True))
        assert [line[:30] for line in lost(made)] == ["map of c/x: the record of larg"]
        assert made.engine == [], "it knows what each snapshot reaches"
        assert made.after.codes == {"overflow": 1}, "in the snapshot, which is never written"
        after = MemoryDevice.from_bytes(made.bench.shadow.read(0, len(image)))
        store = Store.open(after, background=False)
        with suppress(TransactionError):  # the image is full
            for number in range(4_000):
                store.apply(Transaction().write("c", f"fill {number}", 0, b"fill" * 128))
        assert after.image()[(page + 1) * BLOCK : last * BLOCK] == image[(page + 1) * BLOCK : last * BLOCK]
        store.delete_snapshot("kept")
        assert list(check_engine(store)) == []
        store.close()
