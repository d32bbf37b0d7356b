"""The onode: an object's record in the object tree. Page: docs/format/onode.md.

On disk it is the value under the key (collection id u64 big-endian, object name); in memory it is `Onode`, which also holds what
no checkpoint has written yet: changed blocks of data, changed trees.
"""

from __future__ import annotations

import struct

from mdstore.btree import COMPARE_BYTES, COMPARE_U64_BE, Descriptor, Tree
from mdstore.errors import CorruptionError
from mdstore.store.transaction import HINT_UNCHECKED

VERSION = 1
FLAG_DATA = 1
FLAG_MAP = 2
FLAG_HINT = 4
_KNOWN_FLAGS = FLAG_DATA | FLAG_MAP | FLAG_HINT

_HEAD = struct.Struct("<BBHQQQQ")  # version, flags, attributes, size, allocated blocks, created rev, group
_ROOT = struct.Struct("<I")
_ATTR = struct.Struct("<HI")
_HINT = struct.Struct("<QQI")
_COLLECTION = struct.Struct(">Q")

assert _HEAD.size == 36

_TREE_ROOT_MAX = 96  # of a tree's root record, and the length before it, without what is embedded
_OVERFLOW_HEAD_MAX = 64  # of a page that holds a part of a spilled value
EMBED_LIMIT_DATA = 192  # one or two extents with their checksums
EMBED_LIMIT_MAP = 512


def object_key(collection_id: int, name: bytes) -> bytes:
    """The object tree's key: ordered by collection, then by the bytes of the name."""
    return _COLLECTION.pack(collection_id) + name


def split_key(key: bytes) -> tuple[int, bytes]:
    """(collection id, object name) of an object tree's key."""
    return int(_COLLECTION.unpack_from(key)[0]), key[_COLLECTION.size :]


def data_descriptor(block_size: int) -> Descriptor:
    """The tree of a data stream: logical block -> extent record (mdstore/store/extents.py)."""
    return Descriptor(8, -2, comparator=COMPARE_U64_BE, embed_limit=min(EMBED_LIMIT_DATA, block_size // 8))


def map_descriptor(block_size: int) -> Descriptor:
    """The tree of a map stream: any key -> any value; its header is the tree's user blob."""
    return Descriptor(-2, -4, comparator=COMPARE_BYTES, embed_limit=min(EMBED_LIMIT_MAP, block_size // 8))


class Onode:
    """An object in memory. `key` is its key in the object tree.

    `blocks`: logical block -> whole block content written since it was last on disk; the data tree does not know it yet.
    `dirty`: the record in the object tree is older than this. Guarded by the store's lock for changes.
    """

    __slots__ = ("allocated", "attributes", "blocks", "created_rev", "data", "dirty", "group", "hint", "key", "map",
                 "need", "size", "touched")  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.size = 0
        self.allocated = 0
        self.created_rev = 0
        self.group = 0  # of clones that share one data tree; 0: none (mdstore/store/shares.py)
        self.attributes: dict[bytes, bytes] = {}
        self.data: Tree | None = None
        self.map: Tree | None = None
        self.hint: tuple[int, int, int] | None = None
        self.blocks: dict[int, bytes | bytearray] = {}
        self.dirty = False
        self.touched = False
        self.need = 0  # bytes that ObjectTable counts for writing it back

    @property
    def is_checked(self) -> bool:
        """Whether data written from now on gets checksums."""
        return self.hint is None or not self.hint[2] & HINT_UNCHECKED

    def encode(self, data_root: bytes, map_root: bytes) -> bytes:
        """The record, given the root records of its trees (empty: no tree)."""
        flags = (FLAG_DATA if data_root else 0) | (FLAG_MAP if map_root else 0) | (FLAG_HINT if self.hint else 0)
        numbers = self.size, self.allocated, self.created_rev, self.group
        parts = [_HEAD.pack(VERSION, flags, len(self.attributes), *numbers)]
        for root in (data_root, map_root):
            if root:
                parts += [_ROOT.pack(len(root)), root]
        if self.hint:
            parts.append(_HINT.pack(*self.hint))
        for name, value in self.attributes.items():
            parts += [_ATTR.pack(len(name), len(value)), name, value]
        return b"".join(parts)


def record_bound(onode: Onode | None, block_size: int, *, has_data: bool = False, has_map: bool = False) -> int:
    """The most bytes that an object's record can have as it stands (None: an empty one's), whatever its trees become; with data
    or a map also when it has none yet."""
    bound = _HEAD.size + _HINT.size
    if has_data or (onode is not None and (onode.data is not None or onode.blocks)):
        bound += _TREE_ROOT_MAX + min(EMBED_LIMIT_DATA, block_size // 8)
    if has_map or (onode is not None and onode.map is not None):
        bound += _TREE_ROOT_MAX + min(EMBED_LIMIT_MAP, block_size // 8)
    if onode is None:
        return bound
    bound += len(onode.map.user_blob) if onode.map is not None else 0
    return bound + sum([_ATTR.size + len(name) + len(value) for name, value in onode.attributes.items()])


def record_need(record: int, block_size: int) -> int:
    """Bytes of space that a record of so many bytes may take at most: it shares half-full leaves, or has blocks of its own."""
    if record <= block_size // 4:
        return 2 * record
    return (record // (block_size - _OVERFLOW_HEAD_MAX) + 1) * block_size + 2 * _TREE_ROOT_MAX


class Record:
    """An onode record, decoded; the trees still as root records."""

    __slots__ = ("data_root", "map_root", "onode")

    def __init__(self, key: bytes, raw: bytes) -> None:
        self.onode = Onode(key)
        self.data_root = self.map_root = b""
        try:
            self._decode(raw)
        except (struct.error, _Malformed) as error:
            raise CorruptionError("onode", _where(key), "a version 1 record", error) from None

    def _decode(self, raw: bytes) -> None:
        onode = self.onode
        version, flags, attributes, *numbers = _HEAD.unpack_from(raw)
        onode.size, onode.allocated, onode.created_rev, onode.group = numbers
        if version != VERSION or flags & ~_KNOWN_FLAGS:
            raise _Malformed(f"version {version}, flags {flags:#x}")
        offset = _HEAD.size
        if flags & FLAG_DATA:
            self.data_root, offset = _sized(raw, offset)
        if flags & FLAG_MAP:
            self.map_root, offset = _sized(raw, offset)
        if flags & FLAG_HINT:
            onode.hint = _HINT.unpack_from(raw, offset)
            offset += _HINT.size
        for _ in range(attributes):
            name_length, value_length = _ATTR.unpack_from(raw, offset)
            offset += _ATTR.size
            end = offset + name_length + value_length
            onode.attributes[raw[offset : offset + name_length]] = raw[offset + name_length : end]
            offset = end
        if offset != len(raw):
            raise _Malformed(f"{len(raw)} bytes, {offset} used")


class _Malformed(ValueError):
    pass


def _sized(raw: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = _ROOT.unpack_from(raw, offset)
    offset += _ROOT.size
    if offset + length > len(raw):
        raise _Malformed(f"a root of {length} bytes at {offset} of {len(raw)}")
    return raw[offset : offset + length], offset + length


def _where(key: bytes) -> str:
    if len(key) <= _COLLECTION.size:
        return f"object key {key.hex()}"
    collection, name = split_key(key)
    return f"collection {collection}, object {name.decode('utf-8', 'backslashreplace')!r}"
