"""The names of objects in a range, whatever damage lies beside it.

Whoever lists a range to its end looks into the page behind: only there is it seen that nothing follows. Where that page is
damaged, the rest of the range is listed from its end: from there the look that ends the listing is at the page before, which has
been read. If that finds nothing, all names are known. What the errors say, and whether they are the same, decides nothing.
"""

from __future__ import annotations

from mdstore.engines.protocol import ObjectStore
from mdstore.mds.core import UNREADABLE


def names_between(store: ObjectStore, collection: bytes, start: bytes, stop: bytes, limit: int | None = None) -> list[bytes]:
    """Names in order, start <= name < stop, at most `limit`. CorruptionError, DeviceFailed where one of them may lie in what
    cannot be read. Cost: as `ObjectStore.list_objects`; beside damage a descent for each name."""
    try:
        return store.list_objects(collection, start, stop, limit)
    except UNREADABLE:
        found: list[bytes] = []
    at = start
    while limit is None or len(found) < limit:
        try:
            names = store.list_objects(collection, at, stop, 1)
        except UNREADABLE:
            if _holds_none(store, collection, at, stop):
                break
            raise
        if not names:
            break
        found += names
        at = names[0] + b"\0"
    return found


def _holds_none(store: ObjectStore, collection: bytes, start: bytes, stop: bytes) -> bool:
    """Whether the range, seen from its end, is known to be empty: what could not be read lies behind it then."""
    try:
        return not store.list_objects(collection, start, stop, 1, reverse=True)
    except UNREADABLE:
        return False
