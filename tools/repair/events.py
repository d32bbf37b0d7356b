"""The metadata server's log and record: heads, damaged events, the record that says how the log lies. docs/format/mds-events.md.

The log lies in objects, so it is changed through the engine; what is wrong with it is told by the second reader.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from journal import Head, JournalError, Layout, StripedMedium
from journal.edit import apply_change, plan_repair, plan_reset, plan_splice
from journal.head import decode_head, newest_head
from journal.survey import install_head, recover_head
from mdstore.errors import CorruptionError
from mdstore.mds.objectio import StoreObjects
from mdstore.store import Store, Transaction
from mdstore.tools.reader.check_events import has_file_system
from mdstore.tools.reader.mds_directory import COLLECTION
from mdstore.tools.reader.mds_events import decode_event
from mdstore.tools.reader.mds_tables import (
    DATA,
    LOG,
    LOG_NAME,
    SERVER,
    TABLES,
    ServerRecord,
    decode_server,
    split_data_name,
)
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage
from mdstore.tools.repair import encode
from mdstore.tools.repair.bench import Bench, Step

SERVER_CODES: Final = frozenset({"server-record"})
HEAD_CODES: Final = frozenset({"event-head", "event-no-head", "event-log"})
ROT_CODES: Final = frozenset({"event-rot"})
REFUSED_CODES: Final = frozenset({"event"})
_HEAD_NAMES: Final = tuple(f"{LOG_NAME.decode()}.head{slot}" for slot in (0, 1))
_PHASE: Final = "events"
_OBJECT_SIZE: Final = 64 << 20  # of a file's bytes, unless it was said otherwise when the file system was made
_SERVER_OBJECT: Final = TABLES[SERVER]


class Nowhere(io.BytesIO):
    """Takes an undo dump and forgets it: the repair file holds the bytes already."""

    def write(self, data: object) -> int:
        """As if it were written."""
        return len(memoryview(data))  # type: ignore[arg-type]


@contextmanager
def opened_log(store: Store) -> Iterator[StripedMedium]:
    """The medium of the events, laid out as the server record says. Damage when that cannot be read."""
    server = decode_server(store.map_header(COLLECTION, _SERVER_OBJECT))
    layout = Layout(stripe_unit=server.log_unit, object_size=server.log_object_size)
    yield StripedMedium(StoreObjects(store, LOG), LOG_NAME.decode(), layout)


# -- the server record -------------------------------------------------------------------------------------------------
def mend_server(bench: Bench) -> Iterator[Step]:
    """The record that makes three collections a file system: from what the log's head and the objects of `data` say."""
    with bench.store() as store:
        store.checkpoint()
        superblock = bench.superblock()
        assert superblock is not None, "a checkpoint was just written"
        overlay = Overlay(bench.reader(superblock))
        if not has_file_system(overlay):
            return
        log = _log_geometry(store)
        found = overlay.find(COLLECTION, _SERVER_OBJECT)
        try:
            record = decode_server(overlay.header_of(found) if found is not None else b"")
            object_size, said = record.object_size, "as it said"
        except Damage:
            object_size, said = _object_size(overlay)
            record = ServerRecord(superblock.uuid, superblock.created_ns, object_size, 0, 0)
        record = record._replace(log_unit=log[0], log_object_size=log[1])
        _make_collections(store)
        change = Transaction().map_set_header(COLLECTION, _SERVER_OBJECT, encode.server_record(record))
        store.apply(change)
    details = [f"objects of {object_size} bytes ({said})", f"log in units of {log[0]} and objects of {log[1]} bytes"]
    yield Step(_PHASE, "make a server record", details)


def _make_collections(store: Store) -> None:
    there = store.list_collections()
    for collection in (COLLECTION, DATA, LOG):
        if collection not in there:
            store.apply(Transaction().create_collection(collection))


