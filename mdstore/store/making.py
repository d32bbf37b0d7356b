"""Making an image: where things lie on a device, and what must be gone from it before the first checkpoint."""

from __future__ import annotations

import os
import time

from journal import Journal, JournalError
from journal.ring import RingMedium
from mdstore.device.protocol import Device, lends
from mdstore.errors import InvalidRequest
from mdstore.limits import BLOCK_SIZE_MAX, IMAGE_SIZE_MIN, MIB
from mdstore.store import log, recovery, superblock
from mdstore.store.operands import number, size
from mdstore.store.superblock import Superblock

_BLOCKS_MIN = 16  # blocks after the log that an image needs to hold anything


def prepare(
    device: Device, block_size: int, log_bytes: int | None, stripe: tuple[int, int] = (0, 0)
) -> tuple[Superblock, Journal]:
    """Erase whatever image the device held, and make an empty log. Returns the superblock (of epoch 0, not on the device)
    that the first checkpoint starts from. InvalidRequest when the device is too small, TypeError where
    it has a descriptor and no `lend` of its own."""
    lends(device)  # or it is refused, before anything is written
    chosen = layout(device, block_size, log_bytes, stripe)
    ring = _ring_of(device, chosen)
    _erase_superblocks(device)
    _zero_log(device, chosen)
    journal = _create_log(ring, chosen)
    chosen.epoch = 0
    chosen.log_position = journal.write
    return chosen, journal


def _erase_superblocks(device: Device) -> None:
    """Whatever image was here cannot be taken for the new one, whichever write a crash stops: first of all, and durably."""
    zeros = bytes(superblock.SLOT_SIZE)
    for slot in range(superblock.SLOTS):
        for offset in superblock.slot_offsets(device.size_bytes, slot):
            device.write(offset, [zeros])
    device.flush()


def layout(device: Device, block_size: int, log_bytes: int | None, stripe: tuple[int, int] = (0, 0)) -> Superblock:
    """Where things lie on a device of that size. InvalidRequest when it is too small for them."""
    block_size = number("block_size", block_size, BLOCK_SIZE_MAX)
    stripe = size("stripe_bytes", stripe[0]), size("stripe_offset", stripe[1])
    superblock.check_block_size(block_size)
    superblock.check_stripe(*stripe, block_size)
    if device.size_bytes < IMAGE_SIZE_MIN:
        raise InvalidRequest(f"{device.name} has {device.size_bytes} bytes; an image needs at least {IMAGE_SIZE_MIN}")
    blocks = superblock.usable_blocks(device.size_bytes, block_size)
    wanted = log.log_size(device.size_bytes, block_size) if log_bytes is None else size("log_bytes", log_bytes)
    chosen = Superblock(
        uuid=os.urandom(16), block_size=block_size, blocks=blocks, log_start=superblock.reserved_front(block_size),
        log_blocks=-(-wanted // block_size), created_ns=time.time_ns(),
        stripe_bytes=stripe[0], stripe_offset=stripe[1],
    )  # fmt: skip
    if chosen.first_block + _BLOCKS_MIN > blocks:
        raise InvalidRequest(f"{device.name} has {blocks} blocks of {block_size} bytes: too few beside a log of {wanted} bytes; "
                             "make it larger, or its blocks or log smaller")
    return chosen


def _zero_log(device: Device, chosen: Superblock) -> None:
    """Write over the log's blocks once: a flush of blocks never written before costs more, and old entries are gone."""
    step = max(1, MIB // chosen.block_size)
    zeros = bytes(step * chosen.block_size)
    for block in range(chosen.log_start, chosen.first_block, step):
        count = min(step, chosen.first_block - block)
        device.write(block * chosen.block_size, [zeros[: count * chosen.block_size]])


def _ring_of(device: Device, chosen: Superblock) -> RingMedium:
    """Where the log goes. InvalidRequest when that is too small for one: before anything is erased."""
    try:
        ring = recovery.ring_of(device, chosen)
    except ValueError as error:
        raise _too_small(device, chosen) from error
    if log.largest_entry(ring) < log.LEAST_ENTRY:
        raise _too_small(device, chosen)
    return ring


def _too_small(device: Device, chosen: Superblock) -> InvalidRequest:
    size, least = chosen.log_blocks * chosen.block_size, recovery.least_log(chosen.block_size)
    return InvalidRequest(f"the log of {device.name} has {size} bytes: too few, it takes at least {least}")


def _create_log(ring: RingMedium, chosen: Superblock) -> Journal:
    try:
        return Journal.create(ring, log=chosen.log_identity)
    except JournalError as error:
        raise log.typed(error) from error
