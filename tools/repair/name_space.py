"""The name space: read, mended, written. docs/format/mds-directory.md, mds-inode.md, mds-tables.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mdstore.tools.reader.check_events import open_name_space
from mdstore.tools.reader.mds_directory import COLLECTION
from mdstore.tools.reader.mds_tables import (
    DAMAGE,
    NEXT_INO,
    NEXT_SESSION,
    OPEN,
    QUOTAS,
    REQUESTS,
    SERVER,
    SESSIONS,
    TABLES,
    decode_server,
    decode_session,
    number_of,
    split_session_key,
)
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage, Findings
from mdstore.tools.repair.bench import Bench, Step
from mdstore.tools.repair.events import empty_log
from mdstore.tools.repair.mend import Places, Report, mend_names
from mdstore.tools.repair.mend_folders import mend_folders, wanted_folders
from mdstore.tools.repair.mend_inodes import mend_inodes
from mdstore.tools.repair.names import Model, read_model
from mdstore.tools.repair.totals import mend_totals
from mdstore.tools.repair.writing import write_model

CODES: Final = frozenset({
    "directory", "inode", "entry", "entry-name", "entry-dangling", "entry-type", "directory-orphan", "directory-loop",
    "directory-links", "directory-parent", "directory-size", "link-count", "inode-duplicate", "inode-orphan", "inode-number",
    "link-table", "link-home", "table-row", "stray", "statistics", "backtrace", "data-orphan", "data-flag",
    "event-directory", "session-row",
})  # fmt: skip
_READ: Final = "leave out what cannot be read"
_TABLES: Final = "have the tables say what the names say"


def run(bench: Bench) -> Iterator[Step]:
    """Everything that can be wrong with names, inodes, tables and statistics."""
    with bench.store() as store:
        store.checkpoint()
        superblock = bench.superblock()
        assert superblock is not None, "a checkpoint was just written"
        overlay = Overlay(bench.reader(superblock))
        names = open_name_space(overlay, Findings(lambda _: None))
        server = overlay.find(COLLECTION, TABLES[SERVER])
        if names is None or server is None:
            return
        object_size = decode_server(overlay.header_of(server)).object_size
        model = read_model(names, object_size, superblock.written_ns, bench.ticker("reading names"))
        report = mend(model)
        write_model(store, model)
        empty_log(store)
    yield from report.steps()


def mend(model: Model) -> Report:
    """Set a whole name space right, in memory. What was done and what is lost is in the report."""
    report = Report()
    places = Places(model, report)
    for what in model.damaged:
        report.lost(_READ, what)
    mend_names(places)
    mend_folders(places, wanted_folders(model))
    mend_inodes(places)
    _mend_tables(model, report)
    mend_totals(model, report)
    return report


def _mend_tables(model: Model, report: Report) -> None:
    """What is not taken apart: notes of damage that is gone, quotas of directories that are, sessions' rows."""
    if model.others[DAMAGE]:
        report.did(_TABLES, f"{len(model.others[DAMAGE])} notes of damage go")
        model.others[DAMAGE] = {}
    quotas = model.others[QUOTAS]
    kept = {
        key: value
        for key, value in quotas.items()
        if len(key) == 8 and len(value) == 16 and int.from_bytes(key, "big") in model.folders
    }
    if kept != quotas:
        report.did(_TABLES, f"{len(quotas) - len(kept)} quotas of directories that are gone go")
        model.others[QUOTAS] = kept
    raw = model.others[SERVER].get(NEXT_INO, b"")
    if len(raw) != 8 or int.from_bytes(raw, "little") < model.next_ino:
        report.did(_TABLES, f"the next inode number is {model.next_ino}")
        model.others[SERVER][NEXT_INO] = model.next_ino.to_bytes(8, "little")
    _mend_sessions(model, report)


def _mend_sessions(model: Model, report: Report) -> None:
    sessions = {key: value for key, value in model.others[SESSIONS].items() if _is_session(key, value)}
    known = {int.from_bytes(key, "big") for key in sessions}
    requests = {key: value for key, value in model.others[REQUESTS].items() if _belongs(key, known) and _is_request(value)}
    kept_open = {
        key: value
        for key, value in model.others[OPEN].items()
        if _belongs(key, known) and value == b"\x01" and split_session_key(key)[1] in model.strays
    }
    for table, rows in ((SESSIONS, sessions), (REQUESTS, requests), (OPEN, kept_open)):
        if rows != model.others[table]:
            report.did(_TABLES, f"{TABLES[table].decode()}: {len(model.others[table]) - len(rows)} rows go")
            model.others[table] = rows
    raw = model.others[SERVER].get(NEXT_SESSION)
    due = max(known, default=0) + 1
    if (raw is not None and (len(raw) != 8 or int.from_bytes(raw, "little") < due)) or (raw is None and known):
        model.others[SERVER][NEXT_SESSION] = due.to_bytes(8, "little")
        report.did(_TABLES, f"the next session is {due}")


def _is_session(key: bytes, value: bytes) -> bool:
    try:
        decode_session(value)
        return number_of(key) > 0
    except Damage:
        return False


def _belongs(key: bytes, sessions: set[int]) -> bool:
    try:
        return split_session_key(key)[0] in sessions
    except Damage:
        return False


def _is_request(value: bytes) -> bool:
    made = any(value[:8])
    return len(value) >= 16 and made == any(value[8:16]) == (len(value) > 16)
