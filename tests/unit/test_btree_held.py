"""What only views hold is not dirty: no seal will write it. It has its own count, and comes back with the last view."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Tree, TreeView
from tests.model.btree_world import World, new_tree

LONG = 3000  # bytes of a value that spills


def counted(world: World) -> tuple[int, int, int]:
    """Dirty pages, the bytes of them and of long values, and the bytes that are held."""
    counters = world.pager.counters()
    assert (world.pager.dirty_bytes, world.pager.held_bytes) == (counters["dirty_bytes"], counters["held_bytes"])
    return counters["dirty_pages"], counters["dirty_bytes"], counters["held_bytes"]


def only_held(world: World, view: TreeView, content: list[tuple[bytes, bytes]]) -> None:
    """Nothing is dirty; something is held until the view goes, which shows what it did."""
    pages, dirty, held = counted(world)
    assert (pages, dirty) == (0, 0)
    assert held > 0
    assert list(view.items()) == content
    view.close()
    assert counted(world) == (0, 0, 0)


def made(*, copies: int = 1) -> tuple[World, Tree]:
    """A world whose tree has values in leaves, values that spilled in an earlier generation, and pages that no seal reached."""
    world = World(1)
    world.pager.refs = refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    world.seal(refs)
    tree = new_tree(world, copies=copies)
    for n in range(4):
        tree.put(b"sealed%d" % n, b"%d" % n * LONG)
    tree.update((b"%04d" % n, b"%d" % n * 6) for n in range(300))
    world.seal(tree)
    world.write()
    tree.update((b"%04d" % n, b"new%d" % n * 4) for n in range(0, 300, 3))
    for n in range(4):
        tree.put(b"fresh%d" % n, b"%d" % n * LONG)
    tree.write(b"sealed1", 300, b"W" * 500)  # a value of which only some pages are in memory
    tree.write(b"sealed2", 0, b"W")
    return world, tree


def put_all(tree: Tree) -> None:
    tree.update([(key, b"short") for key in tree])


def delete_all(tree: Tree) -> None:
    assert tree.delete_many(list(tree)) > 0


def delete_each(tree: Tree) -> None:
    for key in list(tree):
        assert tree.delete(key)


def write_ranges(tree: Tree) -> None:
    for key in (b"fresh0", b"sealed0", b"sealed1"):
        tree.write(key, 700, b"X" * 300)
        tree.write(key, LONG, b"behind the end" * 40)


def write_long_values_anew(tree: Tree) -> None:
    for n in range(4):
        tree.put(b"fresh%d" % n, b"N" * 2 * LONG)
        tree.put(b"sealed%d" % n, b"N" * 2 * LONG)


def clone_and_part(tree: Tree) -> None:
    """The clone has its own copies of what is dirty, and shares values in memory."""
    copy = tree.clone()
    delete_each(copy)
    tree.write(b"sealed1", 0, b"Y" * 100)
    copy.clear()


def pass_through_the_record(tree: Tree) -> None:
    """A clear, and then the small root that grows."""
    tree.clear()
    tree.update((b"%d" % n, b"again") for n in range(40))


CHANGES: list[Callable[[Tree], object]] = [
    put_all, delete_all, delete_each, write_ranges, write_long_values_anew, clone_and_part, pass_through_the_record, Tree.clear,
    lambda tree: tree.delete_range(b"0100", b"sealed1"), lambda tree: tree.delete_range(None, b"0200"),
    lambda tree: tree.delete_range(b"fresh2"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("copies", [1, 2])
def test_what_a_change_lets_go_beside_a_view_is_held_and_not_dirty(change: Callable[[Tree], object], copies: int) -> None:
    world, tree = made(copies=copies)
    view = tree.snapshot()
    before = list(view.items())
    change(tree)
    world.seal(tree)
    refs = world.pager.refs
    assert refs is not None
    world.seal(refs)
    world.write()
    only_held(world, view, before)
    assert tree.check() == []


def test_iterators_left_where_they_are_make_nothing_dirty() -> None:
    """Five of them beside a seal and a write of everything: 644160 bytes more counted as dirty with each, for ever."""
    world = World(1, page_size=4096, holes=False)
    tree = new_tree(world)
    iterators = []
    held = [0]
    for n in range(5):
        tree.update((b"%06d" % i, b"%d" % n * 100) for i in range(2000))
        iterators.append(tree.items())
        next(iterators[-1])
        tree.update((b"%06d" % i, b"%d" % n * 99) for i in range(2000))
        world.seal(tree)
        world.write()
        assert counted(world)[:2] == (0, 0)
        held.append(counted(world)[2])
    assert held == sorted(set(held)), "more with each"
    while iterators:
        iterators.pop(random.Random(5).randrange(len(iterators)))
    assert counted(world) == (0, 0, 0)


def test_a_long_value_deleted_beside_a_snapshot_is_held_once() -> None:
    world = World(1, page_size=4096)
    tree = new_tree(world)
    tree.put(b"long", b"x" * (8 << 20))
    views = [tree.snapshot(), tree.snapshot()]
    tree.delete(b"long")
    world.seal(tree)
    world.write()
    _, dirty, held = counted(world)
    assert dirty == 0
    assert 8 << 20 <= held < (8 << 20) + 10_000
    views.pop().close()
    assert counted(world)[2] == held
    views.pop().close()
    assert counted(world) == (0, 0, 0)


def test_a_sealed_value_is_dirty_until_it_is_written() -> None:
    world = World(1, page_size=4096)
    tree = new_tree(world)
    tree.put(b"long", bytes(40 * 4096))
    tree.seal(world.allocate)
    _, dirty, held = counted(world)
    assert dirty >= 40 * 4096
    assert held == 0
    view = tree.snapshot()
    tree.delete(b"long")
    assert counted(world)[1] > 40 * 4096, "given up, but waiting to be written"
    world.seal(tree)
    world.write()
    assert counted(world) == (0, 0, 0), "the view reads it from the device"
    assert view.read(b"long", 0, 3) == bytes(3)


def test_pages_of_a_value_changed_again_beside_a_view_are_held_one_by_one() -> None:
    world = World(1, page_size=4096)
    tree = new_tree(world)
    tree.put(b"long", bytes(40 * 4096))
    world.seal(tree)
    world.write()
    tree.write(b"long", 0, b"a" * 4 * 4096)
    with tree.snapshot() as view:
        tree.write(b"long", 4096, b"b" * 4096)  # one of the four is another now; view and tree share three
        _, dirty, held = counted(world)
        with tree.snapshot() as second:
            tree.write(b"long", 4096, b"c" * 4096)
            assert counted(world)[2] - held >= 4096
            assert second.read(b"long", 4096, 3) == b"bbb"
        assert counted(world)[1:] == (dirty, held), "as before the second view"
        world.seal(tree)
        world.write()
        assert counted(world)[1] == 0
        assert counted(world)[2] >= 4 * 4096, "what they shared is only the view's now"
        assert view.read(b"long", 4096, 3) == b"aaa"
    assert counted(world) == (0, 0, 0)


def test_a_tree_closed_before_a_seal_leaves_to_its_views_what_they_hold() -> None:
    world, tree = made()
    view: TreeView = tree.snapshot()
    before = list(view.items())
    tree.put(b"0000", b"not in the view")
    tree.close()
    only_held(world, view, before)


def test_a_value_in_memory_is_dirty_while_any_clone_has_to_write_it() -> None:
    world, tree = made()
    refs = world.pager.refs
    assert refs is not None
    copy = tree.clone()
    view = tree.snapshot()
    delete_each(tree)
    world.seal(tree)
    world.write()
    assert counted(world)[1] > 4 * LONG, "the clone has not been sealed"
    expected = list(copy.items())
    root = world.seal(copy)
    world.seal(refs)
    world.write()
    assert counted(world)[:2] == (0, 0)
    assert list(Tree.open(world.pager, root).items()) == expected
    view.close()
    assert counted(world) == (0, 0, 0)


@pytest.mark.parametrize("copies", [1, 3])
def test_views_change_nothing_of_what_is_dirty(copies: int) -> None:
    """The same changes with and without views, to the byte; none of them splits a page, which with views may happen elsewhere."""
    (world, tree), (still, alone) = made(copies=copies), made(copies=copies)
    chance, views = random.Random(copies), []
    for step in range(200):
        what, key = chance.randrange(6), b"%s%d" % (chance.choice((b"fresh", b"sealed")), chance.randrange(4))
        offset, data = chance.randrange(LONG - 500), chance.randbytes(chance.randrange(1, 500))
        for each in (tree, alone):
            if what == 0:
                each.update((b"%04d" % n, b"%d" % (step % 10) * 4) for n in range(offset % 300, 300, 7))
            elif what < 4:
                each.write(key, offset, data)
            elif what == 4:
                each.put(key, bytes(LONG))
        if what == 5:
            views.append(tree.snapshot())
        elif step % 9 == 0 and views:
            views.pop(chance.randrange(len(views))).close()
        assert counted(still) == (*counted(world)[:2], 0)
        assert tree.dirty_pages == alone.dirty_pages
    assert list(tree.items()) == list(alone.items())
    assert counted(world)[2] > 0
    while views:
        views.pop().close()
    assert counted(world) == counted(still)


@pytest.mark.parametrize("seed", range(12))
def test_dirty_is_what_seals_write_whatever_is_held(seed: int) -> None:
    """Trees, clones and views at random. With all trees sealed and written nothing is dirty, with all views closed none held."""
    world, tree = made()
    refs = world.pager.refs
    assert refs is not None
    chance = random.Random(seed)
    trees, views = [tree], []
    for step in range(120):
        subject = chance.choice(trees)
        names = list(subject)
        what = chance.randrange(9)
        if what < 3 or not names:
            subject.update((b"%04d" % chance.randrange(300), b"%d" % step * chance.randrange(1, 30)) for _ in range(20))
        elif what == 3:
            subject.put(b"fresh%d" % chance.randrange(4), chance.randbytes(chance.randrange(2 * LONG)))
        elif what == 4:
            subject.write(chance.choice(names), chance.randrange(LONG), chance.randbytes(chance.randrange(1, 600)))
        elif what == 5:
            subject.delete_range(*sorted((chance.choice(names), chance.choice(names))))
        elif what == 6:
            views.append((subject.snapshot(), list(subject.items())))
        elif what == 7 and len(trees) < 3:
            trees.append(subject.clone())
        elif views:
            view, expected = views.pop(chance.randrange(len(views)))
            assert list(view.items()) == expected
            view.close()
        if step % 20 == 19:
            for each in (*trees, refs):
                world.seal(each)
            world.write()
            assert counted(world)[:2] == (0, 0)
            assert counted(world)[2] == 0 or views
    for view, expected in views:
        assert list(view.items()) == expected
        view.close()
    for each in (*trees, refs):
        assert each.check() == []
        world.seal(each)
    world.write()
    assert counted(world) == (0, 0, 0)
    world.drain_freed()
    assert world.reached(*trees, refs) == world.held
