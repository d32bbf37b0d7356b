"""Everything at once: writers, clones, seals, scans and walks beside eviction, on a file and in memory. What `make tsan` runs."""

from __future__ import annotations

import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mdstore.btree import COMPARE_PAIR, Descriptor, PackedPairs, Tree
from mdstore.device.file import FileDevice
from tests.model.btree_world import MemoryPages, SharedWorld
from tests.unit.test_btree_threads import run_all

WRITERS = 3

Model = dict[bytes, bytes]


def plain_key(number: int, writer: int) -> bytes:
    return b"%03d.%d" % (number, writer)


def pair_key(number: int, writer: int) -> bytes:
    first, second = b"%03d" % number, b"%d" % writer
    return struct.pack("<H", len(first)) + first + struct.pack("<H", len(second)) + second


class Scene(SharedWorld):
    """Trees in one small cache, and the free space they share. Each writer has keys of its own in every tree."""

    def __init__(self, device: FileDevice | MemoryPages) -> None:
        super().__init__(device)
        self.trees = [
            Tree(self.pager, Descriptor(), 10),
            Tree(self.pager, Descriptor(copies=2, embed_limit=100), 11),
            Tree(self.pager, Descriptor(comparator=COMPARE_PAIR), 12),
        ]
        self.keys: list[Callable[[int, int], bytes]] = [plain_key, plain_key, pair_key]
        self.working = WRITERS

    # -- those who write ---------------------------------------------------------------------------------------------------
    def write(self, writer: int, seed: int, steps: int) -> None:
        rng = random.Random(seed * 10 + writer)
        models: list[Model] = [{} for _ in self.trees]
        try:
            for step in range(steps):
                at = rng.randrange(len(self.trees))
                self.change(self.trees[at], models[at], partial(self.key, at, writer, rng), rng, step)
        finally:
            with self.lock:
                self.working -= 1
        for at, tree in enumerate(self.trees):
            own = {self.keys[at](number, writer) for number in range(200)}
            assert {key: value for key, value in tree.items() if key in own} == models[at]

    def key(self, at: int, writer: int, rng: random.Random) -> bytes:
        return self.keys[at](rng.randrange(200), writer)

    def change(self, tree: Tree, model: Model, key_of: Callable[[], bytes], rng: random.Random, step: int) -> None:
        """One operation of a writer, and the same on its model; what it answers is what the model says."""
        key, kind = key_of(), rng.randrange(10)
        value = b"%d." % step * rng.choice((0, 1, 5, 9, 100))
        batch = {key_of(): value[:40] for _ in range(30)}
        if kind < 3:
            assert tree.put(key, value) == (key in model)
            model[key] = value
        elif kind == 3:
            assert tree.delete(key) == (model.pop(key, None) is not None)
        elif kind == 4:
            assert tree.update(batch) == len(batch.keys() - model.keys())
            model.update(batch)
        elif kind == 5:
            pairs = PackedPairs(list(batch.items()))
            tree.fetch(pairs)
            assert tree.update(pairs) == len(batch.keys() - model.keys())
            model.update(batch)
        elif kind == 6:
            assert tree.delete_many(list(batch)) == len(batch.keys() & model.keys())
            for gone in batch:
                model.pop(gone, None)
        elif kind == 7:
            assert tree.get_many(list(batch)) == [model.get(wanted) for wanted in batch]
            assert tree.get(key) == model.get(key)
        elif kind == 8:
            with tree.snapshot() as view:
                assert view.get(key) == model.get(key)
                assert view.count() == len(view) == sum(1 for _ in view)
        elif len(model.get(key, b"")) > 60:
            tree.write(key, 30, b"W" * 20)
            model[key] = model[key][:30] + b"W" * 20 + model[key][50:]
            assert tree.read(key, 30, 20) == b"W" * 20

    # -- those beside them -------------------------------------------------------------------------------------------------
    def rounds(self, seed: int) -> Iterator[tuple[random.Random, Tree, int]]:
        """A tree and a number as long as there are writers."""
        rng = random.Random(seed)
        while self.working:
            yield rng, rng.choice(self.trees), rng.randrange(12)

    def seal(self, seed: int) -> None:
        for rng, tree, kind in self.rounds(seed):
            if kind < 3:
                tree.seal(self.allocate)
            elif kind < 6:
                tree.seal_leaves(self.allocate, rng.randrange(3), rng.randrange(1, 20))
            elif kind < 8:
                self.refs.seal(self.allocate)
            elif kind < 10:
                self.pager.write_sealed(rng.choice((-1, 1000)))
            elif kind == 10:
                self.pager.generation += 1
                assert self.pager.counters()["sealed_pages"] >= 0
                assert self.pager.dirty_bytes >= 0
            else:
                self.pager.cache_bytes = rng.choice((0, self.cache_bytes, 4 * self.cache_bytes))
            self.drain()

    def read(self, seed: int) -> None:
        for rng, tree, kind in self.rounds(seed):
            if kind < 2:
                self.use_clone(tree.clone(), rng)
            elif kind < 4:
                with tree.cursor() as cursor:
                    forward = list(iter(cursor.next, None))
                    assert list(iter(cursor.prev, None)) == forward[::-1]
            elif kind < 6:
                with tree.snapshot() as view:
                    records = list(view.items())
                    assert list(view.items(reverse=True)) == records[::-1]
                    assert view.get_many([key for key, _ in records]) == [value for _, value in records]
                    if records:
                        assert view.count(records[0][0], records[-1][0]) == len(records) - 1
            elif kind == 6:
                assert tree.check() == []
            elif kind == 7:
                with self.trees[0].snapshot() as one, self.trees[1].snapshot() as other:
                    assert list(one.union(other)) == sorted(set(one) | set(other))
                    assert list(one.difference(other)) == sorted(set(one) - set(other))
            else:
                walk = tree.pages()
                assert all(address < self.pages and pages > 0 for address, pages, _ in walk)

    def use_clone(self, clone: Tree, rng: random.Random) -> None:
        count = sum(1 for _ in clone.items())
        assert len(clone) == count
        for key in list(clone.keys())[:: rng.randrange(1, 9)]:
            clone.delete(key)
        if rng.random() < 0.5:
            clone.seal(self.allocate)
        assert clone.check() == []
        clone.clear()


