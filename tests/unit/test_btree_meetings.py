"""What threads do where they meet, one step at a time: a writer between two steps of a read, and who waits for whom.

Nothing here runs at once: what another thread would do happens in a hook at the very place (`call_where_threads_meet`), with the
locks the reader holds, and a lock that another would hold is taken by the test (`hold`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Tree, TreeView
from mdstore.btree._kernel import call_where_threads_meet, hold
from tests.model.btree_world import World, meeting, new_tree

KEYS = [b"key%d" % n for n in range(8)]
KEY = KEYS[4]
BEFORE = {key: key * 10 for key in KEYS}


def one_leaf() -> Tree:
    """A tree whose one leaf has room: it takes and loses records in place, under the lock that readers hold too."""
    tree = new_tree(World(1, page_size=1024))
    tree.update(BEFORE)
    tree.put(b"large", b"l" * 240)
    tree.put(b"larger", b"l" * 240)  # the leaf grows to a whole page
    tree.delete_many([b"large", b"larger"])
    return tree


READS: dict[str, Callable[[TreeView], object]] = {
    "get": lambda tree: tree.get(KEY),
    "get_many": lambda tree: tree.get_many([KEY])[0],
    "read": lambda tree: tree.read(KEY),
    "read a part": lambda tree: tree.read(KEY, 5, 1000),
    "contains": lambda tree: KEY in tree,
}
WRITES: dict[str, Callable[[Tree], object]] = {
    "the slots move up": lambda tree: tree.put(b"a", b"another"),
    "the slots move down": lambda tree: tree.delete(KEYS[0]),
    "the value grows": lambda tree: tree.put(KEY, b"longer" * 14),
    "the value shrinks": lambda tree: tree.put(KEY, b"short"),
    "the key goes": lambda tree: tree.delete(KEY),
    "in a batch": lambda tree: tree.update([(KEYS[1], b"other"), (KEY, b"from a batch"), (b"b", b"new")]),
    "gone in a batch": lambda tree: tree.delete_many([KEYS[0], KEY]),
}


@pytest.mark.parametrize("waits_first", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_that_a_writer_met_is_done_again(
    read: Callable[[TreeView], object], write: Callable[[Tree], object], waits_first: bool
) -> None:
    """What it copied may be half of one value and half of another, or another key's: it is thrown away."""
    tree, other = one_leaf(), one_leaf()
    write(other)
    seen: list[str] = []

    def meet(at: str) -> None:
        if at == "wait":
            hold(tree, "tree", b"", False)
            return
        seen.append(at)
        if len(seen) == 1:
            write(tree)

    with meeting(meet):
        if waits_first:  # the way for a lock that is taken, or a page that has to be read
            hold(tree, "tree", b"", True)
        found = read(tree)
    assert found == read(other)
    assert 2 <= len(seen) <= 3, "it looked again, and no more often than it was met"
    assert list(tree.items()) == list(other.items())
    assert tree.check() == []


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_key_that_comes_while_it_is_looked_for_in_vain_is_found(read: Callable[[TreeView], object]) -> None:
    tree = one_leaf()
    tree.delete(KEY)
    seen: list[str] = []

    def meet(at: str) -> None:
        seen.append(at)
        if seen == ["read"]:
            tree.put(KEY, b"come meanwhile")

    with meeting(meet):
        found = read(tree)
    assert found == read(tree)
    assert found not in (None, False)


def test_each_key_of_a_group_that_a_writer_meets_is_looked_up_again_and_no_other() -> None:
    """A batch of 16 descends as one: what moved under it is read one by one, twice where it is met again."""
    tree = one_leaf()
    written: list[int] = []

    def meet(at: str) -> None:
        if len(written) < 40:
            written.append(len(written))
            tree.put(b"a%02d" % (len(written) % 3), b"%d" % len(written))
            tree.put(KEY, b"written %d times" % len(written))

    with meeting(meet):
        found = tree.get_many([*KEYS, b"missing", *KEYS])
    final = tree.get_many([*KEYS, b"missing", *KEYS])
    assert written == list(range(40))
    for key, one, last in zip([*KEYS, b"missing", *KEYS], found, final, strict=True):
        if key == KEY:
            assert one is not None
            assert one.startswith(b"written ")
        else:
            assert one == last == BEFORE.get(key)


