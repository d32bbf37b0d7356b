"""Every method, attribute and function of the kernel takes whatever it is given, on objects living, closed and never initialised.

It returns, or raises an error that a caller may expect, and the process lives on. The table is made from the module, so that
nothing is left out."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mdstore.btree._kernel as kernel
from mdstore.btree import COMPARE_PAIR, REFS_DESCRIPTOR, Descriptor, PackedPairs, Pager, RecordCursor, Tree, TreeView
from mdstore.errors import InvalidRequest, MdstoreError, StoreClosed
from tests.model.btree_world import MemoryPages, World, new_tree

EXPECTED = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, BufferError, MemoryError, StopIteration,
    NotImplementedError, MdstoreError,
)  # fmt: skip
CLASSES = {name: kind for name, kind in vars(kernel).items() if isinstance(kind, type) and kind.__module__ == kernel.__name__}
FUNCTIONS = {name: call for name, call in vars(kernel).items() if type(call) is type(kernel.crc32c) and name[:2] != "__"}
# What Python defines itself for each class, and the seams for tests, whose purpose is to change what comes after them
LEFT_OUT = {
    "__new__", "__init_subclass__", "__subclasshook__", "fail_memory", "call_at_refusal", "call_between", "call_in_walk",
    "call_where_threads_meet", "hold", "bound_memory",
}  # fmt: skip


class Closing(bytes):
    """A key that closes a tree or cursor when it is looked at."""

    subject: Any = None

    def __bytes__(self) -> bytes:
        if hasattr(self.subject, "close"):
            self.subject.close()
        return b"key"


def living_tree(**fields: object) -> Tree:
    world = World(1)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree = new_tree(world, **fields)
    if not fields:
        tree.update((b"%04d" % n, bytes(300 if n == 7 else n)) for n in range(50))
    return tree


def closed(subject: Any) -> Any:
    subject.close()
    return subject


def fresh(kind: type) -> Any:
    """The object as it is before `__init__`."""
    return kind.__new__(kind)


INSTANCES: dict[str, list[Callable[[], Any]]] = {
    "Descriptor": [Descriptor, lambda: fresh(Descriptor)],
    "Pager": [lambda: World(1).pager, lambda: closed(World(1).pager), lambda: Pager.__new__(Pager, MemoryPages())],
    "Hold": [lambda: fresh(CLASSES["Hold"])],
    "Loan": [lambda: fresh(CLASSES["Loan"]), lambda: closed(fresh(CLASSES["Loan"]))],
    "TreeView": [
        lambda: living_tree().snapshot(), lambda: closed(living_tree().snapshot()), lambda: fresh(TreeView),
    ],
    "Tree": [
        living_tree, lambda: closed(living_tree()), lambda: fresh(Tree),
        lambda: living_tree(duplicates=True), lambda: living_tree(comparator=COMPARE_PAIR),
    ],
    "PackedPairs": [lambda: PackedPairs([]), lambda: PackedPairs([(b"k", b"v")], 3)],
    "KeyMerge": [lambda: living_tree().union(living_tree())],
    "RecordIterator": [lambda: living_tree().items(), lambda: fresh(CLASSES["RecordIterator"])],
    "RecordCursor": [
        lambda: living_tree().cursor(), lambda: closed(living_tree().cursor()), lambda: RecordCursor(living_tree()),
    ],
    "TreeCheck": [lambda: CLASSES["TreeCheck"](living_tree())],
    "PageWalk": [lambda: living_tree().pages(), lambda: CLASSES["PageWalk"](living_tree().snapshot())],
}  # fmt: skip


def arguments(subject: object) -> Iterator[tuple[object, ...]]:
    """Lists of up to four arguments, most of them wrong."""
    closing = Closing()
    closing.subject = subject
    one = (
        None, b"", b"0007", b"\xff" * 8, bytearray(b"0009"), memoryview(b"0010"), closing, "0007",
        0, -1, 3, 1 << 31, 1 << 63, 1 << 70, 0.5, [], [(b"0001", b"new")], [None], [(None, None)], {b"0002": closing},
        [closing], object(), int, lambda _: [],
        living_tree(), closed(living_tree()), fresh(Tree), fresh(TreeView), World(1).pager,
        Descriptor(), PackedPairs([(b"a", b"b")]),
    )  # fmt: skip
    few = (None, b"0007", closing, 3, -1, (1 << 63) - 1, living_tree(), closed(living_tree()), World(1).pager, Descriptor())
    yield ()
    yield from itertools.product(one, repeat=1)
    yield from itertools.product(few, repeat=2)
    yield from itertools.product((None, b"0007", closing, 3, few[-2], few[-1]), repeat=3)
    yield from itertools.product((None, b"0007", -1, 3), repeat=4)


def survives(call: Callable[..., Any], *given: object) -> None:
    try:
        call(*given)
    except EXPECTED:
        pass


def test_the_table_names_every_class() -> None:
    assert set(INSTANCES) == set(CLASSES)
    assert {"Tree", "Pager", "RecordCursor"} < set(CLASSES)
    assert {"crc32c", "ascending", "read_blocks"} < set(FUNCTIONS)


@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_every_method_takes_any_argument(name: str) -> None:
    kind = CLASSES[name]
    names = {member for base in kind.__mro__[:-1] for member in vars(base)} | {"__eq__", "__repr__", "__reduce_ex__"}
    for make in INSTANCES[name]:
        for member in sorted(names - LEFT_OUT):
            subject = make()
            for given in arguments(subject):
                survives(getattr, subject, member)
                if callable(getattr(type(subject), member, None)):
                    survives(getattr(subject, member), *given)
                elif len(given) == 1:
                    survives(setattr, subject, member, *given)
                else:
                    survives(delattr, subject, member)
                if len(given) == 1 or Closing in map(type, given):
                    subject = make()  # the call may have closed it


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_is_made_of_any_argument(name: str) -> None:
    for given in arguments(None):
        survives(CLASSES[name], *given)
        survives(CLASSES[name].__new__, CLASSES[name], *given)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - LEFT_OUT))
def test_every_function_takes_any_argument(name: str) -> None:
    for given in arguments(None):
        survives(FUNCTIONS[name], *given)
        survives(lambda made: list(made), survives_with(FUNCTIONS[name], given))


def survives_with(call: Callable[..., Any], given: tuple[object, ...]) -> Any:
    """What a call returns, or nothing: a generator does its work only when it is walked."""
    try:
        made = call(*given)
    except EXPECTED:
        return None
    return made if isinstance(made, Iterator) else None


def test_a_closed_tree_is_refused_by_name() -> None:
    world = World(1)
    tree = closed(Tree(world.pager, REFS_DESCRIPTOR, 1))
    with pytest.raises(StoreClosed):
        world.pager.refs = tree
    with pytest.raises(StoreClosed):
        tree.user_blob = b"late"
    with pytest.raises(StoreClosed):
        RecordCursor(tree)
    assert world.pager.refs is None


class Last:
    """Garbage that closes a view when it is collected."""

    def __init__(self, view: TreeView) -> None:
        self.me, self.view = self, view

    def __del__(self) -> None:
        self.view.close()


@pytest.mark.parametrize("use", [TreeView.snapshot, TreeView.items, TreeView.cursor, lambda view: view.union(view)])
def test_what_is_made_of_a_view_that_is_closed_meanwhile_stands_on_it_all_the_same(use: Callable[[TreeView], Any]) -> None:
    """Making an object collects garbage, and that runs anything: another thread, or a finalizer that closes the very view. What
    was made then looked at memory that was given back, and pinned nothing."""
    world = World(1, cache_bytes=0)
    tree = new_tree(world)
    tree.update((b"%04d" % n, b"%d" % n * 5) for n in range(300))
    world.seal(tree)
    world.write()
    before = gc.get_threshold()
    made = []
    for count in range(1, 9):  # of objects until garbage is collected
        view = tree.snapshot()
        gc.collect()
        Last(view)
        gc.set_threshold(gc.get_count()[0] + count)
        try:
            made.append(use(view))
        except StoreClosed:
            pass
        finally:
            gc.set_threshold(*before)
        gc.collect()
        with pytest.raises(StoreClosed):
            view.get(b"0001")
    for one in made:
        found = one.keys() if isinstance(one, TreeView) else iter(one.next, None) if isinstance(one, RecordCursor) else one
        assert len(list(found)) == 300
    del made, one, found
    assert world.pager.oldest_pinned_generation is None


def test_shared_pages_are_counted_though_the_tree_of_their_counts_was_closed() -> None:
    world = World(1)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree = new_tree(world)
    tree.update((b"%05d" % n, bytes(20)) for n in range(500))
    world.seal(tree)
    clone = tree.clone()
    world.pager.refs.close()
    others = [bytes(700) for _ in range(500)]  # where the count would lie, were it freed
    tree.update((b"%05d" % n, b"new") for n in range(500))
    assert len(others) == 500
    assert clone.check() == tree.check() == []
    assert world.pager.take_freed() == []  # all of it is the clone's now
    clone.clear()
    assert sum(pages for _, pages, _ in world.pager.take_freed()) == len(world.held)
    world.pager.refs = None
    with pytest.raises(InvalidRequest, match=r"Pager\.refs"):
        tree.clone()


def test_a_descriptor_is_whole_before_and_after_init() -> None:
    made = fresh(Descriptor)
    assert made == Descriptor()
    made.__init__(8)  # type: ignore[misc]
    assert made == Descriptor()


@pytest.mark.parametrize("seam", [kernel.call_at_refusal, kernel.call_in_walk, lambda hook: kernel.call_between("seal", hook)])
def test_a_seam_for_tests_takes_only_what_can_be_called(seam: Callable[[object], None]) -> None:
    with pytest.raises(TypeError):
        seam(5)
