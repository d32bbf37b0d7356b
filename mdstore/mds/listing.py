"""The names of objects in a range, whatever damage lies beside it.

Whoever lists a range to its end looks into the page behind: only there is it seen that nothing follows. Where that page is
damaged, this looks closer: if the last name that the range could hold lies in a page that can be read, and going on from there
meets the same error, then the page with the error begins behind the range, and whatever lies before it has been read.
"""

from __future__ import annotations

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import MdstoreError
from mdstore.limits import OBJECT_NAME_MAX
from mdstore.mds.core import UNREADABLE


def names_between(store: ObjectStore, collection: bytes, start: bytes, stop: bytes, limit: int | None = None) -> list[bytes]:
    """Names in order, start <= name < stop, at most `limit`. CorruptionError, DeviceFailed where one of them may lie in what
    cannot be read. Cost: as `ObjectStore.list_objects`; beside damage a descent for each name. Relies on a store that looks
    at nothing behind the last of the names it was asked for."""
    try:
        return store.list_objects(collection, start, stop, limit)
    except UNREADABLE:
        found: list[bytes] = []
    at = start
    while limit is None or len(found) < limit:
        try:
            names = store.list_objects(collection, at, stop, 1)
        except UNREADABLE as error:
            if _begins_behind(store, collection, stop, error):
                break
            raise
        if not names:
            break
        found += names
        at = names[0] + b"\0"
    return found


def _begins_behind(store: ObjectStore, collection: bytes, stop: bytes, error: MdstoreError) -> bool:
    """Whether what cannot be read begins at `stop` or behind. The last name before it is looked for first: a page that can be
    read now is in memory from then on, and whoever goes on through it meets no error there."""
    last = stop[:-1] + (bytes([stop[-1] - 1]) if stop[-1] else b"")
    last = last.ljust(OBJECT_NAME_MAX, b"\xff") if stop[-1] else last
    try:
        store.exists(collection, last)
    except UNREADABLE:
        return False
    try:
        store.list_objects(collection, last, stop, 1)
    except UNREADABLE as again:
        return str(again) == str(error)
    return False
