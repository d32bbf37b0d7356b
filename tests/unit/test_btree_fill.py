"""How full leaves are and how far a tree shrinks, for what docs/performance.md says it of; and how much stays embedded."""

from __future__ import annotations

import random

import pytest

from mdstore.btree import Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from tests.model.btree_world import World, new_tree

LEAVES = 500
Records = list[tuple[bytes, bytes]]


def pages_of(tree: Tree) -> int:
    return sum(pages for _, pages, _ in tree.pages())


def leaves_of(tree: Tree) -> int:
    return sum(level == 0 for _, _, level in tree.pages())


def drawn(page_size: int, per_leaf: int, *, fixed: bool) -> tuple[Records, int]:
    """Records of which `per_leaf` fill a leaf, for LEAVES leaves of 0.8, and the bytes they take there. Values of one size, or of
    any up to twice as long."""
    chance = random.Random(page_size + per_leaf + fixed)
    size = (page_size - PAGE_HEADER_SIZE) // per_leaf  # a slot of 8, a key of 8, 2 of length where it is not fixed, the value
    records = []
    for _ in range(LEAVES * per_leaf * 8 // 10):
        records.append((chance.randbytes(8), b"v" * (size - 16 if fixed else chance.randrange(2 * (size - 18) + 1))))
    return records, sum(len(value) + (16 if fixed else 18) for _, value in records)


def tree_for(world: World, records: Records, *, fixed: bool, tree_id: int = 7) -> Tree:
    return new_tree(world, tree_id, **({"key_size": 8, "value_size": len(records[0][1])} if fixed else {}))


GEOMETRIES = [(1024, 30), (1024, 45), (4096, 30), (4096, 60), (16384, 60)]


@pytest.mark.parametrize("fixed", [True, False], ids=["one size", "any size"])
@pytest.mark.parametrize(("page_size", "per_leaf"), [(1024, 20), (4096, 20), *GEOMETRIES])
def test_leaves_are_filled_as_stated(page_size: int, per_leaf: int, fixed: bool) -> None:
    records, size = drawn(page_size, per_leaf, fixed=fixed)
    for order, least in (("random", 0.80 if per_leaf >= 30 else 0.77), ("ascending", 0.95), ("descending", 0.95)):
        given = records if order == "random" else sorted(records, reverse=order == "descending")
        world = World(1, page_size=page_size, holes=False)
        tree = tree_for(world, records, fixed=fixed)
        tree.update(given)
        world.seal(tree)
        leaves = leaves_of(tree)
        assert leaves >= 400 or order != "random"
        assert size / (leaves * (page_size - PAGE_HEADER_SIZE)) >= least, order


@pytest.mark.parametrize(("page_size", "per_leaf"), [(512, 15), (1024, 20), *GEOMETRIES])
def test_a_tree_shrinks_as_stated(page_size: int, per_leaf: int) -> None:
    """Nine of ten records deleted at random: at most twice the pages of what is left, built in bulk."""
    records, _ = drawn(page_size, per_leaf, fixed=True)
    world = World(1, page_size=page_size, holes=False)
    tree, fresh = (tree_for(world, records, fixed=True, tree_id=tree_id) for tree_id in (7, 8))
    tree.update(records)
    world.seal(tree)
    gone = random.Random(2).sample(range(len(records)), len(records) * 9 // 10)
    assert tree.delete_many(records[n][0] for n in gone) == len(gone)
    world.seal(tree)
    fresh.bulk_load(sorted(set(records) - {records[n] for n in gone}))
    world.seal(fresh)
    assert list(tree.items()) == list(fresh.items())
    assert pages_of(tree) <= 2 * pages_of(fresh)


@pytest.mark.parametrize("page_size", [256, 4096, 65536])
@pytest.mark.parametrize(
    ("sizes", "record", "in_leaf", "in_root"),
    [((8, 0), (8, 0), 16, 8), ((8, 8), (8, 8), 24, 16), ((-1, -1), (8, 5), 23, 15), ((-2, -4), (8, 3), 21, 17)],
)
def test_a_tree_leaves_its_record_at_the_limit_or_where_a_leaf_is_full(
    page_size: int, sizes: tuple[int, int], record: tuple[int, int], in_leaf: int, in_root: int
) -> None:
    """With 4 KiB pages, keys of 8 bytes in a set left at 2024 bytes of a limit of 4000: each takes a slot in a leaf."""
    most = (page_size - PAGE_HEADER_SIZE) // in_leaf  # records of a leaf
    for limit in (most * in_root // 2, most * in_root - 1, most * in_root, most * in_root + 5 * in_root, 65535):
        limit = min(limit, 65535)
        stay = min(limit // in_root, most)
        world = World(1, page_size=page_size, holes=False)
        tree = new_tree(world, key_size=sizes[0], value_size=sizes[1], embed_limit=limit)
        tree.update((b"%08d" % n, b"v" * record[1]) for n in range(stay - 1))
        for count in (stay, stay + 1):
            tree.put(b"%08d" % count, b"v" * record[1])
            root = world.seal(tree)
            embedded = not root[1] & 2
            assert embedded == (count == stay), (limit, count)
            assert len(root) == 32 + count * in_root if embedded else len(root) < 100
            assert list(Tree.open(world.pager, root).items()) == list(tree.items())
