"""Wiping: after a removal, a commit and a wipe, no byte of what was removed is in the raw image, whatever crashed between."""

from __future__ import annotations

from random import Random

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device
from mdstore.errors import InvalidRequest
from mdstore.store import superblock
from mdstore.store.allocator import Allocator
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.store.wipe import Wipe

GEOMETRY = {"block_size": 512, "log_bytes": 32 * 1024, "background": False}
SIZE = 1 << 20
MODES = ("zero", "discard", "punch")
MARK = 12  # bytes of a secret that must not be found


def secret(name: str) -> bytes:
    return Random(name).randbytes(40)


def fill(store: Store, names: list[str]) -> None:
    """Each object's secret is in its data (small and large), attributes, map keys, values, spilled values, header, and name."""
    for name in names:
        hidden = secret(name)
        store.apply(
            Transaction()
            .write("c", hidden, 100, hidden * 5)
            .setattr("c", hidden, "a", hidden)
            .map_set("c", hidden, {hidden: hidden * 2, b"spilled": hidden * 100})
            .map_set_header("c", hidden, hidden)
        )
        store.apply(Transaction().write("c", hidden, 4000, hidden * 200))


def occurrences(image: bytes, names: list[str]) -> int:
    return sum(image.count(secret(name)[:MARK]) for name in names)


def made(mode: Wipe, size: int = SIZE) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(size)
    store = Store.create(device, wipe=mode, **GEOMETRY)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c"))
    return store, device


@pytest.mark.parametrize("mode", MODES)
def test_nothing_removed_is_left_in_the_image(mode: Wipe) -> None:
    store, device = made(mode)
    names = [f"n{i}" for i in range(12)]
    fill(store, names)
    store.checkpoint()
    fill(store, names[:3])  # overwritten: old versions in freed blocks and in the log
    assert occurrences(device.image(), names) > 100
    transaction = Transaction()
    for name in names[:10]:
        transaction.remove("c", secret(name))
    store.apply(transaction)
    assert store.wipe() == 0
    assert occurrences(device.image(), names[:10]) == 0
    assert occurrences(device.image(), names[10:]) > 10
    assert not check(store, deep=True)
    assert store.read("c", secret("n11"), 100, 200) == secret("n11") * 5


def test_without_wiping_it_is_left() -> None:
    """The canary: the search finds what is there."""
    store, device = made("off")
    fill(store, ["n"])
    store.apply(Transaction().remove("c", secret("n")))
    for _ in range(4):
        store.checkpoint()
    assert occurrences(device.image(), ["n"]) > 5
    with pytest.raises(InvalidRequest):
        store.wipe()


@pytest.mark.parametrize("cut", ["truncate", "zero", "overwrite", "map_clear", "rmattr"])
def test_parts_that_were_cut_off_are_wiped_too(cut: str) -> None:
    store, device = made("zero")
    hidden = secret("part")
    everything = Transaction().write("c", "o", 300, hidden * 100).map_set("c", "o", {hidden: hidden * 80})
    store.apply(everything.setattr("c", "o", "a", hidden))
    store.checkpoint()
    rest = {
        "truncate": Transaction().truncate("c", "o", 300),
        "zero": Transaction().zero("c", "o", 0, 5000),
        "overwrite": Transaction().write("c", "o", 300, bytes(4000)),
        "map_clear": Transaction().map_clear("c", "o"),
        "rmattr": Transaction().rmattr("c", "o", "a"),
    }
    for name, transaction in rest.items():
        if name != cut:
            store.apply(transaction)
    if cut in ("truncate", "zero", "overwrite"):
        store.apply(Transaction().write("c", "o", 300, hidden * 100))
        store.wipe()
        assert occurrences(device.image(), ["part"]) >= 90, "only the data is left, for now"
    store.apply(rest[cut])
    assert store.wipe() == 0
    assert occurrences(device.image(), ["part"]) == 0


def test_what_a_snapshot_still_reads_is_kept_and_told() -> None:
    store, device = made("zero")
    view = store.map("c", "o")
    hidden = secret("kept")
    view.update((b"%d" % i, hidden) for i in range(100))
    store.checkpoint()
    snapshot = view.snapshot()
    view.clear()
    assert store.wipe() > 0
    assert snapshot[b"5"] == hidden
    snapshot.close()
    assert store.wipe() == 0
    assert occurrences(device.image(), ["kept"]) == 0


def test_a_clean_close_leaves_nothing_and_the_next_open_knows() -> None:
    store, device = made("zero")
    fill(store, ["a", "b"])
    store.wipe()
    store.apply(Transaction().remove("c", secret("a")))
    store.close()
    assert occurrences(device.image(), ["a"]) == 0
    again = Store.open(MemoryDevice.from_bytes(device.image()), wipe="zero", background=False)
    assert again.superblock.flags & superblock.FLAG_WIPED
    assert again.wiper.backlog_bytes == 0
    again.close()


