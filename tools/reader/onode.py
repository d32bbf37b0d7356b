"""Collections, onodes and data extents: docs/format/onode.md."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mdstore.tools.reader.problems import Damage

VERSION: Final = 1
FLAG_DATA: Final = 1
FLAG_MAP: Final = 2
FLAG_HINT: Final = 4
COLLECTION_NAME_MAX: Final = 255
OBJECT_NAME_MAX: Final = 512
OBJECT_SIZE_MAX: Final = 1 << 60
HINT_UNCHECKED: Final = 1
NO_HINT: Final = (0, 0, 0)  # says what no hint says: sizes are not known, new data gets checksums
UNCHECKED: Final = -1  # in place of a checksum: no block has this one

_COLLECTION: Final = struct.Struct("<BBHQQ")
ONODE: Final = struct.Struct("<BBHQQQQ")
_LENGTH: Final = struct.Struct("<I")
_HINT: Final = struct.Struct("<QQI")
_ATTRIBUTE: Final = struct.Struct("<HI")
EXTENT: Final = struct.Struct("<QHHQ")
_NUMBER: Final = struct.Struct(">Q")
assert (_COLLECTION.size, ONODE.size, _HINT.size, EXTENT.size) == (20, 36, 20, 20)


class Collection(NamedTuple):
    """A record of the collection tree."""

    number: int
    objects: int


class Onode(NamedTuple):
    """A record of the object tree. Attributes are pairs in the order they were set."""

    size: int
    allocated: int
    created_rev: int
    group: int
    data_root: bytes | None
    map_root: bytes | None
    hint: tuple[int, int, int] | None
    attributes: tuple[tuple[bytes, bytes], ...]


class Extent(NamedTuple):
    """A run of device blocks that holds logical blocks from `logical` on; one checksum for each, or none at all."""

    logical: int
    start: int
    blocks: int
    checksums: bytes
    birth: int = 0  # the epoch that wrote it

    def checksum(self, index: int) -> int:
        """CRC-32C of block `index` of the run; UNCHECKED where the object has no checksums."""
        if not self.checksums:
            return UNCHECKED
        return int.from_bytes(self.checksums[4 * index : 4 * index + 4], "little")


def decode_collection(value: bytes) -> Collection:
    """A collection's record. Damage (`collection`)."""
    if len(value) != _COLLECTION.size:
        raise Damage("collection", "collection record length", _COLLECTION.size, len(value))
    version, reserved, reserved2, number, objects = _COLLECTION.unpack(value)
    if version != VERSION or reserved or reserved2 or not number:
        raise Damage("collection", "collection record", "version 1, reserved 0, number from 1", value[:12])
    return Collection(number, objects)


def split_object_key(key: bytes) -> tuple[int, bytes]:
    """(collection number, object name) of a key of the object tree. Damage (`onode`)."""
    if not 8 < len(key) <= 8 + OBJECT_NAME_MAX:
        raise Damage("onode", "object key length", f"9 .. {8 + OBJECT_NAME_MAX}", len(key))
    return int.from_bytes(key[:8], "big"), key[8:]


def object_key(number: int, name: bytes) -> bytes:
    """The key of an object in the object tree."""
    return _NUMBER.pack(number) + name


def decode_onode(value: bytes) -> Onode:
    """An object's record. Damage (`onode`)."""
    if len(value) < ONODE.size:
        raise Damage("onode", "onode cut short", f"at least {ONODE.size} bytes", len(value))
    version, flags, count, size, allocated, created_rev, group = ONODE.unpack_from(value)
    if version != VERSION or flags & ~7:
        raise Damage("onode", "onode version and flags", "version 1, flags below 8", f"{version}, {flags:#x}")
    if len(value) == ONODE.size and not flags and not count:
        return Onode(size, allocated, created_rev, group, None, None, None, ())
    return _decode_rest(value, flags, count, (size, allocated, created_rev, group))


def _decode_rest(value: bytes, flags: int, count: int, numbers: tuple[int, int, int, int]) -> Onode:
    """Roots, hint and attributes, which follow the fixed head."""
    at = ONODE.size
    data_root = map_root = hint = None
    if flags & FLAG_DATA:
        data_root, at = _root(value, at)
    if flags & FLAG_MAP:
        map_root, at = _root(value, at)
    if flags & FLAG_HINT:
        _need(value, at, _HINT.size)
        hint = _HINT.unpack_from(value, at)
        at += _HINT.size
    attributes = []
    for _ in range(count):
        _need(value, at, _ATTRIBUTE.size)
        name_size, value_size = _ATTRIBUTE.unpack_from(value, at)
        at += _ATTRIBUTE.size
        _need(value, at, name_size + value_size)
        attributes.append((value[at : at + name_size], value[at + name_size : at + name_size + value_size]))
        at += name_size + value_size
    if at != len(value):
        raise Damage("onode", "onode with bytes after its end", at, len(value))
    if count > 1 and len({name for name, _ in attributes}) != count:
        raise Damage("onode", "onode attribute names", f"{count} different ones", "one twice")
    return Onode(*numbers, data_root, map_root, hint, tuple(attributes))


def hint_of(hint: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """What a record's allocation hint says; NO_HINT for one that no writer could have given."""
    if hint is None or sum(hint[:2]) > OBJECT_SIZE_MAX or hint[2] & ~HINT_UNCHECKED:
        return NO_HINT
    return hint


def decode_extent(key: bytes, value: bytes) -> Extent:
    """A record of a data tree. Damage (`extent`)."""
    if len(key) != 8 or len(value) < EXTENT.size:
        raise Damage("extent", "extent record length", f"8 and at least {EXTENT.size}", f"{len(key)} and {len(value)}")
    start, blocks, flags, birth = EXTENT.unpack_from(value)
    if not blocks or flags & ~1:
        raise Damage("extent", "extent blocks and flags", "at least 1 block, flags 0 or 1", f"{blocks}, {flags:#x}")
    expected = EXTENT.size + (0 if flags else 4 * blocks)
    if len(value) != expected:
        raise Damage("extent", "extent record length", expected, len(value))
    return Extent(int.from_bytes(key, "big"), start, blocks, value[EXTENT.size :], birth)


def extent_blocks_max(block_size: int) -> int:
    """How many blocks one extent may have."""
    return max(1, min(123, (block_size // 8 - 20) // 4))


def _root(value: bytes, at: int) -> tuple[bytes, int]:
    _need(value, at, _LENGTH.size)
    length = _LENGTH.unpack_from(value, at)[0]
    at += _LENGTH.size
    _need(value, at, length)
    return value[at : at + length], at + length


def _need(value: bytes, at: int, count: int) -> None:
    if at + count > len(value):
        raise Damage("onode", "onode cut short", f"at least {at + count} bytes", len(value))
