"""A long reader keeps what it reaches, and nothing else: what is born after it comes and goes as if it were not there.

Stores wipe here: what leaves limbo is zeros at once, so a reader whose blocks were let go finds damage, whoever would take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from threading import Event, get_ident
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdstore.btree import Tree
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Buffer
from mdstore.engines.mem import MemStore
from mdstore.errors import TransactionError
from mdstore.store import ahead
from mdstore.store.check import check
from mdstore.store.limbo import Limbo, Run
from mdstore.store.store import Store
from mdstore.store.superblock import SLOTS, slot_offsets
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.transactions import Mixed, content_of, first_collections, outcome
from tests.model.store_readers import OfSuperblock, Readers

GEOMETRY: dict[str, Any] = {
    "block_size": 512, "log_bytes": 1 << 20, "dirty_bytes": 8 << 20, "cache_bytes": 0, "background": False, "wipe": "zero",
}  # fmt: skip


# -- limbo alone -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_limbo_lets_go_of_exactly_what_no_pin_reaches(seed: int) -> None:
    """Beside a list of all that waits, looked through with every pin at every step."""
    rng, limbo, pins, waiting, block = Random(seed), Limbo(), list[int](), list[tuple[int, int, int]](), 0
    for epoch in range(1, 25):
        pins += [epoch - 1] * rng.randrange(2) + [epoch] * rng.randrange(2)  # of the durable superblock, and of the live trees
        by_birth: dict[int, list[Run]] = {}
        for _ in range(rng.randrange(8)):
            birth = rng.randrange(max(1, epoch - 10), epoch + 1)
            by_birth.setdefault(birth, []).append((block, 1))
            waiting.append((block, birth, epoch))
            block += 1
        limbo.seal(epoch, by_birth)
        for _ in range(rng.randrange(3)):
            if pins:
                pins.pop(rng.randrange(len(pins)))
        durable = epoch - rng.randrange(2)
        kept = [(b, f) for _, b, f in waiting if f <= durable and any(b <= pin <= f for pin in pins)]
        free = {at for at, b, f in waiting if f <= durable and not any(b <= pin <= f for pin in pins)}
        released = limbo.leave(durable, sorted(set(pins)))
        assert len(released) == len(free)
        assert {at for at, _ in released} == free
        assert limbo.held_blocks(sorted(set(pins))) == len(kept)
        waiting = [one for one in waiting if one[0] not in free]
    assert {at for at, _ in limbo.leave(epoch, [])} == {at for at, _, _ in waiting}
    assert limbo.held_blocks([]) == 0


# -- what readers find -------------------------------------------------------------------------------------------------


class Between(MemoryDevice):
    """Calls `between` once before it takes the next superblock: what it names is frozen by then, and not durable."""

    between: Callable[[], object] | None = None

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if self.between is not None and offset in [slot_offsets(self.size_bytes, slot)[0] for slot in range(SLOTS)]:
            between, self.between = self.between, None
            between()
        super().write(offset, buffers)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 20))])
def test_readers_find_what_they_began_with_however_long_they_stay(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened and closed at any moment: between the steps ahead of a freeze, and between a freeze and its superblock; beside
    snapshots that are taken and deleted."""
    print("seed", seed)
    monkeypatch.setattr(ahead, "PAGES", 2)
    monkeypatch.setattr(ahead, "ONODES_LEFT", 2)
    device, rng = Between(8 << 20), Random(seed)
    store, model, mixed = Store.create(device, **GEOMETRY), MemStore(), Mixed(seed, large=9000)
    readers = Readers(store, model, rng)

    def change() -> None:
        transaction = mixed.transaction()
        assert outcome(store, transaction) == outcome(model, transaction)
        if rng.random() < 0.2 and len(readers) < 12:
            readers.open()
        if rng.random() < 0.12:
            readers.close()

    for one in (store, model):
        one.apply(first_collections())
    for step in range(200):
        change()
        if step % 8 == 7:
            for _ in ahead.steps(store.tables):
                if rng.random() < 0.2:
                    change()
        if step % 8 in (3, 7):
            device.between = change if rng.random() < 0.6 else None
            is_quiet = device.between is None
            store.checkpoint()
            assert not is_quiet or not unsealed(store), "what a reader shares with it would be born after its pin"
            readers.look()
        if step % 8 == 5:
            keep_or_forget(store, rng.choice(("s1", "s2")))
            readers.look()
    for info in store.snapshots():
        store.delete_snapshot(info.name)
    problems = check(store, deep=True)
    assert not problems, problems
    while len(readers):
        readers.close()
    store.checkpoint()
    assert store.tables.allocator.limbo_blocks == 0
    assert content_of(store) == content_of(model)
    assert not check(store, deep=True)
    store.close()


