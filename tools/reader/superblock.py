"""The superblock: docs/format/superblock.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from mdstore.errors import CorruptionError, NewerFormat, NotAnImage
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage

SIZE: Final = 4096
MAGIC: Final = b"MDSTORE1"
VERSION: Final = 1
FLAG_CLEAN: Final = 1
FLAG_WIPED: Final = 2
FLAG_LOG_ENDS: Final = 4
SPARES_MAX: Final = 32
ROOT_OBJECTS: Final = 1
ROOT_COLLECTIONS: Final = 2
ROOT_FREE: Final = 3
ROOT_REFERENCES: Final = 4
ROOT_SHARED: Final = 5
ROOT_GROUPS: Final = 6
ROOT_FLOORS: Final = 7
ROOT_SNAPSHOTS: Final = 8
ROOT_DEAD: Final = 9
FEATURE_SNAPSHOTS: Final = 1
ROOT_NAMES: Final = {
    1: "objects", 2: "collections", 3: "free", 4: "references", 5: "shared", 6: "groups", 7: "floors", 8: "snapshots", 9: "dead",
}  # fmt: skip

SUPERBLOCK_HEAD: Final = struct.Struct("<8sII16sQQQQIIQQQQQQQQQQqqII16sH")
RUN: Final = struct.Struct("<QQ")
ROOT_ENTRY: Final = struct.Struct("<HH")
assert SUPERBLOCK_HEAD.size == 194


@dataclass(frozen=True, slots=True)
class Superblock:
    """A superblock whose checksum and fields are right. Field names are those of the page."""

    version: int
    uuid: bytes
    features_compatible: int
    features_read_only: int
    features_incompatible: int
    epoch: int
    block_size: int
    flags: int
    blocks: int
    log_start: int
    log_blocks: int
    log_position: int
    next_tree_id: int
    next_collection_id: int
    cursor: int
    objects: int
    stored_bytes: int
    free_blocks: int
    created_ns: int
    written_ns: int
    stripe_bytes: int
    stripe_offset: int
    spare_runs: tuple[tuple[int, int], ...]
    roots: dict[int, bytes]

    @property
    def first_block(self) -> int:
        """The first block of the allocator's space: the one after the log."""
        return self.log_start + self.log_blocks

    def ends_in(self, size_bytes: int) -> bool:
        """Whether an image of that size has all the blocks."""
        return self.blocks * self.block_size <= size_bytes

    @property
    def is_clean(self) -> bool:
        """Written by an orderly close."""
        return bool(self.flags & FLAG_CLEAN)

    @property
    def ends_log(self) -> bool:
        """An entry of its own ends at `log_position`."""
        return bool(self.flags & FLAG_LOG_ENDS)


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the four copies: where it lies, and either what it says or what is wrong with it."""

    slot: int
    is_spare: bool
    offset: int
    superblock: Superblock | None
    error: CorruptionError | NotAnImage | NewerFormat | None

    @property
    def name(self) -> str:
        return f"superblock copy {'spare' if self.is_spare else 'primary'} {self.slot}"


def decode(data: bytes, offset: int = 0) -> Superblock:
    """A superblock from its 4,096 bytes. NotAnImage (no magic), NewerFormat, Damage (`superblock`)."""
    if len(data) != SIZE:
        raise Damage("superblock", "superblock of another length", SIZE, len(data), byte=offset)
    fields = SUPERBLOCK_HEAD.unpack_from(data)
    magic, crc, version = fields[:3]
    if magic != MAGIC:
        raise NotAnImage(f"no superblock at byte {offset}: it begins with {magic!r}")
    if crc32c(data[12:]) != crc:
        raise Damage("superblock", "superblock checksum", f"{crc:08x}", f"{crc32c(data[12:]):08x}", byte=offset)
    if version != VERSION:
        raise NewerFormat(f"superblock version {version}; this mdstore reads version {VERSION}", None)
    if fields[6] & ~FEATURE_SNAPSHOTS:
        raise NewerFormat(
            f"superblock with unknown incompatible features {fields[6] & ~FEATURE_SNAPSHOTS:#x}", fields[7]
        )
    return _checked(fields, data, offset)


def decode_or_none(data: bytes) -> Superblock | None:
    """A superblock, or None for anything else."""
    try:
        return decode(data)
    except (CorruptionError, NotAnImage, NewerFormat):
        return None


def read_copies(image: Image) -> list[Copy]:
    """All four copies, whatever their state, in the order primary 0, primary 1, spare 0, spare 1."""
    end = image.size // SIZE * SIZE
    places = [(0, False, 0), (1, False, SIZE), (0, True, end - 2 * SIZE), (1, True, end - SIZE)]
    return [_read_copy(image, *place) for place in places]


def usable(copies: list[Copy]) -> list[Superblock]:
    """The superblocks that can be believed, newest first, each epoch once. NewerFormat when the newest is another mdstore's."""
    by_epoch = {copy.superblock.epoch: copy.superblock for copy in copies if copy.superblock is not None}
    newest = max(by_epoch, default=0)
    for copy in copies:
        if isinstance(copy.error, NewerFormat) and (copy.error.epoch is None or copy.error.epoch >= newest):
            raise copy.error
    return [by_epoch[epoch] for epoch in sorted(by_epoch, reverse=True)]


