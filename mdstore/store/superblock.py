"""The superblock: where everything else of an image hangs. Page: docs/format/superblock.md.

Invariants
1. Epoch E is written to primary slot E & 1 and, in the same flush, to the spare slot E & 1 at the end of the device.
2. A slot is only overwritten after the other one (epoch E - 1) was durable: a torn write of E leaves E - 1.
3. The image is what the newest superblock with a right checksum *and* readable roots says; the caller checks the roots.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from crc32c import crc32c

from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest, NewerFormat, NotAnImage, UnsupportedFormat
from mdstore.limits import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, IMAGE_BLOCKS_MAX

SLOT_SIZE = 4096
SLOTS = 2
MAGIC = b"MDSTORE1"
VERSION = 1
FLAG_CLEAN = 1  # written by an orderly close: the log holds nothing after log_position
FLAG_WIPED = 2  # no block that this superblock does not reach, and no part of the log, holds what a user wrote (wipe.py)
FLAG_LOG_ENDS = 4  # an entry that is always the same ends at log_position (log.py): a log without it was emptied

KNOWN_READ_ONLY = 0  # unknown compatible bits, and these where nothing is written, are kept and otherwise ignored
FEATURE_SNAPSHOTS = 1  # incompatible: blocks that this superblock does not reach are not all free (snapshot_table.py)
KNOWN_INCOMPATIBLE = FEATURE_SNAPSHOTS

_HEAD = struct.Struct("<8sII16sQQQQIIQQQQQQQQQQqqII16s")
_RUN_COUNT = struct.Struct("<H")
_RUN = struct.Struct("<QQ")
_ROOT = struct.Struct("<HH")
_CRC_FROM = 12
_RESERVED = bytes(16)
_TAIL_FROM = 192
SPARE_RUNS_MAX = 32

assert _HEAD.size == _TAIL_FROM, _HEAD.size


class Root(IntEnum):
    """Which tree a root record in the superblock belongs to. On-disk numbers."""

    OBJECTS = 1
    COLLECTIONS = 2
    FREE = 3
    PAGE_REFERENCES = 4
    SHARED_INTERVALS = 5
    CLONE_GROUPS = 6
    FLOORS = 7
    SNAPSHOTS = 8
    DEAD = 9


@dataclass(slots=True)
class Superblock:
    """One superblock, decoded. Block numbers count `block_size` bytes from the start of the device."""

    uuid: bytes
    block_size: int
    blocks: int
    log_start: int
    log_blocks: int
    epoch: int = 1
    flags: int = 0
    log_position: int = 0
    next_tree_id: int = 1
    next_collection_id: int = 1
    cursor: int = 0
    objects: int = 0
    stored_bytes: int = 0
    free_blocks: int = 0
    created_ns: int = 0
    written_ns: int = 0
    features_compatible: int = 0
    features_read_only: int = 0
    features_incompatible: int = 0
    stripe_bytes: int = 0  # of the medium below, 0: none is known
    stripe_offset: int = 0  # byte of the device at which a stripe begins
    spare_runs: list[tuple[int, int]] = field(default_factory=list)
    roots: dict[int, bytes] = field(default_factory=dict)

    @property
    def first_block(self) -> int:
        """The first block that the allocator may use."""
        return self.log_start + self.log_blocks

    @property
    def log_identity(self) -> int:
        """The identity of this image's log: what another image left in the same place is not taken for it."""
        return int.from_bytes(self.uuid[:4], "little") | 1

    def encode(self) -> bytes:
        """The slot's `SLOT_SIZE` bytes."""
        tail = [_RUN_COUNT.pack(len(self.spare_runs))]
        tail += [_RUN.pack(*run) for run in self.spare_runs]
        tail.append(_RUN_COUNT.pack(len(self.roots)))
        for kind, record in sorted(self.roots.items()):
            tail += [_ROOT.pack(kind, len(record)), record]
        head = self._pack_head(0)
        body = (head + b"".join(tail)).ljust(SLOT_SIZE, b"\0")
        assert len(body) == SLOT_SIZE, "root records are bounded, so a superblock always fits its slot"
        return self._pack_head(crc32c(memoryview(body)[_CRC_FROM:])) + body[_TAIL_FROM:]

    def _pack_head(self, checksum: int) -> bytes:
        return _HEAD.pack(
            MAGIC, checksum, VERSION, self.uuid,
            self.features_compatible, self.features_read_only, self.features_incompatible,
            self.epoch, self.block_size, self.flags, self.blocks, self.log_start, self.log_blocks, self.log_position,
            self.next_tree_id, self.next_collection_id, self.cursor, self.objects, self.stored_bytes, self.free_blocks,
            self.created_ns, self.written_ns, self.stripe_bytes, self.stripe_offset, _RESERVED,
        )  # fmt: skip


