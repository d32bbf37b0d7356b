"""Repair of trees that lost pages: they are made from their leaves, and what is intact keeps its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.store import Store, Transaction
from mdstore.store.transaction import HINT_UNCHECKED
from mdstore.tools.reader.superblock import ROOT_FREE, ROOT_OBJECTS, ROOT_REFERENCES
from tests.crash.test_damage_matrix import content_of, pages_of
from tests.unit.reader_images import (
    BLOCK,
    newest,
    reachable,
)
from tests.unit.repair_faults import (
    cloned_image,
    index_pages,
    large_image,
    leaked_extent,
    older_superblock_gone,
    without,
)
from tests.unit.repair_images import lost, repaired
from tests.unit.test_reader_store import reader_of

pytestmark = pytest.mark.slow  # `make check` leaves them out


@pytest.fixture(scope="module")
def large() -> bytes:
    return large_image()


@pytest.fixture(scope="module")
def image() -> bytes:
    return cloned_image()


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
