"""Which objects a split or a merge of collections moves. Rules: docs/edge-rules.md, "Splitting and merging"."""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.store import revisions
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import object_key, split_key
from mdstore.store.transaction import object_hash


class Selection:
    """Objects by the low bits of their names' hash; 0 bits: all of them."""

    __slots__ = ("_mask", "_remainder")

    def __init__(self, bits: int, remainder: int) -> None:
        self._mask = (1 << bits) - 1
        self._remainder = remainder

    def __call__(self, name: bytes) -> bool:
        """Whether the object of that name moves."""
        return not self._mask or object_hash(name) & self._mask == self._remainder


def selected_objects(objects: ObjectTable, number: int, selection: Selection) -> Iterator[tuple[bytes, bytes]]:
    """(name, record) of the collection's objects that move, in order. Every page of the collection is read."""
    for key, raw in objects.tree.items(object_key(number, b""), object_key(number + 1, b"")):
        name = split_key(key)[1]
        if selection(name):
            yield name, raw


def selected_revisions(objects: ObjectTable, number: int, selection: Selection) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(key, name, record) of the revisions that move."""
    if objects.has_revisions:
        for key, raw in objects.tree.items(*revisions.collection_bounds(number)):
            name = revisions.split_revision_key(key)[1]
            if selection(name):
                yield key, name, raw
