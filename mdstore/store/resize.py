"""An image grows. Crash-safe at every write: docs/format/superblock.md, "Growing".

1. The device grows (durable). Both primary superblocks are whole, and say the old size: that is the image.
2. Copies of both slots go to where the spares of the new size belong, and are flushed. The old spares are not touched.
3. A checkpoint whose superblock says the new size lists the new blocks as free: **the image is larger** once it is flushed.
   Only then may they be taken. A second checkpoint gives the other slot the new size.

A crash before 3 leaves the old image on a larger device; growing again, without a size, finishes the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError, InvalidRequest, LimitExceeded, NotAnImage, UnsupportedFormat
from mdstore.limits import IMAGE_BLOCKS_MAX
from mdstore.store import superblock
from mdstore.store.allocator import Run
from mdstore.store.operands import size

if TYPE_CHECKING:
    from mdstore.store.store import Store


def grow(store: Store, size_bytes: int | None) -> list[Run]:
    """Steps 1 and 2, by the one who holds back other checkpoints; returns the new blocks, which the next one makes known."""
    old_size = store.device.size_bytes
    target = old_size if size_bytes is None else size("size_bytes", size_bytes)
    block_size = store.superblock.block_size
    blocks = superblock.usable_blocks(target, block_size)
    if blocks > IMAGE_BLOCKS_MAX:
        raise LimitExceeded("IMAGE_BLOCKS_MAX", blocks, IMAGE_BLOCKS_MAX)
    if target < old_size or blocks < store.superblock.blocks:
        raise InvalidRequest(f"{store.device.name} has {old_size} bytes; an image grows, it does not shrink to {target}")
    if target > old_size:
        store.device.resize(target)
    store.guarded(lambda: _move_spares(store.device, old_size))
    with store.lock:
        first = store.superblock.blocks
        if blocks == first:
            return []
        store.superblock.blocks = blocks
        store.tables.pager.page_bounds = store.superblock.first_block, blocks
        store.tables.allocator.grow(first, blocks - first)
        return [(first, blocks - first)]


def hand_over(store: Store, runs: list[Run]) -> None:
    """After the checkpoint: the new blocks may be taken."""
    with store.lock:
        store.tables.allocator.hand_over(runs)
        store.wiper.want(runs)  # the old spares may hold small trees, and a block device its past


def _move_spares(device: Device, old_size: int) -> None:
    """The readable superblocks, each at the place of its spare on the device as it is now. Durable on return."""
    found: dict[int, bytes] = {}
    for slot in range(superblock.SLOTS):
        for offset in superblock.slot_offsets(old_size, slot):
            raw = device.read(offset, superblock.SLOT_SIZE)
            try:
                superblock.decode(raw, device.name)
            except (NotAnImage, UnsupportedFormat, CorruptionError):
                continue
            found.setdefault(slot, raw)
    for slot, raw in found.items():
        device.write(superblock.slot_offsets(device.size_bytes, slot)[1], [raw])
    device.flush()
