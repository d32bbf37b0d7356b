"""Superblocks of another image among an image's own; an image that ends too early; heads of the metadata log that do not read."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import MdstoreError
from mdstore.mds.objectio import StoreObjects
from mdstore.store import Store
from mdstore.tools.reader.check_superblock import own_copies
from mdstore.tools.reader.superblock import read_copies
from mdstore.tools.repair.bench import DeviceImage, RepairOptions
from mdstore.tools.repair.planning import plan
from tests.commandline import Run
from tests.crash.test_damage_matrix import content_of
from tests.unit.reader_images import BLOCK, changed, check, codes, newest, store_image, store_images
from tests.unit.repair_images import lost, repaired, rich_file_system, tree_of

pytestmark = pytest.mark.slow  # `make check` leaves them out

Places = tuple[int, ...]


@pytest.fixture(scope="module")
def image() -> bytes:
    return store_image()


def another(epochs: int) -> bytes:
    """An image of the same size, so many checkpoints further."""

    def go_on(store: Store) -> None:
        for _ in range(epochs):
            store.checkpoint()

    return changed(store_image(), go_on)


def with_foreign(image: bytes, foreign: bytes, copies: Places) -> bytes:
    """Some of the copies (primary 0 and 1, spare 0 and 1) are those of the other image."""
    places = [0, 4096, len(image) - 8192, len(image) - 4096]
    damaged = bytearray(image)
    for copy in copies:
        damaged[places[copy] : places[copy] + 4096] = foreign[places[copy] : places[copy] + 4096]
    return bytes(damaged)


@pytest.mark.parametrize("further", [0, 10])
@pytest.mark.parametrize("copies", [(0,), (1,), (2,), (3,), (0, 1), (0, 2), (1, 3), (2, 3)])
def test_superblocks_of_another_image_are_told_and_replaced(image: bytes, copies: Places, further: int, tmp_path: Path) -> None:
    """They were taken for the image's own: as older ones without a word, as newer ones they were read and found damaged."""
    foreign = another(further)
    assert newest(foreign).uuid != newest(image).uuid
    damaged = with_foreign(image, foreign, copies)
    found = check(damaged, tmp_path)
    assert [problem.code for problem in found if problem.severity != "note"] == ["superblock-foreign"] * len(copies)
    assert all("of another image" in problem.what for problem in found if problem.severity != "note")
    made, after = repaired(damaged)
    assert lost(made) == []
    assert content_of(after, None) == content_of(image, None)
    assert newest(after).uuid == newest(image).uuid


OWN, FOREIGN, GONE = "own", "foreign", "gone"
MIXED = [copies for copies in product((OWN, FOREIGN, GONE), repeat=4) if OWN in copies and FOREIGN in copies]
STRANGERS: dict[str, Callable[[], bytes]] = {
    "other contents": lambda: store_images(9, is_closed=True, objects=20)[-1],
    "another layout, newer": lambda: changed(store_image(5, block_size=4096), many_checkpoints),
}


def many_checkpoints(store: Store) -> None:
    for _ in range(20):
        store.checkpoint()


def without_copies(image: bytes, copies: Places) -> bytes:
    return with_foreign(image, bytes(len(image)), copies)


def repaired_as(damaged: bytes, image: bytes) -> bytes:
    made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
    after = made.bench.shadow.read(0, len(image))
    assert (made.left, made.failed, lost(made)) == (0, [], [])
    assert newest(after).uuid == newest(image).uuid
    return after


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_one_own_superblock_counts_for_more_than_three_of_another_image(stranger: str, is_closed: bool) -> None:
    """Two foreign copies outvoted the one that was left, and a repair ended the log and emptied the trees. All combinations
    of own, foreign and lost copies: what comes of them is what comes of those without the foreign ones."""
    image, foreign = store_images(1, is_closed=is_closed)[-1], STRANGERS[stranger]()
    content = content_of(image, None)
    for copies in MIXED:
        strange, gone = (tuple(at for at in range(4) if copies[at] == what) for what in (FOREIGN, GONE))
        after = repaired_as(without_copies(with_foreign(image, foreign, strange), gone), image)
        assert content_of(after, None) == content, copies


