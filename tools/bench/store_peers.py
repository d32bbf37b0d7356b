"""The contestants of `mdstore bench store`: the same few durable writes, each by the means its own manual recommends."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from mdstore.device.file import FileDevice
from mdstore.store import Store


def _optional(module: str) -> Any:
    """A peer's package, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


lmdb, plyvel, rocksdict = _optional("lmdb"), _optional("plyvel"), _optional("rocksdict")

Pairs = Sequence[tuple[bytes, bytes]]
MIB: Final = 1 << 20


class Engine(Protocol):
    """`batch` and `put` are durable when they return."""

    name: str

    def batch(self, pairs: Pairs) -> None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def close(self) -> None: ...


class Ours:
    name = "mdstore"

    def __init__(self, place: Path, *, size_bytes: int = 2048 * MIB, **options: Any) -> None:
        self.path = place / "image"
        self.store = Store.create(FileDevice.create(self.path, size_bytes), **options)
        self.view = self.store.map("bench", "map")
        self.batch = self.view.update
        self.put = self.view.put

    def close(self) -> None:
        self.store.close()


class Bare:
    """What any of them must pay: the bytes and one fdatasync, in a file written before."""

    name = "bare pwrite + fdatasync"

    def __init__(self, place: Path) -> None:
        self._descriptor = os.open(place / "bare", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = 64 * MIB
        for offset in range(0, self._size, MIB):
            os.pwrite(self._descriptor, bytes(MIB), offset)
        os.fsync(self._descriptor)
        self._offset = 0

    def batch(self, pairs: Pairs) -> None:
        data = b"".join([key + value for key, value in pairs])
        if self._offset + len(data) > self._size:
            self._offset = 0
        os.pwrite(self._descriptor, data, self._offset)
        self._offset += len(data)
        os.fdatasync(self._descriptor)

    def put(self, key: bytes, value: bytes) -> None:
        self.batch(((key, value),))

    def close(self) -> None:
        os.close(self._descriptor)


class Lmdb:
    name = "LMDB"

    def __init__(self, place: Path) -> None:
        self._environment = lmdb.open(str(place / "lmdb"), map_size=4096 * MIB)

    def batch(self, pairs: Pairs) -> None:
        with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(pairs)

    def put(self, key: bytes, value: bytes) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(key, value)

    def close(self) -> None:
        self._environment.close()


class LevelDb:
    name = "LevelDB"

    def __init__(self, place: Path, **options: Any) -> None:
        self.path = place / "leveldb"
        self._database = plyvel.DB(str(self.path), create_if_missing=True, **options)

    def batch(self, pairs: Pairs) -> None:
        with self._database.write_batch(sync=True) as batch:
            for key, value in pairs:
                batch.put(key, value)

    def put(self, key: bytes, value: bytes) -> None:
        self._database.put(key, value, sync=True)

    def close(self) -> None:
        self._database.close()


class RocksDb:
    name = "RocksDB"

    def __init__(self, place: Path) -> None:
        self._database = rocksdict.Rdict(str(place / "rocksdb"), rocksdict.Options(raw_mode=True))
        options = rocksdict.WriteOptions()
        options.sync = True
        self._database.set_write_options(options)
        self._options = options

    def batch(self, pairs: Pairs) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self._database.write(batch, self._options)

    def put(self, key: bytes, value: bytes) -> None:
        self._database.put(key, value, self._options)

    def close(self) -> None:
        self._database.close()


class Sqlite:
    name = "SQLite WAL"

    def __init__(self, place: Path) -> None:
        self._database = sqlite3.connect(place / "sqlite", isolation_level=None)
        for statement in (
            "pragma journal_mode=wal", "pragma synchronous=full",
            "create table map(key blob primary key, value blob) without rowid",
        ):  # fmt: skip
            self._database.execute(statement)

    def batch(self, pairs: Pairs) -> None:
        self._database.execute("begin")
        self._database.executemany("insert or replace into map values (?, ?)", pairs)
        self._database.execute("commit")

    def put(self, key: bytes, value: bytes) -> None:
        self._database.execute("insert or replace into map values (?, ?)", (key, value))

    def close(self) -> None:
        self._database.close()


def engines(place: Path, *, bare: bool = False) -> list[Engine]:
    """Ours and every peer that is installed, each fresh below `place`."""
    place.mkdir()
    found: list[Engine] = [Ours(place)]
    found += [Bare(place)] if bare else []
    found += [LevelDb(place)] if plyvel else []
    found += [RocksDb(place)] if rocksdict else []
    found += [Lmdb(place)] if lmdb else []
    return [*found, Sqlite(place)]
