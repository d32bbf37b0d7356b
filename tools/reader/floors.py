"""Floors: docs/format/floors.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from mdstore.tools.reader.problems import Damage

STORE: Final = 1
OBJECT: Final = 4
SCOPES: Final = {1: "store", 2: "collection", 3: "prefix", 4: "object"}


class Floor(NamedTuple):
    """One row: below `floor`, no writer may change what the scope covers."""

    scope: str
    collection: bytes
    name: bytes
    floor: int


def decode_floor(key: bytes, value: bytes) -> Floor:
    """A record of the tree of floors. Damage when it is not one."""
    scope = SCOPES.get(key[0]) if key else None
    length = key[1] if len(key) > 1 else 0
    collection, name = key[2 : 2 + length], key[2 + length :]
    names_object = scope in ("prefix", "object")
    is_possible = len(key) >= 2 + length and bool(length) == (scope != "store") and (names_object or not name)
    if scope is None or not is_possible or len(value) != 8:
        raise Damage("floor", "floor", "a scope with its names, and 8 bytes", key + b" = " + value, tree="floors")
    return Floor(scope, collection, name, int.from_bytes(value, "little"))


class FloorRows:
    """All floors as the log leaves them. Keys: (number of the scope, collection, name)."""

    def __init__(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """`records`: of the tree. Damage when one does not decode."""
        self._rows: dict[tuple[int, bytes, bytes], int] = {}
        for key, value in records:
            floor = decode_floor(key, value)
            self._rows[key[0], floor.collection, floor.name] = floor.floor

    def raise_to(self, scope: int, collection: bytes, name: bytes, floor: int) -> None:
        """Floors never fall."""
        key = scope, collection, name
        self._rows[key] = max(floor, self._rows.get(key, 0))

    def carry(self, source: bytes, target: bytes, moves: Callable[[bytes], bool]) -> None:
        """Objects move: what holds for them in `source` holds in `target`."""
        for (scope, collection, name), floor in list(self._rows.items()):
            if collection == source and scope != STORE and (scope != OBJECT or moves(name)):
                self.raise_to(scope, target, name, floor)

    def __iter__(self) -> Iterator[Floor]:
        """In the order of scopes and names."""
        for (scope, collection, name), floor in sorted(self._rows.items()):
            yield Floor(SCOPES[scope], collection, name, floor)
