"""What a transaction's operations so far would have made of the store, before any of them is applied.

Invariants
1. `_shadows` has every object that an operation touched, None where it would not be there; a name in neither `_shadows` nor
   `_moved` stands as it does in the store.
2. `_moved` has objects that a split would have moved and nobody has looked at since: they are loaded only when somebody does.
3. `_revisions` has the numbers of all revisions of a name that an operation asked about, moved names included.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.errors import AlreadyExists, NotEmpty, NotFound
from mdstore.store import moves, revisions
from mdstore.store.collections import CollectionTable
from mdstore.store.moves import Selection
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import Onode, object_key, record_bound, record_need

Place = tuple[bytes, bytes]  # collection, name


class Shadow:
    """An object as the operations so far would leave it.

    `onode`: of the store, whose streams it has but for what this transaction changes; None: it has none of there.
    `attributes`: their names, None before anybody asked. `is_shared`: a clone that the transaction makes shares its data.
    `grown`, `has_data`, `has_map`: what the operations add to its record.
    """

    __slots__ = ("attributes", "created_rev", "grown", "has_data", "has_map", "is_shared", "onode")

    def __init__(self, onode: Onode | None, created_rev: int) -> None:
        self.onode = onode
        self.created_rev = created_rev
        self.attributes: set[bytes] | None = None
        self.is_shared = self.has_data = self.has_map = False
        self.grown = 0

    def names(self) -> set[bytes]:
        """The attributes' names, to look at and to change."""
        if self.attributes is None:
            self.attributes = set(self.onode.attributes) if self.onode is not None else set()
        return self.attributes


    def need(self, block_size: int) -> int:
        """Bytes of space that writing the record back may take."""
        bound = record_bound(self.onode, block_size, has_data=self.has_data, has_map=self.has_map)
        return record_need(bound + self.grown, block_size)


