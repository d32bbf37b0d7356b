"""Readers of a store that stay open while it changes, each with what it must go on to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random

from mdstore.engines.mem import MemStore
from mdstore.store.mapview import MapSnapshot
from mdstore.store.snapshot_table import Kept
from mdstore.store.snapshots import SnapshotView
from mdstore.store.store import Store
from mdstore.tools.crash.transactions import content_of

Pairs = list[tuple[bytes, bytes]]


class Readers:
    """Of one store and the model beside it; `look` and `close` fail where one finds anything but what it began with."""

    def __init__(self, store: Store, model: MemStore, rng: Random) -> None:
        self._store = store
        self._model = model
        self._rng = rng
        self._open: list[Reader] = []

    def __len__(self) -> int:
        return len(self._open)

    def open(self) -> None:
        """One more: a snapshot of a map, an iterator in the middle of one, or a walk of the durable superblock."""
        kinds = (self._snapshot, self._iterator, self._superblock)
        self._open.append(self._rng.choices(kinds, weights=(3, 2, 1))[0]())

    def look(self) -> None:
        """All of them read now."""
        for reader in self._open:
            reader.look()

    def close(self) -> None:
        """One of them reads for the last time, if there is any."""
        if self._open:
            self._open.pop(self._rng.randrange(len(self._open))).close()

    def _target(self) -> tuple[bytes, bytes] | None:
        model = self._model
        there = [(collection, name) for collection in model.list_collections() for name in model.list_objects(collection)]
        return self._rng.choice(there) if there else None

    def _snapshot(self) -> Reader:
        target = self._target()
        if target is None:
            return self._superblock()
        return OfMap(self._store.map(*target, sync=False).snapshot(), list(self._model.map_items(*target)))

    def _iterator(self) -> Reader:
        target = self._target()
        if target is None:
            return self._superblock()
        pairs = list(self._model.map_items(*target))
        iterator = self._store.map_items(*target)
        skipped = self._rng.randrange(len(pairs) // 2 + 1)
        assert [next(iterator) for _ in range(skipped)] == pairs[:skipped]
        return OfIterator(iterator, pairs[skipped:])

    def _superblock(self) -> Reader:
        return OfSuperblock(self._store)


class Reader:
    """One of them."""

    def look(self) -> None:
        """Read without an end."""

    def close(self) -> None:
        """Read once more, and let go."""


class OfMap(Reader):
    def __init__(self, snapshot: MapSnapshot, pairs: Pairs) -> None:
        self._snapshot = snapshot
        self._pairs = pairs

    def look(self) -> None:
        assert list(self._snapshot.items()) == self._pairs
        assert all(self._snapshot.get(key) == value for key, value in self._pairs)

    def close(self) -> None:
        self.look()
        self._snapshot.close()


class OfIterator(Reader):
    def __init__(self, iterator: Iterator[tuple[bytes, bytes]], left: Pairs) -> None:
        self._iterator = iterator
        self._left = left

    def close(self) -> None:
        assert list(self._iterator) == self._left


class OfSuperblock(Reader):
    """As a scrub does, for longer."""

    def __init__(self, store: Store) -> None:
        self._stack = ExitStack()
        kept = Kept(b"pinned", self._stack.enter_context(store.pinned()), 0)
        self._read: Callable[[], dict[str, object]] = lambda: content_of(SnapshotView(store.device, kept, 0, lambda: None))
        self._content = self._read()

    def look(self) -> None:
        assert self._read() == self._content

    def close(self) -> None:
        with self._stack:
            self.look()
