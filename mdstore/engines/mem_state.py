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

from mdstore.limits import REVISION_MAX
from mdstore.store.floors import Floors
from mdstore.store.moves import Selection
from mdstore.store.transaction import HINT_UNCHECKED, Op, Operation

BLOCK: Final = 4096  # granularity of holes, in bytes
_ZEROS: Final = bytes(BLOCK)
_END: Final = 1 << 62  # past every offset that `limits.OBJECT_SIZE_MAX` allows


class MemObject:
    """One object: sparse data, attributes, a map with its header. `owner` is the state that may change it in place."""

    __slots__ = ("attributes", "blocks", "created_rev", "header", "is_checked", "map", "owner", "size")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.created_rev = 0
        self.is_checked = True
        self.size = 0
        self.blocks: dict[int, bytes] = {}
        self.attributes: dict[bytes, bytes] = {}
        self.map: SortedDict[bytes, bytes] = SortedDict()
        self.header = b""

    def copy(self, owner: object) -> MemObject:
        """An equal object that `owner` may change. Blocks and values are immutable and shared."""
        twin = MemObject(owner)
        twin.created_rev, twin.is_checked = self.created_rev, self.is_checked
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
    """An ordered set of named objects, and what is kept of them under (name, revision)."""

    __slots__ = ("objects", "owner", "revisions")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.objects: SortedDict[bytes, MemObject] = SortedDict()
        self.revisions: SortedDict[tuple[bytes, int], MemObject] = SortedDict()

    def copy(self, owner: object) -> MemCollection:
        """An equal collection that `owner` may change; its objects are shared until one side writes."""
        twin = MemCollection(owner)
        twin.objects, twin.revisions = self.objects.copy(), self.revisions.copy()
        return twin

    def kept(self, name: bytes) -> dict[int, MemObject]:
        """The object's revisions by number, oldest first."""
        return {key[1]: self.revisions[key] for key in self.revisions.irange((name, 0), (name, REVISION_MAX))}

    def find(self, name: bytes, rev: int = 0) -> MemObject | None:
        """What a read at `rev` is answered from (0: the object as it is), or None."""
        for number, kept in self.kept(name).items() if rev else ():
            if rev < number:
                return kept if kept.created_rev <= rev else None
        live: MemObject | None = self.objects.get(name)
        return None if live is None or (rev and live.created_rev > rev) else live