def decode(raw: bytes, where: str) -> Superblock:
    """The superblock in `raw`. NotAnImage without the magic, CorruptionError for a wrong checksum; with a right one
    NewerFormat for another version or an unknown incompatible feature, CorruptionError for anything else that is wrong."""
    if len(raw) < SLOT_SIZE or raw[:8] != MAGIC:
        raise NotAnImage(f"{where} holds no mdstore superblock")
    (
        _, checksum, version, uuid, compatible, read_only, incompatible, epoch, block_size, flags, blocks, log_start,
        log_blocks, log_position, next_tree_id, next_collection_id, cursor, objects, stored_bytes, free_blocks,
        created_ns, written_ns, stripe_bytes, stripe_offset, reserved,
    ) = _HEAD.unpack_from(raw)  # fmt: skip
    found = crc32c(memoryview(raw)[_CRC_FROM:SLOT_SIZE])
    if found != checksum:
        raise CorruptionError("superblock", where, f"crc {checksum:#010x}", f"{found:#010x}")
    if version != VERSION:
        raise NewerFormat(f"{where}: format version {version}; this mdstore reads version {VERSION}", None)
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise NewerFormat(f"{where}: unknown incompatible features {incompatible & ~KNOWN_INCOMPATIBLE:#x}", epoch)
    if reserved != _RESERVED:
        raise CorruptionError("superblock", where, "zeros in the reserved bytes", reserved.hex())
    spare_runs, roots = _decode_tail(raw, where)
    superblock = Superblock(
        uuid=uuid, block_size=block_size, blocks=blocks, log_start=log_start, log_blocks=log_blocks, epoch=epoch,
        flags=flags, log_position=log_position, next_tree_id=next_tree_id, next_collection_id=next_collection_id,
        cursor=cursor, objects=objects, stored_bytes=stored_bytes, free_blocks=free_blocks, created_ns=created_ns,
        written_ns=written_ns, features_compatible=compatible, features_read_only=read_only,
        features_incompatible=incompatible, stripe_bytes=stripe_bytes, stripe_offset=stripe_offset,
        spare_runs=spare_runs, roots=roots,
    )  # fmt: skip
    _check_fields(superblock, where)
    return superblock


def _decode_tail(raw: bytes, where: str) -> tuple[list[tuple[int, int]], dict[int, bytes]]:
    try:
        offset = _TAIL_FROM
        (count,) = _RUN_COUNT.unpack_from(raw, offset)
        offset += _RUN_COUNT.size
        runs = [_RUN.unpack_from(raw, offset + i * _RUN.size) for i in range(count)]
        offset += count * _RUN.size
        (count,) = _RUN_COUNT.unpack_from(raw, offset)
        offset += _RUN_COUNT.size
        roots = {}
        for _ in range(count):
            kind, length = _ROOT.unpack_from(raw, offset)
            offset += _ROOT.size
            roots[kind] = raw[offset : offset + length]
            offset += length
    except struct.error as error:
        raise CorruptionError("superblock", where, "spare runs and roots inside the slot", str(error)) from None
    if offset > SLOT_SIZE or any(raw[offset:SLOT_SIZE]):
        raise CorruptionError("superblock", where, "zeros after the last root", f"{offset} bytes used")
    return runs, roots


def _check_fields(superblock: Superblock, where: str) -> None:
    size, front = superblock.block_size, reserved_front(superblock.block_size)
    rules = (
        (BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX and size & (size - 1) == 0, "block_size", size),
        (0 < superblock.blocks <= IMAGE_BLOCKS_MAX, "blocks", superblock.blocks),
        (superblock.log_start >= front, "log_start", superblock.log_start),
        (superblock.first_block < superblock.blocks, "log_blocks", superblock.log_blocks),
        (superblock.epoch > 0, "epoch", superblock.epoch),
        (superblock.stripe_bytes % size == 0, "stripe_bytes", superblock.stripe_bytes),
        (_is_stripe_offset(superblock.stripe_offset, superblock.stripe_bytes, size), "stripe_offset", superblock.stripe_offset),
    )
    for holds, name, value in rules:
        if not holds:
            raise CorruptionError("superblock", where, f"a possible {name}", value)


def _is_stripe_offset(offset: int, stripe_bytes: int, block_size: int) -> bool:
    return offset % block_size == 0 and (offset < stripe_bytes or not offset)


