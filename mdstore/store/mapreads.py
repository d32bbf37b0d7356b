"""What every reader of an object's map answers: the ranges of a view and of a snapshot, and the snapshot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar, overload

from mdstore.btree import TreeView
from mdstore.store.operands import bound, frozen

Other = TypeVar("Other")


class MapLookups(ABC):
    """What whoever has `get` answers like a mapping."""

    @abstractmethod
    def get(self, key: bytes) -> object:
        """The value, or None."""

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if not isinstance(value, bytes):
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        """Whether the map has the key, given in any buffer. What is no buffer is no key: False."""
        try:
            raw = frozen("a key", key)  # type: ignore[arg-type]
        except TypeError:
            return False
        return self.get(raw) is not None


class MapReads(MapLookups):
    """What a view and a snapshot answer alike, from `get` and `_tree_for_range` alone."""

    @abstractmethod
    def _tree_for_range(self) -> TreeView | None:
        """What ranges are read from; None where there is no object."""

    def items(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in the order of the keys' bytes; `reverse`: the same range from its end.

        The map as it was at the call: writers neither disturb it nor wait. What was there then and they
        free is not reused until the iterator is exhausted or dropped.
        """
        first, end = bound("start", start), bound("stop", stop)
        tree = self._tree_for_range()
        return iter(()) if tree is None else tree.items(first, end, reverse=reverse)

    def keys(self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        """As `items`, the keys alone."""
        first, end = bound("start", start), bound("stop", stop)
        tree = self._tree_for_range()
        return iter(()) if tree is None else tree.keys(first, end, reverse=reverse)

    def values(self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        """As `items`, the values alone."""
        return (value for _, value in self.items(start, stop, reverse=reverse))

    def first(self) -> tuple[bytes, bytes] | None:
        """The pair of the smallest key, or None. Cost: one descent."""
        tree = self._tree_for_range()
        return None if tree is None else tree.first()

    def last(self) -> tuple[bytes, bytes] | None:
        """The pair of the largest key, or None. Cost: one descent."""
        tree = self._tree_for_range()
        return None if tree is None else tree.last()

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    def __reversed__(self) -> Iterator[bytes]:
        return self.keys(reverse=True)


class MapSnapshot(MapReads):
    """A map as it was at one moment. Read-only, safe from any thread; pins the space it needs until `close`."""

    def __init__(self, tree: TreeView | None) -> None:
        self._view = tree

    def _tree_for_range(self) -> TreeView | None:
        return self._view

    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes | Other) -> bytes | Other: ...
    def get(self, key: bytes, default: object = None) -> object:
        value = None if self._view is None else self._view.get(frozen("a key", key))
        return default if value is None else value

    def __len__(self) -> int:
        return 0 if self._view is None else len(self._view)

    def close(self) -> None:
        """Let the space go; later reads raise StoreClosed."""
        if self._view is not None:
            self._view.close()

    def __enter__(self) -> MapSnapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
