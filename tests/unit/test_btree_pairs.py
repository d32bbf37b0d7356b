"""Every two operations beside each other, on a tree, its views and its clones: neither fails, and nothing is lost or kept.

What they answer meanwhile is told by tests of their own; here a sanitized build (tools/sanitize.sh thread) sees each pair."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from mdstore.btree import Descriptor, PackedPairs, Tree, TreeView
from mdstore.device.file import FileDevice
from mdstore.errors import NotFound
from tests.model.btree_world import SharedWorld
from tests.unit.test_btree_threads import run_all

KEYS = [b"%03d" % n for n in range(80)]
LONG = KEYS[::16]
SPILLED = 12 * 256
ROUNDS = 3


def value_of(key: bytes, step: int) -> bytes:
    """Of one byte throughout, so that a torn one is seen."""
    return bytes([step % 256]) * (SPILLED if key in LONG else 24)


def whole(value: bytes | None) -> None:
    assert value is None or len(set(value)) <= 1


class Pair(SharedWorld):
    """A tree with a view and a sealed clone, in a cache that holds a part of it."""

    pages = 1 << 15

    def __init__(self, device: FileDevice, seed: int, **fields: object) -> None:
        super().__init__(device)
        self.random = random.Random(seed)
        self.tree = Tree(self.pager, Descriptor(**fields), 10)  # type: ignore[arg-type]
        self.tree.update((key, value_of(key, 0)) for key in KEYS)
        self.tree.seal(self.allocate)
        self.pager.write_sealed()
        self.clone = self.tree.clone()
        self.view: TreeView = self.tree  # of each round


def look_by_cursor(source: TreeView) -> None:
    with source.cursor() as cursor:
        for _, value in iter(cursor.next, None):
            whole(value)
        for _, value in iter(cursor.prev, None):
            whole(value)


def look_by_ends(source: TreeView) -> None:
    for record in (source.first(), source.last(), source.seek(KEYS[40]), source.seek(KEYS[40], reverse=True)):
        whole(record[1] if record else None)


def look_at_all(source: TreeView) -> None:
    for step in (source.items(), source.items(reverse=True), source.items(KEYS[10], KEYS[60]), source.prefix(b"03")):
        for _, value in step:
            whole(value)


def look_at_many(source: TreeView) -> None:
    for value in source.get_many(KEYS):
        whole(value)


def look_at_parts(source: TreeView) -> None:
    for key in LONG:
        whole(source.get(key))
        whole(source.read(key, 250, 800))


def look_by_keys(source: TreeView) -> None:
    found = list(source.keys())
    assert found == sorted(found)
    assert len(source) >= 0
    assert source.count(KEYS[5], KEYS[70]) <= len(KEYS)
    assert source.count() <= len(KEYS)
    for key in KEYS[::7]:
        source.get_all(key)
        assert key in source or key not in source


def look_beside(source: TreeView, other: TreeView) -> None:
    for merged in (source.union(other), source.intersection(other), source.difference(other)):
        keys = list(merged)
        assert keys == sorted(set(keys))


def look_for_damage(tree: Tree) -> None:
    assert tree.check() == []


LOOKS: dict[str, Callable[[TreeView], object]] = {
    "cursor": look_by_cursor,
    "ends": look_by_ends,
    "items": look_at_all,
    "get_many": look_at_many,
    "read": look_at_parts,
    "keys": look_by_keys,
}


def change_clone(pair: Pair) -> None:
    key = pair.random.choice(KEYS)
    pair.clone.put(key, value_of(key, 7))
    pair.clone.delete(pair.random.choice(KEYS))


def pass_clone(pair: Pair) -> None:
    clone = pair.tree.clone()
    clone.delete_range(KEYS[20], KEYS[50])
    clone.clear()


def write_into(pair: Pair) -> None:
    """Whole values only, so that they stay of one byte."""
    key = pair.random.choice(LONG)
    try:
        pair.tree.write(key, 0, value_of(key, pair.random.randrange(256)))
    except NotFound:
        pair.tree.put(key, value_of(key, 9))


def put_packed(pair: Pair) -> None:
    pairs = PackedPairs([(key, value_of(key, 11)) for key in KEYS[::3]])
    pair.tree.fetch(pairs)
    pair.tree.update(pairs)


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


def put_one(pair: Pair) -> None:
    key = pair.random.choice(KEYS)
    pair.tree.put(key, value_of(key, pair.random.randrange(256)))


def look_through_snapshot(look: Callable[[TreeView], object], pair: Pair) -> None:
    with pair.tree.snapshot() as view:
        look(view)


def look_through_clone(pair: Pair) -> None:
    look_at_all(pair.clone)
    look_at_parts(pair.clone)


OPERATIONS: dict[str, Callable[[Pair], object]] = {
    **{name: lambda pair, look=look: look(pair.tree) for name, look in LOOKS.items()},
    **{f"view's {name}": partial(look_through_snapshot, look) for name, look in LOOKS.items()},
    **{f"{name} of a view": lambda pair, look=look: look(pair.view) for name, look in LOOKS.items()},
    "clone's": look_through_clone,
    "counts": lambda pair: (list(pair.refs.items()), look_for_damage(pair.refs)),
    "merge": lambda pair: look_beside(pair.tree, pair.clone),
    "check": lambda pair: look_for_damage(pair.tree),
    "pages": lambda pair: list(pair.tree.pages()),
    "put": put_one,
    "update": lambda pair: pair.tree.update({key: value_of(key, 3) for key in KEYS[::2]}),
    "packed": put_packed,
    "write": write_into,
    "delete": lambda pair: pair.tree.delete(pair.random.choice(KEYS)),
    "delete_many": lambda pair: pair.tree.delete_many(KEYS[::3]),
    "delete_range": lambda pair: pair.tree.delete_range(KEYS[30], KEYS[40]),
    "clear": lambda pair: pair.tree.clear(),
    "clone": pass_clone,
    "change of a clone": change_clone,
    "seal of a clone": lambda pair: pair.clone.seal(pair.allocate),
    "seal": lambda pair: pair.tree.seal(pair.allocate),
    "seal_leaves": seal_leaves,
    "write_sealed": lambda pair: pair.pager.write_sealed(),
    "evict": evict,
    "watch": watch,
}


@pytest.fixture(autouse=True)
def eager_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def beside(pair: Pair, names: tuple[str, str]) -> None:
    """Both, some times; before each round the tree has pages of every state."""
    for round_ in range(ROUNDS):
        for key in KEYS[round_ :: 1 + 3 * round_]:
            pair.tree.put(key, value_of(key, round_))
        if round_ == 1:
            pair.tree.seal(pair.allocate)
            for key in KEYS[::9]:
                pair.tree.put(key, value_of(key, 100))
        start = threading.Barrier(2)

        def act(name: str, start: threading.Barrier = start) -> None:
            start.wait()
            for _ in range(2):
                OPERATIONS[name](pair)

        with pair.tree.snapshot() as pair.view:
            run_all([partial(act, name) for name in names])
    pair.settle(pair.tree, pair.clone)


@pytest.mark.parametrize("seed", range(int(os.environ.get("MDSTORE_STRESS_SEEDS", "1"))))
@pytest.mark.parametrize("fields", [{}, {"copies": 2}], ids=["", "copies"])
@pytest.mark.parametrize("first", OPERATIONS)
def test_any_two_operations_go_beside_each_other(first: str, fields: dict[str, int], seed: int, tmp_path: Path) -> None:
    for number, names in enumerate(combinations_with_replacement(OPERATIONS, 2)):
        if names[0] == first:
            device = Pair.device_at(tmp_path / "image")
            beside(Pair(device, 1000 * seed + number, **fields), names)
            device.close()
