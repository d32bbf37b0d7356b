"""The objects as they are once the store's log is replayed, without writing anything.

Only objects that the log touches are held here; everything else is read from the superblock's trees. Semantics are those
of docs/format/store-log.md and docs/edge-rules.md. An operation that its state refuses is damage: every entry was valid
against the state it met.

Invariants
1. `_objects[(collection, name)]` is None where the log removed the object, a state of its own where the log touched it.
2. A state never changes what the superblock knows: `DataView` and `MapView` hold references to it and changes over it.
   `_revisions` likewise, by collection, name and revision.
3. `_collections[name]` is the superblock's number, None for one the log made, and missing where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Final, Protocol, cast

from sortedcontainers import SortedDict

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.data import DataSource, DataView, Mapped
from mdstore.tools.reader.floors import FloorRows
from mdstore.tools.reader.onode import Collection, Onode
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.revisions import RevisionKey, revision_bounds
from mdstore.tools.reader.storelog import LoggedTransaction
from mdstore.tools.reader.superblock import ROOT_FLOORS

_FIRST: Final = itemgetter(0)


class Base(DataSource, Protocol):
    """The store as the superblock knows it."""

    def collections(self) -> Iterator[tuple[bytes, Collection]]: ...
    def objects(self, number: int, start: bytes = b"") -> Iterator[tuple[bytes, Onode]]: ...
    def find(self, number: int, name: bytes) -> Onode | None: ...
    def revision_records(self, start: bytes, stop: bytes) -> Iterator[tuple[RevisionKey, Onode]]: ...
    def map_items(self, onode: Onode, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...
    def map_get(self, onode: Onode, key: bytes) -> bytes | None: ...
    def map_header(self, onode: Onode) -> bytes: ...
    def root_records(self, kind: int) -> Iterator[tuple[bytes, bytes]]: ...


class MapView:
    """A map stream: what the superblock knows, less ranges removed, with changes over it."""

    def __init__(self, onode: Onode | None = None) -> None:
        self._onode = onode if onode is not None and onode.map_root is not None else None
        self._removed: list[tuple[bytes, bytes | None]] = []
        self._changes: SortedDict[bytes, bytes | None] = SortedDict()
        self._header: bytes | None = None

    def copy(self) -> MapView:
        twin = MapView(self._onode)
        twin._removed = list(self._removed)
        twin._changes = self._changes.copy()
        twin._header = self._header
        return twin

    def set(self, key: bytes, value: bytes | None) -> None:
        """Set `key`, or remove it (None)."""
        self._changes[key] = value

    def remove_range(self, start: bytes | None, stop: bytes | None) -> None:
        """Remove start <= key < stop."""
        low = start or b""
        for key in list(self._changes.irange(low, stop, inclusive=(True, False))):
            del self._changes[key]
        self._removed.append((low, stop))

    def clear(self) -> None:
        """Remove keys and header."""
        self._onode = None
        self._removed.clear()
        self._changes.clear()
        self._header = b""

    def set_header(self, header: bytes) -> None:
        self._header = header

    def header(self, base: Base) -> bytes:
        if self._header is not None:
            return self._header
        return base.map_header(self._onode) if self._onode is not None else b""

    def get(self, base: Base, key: bytes) -> bytes | None:
        if key in self._changes:
            return cast("bytes | None", self._changes[key])
        if self._onode is None or self._is_removed(key):
            return None
        return base.map_get(self._onode, key)

    def items(self, base: Base, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Records from `start` on, in order."""
        under: Iterator[tuple[bytes, bytes]] = (
            base.map_items(self._onode, start) if self._onode is not None else iter(())
        )
        kept = ((key, 1, value) for key, value in under if not self._is_removed(key))
        changed = ((key, 0, self._changes[key]) for key in self._changes.irange(start))
        for key, group in groupby(merge(changed, kept), key=_FIRST):
            value = next(group)[2]
            if value is not None:
                yield key, value

    def _is_removed(self, key: bytes) -> bool:
        return any(low <= key and (high is None or key < high) for low, high in self._removed)


class ObjectState:
    """One object: data, map, attributes."""

    def __init__(self, onode: Onode | None = None) -> None:
        self.data = DataView(onode)
        self.map = MapView(onode)
        self.attributes: dict[bytes, bytes] = dict(onode.attributes) if onode else {}
        self.created_rev = onode.created_rev if onode else 0
        self.hint = onode.hint if onode else None

    def copy(self) -> ObjectState:
        """A clone: all streams."""
        twin = ObjectState()
        twin.data = self.data.copy()
        twin.map = self.map.copy()
        twin.attributes = dict(self.attributes)
        twin.created_rev = self.created_rev
        twin.hint = self.hint
        return twin


