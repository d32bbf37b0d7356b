"""What a store holds, in plain dictionaries: the model of data, attributes, maps and collections.

Nothing here locks, waits or fails: `mem_check` has refused what must be refused before `State.apply` is called.

Invariants

1. A state changes only what it owns: a collection or object whose `owner` is not the state's is copied before it is changed.
   So `State.fork` is cheap, and a fork never sees what happens to its origin.
2. A block is present, BLOCK bytes long, or absent: a hole. No block lies wholly at or past the size.
3. Bytes of a block at or past the size are zero, so growing never shows what was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from sortedcontainers import SortedDict

from mdstore.store.floors import Floors
from mdstore.store.transaction import Op, Operation

BLOCK: Final = 4096  # granularity of holes, in bytes
_ZEROS: Final = bytes(BLOCK)
_END: Final = 1 << 62  # past every offset that `limits.OBJECT_SIZE_MAX` allows


class MemObject:
    """One object: sparse data, attributes, a map with its header. `owner` is the state that may change it in place."""

    __slots__ = ("attributes", "blocks", "header", "map", "owner", "size")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.size = 0
        self.blocks: dict[int, bytes] = {}
        self.attributes: dict[bytes, bytes] = {}
        self.map: SortedDict[bytes, bytes] = SortedDict()
        self.header = b""

    def copy(self, owner: object) -> MemObject:
        """An equal object that `owner` may change. Blocks and values are immutable and shared."""
        twin = MemObject(owner)
        twin.size, twin.blocks, twin.header = self.size, self.blocks.copy(), self.header
        twin.attributes, twin.map = self.attributes.copy(), self.map.copy()
        return twin

    def freeze(self) -> None:
        """Let no state change it in place any more: an iterator reads it. The next writer copies."""
        self.owner = None

    # -- data ----------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int | None) -> bytes:
        """The bytes of the range, short at the end of the data, empty past it; holes are zeros."""
        stop = self.size if length is None else min(self.size, offset + length)
        if offset >= stop:
            return b""
        first, last = offset // BLOCK, (stop - 1) // BLOCK
        whole = b"".join([self.blocks.get(index, _ZEROS) for index in range(first, last + 1)])
        return whole[offset - first * BLOCK : stop - first * BLOCK]

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; a gap before it stays a hole. No data: nothing happens."""
        position = 0
        while position < len(data):
            index, start = divmod(offset + position, BLOCK)
            piece = data[position : position + BLOCK - start]
            if len(piece) < BLOCK:
                old = self.blocks.get(index, _ZEROS)
                piece = old[:start] + piece + old[start + len(piece) :]
            self.blocks[index] = piece
            position += BLOCK - start
        if data:
            self.size = max(self.size, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        """Make the range zeros, whole blocks holes, and extend the data to its end. Length 0: nothing happens."""
        if length:
            self._clear(offset, offset + length)
            self.size = max(self.size, offset + length)

    def truncate(self, size: int) -> None:
        """Set the size; what lies past it is forgotten."""
        self._clear(size, _END)
        self.size = size

    def copy_range(self, source: MemObject, offset: int, length: int, target: int) -> None:
        """Take `length` bytes at `offset` of `source`, another object, as far as it has them, to `target`; holes are zeros."""
        length = min(length, max(0, source.size - offset))
        self.zero(target, length)
        for start, size in source.extents(offset, length):
            self.write(target + start - offset, source.read(start, size))

    def extents(self, offset: int, length: int | None) -> list[tuple[int, int]]:
        """(offset, length) of what is not a hole inside the range and the size, neighbours merged."""
        stop = self.size if length is None else min(self.size, offset + length)
        found: list[tuple[int, int]] = []
        for index in sorted(self.blocks):
            low, high = max(index * BLOCK, offset), min((index + 1) * BLOCK, stop)
            if low >= high:
                continue
            if found and sum(found[-1]) == low:
                low, _ = found.pop()
            found.append((low, high - low))
        return found

    def _clear(self, start: int, stop: int) -> None:
        for index in [i for i in self.blocks if i * BLOCK < stop and (i + 1) * BLOCK > start]:
            low, high = max(0, start - index * BLOCK), min(BLOCK, stop - index * BLOCK)
            if high - low == BLOCK:
                del self.blocks[index]
            else:
                old = self.blocks[index]
                self.blocks[index] = old[:low] + bytes(high - low) + old[high:]


class MemCollection:
    """An ordered set of named objects."""

    __slots__ = ("objects", "owner")

    def __init__(self, owner: object, objects: SortedDict[bytes, MemObject]) -> None:
        self.owner = owner
        self.objects = objects


class State:
    """Everything a store holds at one moment. Not locked: the store that owns it does that."""

    def __init__(self) -> None:
        self.owner = object()
        self.collections: SortedDict[bytes, MemCollection] = SortedDict()
        self.floors = Floors()

    def fork(self) -> State:
        """An equal state that goes its own way. Cost: one entry per collection; objects are copied when one side writes."""
        twin = State()
        twin.collections = self.collections.copy()
        twin.floors = self.floors.copy()
        self.owner = object()
        return twin

    def apply(self, operations: Iterable[Operation]) -> None:
        """Carry out operations that `mem_check.check` accepted."""
        for operation in operations:
            _APPLY[operation[0]](self, *operation[1:])

    def find(self, collection: bytes, name: bytes) -> MemObject | None:
        """The object, or None when it or its collection is not there."""
        entry = self.collections.get(collection)
        return None if entry is None else entry.objects.get(name)

    # -- inside: copy before change ------------------------------------------------------------------------------------

    def _objects(self, collection: bytes) -> SortedDict[bytes, MemObject]:
        entry = self.collections[collection]
        if entry.owner is not self.owner:
            entry = self.collections[collection] = MemCollection(self.owner, entry.objects.copy())
        return entry.objects

    def _object(self, collection: bytes, name: bytes) -> MemObject:
        objects = self._objects(collection)
        found: MemObject | None = objects.get(name)
        if found is None:
            found = objects[name] = MemObject(self.owner)
        elif found.owner is not self.owner:
            found = objects[name] = found.copy(self.owner)
        return found

    # -- inside: one method for each operation that is more than a call on its object -----------------------------------

    def _set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        self.floors.raise_to((scope, collection, name), floor)

    def _create_collection(self, collection: bytes) -> None:
        self.collections[collection] = MemCollection(self.owner, SortedDict())

    def _remove_collection(self, collection: bytes) -> None:
        del self.collections[collection]

    def _remove(self, collection: bytes, name: bytes) -> None:
        del self._objects(collection)[name]

    def _rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        self._objects(to_collection)[to_name] = self._objects(collection).pop(name)

    def _clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        objects = self._objects(collection)
        objects[to_name] = objects[name].copy(self.owner)

    def _clone_range(
        self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int
    ) -> None:
        copy = self._object(collection, to_name)
        copy.copy_range(self._objects(collection)[name], source, length, target)

    def _rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        del self._object(collection, name).attributes[attribute]

    def _setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        self._object(collection, name).attributes[attribute] = value

    def _map_remove(self, collection: bytes, name: bytes, keys: list[bytes]) -> None:
        records = self._object(collection, name).map
        for key in keys:
            records.pop(key, None)

    def _map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        records = self._object(collection, name).map
        for key in list(records.irange(start, stop, inclusive=(True, False))):
            del records[key]

    def _map_clear(self, collection: bytes, name: bytes) -> None:
        target = self._object(collection, name)
        target.map.clear()
        target.header = b""

    def _map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        self._object(collection, name).header = header


_APPLY: Final[dict[Op, Callable[..., Any]]] = {
    Op.NOOP: lambda state: None,
    Op.CREATE_COLLECTION: State._create_collection,
    Op.REMOVE_COLLECTION: State._remove_collection,
    Op.CREATE: State._object,
    Op.TOUCH: State._object,
    Op.WRITE: lambda state, collection, name, offset, data: state._object(collection, name).write(offset, data),
    Op.ZERO: lambda state, collection, name, offset, length: state._object(collection, name).zero(offset, length),
    Op.TRUNCATE: lambda state, collection, name, size: state._object(collection, name).truncate(size),
    Op.REMOVE: State._remove,
    Op.SETATTR: State._setattr,
    Op.RMATTR: State._rmattr,
    Op.CLONE: State._clone,
    Op.CLONE_RANGE: State._clone_range,
    Op.RENAME: State._rename,
    Op.ALLOC_HINT: lambda state, collection, name, *_: state._object(collection, name),
    Op.MAP_SET: lambda state, collection, name, pairs: state._object(collection, name).map.update(pairs),
    Op.MAP_REMOVE: State._map_remove,
    Op.MAP_REMOVE_RANGE: State._map_remove_range,
    Op.MAP_CLEAR: State._map_clear,
    Op.MAP_SET_HEADER: State._map_set_header,
    Op.SET_FLOOR: State._set_floor,
}
