"""Writing into spilled values by range: what it costs, beside snapshots and clones, growing, and over damage."""

from __future__ import annotations

from collections.abc import Iterator

import crcmod.predefined
import pytest

from mdstore.btree import REFS_DESCRIPTOR, Tree
from mdstore.errors import CorruptionError, InvalidRequest, LimitExceeded
from tests.model.btree_world import World, new_tree

CRC = crcmod.predefined.mkCrcFun("crc-32c")
PAGE = 4096
SIZE = 5000 * PAGE  # with 202 entries to a page: 25 index pages, and one above them


class Large:
    """A tree on the device with one value of 20 MB among short ones, and none of it in memory."""

    def __init__(self) -> None:
        self.world = World(1, page_size=PAGE, holes=False)
        self.world.pager.refs = Tree(self.world.pager, REFS_DESCRIPTOR, 1)
        self.tree = new_tree(self.world)
        self.tree.update((b"%05d" % n, b"v" * 30) for n in range(2000))
        self.tree.put(b"01000x", self.world.random.randbytes(SIZE))
        self.checkpoint()

    def checkpoint(self) -> int:
        """Seal, write, open again; how many pages were written."""
        before = self.world.pager.counters()["pages_written"]
        root = self.world.seal(self.tree)
        self.world.write()
        self.world.drain_freed()
        self.tree = Tree.open(self.world.pager, root)
        return self.world.pager.counters()["pages_written"] - before

    def read(self) -> int:
        return self.world.pager.counters()["pages_read"]

    def write(self, at: int, data: bytes) -> int:
        """How many pages it read."""
        before = self.read()
        self.tree.write(b"01000x", at, data)
        return self.read() - before


def test_a_write_costs_its_pages_and_the_index_pages_above_them() -> None:
    large = Large()
    height = large.tree.height
    assert height == 2
    assert large.write(PAGE * 1234, b"w" * PAGE) == height + 2, "whole pages are not read, only what names them"
    assert large.tree.dirty_pages == height + 2 + 1
    assert large.write(PAGE * 1234 + 7, b"x" * 100) == 0, "what is in memory is changed there"
    assert large.tree.dirty_pages == height + 2 + 1
    assert large.checkpoint() == height + 2 + 1
    assert large.write(PAGE * 2000 - 50, b"y" * PAGE) == height + 2 + 2, "two pages changed in part"
    assert large.checkpoint() == height + 2 + 2
    assert large.tree.read(b"01000x", PAGE * 2000 - 51, PAGE + 2)[1:-1] == b"y" * PAGE  # type: ignore[index]
    assert large.tree.read(b"01000x", PAGE * 1234, 200) == b"w" * 7 + b"x" * 100 + b"w" * 93
    large.write(0, b"a")
    large.write(SIZE - 1, b"z")
    assert large.checkpoint() == height + 3 + 2
    assert large.write(SIZE, b"more" * PAGE) == height + 2, "the path to the last page"
    assert large.tree.dirty_pages == height + 2 + 4
    assert large.checkpoint() == height + 2 + 4
    assert large.tree.read(b"01000x", SIZE - 1) == b"z" + b"more" * PAGE
    assert large.world.reached(large.tree) == large.world.held


def test_a_write_after_a_seal_finds_pages_that_are_not_written_yet() -> None:
    large = Large()
    before = large.read()
    for n in range(4):
        large.tree.write(b"01000x", PAGE * 300 * n + 5, b"%d" % n * 9)
        asked = large.tree.dirty_pages
        large.world.seal(large.tree)
        assert asked <= 2 + 2 + 1
    assert large.read() - before <= 2 + 1 + 4 * 2, "not what the seals before left in memory"
    value = large.tree.get(b"01000x")
    assert value is not None
    assert [value[PAGE * 300 * n + 5 :][:9] for n in range(4)] == [b"%d" % n * 9 for n in range(4)]
    large.world.write()
    large.world.drain_freed()
    assert large.world.reached(large.tree) == large.world.held
    assert large.tree.get(b"01000x") == value


def test_a_snapshot_keeps_its_value_and_the_write_its_cost() -> None:
    large = Large()
    old = large.tree.get(b"01000x")
    assert old is not None
    view = large.tree.snapshot()
    large.write(PAGE * 77, b"w" * PAGE)
    dirty = large.tree.snapshot()
    large.write(PAGE * 78, b"x" * PAGE)
    assert large.tree.dirty_pages == 2 + 2 + 2
    assert view.read(b"01000x", PAGE * 77, 2 * PAGE) == old[PAGE * 77 : PAGE * 79]
    assert dirty.read(b"01000x", PAGE * 77, 2 * PAGE) == b"w" * PAGE + old[PAGE * 78 : PAGE * 79]
    assert large.tree.read(b"01000x", PAGE * 77, 2 * PAGE) == b"w" * PAGE + b"x" * PAGE
    generations = {generation for _, _, generation in large.world.pager.take_freed()}
    assert generations == {1}, "what is freed says when it was written"


