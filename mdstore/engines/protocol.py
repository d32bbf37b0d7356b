"""The ObjectStore protocol: what the metadata server, and any other user, asks of a store.

`btree:` (the store), `lmdb:` (chunks in an LMDB environment) and `mem:` (plain dictionaries: the model every other engine is
compared with) implement it. What a method says here holds for all of them; each adds what is its own.
Reads see every transaction whose `submit` has returned. Edge rules, the same for every engine:

* collections and objects are ordered by the bytes of their names;
* a query of an object that does not exist is NotFound('object'), in a collection that does not exist NotFound('collection');
* a transaction names its collections: an operation in one that does not exist is refused (NotFound('collection'));
* `read` is short at the end of the data and empty past it; holes read as zeros;
* getattr: NotFound('object') and NotFound('attribute') are different answers;
* a transaction either applies whole or raises TransactionError (index, cause) with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from mdstore.store.answers import Capabilities, ObjectStat, Revision, SnapshotInfo
from mdstore.store.transaction import Name, Transaction

__all__ = ["Capabilities", "Commit", "Name", "ObjectStat", "ObjectStore", "Revision", "SnapshotInfo", "Transaction"]


class Commit(Protocol):
    """A submitted transaction. It is applied when `submit` returns; durable when `wait` returns."""

    @property
    def durable(self) -> bool:
        """Whether it survives a crash already. Never waits."""

    def wait(self, timeout: float | None = None) -> None:
        """Return when the transaction survives a crash. DeviceFailed when the medium failed before that; TimeoutError."""

    def add_done_callback(self, callback: Callable[[BaseException | None], None]) -> None:
        """Call `callback(None)` when durable, or `callback(error)`; at once when it is so already. From any thread."""

    def __await__(self) -> Generator[Any, None, None]:
        """What `wait` does, for a task of asyncio. Cancelling the task takes nothing back."""


class ObjectStore(Protocol):
    """Objects of data, attributes and maps in ordered collections, changed by transactions. Safe to call from many threads.

    Every call may raise StoreClosed after `close`, DeviceFailed once the medium has failed, and, where it reads what is not
    cached, CorruptionError: damage that names its place. A `with` closes it.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What of this protocol the engine promises; the others are refused or weaker, as `Capabilities` says."""

    @property
    def read_only(self) -> bool:
        """Whether every change is refused (ReadOnly)."""

    # -- changes -------------------------------------------------------------------------------------------------------
    def submit(self, transaction: Transaction) -> Commit:
        """Validate and apply; later reads see it. Durable later: `Commit.wait`. May block while the log is full.
        TransactionError (nothing changed), DeviceFailed, NoSpace inside TransactionError, FencedError, ReadOnly."""

    def apply(self, transaction: Transaction) -> None:
        """`submit` and wait until durable."""

    def sync(self) -> None:
        """Return when everything submitted before is durable."""

    def set_floor_and_read(
        self, collection: Name, name: Name, floor: int, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Raise the object's floor (it need not exist) and return its bytes in one step; the floor is durable on return."""

    # -- snapshots: UnsupportedOperation from an engine whose `capabilities` say that it has none -------------------------
    def snapshot(self, name: Name) -> None:
        """Keep everything as it is under a name (1 to SNAPSHOT_NAME_MAX bytes); durable on return, with all submitted before.
        AlreadyExists, InvalidRequest, LimitExceeded, NoSpace, ReadOnly."""

    def snapshots(self) -> list[SnapshotInfo]:
        """All of them, oldest first."""

    def open_snapshot(self, name: Name) -> ObjectStore:
        """A snapshot as a store that answers every query, refuses every change (ReadOnly) and never changes. NotFound."""

    def delete_snapshot(self, name: Name) -> None:
        """Forget a snapshot; durable on return. NotFound, SnapshotBusy while it is open, ReadOnly."""

    # -- queries: `rev` asks for an object as it was at that revision, 0 as it is. Each raises NotFound("collection") or
    # -- NotFound("object"); what is read was written by a transaction that was applied, durable or not ---------------------
    def exists(self, collection: Name, name: Name, *, rev: int = 0) -> bool:
        """Whether the object is there; for one that is not, False."""

    def stat(self, collection: Name, name: Name, *, rev: int = 0) -> ObjectStat:
        """Size of the data and bytes it takes on the medium, number of attributes and of map keys, revision of its creation."""

    def read(self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0) -> bytes:
        """`length` bytes of the data from `offset` (None: to the end): short at the end, empty past it, zeros in holes.
        InvalidRequest where either is negative."""

    def extents(
        self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0
    ) -> list[tuple[int, int]]:
        """Ranges (offset, length) of the data stream that are not holes, in order, block granularity, cut at the size."""

    def getattr(self, collection: Name, name: Name, attribute: Name, *, rev: int = 0) -> bytes:
        """One attribute. NotFound("attribute") where the object has it not."""

    def getattrs(self, collection: Name, name: Name, *, rev: int = 0) -> dict[bytes, bytes]:
        """All attributes, in the order of their names; the dict is the caller's."""

    def map_get(self, collection: Name, name: Name, key: bytes, *, rev: int = 0) -> bytes | None:
        """The value of one key of the object's map; None where it has none."""

    def map_get_many(self, collection: Name, name: Name, keys: Sequence[bytes], *, rev: int = 0) -> list[bytes | None]:
        """The values of many keys, in the order of `keys`, all from one moment; None for each that is not there."""

    def map_header(self, collection: Name, name: Name, *, rev: int = 0) -> bytes:
        """The map's header, b"" where none was set."""

    def map_items(
        self, collection: Name, name: Name, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        rev: int = 0,
    ) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
        """start <= key < stop in order (reverse: the same range from its end); stable while writers run."""

    def list_objects(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None, *,
        reverse: bool = False,
    ) -> list[bytes]:  # fmt: skip
        """Names with start <= name < stop, in order (reverse: the same range from its end), at most `limit`; page on with
        start = last + b'\\0' (reverse: stop = last). Looks no further than the first name that it does not give."""

    def revisions(self, collection: Name, name: Name) -> list[Revision]:
        """The object's revisions, oldest first; the object itself need not exist."""

    def list_revised(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None
    ) -> list[bytes]:
        """Names that have revisions, whether the object exists or not; as `list_objects`."""

    def list_collections(self) -> list[bytes]:
        """Names of all collections, in order."""

    def statistics(self) -> dict[str, int | float]:
        """At least size_bytes, free_bytes, allocated_bytes, objects (what statfs needs); plain numbers."""

    def close(self) -> None:
        """Make everything durable and release the medium. Again: nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`close`."""
