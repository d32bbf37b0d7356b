"""Revisions in the store: O(1), without leftovers, right through checkpoints, eviction and replay."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.protocol import Revision
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.onode import object_key
from mdstore.store.store import Store
from mdstore.store.transaction import Operation, Transaction


def make(size: int = 64 * MIB, **options: int) -> Store:
    store = Store.create(MemoryDevice(size), log_bytes=4 * MIB, background=False, **options)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c"))
    return store


def reopened(store: Store) -> Store:
    """What a kill at this moment leaves."""
    assert isinstance(store.device, MemoryDevice)
    return Store.open(MemoryDevice.from_bytes(store.device.image()), background=False)


def test_keeping_a_large_object_copies_nothing() -> None:
    store, content = make(), Random(1).randbytes(16 * MIB)
    store.apply(Transaction().write("c", "o", 0, content))
    store.checkpoint()
    free, logged = store.statistics()["free_bytes"], store.journal.counters.bytes
    store.apply(Transaction(rev=1).write("c", "o", 5000, b"changed"))
    assert store.journal.counters.bytes - logged < 300
    store.checkpoint()
    assert free - store.statistics()["free_bytes"] < 256 * 1024, "pages that count the extents, and one block"
    assert store.read("c", "o", 4990, 20) == content[4990:5000] + b"changed" + content[5007:5010]
    assert not check(store, deep=True)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_left_when_the_last_revision_is_trimmed(seed: int) -> None:
    store, random = make(), Random(seed)
    store.checkpoint()
    empty = store.statistics()["free_bytes"]
    for rev in range(30):
        transaction = Transaction(rev=rev)
        transaction.write("c", "o", random.randrange(300_000), random.randbytes(random.randrange(1, 90_000)))
        transaction.map_set("c", "o", {random.randbytes(2): random.randbytes(200) for _ in range(40)})
        store.apply(transaction)
        if random.random() < 0.3:
            store.apply(Transaction().trim_revisions("c", "o", rev - 5 if rev > 5 else 0))
        if random.random() < 0.3:
            store.checkpoint()
    store.apply(Transaction(rev=40).remove("c", "o"))
    assert not check(store, deep=True)
    store.apply(Transaction().trim_revisions("c", "o", 100))
    store.checkpoint()
    store.checkpoint()
    assert not check(store, deep=True)
    assert len(store.tables.objects) == 0
    assert empty - store.statistics()["free_bytes"] <= 3 * store.superblock.block_size


def test_many_revisions_through_eviction_and_reopening() -> None:
    """More onodes than are kept in memory; after opening, the first question finds out that there are revisions."""
    store = make(onodes=64)
    for rev in range(1, 6):
        transaction = Transaction(rev=rev)
        for number in range(150):
            transaction.write("c", b"%03d" % number, 0, b"%d of %d" % (rev, number))
        store.apply(transaction)
    for again in (store, reopened(store)):
        for number in (0, 77, 149):
            name = b"%03d" % number
            assert [rev for rev, _ in again.revisions("c", name)] == [2, 3, 4, 5]
            assert again.read("c", name, rev=3) == b"3 of %d" % number
        assert len(again.list_revised("c")) == 150
        assert not check(again, deep=True)


def test_a_revision_reads_the_same_after_every_kind_of_restart() -> None:
    store = make()
    store.apply(Transaction().write("c", "o", 0, b"0" * 100_000).map_set("c", "o", {b"k": b"0"}))
    store.apply(Transaction(rev=4).write("c", "o", 50, b"4" * 80_000).map_set("c", "o", {b"k": b"4"}))
    store.checkpoint()
    store.apply(Transaction(rev=6).remove("c", "o").at_revision(9).write("c", "o", 0, b"9"))
    killed = reopened(store)
    store.checkpoint()
    for opened in (store, killed, reopened(store)):
        assert opened.revisions("c", "o") == [Revision(4, 0), Revision(6, 4)]
        assert opened.read("c", "o", rev=3) == b"0" * 100_000
        assert opened.read("c", "o", 45, 10, rev=5) == b"0" * 5 + b"4" * 5
        assert (opened.map_get("c", "o", b"k", rev=3), opened.map_get("c", "o", b"k", rev=5)) == (b"0", b"4")
        assert not opened.exists("c", "o", rev=7)
        assert opened.read("c", "o", rev=9) == b"9"
        assert not check(opened, deep=True)


DAMAGES: dict[str, Callable[[Store], None]] = {
    "object": lambda store: setattr(store.tables.objects.at(object_key(1, b"o")), "created_rev", 1),
    "revision": lambda store: setattr(next(o for k, o in store.tables.objects.cached.items() if k[0]), "created_rev", 9),
}


@pytest.mark.leaves_damage
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checker_finds_revisions_that_do_not_fit(damage: str) -> None:
    store = make()
    store.apply(Transaction().touch("c", "o").at_revision(3).write("c", "o", 0, b"x"))
    assert not check(store)
    DAMAGES[damage](store)
    assert [problem[:2] for problem in check(store)] == ["C8"]


def test_a_rename_replays_beside_a_large_write_that_was_placed_before_it_and_logged_after() -> None:
    """A large write's blocks are placed before its turn in the log. A rename logged in between used to write the object's
    changed blocks into the trees, which took blocks; at replay it took those very ones, and the image did not open."""
    store = make()
    store.apply(Transaction().write("c", "small", 0, b"changed and not yet written"))
    store.checkpoint()
    store.apply(Transaction().write("c", "small", 0, b"changed"))
    place, content = store.large_writes.place, Random(3).randbytes(MIB)

    def renamed_in_between(transaction: Transaction, mapped: list[tuple[int, int]]) -> list[Operation]:
        placed = place(transaction, mapped)
        if mapped:
            store.submit(Transaction().rename("c", "small", "c", "moved"))
        return placed

    store.large_writes.place = renamed_in_between  # type: ignore[method-assign]
    commit = store.submit(Transaction().write("c", "large", 0, content))
    commit.wait()
    opened = reopened(store)
    assert opened.read("c", "large") == content
    assert opened.read("c", "moved") == b"changed and not yet written"
    assert not check(opened, deep=True)
