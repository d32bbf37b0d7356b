"""What is closed says so: one table of every public method and property of trees, views, cursors and pagers, closed.

Iterators need no closing: they stand on a view of their own, and go on when their tree is closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdstore.btree import REFS_DESCRIPTOR, PackedPairs, Pager, RecordCursor, Tree, TreeView
from mdstore.errors import StoreClosed
from tests.model.btree_world import MemoryPages, World, filled, new_tree


def take_blob(tree: Tree) -> None:
    tree.user_blob = b"blob"


def other() -> Tree:
    return new_tree(World(2))


READS: dict[str, Callable[[Any], object]] = {
    "__contains__": lambda tree: b"key" in tree,
    "__iter__": iter,
    "__len__": len,
    "count": lambda tree: tree.count(b"a", b"z"),
    "cursor": lambda tree: tree.cursor(),
    "difference": lambda tree: tree.difference(other()),
    "first": lambda tree: tree.first(),
    "get": lambda tree: tree.get(b"key"),
    "get_all": lambda tree: tree.get_all(b"key"),
    "get_many": lambda tree: tree.get_many([b"key"]),
    "intersection": lambda tree: other().intersection(tree),
    "items": lambda tree: tree.items(),
    "keys": lambda tree: tree.keys(),
    "last": lambda tree: tree.last(),
    "prefix": lambda tree: tree.prefix(b"k"),
    "read": lambda tree: tree.read(b"key"),
    "seek": lambda tree: tree.seek(b"key"),
    "snapshot": lambda tree: tree.snapshot(),
    "union": lambda tree: tree.union(other()),
    "user_blob": lambda tree: tree.user_blob,
}
WRITES: dict[str, Callable[[Any], object]] = {
    "bulk_load": lambda tree: tree.bulk_load([(b"key", b"value")]),
    "check": lambda tree: tree.check(),
    "clear": lambda tree: tree.clear(),
    "clone": lambda tree: tree.clone(),
    "delete": lambda tree: tree.delete(b"key"),
    "delete_many": lambda tree: tree.delete_many([b"key"]),
    "delete_range": lambda tree: tree.delete_range(),
    "delete_value": lambda tree: tree.delete_value(b"key", b"value"),
    "dirty_pages": lambda tree: tree.dirty_pages,
    "fetch": lambda tree: tree.fetch(PackedPairs([(b"key", b"value")])),
    "height": lambda tree: tree.height,
    "is_dirty": lambda tree: tree.is_dirty,
    "pages": lambda tree: tree.pages(),
    "put": lambda tree: tree.put(b"key", b"value"),
    "root": lambda tree: tree.root(),
    "seal": lambda tree: tree.seal(lambda pages: [(1, pages)]),
    "seal_leaves": lambda tree: tree.seal_leaves(lambda pages: [(1, pages)], 0, 1),
    "tree_id": lambda tree: tree.tree_id,
    "update": lambda tree: tree.update([(b"key", b"value")]),
    "update, packed": lambda tree: tree.update(PackedPairs([(b"key", b"value")])),
    "user_blob, set": take_blob,
    "write": lambda tree: tree.write(b"key", 0, b"w"),
}
MOVES: dict[str, Callable[[Any], object]] = {
    "first": lambda cursor: cursor.first(),
    "last": lambda cursor: cursor.last(),
    "next": lambda cursor: cursor.next(),
    "prev": lambda cursor: cursor.prev(),
    "record": lambda cursor: cursor.record,
    "seek": lambda cursor: cursor.seek(b"key"),
}
# of a closed pager nothing can be read or written; what it counted, and what it is told, stays
STAYS = {"pager", "device", "descriptor", "close", "open"}
PAGER = {
    "cache_bytes", "counters", "dirty_bytes", "generation", "held_bytes", "oldest_pinned_generation", "page_bounds", "page_size",
    "pinned_generations", "refs", "sealed_pages", "take_freed", "write_sealed",
}  # fmt: skip
OBJECT = {*dir(object), "__enter__", "__exit__", "__bool__", "__pyx_vtable__"}


def closed_tree() -> Tree:
    world = World(1)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree, _ = filled(world, 100)
    tree.close()
    return tree


def closed_view() -> TreeView:
    tree, _ = filled(World(1), 100)
    view = tree.snapshot()
    view.close()
    return view


def closed_cursor() -> RecordCursor:
    tree, _ = filled(World(1), 100)
    cursor = tree.cursor()
    cursor.first()
    cursor.close()
    return cursor


CLOSED = [
    *((closed_tree, name, READS[name]) for name in READS),
    *((closed_tree, name, WRITES[name]) for name in WRITES),
    *((closed_view, name, READS[name]) for name in READS),
    *((closed_cursor, name, MOVES[name]) for name in MOVES),
]


@pytest.mark.parametrize(("make", "name", "use"), CLOSED, ids=[f"{make.__name__} {name}" for make, name, _ in CLOSED])
def test_what_is_closed_says_so(make: Callable[[], Any], name: str, use: Callable[[Any], object]) -> None:
    subject = make()
    with pytest.raises(StoreClosed, match="closed"):
        use(subject)


@pytest.mark.parametrize(
    ("kind", "tables"),
    [(TreeView, (READS,)), (Tree, (READS, WRITES)), (RecordCursor, (MOVES,)), (Pager, (dict.fromkeys(PAGER),))],
)
def test_the_table_leaves_nothing_out(kind: type, tables: tuple[dict[str, object], ...]) -> None:
    named = {name.partition(",")[0] for table in tables for name in table}
    assert {name for name in dir(kind) if name not in OBJECT} - STAYS == named


@pytest.mark.parametrize("make", [closed_tree, closed_view, closed_cursor])
def test_closing_twice_and_leaving_a_closed_one_are_no_errors(make: Callable[[], Any]) -> None:
    subject = make()
    subject.close()
    with subject:
        pass


def test_what_a_closed_tree_is_and_where_it_lies_can_still_be_asked() -> None:
    tree = closed_tree()
    assert tree.descriptor.comparator == 1
    assert isinstance(tree.pager, Pager)
    assert tree  # an object, not a container: even an empty tree is true


def test_iterators_and_cursors_go_on_when_their_tree_is_closed() -> None:
    tree, _ = filled(World(1), 100)
    expected = list(tree.items())
    iterator, merged, pages, view, cursor = tree.items(), tree.union(tree), tree.pages(), tree.snapshot(), tree.cursor()
    tree.close()
    assert list(iterator) == list(view.items()) == expected
    assert list(merged) == [key for key, _ in expected]
    assert len(list(pages)) > 3
    assert cursor.last() == expected[-1]


def test_a_closed_pager_reads_and_writes_nothing_and_says_so() -> None:
    world = World(1)
    tree, root = filled(world, 100)
    tree.put(b"more", b"L" * 5000)
    tree.seal(world.allocate)
    pager = world.pager
    pager.close()
    pager.close()
    waiting = pager.sealed_pages
    assert waiting > 0
    opened = Tree.open(pager, root)
    uses: list[Callable[[], object]] = [
        pager.write_sealed, lambda: pager.write_sealed(0), opened.first, opened.clear, lambda: list(opened.items()),
        lambda: opened.put(b"key", b"value"), lambda: opened.cursor().first(), lambda: next(opened.pages()),
        lambda: next(opened.union(opened)), lambda: opened.get_many([b"key"]), lambda: opened.count(b"000001", b"000050"),
        lambda: tree.get(b"more"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(StoreClosed, match="the pager is closed"):
            use()
    assert pager.sealed_pages == waiting, "nothing was written"
    assert tree.get(b"000001") is not None, "what is in memory stays"
    pager.generation = 9
    pager.cache_bytes = 1 << 16
    pager.page_bounds = 1, 900
    assert (pager.generation, pager.cache_bytes, pager.page_size, pager.page_bounds) == (9, 1 << 16, 256, (1, 900))
    assert pager.counters()["sealed_pages"] == waiting
    assert pager.dirty_bytes > pager.held_bytes == 0
    assert pager.oldest_pinned_generation is None
    assert pager.refs is None
    assert isinstance(pager.take_freed(), list)
    assert isinstance(pager.device, MemoryPages)