def churn(tree: Tree, world: World) -> None:
    """All that a writer may do."""
    tree.put(KEYS[1], b"other")
    tree.delete(KEYS[2])
    tree.update((b"new%d" % n, b"n" * 50) for n in range(30))
    world.seal(tree)
    tree.delete_range(KEYS[3], b"new7")
    tree.clear()
    tree.put(b"last", b"one")


Between = Callable[[], object]


def steps_of_a_cursor(view: TreeView, between: Between) -> list[object]:
    found: list[object] = []
    with view.cursor() as cursor:
        for move in (partial(cursor.seek, KEYS[3]), cursor.next, cursor.prev, cursor.prev, cursor.last, cursor.next, cursor.prev):
            found.append(move())
            between()
            found.append(cursor.record)
    return found


def stepped(records: Iterator[object], between: Between) -> list[object]:
    found = []
    for record in records:
        found.append(record)
        between()
    return found


def counted(view: TreeView, between: Between, start: bytes | None, stop: bytes | None) -> int:
    with meeting(lambda at: between() if at == "counted" else None):
        return view.count(start, stop)


STEADY: dict[str, Callable[[TreeView, Between], object]] = {
    "items": lambda view, between: stepped(view.items(), between),
    "items backwards": lambda view, between: stepped(view.items(KEYS[1], KEYS[7], reverse=True), between),
    "keys": lambda view, between: stepped(view.keys(KEYS[2]), between),
    "prefix": lambda view, between: stepped(view.prefix(b"key"), between),
    "union": lambda view, between: stepped(view.union(view), between),
    "cursor": steps_of_a_cursor,
    "count": lambda view, between: counted(view, between, KEYS[1], KEYS[7]),
    "count from": lambda view, between: counted(view, between, KEYS[2], None),
    "count to": lambda view, between: counted(view, between, None, KEYS[5]),
}


@pytest.mark.parametrize("source", ["tree", "snapshot"])
@pytest.mark.parametrize("page_size", [256, 1024], ids=["many leaves", "one leaf"])
@pytest.mark.parametrize("read", STEADY.values(), ids=STEADY)
def test_iteration_and_counting_see_the_tree_as_it_was_whatever_a_writer_does_between_their_steps(
    read: Callable[[TreeView, Between], object], page_size: int, source: str
) -> None:
    expected = None
    for step in range(20):
        world = World(1, page_size=page_size)
        tree = new_tree(world)
        tree.update(BEFORE)
        view = tree if source == "tree" else tree.snapshot()
        places: list[int] = []

        def between(places: list[int] = places, step: int = step, tree: Tree = tree, world: World = world) -> None:
            places.append(step)
            if len(places) == step:
                churn(tree, world)

        found = read(view, between)
        expected = found if step == 0 else expected  # nothing is written in the first round
        assert found == expected
        if len(places) < step:
            assert step > 1
            return
    raise AssertionError("more places than there are records")


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_snapshot_is_not_moved_by_a_writer_in_the_middle_of_a_read(read: Callable[[TreeView], object]) -> None:
    world = World(1)
    tree = new_tree(world)
    tree.update(BEFORE)
    with tree.snapshot() as view:
        expected = read(view)
        places: list[str] = []

        def meet(at: str) -> None:
            places.append(at)
            if len(places) == 1:
                churn(tree, world)

        with meeting(meet):
            assert read(view) == expected
        assert places
        assert read(view) == expected


# -- who waits for whom ------------------------------------------------------------------------------------------------
IN_PLACE: dict[str, Callable[[Tree], object]] = {
    **READS,
    "put": lambda tree: tree.put(KEY, b"put"),
    "put a new key": lambda tree: tree.put(b"key44", b"new"),
    "delete": lambda tree: tree.delete(KEY),
    "update": lambda tree: tree.update([(KEY, b"updated")]),
    "delete_many": lambda tree: tree.delete_many([KEY]),
}


