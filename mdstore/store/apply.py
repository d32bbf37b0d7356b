"""Applying operations to the tables. By here every one has been validated: nothing below may fail but for a failing medium.

The same functions replay the log, so what they do depends on the operation and the state of the store alone: no clock, no chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mdstore.btree import PackedPairs
from mdstore.limits import OBJECT_SIZE_MAX
from mdstore.store import data, revisions
from mdstore.store.allocator import Run
from mdstore.store.collections import Collection, CollectionTable
from mdstore.store.floors import Floors
from mdstore.store.moves import Selection, selected_objects, selected_revisions
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import Onode, object_key
from mdstore.store.transaction import Op, Operation

Pairs = PackedPairs | Sequence[tuple[bytes, bytes]]  # as they were given; as the log has them


class Applier:
    """The operations over one store's tables. Every call happens under the store's lock."""

    def __init__(self, collections: CollectionTable, objects: ObjectTable, floors: Floors) -> None:
        self._floors = floors
        self._collections = collections
        self._objects = objects
        self._space = objects.space
        self._rev = 0  # that the next operation of the transaction carries
        self._touched: dict[int, Onode] = {}  # by the transaction, each once

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply validated operations in order."""
        self._rev = 0
        for operation in operations:
            _OPERATIONS[operation[0]](self, *operation[1:])
        for onode in self._touched.values():
            self._objects.measure(onode)
        self._touched.clear()

    # -- tables --------------------------------------------------------------------------------------------------------

    def _collection(self, name: bytes) -> Collection:
        collection = self._collections.get(name)
        assert collection is not None, "validated"
        return collection

    def _find(self, collection: bytes, name: bytes) -> Onode:
        onode = self._objects.get(self._collection(collection).number, name)
        assert onode is not None, "validated"
        self._objects.mark_dirty(onode)
        self._touched[id(onode)] = onode
        return onode

    def _make(self, collection: bytes, name: bytes) -> Onode:
        """The object, made when it is not there, marked dirty."""
        home = self._collection(collection)
        onode = self._objects.get(home.number, name)
        if onode is None:
            onode = self._objects.create(home.number, name)
            onode.created_rev = max(self._rev, revisions.newest(self._objects, home.number, name))
            home.objects += 1
            home.dirty = True
        self._objects.mark_dirty(onode)
        self._touched[id(onode)] = onode
        return onode

    def _written(self, collection: bytes, name: bytes) -> Onode:
        """The object, made when it is not there, its state before the operation's revision kept."""
        onode = self._make(collection, name)
        if onode.created_rev < self._rev:
            self._objects.keep(onode, self._rev)
        return onode

    def _changed(self, collection: bytes, name: bytes) -> Onode:
        """The object, which is there, its state before the operation's revision kept."""
        onode = self._find(collection, name)
        if onode.created_rev < self._rev:
            self._objects.keep(onode, self._rev)
        return onode

    def _resized(self, onode: Onode, old_size: int) -> None:
        self._objects.stored_bytes += onode.size - old_size

    # -- collections ---------------------------------------------------------------------------------------------------

    def noop(self) -> None:
        """Nothing."""

    def create_collection(self, name: bytes) -> None:
        self._collections.create(name)

    def remove_collection(self, name: bytes) -> None:
        self._collections.remove(name)

    def split(self, collection: bytes, bits: int, remainder: int, to_collection: bytes) -> None:
        source, target, objects = self._collection(collection), self._collection(to_collection), self._objects
        selection = Selection(bits, remainder)
        keys = [object_key(source.number, name) for name, _ in selected_objects(objects, source.number, selection)]
        source.objects -= len(keys)
        target.objects += len(keys)
        source.dirty = target.dirty = True
        objects.move(keys, target.number)
        objects.move([key for key, _, _ in selected_revisions(objects, source.number, selection)], target.number)
        self._floors.carry(collection, to_collection, selection)

    def merge(self, collection: bytes, to_collection: bytes) -> None:
        self.split(collection, 0, 0, to_collection)
        self._collections.remove(collection)

    # -- objects -------------------------------------------------------------------------------------------------------

    def touch(self, collection: bytes, name: bytes) -> None:
        self._make(collection, name)

    def remove(self, collection: bytes, name: bytes) -> None:
        home, onode = self._collection(collection), self._find(collection, name)
        if onode.created_rev < self._rev:
            self._objects.keep_only(onode, self._rev)
        else:
            self._objects.remove(onode)
        home.objects -= 1
        home.dirty = True

    def rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        source, target = self._collection(collection), self._collection(to_collection)
        onode, objects = self._changed(collection, name), self._objects
        objects.rekey(onode.key, object_key(target.number, to_name))
        onode.created_rev = max(onode.created_rev, self._rev, revisions.newest(objects, target.number, to_name))
        source.objects -= 1
        target.objects += 1
        source.dirty = target.dirty = True

    def clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        home = self._collection(collection)
        source, target = self._find(collection, name), self._objects.get(home.number, to_name)
        created_rev = 0
        if target is not None:
            created_rev = target.created_rev
            self.remove(collection, to_name)
        copy = self._make(collection, to_name)
        copy.created_rev = max(copy.created_rev, created_rev)
        self._objects.clone(source, copy)

    def clone_range(self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int) -> None:
        origin, copy = self._find(collection, name), self._written(collection, to_name)
        length = max(0, min(length, origin.size - source))
        old_size = copy.size
        if length:
            self._clone_range(origin, copy, source, length, target)
            copy.size = max(copy.size, target + length)
        self._resized(copy, old_size)

    def _clone_range(self, origin: Onode, copy: Onode, source: int, length: int, target: int) -> None:
        """Share the whole blocks where both ranges lie alike in their blocks; copy the rest."""
        size, end = self._space.block_size, source + length
        first, last = -(-source // size), end // size
        if (source - target) % size or first >= last:
            self._copy_range(origin, copy, source, length, target)
            return
        objects, shift = self._objects, target - source
        data.share(self._space, objects.pager, origin, copy, objects.new_tree_id, range(first, last), first + shift // size)
        self._copy_range(origin, copy, source, first * size - source, target)
        self._copy_range(origin, copy, last * size, end - last * size, last * size + shift)

    def _copy_range(self, origin: Onode, copy: Onode, source: int, length: int, target: int) -> None:
        """Copy bytes; what is a hole in the origin becomes zeros in the copy."""
        data.zero(self._space, copy, target, length, "clone target")
        for offset, count in data.ranges(self._space, origin, source, length):
            for at in range(offset, offset + count, _COPY_BYTES):
                size = min(_COPY_BYTES, offset + count - at)
                content = data.ReadPlan(self._space, origin, at, size, "clone source").run()
                data.write(self._space, copy, target + at - source, content, "clone target")

    def alloc_hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        self._make(collection, name).hint = (object_size, write_size, flags)

    # -- revisions -----------------------------------------------------------------------------------------------------

    def revision(self, rev: int) -> None:
        self._rev = rev

    def remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        kept = self._objects.at(revisions.revision_key(self._collection(collection).number, name, rev))
        assert kept is not None, "validated"
        self._objects.remove(kept)

    def trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        for kept in revisions.of_object(self._objects, self._collection(collection).number, name):
            if revisions.rev_of(kept) > rev:
                break
            self._objects.remove(kept)

    # -- data ----------------------------------------------------------------------------------------------------------

    def write(self, collection: bytes, name: bytes, offset: int, content: bytes) -> None:
        onode = self._written(collection, name)
        if content:
            old_size = onode.size
            data.write(self._space, onode, offset, content, _show(name))
            self._resized(onode, old_size)

    def write_mapped(
        self, collection: bytes, name: bytes, logical: int, runs: Sequence[Run], checksums: bytes
    ) -> None:
        onode = self._written(collection, name)
        old_size = onode.size
        objects = self._objects
        data.write_mapped(self._space, objects.pager, onode, objects.new_tree_id, logical, runs, checksums)
        blocks = logical + sum(count for _, count in runs)
        onode.size = max(old_size, blocks * self._space.block_size)
        self._resized(onode, old_size)

    def zero(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        onode = self._written(collection, name)
        old_size = onode.size
        data.zero(self._space, onode, offset, length, _show(name))
        self._resized(onode, old_size)

    def truncate(self, collection: bytes, name: bytes, size: int) -> None:
        onode = self._changed(collection, name)
        old_size = onode.size
        data.truncate(self._space, onode, size, _show(name))
        self._resized(onode, old_size)

    # -- attributes and map --------------------------------------------------------------------------------------------

    def setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        self._written(collection, name).attributes[attribute] = value

    def rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        del self._changed(collection, name).attributes[attribute]

    def map_set(self, collection: bytes, name: bytes, pairs: Pairs) -> None:
        onode = self._written(collection, name)
        if pairs:
            self._objects.map_of(onode).update(pairs)

    def map_remove(self, collection: bytes, name: bytes, keys: Sequence[bytes]) -> None:
        onode = self._changed(collection, name)
        if onode.map is not None:
            onode.map.delete_many(keys)

    def map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        onode = self._changed(collection, name)
        if onode.map is not None:
            onode.map.delete_range(start, stop)

    def map_clear(self, collection: bytes, name: bytes) -> None:
        onode = self._changed(collection, name)
        if onode.map is not None:
            onode.map.clear()
            onode.map.user_blob = b""

    def map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        self._objects.map_of(self._written(collection, name)).user_blob = header

    def set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        self._floors.raise_to((scope, collection, name), floor)


def _show(name: bytes) -> str:
    return f"object {name.decode('utf-8', 'backslashreplace')!r}"


_COPY_BYTES = 1 << 20
_OPERATIONS: dict[int, Callable[..., None]] = {
    op.value: getattr(Applier, "touch" if op is Op.CREATE else op.name.lower()) for op in Op
}
assert OBJECT_SIZE_MAX < 1 << 63, "sizes are u64 on disk, and offsets plus lengths never wrap"
