"""The extents of one object, set right: those that make no sense go, those that overlap are cut, those that point to another
object's blocks are looked for among the blocks that nobody holds. docs/format/onode.md.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from mdstore.tools.reader.check_space import DATA, split_owner
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.onode import Extent, Onode, decode_extent, extent_blocks_max
from mdstore.tools.reader.page import Record
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_SHARED
from mdstore.tools.reader.tree import Tree
from mdstore.tools.repair import encode
from mdstore.tools.repair.build import Run
from mdstore.tools.repair.counts import free_records
from mdstore.tools.repair.usage import Usage, gaps, merged


@dataclass(slots=True)
class MendedExtents:
    """What became of an object's extents."""

    records: list[Record] = field(default_factory=list)
    allocated: int = 0
    is_changed: bool = False
    details: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class ExtentMender:
    """Judges extents against what the whole store uses."""

    def __init__(self, reader: StoreReader, usage: Usage, others: list[Run], *, drops_damaged: bool) -> None:
        """`others`: what snapshots hold besides. drops_damaged: blocks that do not match their checksum become holes."""
        self._drops_damaged = drops_damaged
        self._reader = reader
        superblock = reader.superblock
        self._space = (superblock.first_block, superblock.blocks)
        self._size = superblock.block_size
        self._max = extent_blocks_max(superblock.block_size)
        self._contested = _contested(reader, usage)
        self._pages = _page_runs(usage)
        held = list(merged(sorted([*usage.used(), *usage.derived, *free_records(reader), *superblock.spare_runs, *others])))
        self._unclaimed = list(gaps(held, *self._space))
        self._by_checksum: dict[int, list[int]] | None = None

    def mend(self, name: str, onode: Onode, tree: Tree) -> MendedExtents:
        """The extents of one object as they should be."""
        made = MendedExtents()
        end, needed = 0, -(-onode.size // self._size)
        for key, value in tree.items():
            records = self._one(name, key, value, end, needed, made)
            if records != [(key, value)]:
                made.is_changed = True
            for record in records:
                extent = decode_extent(*record)  # type: ignore[arg-type]
                made.records.append(record)
                made.allocated += extent.blocks
                end = max(end, extent.logical + extent.blocks)
        return made

    def _one(self, name: str, key: bytes, value: bytes, end: int, needed: int, made: MendedExtents) -> list[Record]:
        try:
            extent = decode_extent(key, value)
        except Damage as damage:
            made.lost.append(f"{name}: an extent that cannot be read ({damage.sentence})")
            return []
        low, high = max(extent.logical, end), min(extent.logical + extent.blocks, needed)
        if low >= high:
            made.details.append(f"{name}: the extent at logical block {extent.logical} goes: behind the end, or held by another")
            return []
        if (low, high) != (extent.logical, extent.logical + extent.blocks):
            made.details.append(f"{name}: the extent at logical block {extent.logical} is cut to {low} .. {high - 1}")
        piece = encode.extent_piece(value, low - extent.logical, high - low)
        return self._placed(name, Extent(low, extent.start + low - extent.logical, high - low, piece[20:]), piece, made)

    def _placed(self, name: str, extent: Extent, value: bytes, made: MendedExtents) -> list[Record]:
        """The extent where its blocks really are."""
        start, blocks = extent.start, extent.blocks
        is_outside = start < self._space[0] or start + blocks > self._space[1]
        is_contested = _touches(self._contested, start, blocks) or _touches(self._pages, start, blocks)
        if is_outside or (is_contested and not self._matches(extent, start)):
            found = self._search(extent)
            if found is not None:
                made.details.append(f"{name}: logical block {extent.logical} is found at block {found}, not {start}")
                value = found.to_bytes(8, "little") + value[8:]
            elif is_outside or _touches(self._pages, start, blocks):
                made.lost.append(f"{name}: {blocks} blocks of data from byte {extent.logical * self._size} on")
                return []
        return self._split(name, extent.logical, value, blocks, made)

    def _split(self, name: str, logical: int, value: bytes, blocks: int, made: MendedExtents) -> list[Record]:
        """As many records as it takes: none is longer than allowed, and none has damaged blocks when those are dropped."""
        stretches = [(0, blocks)]
        if self._drops_damaged:
            stretches = self._good(name, decode_extent(logical.to_bytes(8, "big"), value), made)
        return [
            ((logical + at).to_bytes(8, "big"), encode.extent_piece(value, at, min(self._max, stop - at)))
            for start, stop in stretches
            for at in range(start, stop, self._max)
        ]

    def _good(self, name: str, extent: Extent, made: MendedExtents) -> list[tuple[int, int]]:
        """(first, behind the last) of the stretches of blocks that match their checksums."""
        found: list[tuple[int, int]] = []
        for index in range(extent.blocks):
            try:
                self._reader.read_block(extent.start + index, extent.checksum(index))
            except Damage:
                at = (extent.logical + index) * self._size
                made.lost.append(f"{name}: bytes {at} .. {at + self._size - 1} become zeros")
                continue
            if found and found[-1][1] == index:
                found[-1] = found[-1][0], index + 1
            else:
                found.append((index, index + 1))
        return found

    # -- looking for blocks --------------------------------------------------------------------------------------------
    def _matches(self, extent: Extent, start: int) -> bool:
        """Whether the blocks from `start` on have the extent's checksums."""
        try:
            data = self._reader.image.read(start * self._size, extent.blocks * self._size)
        except Damage:
            return False
        return all(
            crc32c(data[index * self._size : (index + 1) * self._size]) == extent.checksum(index)
            for index in range(extent.blocks)
        )

    def _search(self, extent: Extent) -> int | None:
        """Where among the unclaimed blocks the extent's data lies, if there is exactly one such place."""
        if self._by_checksum is None:
            self._by_checksum = {}
            for start, blocks in self._unclaimed:
                for block in range(start, start + blocks):
                    crc = crc32c(self._reader.image.read(block * self._size, self._size))
                    self._by_checksum.setdefault(crc, []).append(block)
        places = self._by_checksum.get(extent.checksum(0), [])
        found = [place for place in places if place + extent.blocks <= self._space[1] and self._matches(extent, place)]
        return found[0] if len(found) == 1 else None


def _contested(reader: StoreReader, usage: Usage) -> list[Run]:
    """Stretches that several objects hold and the tree of shared intervals does not say so: one of them is wrong."""
    claimed: set[tuple[int, int, int]] = set()
    try:
        tree = reader.root_tree(ROOT_SHARED)
        tree.on_damage = lambda _: None
        for key, value in tree.items():
            blocks, extra = int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")
            claimed.add((int.from_bytes(key, "big"), blocks, extra))
    except (Damage, KeyError):
        return []
    return [(start, blocks) for start, blocks, extra in usage.shared_data() if (start, blocks, extra) not in claimed]


def _page_runs(usage: Usage) -> list[Run]:
    """Pages of trees: no data lies there."""
    pages = [(start, blocks) for start, blocks, code in usage.runs if split_owner(code)[0] != DATA]
    return list(merged(sorted(pages + usage.derived)))


def _touches(runs: list[Run], start: int, blocks: int) -> bool:
    index = bisect_right(runs, (start, 1 << 62)) - 1
    if index >= 0 and sum(runs[index]) > start:
        return True
    return index + 1 < len(runs) and runs[index + 1][0] < start + blocks
