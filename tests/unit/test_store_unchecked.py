"""Data without checksums: where damage shows, where it does not, and that nothing else loses its check."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.extents import decode_extent
from mdstore.store.scrub import Scrub
from mdstore.store.space import Space
from mdstore.store.store import Store
from mdstore.store.transaction import HINT_UNCHECKED, Transaction
from mdstore.tools.reader.check import DEEP
from tests.unit.reader_images import check as fsck

SIZE = 200_000
CONTENT = Random(5).randbytes(SIZE)


def make(*transactions: Transaction) -> MemoryDevice:
    """A closed image of one object `o`, with a checkpoint after each transaction."""
    device = MemoryDevice(8 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c"))
    for transaction in transactions:
        store.apply(transaction)
        store.checkpoint()
    store.close()
    return device


def flipped(device: MemoryDevice, offset: int) -> MemoryDevice:
    """A copy whose object `o` has one bit changed at `offset` of its data."""
    copy = MemoryDevice.from_bytes(device.image())
    store = Store.open(MemoryDevice.from_bytes(device.image()), read_only=True)
    size = store.superblock.block_size
    onode = store.tables.objects.get(1, b"o")
    assert onode is not None
    assert onode.data is not None
    found = [decode_extent(*record) for record in onode.data.items()]
    extent = next(extent for extent in found if extent.logical <= offset // size < extent.end)
    at = (extent.start - extent.logical) * size + offset
    copy.write(at, [bytes([copy.read(at, 1)[0] ^ 4])])
    return copy


def test_a_damaged_block_without_a_checksum_reads_as_it_is_and_nobody_complains(tmp_path: Path) -> None:
    device = flipped(make(Transaction().alloc_hint("c", "o", 0, 0, HINT_UNCHECKED).write("c", "o", 0, CONTENT)), 70_000)
    assert fsck(device.image(), tmp_path, DEEP) == []
    store = Store.open(device, background=False)
    found = store.read("c", "o")
    assert found != CONTENT
    assert found[:70_000] + found[70_001:] == CONTENT[:70_000] + CONTENT[70_001:]
    assert check(store, deep=True) == []
    report = Scrub(store).run()
    assert (report.complete, report.findings) == (True, [])


@pytest.mark.leaves_damage
@pytest.mark.parametrize("small", [False, True], ids=["placed at once", "written by the checkpoint"])
def test_what_was_written_with_checksums_is_still_checked(small: bool, tmp_path: Path) -> None:
    """The object's first half has checksums, the second none."""
    half = 49 * 4096 // 2 // 4096 * 4096
    halves = []
    for hint, start, stop in ((0, 0, half), (HINT_UNCHECKED, half, SIZE)):
        halves.append(Transaction().alloc_hint("c", "o", 0, 0, hint))
        step = 4096 if small else SIZE
        for at in range(start, stop, step):
            halves[-1].write("c", "o", at, CONTENT[at : min(stop, at + step)])
    device = make(*halves)
    assert Store.open(MemoryDevice.from_bytes(device.image())).read("c", "o") == CONTENT
    damaged = Store.open(flipped(device, 10_000))
    with pytest.raises(CorruptionError):
        damaged.read("c", "o", 8192, 4096)
    assert damaged.read("c", "o", half) == CONTENT[half:]
    assert [problem[:2] for problem in check(damaged, deep=True)] == ["C6"]
    assert {problem.code for problem in fsck(flipped(device, 10_000).image(), tmp_path, DEEP)} == {"data-checksum"}
    spoiled = Store.open(flipped(device, half + 10)).read("c", "o")
    assert spoiled[:half] == CONTENT[:half]
    assert spoiled[half:] != CONTENT[half:]


@pytest.mark.leaves_damage
def test_a_share_of_unchecked_blocks_stays_unchecked_and_a_copied_edge_is_checked() -> None:
    """`clone_range` shares whole blocks as they are and copies the parts at both ends."""
    transaction = Transaction().alloc_hint("c", "source", 0, 0, HINT_UNCHECKED).write("c", "source", 0, CONTENT)
    device = make(transaction.clone_range("c", "source", "o", 100, 100_000, 100))
    for offset, is_checked in ((200, True), (50_000, False), (100_050, True)):
        store = Store.open(flipped(device, offset))
        if is_checked:
            with pytest.raises(CorruptionError):
                store.read("c", "o")
        else:
            assert store.read("c", "o") != bytes(100) + CONTENT[100:100_100]
    assert Store.open(MemoryDevice.from_bytes(device.image())).read("c", "o") == bytes(100) + CONTENT[100:100_100]


def test_a_large_write_lost_by_a_crash_is_found_lost_without_checksums_in_the_extents() -> None:
    """The log keeps the checksums of blocks that were placed before their entry: a crash may have kept it and lost them."""
    device = MemoryDevice(8 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").alloc_hint("c", "o", 0, 0, HINT_UNCHECKED))
    before = device.image()
    store.apply(Transaction().write("c", "o", 0, CONTENT))
    after = device.image()
    log = store.superblock.first_block * store.superblock.block_size
    lost = Store.open(MemoryDevice.from_bytes(after[:log] + before[log:]))
    assert lost.read("c", "o") == b""
    assert "never arrived" in lost.recovery.tail
    assert len(lost.recovery.warnings) == 1
    assert "the data of the entry there is not what was written" in lost.recovery.warnings[0]
    whole = Store.open(MemoryDevice.from_bytes(after))
    assert whole.read("c", "o") == CONTENT
    assert not whole.recovery.warnings


def test_a_bit_that_flips_while_recovery_reads_cuts_no_large_write_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry at the end of the log was cut off for good, acknowledged as it was."""
    device = MemoryDevice(8 * MIB)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, CONTENT))
    flips, read = [1], Space.read

    def flipped_once(space: Space, start: int, blocks: int) -> bytes:
        content = read(space, start, blocks)
        return content if not flips else bytes([content[0] ^ flips.pop(), *content[1:]])

    with monkeypatch.context() as patch:
        patch.setattr(Space, "read", flipped_once)
        again = Store.open(MemoryDevice.from_bytes(device.image()))
    assert not flips
    assert again.read("c", "o") == CONTENT
    assert not again.recovery.warnings
