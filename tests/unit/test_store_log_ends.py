"""A checkpoint ends the log with an entry of its own: a log whose body was emptied beside whole heads is told from one in which
nothing was appended since."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from journal import RingMedium
from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, DeviceFailed
from mdstore.limits import MIB
from mdstore.store import log, superblock
from mdstore.store.check import check as check_store
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.unit.reader_images import check
from tests.unit.repair_images import lost, repaired


class Unreadable(MemoryDevice):
    """One byte is not given."""

    bad_byte = -1

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self.bad_byte < offset + length:
            raise DeviceFailed("read", self.name, "a bad sector")
        return super().read(offset, length)


SIZE = 2 * MIB
MODES: list[Literal["off", "zero"]] = ["off", "zero"]
OPTIONS: dict[str, Any] = {"background": False}


def made(*, wipe: Literal["off", "zero"] = "off", **options: int) -> tuple[Store, MemoryDevice]:
    """One object in the last checkpoint."""
    device = MemoryDevice(SIZE)
    store = Store.create(device, wipe=wipe, **OPTIONS, **options)
    store.apply(Transaction().create_collection("c").write("c", "kept", 0, b"before"))
    store.checkpoint()
    return store, device


def body_of(store: Store) -> tuple[int, int]:
    """Where the ring's body lies in the image, and its size."""
    medium, block = store.journal.medium, store.superblock
    assert isinstance(medium, RingMedium)
    return block.log_start * block.block_size + 2 * medium.period, medium.capacity


def ending_of(store: Store) -> tuple[int, int]:
    """Where the entry lies that ends the log, and its size."""
    start, size = body_of(store)
    return start + (store.superblock.log_position - log.ENDING_BYTES) % size, log.ENDING_BYTES


def emptied(store: Store, device: MemoryDevice) -> bytes:
    image = bytearray(device.image())
    at, size = body_of(store)
    image[at : at + size] = bytes(size)
    return bytes(image)


def opened(image: bytes, *, read_only: bool = False) -> Store:
    return Store.open(MemoryDevice.from_bytes(image), read_only=read_only, **OPTIONS)


@pytest.mark.parametrize("wipe", MODES)
@pytest.mark.parametrize("more", [0, 1, 30])
def test_an_emptied_log_is_refused_and_repair_goes_on_with_the_checkpoint(
    wipe: Literal["off", "zero"], more: int, tmp_path: Path
) -> None:
    """It opened at the last checkpoint without a word: what had been acknowledged since was gone."""
    store, device = made(wipe=wipe)
    for number in range(more):
        store.apply(Transaction().write("c", f"since-{number}", 0, b"since"))
    image = emptied(store, device)
    for read_only in (False, True):
        with pytest.raises(CorruptionError, match=r"damaged log at position .*ended the log with.*last checkpoint.*found zeros"):
            opened(image, read_only=read_only)
    assert "log-gone" in {problem.code for problem in check(image, tmp_path)}
    mended, after = repaired(image)
    assert [line for line in lost(mended) if "since the checkpoint" in line]
    assert "log-gone" not in {problem.code for problem in check(after, tmp_path)}
    with opened(after) as again:
        assert again.list_objects("c") == [b"kept"]
        again.apply(Transaction().touch("c", "after"))
        assert check_store(again, deep=True) == []


@pytest.mark.parametrize("wipe", MODES)
@pytest.mark.parametrize("closed", [False, True])
def test_a_log_in_which_nothing_follows_opens(wipe: Literal["off", "zero"], tmp_path: Path, *, closed: bool) -> None:
    """Also where a store that wipes has removed all else from it, and over and over."""
    store, device = made(wipe=wipe)
    if closed:
        store.close()
    for _ in range(3):
        assert "log-gone" not in {problem.code for problem in check(device.image(), tmp_path)}
        store = Store.open(device := MemoryDevice.from_bytes(device.image()), wipe=wipe, **OPTIONS)
        assert store.recovery.entries == 0
        assert store.list_objects("c") == [b"kept"]
        store.checkpoint()
        if closed:
            store.close()


def test_a_log_that_was_closed_needs_no_entry() -> None:
    store, device = made()
    store.close()
    with opened(emptied(store, device)) as again:
        assert again.list_objects("c") == [b"kept"]


def test_an_entry_that_follows_needs_none_before_it(tmp_path: Path) -> None:
    store, device = made()
    store.apply(Transaction().touch("c", "since"))
    image = bytearray(device.image())
    at, size = ending_of(store)
    image[at : at + size] = bytes(size)
    assert "log-gone" not in {problem.code for problem in check(bytes(image), tmp_path)}
    assert opened(bytes(image)).list_objects("c") == [b"kept", b"since"]


def test_every_damaged_byte_of_the_entry_is_noticed(tmp_path: Path) -> None:
    store, device = made()
    at, size = ending_of(store)
    for offset in range(at, at + size):
        image = bytearray(device.image())
        image[offset] ^= 0x10
        with pytest.raises(CorruptionError, match="damaged log at position"):
            opened(bytes(image))
    assert "log-gone" in {problem.code for problem in check(bytes(image), tmp_path)}


def test_an_entry_that_does_not_read_is_refused() -> None:
    store, device = made()
    bad = Unreadable.from_bytes(device.image())
    assert isinstance(bad, Unreadable)
    bad.bad_byte, _ = ending_of(store)
    with pytest.raises(CorruptionError, match="a bad sector"):
        Store.open(bad, **OPTIONS)


def test_an_image_without_the_flag_opens_as_before(tmp_path: Path) -> None:
    store, device = made()
    old = store.superblock
    old.flags &= ~superblock.FLAG_LOG_ENDS
    superblock.write(device, old)
    image = emptied(store, device)
    assert opened(image).list_objects("c") == [b"kept"]
    assert "log-gone" not in {problem.code for problem in check(image, tmp_path)}


def test_an_unchanged_store_writes_no_second_entry_and_a_full_log_none() -> None:
    store, device = made(log_bytes=64 * 1024)
    position = store.superblock.log_position
    store.checkpoint()
    assert store.superblock.log_position == store.journal.write == position
    assert store.superblock.flags & superblock.FLAG_LOG_ENDS
    while (store.journal.free or 0) >= log.ENDING_BYTES:
        store.journal.append(log.ENDING, log.ENTRY_TRANSACTION)
    store.checkpoint()
    assert not store.superblock.flags & superblock.FLAG_LOG_ENDS
    assert opened(device.image()).list_objects("c") == [b"kept"]
    store.checkpoint()
    assert store.superblock.flags & superblock.FLAG_LOG_ENDS
    assert opened(device.image()).list_objects("c") == [b"kept"]


def test_no_checkpoint_flushes_more_for_it() -> None:
    """The entry is durable with the log that a checkpoint makes durable in any case."""
    store, device = made()
    flushes = 0

    def counted() -> None:
        nonlocal flushes
        flushes += 1

    device.flush = counted  # type: ignore[method-assign]
    store.apply(Transaction().touch("c", "o"))
    assert flushes == 1
    store.submit(Transaction().touch("c", "n"))
    store.checkpoint()
    assert flushes == 1 + 3, "the log's, the pages', the superblock's"
