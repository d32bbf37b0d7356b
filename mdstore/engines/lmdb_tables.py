"""What lies in an LMDB environment: sub-databases, keys and records. Page: docs/format/lmdb-store.md.

LMDB's keys end at 511 bytes; object names with their collection's number, and map keys with their object's, may be longer.
So a key is stored in two parts: its first HEAD bytes are part of LMDB's key, and where a name is at least that long, the rest
of it stands in the value, in a bucket: all records whose names begin with the same HEAD bytes, in order. Names keep their
order, nothing is hashed, and a shorter name costs nothing extra.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from mdstore.errors import CorruptionError
from mdstore.store.floors import FloorKey
from mdstore.store.revisions import MARK, ordered_name

FORMAT_VERSION: Final = 1
DATABASES: Final = (b"meta", b"collections", b"objects", b"attributes", b"maps", b"data", b"floors")
META_FORMAT: Final = b"format"  # -> U64
META_NEXT_NUMBER: Final = b"next"  # -> U64: the number the next collection or object gets
CHUNK: Final = 64 * 1024  # bytes of data under one key
KEY_MAX: Final = 511  # LMDB's, unless it was built otherwise
U64: Final = struct.Struct(">Q")  # big endian: numbers order as their bytes
HEAD: Final = KEY_MAX - U64.size
_ONODE: Final = struct.Struct("<BB6xQQQQQQ")  # version, unchecked, number, size, allocated, attributes, map keys, created rev
_BUCKET_RECORD: Final = struct.Struct("<HI")  # length of the rest of the name, length of the value

assert (U64.size, _ONODE.size, _BUCKET_RECORD.size) == (8, 56, 6)

Record = tuple[bytes, bytes]


class Onode(NamedTuple):
    """One object's record in `objects`."""

    number: int
    size: int = 0
    allocated: int = 0  # bytes of stored chunks
    attributes: int = 0
    map_keys: int = 0
    created_rev: int = 0
    unchecked: int = 0  # 1: asked for no checksums

    def encode(self) -> bytes:
        return _ONODE.pack(FORMAT_VERSION, self.unchecked, *self[:-1])

    @classmethod
    def decode(cls, raw: bytes, name: bytes) -> Onode:
        """The record under `name`; CorruptionError when it is not one."""
        if len(raw) != _ONODE.size or raw[0] != FORMAT_VERSION:
            expected = f"{_ONODE.size} bytes, version {FORMAT_VERSION}"
            raise CorruptionError("object record", repr(name), expected, f"{len(raw)} bytes: {raw[:8].hex()}")
        _, unchecked, number, size, allocated, attributes, map_keys, created_rev = _ONODE.unpack(raw)
        return cls(number, size, allocated, attributes, map_keys, created_rev, unchecked)


def encode_bucket(records: list[Record]) -> bytes:
    """(rest of the name, value) pairs, in order, as one value."""
    parts = []
    for rest, value in records:
        parts += [_BUCKET_RECORD.pack(len(rest), len(value)), rest, value]
    return b"".join(parts)


def decode_bucket(raw: bytes, head: bytes) -> list[Record]:
    """The pairs of a bucket; CorruptionError when lengths do not add up."""
    records, position = [], 0
    while position < len(raw):
        start = position + _BUCKET_RECORD.size
        name_length, value_length = _BUCKET_RECORD.unpack_from(raw, position) if start <= len(raw) else (0, len(raw))
        middle, position = start + name_length, start + name_length + value_length
        if position > len(raw):
            raise CorruptionError("bucket", repr(head), f"{position} bytes", f"{len(raw)} bytes")
        records.append((raw[start:middle], raw[middle:position]))
    return records


