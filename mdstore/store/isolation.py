"""Reading an image although the log cannot be replayed in full: objects whose state is not known are set apart.

An operation of the log that meets a damaged page leaves its object in a state that never was. Opened read-only, the store
replays all the others, and every question about that object, or one whose answer depends on whether it exists, raises
CorruptionError. What the log makes of such an object (a clone, another name) is set apart with it. Everything else is as it would
be without the damage, but for the counts in `statistics`. What concerns collections as a whole (split, merge) is not set apart:
then the opening fails, as it does for writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mdstore.errors import CorruptionError, DeviceFailed
from mdstore.store.apply import Applier
from mdstore.store.collections import CollectionTable
from mdstore.store.isolated import show_key
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import object_key
from mdstore.store.transaction import Op, Operation

_OF_COLLECTIONS: Final = frozenset({Op.NOOP, Op.CREATE_COLLECTION, Op.REMOVE_COLLECTION, Op.SET_FLOOR})
_MOVING: Final = frozenset({Op.SPLIT, Op.MERGE})
REMEDY: Final = "`mdstore repair` mends the image; opened read-only, what does not depend on the damage can be read"


class IsolatingApplier:
    """Replays operations as `Applier` does, one by one; what cannot be applied is set apart."""

    def __init__(self, applier: Applier, collections: CollectionTable, objects: ObjectTable) -> None:
        self._applier = applier
        self._collections = collections
        self._objects = objects

    def apply(self, operations: Sequence[Operation]) -> None:
        """Those of one transaction. CorruptionError, DeviceFailed where damage concerns more than single objects."""
        revision: list[Operation] = []
        for operation in operations:
            if operation[0] == Op.REVISION:
                revision = [operation]
            else:
                self._apply_one(revision, operation)

    def _apply_one(self, revision: list[Operation], operation: Operation) -> None:
        changed, used = self._keys_of(operation)
        if operation[0] in _MOVING and len(self._objects.isolated):
            raise CorruptionError("log entry", f"operation {Op(operation[0]).name.lower()}", "objects to move", "damaged ones")
        lost = next((key for key in used if key in self._objects.isolated), None)
        if lost is not None:
            self._isolate(changed, f"it depends on {show_key(lost)}")
            return
        try:
            self._applier.apply([*revision, operation])
        except (CorruptionError, DeviceFailed) as error:
            if not changed:
                raise
            self._isolate(changed, evidence(error))

    def _isolate(self, keys: list[bytes], cause: str) -> None:
        for key in keys:
            self._objects.isolate(key, cause)

    def _keys_of(self, operation: Operation) -> tuple[list[bytes], list[bytes]]:
        """Keys of the objects that the operation changes, and of those it depends on. None for whole collections."""
        code = operation[0]
        if code in _OF_COLLECTIONS or code in _MOVING:
            return [], []
        collection, name = operation[1], operation[2]
        first = self._key(collection, name)
        if code in (Op.CLONE, Op.CLONE_RANGE):
            target = self._key(collection, operation[3])
            return [target], [first, target]
        if code == Op.RENAME:
            target = self._key(operation[3], operation[4])
            return [first, target], [first, target]
        return [first], [first]

    def _key(self, collection: bytes, name: bytes) -> bytes:
        home = self._collections.get(collection)
        assert home is not None, "validated when it was logged"
        return object_key(home.number, name)


def evidence(error: CorruptionError | DeviceFailed) -> str:
    """What is damaged, and where, without advice."""
    return f"{error.what} at {error.where} is damaged" if isinstance(error, CorruptionError) else str(error)
