"""Superblocks of another image among an image's own; an image that ends too early; heads of the metadata log that do not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.mds.objectio import StoreObjects
from mdstore.store import Store
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from tests.commandline import Run
from tests.crash.test_damage_matrix import content_of
from tests.unit.reader_images import BLOCK, changed, check, codes, newest, store_image
from tests.unit.repair_images import lost, repaired, rich_file_system, tree_of

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
    assert [problem.code for problem in found if problem.severity != "note"] == ["superblock-copy"] * len(copies)
    assert all("of another image" in problem.what for problem in found if problem.severity != "note")
    made, after = repaired(damaged)
    assert lost(made) == []
    assert content_of(after, None) == content_of(image, None)
    assert newest(after).uuid == newest(image).uuid


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
