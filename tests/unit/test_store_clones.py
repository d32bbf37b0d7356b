"""Clones: O(1), right under overwriting, and without leftovers when the last of them goes."""

from __future__ import annotations

import threading
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdstore.btree import Pager, Tree
from mdstore.device.memory import MemoryDevice
from mdstore.store.check import check
from mdstore.store.shares import GROUPS_DESCRIPTOR, INTERVALS_DESCRIPTOR, Shares
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

MIB = 1 << 20


@pytest.fixture
def store() -> Store:
    made = Store.create(MemoryDevice(64 * MIB), log_bytes=4 * MIB, background=False)
    made.apply(Transaction().create_collection("c"))
    return made


def leftovers(store: Store) -> tuple[int, int, int]:
    refs = store.tables.pager.refs
    assert refs is not None
    return len(store.tables.space.shares.intervals), len(store.tables.space.shares.groups), len(refs)


def test_a_clone_costs_the_same_whatever_the_size_of_the_object(store: Store) -> None:
    costs = []
    for name, size in (("small", 64 * 1024), ("large", 16 * MIB)):
        store.apply(Transaction().write("c", name, 0, Random(size).randbytes(size)))
        store.checkpoint()
        free, logged = store.statistics()["free_bytes"], store.journal.counters.bytes
        store.apply(Transaction().clone("c", name, name + "-clone"))
        costs.append((store.journal.counters.bytes - logged, store.tables.pager.counters()["dirty_pages"]))
        assert store.read("c", name + "-clone") == store.read("c", name)
        store.checkpoint()
        assert free - store.statistics()["free_bytes"] < 64 * 1024, "no data was copied"
    assert abs(costs[0][0] - costs[1][0]) < 50
    assert costs[1][1] <= costs[0][1] + 4
    assert not check(store, deep=True)


def test_either_side_may_be_written_and_the_other_never_sees_it(store: Store) -> None:
    content = Random(1).randbytes(MIB)
    store.apply(Transaction().write("c", "o", 0, content).map_set("c", "o", {b"k": b"v"}).clone("c", "o", "clone"))
    store.apply(Transaction().write("c", "o", 1000, b"origin").map_set("c", "o", {b"k": b"origin"}))
    store.apply(Transaction().write("c", "clone", 500_000, b"clone").map_remove("c", "clone", [b"k"]))
    store.checkpoint()
    assert store.read("c", "o", 1000, 6) == b"origin"
    assert store.read("c", "clone", 1000, 6) == content[1000:1006]
    assert store.read("c", "clone", 500_000, 5) == b"clone"
    assert store.read("c", "o", 500_000, 5) == content[500_000:500_005]
    assert store.map_get("c", "o", b"k") == b"origin"
    assert store.map_get("c", "clone", b"k") is None
    assert not check(store, deep=True)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_left_when_the_last_clone_goes(store: Store, seed: int) -> None:
    random = Random(seed)
    store.apply(Transaction().write("c", "o0", 0, random.randbytes(700_000)))
    store.apply(Transaction().map_set("c", "o0", {i.to_bytes(2, "big"): bytes(200) for i in range(500)}))
    names, number = ["o0"], 1
    for _ in range(40):
        name = random.choice(names)
        transaction = Transaction()
        if random.random() < 0.4:
            transaction.clone("c", name, f"o{number}")
            names.append(f"o{number}")
            number += 1
        elif random.random() < 0.5:
            transaction.write("c", name, random.randrange(700_000), random.randbytes(random.choice((10, 5000, 200_000))))
        elif random.random() < 0.5:
            transaction.clone_range("c", name, random.choice([n for n in [*names, "x"] if n != name]), 4096 * 3, 100_000, 8192)
            names = list({*names, *([] if not store.exists("c", "x") else ["x"])})
        elif len(names) > 1:
            transaction.remove("c", name)
            names.remove(name)
        store.apply(transaction)
        if random.random() < 0.2:
            assert not check(store, deep=True)
    for name_bytes in store.list_objects("c"):
        store.apply(Transaction().remove("c", name_bytes))
    assert not check(store)
    assert leftovers(store) == (0, 0, 0)


