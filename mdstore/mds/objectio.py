"""The journal's view of an object store: named objects of bytes in one collection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from journal import JournalFenced
from journal.medium import Buffer
from mdstore.engines.protocol import Commit, ObjectStore
from mdstore.errors import FencedError, NotFound, TransactionError
from mdstore.mds.listing import names_between
from mdstore.store.transaction import Transaction

WRITE_BYTES: Final = 8 << 20  # in one transaction


class StoreObjects:
    """`journal.ObjectIO` over the collection `collection` of `store`.

    Writes are visible on return. `flush` waits for the last of them; with an engine whose commits are ordered that makes
    everything submitted before durable too, file data included.
    """

    def __init__(self, store: ObjectStore, collection: bytes, *, epoch: int = 0) -> None:
        self.epoch = epoch
        self._store = store
        self._collection = collection
        self._ordered = store.capabilities.ordered_commits
        self._last: list[Commit] = []
        log_bytes = int(store.statistics().get("log_bytes", 0))  # of an engine whose own log must take a write whole
        self._write_bytes = min(WRITE_BYTES, log_bytes // 4) if log_bytes else WRITE_BYTES

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            return self._store.read(self._collection, name, offset, length)
        except NotFound:
            return b""

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        data = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        for start in range(0, max(1, len(data)), self._write_bytes):
            part = data[start : start + self._write_bytes]
            self._submit(self._begin().write(self._collection, name, offset + start, part))

    def truncate(self, name: str, size: int) -> None:
        current = self.stat(name)
        if current is not None and current > size:
            self._submit(self._begin().truncate(self._collection, name, size))

    def remove(self, name: str) -> None:
        if self._store.exists(self._collection, name):
            self._submit(self._begin().remove(self._collection, name))

    def stat(self, name: str) -> int | None:
        try:
            return self._store.stat(self._collection, name).size
        except NotFound:
            return None

    def list_names(self, prefix: str) -> Iterable[str]:
        start = prefix.encode()
        return [name.decode("latin-1") for name in names_between(self._store, self._collection, start, _after(start))]

    def flush(self) -> None:
        """Every write that returned before is durable when this returns."""
        pending, self._last = self._last, []
        for commit in pending:
            commit.wait()

    def set_floor(self, prefix: str, floor: int) -> None:
        self._submit(Transaction().set_floor(floor, self._collection, prefix=prefix))
        self.flush()

    def set_floor_and_read(self, name: str, floor: int, offset: int, length: int) -> bytes:
        try:
            return self._store.set_floor_and_read(self._collection, name, floor, offset, length)
        except TransactionError as error:
            if isinstance(error.cause, FencedError):
                raise JournalFenced(error.cause.where, error.cause.epoch, error.cause.floor) from error
            raise

    def _begin(self) -> Transaction:
        return Transaction(epoch=self.epoch or None)

    def _submit(self, transaction: Transaction) -> None:
        try:
            commit = self._store.submit(transaction)
        except FencedError as error:
            raise JournalFenced(error.where, error.epoch, error.floor) from error
        except TransactionError as error:
            if isinstance(error.cause, FencedError):
                raise JournalFenced(error.cause.where, error.cause.epoch, error.cause.floor) from error
            raise
        if self._ordered:
            self._last = [commit]
        else:
            self._last.append(commit)


def _after(prefix: bytes) -> bytes:
    """The first name behind all that begin with `prefix`, which is text of no 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