class Prospect:
    """The store's collections, objects and revisions with a transaction's changes over them. Changes nothing of the store."""

    def __init__(self, collections: CollectionTable, objects: ObjectTable) -> None:
        self._collections = collections
        self._objects = objects
        self._made_collections: dict[bytes, bool] = {}
        self._shadows: dict[Place, Shadow | None] = {}
        self._population: dict[bytes, int] = {}  # how many objects more than in the store
        self._revisions: dict[Place, set[int]] = {}
        self._moved: dict[Place, int] = {}  # number of the collection they are in, in the store

    # -- collections ---------------------------------------------------------------------------------------------------

    def collection(self, name: bytes) -> None:
        """NotFound when it would not be there."""
        made = self._made_collections.get(name)
        if made is False or (made is None and self._collections.get(name) is None):
            raise NotFound("collection", name)

    def create_collection(self, name: bytes) -> None:
        made = self._made_collections.get(name)
        if made or (made is None and self._collections.get(name) is not None):
            raise AlreadyExists("collection", name)
        self._made_collections[name] = True

    def remove_collection(self, name: bytes) -> None:
        """NotFound, or NotEmpty while it would hold an object or a revision."""
        self.collection(name)
        known = self._collections.get(name)
        if (known.objects if known else 0) + self._population.get(name, 0):
            raise NotEmpty(f"collection {name!r} still holds objects")
        if self._has_revisions(name):
            raise NotEmpty(f"collection {name!r} still holds revisions of objects")
        self._made_collections[name] = False

    def _number(self, collection: bytes) -> int:
        """Of the collection in the store, 0 (no collection's) when it is not there."""
        known = self._collections.get(collection)
        return known.number if known is not None else 0

    # -- objects -------------------------------------------------------------------------------------------------------

    def look(self, collection: bytes, name: bytes) -> Shadow | None:
        """The object, or None; NotFound when its collection would not be there."""
        self.collection(collection)
        key = collection, name
        if key in self._shadows:
            return self._shadows[key]
        number = self._moved.pop(key, None)
        onode = self._objects.get(self._number(collection) if number is None else number, name)
        shadow = self._shadows[key] = None if onode is None else Shadow(onode, onode.created_rev)
        return shadow

    def need(self, collection: bytes, name: bytes) -> Shadow:
        """The object, or NotFound."""
        shadow = self.look(collection, name)
        if shadow is None:
            raise NotFound("object", name)
        return shadow

    def touched(self) -> Iterator[Shadow]:
        """Every object that was looked at and would be there."""
        return (shadow for shadow in self._shadows.values() if shadow is not None)

    def put(self, collection: bytes, name: bytes, shadow: Shadow | None) -> None:
        """Note that the object, which was looked at, is there as the shadow says, or (None) is not."""
        self._count(collection, (shadow is not None) - (self._shadows[collection, name] is not None))
        self._shadows[collection, name] = shadow

    def _count(self, collection: bytes, change: int) -> None:
        self._population[collection] = self._population.get(collection, 0) + change

    # -- revisions -----------------------------------------------------------------------------------------------------

    def revisions_of(self, collection: bytes, name: bytes) -> set[int]:
        """The numbers of the object's revisions, to look at and to change."""
        key = collection, name
        found = self._revisions.get(key)
        if found is None:
            stored = revisions.numbers(self._objects, self._number(collection), name)
            found = self._revisions[key] = set(stored)
        return found

    def _has_revisions(self, collection: bytes) -> bool:
        """Whether any object of the collection, there or not, has a revision."""
        if any(found for (home, _), found in self._revisions.items() if home == collection):
            return True
        for key in revisions.keys_of_collection(self._objects, self._number(collection)):
            _, name, rev = revisions.split_revision_key(key)
            if rev in self._revisions.get((collection, name), {rev}):
                return True
        return False

    # -- moving --------------------------------------------------------------------------------------------------------

    def selected(self, collection: bytes, selection: Selection) -> tuple[set[bytes], dict[bytes, set[int]], int]:
        """What a split of the collection moves: names of objects, revisions by name, bytes of their records in the store.
        Reads every page that holds one."""
        number, names, size = self._number(collection), set(), 0
        for name, raw in moves.selected_objects(self._objects, number, selection):
            key = collection, name
            if key not in self._shadows:
                names.add(name)
            size += len(name) + len(raw)
        names |= {name for home, name in self._made() if home == collection and selection(name)}
        for _, name, raw in moves.selected_revisions(self._objects, number, selection):
            size += len(name) + len(raw)
            self.revisions_of(collection, name)
        kept = {name: found for (home, name), found in self._revisions.items() if home == collection and found}
        return names, {name: found for name, found in kept.items() if selection(name)}, size

    def _made(self) -> Iterator[Place]:
        """Objects that are where they are by this transaction, or were looked at."""
        yield from self._moved
        yield from (key for key, shadow in self._shadows.items() if shadow is not None)

    def is_taken(self, collection: bytes, name: bytes) -> bool:
        """Whether there is an object or a revision of that name. Two descents, without loading the object."""
        key = collection, name
        if key in self._shadows:
            there = self._shadows[key] is not None
        else:
            there = key in self._moved or object_key(self._number(collection), name) in self._objects.tree
        return there or bool(self.revisions_of(collection, name))

    def move(self, collection: bytes, target: bytes, names: set[bytes], revised: dict[bytes, set[int]]) -> None:
        """Move what `selected` gave, none of whose names is taken in the target."""
        for name in names:
            here, there = (collection, name), (target, name)
            shadow = self._shadows.get(here)
            self._shadows[here] = None
            if shadow is not None:
                self._shadows[there] = shadow
                continue
            self._moved[there] = self._moved.pop(here, self._number(collection))
            self._shadows.pop(there, None)
        self._count(collection, -len(names))
        self._count(target, len(names))
        for name, numbers in revised.items():
            self._revisions[target, name], self._revisions[collection, name] = numbers, set()

    def drop_emptied(self, collection: bytes) -> None:
        """The collection, of which everything was moved away, is gone."""
        self._made_collections[collection] = False