@pytest.fixture(params=["memory", "file"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    if request.param == "memory":
        yield Scene(MemoryPages())
    else:
        device = Scene.device_at(tmp_path / "image")
        yield Scene(device)
        device.close()
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("seed", range(int(os.environ.get("MDSTORE_STRESS_SEEDS", "1"))))
def test_everything_at_once_loses_nothing(scene: Scene, seed: int) -> None:
    steps = int(os.environ.get("MDSTORE_STRESS_STEPS", "1000"))
    writers = [partial(scene.write, writer, seed, steps) for writer in range(WRITERS)]
    run_all(
        [*writers, partial(scene.seal, 100 + seed), partial(scene.read, 200 + seed), partial(scene.read, 300 + seed)]
    )
    scene.settle(*scene.trees)


def test_eviction_beside_readers_of_a_file_answers_as_without(tmp_path: Path) -> None:
    """Reads alone: more threads than the cache has room for, which is changed all the while; walks, scans and points."""
    device = Scene.device_at(tmp_path / "image")
    scene = Scene(device)
    model = {b"%05d" % n: b"%d." % n * (60 if n % 97 == 0 else 4) for n in range(3000)}
    tree = scene.trees[0]
    tree.update(model)
    root = tree.seal(scene.allocate)
    scene.pager.write_sealed()
    tree = Tree.open(scene.pager, root)
    want = sorted(tree.pages())
    records = sorted(model.items())
    keys = list(model)

    def read(number: int) -> None:
        rng = random.Random(number)
        for _ in range(6):
            some = rng.sample(keys, 200)
            assert tree.get_many(some) == [model[key] for key in some]
            assert sorted(tree.pages()) == want
            start = rng.randrange(3000)
            assert list(tree.items(keys[start])) == records[start:]
            assert list(tree.items(None, keys[start], reverse=True)) == records[:start][::-1]
            assert tree.count(None, keys[start]) == start
            scene.pager.cache_bytes = rng.choice((0, 0, scene.cache_bytes))

    run_all([partial(read, number) for number in range(4)])
    assert tree.check() == []
    device.close()
