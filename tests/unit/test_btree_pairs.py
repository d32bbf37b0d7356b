"""Every two operations beside each other, on trees of several shapes, views and clones: neither fails, nothing is lost or kept.

What they answer meanwhile is told by tests of their own; here a sanitized build (tools/sanitize.sh thread) sees each pair."""

from __future__ import annotations

import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from mdstore.btree import COMPARE_U64_BE, Descriptor, PackedPairs, Tree, TreeView
from mdstore.device.file import FileDevice
from mdstore.errors import InvalidRequest, NotFound, StoreClosed
from tests.model.btree_world import MemoryPages, SharedWorld
from tests.unit.test_btree_threads import run_all

ROUNDS = 3
TURNS = 200
SPILLED = 12 * 256


@dataclass(frozen=True)
class Shape:
    """A kind of tree, and its records. Values are of one byte throughout, so that a torn one is seen."""

    keys: list[bytes]
    fields: dict[str, object] = field(default_factory=dict)
    long: bool = False  # every 16th value spills
    size: int = 24
    described: bool = True  # the device has a descriptor

    def record(self, number: int, step: int) -> tuple[bytes, bytes]:
        long = self.long and number % 16 == 0
        return self.keys[number], bytes([step % 256]) * (SPILLED if long else self.size)

    def records(self, step: int, every: int = 1, first: int = 0) -> list[tuple[bytes, bytes]]:
        return [self.record(number, step) for number in range(first, len(self.keys), every)]


