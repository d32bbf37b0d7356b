"""The operations, each straight on an LMDB write transaction. A refusal raises, and the caller aborts the transaction.

Invariants
1. A chunk is stored without the zeros that the store knows nothing was written to; a missing chunk is a hole.
2. No stored chunk reaches past its object's size.
3. An onode's `allocated`, `attributes` and `map_keys` count what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mdstore.engines.lmdb_tables import (
    CHUNK,
    META_NEXT_NUMBER,
    U64,
    Databases,
    Onode,
    encode_floor,
    revision_row,
)
from mdstore.errors import AlreadyExists, InvalidRequest, LimitExceeded, NotEmpty, NotFound
from mdstore.limits import ATTRIBUTES_MAX, MOVED_OBJECTS_MAX, REVISION_MAX
from mdstore.store.floors import Floors
from mdstore.store.moves import Selection
from mdstore.store.revisions import MARK, ordered_name, plain_name
from mdstore.store.transaction import HINT_UNCHECKED, Op, Operation

_LAST_CHUNK: Final = (1 << 62) // CHUNK
_FIRST_KEY: Final = b"\0"  # the map's header has the empty key, before every real one


class View:
    """Reads of one LMDB transaction, of either kind."""

    def __init__(self, txn: Any, databases: Databases) -> None:
        self.txn = txn
        self.databases = databases

    def collection(self, name: bytes) -> int:
        """The collection's number, or NotFound."""
        raw = self.txn.get(name, db=self.databases.collections)
        if raw is None:
            raise NotFound("collection", name)
        return int(U64.unpack(raw)[0])

    def find(self, collection: bytes, name: bytes) -> Onode | None:
        """The object, None, or NotFound for its collection."""
        raw = self.databases.objects.get(self.txn, self.collection(collection), name)
        return None if raw is None else Onode.decode(raw, name)

    def find_at(self, collection: bytes, name: bytes, rev: int) -> Onode | None:
        """What a read at `rev` is answered from (0: the object as it is), None, or NotFound for the collection."""
        if rev:
            kept = next(self.kept(collection, name, rev + 1), None) if rev < REVISION_MAX else None
            if kept is not None:
                return kept[1] if kept[1].created_rev <= rev else None
        live = self.find(collection, name)
        return None if live is None or (rev and live.created_rev > rev) else live

    def kept(self, collection: bytes, name: bytes, first: int = 0) -> Iterator[tuple[int, Onode]]:
        """The object's revisions from number `first` on, oldest first."""
        owner, start = revision_row(self.collection(collection), name, first)
        _, last = revision_row(0, name, REVISION_MAX)
        for key, raw in self.databases.objects.items(self.txn, owner, start, last + b"\0"):
            yield U64.unpack(key[-U64.size :])[0], Onode.decode(raw, name)

    def revised(self, collection: bytes, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """Names start <= name < stop that have revisions, in order."""
        owner = self.collection(collection) | MARK
        after = ordered_name(start)
        while (record := next(self.databases.objects.items(self.txn, owner, after, None), None)) is not None:
            prefix = record[0][: -U64.size]
            name = plain_name(prefix)
            if stop is not None and name >= stop:
                return
            yield name
            after = prefix + U64.pack(REVISION_MAX) + b"\0"

    def need(self, collection: bytes, name: bytes, rev: int = 0) -> Onode:
        """The object, or NotFound."""
        found = self.find_at(collection, name, rev) if rev else self.find(collection, name)
        if found is None:
            raise NotFound("object", name)
        return found

    def chunks(self, number: int, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the stored chunks that may meet the range."""
        cursor = self.txn.cursor(db=self.databases.data)
        prefix = U64.pack(number)
        found = cursor.set_range(prefix + U64.pack(start // CHUNK))
        while found:
            key = cursor.key()
            offset = U64.unpack_from(key, U64.size)[0] * CHUNK
            if key[: U64.size] != prefix or offset >= stop:
                return
            yield offset, cursor.value()
            found = cursor.next()

    def extents(self, onode: Onode, offset: int, length: int | None) -> list[tuple[int, int]]:
        """Ranges inside the window and the size that are stored, neighbours merged."""
        stop = onode.size if length is None else min(onode.size, offset + length)
        found: list[tuple[int, int]] = []
        for start, chunk in self.chunks(onode.number, offset, stop):
            low, high = max(start, offset), min(start + len(chunk), stop)
            if low >= high:
                continue
            if found and sum(found[-1]) == low:
                low, _ = found.pop()
            found.append((low, high - low))
        return found

    def read(self, onode: Onode, offset: int, length: int | None) -> bytes:
        """The bytes of the range, short at the end of the data."""
        stop = onode.size if length is None else min(onode.size, offset + length)
        content = bytearray(max(0, stop - offset))
        for start, chunk in self.chunks(onode.number, offset, stop):
            low, high = max(start, offset), min(start + len(chunk), stop)
            if low < high:
                content[low - offset : high - offset] = chunk[low - start : high - start]
        return bytes(content)


class Applier(View):
    """The operations, on a write transaction. `raised` is what the floors are once it commits, None when they stay."""

    def __init__(self, txn: Any, databases: Databases, floors: Floors) -> None:
        super().__init__(txn, databases)
        self._floors = floors
        self.raised: Floors | None = None
        self._rev = 0  # that the next operation carries

    def apply(self, operation: Operation) -> None:
        """One operation; raises a typed error when it is refused, and has then perhaps changed something."""
        _OPERATIONS[operation[0]](self, *operation[1:])

    # -- collections and objects ---------------------------------------------------------------------------------------

    def _noop(self) -> None:
        """Nothing."""

    def _create_collection(self, name: bytes) -> None:
        number = U64.pack(self._next_number())
        if not self.txn.put(name, number, overwrite=False, db=self.databases.collections):
            raise AlreadyExists("collection", name)

    def _remove_collection(self, name: bytes) -> None:
        if not self.databases.objects.is_empty(self.txn, self.collection(name)):
            raise NotEmpty(f"collection {name!r} still holds objects")
        if not self.databases.objects.is_empty(self.txn, self.collection(name) | MARK):
            raise NotEmpty(f"collection {name!r} still holds revisions of objects")
        self.txn.delete(name, db=self.databases.collections)

    def _split(self, collection: bytes, bits: int, remainder: int, to_collection: bytes) -> None:
        self._move(collection, to_collection, Selection(bits, remainder))

    def _merge(self, collection: bytes, to_collection: bytes) -> None:
        self._move(collection, to_collection, Selection(0, 0))
        self.txn.delete(collection, db=self.databases.collections)

    def _move(self, collection: bytes, target: bytes, selection: Selection) -> None:
        source, home, table = self.collection(collection), self.collection(target), self.databases.objects
        if collection == target:
            raise InvalidRequest(f"collection {collection!r} cannot be split or merged into itself")
        rows = [
            (mark, name, key, raw)
            for mark in (0, MARK)
            for key, raw in table.items(self.txn, source | mark, None, None)
            if selection(name := plain_name(key[: -U64.size]) if mark else key)
        ]
        if len(rows) > MOVED_OBJECTS_MAX:
            raise LimitExceeded("MOVED_OBJECTS_MAX", len(rows), MOVED_OBJECTS_MAX)
        for name in {name for _, name, _, _ in rows}:
            if self.find(target, name) is not None or next(self.kept(target, name), None) is not None:
                raise AlreadyExists("object", name)
        for mark, _, key, raw in rows:
            table.delete(self.txn, source | mark, key)
            table.put(self.txn, home | mark, key, raw)
        for floor in self._raising().carry(collection, target, selection):
            self.databases.floors.put(self.txn, *encode_floor(floor), U64.pack(self._raising()[floor]))

    def _create(self, collection: bytes, name: bytes) -> None:
        if self.find(collection, name) is not None:
            raise AlreadyExists("object", name)
        self._make(collection, name)

    def _make(self, collection: bytes, name: bytes, *_: int) -> Onode:
        onode = self.find(collection, name)
        if onode is None:
            onode = Onode(self._next_number(), created_rev=self._newest(collection, name))
            self._save(collection, name, onode)
        return onode

    def _alloc_hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        onode = self._make(collection, name)
        self._save(collection, name, onode._replace(unchecked=int(bool(flags & HINT_UNCHECKED))))

    def _remove(self, collection: bytes, name: bytes) -> None:
        onode = self.need(collection, name)
        if onode.created_rev < self._rev:
            self._save_revision(collection, name, self._rev, onode)
        else:
            self._drop(onode)
        self.databases.objects.delete(self.txn, self.collection(collection), name)

    def _rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        self.need(collection, name)
        if self.find(to_collection, to_name) is not None:
            raise AlreadyExists("object", to_name)
        onode = self._changed(collection, name)
        self.databases.objects.delete(self.txn, self.collection(collection), name)
        created_rev = max(onode.created_rev, self._newest(to_collection, to_name))
        self._save(to_collection, to_name, onode._replace(created_rev=created_rev))

    def _clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        origin = self._origin(collection, name, to_name)
        replaced = self._for_writing(collection, to_name)
        self._drop(replaced)
        self._save(collection, to_name, self._copied(origin)._replace(created_rev=replaced.created_rev))

    # -- revisions -----------------------------------------------------------------------------------------------------

    def _revision(self, rev: int) -> None:
        self._rev = rev

    def _remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        found = next(self.kept(collection, name, rev), None)
        if found is None or found[0] != rev:
            raise NotFound("revision", rev)
        self._forget_revision(collection, name, *found)

    def _trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        for number, onode in list(self.kept(collection, name)):
            if number <= rev:
                self._forget_revision(collection, name, number, onode)

    def _forget_revision(self, collection: bytes, name: bytes, rev: int, onode: Onode) -> None:
        self._drop(onode)
        self.databases.objects.delete(self.txn, *revision_row(self.collection(collection), name, rev))

    def _save_revision(self, collection: bytes, name: bytes, rev: int, onode: Onode) -> None:
        self.databases.objects.put(self.txn, *revision_row(self.collection(collection), name, rev), onode.encode())

    def _changed(self, collection: bytes, name: bytes) -> Onode:
        """The object, which must be there, its state before the operation's revision kept."""
        onode = self.need(collection, name)
        if onode.created_rev < self._rev:
            self._save_revision(collection, name, self._rev, self._copied(onode))
            onode = onode._replace(created_rev=self._rev)
            self._save(collection, name, onode)
        return onode

    def _for_writing(self, collection: bytes, name: bytes) -> Onode:
        """The same, the object made when it is not there."""
        onode = self._make(collection, name)
        return onode if onode.created_rev >= self._rev else self._changed(collection, name)

    def _newest(self, collection: bytes, name: bytes) -> int:
        """The revision that an object made or put there now is created at: no lower than any of the name's revisions."""
        return max(self._rev, *(rev for rev, _ in self.kept(collection, name)), 0)

    def _copied(self, origin: Onode) -> Onode:
        """Another object with the same streams."""
        copy = origin._replace(number=self._next_number())
        for offset in [offset for offset, _ in self.chunks(origin.number, 0, origin.size)]:
            self._put_chunk(copy.number, offset, self._chunk(origin.number, offset))
        for table in (self.databases.attributes, self.databases.maps):
            for key, value in list(table.items(self.txn, origin.number, None, None)):
                table.put(self.txn, copy.number, key, value)
        return copy

    def _drop(self, onode: Onode) -> None:
        """Free the streams of an object that goes."""
        self._clear(onode.number, 0, _LAST_CHUNK * CHUNK)
        self.databases.attributes.delete_range(self.txn, onode.number, None, None)
        self.databases.maps.delete_range(self.txn, onode.number, None, None)

    # -- data ----------------------------------------------------------------------------------------------------------

    def _write(self, collection: bytes, name: bytes, offset: int, data: bytes) -> None:
        onode = self._for_writing(collection, name)
        if data:
            self._save(collection, name, self._written(onode, offset, data))

    def _zero(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        onode = self._for_writing(collection, name)
        if length:
            self._save(collection, name, self._zeroed(onode, offset, length))

    def _truncate(self, collection: bytes, name: bytes, size: int) -> None:
        onode = self._changed(collection, name)
        freed = self._clear(onode.number, size, _LAST_CHUNK * CHUNK)
        self._save(collection, name, onode._replace(size=size, allocated=onode.allocated - freed))

    def _clone_range(
        self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int
    ) -> None:
        origin = self._origin(collection, name, to_name)
        copy = self._for_writing(collection, to_name)
        length = max(0, min(length, origin.size - source))
        if length:
            copy = self._zeroed(copy, target, length)
        for start, size in self.extents(origin, source, length):
            for offset in range(start, start + size, CHUNK):
                piece = self.read(origin, offset, min(CHUNK, start + size - offset))
                copy = self._written(copy, target + offset - source, piece)
        self._save(collection, to_name, copy)

    # -- attributes and map --------------------------------------------------------------------------------------------

    def _setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        onode = self._for_writing(collection, name)
        if self.databases.attributes.put(self.txn, onode.number, attribute, value):
            if onode.attributes >= ATTRIBUTES_MAX:
                raise LimitExceeded("ATTRIBUTES_MAX", onode.attributes + 1, ATTRIBUTES_MAX)
            self._save(collection, name, onode._replace(attributes=onode.attributes + 1))

    def _rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        onode = self.need(collection, name)
        if self.databases.attributes.get(self.txn, onode.number, attribute) is None:
            raise NotFound("attribute", attribute)
        onode = self._changed(collection, name)
        self.databases.attributes.delete(self.txn, onode.number, attribute)
        self._save(collection, name, onode._replace(attributes=onode.attributes - 1))

    def _map_set(self, collection: bytes, name: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
        onode = self._for_writing(collection, name)
        new = sum(self.databases.maps.put(self.txn, onode.number, key, value) for key, value in pairs)
        self._save(collection, name, onode._replace(map_keys=onode.map_keys + new))

    def _map_remove(self, collection: bytes, name: bytes, keys: list[bytes]) -> None:
        onode = self._changed(collection, name)
        gone = sum(self.databases.maps.delete(self.txn, onode.number, key) for key in keys if key)
        self._save(collection, name, onode._replace(map_keys=onode.map_keys - gone))

    def _map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        onode = self._changed(collection, name)
        gone = self.databases.maps.delete_range(self.txn, onode.number, start or _FIRST_KEY, stop)
        self._save(collection, name, onode._replace(map_keys=onode.map_keys - gone))

    def _map_clear(self, collection: bytes, name: bytes) -> None:
        onode = self._changed(collection, name)
        self.databases.maps.delete_range(self.txn, onode.number, None, None)
        self._save(collection, name, onode._replace(map_keys=0))

    def _map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        self.databases.maps.put(self.txn, self._for_writing(collection, name).number, b"", header)

    def _set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        key = (scope, collection, name)
        self._raising().raise_to(key, floor)
        self.databases.floors.put(self.txn, *encode_floor(key), U64.pack(floor))

    def _raising(self) -> Floors:
        if self.raised is None:
            self.raised = self._floors.copy()
        return self.raised

    # -- inside --------------------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        number = int(U64.unpack(self.txn.get(META_NEXT_NUMBER, db=self.databases.meta))[0])
        self.txn.put(META_NEXT_NUMBER, U64.pack(number + 1), db=self.databases.meta)
        return number

    def _save(self, collection: bytes, name: bytes, onode: Onode) -> None:
        self.databases.objects.put(self.txn, self.collection(collection), name, onode.encode())

    def _origin(self, collection: bytes, name: bytes, to_name: bytes) -> Onode:
        onode = self.need(collection, name)
        if name == to_name:
            raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")
        return onode

    def _chunk(self, number: int, offset: int) -> bytes:
        key = U64.pack(number) + U64.pack(offset // CHUNK)
        return bytes(self.txn.get(key, b"", db=self.databases.data))

    def _put_chunk(self, number: int, offset: int, chunk: bytes) -> None:
        key = U64.pack(number) + U64.pack(offset // CHUNK)
        if chunk:
            self.txn.put(key, chunk, db=self.databases.data)
        else:
            self.txn.delete(key, db=self.databases.data)

    def _written(self, onode: Onode, offset: int, data: bytes) -> Onode:
        added, position = 0, 0
        while position < len(data):
            start = (offset + position) % CHUNK
            base, piece = offset + position - start, data[position : position + CHUNK - start]
            old = self._chunk(onode.number, base)
            new = old[:start].ljust(start, b"\0") + piece + old[start + len(piece) :]
            self._put_chunk(onode.number, base, new)
            added += len(new) - len(old)
            position += len(piece)
        return onode._replace(size=max(onode.size, offset + len(data)), allocated=onode.allocated + added)

    def _zeroed(self, onode: Onode, offset: int, length: int) -> Onode:
        freed = self._clear(onode.number, offset, offset + length)
        return onode._replace(size=max(onode.size, offset + length), allocated=onode.allocated - freed)

    def _clear(self, number: int, start: int, stop: int) -> int:
        """Forget the bytes of the range; returns how many stored bytes went. Chunks are looked at one after another,
        because a cursor does not outlast a change of its own page."""
        freed, position = 0, start
        while (found := next(self.chunks(number, position, stop), None)) is not None:
            offset, old = found
            low, high = max(0, start - offset), min(len(old), stop - offset)
            if low < high:
                new = old[:low] + (bytes(high - low) + old[high:] if high < len(old) else b"")
                self._put_chunk(number, offset, new)
                freed += len(old) - len(new)
            position = offset + CHUNK
        return freed


_OPERATIONS: Final[dict[Op, Callable[..., Any]]] = {
    Op.NOOP: Applier._noop,
    Op.CREATE_COLLECTION: Applier._create_collection,
    Op.REMOVE_COLLECTION: Applier._remove_collection,
    Op.SPLIT: Applier._split,
    Op.MERGE: Applier._merge,
    Op.CREATE: Applier._create,
    Op.TOUCH: Applier._make,
    Op.WRITE: Applier._write,
    Op.ZERO: Applier._zero,
    Op.TRUNCATE: Applier._truncate,
    Op.REMOVE: Applier._remove,
    Op.SETATTR: Applier._setattr,
    Op.RMATTR: Applier._rmattr,
    Op.CLONE: Applier._clone,
    Op.CLONE_RANGE: Applier._clone_range,
    Op.RENAME: Applier._rename,
    Op.ALLOC_HINT: Applier._alloc_hint,
    Op.REVISION: Applier._revision,
    Op.REMOVE_REVISION: Applier._remove_revision,
    Op.TRIM_REVISIONS: Applier._trim_revisions,
    Op.MAP_SET: Applier._map_set,
    Op.MAP_REMOVE: Applier._map_remove,
    Op.MAP_REMOVE_RANGE: Applier._map_remove_range,
    Op.MAP_CLEAR: Applier._map_clear,
    Op.MAP_SET_HEADER: Applier._map_set_header,
    Op.SET_FLOOR: Applier._set_floor,
}
