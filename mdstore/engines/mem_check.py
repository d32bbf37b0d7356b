"""Would a transaction be accepted? Answered before anything is changed, from names and revision numbers alone.

Which operations are refused depends on nothing but which collections, objects, attributes and revisions are there. So a check
keeps, beside the state, only those that the operations before it would have added or taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

from mdstore.engines.mem_state import State
from mdstore.errors import (
    AlreadyExists,
    InvalidRequest,
    LimitExceeded,
    MdstoreError,
    NotEmpty,
    NotFound,
    TransactionError,
)
from mdstore.limits import ATTRIBUTES_MAX, MOVED_OBJECTS_MAX
from mdstore.store.floors import Floors
from mdstore.store.moves import Selection
from mdstore.store.transaction import Op, Operation


def check(state: State, operations: Iterable[Operation], epoch: int | None = None) -> None:
    """Return when every operation, after those before it, would be accepted; otherwise TransactionError. Changes nothing."""
    names = _Names(state)
    for index, operation in enumerate(operations):
        try:
            if epoch is not None:
                state.floors.check(epoch, operation)
            _CHECK[operation[0]](names, *operation[1:])
        except MdstoreError as cause:
            raise TransactionError(index, Op(operation[0]).name.lower(), cause) from cause


class _Names:
    """The names that are there after the operations checked so far. Collections map to how many objects they hold and
    objects to the names of their attributes; None where the thing is not there."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._counts: dict[bytes, int | None] = {}
        self._floors: Floors | None = None
        self._attributes: dict[tuple[bytes, bytes], AbstractSet[bytes] | None] = {}
        self._created: dict[tuple[bytes, bytes], int] = {}
        self._kept: dict[tuple[bytes, bytes], set[int]] = {}
        self._rev = 0

    def count(self, collection: bytes) -> int | None:
        if collection not in self._counts:
            entry = self._state.collections.get(collection)
            self._counts[collection] = None if entry is None else len(entry.objects)
        return self._counts[collection]

    def find(self, collection: bytes, name: bytes) -> AbstractSet[bytes] | None:
        if self.count(collection) is None:
            raise NotFound("collection", collection)
        if (collection, name) in self._attributes:
            return self._attributes[collection, name]
        found = self._state.find(collection, name)
        return None if found is None else found.attributes.keys()

    def put(self, collection: bytes, name: bytes, attributes: AbstractSet[bytes] | None) -> None:
        """Note that the object is there with these attributes, or (None) is not."""
        was_there = self.find(collection, name) is not None
        change = (attributes is not None) - was_there
        if attributes is not None and not was_there:
            self._created[collection, name] = max(self._rev, *self.kept(collection, name), 0)
        self._counts[collection] = (self.count(collection) or 0) + change
        self._attributes[collection, name] = attributes

    def kept(self, collection: bytes, name: bytes) -> set[int]:
        """The numbers of the object's revisions, to look at and to change."""
        if (collection, name) not in self._kept:
            entry = self._state.collections.get(collection)
            self._kept[collection, name] = set(() if entry is None else entry.kept(name))
        return self._kept[collection, name]

    def created(self, collection: bytes, name: bytes) -> int:
        """The revision that an object which is there was created at."""
        found = self._state.find(collection, name)
        return self._created.get((collection, name), found.created_rev if found is not None else 0)

    def keep(self, collection: bytes, name: bytes) -> None:
        """The operation changes the object, which is there."""
        if self.created(collection, name) < self._rev:
            self.kept(collection, name).add(self._rev)
            self._created[collection, name] = self._rev

    # -- one method for each rule --------------------------------------------------------------------------------------

    def create_collection(self, collection: bytes) -> None:
        if self.count(collection) is not None:
            raise AlreadyExists("collection", collection)
        self._counts[collection] = 0

    def remove_collection(self, collection: bytes) -> None:
        count = self.count(collection)
        if count is None:
            raise NotFound("collection", collection)
        if count:
            raise NotEmpty(f"collection {collection!r} holds {count} objects")
        if self.names(collection):
            raise NotEmpty(f"collection {collection!r} holds revisions of objects")
        self._counts[collection] = None

    def split(self, collection: bytes, bits: int, remainder: int, to_collection: bytes) -> None:
        self.move(collection, to_collection, Selection(bits, remainder))

    def merge(self, collection: bytes, to_collection: bytes) -> None:
        self.move(collection, to_collection, Selection(0, 0))
        self._counts[collection] = None

    def move(self, collection: bytes, target: bytes, selection: Selection) -> None:
        for home in (collection, target):
            if self.count(home) is None:
                raise NotFound("collection", home)
        if collection == target:
            raise InvalidRequest(f"collection {collection!r} cannot be split or merged into itself")
        names = [name for name in self.names(collection) if selection(name)]
        moving = sum(len(self.kept(collection, name)) + (self.find(collection, name) is not None) for name in names)
        if moving > MOVED_OBJECTS_MAX:
            raise LimitExceeded("MOVED_OBJECTS_MAX", moving, MOVED_OBJECTS_MAX)
        taken = self.names(target)
        for name in names:
            if name in taken:
                raise AlreadyExists("object", name)
        for name in names:
            attributes = self.find(collection, name)
            created = self.created(collection, name) if attributes is not None else 0
            kept, self._kept[collection, name] = self.kept(collection, name), set()
            self.put(collection, name, None)
            self.put(target, name, attributes)
            self._kept[target, name], self._created[target, name] = kept, created
        if self._floors is None:
            self._floors = self._state.floors.copy()
        self._floors.carry(collection, target, selection)

    def names(self, collection: bytes) -> set[bytes]:
        """Names of the objects that are there or have a revision."""
        entry = self._state.collections.get(collection)
        known = set(entry.objects) | {name for name, _ in entry.revisions} if entry is not None else set()
        known |= {name for home, name in (*self._attributes, *self._kept) if home == collection}
        return {name for name in known if self.find(collection, name) is not None or self.kept(collection, name)}

    def makes(self, collection: bytes, name: bytes, *_: Any) -> None:
        if self.find(collection, name) is None:
            self.put(collection, name, frozenset())

    def writes(self, collection: bytes, name: bytes, *_: Any) -> None:
        self.makes(collection, name)
        self.keep(collection, name)

    def needs(self, collection: bytes, name: bytes, *_: Any) -> AbstractSet[bytes]:
        found = self.find(collection, name)
        if found is None:
            raise NotFound("object", name)
        return found

    def changes(self, collection: bytes, name: bytes, *_: Any) -> None:
        self.needs(collection, name)
        self.keep(collection, name)

    def lacks(self, collection: bytes, name: bytes) -> None:
        if self.find(collection, name) is not None:
            raise AlreadyExists("object", name)

    def create(self, collection: bytes, name: bytes) -> None:
        self.lacks(collection, name)
        self.put(collection, name, frozenset())

    def remove(self, collection: bytes, name: bytes) -> None:
        self.changes(collection, name)
        self.put(collection, name, None)

    def rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        attributes = self.needs(collection, name)
        self.lacks(to_collection, to_name)
        self.keep(collection, name)
        created = self.created(collection, name)
        self.put(collection, name, None)
        self.put(to_collection, to_name, attributes)
        self._created[to_collection, to_name] = max(created, self._created[to_collection, to_name])

    def clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        attributes = self.needs(collection, name)
        _differ(name, to_name)
        self.writes(collection, to_name)
        self.put(collection, to_name, frozenset(attributes))

    def clone_range(self, collection: bytes, name: bytes, to_name: bytes, *_: int) -> None:
        self.needs(collection, name)
        _differ(name, to_name)
        self.writes(collection, to_name)

    def setattr(self, collection: bytes, name: bytes, attribute: bytes, _: bytes) -> None:
        self.writes(collection, name)
        names = self.find(collection, name) or frozenset()
        if attribute not in names:
            if len(names) >= ATTRIBUTES_MAX:
                raise LimitExceeded("ATTRIBUTES_MAX", len(names) + 1, ATTRIBUTES_MAX)
            self.added(collection, name, names).add(attribute)

    def added(self, collection: bytes, name: bytes, names: AbstractSet[bytes]) -> set[bytes]:
        """The object's attributes as a set of its own, to change."""
        own = names if isinstance(names, set) else set(names)
        self._attributes[collection, name] = own
        return own

    def rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        attributes = self.needs(collection, name)
        if attribute not in attributes:
            raise NotFound("attribute", attribute)
        self.keep(collection, name)
        self.put(collection, name, attributes - {attribute})

    def revision(self, rev: int) -> None:
        self._rev = rev

    def remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        if rev not in self._revisions_of(collection, name):
            raise NotFound("revision", rev)
        self.kept(collection, name).discard(rev)

    def trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        self._kept[collection, name] = {kept for kept in self._revisions_of(collection, name) if kept > rev}

    def _revisions_of(self, collection: bytes, name: bytes) -> set[int]:
        if self.count(collection) is None:
            raise NotFound("collection", collection)
        return self.kept(collection, name)

    def set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        if self._floors is None:
            self._floors = self._state.floors.copy()
        self._floors.raise_to((scope, collection, name), floor)


