"""Would a transaction be accepted? Answered before anything is changed, from names alone.

Which operations are refused depends on nothing but which collections, objects and attributes are there. So a check keeps,
beside the state, only the names that the operations before it would have added or taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

from mdstore.engines.mem_state import State
from mdstore.errors import AlreadyExists, InvalidRequest, MdstoreError, NotEmpty, NotFound, TransactionError
from mdstore.store.floors import Floors
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
        change = (attributes is not None) - (self.find(collection, name) is not None)
        self._counts[collection] = (self.count(collection) or 0) + change
        self._attributes[collection, name] = attributes

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
        self._counts[collection] = None

    def makes(self, collection: bytes, name: bytes, *_: Any) -> None:
        if self.find(collection, name) is None:
            self.put(collection, name, frozenset())

    def needs(self, collection: bytes, name: bytes, *_: Any) -> AbstractSet[bytes]:
        found = self.find(collection, name)
        if found is None:
            raise NotFound("object", name)
        return found

    def lacks(self, collection: bytes, name: bytes) -> None:
        if self.find(collection, name) is not None:
            raise AlreadyExists("object", name)

    def create(self, collection: bytes, name: bytes) -> None:
        self.lacks(collection, name)
        self.put(collection, name, frozenset())

    def remove(self, collection: bytes, name: bytes) -> None:
        self.needs(collection, name)
        self.put(collection, name, None)

    def rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        attributes = self.needs(collection, name)
        self.lacks(to_collection, to_name)
        self.put(collection, name, None)
        self.put(to_collection, to_name, attributes)

    def clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        attributes = self.needs(collection, name)
        _differ(name, to_name)
        self.put(collection, to_name, attributes)

    def clone_range(self, collection: bytes, name: bytes, to_name: bytes, *_: int) -> None:
        self.needs(collection, name)
        _differ(name, to_name)
        self.makes(collection, to_name)

    def setattr(self, collection: bytes, name: bytes, attribute: bytes, _: bytes) -> None:
        self.put(collection, name, {*(self.find(collection, name) or ()), attribute})

    def rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        attributes = self.needs(collection, name)
        if attribute not in attributes:
            raise NotFound("attribute", attribute)
        self.put(collection, name, attributes - {attribute})

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
    Op.CREATE: _Names.create,
    Op.TOUCH: _Names.makes,
    Op.WRITE: _Names.makes,
    Op.ZERO: _Names.makes,
    Op.TRUNCATE: _Names.needs,
    Op.REMOVE: _Names.remove,
    Op.SETATTR: _Names.setattr,
    Op.RMATTR: _Names.rmattr,
    Op.CLONE: _Names.clone,
    Op.CLONE_RANGE: _Names.clone_range,
    Op.RENAME: _Names.rename,
    Op.ALLOC_HINT: _Names.makes,
    Op.MAP_SET: _Names.makes,
    Op.MAP_REMOVE: _Names.needs,
    Op.MAP_REMOVE_RANGE: _Names.needs,
    Op.MAP_CLEAR: _Names.needs,
    Op.MAP_SET_HEADER: _Names.makes,
    Op.SET_FLOOR: _Names.set_floor,
}