def keep_or_forget(store: Store, name: str) -> None:
    """Take the snapshot of that name, or delete it: what died under it is freed long after its birth."""
    if any(info.name == name.encode() for info in store.snapshots()):
        store.delete_snapshot(name)
    else:
        store.snapshot(name)


def unsealed(store: Store) -> list[Tree]:
    """Trees that hold anything and have no address for some of it. (One that is empty reaches no block, and is left as it is.)"""
    of_objects = [tree for onode in store.tables.objects.cached.values() for tree in (onode.data, onode.map) if tree is not None]
    return [tree for tree in [*of_objects, *store.tables.trees().values()] if tree.is_dirty and (len(tree) or tree.user_blob)]


def test_what_died_under_a_snapshot_that_is_deleted_before_the_next_checkpoint_waits_for_its_reader() -> None:
    store = Store.create(MemoryDevice(4 << 20), **GEOMETRY)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"1" * 100_000))
    store.checkpoint()
    reader = OfSuperblock(store)
    store.snapshot("s")
    store.apply(Transaction().write("c", "o", 0, b"2" * 100_000))
    store.delete_snapshot("s")
    store.checkpoint()
    assert store.held_blocks() >= 100_000 // 512
    reader.close()
    store.checkpoint()
    assert store.tables.allocator.limbo_blocks == 0
    assert not check(store, deep=True)
    store.close()


