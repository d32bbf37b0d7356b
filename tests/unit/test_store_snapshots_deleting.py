"""Deleting snapshots of a store; snapshots beside wiping, growing and scrubs, under damage and on devices that fail."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice, OperationName
from mdstore.device.memory import MemoryDevice
from mdstore.errors import (
    AlreadyExists,
    CorruptionError,
    DeviceFailed,
    MdstoreError,
    NoSpace,
    NotFound,
    SnapshotBusy,
    TransactionError,
    UnsupportedFormat,
)
from mdstore.store import snapshots as snapshots_module
from mdstore.store import superblock
from mdstore.store.check import check
from mdstore.store.scrub import Scrub
from mdstore.store.store import Store
from mdstore.store.superblock import Root
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import Mixed, content_of, outcome
from tests.unit.test_store_snapshots import GEOMETRY, SIZE, free_bytes, killed, made, names

# -- deleting ----------------------------------------------------------------------------------------------------------


def run(seed: int, events: dict[int, Callable[[Store], None]]) -> Store:
    """120 transactions, with something done after some of them."""
    store, _ = made(4 << 20)
    mixed = Mixed(seed)
    for step in range(120):
        outcome(store, mixed.transaction())
        if step % 20 == 0:
            store.checkpoint()
        if step in events:
            events[step](store)
    return store


@pytest.mark.parametrize("seed", range(6))
def test_after_the_last_deletion_the_store_is_as_large_as_one_that_never_had_a_snapshot(seed: int) -> None:
    random = Random(seed)
    taken = sorted(random.sample(range(100), 5))
    events: dict[int, Callable[[Store], None]] = {
        step: lambda store, name=f"s{i}": store.snapshot(name) for i, step in enumerate(taken)  # type: ignore[misc]
    }
    events[taken[-1] + 5] = lambda store: store.delete_snapshot("s1")
    store = run(seed, events)
    plain = run(seed, dict.fromkeys(events, Store.checkpoint))  # which is when changes of blocks become extents
    left = ["s0", "s2", "s3", "s4"]
    random.shuffle(left)
    for name in left:
        store.delete_snapshot(name)
    assert Root.SNAPSHOTS not in store.superblock.roots
    assert Root.DEAD not in store.superblock.roots
    assert not store.superblock.features_incompatible
    assert not check(store, deep=True)
    assert content_of(store) == content_of(plain)
    assert used_but_for_free_space(store) == used_but_for_free_space(plain)


def used_but_for_free_space(store: Store) -> int:
    """Blocks in use, without the pages of the tree of free extents: how many pieces those lie in is chance."""
    free = free_bytes(store) // 512
    pages = sum(count for _, count, _ in store.tables.free_tree.pages())
    spare = sum(blocks for _, blocks in store.tables.spare_runs)
    return store.superblock.blocks - free - pages - spare


def test_a_snapshot_that_is_read_is_not_deleted() -> None:
    store, _ = made()
    store.snapshot("s")
    first, second = store.open_snapshot("s"), store.open_snapshot("s")
    with pytest.raises(SnapshotBusy, match="2 times"):
        store.delete_snapshot("s")
    first.close()
    with pytest.raises(SnapshotBusy, match="1 times"):
        store.delete_snapshot("s")
    second.close()
    store.delete_snapshot("s")
    assert not names(store)


def test_a_long_deletion_goes_in_steps_and_on_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "_STEP_RUNS", 3)
    store, device = made()
    for name in ("before", "doomed"):
        for i in range(30):
            store.apply(Transaction().write("alpha", f"o{i}", 512 * (i % 3), bytes([i + 1]) * 700))
        store.snapshot(name)
    for i in range(0, 30, 2):
        store.apply(Transaction().remove("alpha", f"o{i}"))
        store.checkpoint()
    images: list[bytes] = []
    reports: list[int] = []

    def progress(done: int) -> None:
        reports.append(done)
        images.append(device.image())
        assert not check(store, deep=True)

    before = content_of(store)
    store.delete_snapshot("doomed", progress=progress)
    assert len(reports) > 4
    assert reports == sorted(reports)
    assert names(store) == [b"before"]
    for image in images[:-1]:
        survivor = Store.open(MemoryDevice.from_bytes(image), background=False)
        assert [info.is_deleting for info in survivor.snapshots()] == [False, True]
        with pytest.raises(NotFound, match="being deleted"):
            survivor.open_snapshot("doomed")
        with pytest.raises(AlreadyExists):
            survivor.snapshot("doomed")
        survivor.snapshot("after")
        survivor.delete_snapshot("doomed")
        assert not check(survivor, deep=True)
        assert content_of(survivor) == before
        for name in ("before", "after"):
            survivor.delete_snapshot(name)
        assert not check(survivor, deep=True)


def test_a_full_store_says_what_holds_its_space_and_deleting_always_works() -> None:
    store, device = made(1 << 20)
    for i in range(200):
        store.apply(Transaction().write("alpha", f"o{i}", 0, bytes(1500)))
    store.snapshot("s")
    refusal: MdstoreError | None = None
    for i in range(5000):
        try:
            store.apply(Transaction().write("alpha", f"o{i}", 0, bytes([i % 250 + 1]) * 1500))
        except TransactionError as error:
            refusal = error.cause
            break
    assert isinstance(refusal, NoSpace)
    assert "snapshots hold" in str(refusal)
    for i in range(200):
        outcome(store, Transaction().remove("alpha", f"o{i}"))  # removing takes space too: it may be refused, and fails nothing
    store.checkpoint()
    assert not check(store)
    assert isinstance(snapshots_until_refused(store), NoSpace)
    store, device = killed(device)
    for name in names(store):
        store.delete_snapshot(name)
        assert not check(store)
    for i in range(200):
        store.apply(Transaction().touch("alpha", f"o{i}").remove("alpha", f"o{i}"))
    store.apply(Transaction().write("alpha", "new", 0, bytes(100_000)))
    assert not check(store, deep=True)


def snapshots_until_refused(store: Store) -> MdstoreError | None:
    for i in range(1000):
        outcome(store, Transaction().write("alpha", f"p{i}", 0, bytes(700)))
        try:
            store.snapshot(f"t{i}")
        except NoSpace as error:
            return error
    return None


# -- beside the rest ---------------------------------------------------------------------------------------------------


def test_wiping_spares_what_a_snapshot_reaches_and_takes_it_afterwards() -> None:
    secret = Random(5).randbytes(40)
    device = MemoryDevice(SIZE)
    store = Store.create(device, wipe="zero", **GEOMETRY)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c").write("c", "o", 0, secret * 200))
    store.snapshot("s")
    store.apply(Transaction().remove("c", "o"))
    assert store.wipe() > 0
    with store.open_snapshot("s") as view:
        assert view.read("c", "o") == secret * 200
    store.delete_snapshot("s")
    assert store.wipe() == 0
    assert secret[:12] not in device.image()


def test_an_image_with_snapshots_grows() -> None:
    store, device = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(5000)))
    store.snapshot("s")
    store.resize(2 * SIZE)
    store.apply(Transaction().write("alpha", "o", 0, b"x" * SIZE))
    assert not check(store, deep=True)
    store, device = killed(device)
    with store.open_snapshot("s") as view:
        assert view.read("alpha", "o") == bytes(5000)
        assert view.statistics()["size_bytes"] < SIZE
    store.delete_snapshot("s")
    assert not check(store, deep=True)


def test_the_older_superblock_does_not_know_the_newest_snapshot_and_is_sound() -> None:
    store, device = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(5000)))
    store.snapshot("s")
    newest = store.superblock.epoch
    for offset in superblock.slot_offsets(device.size_bytes, newest % 2):
        device.write(offset, [bytes(superblock.SLOT_SIZE)])
    store, _ = killed(device)
    assert store.superblock.epoch == newest - 1
    assert not names(store)
    assert store.read("alpha", "o") == bytes(5000)
    assert not check(store, deep=True)


@pytest.mark.leaves_damage
def test_scrub_reads_a_snapshot() -> None:
    store, device = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(range(250)) * 40))
    store.snapshot("s")
    at = device.image().rindex(bytes(range(250)))  # in its block, not in the log
    store.apply(Transaction().write("alpha", "o", 0, bytes(10_000)))
    store.checkpoint()
    with store.open_snapshot("s") as view:
        assert Scrub(view).run().clean
    device.write(at, [b"?"])
    with store.open_snapshot("s") as view:
        report = Scrub(view).run()
        assert report.complete
        (finding,) = report.findings
        assert (finding.what, finding.name) == ("data block", b"o")
    assert Scrub(store).run().clean, "the live store does not reach it"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_damage_to_the_record_of_a_snapshot_is_found() -> None:
    """Both superblocks know the record: wherever it is damaged, the image says so, or the damage is where nothing is."""
    store, device = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(5000)))
    store.snapshot("s")
    store.checkpoint()
    pages = [(start, count) for start, count, _ in store.tables.space.snapshots.records.pages()]
    image = device.image()
    for start, count in pages:
        for at in range(start * 512, (start + count) * 512, 7):
            damaged = bytearray(image)
            damaged[at] ^= 0x10
            with pytest.raises(CorruptionError):
                Store.open(MemoryDevice.from_bytes(bytes(damaged)), background=False)


def test_a_version_that_knows_no_snapshots_refuses_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    store, device = made()
    store.snapshot("s")
    store.checkpoint()
    monkeypatch.setattr(superblock, "KNOWN_INCOMPATIBLE", 0)
    with pytest.raises(UnsupportedFormat, match="features 0x1"):
        killed(device)


@pytest.mark.leaves_damage
@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (lambda epoch, start, blocks, birth: (epoch, start, blocks, epoch), "C9"),
        (lambda epoch, start, blocks, birth: (epoch - 1, start, blocks, min(birth, epoch - 1)), "C9"),
        (lambda epoch, start, blocks, birth: (epoch, start + 1, blocks, birth), "C2|C3"),
        (lambda epoch, start, blocks, birth: None, "C3"),
    ],
)
def test_the_checker_sees_a_wrong_entry_among_the_dead(
    entry: Callable[[int, int, int, int], tuple[int, int, int, int] | None], problem: str
) -> None:
    store, _ = made()
    store.apply(Transaction().write("alpha", "o", 0, bytes(5000)))
    store.snapshot("a")
    store.snapshot("b")
    store.apply(Transaction().remove("alpha", "o"))
    store.checkpoint()
    table = store.tables.space.snapshots
    victim = next(run for run in table.all_dead() if run.blocks >= 10)
    table.dead.delete(victim.epoch.to_bytes(8, "big") + victim.start.to_bytes(8, "big"))
    wrong = entry(*victim)
    if wrong is not None:
        epoch, start, blocks, birth = wrong
        value = blocks.to_bytes(8, "little") + birth.to_bytes(8, "little")
        table.dead.put(epoch.to_bytes(8, "big") + start.to_bytes(8, "big"), value)
    problems = check(store)
    assert any(found[:2] in problem.split("|") for found in problems), problems


@pytest.mark.parametrize("seed", range(8))
def test_a_store_that_is_full_all_the_time_never_fails(seed: int) -> None:
    """Snapshots, writes, clones and removals in a store that refuses half of them: no checkpoint may meet NoSpace."""
    random = Random(seed)
    device = MemoryDevice(random.choice([300 << 10, 512 << 10, 1 << 20]))
    store = Store.create(device, block_size=random.choice([512, 1024]), log_bytes=64 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))
    taken: list[str] = []
    refused = 0
    for step in range(600):
        name, other, chance = f"o{random.randrange(300)}", f"p{random.randrange(300)}", random.random()
        transaction = Transaction()
        if chance < 0.55:
            transaction.write("c", name, random.randrange(3000), random.randbytes(random.choice([10, 300, 2000, 9000])))
        elif chance < 0.7:
            pairs = {random.randbytes(3): random.randbytes(random.choice([5, 80, 900])) for _ in range(random.randrange(1, 30))}
            transaction.map_set("c", name, pairs)
        else:
            transaction = transaction.clone("c", name, other) if chance < 0.75 else transaction.remove("c", name)
        if chance < 0.9:
            refused += outcome(store, transaction) == (0, NoSpace)
        elif chance < 0.95:
            try:
                store.snapshot(f"s{step}")
                taken.append(f"s{step}")
            except NoSpace:
                refused += 1
        elif taken:
            store.delete_snapshot(taken.pop(random.randrange(len(taken))))
    assert refused
    assert not check(store)
    for name in taken:
        store.delete_snapshot(name)
    assert not check(store)


@pytest.mark.parametrize("operation", ["write", "flush"])
@pytest.mark.parametrize("action", ["snapshot", "delete_snapshot"])
def test_a_device_that_fails_in_between_latches_the_store_and_leaves_it_whole(operation: OperationName, action: str) -> None:
    for nth in range(100):
        device = FaultyDevice(SIZE)
        store = Store.create(device, **GEOMETRY)  # type: ignore[arg-type]
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"old" * 2000))
        if action == "delete_snapshot":
            store.snapshot("s")
        store.apply(Transaction().write("c", "o", 0, b"new" * 2000))
        device.inject(Fault(operation, device.calls(operation) + nth, Effect.EIO, sticky=True))
        failed = False
        try:
            getattr(store, action)("s")
        except DeviceFailed:
            failed = True
            with pytest.raises(DeviceFailed):
                store.apply(Transaction().touch("c", "p"))
            with pytest.raises(DeviceFailed):
                store.snapshots()
        survivor = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
        assert survivor.read("c", "o") == b"new" * 2000
        assert not check(survivor, deep=True)
        for name in names(survivor):
            with survivor.open_snapshot(name) as view:
                assert view.read("c", "o") == (b"old" if action == "delete_snapshot" else b"new") * 2000
            survivor.delete_snapshot(name)
            assert not check(survivor, deep=True)
        if not failed:
            return
    pytest.fail("there is an end to the calls of one action")
