"""An image grows: the new space is used, the old content stays, and a crash at any write leaves one size or the other."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device
from mdstore.errors import InvalidRequest, NoSpace
from mdstore.store import superblock
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import outcome

GEOMETRY = {"block_size": 512, "log_bytes": 32 * 1024, "background": False}
SIZE = 256 * 1024


def made(size: int = SIZE, **options: object) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(size)
    store = Store.create(device, **{**GEOMETRY, **options})  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"kept" * 500))
    return store, device


def fill(store: Store, start: int = 0) -> int:
    """Write objects until the image refuses; returns how many there are."""
    for i in range(start, 100_000):
        refusal = outcome(store, Transaction().write("c", f"f{i}", 0, bytes([i % 256]) * 3000))
        if refusal is not None:
            assert refusal[1] is NoSpace
            return i
    raise AssertionError("the image never filled up")


@pytest.mark.parametrize("more", [512, 4096, 8192, 12288, 100_000, 4 << 20])
def test_the_new_space_is_used_and_nothing_is_lost(more: int) -> None:
    store, device = made()
    before = fill(store)
    free = store.statistics()["free_bytes"]
    store.resize(SIZE + more)
    assert device.size_bytes == SIZE + more
    assert store.superblock.blocks == superblock.usable_blocks(SIZE + more, 512)
    assert store.tables.pager.page_bounds == (store.superblock.first_block, store.superblock.blocks)
    assert store.statistics()["free_bytes"] >= free + max(0, more // 4096 * 4096 - 20 * 512)
    assert not check(store, deep=True)
    after = fill(store, before)
    assert after >= before + max(0, more - 32 * 1024) // 8000
    assert not check(store, deep=True)
    store.sync()
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert not again.recovery.warnings, "all four superblock copies are where they belong"
    assert again.superblock.blocks == store.superblock.blocks
    assert again.tables.pager.page_bounds == store.tables.pager.page_bounds
    assert again.read("c", "o") == b"kept" * 500
    assert all(again.read("c", f"f{i}") == bytes([i % 256]) * 3000 for i in range(after))
    assert not check(again, deep=True)


def test_a_device_that_grew_by_itself_is_taken_whole() -> None:
    store, device = made()
    store.close()
    larger = MemoryDevice.from_bytes(device.image() + bytes(1 << 20))
    again = Store.open(larger, background=False)
    assert again.recovery.warnings, "the spares are not where they belong"
    again.resize()
    assert again.superblock.blocks == superblock.usable_blocks(larger.size_bytes, 512)
    assert not check(again, deep=True)
    again.close()
    assert not Store.open(MemoryDevice.from_bytes(larger.image())).recovery.warnings


def test_it_does_not_shrink_and_growing_by_nothing_changes_nothing() -> None:
    store, device = made()
    with pytest.raises(InvalidRequest):
        store.resize(SIZE - 4096)
    blocks = store.superblock.blocks
    store.resize(SIZE)
    store.resize()
    assert (store.superblock.blocks, device.size_bytes) == (blocks, SIZE)
    assert not check(store)


def test_the_old_spares_are_wiped_where_wiping_is_on() -> None:
    store, device = made(wipe="zero")
    store.apply(Transaction().create_collection("the-secret-name"))
    for _ in range(2):
        store.checkpoint()
    assert device.image().count(b"the-secret-name") > 2, "the embedded tree of collections lies in every superblock"
    store.resize(4 * SIZE)
    store.apply(Transaction().remove_collection("the-secret-name"))
    assert store.wipe() == 0
    assert b"the-secret-name" not in device.image()


def test_an_open_iterator_does_not_hold_the_new_space_back() -> None:
    store, _ = made()
    view = store.map("c", "m", sync=False)
    view.update((b"%d" % i, bytes(20)) for i in range(100))
    store.checkpoint()
    running = view.items()
    next(running)
    before = fill(store)
    store.resize(4 * SIZE)
    assert fill(store, before) > before + 50
    assert len(list(running)) == 99


def test_writers_go_on_meanwhile() -> None:
    store, device = made(size=2 << 20)
    stop = threading.Event()
    written = threading.Semaphore(0)

    def write() -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            store.submit(Transaction().write("c", f"w{i % 40}", 0, bytes([i % 256]) * 2000))
            written.release()

    thread = threading.Thread(target=write)
    thread.start()
    for times in range(2, 12):
        written.acquire()  # the writer is on its way, before and between the growths
        store.resize(times << 20)
    stop.set()
    thread.join()
    assert not check(store, deep=True)
    assert store.superblock.blocks == superblock.usable_blocks(11 << 20, 512)
    store.close()
    assert not check(Store.open(MemoryDevice.from_bytes(device.image())), deep=True)


def test_a_file_grows_with_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Store.create(FileDevice.create(path, 1 << 20)) as store:
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"kept"))
        store.resize(3 << 20)
    assert path.stat().st_size == 3 << 20
    with Store.open(FileDevice.open(path)) as store:
        assert store.read("c", "o") == b"kept"
        assert store.statistics()["size_bytes"] > 2.9 * (1 << 20)


@pytest.mark.parametrize("more", [4096, 8192, 200_000])
def test_a_crash_at_any_write_leaves_the_old_or_the_new_size(more: int) -> None:
    def workload(device: FaultyDevice, history: History) -> None:
        store = Store.create(device, **GEOMETRY)  # type: ignore[arg-type]
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"kept" * 500))
        history.start({b"o": b"kept" * 500})
        store.resize(SIZE + more)
        number = history.begin({b"o": b"kept" * 500, b"p": b"new" * 9000})
        store.apply(Transaction().write("c", "p", 0, b"new" * 9000))
        history.acknowledge(number)
        store.close()

    def reopen(device: Device) -> object:
        store = Store.open(device, background=False)
        found = {name: store.read("c", name) for name in store.list_objects("c")}
        sizes = superblock.usable_blocks(SIZE, 512), superblock.usable_blocks(SIZE + more, 512)
        assert store.superblock.blocks in sizes, store.superblock.blocks
        problems = check(store, deep=True)
        assert not problems, problems
        store.resize(SIZE + more if device.size_bytes == SIZE else None)
        assert store.superblock.blocks == sizes[1]
        problems = check(store, deep=True)
        assert not problems, problems
        assert {name: store.read("c", name) for name in store.list_objects("c")} == found
        store.close()
        return found

    report = explore(workload, reopen, seed=3, size_bytes=SIZE, budget_states=250, nested_states=2)
    assert report.clean, report.findings
    assert report.distinct > 50
