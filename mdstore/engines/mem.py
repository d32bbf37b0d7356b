"""`mem:`: a store in plain dictionaries. The model that every other engine is compared with, and a fast store for tests.

`MemStore()` calls a commit durable as soon as it is applied, although nothing survives the process. `MemStore(delayed=True)`
plays an engine with a medium: a commit is durable once it, or a later one, was waited for; `crash` gives the store that comes
back, `durable_prefixes` every store that might, and `fail` breaks the medium.

Invariants

1. `_state` is what reads see; `_durable` with `_pending` applied in order is equal to it (delayed stores only).
2. `_pending` holds exactly the transactions after number `_durable_sequence`, in the order of their submission.
3. A callback is called once, without the lock, and those of one sync in the order of their commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from threading import RLock
from types import TracebackType
from typing import Any

from mdstore.engines.mem_check import check
from mdstore.engines.mem_snapshots import Kept, KeptStates
from mdstore.engines.mem_state import BLOCK, MemCollection, MemObject, State
from mdstore.engines.protocol import Capabilities, Commit, ObjectStat, Revision, SnapshotInfo
from mdstore.errors import DeviceFailed, NotFound, ReadOnly, StoreClosed
from mdstore.store.operands import (
    bound,
    check_callback,
    many_frozen,
    name_bound,
    name_bytes,
    page_limit,
    revision,
    window,
)
from mdstore.store.snapshot_table import snapshot_name
from mdstore.store.transaction import Name, Operation, Transaction, collection_name, object_name, submitted

_SIZE_BYTES = 1 << 40  # what `statistics` calls the size of memory

DoneCallback = Callable[[BaseException | None], None]


class MemCommit:
    """A transaction submitted to a `MemStore`, known by its number."""

    __slots__ = ("_sequence", "_store")

    def __init__(self, store: MemStore, sequence: int) -> None:
        self._store = store
        self._sequence = sequence

    @property
    def durable(self) -> bool:
        """Whether a crash would leave it."""
        return self._store.is_durable(self._sequence)

    def wait(self, timeout: float | None = None) -> None:
        """Make it and every earlier commit durable. Never waits. DeviceFailed after `fail`, StoreClosed after a crash."""
        self._store.make_durable(self._sequence)

    def add_done_callback(self, callback: DoneCallback) -> None:
        """Call `callback(None)` once durable, `callback(error)` once the medium failed; at once when that is so already."""
        self._store.call_when_durable(self._sequence, callback)

    def __await__(self) -> Generator[Any, None, None]:
        """`wait`."""
        self.wait()
        yield from ()


class MemStore:
    """An `ObjectStore` in memory. Safe to call from many threads; every call holds one lock for its whole length."""

    def __init__(self, *, delayed: bool = False) -> None:
        """An empty store; `delayed`: commits become durable by `wait` and `sync` only."""
        self._lock = RLock()
        self._state = State()
        self._sequence = 0  # of the newest commit
        self._delayed = delayed
        self._durable = State()
        self._durable_sequence = 0
        self._pending: deque[tuple[Operation, ...]] = deque()
        self._callbacks: deque[tuple[int, DoneCallback]] = deque()
        self._error: DeviceFailed | StoreClosed | None = None
        self._snapshots = KeptStates()
        self._view_of: Kept | None = None

    @classmethod
    def _holding(cls, state: State, *, delayed: bool) -> MemStore:
        store = cls(delayed=delayed)
        store._state, store._durable = state, state.fork()
        return store

    @property
    def capabilities(self) -> Capabilities:
        """Only a delayed store calls itself durable: for it, `crash` stands for the crash."""
        return Capabilities(multi_object_transactions=True, durable=self._delayed, ordered_commits=True, snapshots=True)

    @property
    def read_only(self) -> bool:
        """Whether this is a snapshot."""
        return self._view_of is not None

    # -- changes -------------------------------------------------------------------------------------------------------

    def submit(self, transaction: Transaction) -> Commit:
        """Check every operation, then apply them all; later reads see it. TransactionError: nothing was changed.
        Cost: what the operations touch, and a copy of each object that a fork or an open iterator also holds."""
        operations = tuple(submitted(transaction).operations)
        with self._lock:
            self._assert_writable()
            check(self._state, operations, transaction.epoch)
            self._state.apply(operations)
            self._sequence += 1
            if self._delayed:
                self._pending.append(operations)
            else:
                self._durable_sequence = self._sequence
            return MemCommit(self, self._sequence)

    def apply(self, transaction: Transaction) -> None:
        """`submit` and wait until durable."""
        self.submit(transaction).wait()

    def set_floor_and_read(
        self, collection: Name, name: Name, floor: int, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Raise the object's floor and return its bytes (empty where there is no object), in one step; durable on return."""
        offset, length = window(offset, length)
        with self._lock:
            commit = self.submit(Transaction().set_floor(floor, collection, name=name))
            found = self._state.find(collection_name(collection), object_name(name))
            content = b"" if found is None else found.read(offset, length)
        commit.wait()
        return content

    def sync(self) -> None:
        """Make everything submitted before durable."""
        with self._lock:
            self._assert_usable()
            sequence = self._sequence
        self.make_durable(sequence)

    def close(self) -> None:
        """Make everything durable; every later call but `close` raises StoreClosed. What the store held is gone with it."""
        with self._lock:
            if isinstance(self._error, StoreClosed):
                return
            if self._error is None:
                self.sync()
            self._error = StoreClosed("the store in memory was closed")
            if self._view_of is not None:
                self._view_of.readers -= 1

    def __enter__(self) -> MemStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, name: Name) -> None:
        """Keep everything as it is, durably, with all submitted before. Cost: one entry per collection; objects are copied when
        they change. AlreadyExists, InvalidRequest, LimitExceeded."""
        raw = snapshot_name(name)
        with self._lock:
            self._assert_writable()
            self.sync()
            self._snapshots.take(raw, self._state.fork())

    def snapshots(self) -> list[SnapshotInfo]:
        """All of them, oldest first; `epoch` is the number of the snapshot."""
        with self._lock:
            self._assert_usable()
            return self._snapshots.rows()

    def open_snapshot(self, name: Name) -> MemStore:
        """A snapshot as a store that never changes; until it is closed, it is not deleted. NotFound."""
        with self._lock:
            self._assert_usable()
            kept = self._snapshots.get(snapshot_name(name))
            kept.readers += 1
            view = self._holding(kept.state.fork(), delayed=False)
            view._view_of, view._lock = kept, self._lock  # which guards the count of readers
            return view

    def delete_snapshot(self, name: Name) -> None:
        """Forget a snapshot. NotFound, SnapshotBusy."""
        with self._lock:
            self._assert_writable()
            self._snapshots.delete(snapshot_name(name))

    # -- durability: what a commit asks of its store -------------------------------------------------------------------

    def is_durable(self, sequence: int) -> bool:
        """Whether commit number `sequence` would survive `crash`."""
        return sequence <= self._durable_sequence

    def make_durable(self, sequence: int) -> None:
        """Make every commit up to number `sequence` durable, then call whoever waited for them."""
        with self._lock:
            if not self.is_durable(sequence):
                self._assert_usable()
            while self._durable_sequence < sequence:
                self._durable.apply(self._pending.popleft())
                self._durable_sequence += 1
            due = []
            while self._callbacks and self._callbacks[0][0] <= self._durable_sequence:
                due.append(self._callbacks.popleft()[1])
        for callback in due:
            callback(None)

    def call_when_durable(self, sequence: int, callback: DoneCallback) -> None:
        """Call `callback` when commit number `sequence` is durable, or can no longer become so."""
        check_callback(callback)
        with self._lock:
            error = None if self.is_durable(sequence) else self._error
            if error is None and not self.is_durable(sequence):
                place = len(self._callbacks)
                while place and self._callbacks[place - 1][0] > sequence:
                    place -= 1
                self._callbacks.insert(place, (sequence, callback))
                return
        callback(error)

    # -- faults, for tests of what stands above ------------------------------------------------------------------------

    def crash(self) -> MemStore:
        """Lose the process: the store that opens afterwards, holding the durable commits and no other. This one is dead:
        its calls raise StoreClosed, and no callback that still waits is ever called."""
        with self._lock:
            survivor = self._holding((self._durable if self._delayed else self._state).fork(), delayed=self._delayed)
            survivor._snapshots = self._snapshots.survive()
            self._error = StoreClosed("the store in memory has crashed")
            self._callbacks.clear()
            return survivor

    def durable_prefixes(self) -> Iterator[MemStore]:
        """Every store that a crash at this moment may leave, from what is durable to everything submitted, one commit more
        each time. Taken when called; this store goes on. Each has the same `delayed`."""
        with self._lock:
            self._assert_usable()
            state = (self._durable if self._delayed else self._state).fork()
            pending = tuple(self._pending)
            snapshots = self._snapshots.survive()
        return self._prefixes(state, pending, snapshots)

    def fail(self, error: DeviceFailed) -> None:
        """Break the medium: what is not durable never will be, its callbacks get `error`, and so does every later call."""
        with self._lock:
            self._assert_usable()
            self._error = error
            due = [callback for _, callback in self._callbacks]
            self._callbacks.clear()
        for callback in due:
            callback(error)

    def _prefixes(
        self, state: State, pending: Sequence[tuple[Operation, ...]], snapshots: KeptStates
    ) -> Iterator[MemStore]:
        for operations in ((), *pending):
            state.apply(operations)
            store = self._holding(state.fork(), delayed=self._delayed)
            store._snapshots = snapshots.survive()
            yield store

    # -- queries -------------------------------------------------------------------------------------------------------

    def exists(self, collection: Name, name: Name, *, rev: int = 0) -> bool:
        """Whether the object is there. NotFound('collection') when its collection is not. This and every query below: `rev`
        asks for it as it was at that revision (0: now)."""
        with self._lock:
            return self._lookup(collection, name, rev) is not None

    def stat(self, collection: Name, name: Name, *, rev: int = 0) -> ObjectStat:
        """Size, allocated space (whole blocks), number of attributes and of map keys, revision of its creation."""
        with self._lock:
            found = self._find(collection, name, rev)
            counts = len(found.attributes), len(found.map)
            checksum = "crc32c" if found.is_checked else "none"
            return ObjectStat(found.size, len(found.blocks) * BLOCK, *counts, found.created_rev, checksum)

    def read(self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0) -> bytes:
        """The bytes of the range: short at the end of the data, empty past it, zeros in holes."""
        offset, length = window(offset, length)
        with self._lock:
            return self._find(collection, name, rev).read(offset, length)

    def extents(
        self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0
    ) -> list[tuple[int, int]]:
        """Ranges (offset, length) inside the window that are not holes, in order, cut at the size."""
        offset, length = window(offset, length)
        with self._lock:
            return self._find(collection, name, rev).extents(offset, length)

    def getattr(self, collection: Name, name: Name, attribute: Name, *, rev: int = 0) -> bytes:
        """The attribute's value. NotFound says which was missing: collection, object or attribute."""
        key = name_bytes("attribute", attribute)
        with self._lock:
            found = self._find(collection, name, rev).attributes.get(key)
        if found is None:
            raise NotFound("attribute", key)
        return found

    def getattrs(self, collection: Name, name: Name, *, rev: int = 0) -> dict[bytes, bytes]:
        """All attributes, in order of their names."""
        with self._lock:
            return dict(sorted(self._find(collection, name, rev).attributes.items()))

    def map_get(self, collection: Name, name: Name, key: bytes, *, rev: int = 0) -> bytes | None:
        """The value of one key, None when the map does not have it."""
        return self.map_get_many(collection, name, [key], rev=rev)[0]

    def map_get_many(self, collection: Name, name: Name, keys: Sequence[bytes], *, rev: int = 0) -> list[bytes | None]:
        """The values of the keys, in their order, all of one moment."""
        wanted = many_frozen("keys", keys)
        with self._lock:
            records = self._find(collection, name, rev).map
            return [records.get(key) for key in wanted]

    def map_header(self, collection: Name, name: Name, *, rev: int = 0) -> bytes:
        """The map's header, empty when none was set."""
        with self._lock:
            return self._find(collection, name, rev).header

    def map_items(
        self,
        collection: Name,
        name: Name,
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        rev: int = 0,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Records with start <= key < stop in order (reverse: from the end), as they are at this call, whatever is written
        later. Costs the next writer of the object a copy of it."""
        first, end = bound("start", start), bound("stop", stop)
        with self._lock:
            found = self._find(collection, name, rev)
            found.freeze()
        if first is not None and end is not None and first >= end:
            return iter(())
        records = found.map
        return ((key, records[key]) for key in records.irange(first, end, inclusive=(True, False), reverse=reverse))

    def list_objects(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None, *,
        reverse: bool = False,
    ) -> list[bytes]:  # fmt: skip
        """Names with start <= name < stop in order (reverse: from the end), at most `limit`. Page on with
        start = last + b'\\0' (reverse: stop = last)."""
        limit, low, high = page_limit(limit), name_bound("start", start), name_bound("stop", stop)
        with self._lock:
            objects = self._collection(collection).objects
            if low is not None and high is not None and low >= high:
                return []
            names = objects.irange(low, high, inclusive=(True, False), reverse=reverse)
            return [name for name, _ in zip(names, range(limit))] if limit is not None else list(names)

    def revisions(self, collection: Name, name: Name) -> list[Revision]:
        """The object's revisions, oldest first; the object itself need not exist."""
        home, wanted = collection_name(collection), object_name(name)
        with self._lock:
            kept = self._collection(home).kept(wanted)
            return [Revision(rev, found.created_rev) for rev, found in kept.items()]

    def list_revised(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None
    ) -> list[bytes]:
        """Names that have revisions, whether the object exists or not, as `list_objects`."""
        limit, low, high = page_limit(limit), name_bound("start", start) or b"", name_bound("stop", stop)
        with self._lock:
            names = sorted({name for name, _ in self._collection(collection).revisions})
        return [name for name in names if low <= name and (high is None or name < high)][:limit]

    def list_collections(self) -> list[bytes]:
        """Every collection's name, in order."""
        with self._lock:
            self._assert_usable()
            return list(self._state.collections)

    def statistics(self) -> dict[str, int | float]:
        """size_bytes (a nominal 1 TiB), free_bytes, allocated_bytes (data blocks), objects, collections. Cost: a walk."""
        with self._lock:
            self._assert_usable()
            entries = list(self._state.collections.values())
            held = [found for entry in entries for found in (*entry.objects.values(), *entry.revisions.values())]
            allocated = sum(len(found.blocks) * BLOCK for found in held)
            objects = sum(len(entry.objects) + len(entry.revisions) for entry in entries)
        return {
            "size_bytes": _SIZE_BYTES,
            "free_bytes": max(0, _SIZE_BYTES - allocated),
            "allocated_bytes": allocated,
            "objects": objects,
            "collections": len(entries),
        }

    # -- inside --------------------------------------------------------------------------------------------------------

    def _assert_writable(self) -> None:
        self._assert_usable()
        if self._view_of is not None:
            raise ReadOnly("a snapshot never changes")

    def _assert_usable(self) -> None:
        if self._error is not None:
            raise self._error

    def _collection(self, collection: Name) -> MemCollection:
        name = collection_name(collection)
        self._assert_usable()
        found: MemCollection | None = self._state.collections.get(name)
        if found is None:
            raise NotFound("collection", name)
        return found

    def _lookup(self, collection: Name, name: Name, rev: int = 0) -> MemObject | None:
        home, wanted, at = collection_name(collection), object_name(name), revision(rev)
        return self._collection(home).find(wanted, at)

    def _find(self, collection: Name, name: Name, rev: int = 0) -> MemObject:
        found = self._lookup(collection, name, rev)
        if found is None:
            raise NotFound("object", object_name(name))
        return found