class Slow(Between):
    """A read in the thread `reader` tells that it is there, and goes on when it may."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.reader: int | None = None
        self.arrived, self.may_go_on = Event(), Event()

    def read(self, offset: int, length: int) -> bytes:
        if get_ident() == self.reader:
            self.arrived.set()
            self.may_go_on.wait()
        return super().read(offset, length)


def test_a_read_begun_between_a_freeze_and_its_superblock_keeps_what_was_written_there() -> None:
    """It pinned the epoch after the durable one, which was frozen already: what was born in the one after that, and freed in it,
    was not kept for it."""
    device = Slow(4 << 20)
    store = Store.create(device, **GEOMETRY)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"1" * 100_000))
    store.checkpoint()

    def read() -> bytes:
        device.reader = get_ident()
        try:
            return store.read("c", "o")
        finally:
            device.arrived.set()  # also where it failed before

    with ThreadPoolExecutor(1) as pool:

        def write_and_read() -> None:
            store.apply(Transaction().write("c", "o", 0, b"2" * 100_000))
            futures.append(pool.submit(read))
            device.arrived.wait()

        futures: list[Any] = []
        device.between = write_and_read
        store.checkpoint()
        store.apply(Transaction().write("c", "o", 0, b"3" * 100_000))
        store.checkpoint()
        store.checkpoint()
        held = store.held_blocks()
        device.may_go_on.set()
        assert futures[0].result() == b"2" * 100_000
    assert held >= 100_000 // 512
    store.checkpoint()
    assert store.tables.allocator.limbo_blocks == 0
    assert not check(store, deep=True)


# -- what they cost ----------------------------------------------------------------------------------------------------

Hold = Callable[[Store, ExitStack], object]


def a_snapshot_of_a_map(store: Store, stack: ExitStack) -> object:
    return stack.enter_context(store.map("c", "map", sync=False).snapshot())


def an_iterator(store: Store, stack: ExitStack) -> object:
    iterator = store.map_items("c", "map")
    stack.callback(lambda: list(iterator))
    return next(iterator)


def a_walk_of_the_superblock(store: Store, stack: ExitStack) -> object:
    return stack.enter_context(store.pinned())


@pytest.mark.parametrize("hold", [a_snapshot_of_a_map, an_iterator, a_walk_of_the_superblock])
def test_a_store_that_is_overwritten_for_ever_beside_a_long_reader_does_not_fill_up(hold: Hold) -> None:
    """What was born after the reader waited for it too: an image of fifteen times what was in it was full after seven rounds."""
    store = Store.create(MemoryDevice(3 << 20), block_size=512, log_bytes=256 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))

    def overwrite(value: int) -> None:
        for name in range(4):
            store.apply(Transaction().write("c", f"o{name}", 0, bytes([value]) * 20_000))
        store.apply(Transaction().map_set("c", "map", {b"%04d" % key: bytes([value]) * 80 for key in range(800)}))
        store.checkpoint()

    overwrite(0)
    store.checkpoint()
    allocator, superblock = store.tables.allocator, store.superblock
    used = superblock.blocks - superblock.first_block - allocator.free_blocks
    with ExitStack() as stack:
        hold(store, stack)
        overwrite(1)
        overwrite(2)
        held = allocator.limbo_blocks
        assert used / 2 < held == store.held_blocks() < 3 * used
        rows = store.statistics()
        assert (rows["reader_held_bytes"], rows["free_bytes"]) == (held * 512, allocator.free_blocks * 512)
        for value in range(3, 40):
            overwrite(value)
            assert allocator.limbo_blocks == held, f"round {value}"
    store.checkpoint()
    assert allocator.limbo_blocks == 0
    assert not check(store, deep=True)
    store.close()


LARGE = {
    "in the log": Transaction().map_set("c", "map", {b"%04d" % key: bytes(400) for key in range(800, 1300)}),
    "placed": Transaction().write("c", "other", 0, bytes(1_000_000)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_refusal_says_that_readers_hold_space_and_ending_them_frees_it(kind: str) -> None:
    store = Store.create(MemoryDevice(2 << 20), block_size=512, log_bytes=256 * 1024, background=False)
    store.apply(Transaction().create_collection("c").map_set("c", "map", {b"%04d" % key: bytes(80) for key in range(800)}))
    store.apply(Transaction().write("c", "o", 0, bytes(1_300_000)))
    store.checkpoint()
    reader = store.map("c", "map", sync=False).snapshot()
    store.apply(Transaction().truncate("c", "o", 0))
    with pytest.raises(TransactionError, match=r"open iterators, snapshots of maps and reads under way hold \d+: end them"):
        store.apply(LARGE[kind])
    assert store.statistics()["reader_held_bytes"] > 1_300_000
    reader.close()
    assert store.statistics()["reader_held_bytes"] == 0
    store.apply(LARGE[kind])
    assert not check(store, deep=True)
    store.close()


def test_two_readers_keep_what_each_reaches_and_what_lies_between_them_is_free() -> None:
    """The younger one goes first, then the older: each gives back its own."""
    store = Store.create(MemoryDevice(3 << 20), block_size=512, log_bytes=256 * 1024, background=False)
    view, allocator = store.map("c", "map", sync=False), store.tables.allocator

    def overwrite(value: int) -> int:
        view.update({b"%04d" % key: bytes([value]) * 80 for key in range(800)})
        store.checkpoint()
        return allocator.limbo_blocks

    def overwritten_from(first: int) -> int:
        return [overwrite(value) for value in range(first, first + 5)][-1]

    overwrite(0)
    older = view.snapshot()
    one = overwritten_from(1)
    younger = view.snapshot()
    both = overwritten_from(10)
    assert one < both <= 2 * one + 60
    assert set(older.values()) == {bytes([0]) * 80}
    assert set(younger.values()) == {bytes([5]) * 80}
    younger.close()
    assert overwritten_from(20) == one
    older.close()
    assert overwritten_from(30) == 0
    assert not check(store, deep=True)
    store.close()


def test_spare_runs_wait_for_no_reader() -> None:
    """Nothing ever reached them. They would wait with what was there from the beginning, more of them with each checkpoint."""
    store = Store.create(MemoryDevice(3 << 20), block_size=512, log_bytes=256 * 1024, background=False)
    view, allocator = store.map("c", "map", sync=False), store.tables.allocator
    view.update({b"%04d" % key: bytes(80) for key in range(800)})
    store.checkpoint()
    with view.snapshot():
        for value in range(1, 6):
            view.update({b"%04d" % key: bytes([value]) * 80 for key in range(800)})
            store.checkpoint()
        held = allocator.limbo_blocks
        with store.lock:
            store.tables.spare_runs += allocator.allocate(5)
        store.checkpoint()
        store.checkpoint()
        assert allocator.limbo_blocks == held
    assert not check(store, deep=True)
    store.close()
