"""The metadata server's log: heads, framing, events; and the name space with its events applied.

docs/format/mds-events.md, mds-tables.md, journal.md.
"""

from __future__ import annotations

from mdstore.tools.reader.entry import FLAG_CLEAN, Head
from mdstore.tools.reader.mds_directory import COLLECTION
from mdstore.tools.reader.mds_events import decode_event
from mdstore.tools.reader.mds_log import Stripes, read_head
from mdstore.tools.reader.mds_tables import DATA, LOG, LOG_NAME, SERVER, TABLES, decode_server, split_data_name
from mdstore.tools.reader.mds_view import NameSpace
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.scan import ROT, TORN, Scan, Tail

_CODES = {ROT: "event-rot", TORN: "event-torn"}
_WORDS = {ROT: "a damaged event that was known durable", TORN: "an unfinished event"}


def open_name_space(store: Overlay, findings: Findings) -> NameSpace | None:
    """The name space after its events, or None where the store holds no file system. Reports damage of record and log."""
    try:
        found = store.find(COLLECTION, TABLES[SERVER]) if COLLECTION in store.collections() else None
    except Damage as damage:
        findings.add_damage(damage)
        return None
    if found is None:
        if has_file_system(store):
            findings.add("server-record", "no server record, though a file system is there", Place("meta/table.server"))
        return None
    names = NameSpace(store)
    try:
        decode_server(store.header_of(found))
    except Damage as damage:
        findings.add_damage(damage.located(owner="meta/table.server"))
    _apply_events(store, names, findings)
    for ino in names.unknown():
        findings.add("event-directory", f"events change directory {ino}, which is nowhere", Place("log"))
    return names


def has_file_system(store: Overlay) -> bool:
    """Whether what is there can only be a file system, its record lost or not: directories, or bytes of files and a log."""
    there = store.collections()
    if COLLECTION in there and next(store.objects(COLLECTION), None) is not None:
        return True
    heads = {LOG_NAME + b".head%d" % slot for slot in (0, 1)}
    has_log = LOG in there and any(name in heads for name, _ in store.objects(LOG))
    return has_log and DATA in there and any(split_data_name(name) is not None for name, _ in store.objects(DATA))


def _apply_events(store: Overlay, names: NameSpace, findings: Findings) -> None:
    try:
        head = read_head(store, findings.add_damage)
        _compare_geometry(store, head, findings)
        stripes = Stripes(store, head)
        scan = Scan(stripes, head, head.expire)
        for entry in scan.entries():
            try:
                names.apply(decode_event(entry.header.type, entry.payload))
            except Damage as damage:
                findings.add_damage(damage.located(owner=f"log, event at position {entry.header.position}"))
        tail = scan.tail()
        _report_tail(tail, findings)
        if tail.unreadable:
            raise tail.unreadable[0][2]
        if scan.end == head.expire and not (head.flags & FLAG_CLEAN and head.safe == head.expire):
            _report_emptied(stripes, head, findings)
    except Damage as damage:
        findings.add_damage(damage.located(owner=LOG.decode()))
        findings.add("event-partial", "not all events could be read", Place("log"))


def _report_emptied(stripes: Stripes, head: Head, findings: Findings) -> None:
    """No event is there: then the object is, in which the last one before them ended, or they may have gone with it."""
    before = head.expire - 1
    if before >= head.trimmed and not stripes.holds(before):
        what = f"object {stripes.object_name(stripes.place_of(before)[0]).decode()} is missing, and with it perhaps every event"
        findings.add("event-rot", what, Place(f"log, position {head.expire}"))


def _compare_geometry(store: Overlay, head: Head, findings: Findings) -> None:
    """The log lies as the server record says."""
    try:
        found = store.find(COLLECTION, TABLES[SERVER])
        server = decode_server(store.header_of(found)) if found is not None else None
    except Damage:
        return  # reported where the record itself is read
    if server is not None and (server.log_unit, server.log_object_size) != (head.unit, head.object_size):
        says, has = f"{server.log_unit} and {server.log_object_size}", f"{head.unit} and {head.object_size}"
        what = f"the record says units and objects of the log of {says} bytes, the log has {has}"
        findings.add("server-record", what, Place("meta/table.server"))


def _report_tail(tail: Tail, findings: Findings) -> None:
    if tail.kind in _CODES:
        what = f"{_WORDS[tail.kind]} at position {tail.end}"
        findings.add(_CODES[tail.kind], what, Place(f"log, position {tail.end}"))