class Table:
    """Records of many owners in one sub-database: (owner's number, name of any length) -> value, ordered by name."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def get(self, txn: Any, owner: int, name: bytes) -> bytes | None:
        """The value, or None."""
        raw: bytes | None = txn.get(U64.pack(owner) + name[:HEAD], db=self._database)
        if raw is None or len(name) < HEAD:
            return raw
        return dict(decode_bucket(raw, name[:HEAD])).get(name[HEAD:])

    def put(self, txn: Any, owner: int, name: bytes, value: bytes) -> bool:
        """Set the value; True when the name is new."""
        key = U64.pack(owner) + name[:HEAD]
        if len(name) < HEAD:
            return self._put_new(txn, key, value)
        records = decode_bucket(txn.get(key, b"", db=self._database), name[:HEAD])
        place = bisect_left(records, (name[HEAD:],))
        new = place == len(records) or records[place][0] != name[HEAD:]
        records[place : place + (not new)] = [(name[HEAD:], value)]
        txn.put(key, encode_bucket(records), db=self._database)
        return new

    def delete(self, txn: Any, owner: int, name: bytes) -> bool:
        """True when the name was there."""
        key = U64.pack(owner) + name[:HEAD]
        if len(name) < HEAD:
            return bool(txn.delete(key, db=self._database))
        records = decode_bucket(txn.get(key, b"", db=self._database), name[:HEAD])
        left = [record for record in records if record[0] != name[HEAD:]]
        if len(left) == len(records):
            return False
        if left:
            txn.put(key, encode_bucket(left), db=self._database)
        else:
            txn.delete(key, db=self._database)
        return True

    def items(
        self, txn: Any, owner: int, start: bytes | None, stop: bytes | None, *, reverse: bool = False
    ) -> Iterator[Record]:
        """Records with start <= name < stop in order (reverse: from the end). Valid while the transaction lasts."""
        for name, value in self._backward(txn, owner, stop) if reverse else self._forward(txn, owner, start):
            if stop is not None and name >= stop:
                if not reverse:
                    return
            elif start is not None and name < start:
                if reverse:
                    return
            else:
                yield name, value

    def delete_range(self, txn: Any, owner: int, start: bytes | None, stop: bytes | None) -> int:
        """Remove what `items` would give; returns how many."""
        names = [name for name, _ in self.items(txn, owner, start, stop)]
        for name in names:
            self.delete(txn, owner, name)
        return len(names)

    def is_empty(self, txn: Any, owner: int) -> bool:
        """Whether the owner has no record."""
        return next(self.items(txn, owner, None, None), None) is None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _put_new(self, txn: Any, key: bytes, value: bytes) -> bool:
        if txn.put(key, value, overwrite=False, db=self._database):
            return True
        txn.put(key, value, db=self._database)
        return False

    def _forward(self, txn: Any, owner: int, start: bytes | None) -> Iterator[Record]:
        prefix, cursor = U64.pack(owner), txn.cursor(db=self._database)
        found = cursor.set_range(prefix + (start or b"")[:HEAD])
        while found and cursor.key()[: U64.size] == prefix:
            yield from _expand(cursor.key()[U64.size :], cursor.value())
            found = cursor.next()

    def _backward(self, txn: Any, owner: int, stop: bytes | None) -> Iterator[Record]:
        prefix, cursor = U64.pack(owner), txn.cursor(db=self._database)
        after = U64.pack(owner + 1) if stop is None else prefix + stop[:HEAD]
        found = cursor.set_range(after) or cursor.last()
        while found and cursor.key()[: U64.size] >= prefix:
            if cursor.key()[: U64.size] == prefix:
                yield from reversed(_expand(cursor.key()[U64.size :], cursor.value()))
            found = cursor.prev()


def _expand(head: bytes, raw: bytes) -> list[Record]:
    if len(head) < HEAD:
        return [(head, raw)]
    return [(head + rest, value) for rest, value in decode_bucket(raw, head)]


def revision_row(collection: int, name: bytes, rev: int) -> tuple[int, bytes]:
    """Owner and name of a revision in `objects`: apart from every collection's objects, ordered by name, then by revision."""
    return collection | MARK, ordered_name(name) + U64.pack(rev)


def encode_floor(key: FloorKey) -> tuple[int, bytes]:
    """Owner and name of a floor in `floors`: its scope; the collection with its length, then the name or prefix."""
    scope, collection, name = key
    return scope, bytes([len(collection)]) + collection + name


def decode_floor(scope: int, raw: bytes) -> FloorKey:
    """What `encode_floor` made."""
    split = 1 + raw[0]
    return scope, raw[1:split], raw[split:]


class Databases(NamedTuple):
    """The sub-databases of an open environment. `data`: object number, chunk number -> bytes, zeros after them left out."""

    meta: Any
    collections: Any
    objects: Table
    attributes: Table
    maps: Table
    data: Any
    floors: Table