def test_freed_pages_tell_the_generation_that_wrote_them() -> None:
    """Snapshots of a store rest on it: a page that a kept root reaches is one born in its generation or before."""
    large = Large()
    born = dict.fromkeys(large.world.held, 1)
    for generation in range(2, 30):
        assert large.world.pager.generation == generation
        at = large.world.random.randrange(SIZE - 40000)
        large.write(at, large.world.random.randbytes(large.world.random.randrange(1, 40000)))
        root = large.world.seal(large.tree)
        large.world.write()
        for address, pages, freed in large.world.pager.take_freed():
            for page in range(address, address + pages):
                assert born.pop(page) == freed
                large.world.held.remove(page)
        born.update(dict.fromkeys(large.world.held - born.keys(), generation))
        large.tree = Tree.open(large.world.pager, root)
    assert born.keys() == large.world.reached(large.tree)


def test_a_clone_shares_what_is_not_written() -> None:
    large = Large()
    clone = large.tree.clone()
    large.write(PAGE * 1234, b"w" * PAGE)
    assert large.tree.dirty_pages == 2 + 2 + 1
    clone.write(b"01000x", PAGE * 1234, b"c" * PAGE)
    clone.write(b"01000x", PAGE * 4000, b"c" * PAGE)
    assert clone.dirty_pages == 2 + 3 + 2
    refs = large.world.pager.refs
    assert refs is not None
    for tree in (large.tree, clone, refs):
        large.world.seal(tree)
    large.world.write()
    large.world.drain_freed()
    assert large.world.reached(large.tree, clone, refs) == large.world.held
    assert large.tree.read(b"01000x", PAGE * 1234, 1) == b"w"
    assert clone.read(b"01000x", PAGE * 1234, 1) == b"c"
    large.tree.delete(b"01000x")
    assert clone.read(b"01000x", PAGE * 1233, 2) == clone.get(b"01000x")[PAGE * 1233 :][:2]  # type: ignore[index]
    clone.clear()
    for tree in (large.tree, clone, refs):
        large.world.seal(tree)
    large.world.write()
    large.world.drain_freed()
    assert large.world.reached(large.tree, clone, refs) == large.world.held


def worlds(copies: int) -> Iterator[tuple[int, int]]:
    for page_size in (256, 512, 1024):
        for seed in range(3):
            yield page_size, seed + copies


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_long_random_history_of_writes_clones_and_views(copies: int) -> None:
    """Values grow by levels of index pages and by entries in their cells, beside clones, views, seals and reopening; every page
    held is reached, and every page reached is held."""
    for page_size, seed in worlds(copies):
        world = World(seed, page_size=page_size, cache_bytes=20000)
        world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
        rng = world.random
        first = new_tree(world, copies=copies)
        trees = [(first, {})]  # type: list[tuple[Tree, dict[bytes, bytes]]]
        views = []
        for n in range(6):
            trees[0][1][b"k%d" % n] = rng.randbytes(rng.choice((10, 400, 3000, 20000)))
            first.put(b"k%d" % n, trees[0][1][b"k%d" % n])
        for step in range(150):
            at = rng.randrange(len(trees))
            tree, model = trees[at]
            key = rng.choice(sorted(model)) if model else b"k0"
            act = rng.randrange(14)
            if act < 8 and key in model:
                old = model[key]
                offset = rng.choice((0, len(old), rng.randrange(len(old) + 1), len(old) + rng.randrange(page_size * 3)))
                data = rng.randbytes(rng.choice((0, 1, 50, page_size, rng.randrange(5 * page_size), rng.randrange(9000))))
                tree.write(key, offset, data)
                if data:
                    model[key] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
                low = rng.randrange(len(model[key]) + 1)
                assert tree.read(key, low, 2000) == model[key][low : low + 2000]
            elif act == 8 and len(trees) < 3:
                trees.append((tree.clone(), dict(model)))
            elif act == 9 and len(trees) > 1:
                tree.clear()
                trees.pop(at)
            elif act == 10:
                views.append((tree.snapshot(), dict(model)))
                if len(views) > 2:
                    view, kept = views.pop(0)
                    assert dict(view.items()) == kept
                    view.close()
            elif act == 11 and model:
                assert tree.delete(key)
                del model[key]
            elif act == 12:
                model[b"k%d" % (step % 9)] = rng.randbytes(rng.choice((10, 3000)))
                tree.put(b"k%d" % (step % 9), model[b"k%d" % (step % 9)])
            elif act == 13:
                refs = world.pager.refs
                assert refs is not None
                roots = [world.seal(one) for one, _ in trees]
                refs_root = refs.seal(world.allocate)
                if rng.random() < 0.7:
                    world.write()
                world.drain_freed()
                assert world.reached(refs, *(one for one, _ in trees)) == world.held
                if rng.random() < 0.5:
                    refs = world.pager.refs = Tree.open(world.pager, refs_root, REFS_DESCRIPTOR)
                    trees = [(Tree.open(world.pager, root), kept) for root, (_, kept) in zip(roots, trees, strict=True)]
        for tree, model in trees:
            assert dict(tree.items()) == model
            assert tree.check() == []


