"""Data streams: where an object's bytes lie. Extent records: docs/format/onode.md.

The data tree maps a logical block (u64 big-endian) to an extent record: first device block, blocks, and one CRC-32C per block.
Blocks written since the last flush of the object are in `Onode.blocks` and win over the tree; a block in neither is a hole.

Invariants
1. Records of one tree never overlap, and none is longer than `max_extent_blocks`.
2. A device block is named by one record of one object, or shared and counted (mdstore/store/shares.py).
3. Data is never written in place: a changed block goes to a fresh one, the old one to limbo.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mdstore.btree import Tree
from mdstore.errors import CorruptionError
from mdstore.store.allocator import Run

_KEY = struct.Struct(">Q")
_HEAD = struct.Struct("<QHHQ")  # first device block, blocks, flags, epoch that wrote them
FLAG_UNCHECKED = 1  # no checksums follow
_CRC_SIZE = 4
_EXTENT_BLOCKS_MAX = 123  # a record stays well under the quarter page at which values spill

assert _HEAD.size == 20


class Extent(NamedTuple):
    """`blocks` logical blocks from `logical` on lie at device block `start`; `checksums` is packed little-endian u32, or empty
    when they have none; `birth` the epoch whose checkpoint wrote them."""

    logical: int
    start: int
    blocks: int
    birth: int
    checksums: bytes

    @property
    def end(self) -> int:
        return self.logical + self.blocks

    def part(self, first: int, last: int) -> Extent:
        """The part that covers logical blocks first..last (last not included)."""
        if first == self.logical and last == self.end:
            return self
        skip = first - self.logical
        cut = self.checksums[skip * _CRC_SIZE : (last - self.logical) * _CRC_SIZE]
        return Extent(first, self.start + skip, last - first, self.birth, cut)


def max_extent_blocks(block_size: int) -> int:
    """How many blocks one record may name, so that it never spills out of its page."""
    return max(1, min(_EXTENT_BLOCKS_MAX, (block_size // 8 - _HEAD.size) // _CRC_SIZE))


def decode_extent(key: bytes, value: bytes) -> Extent:
    """The record under `key`; CorruptionError when its length and count disagree."""
    (logical,) = _KEY.unpack(key)
    if len(value) >= _HEAD.size:
        start, blocks, flags, birth = _HEAD.unpack_from(value)
        checked = 0 if flags == FLAG_UNCHECKED else blocks
        if blocks and flags <= FLAG_UNCHECKED and len(value) == _HEAD.size + checked * _CRC_SIZE:
            return Extent(logical, start, blocks, birth, value[_HEAD.size :])
    raise CorruptionError("extent record", f"logical block {logical}", "20 bytes and 4 for each block", f"{len(value)} bytes")


def overlapping(tree: Tree, first: int, last: int) -> Iterator[Extent]:
    """Extents that share a block with first..last (last not included), in order, whole."""
    before = tree.seek(_KEY.pack(first), reverse=True)
    if before is not None:
        extent = decode_extent(*before)
        if extent.logical < first < extent.end:
            yield extent
    for key, value in tree.items(_KEY.pack(first), _KEY.pack(last)):
        yield decode_extent(key, value)


def insert(tree: Tree, logical: int, runs: Sequence[Run], checksums: bytes, birth: int, limit: int) -> None:
    """Map consecutive logical blocks onto device runs of epoch `birth`. The logical range must be a hole (see `punch`)."""
    done = 0
    for start, blocks in runs:
        for skip in range(0, blocks, limit):
            count = min(limit, blocks - skip)
            part = checksums[done * _CRC_SIZE : (done + count) * _CRC_SIZE]
            put(tree, Extent(logical + done, start + skip, count, birth, part))
            done += count


def punch(tree: Tree, first: int, last: int, release: Callable[[int, int, int], None]) -> int:
    """Make logical blocks first..last (last not included) a hole and `release(start, blocks, birth)` what they lay on; returns
    how many did."""
    freed = 0
    for extent in list(overlapping(tree, first, last)):
        cut_first, cut_last = max(first, extent.logical), min(last, extent.end)
        tree.delete(_KEY.pack(extent.logical))
        if extent.logical < cut_first:
            put(tree, extent.part(extent.logical, cut_first))
        if cut_last < extent.end:
            put(tree, extent.part(cut_last, extent.end))
        release(extent.start + cut_first - extent.logical, cut_last - cut_first, extent.birth)
        freed += cut_last - cut_first
    return freed


def put(tree: Tree, extent: Extent) -> None:
    """Record one extent; its logical range must be a hole."""
    flags = 0 if extent.checksums else FLAG_UNCHECKED
    tree.put(_KEY.pack(extent.logical), _HEAD.pack(extent.start, extent.blocks, flags, extent.birth) + extent.checksums)


def verify(found: bytes, block_size: int, extent: Extent, name: str) -> None:
    """CorruptionError naming the first block of an extent whose checksum, among those `found`, is not the recorded one."""
    checksums = extent.checksums
    if found == checksums or not checksums:
        return
    for i in range(0, len(checksums), _CRC_SIZE):
        if found[i : i + _CRC_SIZE] != checksums[i : i + _CRC_SIZE]:
            block = extent.start + i // _CRC_SIZE
            where = f"{name}, logical block {extent.logical + i // _CRC_SIZE}, device block {block} (byte {block * block_size})"
            expected, actual = (int.from_bytes(raw[i : i + _CRC_SIZE], "little") for raw in (checksums, found))
            raise CorruptionError("data block", where, f"crc {expected:#010x}", f"{actual:#010x}")
