"""Trees of each version of the format, written once by the software of that time and kept: they open, read, and go on.

Each file is a root record behind its u32 length, then the pages. One tree each, two copies of every page: short values and
spilled ones of zero to two index levels; in version 2 two of them were written by range in a later generation.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mdstore.btree import Tree
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.tree import Tree as ReaderTree
from tests.model.btree_world import World

GOLDEN = Path(__file__).parent / "golden"
LONG = (55, 80, 700, 5000, 15001)


def expected(version: int) -> dict[bytes, bytes]:
    rng = random.Random(1)
    model = {b"%03d" % n: b"v%d" % n * (n % 9) for n in range(40)}
    model.update({b"large%d" % n: rng.randbytes(n) for n in LONG})
    if version == 2:
        old = model[b"large15001"]
        model[b"large15001"] = old[:7000] + b"#" * 900 + old[7900:]
        model[b"large5000"] = model[b"large5000"][:4990] + b"#" * 3000
    return model


def opened(version: int) -> tuple[World, bytes, bytes]:
    data = (GOLDEN / f"tree-v{version}.bin").read_bytes()
    size = int.from_bytes(data[:4], "little")
    world = World(version)
    world.device.image += data[4 + size :]
    world.pager.generation = 9
    world.next_page = len(world.device.image) // 256 + 1
    return world, data[4 : 4 + size], data[4 + size :]


@pytest.mark.parametrize("version", [1, 2])
def test_a_tree_of_each_version_opens_and_goes_on(version: int) -> None:
    world, root, _ = opened(version)
    model = expected(version)
    assert root[0] == version
    tree = Tree.open(world.pager, root)
    assert tree.user_blob == b"golden"
    assert dict(tree.items()) == model
    assert tree.check() == []
    world.held = world.reached(tree)
    for n in LONG:
        key = b"large%d" % n
        tree.write(key, n - 30, b"more" * 20)
        model[key] = model[key][: n - 30] + b"more" * 20 + model[key][n + 50 :]
        assert tree.get(key) == model[key]
        root = world.seal(tree)
        assert root[0] == 2
        world.write()
        world.drain_freed()
        assert world.reached(tree) == world.held
        tree = Tree.open(world.pager, root)
        assert dict(tree.items()) == model, "undated and dated values side by side"
    tree.clear()
    world.drain_freed()
    assert world.held == set()


def test_a_tree_in_which_nothing_spills_stays_of_version_1() -> None:
    world, _, _ = opened(1)
    tree = Tree(world.pager, Tree.open(world.pager, opened(1)[1]).descriptor, 8)
    tree.put(b"short", b"value" * 10)
    assert world.seal(tree)[0] == 1
    tree.put(b"long", b"value" * 11)
    assert world.seal(tree)[0] == 2


@pytest.mark.parametrize("version", [1, 2])
def test_the_second_reader_reads_each_version(version: int, tmp_path: Path) -> None:
    _, root, pages = opened(version)
    path = tmp_path / "pages"
    path.write_bytes(pages)
    seen: list[int] = []
    with Image(str(path)) as image:
        tree = ReaderTree(image, 256, root)
        tree.on_pages = lambda page, count, _: seen.extend(range(page, page + count)) is None
        assert dict(tree.items()) == expected(version)
        assert tree.root.may_be_dated == (version == 2)
    world, root, _ = opened(version)
    assert set(seen) == world.reached(Tree.open(world.pager, root))
    assert len(seen) == len(set(seen)), "each page is told of once"
