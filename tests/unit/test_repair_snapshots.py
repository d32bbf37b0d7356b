"""Repair beside snapshots: they stay whole, and what only they reach is not taken for the live state."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import TransactionError
from mdstore.store import Store, Transaction
from mdstore.store.check import check as check_engine
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.snapshots import find_snapshot
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_OBJECTS, ROOT_SNAPSHOTS
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from tests.crash.test_damage_matrix import pages_of
from tests.unit.reader_images import (
    BLOCK,
    changed,
    check,
    codes,
    newest,
    patched,
)
from tests.unit.repair_faults import (
    index_pages,
    large_image,
    leaked_extent,
    older_superblock_gone,
    without,
    wrong_stored_bytes,
)
from tests.unit.repair_images import lost, repaired
from tests.unit.test_reader_snapshots import store_with_snapshots
from tests.unit.test_reader_store import reader_of

pytestmark = pytest.mark.slow  # `make check` leaves them out


@pytest.fixture(scope="module")
def large() -> bytes:
    return large_image()


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