@pytest.mark.parametrize("strange", [(0, 1, 2), (1, 2, 3), (0, 2)])
def test_entries_of_the_log_vouch_for_a_superblock_whose_heads_are_lost(image: bytes, strange: Places) -> None:
    start = newest(image).log_start * BLOCK
    headless = image[:start] + bytes(2 * BLOCK) + image[start + 2 * BLOCK :]
    after = repaired_as(with_foreign(headless, STRANGERS["another layout, newer"](), strange), image)
    assert content_of(after, None) == content_of(image, None)


def test_where_nobody_has_a_log_most_copies_count(image: bytes) -> None:
    superblock = newest(image)
    start, end = superblock.log_start * BLOCK, superblock.first_block * BLOCK
    logless = image[:start] + bytes(end - start) + image[end:]
    damaged = with_foreign(logless, STRANGERS["other contents"](), (2,))
    own = own_copies(opened := DeviceImage(MemoryDevice.from_bytes(damaged)), read_copies(opened))
    assert [copy.slot + 2 * copy.is_spare for copy in own] == [0, 1, 3]


@pytest.mark.parametrize("copies", [(0,), (1,), (0, 2)])
def test_fsck_does_not_call_an_image_clean_that_does_not_open(run: Run, image: bytes, copies: Places, tmp_path: Path) -> None:
    """It ended with 0 and a warning; the engine took the foreign copy, which was newer."""
    path = tmp_path / "image"
    damaged = with_foreign(image, another(10), copies)
    path.write_bytes(damaged)
    with pytest.raises(MdstoreError):
        Store.open(MemoryDevice.from_bytes(damaged), read_only=True, background=False)
    said = run("fsck", path)
    assert said.code == 4
    assert "[superblock-foreign]" in said.out
    assert "mdstore repair" in said.out
    assert run("repair", path, "--apply").code == 1
    assert run("fsck", path).code == 0


def test_a_repair_of_foreign_superblocks_is_taken_back(run: Run, image: bytes, tmp_path: Path) -> None:
    """Its file was made for the other image, and refused this one."""
    path = tmp_path / "image"
    damaged = with_foreign(image, another(10), (0, 2))
    path.write_bytes(damaged)
    assert run("repair", path, "--apply").code == 1
    assert run("repair", path).code == 0
    assert run("repair", path, "--undo", f"{path}.repair").code == 0
    assert path.read_bytes() == damaged


def test_an_image_that_ends_too_early_is_lengthened_before_it_is_repaired(run: Run, image: bytes, tmp_path: Path) -> None:
    """Spare superblocks were written where it ends now, over what is left of it."""
    path = tmp_path / "image"
    path.write_bytes(image[: len(image) // 2 // 4096 * 4096])
    ran = run("repair", path, "--json")
    assert (ran.code, ran.json()["steps"]) == (4, [])
    assert "lengthen it" in ran.json()["could_not"][0]
    assert run("repair", path, "--apply").code == 4
    assert path.stat().st_size == len(image) // 2 // 4096 * 4096
    needed = len(image)
    assert f"`truncate -s {needed} FILE`, then `mdstore repair`" in run("fsck", path).out
    os.truncate(path, needed)
    assert run("repair", path, "--apply", "--drop-damaged").code == 1
    assert run("fsck", "--deep", path).code == 0


@pytest.mark.parametrize("heads", [(0,), (0, 1)])
def test_heads_of_the_metadata_log_whose_blocks_are_damaged_are_made_anew(heads: tuple[int, ...], tmp_path: Path) -> None:
    """The repair gave up at the first one, and nothing of the name space was mended."""
    image = changed(rich_file_system(), lambda store: store.checkpoint())
    store = Store.open(MemoryDevice.from_bytes(image), read_only=True, background=False)
    objects = StoreObjects(store, "log")
    damaged, behind = image, newest(image).first_block * BLOCK
    for head in heads:
        content = objects.read(f"events.head{head}", 0, 64)
        assert content in damaged[behind:]
        damaged = damaged[:behind] + damaged[behind:].replace(content, b"rot" + content[3:])
    assert "data-checksum" in codes(check(damaged, tmp_path, "deep"))
    made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
    assert made.failed == []
    after = made.bench.shadow.read(0, len(image))
    assert tree_of(after) == tree_of(image)
