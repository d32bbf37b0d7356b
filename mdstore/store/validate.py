"""Validation: whether every operation of a transaction can be applied, decided before the first one is.

Operations are looked at in order against the store plus what the earlier operations of the same transaction would have changed.
Whatever applying will have to read from the medium is read (and so checked) here, so that damage refuses the transaction
instead of stopping it half-way. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mdstore.btree import PackedPairs, Tree, key_size_max
from mdstore.errors import (
    AlreadyExists,
    InvalidRequest,
    LimitExceeded,
    MdstoreError,
    NotFound,
    StoreClosed,
    TransactionError,
)
from mdstore.limits import ATTRIBUTES_MAX, MOVED_BYTES_MAX, MOVED_OBJECTS_MAX
from mdstore.store import data, revisions
from mdstore.store.collections import CollectionTable
from mdstore.store.floors import KEY_OVERHEAD, Floors
from mdstore.store.moves import Selection
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import object_key
from mdstore.store.prospect import Prospect, Shadow
from mdstore.store.transaction import Op, Operation


class Validator:
    """The operations of one transaction, looked at one after another.

    `growth` and `rewrites` bound the blocks that writing it back may take: for what it adds, and for pages there already that
    it changes (so never more than there are). `only_frees` stays true while every operation gives space back.
    """

    def __init__(self, collections: CollectionTable, objects: ObjectTable, floors: Floors) -> None:
        self._floors = floors
        self._raised: Floors | None = None  # with what earlier operations raise
        self._objects = objects
        self._prospect = Prospect(collections, objects)
        self._block_size = objects.space.block_size
        self._rev = 0  # that the next operation carries
        self._blocks = 4  # of data, of values too large for a leaf, and of trees that grow by a page
        self._bytes = 0  # of space that records in leaves take
        self._depth = _pages_of_one(objects.tree)
        self.rewrites = 4
        self.only_frees = True
        self._key_max = key_size_max(self._block_size)

    def check(self, operations: Sequence[Operation], epoch: int | None) -> None:
        """TransactionError for the first operation that cannot be applied, or is below a floor."""
        for index, operation in enumerate(operations):
            try:
                if epoch is not None:
                    self._floors.check(epoch, operation)
                _CHECKS[operation[0]](self, *operation[1:])
            except StoreClosed:  # no fault of the operation's
                raise
            except MdstoreError as cause:
                raise TransactionError(index, Op(operation[0]).name.lower(), cause) from None
        for shadow in self._prospect.touched():
            self._bytes += shadow.need(self._block_size)

    @property
    def growth(self) -> int:
        """Blocks for what the operations add."""
        return self._blocks + self._bytes // self._block_size

    # -- what most operations do to an object --------------------------------------------------------------------------

    def _change(self, collection: bytes, name: bytes) -> Shadow:
        """The operation changes an object that must be there."""
        shadow = self._prospect.need(collection, name)
        self._keep(collection, name, shadow)
        return shadow

    def _make(self, collection: bytes, name: bytes) -> Shadow:
        """The operation makes the object when it is not there, and changes nothing of one that is."""
        shadow = self._prospect.look(collection, name)
        if shadow is None:
            self._fits("OBJECT_NAME_MAX", name, len(object_key(0, b"")))
            shadow = Shadow(None, max(self._rev, *self._prospect.revisions_of(collection, name), 0))
            self._prospect.put(collection, name, shadow)
        self._grow(1, len(name))
        return shadow

    def _write(self, collection: bytes, name: bytes) -> Shadow:
        """The operation changes the object, made when it is not there."""
        shadow = self._make(collection, name)
        self._keep(collection, name, shadow)
        return shadow

    def _keep(self, collection: bytes, name: bytes, shadow: Shadow) -> None:
        """The operation's revision may ask for the object to be kept as it is first."""
        if shadow.created_rev < self._rev:
            self._note_revision(collection, name)
            shadow.created_rev = self._rev
            self._share(shadow)

    def _note_revision(self, collection: bytes, name: bytes) -> None:
        self._fits("OBJECT_NAME_MAX", name, len(revisions.revision_key(0, name, 0)) - len(name))
        self._prospect.revisions_of(collection, name).add(self._rev)
        self._grow(2, 2 * len(name))

    def _share(self, shadow: Shadow) -> None:
        """A clone of the object takes room for what is in memory alone, and a write to either of them for counting extents."""
        shadow.is_shared = True
        if shadow.onode is not None:
            self._blocks += 4 + len(shadow.onode.blocks) + self._objects.pager.dirty_bytes // self._block_size

    def _move(self, collection: bytes, selection: Selection, target: bytes) -> None:
        """The operation moves what it selects, if no name of it is taken in the target."""
        prospect = self._prospect
        prospect.collection(collection)
        prospect.collection(target)
        if collection == target:
            raise InvalidRequest(f"collection {collection!r} cannot be split or merged into itself")
        names, revised, size = prospect.selected(collection, selection)
        _at_most("MOVED_OBJECTS_MAX", len(names) + sum(map(len, revised.values())), MOVED_OBJECTS_MAX)
        _at_most("MOVED_BYTES_MAX", size, MOVED_BYTES_MAX)
        for name in sorted(names | revised.keys()):
            if prospect.is_taken(target, name):
                raise AlreadyExists("object", name)
        prospect.move(collection, target, names, revised)
        self._floors_to_raise().carry(collection, target, selection)
        self.rewrites += 4 * len(names) + 2 * size // self._block_size
        self._grow(0, size)

    # -- room ----------------------------------------------------------------------------------------------------------

    def _fits(self, limit: str, name: bytes, overhead: int = 0) -> None:
        """A tree takes keys of a third of an index page: with blocks under 4 KiB that is less than the general limit."""
        if len(name) + overhead > self._key_max:
            raise LimitExceeded(limit, len(name), self._key_max - overhead)

    def _grow(self, records: int, size: int) -> None:
        """Records of so many bytes in all come into leaves, which may be half full."""
        self.only_frees = False
        self.rewrites += records * self._depth
        self._bytes += 2 * (size + records * _RECORD_HEAD)

    # -- one check for each operation ----------------------------------------------------------------------------------

    def noop(self) -> None:
        """Always possible."""

    def create_collection(self, name: bytes) -> None:
        self._prospect.create_collection(name)
        self._fits("COLLECTION_NAME_MAX", name)
        self._grow(1, len(name))

    def remove_collection(self, name: bytes) -> None:
        self._prospect.remove_collection(name)

    def split(self, collection: bytes, bits: int, remainder: int, to_collection: bytes) -> None:
        self._move(collection, Selection(bits, remainder), to_collection)

    def merge(self, collection: bytes, to_collection: bytes) -> None:
        self._move(collection, Selection(0, 0), to_collection)
        self._prospect.drop_emptied(collection)

    def create(self, collection: bytes, name: bytes) -> None:
        if self._prospect.look(collection, name) is not None:
            raise AlreadyExists("object", name)
        self._make(collection, name)

    def touch(self, collection: bytes, name: bytes) -> None:
        self._make(collection, name)

    def write(self, collection: bytes, name: bytes, offset: int, content: bytes) -> None:
        shadow = self._write(collection, name)
        self._blocks += 2 + len(content) // self._block_size
        shadow.has_data = True
        self._partial(shadow, name, offset, len(content))

    def write_mapped(self, collection: bytes, name: bytes, logical: int, runs: Any, checksums: bytes) -> None:
        self._write(collection, name)
        self._grow(len(runs), len(checksums))

    def zero(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        self._partial(self._write(collection, name), name, offset, length)

    def truncate(self, collection: bytes, name: bytes, size: int) -> None:
        shadow = self._change(collection, name)
        self._blocks += 2
        self._partial(shadow, name, size, 0)

    def _partial(self, shadow: Shadow, name: bytes, offset: int, length: int) -> None:
        """Blocks changed in part are read now; a clone that is written to counts every extent it shares."""
        onode = shadow.onode
        if onode is None:
            return
        if (onode.group or shadow.is_shared) and onode.data is not None:
            self._blocks += 4 + len(onode.data) * 64 // self._block_size
        data.prefetch(self._objects.space, onode, offset, length, _show(name))

    def remove(self, collection: bytes, name: bytes) -> None:
        shadow = self._prospect.need(collection, name)
        if shadow.created_rev < self._rev:
            self._note_revision(collection, name)
        self._prospect.put(collection, name, None)

    def setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        shadow = self._write(collection, name)
        self._grow(0, 0)
        names = shadow.names()
        _at_most("ATTRIBUTES_MAX", len(names) + (attribute not in names), ATTRIBUTES_MAX)
        names.add(attribute)
        shadow.grown += len(attribute) + len(value) + _RECORD_HEAD

    def rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        shadow = self._prospect.need(collection, name)
        if attribute not in shadow.names():
            raise NotFound("attribute", attribute)
        self._keep(collection, name, shadow)
        shadow.names().discard(attribute)

    def clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        source = self._prospect.need(collection, name)
        if name == to_name:
            raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")
        target = self._write(collection, to_name)
        self._share(source)
        copy = Shadow(source.onode, target.created_rev)
        copy.attributes, copy.is_shared = set(source.names()), True
        self._prospect.put(collection, to_name, copy)

    def clone_range(self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int) -> None:
        origin = self._prospect.need(collection, name)
        if name == to_name:
            raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")
        copy = self._write(collection, to_name)
        available = length if origin.onode is None else max(0, min(length, origin.onode.size - source))
        self._blocks += 2 + available // self._block_size
        self._partial(copy, to_name, target, length)

    def rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        shadow = self._prospect.need(collection, name)
        if self._prospect.look(to_collection, to_name) is not None:
            raise AlreadyExists("object", to_name)
        self._keep(collection, name, shadow)
        self._prospect.put(collection, name, None)
        target = self._make(to_collection, to_name)
        shadow.created_rev = max(shadow.created_rev, target.created_rev)
        self._prospect.put(to_collection, to_name, shadow)

    def alloc_hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        self._make(collection, name)

    def revision(self, rev: int) -> None:
        self._rev = rev

    def remove_revision(self, collection: bytes, name: bytes, rev: int) -> None:
        self._prospect.collection(collection)
        found = self._prospect.revisions_of(collection, name)
        if rev not in found:
            raise NotFound("revision", rev)
        found.discard(rev)

    def trim_revisions(self, collection: bytes, name: bytes, rev: int) -> None:
        self._prospect.collection(collection)
        found = self._prospect.revisions_of(collection, name)
        found -= {kept for kept in found if kept <= rev}

    def map_set(self, collection: bytes, name: bytes, pairs: PackedPairs) -> None:
        shadow = self._write(collection, name)
        if pairs.longest_key > self._key_max:
            raise LimitExceeded("MAP_KEY_MAX", pairs.longest_key, self._key_max)
        self._grow(0, pairs.payload_bytes + len(pairs) * _RECORD_HEAD)
        self._rewrite_leaves(shadow, len(pairs))
        self._blocks += 2
        for size in pairs.values_above(self._block_size // 4):
            self._blocks += size // (self._block_size // 2) + 1
        shadow.has_map = True
        tree = _tall_map(shadow)
        if tree is not None:
            tree.fetch(pairs)

    def map_remove(self, collection: bytes, name: bytes, keys: list[bytes]) -> None:
        shadow = self._change(collection, name)
        self._rewrite_leaves(shadow, len(keys))
        self._read_leaves(shadow, keys)

    def map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        self._read_leaves(self._change(collection, name), [key for key in (start, stop) if key])

    def map_clear(self, collection: bytes, name: bytes) -> None:
        self._change(collection, name)

    def map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        shadow = self._write(collection, name)
        self._grow(0, 0)
        shadow.grown += len(header)
        shadow.has_map = True

    def set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        self._fits("OBJECT_NAME_MAX", name, KEY_OVERHEAD + len(collection))
        self._floors_to_raise().raise_to((scope, collection, name), floor)
        self._grow(1, len(collection) + len(name))

    def _floors_to_raise(self) -> Floors:
        if self._raised is None:
            self._raised = self._floors.copy()
        return self._raised

    def _rewrite_leaves(self, shadow: Shadow, keys: int) -> None:
        """Each key may be in a leaf of its own, and the pages above it may be."""
        tree = shadow.onode.map if shadow.onode is not None else None
        if tree is not None and tree.height:
            self.rewrites += tree.height + (keys * _pages_of_one(tree) if tree.height > 1 else 0)

    def _read_leaves(self, shadow: Shadow, keys: list[bytes]) -> None:
        """Have the pages of these keys read and checked before anything changes."""
        tree = _tall_map(shadow)
        if tree is not None:
            tree.get_many(keys)


_RECORD_HEAD = 48  # bytes of a record's cell, of its owner's number, and of what names it, generously


def _tall_map(shadow: Shadow) -> Tree | None:
    """The map of which not all is in memory for sure: changing it may read pages, which is done before anything changes."""
    tree = shadow.onode.map if shadow.onode is not None else None
    return tree if tree is not None and tree.height > 1 else None


def _pages_of_one(tree: Tree) -> int:
    """Pages from a leaf up to below the root: what changing one record of many rewrites."""
    return max(1, tree.height - 1)


def _at_most(limit: str, value: int, maximum: int) -> None:
    if value > maximum:
        raise LimitExceeded(limit, value, maximum)


def _show(name: bytes) -> str:
    return f"object {name.decode('utf-8', 'backslashreplace')!r}"


_CHECKS: dict[int, Callable[..., None]] = {
    op.value: getattr(Validator, op.name.lower()) for op in Op
}
