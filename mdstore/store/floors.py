"""Floors: the lowest epoch a writer must carry. Page: docs/format/floors.md.

Every writer that may be replaced has an epoch. Whoever replaces it raises a floor above that epoch; from then on whatever the old
writer submits is refused with FencedError. A floor holds for one object (which need not exist), for every object whose name
begins with a prefix, for a collection, or for the whole store; the highest that applies counts. Floors only ever rise, and
outlive what they guard. Transactions without an epoch are not checked: they belong to owners that nobody replaces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum

from mdstore.btree import Descriptor
from mdstore.errors import CorruptionError, FencedError
from mdstore.store.transaction import Op, Operation

_HEAD = struct.Struct("<BB")  # scope, length of the collection's name
_VALUE = struct.Struct("<Q")
KEY_OVERHEAD = _HEAD.size  # bytes of a floor's key beside the collection's name and the object's
DESCRIPTOR = Descriptor(-2, _VALUE.size, embed_limit=128)


class Scope(IntEnum):
    """What a floor holds for. On-disk numbers."""

    STORE = 1
    COLLECTION = 2
    PREFIX = 3
    OBJECT = 4


FloorKey = tuple[int, bytes, bytes]  # scope, collection (empty for the store), name or prefix (empty but for the last two)

_SECOND_TARGET = {Op.CLONE: (1, 3), Op.CLONE_RANGE: (1, 3), Op.RENAME: (3, 4)}  # operands: collection, name also written
_WRITES_NOTHING = {Op.NOOP, Op.SET_FLOOR, Op.REVISION}
_ONLY_SECOND = {Op.CLONE, Op.CLONE_RANGE}  # their first object is only read


class Floors:
    """All floors of a store, in memory: there are few. Guarded by the store's lock."""

    def __init__(self, rows: dict[FloorKey, int] | None = None) -> None:
        self._rows: dict[FloorKey, int] = {}
        self._prefix_lengths: dict[bytes, set[int]] = {}
        for key, floor in (rows or {}).items():
            self._set(key, floor)

    def __iter__(self) -> Iterator[tuple[FloorKey, int]]:
        return iter(self._rows.items())

    def copy(self) -> Floors:
        return Floors(self._rows)

    def raise_to(self, key: FloorKey, floor: int) -> None:
        """Raise one floor. FencedError when it is higher already: somebody else has taken over since."""
        self.check_raise(key, floor)
        self._set(key, floor)

    def check_raise(self, key: FloorKey, floor: int) -> None:
        current = self._rows.get(key, 0)
        if floor < current:
            raise FencedError(_where(key), floor, current)

    def _set(self, key: FloorKey, floor: int) -> None:
        self._rows[key] = floor
        if key[0] == Scope.PREFIX:
            self._prefix_lengths.setdefault(key[1], set()).add(len(key[2]))

    def check(self, epoch: int, operation: Operation) -> None:
        """FencedError when `epoch` is below a floor that holds for what the operation writes."""
        op = operation[0]
        if not self._rows or op in _WRITES_NOTHING:
            return
        if op in (Op.SPLIT, Op.MERGE):
            self._check_move(epoch, operation[1], operation[-1])
            return
        if op not in _ONLY_SECOND:
            named = op not in (Op.CREATE_COLLECTION, Op.REMOVE_COLLECTION)
            self._check(epoch, operation[1], operation[2] if named else b"")
        if op in _SECOND_TARGET:
            collection, name = _SECOND_TARGET[op]
            self._check(epoch, operation[collection], operation[name])

    def _check_move(self, epoch: int, source: bytes, target: bytes) -> None:
        """Moving objects takes an epoch that no floor in either collection is above, whatever it holds for there."""
        for key, floor in self._rows.items():
            if epoch < floor and (key[0] == Scope.STORE or key[1] in (source, target)):
                raise FencedError(_where(key), epoch, floor)

    def carry(self, source: bytes, target: bytes, selects: Callable[[bytes], bool]) -> list[FloorKey]:
        """Objects whose names `selects` move: have every floor that holds for them in `source` hold in `target`. Returns the
        floors that rose."""
        risen = []
        for (scope, collection, name), floor in list(self._rows.items()):
            key = scope, target, name
            moves = collection == source and scope != Scope.STORE and (scope != Scope.OBJECT or selects(name))
            if moves and floor > self._rows.get(key, 0):
                self._set(key, floor)
                risen.append(key)
        return risen

    def __getitem__(self, key: FloorKey) -> int:
        return self._rows[key]

    def _check(self, epoch: int, collection: bytes, name: bytes) -> None:
        for key in self._that_hold(collection, name):
            floor = self._rows.get(key, 0)
            if epoch < floor:
                raise FencedError(_where(key), epoch, floor)

    def _that_hold(self, collection: bytes, name: bytes) -> Iterator[FloorKey]:
        yield Scope.STORE, b"", b""
        yield Scope.COLLECTION, collection, b""
        if name:
            yield Scope.OBJECT, collection, name
            for length in self._prefix_lengths.get(collection, ()):
                yield Scope.PREFIX, collection, name[:length]


def encode(key: FloorKey, floor: int) -> tuple[bytes, bytes]:
    """The record of the tree of floors."""
    scope, collection, name = key
    return _HEAD.pack(scope, len(collection)) + collection + name, _VALUE.pack(floor)


def decode(key: bytes, value: bytes) -> tuple[FloorKey, int]:
    """The floor in a record; CorruptionError when it makes no sense."""
    if len(key) >= _HEAD.size:
        scope, length = _HEAD.unpack_from(key)
        if scope in set(Scope) and _HEAD.size + length <= len(key):
            split = _HEAD.size + length
            return (scope, key[_HEAD.size : split], key[split:]), int(_VALUE.unpack(value)[0])
    raise CorruptionError("floor", key.hex(), "a scope and a collection", "neither")


def _where(key: FloorKey) -> str:
    scope, collection, name = key
    parts = [Scope(scope).name.lower(), *(repr(part)[1:] for part in (collection, name) if part)]
    return " ".join(parts)