class Overlay:
    """The store after its log. Feed it transactions in order with `apply`, then ask."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._collections: dict[bytes, int | None] = {name: record.number for name, record in base.collections()}
        self._objects: SortedDict[tuple[bytes, bytes], ObjectState | None] = SortedDict()
        self._revisions: SortedDict[tuple[bytes, bytes, int], ObjectState | None] = SortedDict()
        self._rev = 0
        self._floors: FloorRows | None = None

    # -- queries -------------------------------------------------------------------------------------------------------
    @property
    def touched(self) -> int:
        """Objects that the log touched."""
        return len(self._objects)

    def collections(self) -> list[bytes]:
        return sorted(self._collections)

    def floors(self) -> FloorRows:
        """The lowest epochs that writers must carry. Damage."""
        if self._floors is None:
            self._floors = FloorRows(self.base.root_records(ROOT_FLOORS))
        return self._floors

    def find(self, collection: bytes, name: bytes) -> ObjectState | None:
        """The object, or None."""
        if (collection, name) in self._objects:
            return cast("ObjectState | None", self._objects[collection, name])
        number = self._collections.get(collection)
        onode = self.base.find(number, name) if number is not None else None
        return ObjectState(onode) if onode is not None else None

    def objects(self, collection: bytes, start: bytes = b"") -> Iterator[tuple[bytes, ObjectState | Onode]]:
        """Objects of a collection in the order of their names; an Onode where the log did not touch it."""
        number = self._collections.get(collection)
        under = self.base.objects(number, start) if number is not None else iter(())
        touched = ((name, 0, state) for name, state in self._touched(collection, start))
        if not self._objects:
            yield from under
            return
        kept = ((name, 1, onode) for name, onode in under)
        for name, group in groupby(merge(touched, kept, key=_FIRST), key=_FIRST):
            found = min(group, key=itemgetter(1))[2]
            if found is not None:
                yield name, found

    def revisions(self, collection: bytes, name: bytes) -> dict[int, ObjectState]:
        """What is kept of an object by revision, oldest first."""
        number = self._collections.get(collection)
        found: dict[int, ObjectState | None] = {}
        if number is not None:
            for key, onode in self.base.revision_records(*revision_bounds(number, name)):
                found[key.rev] = ObjectState(onode)
        for changed in self._revisions.irange((collection, name, 0), (collection, name, 1 << 64)):
            found[changed[2]] = self._revisions[changed]
        return {rev: state for rev, state in sorted(found.items()) if state is not None}

    def revised(self, collection: bytes) -> list[bytes]:
        """Names of the collection that have revisions, in order, whether their objects exist or not."""
        return sorted({name for name, _ in self._revision_keys(collection)})

    def _revision_keys(self, collection: bytes) -> list[tuple[bytes, int]]:
        """(name, revision) of every revision of the collection's objects."""
        number, found = self._collections.get(collection), {}
        if number is not None:
            low, high = revision_bounds(number, b"")[0][:8], revision_bounds(number + 1, b"")[0][:8]
            for key, _ in self.base.revision_records(low, high):
                found[key.name, key.rev] = True
        for home, name, rev in self._revisions.irange((collection,)):
            if home != collection:
                break
            found[name, rev] = self._revisions[home, name, rev] is not None
        return [key for key, is_there in found.items() if is_there]

    def attributes_of(self, found: ObjectState | Onode) -> dict[bytes, bytes]:
        """All attributes of an object."""
        return found.attributes if isinstance(found, ObjectState) else dict(found.attributes)

    def size_of(self, found: ObjectState | Onode) -> int:
        """Bytes of an object's data."""
        return found.data.size if isinstance(found, ObjectState) else found.size

    def header_of(self, found: ObjectState | Onode) -> bytes:
        """The header of an object's map."""
        return found.map.header(self.base) if isinstance(found, ObjectState) else self.base.map_header(found)

    def items_of(self, found: ObjectState | Onode, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Records of an object's map from `start` on, in order."""
        if isinstance(found, ObjectState):
            return found.map.items(self.base, start)
        return self.base.map_items(found, start)

    def _touched(self, collection: bytes, start: bytes) -> Iterator[tuple[bytes, ObjectState | None]]:
        for held, name in self._objects.irange((collection, start)):
            if held != collection:
                return
            yield name, self._objects[held, name]

    # -- changes -------------------------------------------------------------------------------------------------------
    def apply(self, transaction: LoggedTransaction) -> None:
        """Replay one transaction. Damage (`log-replay`) at the first operation that the state refuses."""
        self._rev = 0
        for index, operation in enumerate(transaction.operations):
            handler = _HANDLERS.get(operation.name)
            try:
                if handler is not None:
                    handler(self, *operation.operands)
            except _Refused as refused:
                found = f"operation {index}, {operation.name}: {refused}"
                raise Damage("log-replay", "log entry that its state refuses", "a valid operation", found) from refused

    def _collection(self, name: bytes) -> None:
        if name not in self._collections:
            raise _Refused(f"no collection {readable(name)}")

    def _touch(self, collection: bytes, name: bytes) -> ObjectState:
        """The object's own state, made when it is not there."""
        self._collection(collection)
        state = self._existing(collection, name)
        if state is None:
            state = self._objects[collection, name] = ObjectState()
            state.created_rev = max(self._rev, *self.revisions(collection, name), 0)
        return state

    def _written(self, collection: bytes, name: bytes) -> ObjectState:
        """The same, what it was before the operation's revision kept."""
        return self._keep(collection, name, self._touch(collection, name))

    def _changed(self, collection: bytes, name: bytes) -> ObjectState:
        """An object that must be there, what it was before the operation's revision kept."""
        return self._keep(collection, name, self._required(collection, name))

    def _keep(self, collection: bytes, name: bytes, state: ObjectState) -> ObjectState:
        if state.created_rev < self._rev:
            self._revisions[collection, name, self._rev] = state.copy()
            state.created_rev = self._rev
        return state

    def _existing(self, collection: bytes, name: bytes) -> ObjectState | None:
        key = (collection, name)
        if key not in self._objects:
            state = self.find(collection, name)
            if state is None:
                return None
            self._objects[key] = state
        return cast("ObjectState | None", self._objects[key])

    def _required(self, collection: bytes, name: bytes) -> ObjectState:
        self._collection(collection)
        state = self._existing(collection, name)
        if state is None:
            raise _Refused(f"no object {readable(name)} in {readable(collection)}")
        return state

    def _create_collection(self, name: bytes) -> None:
        if name in self._collections:
            raise _Refused(f"collection {readable(name)} exists")
        self._collections[name] = None

    def _remove_collection(self, name: bytes) -> None:
        self._collection(name)
        if next(self.objects(name), None) is not None:
            raise _Refused(f"collection {readable(name)} is not empty")
        if self._revision_keys(name):
            raise _Refused(f"collection {readable(name)} holds revisions")
        for key in [key for key in self._revisions.irange((name,)) if key[0] == name]:
            del self._revisions[key]  # of a number that is gone
        del self._collections[name]

    def _split(self, collection: bytes, bits: int, remainder: int, target: bytes) -> None:
        self._collection(collection)
        self._collection(target)
        mask = (1 << bits) - 1

        def moves(name: bytes) -> bool:
            return not mask or crc32c(name) & mask == remainder

        names = [name for name, _ in self.objects(collection) if moves(name)]
        for name in names:
            if self.find(target, name) is not None:
                raise _Refused(f"object {readable(name)} exists in {readable(target)}")
            self._objects[target, name] = self._required(collection, name)
            self._objects[collection, name] = None
        for name, rev in [key for key in self._revision_keys(collection) if moves(key[0])]:
            if rev in self.revisions(target, name):
                raise _Refused(f"revision {rev} of object {readable(name)} exists in {readable(target)}")
            self._revisions[target, name, rev] = self.revisions(collection, name)[rev]
            self._revisions[collection, name, rev] = None

        if not self._floors_are_damaged():
            self.floors().carry(collection, target, moves)

    def _set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        if not self._floors_are_damaged():
            self.floors().raise_to(scope, collection, name, floor)

    def _floors_are_damaged(self) -> bool:
        """Then nobody can say what the log makes of them: whoever asks for them is told, the rest of the log is replayed."""
        try:
            self.floors()
        except Damage:
            return True
        return False

    def _merge(self, collection: bytes, target: bytes) -> None:
        self._split(collection, 0, 0, target)
        self._remove_collection(collection)

    def _create(self, collection: bytes, name: bytes) -> None:
        self._collection(collection)
        if self._existing(collection, name) is not None:
            raise _Refused(f"object {readable(name)} exists")
        self._touch(collection, name)

    def _write(self, collection: bytes, name: bytes, offset: int, data: bytes) -> None:
        self._written(collection, name).data.put(offset, len(data), data)

    def _write_mapped(
        self, collection: bytes, name: bytes, logical: int, runs: list[list[int]], checksums: bytes
    ) -> None:
        size = self.base.block_size
        blocks = mapped_blocks(runs, checksums)
        self._written(collection, name).data.put(logical * size, len(blocks) * size, Mapped(tuple(blocks)))

    def _zero(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        self._written(collection, name).data.put(offset, length, None)

    def _truncate(self, collection: bytes, name: bytes, size: int) -> None:
        self._changed(collection, name).data.truncate(size)

    def _remove(self, collection: bytes, name: bytes) -> None:
        self._changed(collection, name)
        self._objects[collection, name] = None

    def _setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        self._written(collection, name).attributes[attribute] = value

    def _rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        self._changed(collection, name).attributes.pop(attribute, None)

    def _clone(self, collection: bytes, name: bytes, target: bytes) -> None:
        copy = self._required(collection, name).copy()
        copy.created_rev = self._written(collection, target).created_rev
        self._objects[collection, target] = copy

    def _clone_range(
        self, collection: bytes, name: bytes, target: bytes, source_offset: int, length: int, offset: int
    ) -> None:
        source = self._required(collection, name)
        self._written(collection, target).data.put_range(source.data, source_offset, length, offset)

    def _rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        self._required(collection, name)
        self._collection(to_collection)
        if self._existing(to_collection, to_name) is not None:
            raise _Refused(f"object {readable(to_name)} exists")
        state = self._changed(collection, name)
        state.created_rev = max(state.created_rev, self._rev, *self.revisions(to_collection, to_name))
        self._objects[collection, name] = None
        self._objects[to_collection, to_name] = state

    def _hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        self._touch(collection, name).hint = object_size, write_size, flags

    def _map_set(self, collection: bytes, name: bytes, pairs: list[list[bytes]]) -> None:
        state = self._written(collection, name)
        for key, value in pairs:
            state.map.set(key, value)

    def _map_remove(self, collection: bytes, name: bytes, keys: list[bytes]) -> None:
        state = self._changed(collection, name)
        for key in keys:
            state.map.set(key, None)

    def _map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        self._changed(collection, name).map.remove_range(start, stop)

    def _map_clear(self, collection: bytes, name: bytes) -> None:
        self._changed(collection, name).map.clear()

    def _map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        self._written(collection, name).map.set_header(header)

    def _revision(self, rev: int) -> None:
        self._rev = rev

    def _remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        self._collection(collection)
        if rev not in self.revisions(collection, name):
            raise _Refused(f"no revision {rev} of object {readable(name)} in {readable(collection)}")
        self._revisions[collection, name, rev] = None

    def _trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        self._collection(collection)
        for kept in self.revisions(collection, name):
            if kept <= rev:
                self._revisions[collection, name, kept] = None


class _Refused(Exception):
    """An operation that the state does not allow."""


def mapped_blocks(runs: list[list[int]], checksums: bytes) -> list[tuple[int, int]]:
    """(device block, checksum) of each block that a WRITE_MAPPED names."""
    numbers = [block for start, count in runs for block in range(start, start + count)]
    sums = [int.from_bytes(checksums[i : i + 4], "little") for i in range(0, len(checksums), 4)]
    return list(zip(numbers, sums, strict=True))


_HANDLERS: Final[dict[str, Callable[..., object]]] = {
    "CREATE_COLLECTION": Overlay._create_collection,
    "REMOVE_COLLECTION": Overlay._remove_collection,
    "SPLIT": Overlay._split,
    "MERGE": Overlay._merge,
    "CREATE": Overlay._create,
    "TOUCH": Overlay._touch,
    "WRITE": Overlay._write,
    "ZERO": Overlay._zero,
    "TRUNCATE": Overlay._truncate,
    "REMOVE": Overlay._remove,
    "SETATTR": Overlay._setattr,
    "RMATTR": Overlay._rmattr,
    "CLONE": Overlay._clone,
    "CLONE_RANGE": Overlay._clone_range,
    "RENAME": Overlay._rename,
    "ALLOC_HINT": Overlay._hint,
    "WRITE_MAPPED": Overlay._write_mapped,
    "REVISION": Overlay._revision,
    "REMOVE_REVISION": Overlay._remove_revision,
    "TRIM_REVISIONS": Overlay._trim_revisions,
    "MAP_SET": Overlay._map_set,
    "MAP_REMOVE": Overlay._map_remove,
    "MAP_REMOVE_RANGE": Overlay._map_remove_range,
    "MAP_CLEAR": Overlay._map_clear,
    "MAP_SET_HEADER": Overlay._map_set_header,
    "SET_FLOOR": Overlay._set_floor,
}