def waited(tree: TreeView, lock: str, act: Callable[[], object]) -> tuple[bool, object]:
    """Whether `act` waits for a lock that another holds until then, and its result."""
    waits: list[str] = []

    def meet(at: str) -> None:
        if at == "wait":
            if not waits:
                hold(tree, lock, KEY, False)
            waits.append(at)

    hold(tree, lock, KEY, True)
    with meeting(meet):
        result = act()
    if not waits:
        hold(tree, lock, KEY, False)
    return bool(waits), result


@pytest.mark.parametrize("act", IN_PLACE.values(), ids=IN_PLACE)
def test_nobody_reads_or_changes_a_leaf_that_another_is_changing(act: Callable[[Tree], object]) -> None:
    tree, other = one_leaf(), one_leaf()
    assert waited(tree, "leaf", lambda: act(tree)) == (True, act(other))
    assert list(tree.items()) == list(other.items())


class Scene:
    """A sealed tree of some levels, one of its pages shared with a clone, a few dirty; a view; a set of pages that are clean."""

    def __init__(self) -> None:
        self.world = World(1)
        self.world.pager.refs = Tree(self.world.pager, REFS_DESCRIPTOR, 1)
        self.tree = new_tree(self.world, embed_limit=0)
        self.tree.update((b"%03d" % n, b"%d" % n * 9) for n in range(200))
        self.tree.put(b"large", b"L" * 3000)
        self.world.seal(self.tree)
        self.world.write()
        self.tree.put(b"100", b"dirty")  # its leaf and those above it are changed in place from now on
        self.tree.put(b"large", b"M" * 2000)
        self.view = self.tree.snapshot()
        self.tree.put(b"100", b"again")

    def shrink(self) -> None:
        self.world.pager.cache_bytes = 0
        self.world.pager.cache_bytes = 1 << 20

    def close_view(self) -> None:
        self.view.close()

    def open_and_close(self) -> None:
        Tree.open(self.world.pager, self.tree.root()).close()


READER, WRITER, VIEWER = {"tree"}, {"tree", "tree shared", "pager"}, {"pager"}
EVERYONE = {"tree", "tree shared", "pager", "pager shared"}
WAITS: dict[str, tuple[Callable[[Scene], object], set[str]]] = {
    "get": (lambda scene: scene.tree.get(b"100"), READER),
    "contains": (lambda scene: b"100" in scene.tree, READER),
    "get_many": (lambda scene: scene.tree.get_many([b"100"]), READER),
    "read": (lambda scene: scene.tree.read(b"100", 1, 2), READER),
    "put in place": (lambda scene: scene.tree.put(b"100", b"third"), READER),
    "update in place": (lambda scene: scene.tree.update([(b"100", b"third")]), READER),
    "put over a clean page": (lambda scene: scene.tree.put(b"010", b"x"), WRITER),
    "put a long value": (lambda scene: scene.tree.put(b"100", b"x" * 900), WRITER),
    "update of a clean page": (lambda scene: scene.tree.update([(b"010", b"x")]), WRITER),
    "delete from a clean page": (lambda scene: scene.tree.delete(b"010"), WRITER),
    "delete_many": (lambda scene: scene.tree.delete_many([b"010"]), WRITER),
    "delete_range": (lambda scene: scene.tree.delete_range(b"010", b"050"), WRITER),
    "clear": (lambda scene: scene.tree.clear(), WRITER),
    "write": (lambda scene: scene.tree.write(b"large", 300, b"w"), WRITER),
    "clone": (lambda scene: len(scene.tree.clone()), WRITER),
    "snapshot": (lambda scene: len(scene.tree.snapshot()), WRITER),
    "seal": (lambda scene: scene.world.seal(scene.tree), WRITER),
    "seal_leaves": (lambda scene: scene.tree.seal_leaves(scene.world.allocate, 0, 1), WRITER),
    "dirty_pages": (lambda scene: scene.tree.dirty_pages, WRITER),
    "items": (lambda scene: next(scene.tree.items()), WRITER),
    "count": (lambda scene: scene.tree.count(b"010", b"020"), WRITER),
    "check": (lambda scene: scene.tree.check(), WRITER),
    "pages": (lambda scene: sorted(scene.tree.pages()), WRITER),
    "get of a view": (lambda scene: scene.view.get(b"100"), VIEWER),
    "get_many of a view": (lambda scene: scene.view.get_many([b"100"]), VIEWER),
    "read of a view": (lambda scene: scene.view.read(b"large", 300, 9), VIEWER),
    "items of a view": (lambda scene: next(scene.view.items()), VIEWER),
    "count of a view": (lambda scene: scene.view.count(b"010", b"020"), VIEWER),
    "close a view": (Scene.close_view, VIEWER),
    "open and close": (Scene.open_and_close, VIEWER),
    "evict": (Scene.shrink, EVERYONE),
    "len": (lambda scene: len(scene.tree), set()),
    "take_freed": (lambda scene: scene.world.pager.take_freed(), set()),
}


