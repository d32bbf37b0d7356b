"""Everything that names certain blocks: the live state, what the log adds to it, the superblocks beside it, every snapshot.

What names a block says which checksum it must have, so two that say different things cannot both be right about it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import cast

from mdstore.tools.reader.check_store import StoreCheck
from mdstore.tools.reader.check_superblock import candidates
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.named import Named, NamedData, NamedPage
from mdstore.tools.reader.onode import Extent
from mdstore.tools.reader.overlay import mapped_blocks
from mdstore.tools.reader.problems import Damage, Findings
from mdstore.tools.reader.ring import Ring
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.snapshots import snapshots_of
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.storelog import ENTRY_TYPE, decode_transaction
from mdstore.tools.reader.superblock import ROOT_SNAPSHOTS, Superblock
from mdstore.tools.reader.tree import Tree


@dataclass(slots=True)
class Names:
    """What names the blocks that were asked for, each different statement once."""

    blocks: Container[int]
    by_block: dict[int, dict[object, Named]] = field(default_factory=dict)
    is_partial: bool = False  # something could not be read, and what it names is not known

    def note(self, block: int, named: Named) -> None:
        """One reference."""
        if block in self.blocks:
            where = (named.root.tree_id, named.level, named.generation) if isinstance(named, NamedPage) else ()
            self.by_block.setdefault(block, {})[named.key, where] = named

    def agreed(self, block: int) -> list[Named]:
        """What must hold of the block's bytes, all with one checksum; empty where nothing names it, or statements differ."""
        named = list(self.by_block.get(block, {}).values())
        return named if len({one.key for one in named}) == 1 else []


class _Naming(StoreCheck):
    """`fsck`'s walk, up to the point where it would compare."""

    def __init__(self, reader: StoreReader, names: Names) -> None:
        super().__init__(reader, Findings(lambda _: None))
        self._named = names

    @property
    def is_partial(self) -> bool:
        """Something could not be read."""
        return self._is_partial

    def _watch(self, tree: Tree, name: str) -> Tree:
        watched = super()._watch(tree, name)
        watched.on_named = self._note_page
        return watched

    def _note_page(self, addresses: tuple[int, ...], page: NamedPage) -> None:
        for address in addresses:
            self._named.note(address, page)

    def _check_extent(self, key: bytes, extent: Extent, end: int, blocks_needed: int, ordinal: int) -> None:
        super()._check_extent(key, extent, end, blocks_needed, ordinal)
        for index in range(extent.blocks):
            self._named.note(extent.start + index, NamedData(extent.checksum(index)))

    def _check_space(self) -> None:
        self._note_free_pages()


def names_of(image: Image, superblock: Superblock, blocks: Container[int]) -> Names:
    """Whatever names one of the blocks. Cost: a walk of all metadata for each superblock and each snapshot, and the log."""
    names = Names(blocks)
    beside = [one for one in candidates(image) if abs(one.epoch - superblock.epoch) == 1]
    for one in beside:  # of one that is older some may be overwritten by right
        _Naming(StoreReader(image, one), names).run()
    for one in (superblock, *_kept(image, superblock, names)):
        walk = _Naming(StoreReader(image, one), names)
        walk.run()
        names.is_partial = names.is_partial or walk.is_partial
    _note_log(image, superblock, names)
    return names


def _kept(image: Image, superblock: Superblock, names: Names) -> Iterator[Superblock]:
    """Those of snapshots. Of one that is being deleted some is free by now, and others may name it."""
    if ROOT_SNAPSHOTS not in superblock.roots:
        return

    def lost(_: Damage) -> None:
        names.is_partial = True

    for found in snapshots_of(StoreReader(image, superblock, on_damage=lost)):
        if not found.is_deleting:
            yield found.superblock


def _note_log(image: Image, superblock: Superblock, names: Names) -> None:
    """Blocks that were written beside the log, by the entries that name them."""
    try:
        ring = Ring(image, superblock)
        scan = Scan(ring, ring.read_head(lambda _: None), superblock.log_position)
        for entry in scan.entries():
            if entry.header.type != ENTRY_TYPE:
                raise Damage("log-entry", "type of a log entry", ENTRY_TYPE, entry.header.type)
            for operation in decode_transaction(entry.payload).operations:
                if operation.name == "WRITE_MAPPED":
                    runs, checksums = cast("tuple[list[list[int]], bytes]", operation.operands[3:5])
                    for block, checksum in mapped_blocks(runs, checksums):
                        names.note(block, NamedData(checksum))
    except Damage:
        names.is_partial = True