def check_stripe(stripe_bytes: int, stripe_offset: int, block_size: int) -> None:
    """InvalidRequest unless stripes are whole blocks, below 4 GiB, and begin at a block inside the first of them."""
    if not 0 <= stripe_bytes < 1 << 32 or stripe_bytes % block_size:
        raise InvalidRequest(f"stripes of {stripe_bytes} bytes: a multiple of {block_size}, a block, below 4 GiB is needed")
    if stripe_offset < 0 or not _is_stripe_offset(stripe_offset, stripe_bytes, block_size):
        raise InvalidRequest(f"stripe offset {stripe_offset}: whole blocks of {block_size}, below {stripe_bytes}, are needed")


def reserved_front(block_size: int) -> int:
    """Blocks at the start of the device that hold the two primary slots."""
    return -(-SLOTS * SLOT_SIZE // block_size)


def usable_blocks(size_bytes: int, block_size: int) -> int:
    """Blocks of a device of that size that lie before its spare slots."""
    return max(0, (size_bytes // SLOT_SIZE - SLOTS) * SLOT_SIZE // block_size)


def slot_offsets(size_bytes: int, slot: int) -> tuple[int, int]:
    """Byte offsets of a slot's primary and spare copy on a device of that size."""
    return slot * SLOT_SIZE, (size_bytes // SLOT_SIZE - SLOTS + slot) * SLOT_SIZE


def write(device: Device, superblock: Superblock) -> None:
    """Write the superblock to its primary and spare slot. Durable only after the caller's flush."""
    raw = superblock.encode()
    for offset in slot_offsets(device.size_bytes, superblock.epoch % SLOTS):
        device.write(offset, [raw])


def candidates(device: Device) -> Iterator[tuple[Superblock | None, str, Exception | None]]:
    """Every slot's superblock or the reason why it is none, as (superblock, where, error), in slot order."""
    for slot in range(SLOTS):
        for kind, offset in zip(("primary", "spare"), slot_offsets(device.size_bytes, slot)):
            where = f"{device.name}, {kind} superblock {slot} (byte {offset})"
            try:
                yield decode(device.read(offset, SLOT_SIZE), where), where, None
            except (NotAnImage, UnsupportedFormat, CorruptionError, DeviceFailed) as error:
                yield None, where, error


def read_all(device: Device) -> tuple[list[tuple[Superblock, str]], list[str]]:
    """Readable superblocks, newest first, and what is wrong with the others, in words.

    NotAnImage when no slot ever held one; NewerFormat when one of another version, or a newest one with unknown features, is
    there, whatever the others are; CorruptionError when all are damaged.
    """
    if device.size_bytes < 2 * SLOTS * SLOT_SIZE:
        raise NotAnImage(f"{device.name} is {device.size_bytes} bytes long: too small for an mdstore image")
    good: list[tuple[Superblock, str]] = []
    bad: list[Exception] = []
    for superblock, where, error in candidates(device):
        if superblock is not None:
            good.append((superblock, where))
        elif error is not None:
            bad.append(error)
    good.sort(key=lambda pair: -pair[0].epoch)  # stable: a primary comes before its spare
    for error in bad:
        if isinstance(error, NewerFormat) and (error.epoch is None or not good or error.epoch >= good[0][0].epoch):
            raise error
    if not good:
        raise _worst(bad, device)
    return good, [str(error) for error in bad]


def _worst(errors: list[Exception], device: Device) -> Exception:
    for kind in (CorruptionError, DeviceFailed):
        for error in errors:
            if isinstance(error, kind):
                return error
    return NotAnImage(f"{device.name} is not an mdstore image (no superblock in any of its four places); see `mdstore mkfs`")


def check_writable(superblock: Superblock, device: Device) -> None:
    """UnsupportedFormat when features that only a newer version may change are in the image."""
    unknown = superblock.features_read_only & ~KNOWN_READ_ONLY
    if unknown:
        raise UnsupportedFormat(
            f"{device.name} has features {unknown:#x}, which this mdstore can read but must not change: "
            f"open or mount it read-only (-o ro), or use the version that made it"
        )


def check_device_size(device: Device, superblock: Superblock, *, read_only: bool) -> None:
    """A device shorter than its image says is a truncated image: CorruptionError names both sizes.

    One that has every block and not all of the spare slots behind them may be read, not written: the next checkpoint would put
    the spare copies where the end of the device is now, which is over the last blocks."""
    end = superblock.blocks * superblock.block_size
    needed = end if read_only else -(-end // SLOT_SIZE) * SLOT_SIZE + SLOTS * SLOT_SIZE
    if device.size_bytes < needed:
        raise CorruptionError("image", device.name, f"at least {needed} bytes", f"{device.size_bytes} bytes (truncated)")


def check_block_size(block_size: int) -> None:
    """InvalidRequest unless `block_size` is a power of two within the limits."""
    if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
        raise InvalidRequest(f"block size {block_size}: a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} is needed")
