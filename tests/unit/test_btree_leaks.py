"""Memory: every operation, done again and again, ends where it began, to less than half the smallest piece that malloc gives.

`MDSTORE_LEAK_ROUNDS=6500` makes the last test 10 M operations."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from mdstore.btree import REFS_DESCRIPTOR, PackedPairs, Tree
from mdstore.btree._kernel import fail_memory
from mdstore.errors import InvalidRequest, MdstoreError
from tests.model.btree_world import World, new_tree

SMALLEST = 32  # bytes of glibc's smallest piece
TIMES = 8
OPERATIONS_A_ROUND = 1535


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def allocated_bytes() -> int:
    """What malloc has given out and not got back; what is resident depends on its arenas and on the kernel's pages."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


class Reusing(World):
    """A world whose pages are given out again: the device does not grow."""

    def allocate(self, pages: int) -> list[tuple[int, int]]:
        self.asked += pages
        found: list[int] = []
        at = 1
        while len(found) < pages:
            if at not in self.held:
                found.append(at)
            at += 1
        self.held.update(found)
        return [(page, 1) for page in found]


class Scene:
    """A tree of three levels, sealed, with values in leaves and outside them, in a cache that holds all of it."""

    def __init__(self, copies: int = 1) -> None:
        self.world = Reusing(1)
        self.world.pager.refs = Tree(self.world.pager, REFS_DESCRIPTOR, 1)
        self.world.device.image = bytearray(256 * 3000)
        self.tree = new_tree(self.world, copies=copies)
        self.tree.update((b"%04d" % n, b"%d" % n * 6) for n in range(150))
        for n in range(3):
            self.tree.put(b"large%d" % n, b"L" * 3000)
        self.seal()

    def seal(self) -> None:
        self.tree.seal(self.world.allocate)
        self.world.write()
        self.world.drain_freed()

    def cold(self) -> Tree:
        """The tree opened anew, nothing of it in memory."""
        return Tree.open(self.world.pager, self.tree.root())

    def put_and_seal(self) -> None:
        self.tree.put(b"0050", b"other")
        self.seal()

    def grow_and_shrink(self) -> None:
        """Splits, rotations and merges of leaves and index pages."""
        self.tree.update((b"%04d+%02d" % (n % 150, n), b"new" * 5) for n in range(80))
        self.tree.delete_many([b"%04d+%02d" % (n % 150, n) for n in range(80)])
        self.seal()

    def long_values(self) -> None:
        """Put, sealed, written to by range beside a view and after it, sealed again, put short, deleted."""
        tree = self.tree
        tree.put(b"passing", b"P" * 5000)
        assert tree.get(b"passing") == b"P" * 5000
        self.seal()
        tree.write(b"passing", 700, b"W" * 900)
        with tree.snapshot() as view:
            tree.write(b"passing", 100, b"X" * 300)
            assert view.read(b"passing", 90, 20) == b"P" * 20
            assert tree.get(b"passing") is not None
        self.seal()
        tree.write(b"passing", 5000, b"longer" * 50)
        self.seal()
        tree.put(b"passing", b"short")
        tree.delete(b"passing")
        self.seal()

    def sealed_unwritten(self) -> None:
        """Pages read from where they wait for the device."""
        self.tree.put(b"large1", b"M" * 3000)
        self.tree.put(b"0100", b"100" * 6)
        self.tree.seal(self.world.allocate)
        again = self.cold()
        assert again.get(b"large1") == b"M" * 3000
        assert len(list(again.items())) == len(again)
        self.world.write()
        self.world.drain_freed()

    def views(self) -> None:
        with self.tree.snapshot() as view:
            self.tree.put(b"0003", b"changed beside a view")
            assert view.get(b"0003") == b"3" * 6
            with view.cursor() as cursor:
                assert cursor.seek(b"0100") == cursor.record
                assert cursor.prev() != cursor.last()
            records = view.items(b"0010", b"0020", reverse=True)
            next(records)
        self.tree.put(b"0003", b"3" * 6)
        self.seal()

    def clones(self) -> None:
        copy = self.tree.clone()
        copy.put(b"0001", b"of the clone")
        copy.write(b"large0", 300, b"of the clone")
        copy.delete_range(b"0100", b"large2")
        copy.seal(self.world.allocate)
        self.world.write()
        copy.clear()
        self.seal()

    def dropped_clone(self) -> None:
        """Let go of without a word, while it is dirty."""
        copy = self.tree.clone()
        copy.put(b"large9", b"9" * 2000)
        copy.write(b"large1", 300, b"of the clone")
        del copy
        self.world.pager.refs = Tree(self.world.pager, REFS_DESCRIPTOR, 1)

    def reads(self) -> None:
        again = self.cold()
        keys = [b"%04d" % n for n in range(160)] + [b"large0", b"large1"]
        assert again.get_many(keys) == self.tree.get_many(keys)
        assert again.read(b"large0", 500, 600) == b"L" * 600
        assert (b"0001" in again, b"none" in again) == (True, False)
        assert again.count(b"0010", b"0020") == 10
        assert list(again.union(self.tree)) == list(again.intersection(self.tree))
        assert again.check() == []
        assert len(list(again.pages())) == len(list(self.tree.pages()))
        walk = again.pages()
        next(walk)

    def eviction(self) -> None:
        self.world.pager.cache_bytes = 4000
        again = self.cold()
        assert [again.get(b"%04d" % n) is not None for n in range(150)] == [True] * 150
        self.world.pager.cache_bytes = 1 << 20

    def small_trees(self) -> None:
        """In their records, grown out of them and back in."""
        small = new_tree(self.world, 20, embed_limit=100)
        small.put(b"a", b"b")
        record = small.seal(self.world.allocate)
        again = Tree.open(self.world.pager, record)
        again.update((b"%02d" % n, b"v" * 10) for n in range(30))
        again.seal(self.world.allocate)
        self.world.write()
        again.delete_range(b"01")
        again.seal(self.world.allocate)
        again.clear()
        self.world.drain_freed()
        loaded = new_tree(self.world, 21)
        loaded.bulk_load((b"%04d" % n, b"v") for n in range(100))
        several = new_tree(self.world, 22, duplicates=True)
        several.update((b"%d" % (n % 3), b"%d" % n) for n in range(60))
        several.delete_value(b"1", b"1")
        assert len(several.get_all(b"2")) == 20
        with suppress(MdstoreError):
            loaded.bulk_load([(b"b", b""), (b"a", b"")])

    def packed(self) -> None:
        pairs = PackedPairs([(b"%04d" % n, b"%d" % n * 6) for n in range(20)] + [(b"large0", b"L" * 3000)])
        assert pairs.encoded(b"prefix")
        self.tree.fetch(pairs)
        self.tree.update(pairs)
        self.seal()

    def ahead(self) -> None:
        """Some leaves sealed before the rest; and an owner who gives no pages."""
        self.tree.update((b"%04d" % n, b"ahead") for n in range(0, 150, 2))
        self.tree.put(b"large2", b"N" * 2500)
        at = self.tree.seal_leaves(self.world.allocate, 0, 5)
        while at >= 0:
            at = self.tree.seal_leaves(self.world.allocate, at, 5)
        for refuse in (lambda pages: [], lambda pages: [(1, pages + 1)]):
            with suppress(InvalidRequest):
                self.tree.seal(refuse)
        self.seal()

    def damage(self) -> None:
        """Reads that fail half way: of leaves, of long values, by device and by checksum."""
        image = self.world.device.image
        sound = bytes(image)
        for at in range(256 * 3 + 77, 256 * (max(self.world.held) + 1), 256 * 5):
            image[at] ^= 1
        again = self.cold()
        for act in (lambda: list(again.items()), again.check, lambda: list(again.pages()), lambda: again.get(b"large1"),
                    lambda: again.get_many([b"%04d" % n for n in range(150)]), lambda: again.write(b"large1", 300, b"x"),
                    lambda: again.delete_range(b"0030", b"large1"), lambda: again.put(b"0071", b"x")):  # fmt: skip
            with suppress(MdstoreError):
                act()
        image[:] = sound
        again.close()
        self.world.pager.take_freed()

    def short_of_memory(self) -> None:
        """Every allocation of a few operations fails once."""
        pairs = [(b"large0", b"L" * 3000), (b"0001", b"1" * 6), (b"0001x", b"y" * 20)]
        for act in (lambda: self.tree.update(pairs), lambda: self.tree.write(b"large1", 600, b"L" * 10),
                    lambda: self.tree.clone().clear(), lambda: self.tree.seal(self.world.allocate),
                    lambda: self.tree.delete(b"0001x"), lambda: self.cold().get_many([b"0001", b"large2"])):  # fmt: skip
            step = 0
            while fail_memory(step, 1) == 0 or step == 0:
                with suppress(MemoryError):
                    act()
                step += 1
                if fail_memory(-1) == 0:
                    break
        self.world.write()
        self.world.drain_freed()