def _log_geometry(store: Store) -> tuple[int, int]:
    """(unit, object size) of the log, by its head; what a new one gets when there is none."""
    for name in _HEAD_NAMES:
        if LOG in store.list_collections() and store.exists(LOG, name):
            try:
                head = decode_head(store.read(LOG, name))
            except CorruptionError:
                continue  # the other copy may read
            if isinstance(head, Head) and head.unit and head.object_size:
                return head.unit, head.object_size
    return 65536, 65536


def _object_size(overlay: Overlay) -> tuple[int, str]:
    """How many bytes of a file one object of `data` holds: as many as the longest has that is not its file's last."""
    largest = longest = 0
    last_ino, last_size = 0, 0
    for name, found in overlay.objects(DATA) if DATA in overlay.collections() else ():
        parts = split_data_name(name)
        if parts is None:
            continue
        if parts[0] == last_ino:
            longest = max(longest, last_size)
        last_ino, last_size = parts[0], overlay.size_of(found)
        largest = max(largest, last_size)
    if longest:
        return longest, "the size of those that are not a file's last"
    return max(_OBJECT_SIZE, largest), "no file has several; files that had holes there could be shown shorter"


# -- heads and entries -------------------------------------------------------------------------------------------------
def mend_heads(bench: Bench) -> Iterator[Step]:
    """Both heads of the metadata log, from the one that is left or from the events."""
    with bench.store() as store, opened_log(store) as medium:
        _remove_unreadable_heads(store)
        try:
            head = newest_head(medium.read_heads(), medium.name)
            title = "write both heads of the metadata log from the one that is left"
        except JournalError:
            head, title = _head_from_events(medium), "make a head for the metadata log from its events"
        install_head(medium, head)
    yield Step(_PHASE, title, [f"it begins at position {head.expire}, known durable up to {head.safe}"])


def _remove_unreadable_heads(store: Store) -> None:
    """One whose block is damaged is as good as lost."""
    for name in _HEAD_NAMES:
        try:
            if store.exists(LOG, name):
                store.read(LOG, name)
        except CorruptionError:
            store.apply(Transaction().remove(LOG, name))


def _head_from_events(medium: StripedMedium) -> Head:
    try:
        return recover_head(medium)
    except JournalError:
        start = medium.start
        return Head(
            log=1, generation=1, trimmed=start, expire=start, safe=start, next_sequence=1, generation_start=start,
            unit=medium.describe()["unit"], stripe_count=medium.describe()["stripe_count"],
            object_size=medium.describe()["object_size"],
        )  # fmt: skip


def skip_damaged(bench: Bench) -> Iterator[Step]:
    """Pads in place of damaged events, so that those behind are reached; the end of the log where nothing is."""
    with bench.store() as store, opened_log(store) as medium:
        change = plan_repair(medium)
        summary = change.summary
        if not summary:
            return
        lost = [f"events between positions {low} and {end}" for low, end, _, _ in change.pads]
        lost += [f"every event from position {change.cut} on"] if change.cut is not None else []
        apply_change(medium, change, Nowhere())
    yield Step(_PHASE, "skip damaged events", summary, lost)


def skip_refused(bench: Bench) -> Iterator[Step]:
    """Pads in place of events that make no sense."""
    positions: list[tuple[int, str]] = []
    with bench.store() as store, opened_log(store) as medium:
        change = plan_splice(medium, lambda entry: _is_nonsense(entry.type, bytes(entry.payload), entry.position, positions))
        if not change.pads:
            return
        apply_change(medium, change, Nowhere())
    lost = [f"the event at position {position} ({why})" for position, why in positions]
    yield Step(_PHASE, "skip events that make no sense", change.summary, lost)


def _is_nonsense(kind: int, payload: bytes, position: int, found: list[tuple[int, str]]) -> bool:
    try:
        decode_event(kind, payload)
    except Damage as damage:
        found.append((position, damage.sentence))
        return True
    return False


def empty_log(store: Store) -> None:
    """Everything the log says is written back: it begins anew behind what it held."""
    with opened_log(store) as medium:
        apply_change(medium, plan_reset(medium), Nowhere())
