"""Reads beside a map that may have to move: the gate between reads and growth, and iterations that survive it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Any

from mdstore.errors import MdstoreError

Record = tuple[bytes, bytes]


class Gate:
    """Any number of reads at a time, or one growth of the map."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


class Iteration:
    """Records of one map at one moment: a read transaction of its own, given back at the end or when nobody looks."""

    def __init__(self, txn: Any, records: Iterator[Record]) -> None:
        self._lock = Lock()
        self._txn = txn
        self._records = records
        self._error: MdstoreError | None = None

    def __iter__(self) -> Iteration:
        return self

    def __next__(self) -> Record:
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                return next(self._records)
            except StopIteration:
                self._release(iter(()))
                raise

    def __del__(self) -> None:
        self._release(iter(()))

    def drain(self) -> None:
        """Take the rest into memory, so that the map may move."""
        with self._lock:
            self._release(iter(list(self._records)))

    def left_behind(self, error: MdstoreError) -> Any:
        """In a forked child: out of reach. Returns the transaction, which is the parent's to end."""
        self._lock = Lock()
        txn, self._txn, self._error = self._txn, None, error
        return txn, self._records

    def cut(self, error: MdstoreError) -> None:
        """The store closes: what is left is out of reach."""
        with self._lock:
            if self._txn is not None:
                self._error = error
            self._release(iter(()))

    def _release(self, rest: Iterator[Record]) -> None:
        self._records = rest
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