def test_an_image_that_was_not_wiped_is_caught_up_with() -> None:
    store, device = made("off")
    fill(store, ["old"])
    store.apply(Transaction().remove("c", secret("old")))
    store.close()
    assert occurrences(device.image(), ["old"]) > 5
    again_device = MemoryDevice.from_bytes(device.image())
    again = Store.open(again_device, wipe="punch", background=False)
    assert again.wiper.backlog_bytes > SIZE // 2
    assert again.wipe() == 0
    assert occurrences(again_device.image(), ["old"]) == 0
    assert again.wiper.backlog_bytes == 0
    assert not check(again, deep=True)


def test_what_the_device_held_before_the_image_is_wiped() -> None:
    device = MemoryDevice(SIZE)
    device.write(0, [(secret("before") * (SIZE // 40 + 1))[:SIZE]])
    store = Store.create(device, wipe="discard", **GEOMETRY)  # type: ignore[arg-type]
    assert store.wipe() == 0
    assert occurrences(device.image(), ["before"]) == 0


def test_writers_go_on_while_the_backlog_is_wiped() -> None:
    device = MemoryDevice(4 << 20)
    store = Store.create(device, **GEOMETRY)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c"))
    store.close()
    again = Store.open(MemoryDevice.from_bytes(device.image()), wipe="zero", background=False)
    left, i = True, 0
    while left:
        left = again.wiper.step(8192)
        again.submit(Transaction().write("c", f"o{i % 30}", 0, bytes([i % 251]) * 9000))
        i += 1
        if i % 40 == 0:
            again.checkpoint()
    assert i > 50
    assert all(set(again.read("c", f"o{n}")) == {(i - 1 - (i - 1 - n) % 30) % 251} for n in range(30))
    assert not check(again, deep=True)


def test_with_the_thread_the_backlog_is_wiped_unasked() -> None:
    device = MemoryDevice(SIZE)
    device.write(0, [(secret("before") * (SIZE // 40 + 1))[:SIZE]])
    store = Store.create(device, wipe="zero", block_size=512, log_bytes=32 * 1024)
    store.apply(Transaction().create_collection("c"))
    while store.wiper.backlog_bytes:  # each round fills the log, which wants a checkpoint
        store.apply(Transaction().write("c", "o", 0, bytes(3000)))
    store.close()
    assert occurrences(device.image(), ["before"]) == 0


def test_a_borrowed_range_is_what_was_free_of_it() -> None:
    allocator = Allocator()
    allocator.load([(10, 5), (20, 5), (30, 5)])
    assert allocator.borrow(12, 20) == [(12, 3), (20, 5), (30, 2)]
    assert allocator.extents() == [(10, 2), (32, 3)]
    assert (allocator.free_blocks, allocator.limbo_blocks) == (5, 10)
    assert allocator.borrow(12, 20) == []
    allocator.hand_over([(12, 3), (20, 5), (30, 2)])
    assert allocator.extents() == [(10, 5), (20, 5), (30, 5)]
    assert (allocator.free_blocks, allocator.limbo_blocks) == (15, 0)
    assert allocator.borrow(0, 10) == []
    assert allocator.borrow(0, 11) == [(10, 1)]
    assert allocator.take_changes() == ([], []), "the tree of free extents learns nothing"


# -- crashes -----------------------------------------------------------------------------------------------------------


def names_in(store: Store) -> dict[str, bytes]:
    return {name.hex(): store.read("c", name, 100, 80) for name in store.list_objects("c")}


def workload(mode: Wipe, seed: int):  # type: ignore[no-untyped-def]
    def run(device: FaultyDevice, history: History) -> None:
        random = Random(seed)
        store = Store.create(device, wipe=mode, dirty_bytes=16 * 1024, **GEOMETRY)  # type: ignore[arg-type]
        store.apply(Transaction().create_collection("c"))
        model: dict[str, bytes] = {}
        history.start(dict(model))
        for step in range(14):
            name = f"s{step}"
            hidden = secret(name)
            model[hidden.hex()] = (hidden * 2)[:80]
            number = history.begin(dict(model))
            store.apply(Transaction().write("c", hidden, 100, hidden * 60).map_set("c", hidden, {hidden: hidden * 30}))
            history.acknowledge(number)
            if len(model) > 2:
                gone = random.choice(sorted(model))
                del model[gone]
                number = history.begin(dict(model))
                store.apply(Transaction().remove("c", bytes.fromhex(gone)))
                history.acknowledge(number)
            if step % 3 == 2:
                store.wipe() if step % 2 else store.checkpoint()
        store.close()

    return run


@pytest.mark.parametrize("mode", ["zero", "discard"])
def test_after_any_crash_and_a_wipe_nothing_removed_is_left(mode: Wipe) -> None:
    everything = [f"s{i}" for i in range(14)]

    def reopen(device: Device) -> object:
        assert isinstance(device, FaultyDevice)
        store = Store.open(device, wipe=mode, dirty_bytes=16 * 1024, background=False)
        found = names_in(store)
        assert store.wipe() == 0
        image = device.image()
        left = [name for name in everything if secret(name).hex() not in found and occurrences(image, [name])]
        assert not left, f"{left} can still be read in the image"
        problems = check(store, deep=True)
        assert not problems, problems
        assert names_in(store) == found
        store.close()
        return found

    report = explore(workload(mode, 5), reopen, seed=5, size_bytes=512 * 1024, budget_states=250, nested_states=2)
    assert report.clean, report.findings
    assert report.distinct > 150
