"""Workload `pairs`: keys set and deleted, for any engine that can hold keys; and the adapters for the stores of this package.

Each operation is one transaction that sets a key of a map and writes bytes derived from its value, so that the two must agree.
"""

from __future__ import annotations

from typing import Any, Final

from mdstore.device.file import FileDevice
from mdstore.device.protocol import Device
from mdstore.device.subject import Delete, Put
from mdstore.engines.lmdb import LmdbStore
from mdstore.engines.protocol import Commit, ObjectStore
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.verify import require, require_sound

SIZE: Final = 1 << 20
FILE_SIZE: Final = 4 << 20
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 64 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 128 * 1024, "dirty_bytes": 64 * 1024}
BATCH: Final = 3  # operations to an acknowledgement
COPIES: Final = 20  # of a value, in the data of the object

_COLLECTION: Final = b"pairs"
_MAP: Final = b"map"


class PairsSession:
    """An `ObjectStore` that is worked with; every `batch`-th transaction is waited for."""

    def __init__(self, store: ObjectStore, batch: int = BATCH) -> None:
        self._store = store
        self._batch = batch
        self._applied = 0
        self._durable = 0
        self._commits: list[Commit] = []

    def apply(self, operation: Put | Delete) -> None:
        transaction = Transaction()
        if isinstance(operation, Put):
            transaction.map_set(_COLLECTION, _MAP, {operation.key: operation.value})
            transaction.touch(_COLLECTION, operation.key).truncate(_COLLECTION, operation.key, 0)
            transaction.write(_COLLECTION, operation.key, 0, operation.value * COPIES)
        else:
            transaction.touch(_COLLECTION, _MAP).map_remove(_COLLECTION, _MAP, [operation.key])
            transaction.touch(_COLLECTION, operation.key).remove(_COLLECTION, operation.key)
        self._commits.append(self._store.submit(transaction))
        self._applied += 1
        if self._applied % self._batch == 0:
            for commit in self._commits:
                commit.wait()
            self._commits.clear()
            self._durable = self._applied

    def acknowledged(self) -> int:
        return self._durable

    def dump(self) -> dict[bytes, bytes]:
        """Check, and read every pair."""
        if isinstance(self._store, Store):
            require_sound(self._store)
        return self.pairs()

    def pairs(self) -> dict[bytes, bytes]:
        """Every pair, read in both of its places. Changes nothing on the medium."""
        store = self._store
        pairs = dict(store.map_items(_COLLECTION, _MAP)) if store.exists(_COLLECTION, _MAP) else {}
        objects = set(store.list_objects(_COLLECTION)) - {_MAP}
        require(objects == set(pairs), f"objects {sorted(objects)}, keys {sorted(pairs)}")
        for key, value in pairs.items():
            found = store.read(_COLLECTION, key)
            require(found == value * COPIES, f"object {key!r} holds {found[:40]!r}... where its key holds {value[:40]!r}")
        return pairs

    def close(self) -> None:
        self._store.close()


def begun(store: ObjectStore) -> PairsSession:
    """A session on an empty store. Durable on return."""
    store.apply(Transaction().create_collection(_COLLECTION))
    return PairsSession(store)


class StoreOnDevice:
    """The store on a device, everything in the calling thread. `batch`: operations to an acknowledgement, once reopened."""

    medium = "device"

    def __init__(self, batch: int = BATCH) -> None:
        self._batch = batch

    def format(self, device: Device) -> PairsSession:
        return begun(Store.create(device, **GEOMETRY, **SMALL, background=False))

    def open(self, device: Device) -> PairsSession:
        return PairsSession(Store.open(device, **SMALL, background=False), self._batch)


class StoreInFile:
    """The store in an image file, with the threads it has in use."""

    medium = "path"

    def format(self, path: str) -> PairsSession:
        return begun(Store.create(FileDevice.create(path, FILE_SIZE, exclusive=False), **GEOMETRY, **SMALL))

    def open(self, path: str) -> PairsSession:
        return PairsSession(Store.open(FileDevice.open(path), **SMALL))


class LmdbInDirectory:
    """The engine `lmdb:` in a directory. All its data lies in one file, which makes its crash states those of that file."""

    medium = "path"
    data_file = "data.mdb"

    def format(self, path: str) -> PairsSession:
        return begun(LmdbStore(path))

    def open(self, path: str) -> PairsSession:
        return PairsSession(LmdbStore(path))
