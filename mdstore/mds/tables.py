"""Tables: small ordered maps beside the directories, one map object each (docs/format/mds-tables.md).

A change is made in memory and put in an event; the object follows when the table is written back. Until then `changed`
lies over what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import MdstoreError, NotFound
from mdstore.mds.events import table_remove, table_set
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab

APART_GROWTH: Final = 1024  # changes beside twice as many as could not be written
APART_GROWTH_BYTES: Final = 256 << 10  # and bytes of them, beside twice as many
ROW_BYTES: Final = 64  # of the record in the log that says a row, beside key and value; it takes no more


class Held(NamedTuple):
    """Changes, and the bytes of log that say them, at most."""

    entries: int
    size: int

    def __add__(self, other: Held) -> Held:  # type: ignore[override]  # of amounts, not of sequences
        return Held(self.entries + other.entries, self.size + other.size)


def held_in(changed: Mapping[bytes, bytes | None]) -> Held:
    """How much those changes are. Cost: a look at each."""
    return Held(len(changed), sum(len(key) + len(raw or b"") + ROW_BYTES for key, raw in changed.items()))


class Apart(NamedTuple):
    """Why something is not written back, and how much of it could not be."""

    error: MdstoreError
    held: Held

    def has_grown(self, changed: Mapping[bytes, bytes | None]) -> bool:
        """Whether it is worth to try it again, now that there is so much."""
        now = held_in(changed)
        many = now.entries > 2 * self.held.entries + APART_GROWTH
        return many or now.size > 2 * self.held.size + APART_GROWTH_BYTES


class Table:
    """One table. `since`: the log position before its oldest event that is not written back; -1 when there is none. `apart`: why
    what is in `changed` cannot be written."""

    __slots__ = ("apart", "changed", "number", "object_name", "since", "store")

    def __init__(self, store: ObjectStore, number: Tab) -> None:
        self.store = store
        self.number = int(number)
        self.object_name = TABLE_OBJECTS[number]
        # Only the inode table is never read in order, and changed most.
        self.changed: dict[bytes, bytes | None] = {} if number == Tab.INODES else SortedDict()
        self.since = -1
        self.apart: Apart | None = None

    def get(self, key: bytes) -> bytes | None:
        """The row, or None. Cost: one read of the store unless the row was changed lately."""
        if key in self.changed:
            changed: bytes | None = self.changed[key]
            return changed
        try:
            return self.store.map_get(META, self.object_name, key)
        except NotFound:  # a table that the file system was not made with, and that has no row yet
            return None

    def put(self, key: bytes, value: bytes) -> bytes:
        """Set a row; returns the record for the event that makes it last."""
        self.changed[key] = value
        return table_set(self.number, key, value)

    def drop(self, key: bytes) -> bytes:
        """Remove a row; returns the record for the event that makes it last."""
        self.changed[key] = None
        return table_remove(self.number, key)

    def record(self, key: bytes, value: bytes | None) -> bytes:
        """What an event says of a row that is as it is."""
        return table_remove(self.number, key) if value is None else table_set(self.number, key, value)

    def rows(self, start: bytes | None = None, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop in order, as they are now; changing the table meanwhile is allowed."""
        assert isinstance(self.changed, SortedDict), "the inode table is not read in order"
        newer = [(key, self.changed[key]) for key in self.changed.irange(start, stop, inclusive=(True, False))]
        newer.reverse()
        for key, value in self._stored(start, stop):
            while newer and newer[-1][0] < key:
                ahead, row = newer.pop()
                if row is not None:
                    yield ahead, row
            if newer and newer[-1][0] == key:
                row = newer.pop()[1]
                if row is not None:
                    yield key, row
            else:
                yield key, value
        for key, row in reversed(newer):
            if row is not None:
                yield key, row

    def _stored(self, start: bytes | None, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from self.store.map_items(META, self.object_name, start, stop)
        except NotFound:
            return
