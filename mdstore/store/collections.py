"""The collection tree: name -> id and number of objects. Page: docs/format/onode.md, "Collections"."""

from __future__ import annotations

import struct

from mdstore.btree import Descriptor, Tree
from mdstore.errors import CorruptionError

_RECORD = struct.Struct("<BBHQQ")  # version, 0, 0, collection id, objects
_VERSION = 1

assert _RECORD.size == 20

EMBED_LIMIT = 256
DESCRIPTOR = Descriptor(-1, _RECORD.size, embed_limit=EMBED_LIMIT)


class Collection:
    """A named, ordered set of objects. `number` is part of its objects' keys and is never used again."""

    __slots__ = ("dirty", "name", "number", "objects")

    def __init__(self, name: bytes, number: int, objects: int = 0) -> None:
        self.name = name
        self.number = number
        self.objects = objects
        self.dirty = True

    def encode(self) -> bytes:
        return _RECORD.pack(_VERSION, 0, 0, self.number, self.objects)


def decode(name: bytes, raw: bytes) -> Collection:
    """The record under `name`; CorruptionError when it is not one."""
    version, zero1, zero2, number, objects = _RECORD.unpack(raw)
    if version != _VERSION or zero1 or zero2:
        raise CorruptionError("collection record", repr(name), f"version {_VERSION}", f"{version}, {zero1}, {zero2}")
    collection = Collection(name, number, objects)
    collection.dirty = False
    return collection


class CollectionTable:
    """All collections. Changes happen under the store's lock."""

    def __init__(self, tree: Tree, next_number: int) -> None:
        self.tree = tree
        self.next_number = next_number
        self._known: dict[bytes, Collection] = {}

    def get(self, name: bytes) -> Collection | None:
        """The collection, or None. Costs at most one descent of the tree, none when it was used before."""
        collection = self._known.get(name)
        if collection is None:
            raw = self.tree.get(name)
            if raw is None:
                return None
            collection = self._known[name] = decode(name, raw)
        return collection

    def create(self, name: bytes) -> Collection:
        collection = self._known[name] = Collection(name, self.next_number)
        self.next_number += 1
        self.tree.put(name, collection.encode())
        return collection

    def remove(self, name: bytes) -> None:
        self._known.pop(name, None)
        self.tree.delete(name)

    def names(self) -> list[bytes]:
        return list(self.tree.keys())

    def flush(self) -> None:
        """Bring the tree up to date with counts that changed."""
        for collection in self._known.values():
            if collection.dirty:
                self.tree.put(collection.name, collection.encode())
                collection.dirty = False