@pytest.mark.parametrize("spilled", [False, True], ids=["in its leaf", "spilled"])
def test_a_range_below_zero_is_refused(spilled: bool) -> None:
    """Every length below zero was the end of the value; only -1 is."""
    tree, value = new_tree(World(2)), b"value" * (400 if spilled else 1)
    tree.put(b"k", value)
    for offset, length in ((0, -2), (0, -5), (-1, -1), (-3, 2), (1, -(1 << 63))):
        with pytest.raises(InvalidRequest, match=f"{length if length < -1 else offset}"):
            tree.read(b"k", offset, length)
    assert (tree.read(b"k", 2, -1), tree.read(b"k", 2), tree.read(b"k", 2, 0)) == (value[2:], value[2:], b"")


def test_limits_of_a_value_hold_for_writes_into_it() -> None:
    world = World(2, page_size=512)
    fixed, prefixed = new_tree(world, 1, value_size=4000), new_tree(world, 2, value_size=-2)
    for tree, most in ((fixed, 4000), (prefixed, 65535)):
        tree.put(b"v", b"x" * most)
        world.seal(tree)
        tree.write(b"v", most - 5, b"y" * 5)
        with pytest.raises((LimitExceeded, InvalidRequest)):
            tree.write(b"v", most - 5, b"y" * 6)
        assert tree.get(b"v") == b"x" * (most - 5) + b"y" * 5


def test_a_hostile_index_page_of_a_value_is_refused_and_never_crashes() -> None:
    """The page says other things under a right checksum, all the way up to the root."""
    world = World(3)
    tree = new_tree(world)
    tree.put(b"v", world.random.randbytes(20_000))
    root = world.seal(tree)
    world.write()
    image = bytes(world.device.image)
    rng = world.random
    heads = {page: image[page * 256 :][:40] for page in range(1, len(image) // 256)}
    tops = [page for page, head in heads.items() if head[4:8] == b"mbt1" and head[24:26] == b"\2\4"]
    assert len(tops) == 1
    leaf = int.from_bytes(root[-28:-20], "little")
    refused = 0
    for _ in range(600):
        page = bytearray(image[tops[0] * 256 :][:256])
        old = bytes(page[:4])
        for _ in range(rng.choice((1, 1, 3))):
            page[rng.choice((rng.randrange(4, 40), rng.randrange(40, 256)))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        page[:4] = CRC(bytes(page[4:])).to_bytes(4, "little")
        world.device.image[:] = image
        world.device.image[tops[0] * 256 : tops[0] * 256 + 256] = page
        holder = image[leaf * 256 :][:256].replace(old, bytes(page[:4]))
        holder = CRC(holder[4:]).to_bytes(4, "little") + holder[4:]
        world.device.image[leaf * 256 : leaf * 256 + 256] = holder
        forged = Tree.open(world.pager, root[:-20] + holder[:4] + root[-16:])
        for act in (
            lambda tree=forged: tree.get(b"v"),
            lambda tree=forged: tree.read(b"v", rng.randrange(20_000), 700),
            lambda tree=forged: tree.write(b"v", rng.randrange(20_300), b"w" * rng.randrange(600)),
            lambda tree=forged: tree.get(b"v"),
            lambda tree=forged: list(tree.pages()),
            lambda tree=forged: tree.delete(b"v"),
        ):
            try:
                act()
            except CorruptionError:
                refused += 1
        world.pager.take_freed()
    assert refused > 600


@pytest.mark.parametrize("batch", [False, True], ids=["put", "update"])
@pytest.mark.parametrize("sealed", [False, True], ids=["in memory", "on the device"])
def test_a_short_value_in_the_place_of_a_long_one_gives_up_its_pages(sealed: bool, batch: bool) -> None:
    """In a leaf that could be changed in place, were it not for that."""
    world = World(1)
    tree = new_tree(world)
    tree.update({b"a": b"1", b"long": b"L" * 2000, b"z": b"2"})
    if sealed:
        world.seal(tree)
        world.write()
        tree.put(b"a", b"dirty")
    if batch:
        assert tree.update([(b"a", b"3"), (b"long", b"short"), (b"z", b"4")]) == 0
    else:
        assert tree.put(b"long", b"short")
    assert tree.get(b"long") == b"short"
    assert tree.dirty_pages == 1
    world.seal(tree)
    world.write()
    world.drain_freed()
    assert world.reached(tree) == world.held
    assert world.pager.dirty_bytes == 0
    assert tree.check() == []
