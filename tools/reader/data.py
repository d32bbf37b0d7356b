"""The data of an object as it is once the log is replayed: what the superblock knows, and patches over it.

A patch names bytes; it does not copy what lies in the image. So the memory is that of the log's own literals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from mdstore.tools.reader.onode import Onode

TO_THE_END: Final = 1 << 62


class DataSource(Protocol):
    """Reads the data of an object as the superblock knows it, and blocks of the image."""

    def read_data(self, onode: Onode, offset: int, length: int) -> bytes:
        """Exactly `length` bytes: zeros in holes and behind the end. Damage on a checksum that differs."""

    def read_block(self, block: int, checksum: int) -> bytes:
        """One device block. Damage when its checksum differs."""

    @property
    def block_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Mapped:
    """Whole blocks written before the log entry that names them: (device block, checksum) each."""

    blocks: tuple[tuple[int, int], ...]


Source = bytes | Mapped | Onode | None  # literal, blocks, data the superblock knows, zeros


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes offset .. offset + length of the stream are those of `source` from `source_offset` on."""

    offset: int
    length: int
    source: Source
    source_offset: int = 0

    def clipped(self, start: int, stop: int, shift: int) -> Patch | None:
        """The part inside start .. stop, moved by `shift`; None when nothing is."""
        low, high = max(start, self.offset), min(stop, self.offset + self.length)
        if low >= high:
            return None
        return Patch(low + shift, high - low, self.source, self.source_offset + low - self.offset)


class DataView:
    """A data stream: its size and the patches that make it, oldest first."""

    def __init__(self, onode: Onode | None = None) -> None:
        self.size = onode.size if onode else 0
        self.patches: list[Patch] = []
        if onode is not None and onode.data_root is not None:
            self.patches.append(Patch(0, TO_THE_END, onode))

    def copy(self) -> DataView:
        """The same content; later patches of one do not show in the other."""
        twin = DataView()
        twin.size = self.size
        twin.patches = list(self.patches)
        return twin

    def put(self, offset: int, length: int, source: Source) -> None:
        """A write (or zeroing) of `length` bytes; nothing happens for none."""
        if length > 0:
            self.patches.append(Patch(offset, length, source))
            self.size = max(self.size, offset + length)

    def truncate(self, size: int) -> None:
        """Cut or extend; what is cut off never shows again."""
        if size < self.size:
            self.patches.append(Patch(size, TO_THE_END, None))
        self.size = size

    def put_range(self, source: DataView, source_offset: int, length: int, offset: int) -> None:
        """`clone_range`: up to the end of the source, holes included."""
        length = min(length, source.size - source_offset)
        if length <= 0:
            return
        self.put(offset, length, None)
        for patch in source.patches:
            piece = patch.clipped(source_offset, source_offset + length, offset - source_offset)
            if piece is not None:
                self.patches.append(piece)

    def read(self, reader: DataSource, offset: int, length: int) -> bytes:
        """Bytes of the stream: short at the end, empty past it. Damage where the image does not give them."""
        length = max(0, min(length, self.size - offset))
        buffer = bytearray(length)
        for patch in self._needed(offset, length):
            piece = patch.clipped(offset, offset + length, -offset)
            if piece is not None:
                buffer[piece.offset : piece.offset + piece.length] = _bytes_of(piece, reader)
        return bytes(buffer)

    def _needed(self, offset: int, length: int) -> list[Patch]:
        """The patches from the newest one that covers the whole window on."""
        for index in range(len(self.patches) - 1, -1, -1):
            patch = self.patches[index]
            if patch.offset <= offset and offset + length <= patch.offset + patch.length:
                return self.patches[index:]
        return self.patches


def _bytes_of(patch: Patch, reader: DataSource) -> bytes:
    source, at, length = patch.source, patch.source_offset, patch.length
    if source is None:
        return bytes(length)
    if isinstance(source, bytes):
        return source[at : at + length]
    if isinstance(source, Onode):
        return reader.read_data(source, at, length)
    size = reader.block_size
    first, last = at // size, (at + length - 1) // size
    data = b"".join(reader.read_block(*source.blocks[index]) for index in range(first, last + 1))
    return data[at - first * size : at - first * size + length]