def _differ(name: bytes, to_name: bytes) -> None:
    if name == to_name:
        raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")


_CHECK: Final[dict[Op, Callable[..., Any]]] = {
    Op.NOOP: lambda names: None,
    Op.CREATE_COLLECTION: _Names.create_collection,
    Op.REMOVE_COLLECTION: _Names.remove_collection,
    Op.SPLIT: _Names.split,
    Op.MERGE: _Names.merge,
    Op.CREATE: _Names.create,
    Op.TOUCH: _Names.makes,
    Op.WRITE: _Names.writes,
    Op.ZERO: _Names.writes,
    Op.TRUNCATE: _Names.changes,
    Op.REMOVE: _Names.remove,
    Op.SETATTR: _Names.setattr,
    Op.RMATTR: _Names.rmattr,
    Op.CLONE: _Names.clone,
    Op.CLONE_RANGE: _Names.clone_range,
    Op.RENAME: _Names.rename,
    Op.ALLOC_HINT: _Names.makes,
    Op.REVISION: _Names.revision,
    Op.REMOVE_REVISION: _Names.remove_revision,
    Op.TRIM_REVISIONS: _Names.trim_revisions,
    Op.MAP_SET: _Names.writes,
    Op.MAP_REMOVE: _Names.changes,
    Op.MAP_REMOVE_RANGE: _Names.changes,
    Op.MAP_CLEAR: _Names.changes,
    Op.MAP_SET_HEADER: _Names.writes,
    Op.SET_FLOOR: _Names.set_floor,
}
