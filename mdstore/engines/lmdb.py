"""`lmdb:DIR`: objects in an LMDB environment, for people who trust it already. Needs the `lmdb` package.

A transaction is one LMDB write transaction with its own flush, so a commit is durable when `submit` returns: whoever wants
speed puts many operations into one transaction. (LMDB can commit without flushing and flush later, but a machine that stops
between the two may then find neither of its roots whole; what was acknowledged before would be lost with the rest.)
Reads are LMDB read transactions: they never wait for a writer, nor a writer for them.

Invariants

1. Only `_write` opens write transactions, one at a time, under `_writing`.
2. Growing the map needs a moment without any transaction: `Gate` keeps new reads out and waits for running ones, and open
   iterations are drained into memory first.
3. After the first failure of LMDB, `_failure` is set and every later call raises it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Final, Never, TypeVar
from weakref import WeakSet

from mdstore.device import forks
from mdstore.device.lock import lock_image
from mdstore.engines.lmdb_apply import Applier, View
from mdstore.engines.lmdb_reads import Gate, Iteration, Record
from mdstore.engines.lmdb_tables import (
    DATABASES,
    FORMAT_VERSION,
    KEY_MAX,
    META_FORMAT,
    META_NEXT_NUMBER,
    U64,
    Databases,
    Onode,
    Table,
    decode_floor,
)
from mdstore.engines.protocol import Capabilities, Commit, ObjectStat, Revision, SnapshotInfo
from mdstore.errors import (
    DeviceFailed,
    Forked,
    InvalidRequest,
    MdstoreError,
    NoSpace,
    NotAnImage,
    NotFound,
    ReadOnly,
    StoreClosed,
    TransactionError,
    UnsupportedFormat,
    UnsupportedOperation,
)
from mdstore.limits import GIB, MIB, TIB
from mdstore.store.floors import Floors, Scope
from mdstore.store.operands import (
    bound,
    check_callback,
    many_frozen,
    name_bound,
    name_bytes,
    number,
    page_limit,
    revision,
    window,
)
from mdstore.store.revisions import MARK
from mdstore.store.transaction import Name, Op, Operation, Transaction, collection_name, object_name, submitted

MAP_BYTES_FIRST: Final = 64 * MIB  # of address space; the file grows only as it is written
MAP_BYTES_MAX: Final = 16 * TIB
READERS_MAX: Final = 4096  # read transactions at once, open iterations included
_GROWTH_MAX: Final = 64 * GIB
_COMMIT_BYTES: Final = (
    MIB  # a write that fails with less room than that failed for want of room: LMDB says only "I/O error"
)

Result = TypeVar("Result")


class LmdbCommit:
    """A transaction that LMDB has committed and flushed."""

    __slots__ = ()
    durable = True

    def wait(self, timeout: float | None = None) -> None:
        """Returns at once."""

    def add_done_callback(self, callback: Callable[[BaseException | None], None]) -> None:
        """Calls `callback(None)` at once."""
        check_callback(callback)(None)

    def __await__(self) -> Generator[Any, None, None]:
        """Returns at once."""
        yield from ()


class LmdbStore:
    """An `ObjectStore` in an LMDB environment. Safe to call from many threads; one process at a time."""

    def __init__(self, directory: Path | str, *, read_only: bool = False, map_bytes_max: int = MAP_BYTES_MAX) -> None:
        """Open the environment in `directory`, made when it is not there. `map_bytes_max`: how large it may become.
        Errors: ImageBusy, NotAnImage, UnsupportedFormat, DeviceFailed; InvalidRequest without the `lmdb` package."""
        self._lmdb = _import_lmdb()
        self._directory = Path(directory)
        self._read_only = read_only
        self._map_bytes_max = number("map_bytes_max", map_bytes_max, MAP_BYTES_MAX, least=1)
        self._writing = RLock()
        self._gate = Gate()
        self._iterations: WeakSet[Iteration] = WeakSet()
        self._failure: MdstoreError | None = None
        self._lock_fd = self._lock_directory()
        try:
            self._environment = self._open()
            self._databases = self._open_databases()
            self._floors = self._load_floors()
        except BaseException:
            os.close(self._lock_fd)
            raise
        forks.watch(self)

    @property
    def capabilities(self) -> Capabilities:
        """Everything but snapshots: LMDB's transactions are atomic, durable and ordered."""
        return Capabilities(multi_object_transactions=True, durable=True, ordered_commits=True)

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self._read_only

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, name: Name) -> Never:
        """UnsupportedOperation, as the three below: LMDB keeps one state, and older ones only while they are being read."""
        raise UnsupportedOperation(f"lmdb:{self._directory} keeps no snapshots; btree: does")

    def snapshots(self) -> list[SnapshotInfo]:
        return self.snapshot(b"")

    def open_snapshot(self, name: Name) -> Never:
        self.snapshot(name)

    def delete_snapshot(self, name: Name) -> Never:
        self.snapshot(name)

    # -- changes -------------------------------------------------------------------------------------------------------

    def submit(self, transaction: Transaction) -> Commit:
        """Apply in one LMDB transaction, durable on return. TransactionError: nothing was changed.
        Cost: the pages it touches, copied up to the root, and one flush."""
        self._assert_usable()
        submitted(transaction)
        if self._read_only:
            raise ReadOnly(f"{self._directory} is open read-only")
        with self._writing:
            while not self._write(transaction):
                self._grow(transaction)
        return LmdbCommit()

    def apply(self, transaction: Transaction) -> None:
        """The same as `submit`."""
        self.submit(transaction)

    def sync(self) -> None:
        """Nothing to do: every commit is durable."""
        self._assert_usable()

    def set_floor_and_read(
        self, collection: Name, name: Name, floor: int, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Raise the object's floor and return its bytes (empty where there is no object), in one step; durable on return."""
        offset, length = window(offset, length)
        home, wanted = collection_name(collection), object_name(name)

        def bytes_of(view: View) -> bytes:
            there = view.txn.get(home, db=self._databases.collections) is not None
            found = view.find(home, wanted) if there else None
            return b"" if found is None else view.read(found, offset, length)

        with self._writing:
            self.submit(Transaction().set_floor(floor, home, name=wanted))
            return self._ask(bytes_of)

    def left_behind(self, error: Forked) -> None:
        """In a forked child. LMDB's table of readers is shared with the parent: ending a transaction here would end it there."""
        self._failure, self._writing, self._gate = error, RLock(), Gate()
        forks.never_free([self._environment, *(each.left_behind(error) for each in self._iterations)])
        os.close(self._lock_fd)

    def close(self) -> None:
        """Release the environment; iterations still open raise StoreClosed. Again: nothing."""
        with self._writing, self._gate.alone():
            if isinstance(self._failure, StoreClosed):  # or left behind by a fork
                return
            self._failure = StoreClosed(f"{self._directory} was closed")
            for iteration in list(self._iterations):
                iteration.cut(self._failure)
            self._environment.close()
            os.close(self._lock_fd)

    def __enter__(self) -> LmdbStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- queries -------------------------------------------------------------------------------------------------------

    def exists(self, collection: Name, name: Name, *, rev: int = 0) -> bool:
        """Whether the object is there. NotFound('collection') when its collection is not. This and every query below: `rev`
        asks for it as it was at that revision (0: now)."""
        home, wanted, at = _place(collection, name, rev)
        return self._ask(lambda view: view.find_at(home, wanted, at)) is not None

    def stat(self, collection: Name, name: Name, *, rev: int = 0) -> ObjectStat:
        """Size, bytes stored, number of attributes and of map keys, revision of its creation."""
        home, wanted, at = _place(collection, name, rev)
        return self._ask(lambda view: _stat(view.need(home, wanted, at)))

    def read(self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0) -> bytes:
        """The bytes of the range: short at the end of the data, empty past it, zeros in holes."""
        offset, length = window(offset, length)
        home, wanted, at = _place(collection, name, rev)
        return self._ask(lambda view: view.read(view.need(home, wanted, at), offset, length))

    def extents(
        self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0
    ) -> list[tuple[int, int]]:
        """Ranges (offset, length) inside the window that are not holes, in order, cut at the size."""
        offset, length = window(offset, length)
        home, wanted, at = _place(collection, name, rev)
        return self._ask(lambda view: view.extents(view.need(home, wanted, at), offset, length))

    def getattr(self, collection: Name, name: Name, attribute: Name, *, rev: int = 0) -> bytes:
        """The attribute's value. NotFound says which was missing: collection, object or attribute."""
        key = name_bytes("attribute", attribute)
        place = _place(collection, name, rev)
        found = self._ask(lambda view: self._databases.attributes.get(*_owner(view, place), key))
        if found is None:
            raise NotFound("attribute", key)
        return found

    def getattrs(self, collection: Name, name: Name, *, rev: int = 0) -> dict[bytes, bytes]:
        """All attributes, in order of their names."""
        place = _place(collection, name, rev)
        return self._ask(lambda view: dict(self._databases.attributes.items(*_owner(view, place), None, None)))

    def map_get(self, collection: Name, name: Name, key: bytes, *, rev: int = 0) -> bytes | None:
        """The value of one key, None when the map does not have it."""
        return self.map_get_many(collection, name, [key], rev=rev)[0]

    def map_get_many(self, collection: Name, name: Name, keys: Sequence[bytes], *, rev: int = 0) -> list[bytes | None]:
        """The values of the keys, in their order, all of one moment."""
        wanted, place = many_frozen("keys", keys), _place(collection, name, rev)

        def look_up(view: View) -> list[bytes | None]:
            owner = _owner(view, place)
            return [self._databases.maps.get(*owner, key) if key else None for key in wanted]

        return self._ask(look_up)

    def map_header(self, collection: Name, name: Name, *, rev: int = 0) -> bytes:
        """The map's header, empty when none was set."""
        place = _place(collection, name, rev)
        return self._ask(lambda view: self._databases.maps.get(*_owner(view, place), b"")) or b""

    def map_items(
        self,
        collection: Name,
        name: Name,
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        rev: int = 0,
    ) -> Iterator[Record]:
        """Records with start <= key < stop in order (reverse: from the end), as they are at this call. Holds a read
        transaction until it ends or is dropped: LMDB reuses no page that was freed after it began."""
        first, end = bound("start", start) or b"\0", bound("stop", stop)
        place = _place(collection, name, rev)
        with self._reading():
            txn = self._environment.begin()
            try:
                owner = _owner(View(txn, self._databases), place)
            except BaseException:
                txn.abort()
                raise
            found = Iteration(txn, self._databases.maps.items(*owner, first, end, reverse=reverse))
            self._iterations.add(found)
            return found

    def list_objects(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None, *,
        reverse: bool = False,
    ) -> list[bytes]:  # fmt: skip
        """Names with start <= name < stop in order (reverse: from the end), at most `limit`. Page on with
        start = last + b'\\0' (reverse: stop = last)."""
        limit, low, high = page_limit(limit), name_bound("start", start), name_bound("stop", stop)
        home = collection_name(collection)

        def names(view: View) -> list[bytes]:
            records = self._databases.objects.items(view.txn, view.collection(home), low, high, reverse=reverse)
            if limit is None:
                return [name for name, _ in records]
            return [name for _, (name, _) in zip(range(limit), records)]

        return self._ask(names)

    def revisions(self, collection: Name, name: Name) -> list[Revision]:
        """The object's revisions, oldest first; the object itself need not exist."""
        home, wanted = collection_name(collection), object_name(name)
        return self._ask(lambda view: [Revision(rev, onode.created_rev) for rev, onode in view.kept(home, wanted)])

    def list_revised(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None
    ) -> list[bytes]:
        """Names that have revisions, whether the object exists or not, as `list_objects`."""
        limit, low, high = page_limit(limit), name_bound("start", start) or b"", name_bound("stop", stop)
        home = collection_name(collection)
        return self._ask(lambda view: list(islice(view.revised(home, low, high), limit)))

    def list_collections(self) -> list[bytes]:
        """Every collection's name, in order."""
        return self._ask(lambda view: [name for name, _ in view.txn.cursor(db=self._databases.collections)])

    def statistics(self) -> dict[str, int | float]:
        """size_bytes (file system and file), free_bytes, allocated_bytes (of the file), objects, and LMDB's map. A walk
        over the objects only where names are long."""
        return self._ask(self._statistics)

    # -- inside: opening -----------------------------------------------------------------------------------------------

    def _lock_directory(self) -> int:
        if not self._read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        elif not (self._directory / "data.mdb").exists():
            raise NotAnImage(f"{self._directory} holds no LMDB environment")
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock_image(fd, str(self._directory), exclusive=not self._read_only)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open(self) -> Any:
        size = 0 if self._read_only else min(self._map_bytes_max, MAP_BYTES_FIRST)
        try:
            environment = self._lmdb.open(
                str(self._directory), map_size=size, max_dbs=len(DATABASES), max_readers=READERS_MAX,
                readonly=self._read_only,
            )  # fmt: skip
        except self._lmdb.Error as error:
            kinds = (self._lmdb.InvalidError, self._lmdb.VersionMismatchError)
            raise NotAnImage(str(error)) if isinstance(error, kinds) else self._failed("open", error) from error
        if environment.max_key_size() < KEY_MAX:
            raise UnsupportedFormat(
                f"this build of LMDB takes keys of {environment.max_key_size()} bytes, not {KEY_MAX}"
            )
        return environment

    def _open_databases(self) -> Databases:
        try:
            opened = [self._environment.open_db(name, create=not self._read_only) for name in DATABASES]
        except self._lmdb.NotFoundError as error:
            raise NotAnImage(f"{self._directory} is an LMDB environment, but not one of mdstore") from error
        meta, collections, objects, attributes, maps, data, floors = opened
        databases = Databases(meta, collections, Table(objects), Table(attributes), Table(maps), data, Table(floors))
        with self._environment.begin(write=not self._read_only) as txn:
            version = txn.get(META_FORMAT, db=meta)
            if version is None and not self._read_only:
                version = U64.pack(FORMAT_VERSION)
                txn.put(META_FORMAT, version, db=meta)
                txn.put(META_NEXT_NUMBER, U64.pack(1), db=meta)
        if version != U64.pack(FORMAT_VERSION):
            raise UnsupportedFormat(f"{self._directory} has format {version!r}, this is {FORMAT_VERSION}")
        return databases

    def _load_floors(self) -> Floors:
        with self._environment.begin() as txn:
            table = self._databases.floors
            found = [(scope, name, raw) for scope in Scope for name, raw in table.items(txn, scope, None, None)]
        return Floors({decode_floor(scope, name): int(U64.unpack(raw)[0]) for scope, name, raw in found})

    # -- inside: writing -----------------------------------------------------------------------------------------------

    def _write(self, transaction: Transaction) -> bool:
        """One attempt. False when the map is too small; nothing is changed then."""
        self._assert_usable()
        txn = self._environment.begin(write=True)
        try:
            applier = Applier(txn, self._databases, self._floors)
            for index, operation in enumerate(transaction.operations):
                self._apply(applier, transaction.epoch, index, operation)
            txn.commit()
            self._floors = applier.raised or self._floors
            return True
        except self._lmdb.MapFullError:
            txn.abort()
            return False
        except self._lmdb.Error as error:
            txn.abort()
            if self._free_bytes() < transaction.payload_bytes + _COMMIT_BYTES:
                raise TransactionError(0, "space", NoSpace(f"the file system of {self._directory} is full")) from error
            raise self._failed("commit", error) from error
        except BaseException:
            txn.abort()
            raise

    def _apply(self, applier: Applier, epoch: int | None, index: int, operation: Operation) -> None:
        try:
            if epoch is not None:
                self._floors.check(epoch, operation)
            applier.apply(operation)
        except MdstoreError as cause:
            raise TransactionError(index, Op(operation[0]).name.lower(), cause) from cause

    def _grow(self, transaction: Transaction) -> None:
        """Make the map larger, or refuse the transaction with NoSpace."""
        with self._gate.alone():
            size = self._environment.info()["map_size"]
            if size >= self._map_bytes_max:
                raise TransactionError(
                    0, "space", NoSpace(f"{self._directory} has reached its {self._map_bytes_max} bytes")
                )
            for iteration in list(self._iterations):
                iteration.drain()
            self._environment.set_mapsize(min(self._map_bytes_max, size + min(size, _GROWTH_MAX)))

    # -- inside: reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._gate.reading():
            self._assert_usable()
            try:
                yield
            except self._lmdb.Error as error:
                raise self._failed("read", error) from error

    def _ask(self, question: Callable[[View], Result]) -> Result:
        with self._reading(), self._environment.begin() as txn:
            return question(View(txn, self._databases))

    def _statistics(self, view: View) -> dict[str, int | float]:
        pages = self._environment.info()["last_pgno"] + 1
        used = pages * self._environment.stat()["psize"]
        free = min(self._free_bytes(), max(0, self._map_bytes_max - used))
        numbers = [int(U64.unpack(raw)[0]) for _, raw in view.txn.cursor(db=self._databases.collections)]
        return {
            "size_bytes": used + free,
            "free_bytes": free,
            "allocated_bytes": used,
            "objects": sum(self._count(view, number) + self._count(view, number | MARK) for number in numbers),
            "map_bytes": self._environment.info()["map_size"],
            "readers": self._environment.info()["num_readers"],
        }

    def _free_bytes(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def _count(self, view: View, collection: int) -> int:
        return sum(1 for _ in self._databases.objects.items(view.txn, collection, None, None))

    def _assert_usable(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _failed(self, operation: str, error: BaseException) -> DeviceFailed:
        failure = DeviceFailed(operation, str(self._directory), error)
        self._failure = getattr(self, "_failure", None) or failure
        return failure


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise InvalidRequest("lmdb: needs the lmdb package; install mdstore[lmdb]") from error
    return lmdb


def _stat(onode: Onode) -> ObjectStat:
    return ObjectStat(*onode[1:-1], checksum="none" if onode.unchecked else "crc32c")


def _place(collection: Name, name: Name, rev: int) -> tuple[bytes, bytes, int]:
    return collection_name(collection), object_name(name), revision(rev)


def _owner(view: View, place: tuple[bytes, bytes, int]) -> tuple[Any, int]:
    return view.txn, view.need(*place).number