PLAIN = [b"%03d" % n for n in range(80)]
SHAPES = {
    "plain": Shape(PLAIN, long=True),
    "copies": Shape(PLAIN, {"copies": 2}, long=True),
    "embedded": Shape(PLAIN[:12], {"embed_limit": 300}),
    "duplicates": Shape([b"%02d" % (n // 4) for n in range(80)], {"duplicates": True}, size=4),
    "fixed": Shape(
        [struct.pack(">Q", n) for n in range(80)], {"key_size": 8, "value_size": 24, "comparator": COMPARE_U64_BE}
    ),
    "undescribed": Shape(PLAIN, long=True, described=False),
}


class Pair(SharedWorld):
    """A tree with a view and a sealed clone, in a cache that holds a part of it, and what two threads share besides."""

    pages = 1 << 16

    def __init__(self, device: FileDevice | MemoryPages, seed: int, shape: Shape) -> None:
        super().__init__(device)
        self.shape = shape
        self.keys = shape.keys
        self.random = random.Random(seed)
        self.tree = Tree(self.pager, Descriptor(**shape.fields), 10)  # type: ignore[arg-type]
        self.tree.update(shape.records(0))
        self.tree.seal(self.allocate)
        self.pager.write_sealed()
        self.clone = self.tree.clone()
        self.view: TreeView = self.tree  # of each round
        self.passing: TreeView = self.tree.snapshot()
        self.steps: dict[str, Iterator[object]] = {}

    def any(self, step: int) -> tuple[bytes, bytes]:
        return self.shape.record(self.random.randrange(len(self.keys)), step)

    def before(self, round_: int) -> None:
        """Pages of every state."""
        self.tree.update(self.shape.records(round_, 1 + 3 * round_, round_))
        if round_ == 1:
            self.tree.seal(self.allocate)
            self.tree.update(self.shape.records(100, 9))

    def end(self) -> None:
        self.passing.close()
        self.steps.clear()
        self.settle(self.tree, self.clone)


def whole(value: bytes | None) -> None:
    assert value is None or len(set(value)) <= 1


# -- reading -----------------------------------------------------------------------------------------------------------
def look_by_cursor(pair: Pair, source: TreeView) -> None:
    with source.cursor() as cursor:
        for _, value in iter(cursor.next, None):
            whole(value)
        for _, value in iter(cursor.prev, None):
            whole(value)
        cursor.seek(pair.keys[len(pair.keys) // 2])
        cursor.prev()


def look_by_ends(pair: Pair, source: TreeView) -> None:
    middle = pair.keys[len(pair.keys) // 2]
    for record in (source.first(), source.last(), source.seek(middle), source.seek(middle, reverse=True)):
        whole(record[1] if record else None)


def look_at_all(pair: Pair, source: TreeView) -> None:
    for step in (source.items(), source.items(reverse=True), source.items(pair.keys[5], pair.keys[-5]), source.prefix(b"03")):
        for _, value in step:
            whole(value)


def look_at_many(pair: Pair, source: TreeView) -> None:
    for value in source.get_many(pair.keys):
        whole(value)


def look_at_parts(pair: Pair, source: TreeView) -> None:
    for key in pair.keys[::16]:
        whole(source.get(key))
        with suppress(InvalidRequest):  # of duplicates
            whole(source.read(key, 250, 800))


def look_by_keys(pair: Pair, source: TreeView) -> None:
    found = list(source.keys())
    assert found == sorted(found)
    assert len(source) >= 0
    most = len(pair.keys) * (256 if pair.shape.fields.get("duplicates") else 1)
    assert source.count(pair.keys[5], pair.keys[-2]) <= most
    assert source.count() <= most
    for key in pair.keys[::7]:
        source.get_all(key)
        assert key in source or key not in source


def look_beside(pair: Pair) -> None:
    if not pair.shape.fields.get("duplicates"):
        for merge in (pair.tree.union, pair.tree.intersection, pair.tree.difference):
            keys = list(merge(pair.clone))
            assert keys == sorted(set(keys))


def look_for_damage(tree: Tree) -> None:
    assert tree.check() == []


LOOKS: dict[str, Callable[[Pair, TreeView], object]] = {
    "cursor": look_by_cursor,
    "ends": look_by_ends,
    "items": look_at_all,
    "get_many": look_at_many,
    "read": look_at_parts,
    "keys": look_by_keys,
}


def look_through_snapshot(look: Callable[[Pair, TreeView], object], pair: Pair) -> None:
    with pair.tree.snapshot() as view, view.snapshot() as another:
        look(pair, another)


def look_through_clone(pair: Pair) -> None:
    look_at_all(pair, pair.clone)
    look_at_parts(pair, pair.clone)


def look_through_root(pair: Pair) -> None:
    """A second handle on what the clone was when it was sealed: freed pages are not used again here."""
    with suppress(InvalidRequest), Tree.open(pair.pager, pair.clone.root()) as tree:
        look_at_all(pair, tree)


def step_together(name: str, make: Callable[[Pair], Iterator[object]], pair: Pair) -> None:
    """Some steps of an iterator that both threads have."""
    steps = pair.steps.get(name) or pair.steps.setdefault(name, make(pair))
    for _ in range(20):
        with suppress(InvalidRequest):  # the other is in the middle of a step
            if next(steps, None) is None:
                pair.steps.pop(name, None)
                return


def close_views(pair: Pair) -> None:
    """Views that another thread may be reading, or close, at this moment."""
    view, pair.passing = pair.passing, pair.tree.snapshot()
    with suppress(StoreClosed):
        look_at_many(pair, pair.passing)
        look_by_keys(pair, pair.passing)
    view.close()


# -- changing ----------------------------------------------------------------------------------------------------------
def write_into(pair: Pair) -> None:
    """Whole values only, so that they stay of one byte."""
    key, value = pair.shape.record(pair.random.randrange(0, len(pair.keys), 16), pair.random.randrange(256))
    try:
        pair.tree.write(key, 0, value)
    except InvalidRequest:  # of duplicates
        assert pair.shape.fields.get("duplicates")
    except NotFound:
        pair.tree.put(key, value)


def delete_value(pair: Pair) -> None:
    if pair.shape.fields.get("duplicates"):
        pair.tree.delete_value(*pair.any(3))
    pair.tree.delete(pair.any(3)[0])


def put_packed(pair: Pair) -> None:
    pairs = PackedPairs(pair.shape.records(11, 3))
    pair.tree.fetch(pairs)
    pair.tree.update(pairs)


def change_clone(pair: Pair) -> None:
    pair.clone.put(*pair.any(7))
    pair.clone.delete(pair.any(7)[0])


def pass_clone(pair: Pair) -> None:
    clone = pair.tree.clone()
    another = clone.clone()
    clone.delete_range(pair.keys[2], pair.keys[-3])
    clone.seal(pair.allocate)
    for tree in (clone, another):
        tree.clear()


def fill_another(pair: Pair) -> None:
    tree = Tree(pair.pager, pair.tree.descriptor, 30)
    tree.bulk_load(sorted(set(pair.shape.records(5))))
    tree.seal(pair.allocate)
    tree.clear()


def set_blob(pair: Pair) -> None:
    pair.tree.user_blob = b"x" * pair.random.randrange(30)
    assert set(pair.tree.user_blob) <= set(b"x")


def seal_leaves(pair: Pair) -> None:
    at = 0
    while at >= 0:
        at = pair.tree.seal_leaves(pair.allocate, at, 3)


def evict(pair: Pair) -> None:
    pair.pager.cache_bytes = 0
    pair.pager.cache_bytes = pair.cache_bytes


def watch(pair: Pair) -> None:
    pair.pager.counters()
    pair.pager.generation += 1
    for number in (pair.pager.dirty_bytes, pair.pager.held_bytes, pair.pager.sealed_pages, pair.tree.dirty_pages, len(pair.tree)):
        assert number >= 0
    assert pair.tree.height < 20
    assert pair.tree.is_dirty in (True, False)


def count_again(pair: Pair) -> None:
    pair.pager.refs = pair.refs


OPERATIONS: dict[str, Callable[[Pair], object]] = {
    **{name: lambda pair, look=look: look(pair, pair.tree) for name, look in LOOKS.items()},
    **{f"{name} of a snapshot": partial(look_through_snapshot, look) for name, look in LOOKS.items()},
    **{f"{name} of a view": lambda pair, look=look: look(pair, pair.view) for name, look in LOOKS.items()},
    "clone's": look_through_clone,
    "root's": look_through_root,
    "shared items": partial(step_together, "items", lambda pair: pair.tree.items()),
    "shared pages": partial(step_together, "pages", lambda pair: pair.tree.pages()),
    "views closed": close_views,
    "counts": lambda pair: (list(pair.refs.items()), look_for_damage(pair.refs)),
    "merge": look_beside,
    "check": lambda pair: look_for_damage(pair.tree),
    "pages": lambda pair: list(pair.tree.pages()),
    "put": lambda pair: pair.tree.put(*pair.any(pair.random.randrange(256))),
    "update": lambda pair: pair.tree.update(pair.shape.records(3, 2)),
    "packed": put_packed,
    "write": write_into,
    "delete": delete_value,
    "delete_many": lambda pair: pair.tree.delete_many(pair.keys[::3]),
    "delete_range": lambda pair: pair.tree.delete_range(pair.keys[len(pair.keys) // 3], pair.keys[len(pair.keys) // 2]),
    "clear": lambda pair: pair.tree.clear(),
    "clone": pass_clone,
    "change of a clone": change_clone,
    "another": fill_another,
    "blob": set_blob,
    "seal": lambda pair: pair.tree.seal(pair.allocate),
    "seal of a clone": lambda pair: pair.clone.seal(pair.allocate),
    "seal of the counts": lambda pair: pair.refs.seal(pair.allocate),
    "seal_leaves": seal_leaves,
    "write_sealed": lambda pair: pair.pager.write_sealed(),
    "write_sealed in parts": lambda pair: pair.pager.write_sealed(600),
    "freed": lambda pair: pair.drain(),
    "evict": evict,
    "watch": watch,
    "refs": count_again,
}


@pytest.fixture(autouse=True)
def eager_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def beside(pair: Pair, names: tuple[str, str]) -> None:
    """Each twice at least, and a short one as often as goes beside a long one; at last no view keeps puts from their place."""
    for round_ in range(ROUNDS):
        pair.before(round_)
        start = threading.Barrier(2)
        done = [threading.Event(), threading.Event()]

        def act(me: int, start: threading.Barrier = start, done: list[threading.Event] = done) -> None:
            start.wait()
            try:
                for turn in range(TURNS):
                    OPERATIONS[names[me]](pair)
                    if turn:
                        done[me].set()
                        if done[1 - me].is_set():
                            return
            finally:
                done[me].set()

        with pair.tree.snapshot() if round_ < ROUNDS - 1 else nullcontext(pair.tree) as pair.view:
            run_all([partial(act, 0), partial(act, 1)])
    pair.end()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("MDSTORE_STRESS_SEEDS", "1"))))
@pytest.mark.parametrize("first", OPERATIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_any_two_operations_go_beside_each_other(name: str, first: str, seed: int, tmp_path: Path) -> None:
    shape = SHAPES[name]
    for number, names in enumerate(combinations_with_replacement(OPERATIONS, 2)):
        if names[0] == first:
            device = Pair.device_at(tmp_path / "image") if shape.described else MemoryPages()
            beside(Pair(device, 1000 * seed + number, shape), names)
            device.close()


@pytest.mark.parametrize("seed", range(int(os.environ.get("MDSTORE_STRESS_SEEDS", "1"))))
def test_readers_of_a_tree_that_is_not_in_memory_find_what_another_has_just_read(seed: int, tmp_path: Path) -> None:
    """Of a live tree under its own lock, and of one view."""
    world = SharedWorld(SharedWorld.device_at(tmp_path / "image"))
    world.pager.cache_bytes = 1 << 20
    tree = Tree(world.pager, Descriptor(), 10)
    keys = [b"%05d" % number for number in range(2000)]
    tree.update((key, b"v" * 20) for key in keys)
    root = tree.seal(world.allocate)
    world.pager.write_sealed()
    rng = random.Random(seed)
    for _ in range(15):
        with Tree.open(world.pager, root) as live, live.snapshot() as view:
            start, stop = sorted(rng.sample(range(2000), 2))
            readers: list[Callable[[], object]] = [
                lambda live=live: live.get_many(keys), lambda live=live: live.get_many(keys[::-7]),
                lambda view=view: view.get_many(keys), lambda view=view: view.snapshot().close(),
                lambda view=view, a=start, b=stop: pytest.fail("lost") if view.count(keys[a], keys[b]) != b - a else None,
                lambda view=view: pytest.fail("lost") if list(view.keys()) != keys else None,
            ]  # fmt: skip
            run_all(readers)
    world.device.close()