@pytest.mark.parametrize("lock", ["tree", "tree shared", "pager", "pager shared"])
@pytest.mark.parametrize(("act", "expected"), WAITS.values(), ids=WAITS)
def test_each_operation_takes_its_locks(act: Callable[[Scene], object], expected: set[str], lock: str) -> None:
    """And no other: a point read waits for no eviction, a snapshot's for no writer."""
    scene = Scene()
    met, result = waited(scene.tree, lock, partial(act, scene))
    assert met == (lock in expected)
    assert result == act(Scene())
    assert scene.tree.check() == []


def test_who_changes_what_clones_share_waits_for_the_counts_of_shared_pages() -> None:
    for act in (
        lambda scene: scene.tree.clone().clear(),
        lambda scene: scene.tree.put(b"010", b"x"),
        lambda scene: scene.tree.delete_range(b"010", b"050"),
        lambda scene: scene.tree.write(b"large", 300, b"w"),
        lambda scene: scene.tree.clear(),
    ):
        for lock in ("tree", "tree shared"):
            scene = Scene()
            scene.world.seal(scene.tree)
            copy = scene.tree.clone()
            refs = scene.world.pager.refs
            assert refs is not None
            assert len(refs) > 0
            assert waited(refs, lock, partial(act, scene))[0]
            assert copy.get(b"100") == b"again"
            assert (copy.check(), refs.check()) == ([], [])


@pytest.mark.parametrize("made", [Tree.snapshot, Tree.items, Tree.cursor, Tree.pages,
                                  lambda tree: Tree(tree.pager, tree.descriptor, 9)])  # fmt: skip
def test_a_view_that_is_collected_under_the_lock_waits_for_no_one_who_waits_for_that(made: Callable[[Tree], object]) -> None:
    """Garbage is collected anywhere, also in a read that a thread makes with the pager's lock held: that took the lock again, and
    waited for who waited for this very thread."""
    tree = one_leaf()
    kept = [made(tree)]
    places: list[str] = []

    def hook(place: str) -> None:
        places.append(place)
        if len(places) == 1:  # who wants the lock alone waits for the one that this thread has
            kept.clear()
        if "pager shared" in held:
            held.remove("pager shared")
            hold(tree, "pager shared", b"", False)

    held = ["pager shared"]
    hold(tree, "pager shared", b"", True)
    with meeting(hook):
        hold(tree, "pager", b"", True)
    hold(tree, "pager", b"", False)
    assert places == ["wait"]


def test_a_read_without_memory_for_its_result_keeps_no_lock() -> None:
    """Whoever had to take the lock alone would have waited for ever."""
    testcapi = pytest.importorskip("_testcapi")
    world = World(1)
    tree = new_tree(world)
    tree.put(b"k", b"v" * 50)
    kept: list[str] = []

    def let_go(place: str) -> None:
        kept.append(place)
        hold(tree, "tree shared", b"k", False)  # so that the test fails, instead of hanging

    get, refused = tree.get, False
    testcapi.set_nomemory(0, 1)  # the next allocation, whoever makes it
    try:
        get(b"k")
    except MemoryError:
        refused = True
    finally:
        testcapi.remove_mem_hooks()
    assert refused
    call_where_threads_meet(let_go)
    try:
        tree.clear()
    finally:
        call_where_threads_meet(None)
    assert kept == []
