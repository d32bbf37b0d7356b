"""What every public operation of the kernel costs in pages, held against the counters: one row for each, none left out.

A row says how many pages an operation reads from the device on a tree of which nothing is in memory, and how many pages the
next seal would ask for afterwards. The docstrings say the same in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mdstore.btree import REFS_DESCRIPTOR, PackedPairs, Pager, RecordCursor, Tree, TreeView
from tests.model.btree_world import World, new_tree

COUNT = 4000
LONG = b"002000x"
PAGE = 256
LONG_SIZE = 60 * PAGE


def key(n: int) -> bytes:
    return b"%06d" % n


class Scene:
    """A tree on the device, four levels high, nothing of it in memory; one of its values has spilled."""

    def __init__(self, *, duplicates: bool = False) -> None:
        self.world = World(1, page_size=PAGE)
        self.pager = self.world.pager
        refs = self.pager.refs = Tree(self.pager, REFS_DESCRIPTOR, 1)
        refs.seal(self.world.allocate)
        sizes = (-1, -1) if duplicates else (-2, -4)
        self.other = new_tree(self.world, 6, key_size=sizes[0], value_size=sizes[1], duplicates=duplicates)
        self.tree = new_tree(self.world, 7, key_size=sizes[0], value_size=sizes[1], duplicates=duplicates)
        self.other.update((key(n), b"w" * 20) for n in range(0, COUNT, 9))
        self.tree.update((key(n), b"v" * 20) for n in range(COUNT))
        if not duplicates:
            self.tree.put(LONG, b"L" * LONG_SIZE)
        self.roots = [self.world.seal(tree) for tree in (self.other, self.tree)]
        self.world.write()
        self.world.drain_freed()
        self.height = self.tree.height
        assert self.height >= 4
        kinds = [(level, pages) for _, pages, level in self.tree.pages()]
        self.index = sum(level > 0 for level, _ in kinds)
        self.leaves = leaves_of(self.tree, self.index)
        spilled = sum(pages for level, pages in kinds if level == 0) - self.leaves
        self.long_index = spilled - (0 if duplicates else LONG_SIZE // PAGE)
        self.long = spilled
        self.other_pages = sum(pages for _, pages, _ in self.other.pages())
        self.other, self.tree = (Tree.open(self.pager, root) for root in self.roots)
        self.pages = self.index + self.leaves


def leaves_of(tree: Tree, index: int) -> int:
    """By what a scan of keys alone reads, less the index pages."""
    again = Tree.open(tree.pager, tree.root())
    before = tree.pager.counters()["pages_read"]
    assert sum(1 for _ in again) == len(tree)
    return tree.pager.counters()["pages_read"] - before - index


Pages = Callable[[Scene], "int | range"]


@dataclass(frozen=True)
class Row:
    act: Callable[[Scene], object]
    reads: Pages = lambda scene: 0
    dirties: Pages = lambda scene: 0
    duplicates: bool = False


def path(scene: Scene) -> int:
    return scene.height


def least_to(least: int, most: int) -> range:
    return range(least, most + 1)


def load(scene: Scene) -> Tree:
    fresh = new_tree(scene.world, 8)
    fresh.bulk_load((key(n), b"v" * 20) for n in range(COUNT))
    scene.tree = fresh
    return fresh


def loaded(scene: Scene) -> range:
    """As many as the records fill, and index pages for fewer than every third at most."""
    full = -(-COUNT * (6 + 2 + 20 + 8) // (PAGE - 40))
    return least_to(full, full * 13 // 10)


def with_dirty(scene: Scene) -> Tree:
    scene.tree.put(key(7), b"w" * 20)
    scene.tree.put(key(3999), b"w" * 20)
    return scene.tree


def seal(scene: Scene) -> None:
    tree = with_dirty(scene)
    asked = tree.dirty_pages
    scene.world.asked = 0
    tree.seal(scene.world.allocate)
    assert scene.world.asked == asked == 2 * scene.height - 1


def seal_leaves(scene: Scene) -> None:
    scene.world.asked = 0
    assert with_dirty(scene).seal_leaves(scene.world.allocate, 0, 9) == -1
    assert scene.world.asked == 2


def write_sealed(scene: Scene) -> None:
    seal(scene)
    before = scene.pager.counters()
    assert scene.pager.write_sealed() == (2 * scene.height - 1) * PAGE
    after = scene.pager.counters()
    assert after["pages_written"] - before["pages_written"] == 2 * scene.height - 1
    assert after["device_writes"] - before["device_writes"] <= 2 * scene.height - 1
    assert scene.pager.write_sealed() == 0


def both_paths(scene: Scene) -> int:
    """To two leaves that share nothing but the root."""
    return 2 * scene.height - 1


def set_generation(scene: Scene) -> None:
    scene.pager.generation += 1


def set_cache_bytes(scene: Scene) -> None:
    assert scene.tree.get(key(5)) is not None
    scene.pager.cache_bytes = 0
    assert scene.pager.counters()["cached_bytes"] <= scene.height * (PAGE + 400), "only the path that was just used is left"


def set_refs(scene: Scene) -> None:
    assert scene.pager.refs is not None
    scene.pager.refs = None


def set_page_bounds(scene: Scene) -> None:
    scene.pager.page_bounds = scene.pager.page_bounds


PAGER = {
    "generation": Row(set_generation),
    "page_bounds": Row(set_page_bounds),
    "page_size": Row(lambda s: s.pager.page_size),
    "cache_bytes": Row(set_cache_bytes, path),
    "device": Row(lambda s: s.pager.device),
    "dirty_bytes": Row(lambda s: s.pager.dirty_bytes),
    "held_bytes": Row(lambda s: s.pager.held_bytes),
    "sealed_pages": Row(lambda s: s.pager.sealed_pages),
    "oldest_pinned_generation": Row(lambda s: s.pager.oldest_pinned_generation),
    "pinned_generations": Row(lambda s: s.pager.pinned_generations),
    "refs": Row(set_refs),
    "write_sealed": Row(write_sealed, both_paths),
    "take_freed": Row(lambda s: s.pager.take_freed()),
    "counters": Row(lambda s: s.pager.counters()),
    "close": Row(lambda s: s.pager.close()),
}
VIEW = {
    "__len__": Row(lambda s: len(s.tree)),
    "__bool__": Row(lambda s: bool(s.tree)),
    "__contains__": Row(lambda s: LONG in s.tree, path),
    "__iter__": Row(lambda s: list(s.tree), lambda s: s.pages),
    "__enter__": Row(lambda s: s.tree.snapshot().__enter__()),
    "__exit__": Row(lambda s: s.tree.snapshot().__exit__(None, None, None)),
    "get": Row(lambda s: s.tree.get(key(77)), path),
    "get_many": Row(lambda s: s.tree.get_many([key(77), key(77), key(3999), b"\xff"]), both_paths),
    "get_all": Row(lambda s: s.tree.get_all(key(77)), lambda s: least_to(s.height, s.height + 2), duplicates=True),
    "read": Row(lambda s: s.tree.read(LONG, 7 * PAGE, PAGE), lambda s: least_to(s.height + 2, s.height + 3)),
    "count": Row(lambda s: s.tree.count(key(5), key(3990)), both_paths),
    "union": Row(lambda s: list(s.tree.union(s.other)), lambda s: s.pages + s.other_pages),
    "intersection": Row(lambda s: list(s.tree.intersection(s.other)), lambda s: s.pages + s.other_pages),
    "difference": Row(lambda s: list(s.tree.difference(s.other)), lambda s: s.pages + s.other_pages),
    "first": Row(lambda s: s.tree.first(), path),
    "last": Row(lambda s: s.tree.last(), path),
    "seek": Row(lambda s: s.tree.seek(key(77) + b"0"), lambda s: least_to(s.height, 2 * s.height)),
    "items": Row(lambda s: list(s.tree.items()), lambda s: s.pages + s.long),
    "keys": Row(lambda s: list(s.tree.keys(reverse=True)), lambda s: s.pages),
    "prefix": Row(lambda s: list(s.tree.prefix(b"00107")), lambda s: least_to(s.height + 1, s.height + 5)),
    "cursor": Row(lambda s: s.tree.cursor()),
    "snapshot": Row(lambda s: s.tree.snapshot()),
    "user_blob": Row(lambda s: s.tree.user_blob),
    "pager": Row(lambda s: s.tree.pager),
    "close": Row(lambda s: s.tree.snapshot().close()),
}
TREE = {
    "open": Row(lambda s: Tree.open(s.pager, s.roots[1])),
    "descriptor": Row(lambda s: s.tree.descriptor),
    "tree_id": Row(lambda s: s.tree.tree_id),
    "height": Row(lambda s: s.tree.height),
    "is_dirty": Row(lambda s: s.tree.is_dirty),
    "dirty_pages": Row(lambda s: s.tree.dirty_pages),
    "user_blob": Row(lambda s: setattr(s.tree, "user_blob", b"blob")),
    "put": Row(lambda s: s.tree.put(key(77), b"w" * 20), path, path),
    "write": Row(lambda s: s.tree.write(key(77), 3, b"w"), path, path),
    "delete": Row(lambda s: s.tree.delete(key(77)), path, path),
    "delete_value": Row(lambda s: s.tree.delete_value(key(77), b"v" * 20), path, path, duplicates=True),
    "update": Row(lambda s: s.tree.update([(key(7), b"w" * 20), (key(7), b"x" * 20), (key(3999), b"w" * 20)]),
                  both_paths, both_paths),
    "fetch": Row(lambda s: s.tree.fetch(PackedPairs([(key(7), b"w"), (key(3999), b"w")])), both_paths),
    "delete_many": Row(lambda s: s.tree.delete_many([key(7), key(3000)]), both_paths, both_paths),
    "delete_range": Row(lambda s: s.tree.delete_range(key(100), key(1900)),
                        lambda s: least_to(s.height, 2 * s.height + s.index), lambda s: least_to(1, 4 * s.height)),
    "clear": Row(lambda s: s.tree.clear(), lambda s: s.index + 1 + s.long_index),
    "bulk_load": Row(load, dirties=loaded),
    "clone": Row(lambda s: s.tree.clone()),
    "seal": Row(seal, both_paths),
    "seal_leaves": Row(seal_leaves, both_paths, lambda s: 2 * s.height - 3),
    "root": Row(lambda s: s.tree.root()),
    "check": Row(lambda s: s.tree.check(), lambda s: s.pages),
    "pages": Row(lambda s: list(s.tree.pages()), lambda s: s.index + 1 + s.long_index),
}  # fmt: skip


def stepped(scene: Scene, steps: int, back: int = 0) -> RecordCursor:
    cursor = scene.tree.cursor()
    for _ in range(steps):
        cursor.next()
    for _ in range(back):
        cursor.prev()
    return cursor


CURSOR = {
    "first": Row(lambda s: s.tree.cursor().first(), path),
    "last": Row(lambda s: s.tree.cursor().last(), path),
    "seek": Row(lambda s: s.tree.cursor().seek(key(77)), path),
    "next": Row(lambda s: stepped(s, 9), lambda s: least_to(s.height + 1, s.height + 2)),
    "prev": Row(lambda s: stepped(s, 9, 9), lambda s: least_to(s.height + 1, s.height + 2)),
    "record": Row(lambda s: s.tree.cursor().record),
    "close": Row(lambda s: s.tree.cursor().close()),
    "__enter__": Row(lambda s: s.tree.cursor().__enter__()),
    "__exit__": Row(lambda s: s.tree.cursor().__exit__(None, None, None)),
}
ROWS = [
    pytest.param(row, id=f"{kind}.{name}")
    for kind, rows in (("Pager", PAGER), ("TreeView", VIEW), ("Tree", TREE), ("RecordCursor", CURSOR))
    for name, row in rows.items()
]


def fits(found: int, pages: int | range) -> bool:
    return found in pages if isinstance(pages, range) else found == pages


@pytest.mark.parametrize("row", ROWS)
def test_each_operation_costs_the_pages_it_says(row: Row) -> None:
    scene = Scene(duplicates=row.duplicates)
    before = scene.pager.counters()["pages_read"]
    row.act(scene)
    read = scene.pager.counters()["pages_read"] - before
    assert fits(read, row.reads(scene)), f"{read} pages read, {row.reads(scene)} expected"
    dirty = scene.tree.dirty_pages
    assert fits(dirty, row.dirties(scene)), f"{dirty} pages to seal, {row.dirties(scene)} expected"


def pages_of(scene: Scene, act: Callable[[], object]) -> int:
    before = scene.pager.counters()["pages_read"]
    act()
    return scene.pager.counters()["pages_read"] - before


@pytest.mark.parametrize("back", [False, True])
def test_a_step_over_the_border_of_index_pages_reads_all_but_the_root(back: bool) -> None:
    """It was said to cost "the next leaf", where three pages were read."""
    scene = Scene()
    cursor = scene.tree.cursor()
    records = [cursor.last() if back else cursor.first()]
    costs = [scene.height]
    while records[-1] is not None:
        costs.append(pages_of(scene, lambda: records.append(cursor.prev() if back else cursor.next())))
    assert sum(costs) == scene.pages + scene.long, "each page once"
    long = next(at for at, record in enumerate(records) if record is not None and record[0] == LONG)
    costs[long] -= scene.long
    assert set(costs[1:]) == set(range(scene.height)), "no page, a leaf, and a page more for each level that ends there"
    # a key behind the last (before the first) record of such a leaf: the path to the leaf, and to the one beside it
    at = costs.index(scene.height - 1)
    (last, _), (first, _) = (record for record in records[at - 1 : at + 1] if record is not None)
    between = (first if back else last) + b"0"
    for find in (
        lambda tree: tree.cursor().seek(between), lambda tree: tree.seek(between), lambda tree: tree.seek(between, reverse=True)
    ):  # fmt: skip
        reads = pages_of(scene, lambda find=find: find(Tree.open(scene.pager, scene.roots[1])))  # type: ignore[misc]
        assert reads in (scene.height, 2 * scene.height - 1)
    forward = pages_of(scene, lambda: Tree.open(scene.pager, scene.roots[1]).cursor().seek(between))
    assert forward == 2 * scene.height - 1


def public(kind: type) -> set[str]:
    dunder = {"__len__", "__bool__", "__contains__", "__iter__", "__enter__", "__exit__"}
    return {name for name in vars(kind) if not name.startswith("_") or name in dunder}


@pytest.mark.parametrize(
    ("kind", "rows"), [(Pager, PAGER), (TreeView, VIEW), (Tree, TREE), (RecordCursor, CURSOR)], ids=lambda value: None
)
def test_no_public_operation_is_left_out_and_each_says_its_cost(kind: type, rows: dict[str, Row]) -> None:
    assert public(kind) == set(rows)
    silent = [name for name in sorted(rows) if not name.startswith("__") and "Cost:" not in (vars(kind)[name].__doc__ or "")]
    assert [name for name in silent if name not in ("device", "pager")] == []


def test_a_cursor_moves_both_ways_over_the_records_as_they_were() -> None:
    scene = Scene()
    expected = list(scene.tree.items())
    cursor = scene.tree.cursor()
    assert cursor.record is None
    scene.tree.delete_range(key(10), key(3000))
    assert [cursor.next() for _ in range(len(expected))] == expected
    assert (cursor.next(), cursor.next(), cursor.record) == (None, None, None)
    assert [cursor.prev() for _ in range(len(expected))] == expected[::-1]
    assert (cursor.prev(), cursor.prev(), cursor.record) == (None, None, None)
    assert cursor.next() == expected[0]
    rng, at = scene.world.random, 0
    for _ in range(3000):
        step = rng.choice((1, 1, 1, -1, -1, 0))
        if step:
            at = max(-1, min(len(expected), at + step))
            found = cursor.next() if step > 0 else cursor.prev()
        else:
            at = rng.choice((0, len(expected) - 1, len(expected), rng.randrange(len(expected))))
            found = (
                cursor.first() if at == 0 else cursor.last() if at == len(expected) - 1
                else cursor.seek(b"\xff") if at == len(expected) else cursor.seek(expected[at][0])
            )  # fmt: skip
        assert found == cursor.record == (expected[at] if 0 <= at < len(expected) else None)
    empty = new_tree(scene.world, 9).cursor()
    assert (empty.next(), empty.prev(), empty.first(), empty.last(), empty.seek(b"k"), empty.record) == (None,) * 6
