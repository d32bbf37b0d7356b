"""What a reference says of the block that it names: enough to tell whether bytes are that block. docs/format/page.md."""

from __future__ import annotations

from typing import Final, NamedTuple

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.onode import UNCHECKED
from mdstore.tools.reader.page import DATED_OVERFLOW_INDEX, OVERFLOW_INDEX, Reference, Root, decode_page, verify
from mdstore.tools.reader.problems import Damage

Key = tuple[bool, int]  # whether the block is a page that carries its checksum, which is of the rest of it; the checksum


class NamedPage(NamedTuple):
    """A page of a tree, or (`overflow`) of a spilled value, where those of level 0 are bytes and nothing else."""

    root: Root
    level: int
    crc: int
    generation: int
    overflow: bool = False
    is_dated: bool = False  # of a spilled value

    @property
    def key(self) -> Key:
        """What the block must match."""
        return not self.overflow or self.level > 0, self.crc

    def accepts(self, data: bytes) -> bool:
        """Whether these bytes are that page: its checksum, tree, generation and level, and all of its records."""
        if not self.key[0]:
            return crc32c(data) == self.crc
        if crc32c(data[4:]) != self.crc or int.from_bytes(data[:4], "little") != self.crc:
            return False
        try:
            if not self.overflow:
                verify(data, Reference((), self.crc, self.generation, 0), self.root, self.level)
                return True
            page = decode_page(data, self.root)
        except Damage:
            return False
        kind = DATED_OVERFLOW_INDEX if self.is_dated else OVERFLOW_INDEX
        found = (page.kind, page.tree_id, page.level, page.generation)
        return found == (kind, self.root.tree_id, self.level, self.generation)


class NamedData(NamedTuple):
    """A block of an object's data: nothing but its checksum tells what it should be."""

    crc: int

    @property
    def key(self) -> Key:
        """What the block must match."""
        return False, self.crc

    def accepts(self, data: bytes) -> bool:
        """Whether the checksum is theirs; never where there is none."""
        return self.crc != UNCHECKED and crc32c(data) == self.crc


Named = NamedPage | NamedData
RAW: Final = False
PAGE: Final = True


def keys_of(data: bytes) -> list[Key]:
    """By what a block of these bytes could be named."""
    crc = crc32c(data[4:])
    is_page = int.from_bytes(data[:4], "little") == crc
    return [(PAGE, crc), (RAW, crc32c(data))] if is_page else [(RAW, crc32c(data))]
