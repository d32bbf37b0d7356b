"""Floors: docs/format/floors.md."""

from __future__ import annotations

from typing import Final, NamedTuple

from mdstore.tools.reader.problems import Damage

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