class State:
    """Everything a store holds at one moment. Not locked: the store that owns it does that."""

    def __init__(self) -> None:
        self.owner = object()
        self.collections: SortedDict[bytes, MemCollection] = SortedDict()
        self.floors = Floors()
        self._rev = 0  # that the next operation carries

    def fork(self) -> State:
        """An equal state that goes its own way. Cost: one entry per collection; objects are copied when one side writes."""
        twin = State()
        twin.collections = self.collections.copy()
        twin.floors = self.floors.copy()
        self.owner = object()
        return twin

    def apply(self, operations: Iterable[Operation]) -> None:
        """Carry out operations that `mem_check.check` accepted."""
        self._rev = 0
        for operation in operations:
            _APPLY[operation[0]](self, *operation[1:])

    def find(self, collection: bytes, name: bytes) -> MemObject | None:
        """The object, or None when it or its collection is not there."""
        entry = self.collections.get(collection)
        return None if entry is None else entry.find(name)

    # -- inside: copy before change ------------------------------------------------------------------------------------

    def _collection(self, collection: bytes) -> MemCollection:
        entry: MemCollection = self.collections[collection]
        if entry.owner is not self.owner:
            entry = self.collections[collection] = entry.copy(self.owner)
        return entry

    def _make(self, collection: bytes, name: bytes) -> MemObject:
        """The object, made when it is not there."""
        home = self._collection(collection)
        found: MemObject | None = home.objects.get(name)
        if found is None:
            found = home.objects[name] = MemObject(self.owner)
            found.created_rev = max(self._rev, *home.kept(name), 0)
        elif found.owner is not self.owner:
            found = home.objects[name] = found.copy(self.owner)
        return found

    def _object(self, collection: bytes, name: bytes) -> MemObject:
        """The object to change, made when it is not there, its state before the operation's revision kept."""
        found = self._make(collection, name)
        if found.created_rev < self._rev:
            self._collection(collection).revisions[name, self._rev] = found.copy(self.owner)
            found.created_rev = self._rev
        return found

    # -- inside: one method for each operation that is more than a call on its object -----------------------------------

    def _set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        self.floors.raise_to((scope, collection, name), floor)

    def _create_collection(self, collection: bytes) -> None:
        self.collections[collection] = MemCollection(self.owner)

    def _remove_collection(self, collection: bytes) -> None:
        del self.collections[collection]

    def _split(self, collection: bytes, bits: int, remainder: int, to_collection: bytes) -> None:
        source, target, selection = self._collection(collection), self._collection(to_collection), Selection(bits, remainder)
        for name in [name for name in source.objects if selection(name)]:
            target.objects[name] = source.objects.pop(name)
        for key in [key for key in source.revisions if selection(key[0])]:
            target.revisions[key] = source.revisions.pop(key)
        self.floors.carry(collection, to_collection, selection)

    def _merge(self, collection: bytes, to_collection: bytes) -> None:
        self._split(collection, 0, 0, to_collection)
        del self.collections[collection]

    def _revision(self, rev: int) -> None:
        self._rev = rev

    def _remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        del self._collection(collection).revisions[name, rev]

    def _trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        home = self._collection(collection)
        for kept in [kept for kept in home.kept(name) if kept <= rev]:
            del home.revisions[name, kept]

    def _remove(self, collection: bytes, name: bytes) -> None:
        self._object(collection, name)
        del self._collection(collection).objects[name]

    def _rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        found, target = self._object(collection, name), self._collection(to_collection)
        del self._collection(collection).objects[name]
        found.created_rev = max(found.created_rev, self._rev, *target.kept(to_name))
        target.objects[to_name] = found

    def _clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        created_rev = self._object(collection, to_name).created_rev
        objects = self._collection(collection).objects
        copy = objects[to_name] = objects[name].copy(self.owner)
        copy.created_rev = created_rev

    def _clone_range(
        self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int
    ) -> None:
        copy = self._object(collection, to_name)
        copy.copy_range(self.collections[collection].objects[name], source, length, target)

    def _alloc_hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        self._make(collection, name).is_checked = not flags & HINT_UNCHECKED

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
    Op.SPLIT: State._split,
    Op.MERGE: State._merge,
    Op.CREATE: State._make,
    Op.TOUCH: State._make,
    Op.WRITE: lambda state, collection, name, offset, data: state._object(collection, name).write(offset, data),
    Op.ZERO: lambda state, collection, name, offset, length: state._object(collection, name).zero(offset, length),
    Op.TRUNCATE: lambda state, collection, name, size: state._object(collection, name).truncate(size),
    Op.REMOVE: State._remove,
    Op.SETATTR: State._setattr,
    Op.RMATTR: State._rmattr,
    Op.CLONE: State._clone,
    Op.CLONE_RANGE: State._clone_range,
    Op.RENAME: State._rename,
    Op.ALLOC_HINT: State._alloc_hint,
    Op.REVISION: State._revision,
    Op.REMOVE_REVISION: State._remove_revision,
    Op.TRIM_REVISIONS: State._trim_revisions,
    Op.MAP_SET: lambda state, collection, name, pairs: state._object(collection, name).map.update(pairs),
    Op.MAP_REMOVE: State._map_remove,
    Op.MAP_REMOVE_RANGE: State._map_remove_range,
    Op.MAP_CLEAR: State._map_clear,
    Op.MAP_SET_HEADER: State._map_set_header,
    Op.SET_FLOOR: State._set_floor,
}