OPERATIONS: dict[str, Callable[[Scene], None]] = {
    name: action
    for name, action in vars(Scene).items()
    if callable(action) and not name.startswith("_") and name not in ("seal", "cold")
}


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("act", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_that_is_done_again_and_again_keeps_no_memory(act: Callable[[Scene], None], copies: int) -> None:
    """In some window of a few: what the interpreter keeps for itself it keeps once, a leak comes in each."""
    scene = Scene(copies)
    for _ in range(3):
        act(scene)
    grown: list[int] = []
    while not grown or (min(grown) >= TIMES * SMALLEST // 2 and len(grown) < 8):
        gc.collect()
        before = allocated_bytes()
        for _ in range(TIMES):
            act(scene)
        gc.collect()
        grown.append(allocated_bytes() - before)
    assert min(grown) < TIMES * SMALLEST // 2, grown
    assert scene.tree.check() == []


def test_memory_stays_flat_over_many_operations() -> None:
    """The same churn again and again ends where it began, in the kernel's own counts and in those of malloc."""
    world = World(3)
    tree = new_tree(world)
    rounds = int(os.environ.get("MDSTORE_LEAK_ROUNDS", "12"))
    after = []
    allocated = []
    for _ in range(rounds):
        for n in range(1000):
            tree.put(b"%05d" % (n * 7919 % 5000), b"v" * (n % 40))
        tree.update((b"large%d" % n, b"L" * 3000) for n in range(5))
        assert sum(1 for _ in tree.items()) == len(tree)
        tree.get_many([b"%05d" % n for n in range(500)])
        world.seal(tree)
        world.write()
        cursor = tree.cursor()
        assert cursor.last() == cursor.record
        for n in range(5):  # patched beside a view, sealed, and patched again
            tree.write(b"large%d" % n, 500 * n, b"W" * 1500)
            assert tree.read(b"large%d" % n, 500 * n, 4000) is not None
            if n == 2:
                world.seal(tree)
                tree.write(b"large2", 100, b"again")
        cursor.close()
        tree.clear()
        world.seal(tree)
        world.write()
        world.drain_freed()
        assert world.held == set()
        counters = world.pager.counters()
        after.append((counters["dirty_bytes"], counters["cached_bytes"]))
        world.device.image.clear()  # no page of it is reached
        world.next_page = 1
        gc.collect()
        allocated.append(allocated_bytes())
    print("operations", rounds * OPERATIONS_A_ROUND, "allocated bytes", allocated[:: max(1, rounds // 20)])
    assert len(set(after)) == 1
    assert after[0][0] == 0
    third = len(allocated) // 3
    steps = [late - early for early, late in zip(allocated[third:], allocated[third + 1 :], strict=False)]
    assert min(steps) <= 0, "not in every round"
    assert sum(steps) < len(steps) * OPERATIONS_A_ROUND, "a byte for an operation"
