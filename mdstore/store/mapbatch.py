"""Several changes of an object's map in one transaction: what `MapView.batch` returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, overload

from mdstore.store.mapreads import MapLookups
from mdstore.store.operands import Data, frozen

if TYPE_CHECKING:
    from mdstore.store.mapview import MapView

Other = TypeVar("Other")
Pairs = Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]


class Batch(MapLookups):
    """Changes that become one transaction. Reads see the batch's own changes over the map as it is. Not for two threads."""

    def __init__(self, view: MapView, sync: bool) -> None:
        self._view = view
        self._sync = sync
        self._changes: dict[bytes, bytes | None] = {}

    def put(self, key: Data, value: Data) -> None:
        """Set the value when the batch is committed."""
        self._changes[as_bytes(key)] = as_bytes(value)

    __setitem__ = put

    def update(self, pairs: Pairs) -> None:
        """Set many values when the batch is committed. TypeError for what is no pair of buffers: the batch is as it was."""
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        self._changes.update(dict(_pair(number, item) for number, item in enumerate(given)))

    def delete(self, key: Data) -> bool:
        """Remove the key when the batch is committed; False when it was not there."""
        raw = as_bytes(key)
        was_there = self.get(raw) is not None
        self._changes[raw] = None
        return was_there

    def __delitem__(self, key: bytes) -> None:
        if not self.delete(key):
            raise KeyError(key)

    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes | Other) -> bytes | Other: ...
    def get(self, key: bytes, default: object = None) -> object:
        """The value as it will be after the commit, as far as this batch decides it."""
        raw = as_bytes(key)
        if raw in self._changes:
            value = self._changes[raw]
            return default if value is None else value
        return self._view.get(raw, default)

    def __len__(self) -> int:
        """How many keys the batch changes."""
        return len(self._changes)

    def commit(self) -> None:
        """Submit what was collected so far as one transaction; the batch is empty then and can be used again. Where it is
        refused, the batch keeps everything: mend what was refused, and commit again."""
        submitted = self._view.submit_changes(self._changes)
        self._changes = {}
        if self._sync and submitted is not None:
            submitted.wait()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()


def as_bytes(data: Data) -> bytes:
    """Bytes that nobody else can change. TypeError for what is no buffer (an int would silently become zeros)."""
    return data if type(data) is bytes else frozen("a key or value", data)


def _pair(number: int, item: tuple[Data, Data]) -> tuple[bytes, bytes]:
    """One of several, numbered from 0. TypeError for what is no pair, as `Transaction.map_set` says it."""
    try:
        key, value = item
    except (TypeError, ValueError):
        raise TypeError(f"pair {number}: a key and a value are wanted, not {type(item).__name__}") from None
    return as_bytes(key), as_bytes(value)
