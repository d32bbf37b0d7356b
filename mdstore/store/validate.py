"""Validation: whether every operation of a transaction can be applied, decided before the first one is.

Operations are looked at in order against the store plus what the earlier operations of the same transaction would have changed.
Whatever applying will have to read from the medium is read (and so checked) here, so that damage refuses the transaction
instead of stopping it half-way. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mdstore.btree import Tree, key_size_max
from mdstore.errors import (
    AlreadyExists,
    InvalidRequest,
    LimitExceeded,
    MdstoreError,
    NotEmpty,
    NotFound,
    TransactionError,
)
from mdstore.store import data
from mdstore.store.collections import CollectionTable
from mdstore.store.floors import KEY_OVERHEAD, Floors
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import Onode, object_key
from mdstore.store.transaction import Op, Operation


class Validator:
    """One transaction's view: the tables, and what its earlier operations would have made of them.

    `growth` and `rewrites` bound the blocks that writing it back may take: for what it adds, and for pages there already that
    it changes (so never more than there are). `only_frees` stays true while every operation gives space back.
    """

    def __init__(self, collections: CollectionTable, objects: ObjectTable, floors: Floors) -> None:
        self._floors = floors
        self._raised: Floors | None = None  # with what earlier operations raise
        self._collections = collections
        self._objects = objects
        self._block_size = objects.space.block_size
        self._made_collections: dict[bytes, bool] = {}
        self._made: dict[tuple[bytes, bytes], bool] = {}
        self._attributes: dict[tuple[bytes, bytes], set[bytes]] = {}
        self._population: dict[bytes, int] = {}
        self.growth = 4
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
            except MdstoreError as cause:
                raise TransactionError(index, Op(operation[0]).name.lower(), cause) from None

    # -- the view ------------------------------------------------------------------------------------------------------

    def _collection(self, name: bytes) -> None:
        made = self._made_collections.get(name)
        if made is False or (made is None and self._collections.get(name) is None):
            raise NotFound("collection", name)

    def _onode(self, collection: bytes, name: bytes) -> Onode | None:
        """The object as it stands in the store, or None: only the store's, not the transaction's, content."""
        known = self._collections.get(collection)
        if known is None or self._made_collections.get(collection) is False:
            return None
        return self._objects.get(known.number, name)

    def _exists(self, collection: bytes, name: bytes) -> bool:
        self._collection(collection)
        made = self._made.get((collection, name))
        return self._onode(collection, name) is not None if made is None else made

    def _must_exist(self, collection: bytes, name: bytes) -> None:
        if not self._exists(collection, name):
            raise NotFound("object", name)

    def _make(self, collection: bytes, name: bytes) -> None:
        """The operation makes the object when it is not there."""
        if not self._exists(collection, name):
            self._fits("OBJECT_NAME_MAX", name, len(object_key(0, b"")))
            self._set(collection, name, exists=True)
        self._grow(2, len(name))

    def _set(self, collection: bytes, name: bytes, *, exists: bool) -> None:
        self._made[collection, name] = exists
        self._attributes[collection, name] = set()
        self._population[collection] = self._population.get(collection, 0) + (1 if exists else -1)

    def _fits(self, limit: str, name: bytes, overhead: int = 0) -> None:
        """A tree takes keys of a third of an index page: with blocks under 4 KiB that is less than the general limit."""
        if len(name) + overhead > self._key_max:
            raise LimitExceeded(limit, len(name), self._key_max - overhead)

    def _grow(self, records: int, size: int) -> None:
        self.only_frees = False
        self.rewrites += 2 * records
        self.growth += 1 + 2 * size // self._block_size

    def _fresh(self, collection: bytes, name: bytes) -> bool:
        """Whether an earlier operation of this transaction made (or removed) the object."""
        return (collection, name) in self._made

    def _attribute_names(self, collection: bytes, name: bytes) -> set[bytes]:
        names = self._attributes.get((collection, name))
        if names is None:
            onode = self._onode(collection, name)
            names = self._attributes[collection, name] = set(onode.attributes) if onode else set()
        return names

    def _map_tree(self, collection: bytes, name: bytes) -> Tree | None:
        onode = None if self._fresh(collection, name) else self._onode(collection, name)
        return None if onode is None else onode.map

    # -- one check for each operation ----------------------------------------------------------------------------------

    def noop(self) -> None:
        """Always possible."""

    def create_collection(self, name: bytes) -> None:
        made = self._made_collections.get(name)
        if made or (made is None and self._collections.get(name) is not None):
            raise AlreadyExists("collection", name)
        self._fits("COLLECTION_NAME_MAX", name)
        self._made_collections[name] = True
        self._grow(1, len(name))

    def remove_collection(self, name: bytes) -> None:
        self._collection(name)
        known = self._collections.get(name)
        if (known.objects if known else 0) + self._population.get(name, 0):
            raise NotEmpty(f"collection {name!r} still holds objects")
        self._made_collections[name] = False

    def create(self, collection: bytes, name: bytes) -> None:
        if self._exists(collection, name):
            raise AlreadyExists("object", name)
        self._make(collection, name)

    def touch(self, collection: bytes, name: bytes) -> None:
        self._make(collection, name)

    def write(self, collection: bytes, name: bytes, offset: int, content: bytes) -> None:
        self._make(collection, name)
        self.growth += 2 + len(content) // self._block_size
        onode = None if self._fresh(collection, name) else self._onode(collection, name)
        if onode is not None:
            self._leave_group(onode)
            data.prefetch(self._objects.space, onode, offset, len(content), _show(name))

    def write_mapped(self, collection: bytes, name: bytes, logical: int, runs: Any, checksums: bytes) -> None:
        self._make(collection, name)
        self._grow(len(runs), len(checksums))

    def zero(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        self._make(collection, name)
        self._partial(collection, name, offset, length)

    def truncate(self, collection: bytes, name: bytes, size: int) -> None:
        self._must_exist(collection, name)
        self.growth += 2
        self._partial(collection, name, size, 0)

    def _partial(self, collection: bytes, name: bytes, offset: int, length: int) -> None:
        onode = None if self._fresh(collection, name) else self._onode(collection, name)
        if onode is not None:
            self._leave_group(onode)
            data.prefetch(self._objects.space, onode, offset, length, _show(name))

    def _leave_group(self, onode: Onode) -> None:
        """A clone that is written to counts every extent it shares."""
        if onode.group and onode.data is not None:
            self.growth += 4 + len(onode.data) * 64 // self._block_size

    def remove(self, collection: bytes, name: bytes) -> None:
        self._must_exist(collection, name)
        self._set(collection, name, exists=False)

    def setattr(self, collection: bytes, name: bytes, attribute: bytes, value: bytes) -> None:
        self._make(collection, name)
        self._grow(1, len(attribute) + len(value))
        self._attribute_names(collection, name).add(attribute)

    def rmattr(self, collection: bytes, name: bytes, attribute: bytes) -> None:
        self._must_exist(collection, name)
        names = self._attribute_names(collection, name)
        if attribute not in names:
            raise NotFound("attribute", attribute)
        names.discard(attribute)

    def clone(self, collection: bytes, name: bytes, to_name: bytes) -> None:
        self._must_exist(collection, name)
        if name == to_name:
            raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")
        attributes = set(self._attribute_names(collection, name))
        onode = self._onode(collection, name)
        self._make(collection, to_name)
        self._attributes[collection, to_name] = attributes
        if onode is not None:
            self.growth += 4 + len(onode.blocks) + self._objects.pager.dirty_bytes // self._block_size

    def clone_range(self, collection: bytes, name: bytes, to_name: bytes, source: int, length: int, target: int) -> None:
        self._must_exist(collection, name)
        if name == to_name:
            raise InvalidRequest(f"object {name!r} cannot be cloned onto itself")
        self._make(collection, to_name)
        onode = self._onode(collection, name)
        available = length if onode is None else max(0, min(length, onode.size - source))
        self.growth += 2 + available // self._block_size
        self._partial(collection, to_name, target, length)

    def rename(self, collection: bytes, name: bytes, to_collection: bytes, to_name: bytes) -> None:
        self._must_exist(collection, name)
        if self._exists(to_collection, to_name):
            raise AlreadyExists("object", to_name)
        attributes = self._attribute_names(collection, name)
        self._set(collection, name, exists=False)
        self._make(to_collection, to_name)
        self._attributes[to_collection, to_name] = attributes

    def alloc_hint(self, collection: bytes, name: bytes, object_size: int, write_size: int, flags: int) -> None:
        self._make(collection, name)

    def map_set(self, collection: bytes, name: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
        self._make(collection, name)
        tree = self._map_tree(collection, name)
        keys = [key for key, _ in pairs]
        self._fits("MAP_KEY_MAX", max(keys, key=len, default=b""))
        self._grow(len(pairs), sum(map(len, keys)) + sum([len(value) for _, value in pairs]))
        self._read_leaves(tree, keys)

    def map_remove(self, collection: bytes, name: bytes, keys: list[bytes]) -> None:
        self._must_exist(collection, name)
        self.rewrites += 2 * len(keys)
        self._read_leaves(self._map_tree(collection, name), keys)

    def map_remove_range(self, collection: bytes, name: bytes, start: bytes | None, stop: bytes | None) -> None:
        self._must_exist(collection, name)
        ends = [key for key in (start, stop) if key]
        self._read_leaves(self._map_tree(collection, name), ends)

    def map_clear(self, collection: bytes, name: bytes) -> None:
        self._must_exist(collection, name)

    def map_set_header(self, collection: bytes, name: bytes, header: bytes) -> None:
        self._make(collection, name)
        self._grow(1, len(header))

    def set_floor(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        self._fits("OBJECT_NAME_MAX", name, KEY_OVERHEAD + len(collection))
        if self._raised is None:
            self._raised = self._floors.copy()
        self._raised.raise_to((scope, collection, name), floor)
        self._grow(1, len(collection) + len(name))

    def _read_leaves(self, tree: Tree | None, keys: list[bytes]) -> None:
        """Have the pages of these keys read and checked before anything changes."""
        if tree is not None and tree.height > 1:
            tree.get_many(keys)


def _show(name: bytes) -> str:
    return f"object {name.decode('utf-8', 'backslashreplace')!r}"


_CHECKS: dict[int, Callable[..., None]] = {
    op.value: getattr(Validator, op.name.lower()) for op in Op
}