def test_clone_range_shares_whole_blocks_and_copies_the_ends(store: Store) -> None:
    content = Random(2).randbytes(MIB)
    store.apply(Transaction().write("c", "o", 0, content))
    store.checkpoint()
    free = store.statistics()["free_bytes"]
    store.apply(Transaction().clone_range("c", "o", "copy", 5000, 900_000, 5000 + 8192))
    store.checkpoint()
    assert store.read("c", "copy", 13192) == content[5000:905_000]
    assert store.read("c", "copy", 0, 13192) == bytes(13192)
    assert free - store.statistics()["free_bytes"] < 100_000
    store.apply(Transaction().clone_range("c", "o", "skewed", 5000, 900_000, 17))
    assert store.read("c", "skewed", 17) == content[5000:905_000]
    assert not check(store, deep=True)


def test_a_range_cloned_into_a_clone_without_data_is_given_back_with_it() -> None:
    """A member of a group of clones that has no extents took some of its own and stayed in the group: no one ever freed them."""
    device = MemoryDevice(4 * MIB)
    store = Store.create(device, block_size=512, log_bytes=128 * 1024, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"1" * 4096).write("c", "source", 0, b"2" * 4096))
    store.checkpoint()
    store.apply(Transaction().truncate("c", "o", 0).clone("c", "o", "clone"))
    store.checkpoint()
    image = device.image()
    store.close()
    store = Store.open(MemoryDevice.from_bytes(image), background=False)
    store.apply(Transaction().clone_range("c", "source", "clone", 0, 4096, 0))
    assert not check(store, deep=True)
    assert store.read("c", "clone") == b"2" * 4096
    for name in ("clone", "source", "o"):
        store.apply(Transaction().remove("c", name))
    store.checkpoint()
    assert not check(store, deep=True)
    assert list(store.tables.space.shares) == []
    store.close()


def test_overlapping_reads_of_clones_stay_right_while_the_origin_is_overwritten() -> None:
    # The 2008 store's block layer asserted when two reads of the same block were in flight, which clones make possible.
    store = Store.create(MemoryDevice(64 * MIB), log_bytes=4 * MIB)
    contents = [bytes([i + 1]) * 400_000 for i in range(4)]
    store.apply(Transaction().create_collection("c").write("c", "o", 0, contents[0]))
    for number, content in enumerate(contents):
        store.apply(Transaction().write("c", "o", 0, content).clone("c", "o", f"clone{number}"))
    stop, wrong = threading.Event(), []

    def read(seed: int) -> None:
        random = Random(seed)
        while not stop.is_set():
            number, offset, length = random.randrange(4), random.randrange(400_000), random.randrange(1, 60_000)
            found = store.read("c", f"clone{number}", offset, length)
            if found != contents[number][offset : offset + length]:
                wrong.append((number, offset, length))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    random = Random(9)
    for step in range(150):
        store.submit(Transaction().write("c", "o", random.randrange(400_000), random.randbytes(random.choice((100, 90_000)))))
        if step % 30 == 0:
            store.checkpoint()
        if step % 50 == 0:
            store.apply(Transaction().truncate("c", "o", random.randrange(400_000)))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not check(store, deep=True)
    store.close()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 10)), max_size=40))
def test_shared_intervals_agree_with_a_count_for_each_block(steps: list[tuple[bool, int, int]]) -> None:
    pager = Pager(MemoryDevice(MIB), page_size=256)
    shares = Shares(Tree(pager, INTERVALS_DESCRIPTOR, 1), Tree(pager, GROUPS_DESCRIPTOR, 2))
    extra = [0] * 50
    for up, start, blocks in steps:
        if up:
            shares.share(start, blocks)
            for block in range(start, start + blocks):
                extra[block] += 1
        else:
            freed = {b for first, count in shares.release(start, blocks) for b in range(first, first + count)}
            assert freed == {block for block in range(start, start + blocks) if not extra[block]}
            for block in range(start, start + blocks):
                extra[block] = max(0, extra[block] - 1)
        listed = {b: n for first, count, n in shares for b in range(first, first + count)}
        assert listed == {block: count for block, count in enumerate(extra) if count}
        rows = list(shares)
        assert all(a[0] + a[1] < b[0] or a[2] != b[2] for a, b in pairwise(rows)), "equal neighbours are merged"