def unknown_features(superblock: Superblock) -> str:
    """What of the image only a newer mdstore knows, in words; empty where there is nothing."""
    unknown = {"compatible": superblock.features_compatible, "read-only": superblock.features_read_only}
    return ", ".join(f"unknown {kind} features {bits:#x}" for kind, bits in unknown.items() if bits)


def _read_copy(image: Image, slot: int, is_spare: bool, offset: int) -> Copy:
    try:
        superblock = decode(image.read(offset, SIZE), offset)
        if superblock.epoch % 2 != slot:
            raise Damage("superblock", "superblock in the wrong slot", superblock.epoch % 2, slot, byte=offset)
        return Copy(slot, is_spare, offset, superblock, None)
    except (CorruptionError, NotAnImage, NewerFormat) as error:
        return Copy(slot, is_spare, offset, None, error)


def _checked(fields: tuple[Any, ...], data: bytes, offset: int) -> Superblock:
    """The rest of the fields, once magic, checksum and version are right."""
    reserved, spare_count = fields[24], fields[25]
    if reserved != bytes(16):
        raise Damage("superblock", "superblock reserved bytes", "zeros", reserved, byte=offset + 176)
    spare_runs, at = _spare_runs(data, spare_count, offset)
    roots, at = _roots(data, at, offset)
    if data[at:] != bytes(SIZE - at):
        raise Damage("superblock", "superblock tail", "zeros", "other bytes", byte=offset + at)
    if bool(roots.keys() & {ROOT_SNAPSHOTS, ROOT_DEAD}) and not fields[6] & FEATURE_SNAPSHOTS:
        raise Damage("superblock", "superblock incompatible features", FEATURE_SNAPSHOTS, fields[6], byte=offset + 48)
    superblock = Superblock(*(VERSION, *fields[3:24], spare_runs, roots))
    _check_geometry(superblock, offset)
    return superblock


def _spare_runs(data: bytes, count: int, offset: int) -> tuple[tuple[tuple[int, int], ...], int]:
    if count > SPARES_MAX:
        raise Damage("superblock", "superblock spare runs", f"at most {SPARES_MAX}", count, byte=offset + 192)
    end = SUPERBLOCK_HEAD.size + count * RUN.size
    return tuple((run[0], run[1]) for run in RUN.iter_unpack(data[SUPERBLOCK_HEAD.size : end])), end


def _roots(data: bytes, at: int, offset: int) -> tuple[dict[int, bytes], int]:
    count = int.from_bytes(data[at : at + 2], "little")
    at += 2
    roots: dict[int, bytes] = {}
    for _ in range(count):
        if at + ROOT_ENTRY.size > SIZE:
            raise Damage("superblock", "superblock roots", f"{count} roots", f"{len(roots)} fit", byte=offset + at)
        kind, length = ROOT_ENTRY.unpack_from(data, at)
        at += ROOT_ENTRY.size
        if at + length > SIZE:
            raise Damage("superblock", "superblock root record", f"at most {SIZE - at} bytes", length, byte=offset + at)
        if kind not in ROOT_NAMES or (roots and kind <= max(roots)):
            raise Damage("superblock", "superblock root kind", "known kinds, ascending", kind, byte=offset + at)
        roots[kind] = data[at : at + length]
        at += length
    if missing := {ROOT_OBJECTS, ROOT_COLLECTIONS, ROOT_FREE} - roots.keys():
        raise Damage(
            "superblock", "superblock roots", "objects, collections and free", f"none of {missing}", byte=offset
        )
    return roots, at


def _check_geometry(superblock: Superblock, offset: int) -> None:
    """Fields that the checksum vouches for and that still make no sense."""
    size = superblock.block_size
    rules = (
        ("block_size", 256 <= size <= 65536 and size & (size - 1) == 0, size),
        ("epoch", superblock.epoch >= 1, superblock.epoch),
        ("flags", superblock.flags & ~(FLAG_CLEAN | FLAG_WIPED | FLAG_LOG_ENDS) == 0, superblock.flags),
        ("log_start", superblock.log_start * size >= 2 * SIZE, superblock.log_start),
        ("log_blocks", superblock.first_block <= superblock.blocks, superblock.log_blocks),
        ("stripe_bytes", superblock.stripe_bytes % size == 0, superblock.stripe_bytes),
        ("stripe_offset", superblock.stripe_offset % size == 0, superblock.stripe_offset),
        ("stripe_offset", superblock.stripe_offset < max(1, superblock.stripe_bytes), superblock.stripe_offset),
        ("free_blocks", superblock.free_blocks <= superblock.blocks, superblock.free_blocks),
    )
    for name, holds, value in rules:
        if not holds:
            raise Damage("superblock", f"superblock field {name}", "a possible value", value, byte=offset)
