"""The store as one superblock knows it: collections, objects, data and maps, each a stream in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.onode import (
    UNCHECKED,
    Collection,
    Onode,
    decode_collection,
    decode_extent,
    decode_onode,
    extent_blocks_max,
    object_key,
    split_object_key,
)
from mdstore.tools.reader.page import COMPARE_BYTES, COMPARE_U64_BE, Shape
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.revisions import RevisionKey, decode_revision_key
from mdstore.tools.reader.superblock import (
    ROOT_COLLECTIONS,
    ROOT_DEAD,
    ROOT_FLOORS,
    ROOT_FREE,
    ROOT_GROUPS,
    ROOT_NAMES,
    ROOT_OBJECTS,
    ROOT_REFERENCES,
    ROOT_SHARED,
    ROOT_SNAPSHOTS,
    Superblock,
)
from mdstore.tools.reader.tree import PageCache, Tree

_Record = TypeVar("_Record")
COLLECTION_SHAPE: Final = Shape(-1, 20, COMPARE_BYTES)
OBJECT_SHAPE: Final = Shape(-2, -4, COMPARE_BYTES)
FREE_SHAPE: Final = Shape(8, 8, COMPARE_U64_BE)
REFERENCES_SHAPE: Final = Shape(8, 4, COMPARE_U64_BE)
SHARED_SHAPE: Final = Shape(8, 8, COMPARE_U64_BE)
GROUPS_SHAPE: Final = Shape(8, 4, COMPARE_U64_BE)
FLOORS_SHAPE: Final = Shape(-2, 8, COMPARE_BYTES)
SNAPSHOTS_SHAPE: Final = Shape(-1, -4, COMPARE_BYTES)
DEAD_SHAPE: Final = Shape(16, 16, COMPARE_BYTES)
DATA_SHAPE: Final = Shape(8, -2, COMPARE_U64_BE)
MAP_SHAPE: Final = Shape(-2, -4, COMPARE_BYTES)
_ROOT_SHAPES: Final = {
    ROOT_OBJECTS: OBJECT_SHAPE,
    ROOT_COLLECTIONS: COLLECTION_SHAPE,
    ROOT_FREE: FREE_SHAPE,
    ROOT_REFERENCES: REFERENCES_SHAPE,
    ROOT_SHARED: SHARED_SHAPE,
    ROOT_GROUPS: GROUPS_SHAPE,
    ROOT_FLOORS: FLOORS_SHAPE,
    ROOT_SNAPSHOTS: SNAPSHOTS_SHAPE,
    ROOT_DEAD: DEAD_SHAPE,
}


class StoreReader:
    """Reads of one superblock's trees. Damage is raised, or, with `on_damage`, reported there and read around."""

    def __init__(self, image: Image, superblock: Superblock, on_damage: Callable[[Damage], None] | None = None) -> None:
        self.image = image
        self.superblock = superblock
        self.block_size = superblock.block_size
        self.on_damage = on_damage
        self._cache = PageCache()

    # -- trees ---------------------------------------------------------------------------------------------------------
    def tree(self, root: bytes, shape: Shape | None) -> Tree:
        """The tree that a root record names. Damage when the record makes no sense or says another shape."""
        tree = Tree(self.image, self.block_size, root, shape, self.on_damage)
        tree.cache = self._cache
        return tree

    def root_tree(self, kind: int) -> Tree:
        """One of the superblock's own trees."""
        try:
            return self.tree(self.superblock.roots[kind], _ROOT_SHAPES.get(kind))
        except Damage as damage:
            raise damage.located(owner="superblock", tree=ROOT_NAMES[kind]) from damage

    def _root_items(self, kind: int, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        try:
            return self.root_tree(kind).items(start)
        except Damage as damage:
            if self.on_damage is None:
                raise
            self.on_damage(damage)
            return iter(())

    def root_records(self, kind: int) -> Iterator[tuple[bytes, bytes]]:
        """The records of one of the superblock's trees; none where it names no such tree."""
        return self._root_items(kind) if kind in self.superblock.roots else iter(())

    # -- streams -------------------------------------------------------------------------------------------------------
    def collections(self) -> Iterator[tuple[bytes, Collection]]:
        """Names and records of all collections."""
        for name, value in self._root_items(ROOT_COLLECTIONS):
            record = self._decoded(decode_collection, value)
            if record is not None:
                yield name, record

    def objects(self, number: int, start: bytes = b"") -> Iterator[tuple[bytes, Onode]]:
        """Names and onodes of the objects of collection `number` from name `start` on."""
        prefix = number.to_bytes(8, "big")
        for key, value in self._root_items(ROOT_OBJECTS, object_key(number, start)):
            if not key.startswith(prefix):
                return
            onode = self._decoded(decode_onode, value)
            if onode is not None:
                yield key[8:], onode

    def object_records(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, Onode]]:
        """Keys and onodes of the object tree between two keys."""
        for key, value in self._root_items(ROOT_OBJECTS, start):
            if key >= stop:
                return
            onode = self._decoded(decode_onode, value)
            if onode is not None:
                yield key, onode

    def revision_records(self, start: bytes, stop: bytes) -> Iterator[tuple[RevisionKey, Onode]]:
        """Revisions whose keys lie between two keys of the object tree, by name, oldest first."""
        for key, onode in self.object_records(start, stop):
            decoded = self._decoded(decode_revision_key, key)
            if decoded is not None:
                yield decoded, onode

    def find(self, number: int, name: bytes) -> Onode | None:
        """An object's onode, or None."""
        key = object_key(number, name)
        split_object_key(key)
        value = self.root_tree(ROOT_OBJECTS).get(key)
        return decode_onode(value) if value is not None else None

    def map_items(self, onode: Onode, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Records of an object's map from `start` on."""
        tree = self._map(onode)
        return tree.items(start) if tree is not None else iter(())

    def map_get(self, onode: Onode, key: bytes) -> bytes | None:
        """One record of an object's map."""
        tree = self._map(onode)
        return tree.get(key) if tree is not None else None

    def map_header(self, onode: Onode) -> bytes:
        """The header of an object's map: its tree's user blob."""
        tree = self._map(onode)
        return tree.root.user_blob if tree is not None else b""

    def _map(self, onode: Onode) -> Tree | None:
        """The map's tree; None where there is none, or its root record is damaged and that is reported elsewhere."""
        if onode.map_root is None:
            return None
        try:
            return self.tree(onode.map_root, MAP_SHAPE)
        except Damage as damage:
            if self.on_damage is None:
                raise
            self.on_damage(damage)
            return None

    # -- data ----------------------------------------------------------------------------------------------------------
    def read_block(self, block: int, checksum: int) -> bytes:
        """One device block, checked unless it has no checksum. Damage (`data-checksum`)."""
        at = block * self.block_size
        data = self.image.read(at, self.block_size)
        if checksum != UNCHECKED and crc32c(data) != checksum:
            raise Damage("data-checksum", "checksum of a data block", f"{checksum:08x}", f"{crc32c(data):08x}", byte=at)
        return data

    def read_data(self, onode: Onode, offset: int, length: int) -> bytes:
        """`length` bytes of an object's data: zeros in holes and behind the end. Damage."""
        buffer = bytearray(length)
        if onode.data_root is None or not length:
            return bytes(buffer)
        size = self.block_size
        end = min(offset + length, onode.size)
        first = max(
            0, offset // size - extent_blocks_max(size)
        )  # the extent that holds the offset begins at most so far before
        for key, value in self.tree(onode.data_root, DATA_SHAPE).items(first.to_bytes(8, "big")):
            extent = decode_extent(key, value)
            if extent.logical * size >= end:
                break
            for index in range(max(0, offset // size - extent.logical), extent.blocks):
                at = (extent.logical + index) * size
                if at >= end:
                    break
                low, high = max(at, offset), min(at + size, end)
                block = self.read_block(extent.start + index, extent.checksum(index))
                buffer[low - offset : high - offset] = block[low - at : high - at]
        return bytes(buffer)

    def _decoded(self, decoder: Callable[[bytes], _Record], value: bytes) -> _Record | None:
        try:
            return decoder(value)
        except Damage as damage:
            if self.on_damage is None:
                raise
            self.on_damage(damage)
            return None
