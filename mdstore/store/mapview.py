"""An object's map as an embedded, ordered key-value store: what `Store.map` returns. Guide: docs/howto/embed-a-map.md.

Invariants
1. A read without the store's lock is answered from the object's tree only if the object in memory is still the one held
   (`ObjectTable` invariant 2: there is one) and no transaction was being applied at its beginning or its end. Otherwise it is
   made again under the lock. So it never sees half of a transaction, nor an object that was removed, renamed or evicted.
2. A page found damaged, or not readable, without the lock counts only when it is so again under the lock: an evicted object's
   pages may have been reused while the read ran, and every reference tells that by its checksum and generation; or the store
   was closed.
3. Every write of a view takes its turn in `_turn`, so that `pop`, `setdefault` and `delete` look and write in one step for
   everyone who uses the same view.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, TypeVar, overload

from mdstore.btree import Tree, TreeView, key_size_max
from mdstore.device import forks
from mdstore.errors import AlreadyExists, CorruptionError, DeviceFailed, Forked, TransactionError
from mdstore.limits import MAP_KEY_MAX
from mdstore.store import log
from mdstore.store.commit import Commit
from mdstore.store.mapbatch import Batch, Pairs, as_bytes
from mdstore.store.mapreads import MapReads, MapSnapshot
from mdstore.store.onode import Onode, object_key
from mdstore.store.operands import many_frozen, optional_number
from mdstore.store.transaction import Data, Name, Transaction, collection_name, object_name

if TYPE_CHECKING:
    from mdstore.store.store import Store

PAIR_BYTES = 1024  # of key and value together that a put may take the short way with
Other = TypeVar("Other")
_NO_DEFAULT = object()
_NO_KEY = b""  # of no object: a view that holds none


class MapView(MapReads):
    """A live, ordered mapping of bytes to bytes. Any number of threads may use one view; make it with `Store.map`.

    Writes are durable when they return; with `sync=False` (here or on the view) they are applied, ordered and seen by every
    reader, and durable later: at the latest after `sync()`. A crash loses a suffix of them at most, never one in between.

    Keys: 1 to 1,000 bytes; values: up to 256 MiB, both copied. Errors of every write, with nothing changed: LimitExceeded,
    NoSpace, ReadOnly, FencedError, NotFound (the collection was removed); DeviceFailed: the store must be reopened. Reads:
    CorruptionError, DeviceFailed; StoreClosed after the store was closed.
    """

    def __init__(self, store: Store, collection: Name, name: Name, *, sync: bool = True, epoch: int | None = None) -> None:
        self._store = store
        self._collection = collection_name(collection)
        self._name = object_name(name)
        self._sync = sync
        self._epoch = optional_number("epoch", epoch)
        self._turn = threading.Lock()
        forks.watch(self)
        self._objects = store.tables.objects
        self._held: tuple[bytes, Onode | None] = (_NO_KEY, None)  # replaced whole, so that no thread sees half of it
        self._put_prefix = log.map_set_prefix(self._collection, self._name)
        self._short_key = min(MAP_KEY_MAX, key_size_max(store.superblock.block_size))
        self._find_held = store.tables.objects.cached.get
        if not store.read_only:
            self._make()

    def left_behind(self, error: Forked) -> None:
        """In a forked child: whoever held the turn is not there. What the store is asked then raises `error`."""
        self._turn = threading.Lock()

    def _make(self) -> None:
        """Have collection and object exist, durably when this made them."""
        store = self._store
        with store.lock:
            self._tree()
            if self._held[1] is not None:
                return
        try:
            both = self._transaction().create_collection(self._collection).touch(self._collection, self._name)
            store.apply(both)
        except TransactionError as error:
            if not isinstance(error.cause, AlreadyExists):
                raise error.cause from error
            store.apply(self._transaction().touch(self._collection, self._name))

    # -- reading -------------------------------------------------------------------------------------------------------

    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes | Other) -> bytes | Other: ...
    def get(self, key: bytes, default: object = None) -> object:
        """The value, or `default`. Cost: one descent, without a lock and without copies but the value's own."""
        stamp = self._objects.changes
        held, onode = self._held
        if not stamp & 1 and onode is not None and self._find_held(held) is onode:
            onode.touched = True
            tree = onode.map
            try:
                value = None if tree is None else tree.get(key)
            except (CorruptionError, DeviceFailed):
                return self._get_locked(key, default)
            if tree is not None and self._objects.changes == stamp:
                return default if value is None else value
        return self._get_locked(key, default)

    def _get_locked(self, key: bytes, default: object) -> object:
        wanted = as_bytes(key)
        with self._store.lock:
            tree = self._tree()
            value = None if tree is None else tree.get(wanted)
        return default if value is None else value

    def _tree(self) -> Tree | None:
        """The tree now, held for later reads. Under the store's lock, where no transaction is half applied."""
        self._store.check_whole()
        self._held = (_NO_KEY, None)
        collection = self._store.tables.collections.get(self._collection)
        if collection is None:
            return None
        onode = self._objects.get(collection.number, self._name)
        self._held = (object_key(collection.number, self._name), onode)
        return None if onode is None else onode.map

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """One answer for each key, all from the same moment. Cost: one descent each, without the interpreter lock."""
        wanted = many_frozen("keys", keys)
        with self._store.lock:
            tree = self._tree()
            return [None] * len(wanted) if tree is None else tree.get_many(wanted)

    def __len__(self) -> int:
        with self._store.lock:
            tree = self._tree()
            return 0 if tree is None else len(tree)

    def __bool__(self) -> bool:
        return len(self) > 0

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, to be read while it changes. O(1); close it, or use it in a `with`, to let space go."""
        with self._store.lock:
            tree = self._tree()
            return MapSnapshot(None if tree is None else tree.snapshot())

    def _tree_for_range(self) -> TreeView | None:
        with self._store.lock:  # no transaction is half applied
            tree = self._tree()
            return None if tree is None else tree.snapshot()

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, key: Data, value: Data, *, sync: bool | None = None) -> None:
        """Set the value. Cost when durable: one write and one flush, shared with every thread that waits."""
        key, value = as_bytes(key), as_bytes(value)
        position = self._put_short(key, value) if 0 < len(key) <= self._short_key else 0
        if not position:
            self._finish(self._submit(self._transaction().map_set(self._collection, self._name, ((key, value),))), sync)
        elif self._sync if sync is None else sync:
            self._store.wait_durable(position)

    def _put_short(self, key: bytes, value: bytes) -> int:
        """The put without a `Transaction`, where the object is held and the pair is small: its position in the log, or 0."""
        if self._epoch is not None or len(key) + len(value) > PAIR_BYTES:
            return 0
        held, onode = self._held
        if onode is None or self._find_held(held) is not onode:
            with self._store.lock:  # made after this view looked for it, or evicted since
                self._tree()
                held, onode = self._held
            if onode is None:
                return 0
        payload = self._put_prefix + log.encode_pair(key, value)
        with self._turn:
            return self._store.pairs.put(held, onode, key, value, payload)

    __setitem__ = put

    def update(self, pairs: Pairs, *, sync: bool | None = None) -> None:
        """Set many keys in one transaction: a crash leaves all of them or none."""
        self._finish(self._submit(self._transaction().map_set(self._collection, self._name, pairs)), sync)

    def delete(self, key: Data, *, sync: bool | None = None) -> bool:
        """Remove the key; False when it was not there (then nothing is written)."""
        return self._take(as_bytes(key), sync) is not None

    def __delitem__(self, key: bytes) -> None:
        if not self.delete(key):
            raise KeyError(key)

    @overload
    def pop(self, key: bytes) -> bytes: ...
    @overload
    def pop(self, key: bytes, default: bytes | Other) -> bytes | Other: ...
    def pop(self, key: bytes, default: object = _NO_DEFAULT) -> object:
        """Remove the key and return its value; `default`, or KeyError without one, when it was not there."""
        value = self._take(as_bytes(key), None)
        if value is None and default is _NO_DEFAULT:
            raise KeyError(key)
        return default if value is None else value

    def _take(self, key: bytes, sync: bool | None) -> bytes | None:
        with self._turn:
            value = self.get(key)
            if value is None:
                return None
            transaction = self._transaction().map_remove(self._collection, self._name, (key,))
            commit = self._submit_in_turn(transaction)
        self._finish(commit, sync)
        return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return the pair of the largest key; KeyError when the map is empty."""
        while True:
            pair = self.last()
            if pair is None:
                raise KeyError("popitem(): the map is empty")
            if self._take(pair[0], None) == pair[1]:
                return pair

    def setdefault(self, key: bytes, default: bytes = b"") -> bytes:
        """The value, set to `default` first when the key was not there."""
        pair = as_bytes(key), as_bytes(default)
        with self._turn:
            value = self.get(pair[0])
            if value is not None:
                return value
            commit = self._submit_in_turn(self._transaction().map_set(self._collection, self._name, (pair,)))
        self._finish(commit, None)
        return pair[1]

    def delete_range(self, start: bytes | None = None, stop: bytes | None = None, *, sync: bool | None = None) -> None:
        """Remove every key with start <= key < stop. Cost: the leaves at both ends, not those between."""
        self._finish(
            self._submit(self._transaction().map_remove_range(self._collection, self._name, start, stop)), sync
        )

    def clear(self) -> None:
        """Remove every key (and keep the object)."""
        self.delete_range()

    def batch(self, *, sync: bool | None = None) -> Batch:
        """Several changes in one transaction: `with view.batch() as b: b[b"x"] = b"1"; del b[b"y"]`. Committed, and durable,
        when the block ends; an exception drops it."""
        return Batch(self, self._sync if sync is None else sync)

    def sync(self) -> None:
        """Everything written before is durable when this returns. Cost: at most one write and one flush."""
        self._store.sync()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _transaction(self) -> Transaction:
        return Transaction(epoch=self._epoch)

    def _submit(self, transaction: Transaction) -> Commit:
        with self._turn:
            return self._submit_in_turn(transaction)

    def _submit_in_turn(self, transaction: Transaction) -> Commit:
        try:
            return self._store.submit(transaction)
        except TransactionError as error:
            raise error.cause from error

    def _finish(self, commit: Commit, sync: bool | None) -> None:
        if self._sync if sync is None else sync:
            commit.wait()

    def submit_changes(self, changes: dict[bytes, bytes | None]) -> Commit | None:
        """One transaction of a batch (None for a key to remove), or none where it is empty."""
        transaction = self._transaction()
        pairs = [(key, value) for key, value in changes.items() if value is not None]
        gone = [key for key, value in changes.items() if value is None]
        if gone:
            transaction.touch(self._collection, self._name).map_remove(self._collection, self._name, gone)
        if pairs:
            transaction.map_set(self._collection, self._name, pairs)
        return self._submit(transaction) if len(transaction) else None

    def __repr__(self) -> str:
        return f"<map {self._name!r} in collection {self._collection!r} of {self._store.device.name}>"


MutableMapping.register(MapView)
