"""Sessions, what they asked for, and the files without a name that they keep: docs/format/mds-tables.md, tables 7 to 9."""

from __future__ import annotations

from mdstore.tools.reader.mds_tables import (
    NEXT_SESSION,
    OPEN,
    REQUESTS,
    SERVER,
    SESSIONS,
    STRAYS,
    TABLES,
    decode_session,
    number_of,
    split_session_key,
)
from mdstore.tools.reader.mds_view import NameSpace
from mdstore.tools.reader.problems import Damage, Findings, Place


def check_sessions(names: NameSpace, findings: Findings) -> None:
    """Every row by itself, and that it belongs to a session, and to a stray. Memory: the numbers of the sessions."""
    known = _sessions(names, findings)
    for table in (REQUESTS, OPEN):
        for key, value in names.table(table):
            place = Place(f"{TABLES[table].decode()}, row {key.hex()}")
            try:
                session, number = split_session_key(key)
            except Damage as damage:
                findings.add_damage(damage.located(owner=str(place)))
                continue
            if not _is_request(value) if table == REQUESTS else value != b"\x01":
                findings.add("session-row", f"value {value.hex()}", place)
            if session not in known:
                findings.add("session-row", f"no session {session}", place)
            if table == OPEN and not _is_stray(names, number):
                findings.add("session-row", f"inode {number} is kept, and is not among those without a name", place)


def _sessions(names: NameSpace, findings: Findings) -> set[int]:
    raw = dict(names.table(SERVER)).get(NEXT_SESSION)
    if raw is not None and len(raw) != 8:
        findings.add("session-row", f"next_session of {len(raw)} bytes, not 8", Place("table.server"))
    end = int.from_bytes(raw, "little") if raw is not None else 1
    known = set()
    for key, value in names.table(SESSIONS):
        place = Place(f"{TABLES[SESSIONS].decode()}, row {key.hex()}")
        try:
            number = number_of(key)
            decode_session(value)
        except Damage as damage:
            findings.add_damage(damage.located(owner=str(place)))
            continue
        known.add(number)
        if not 0 < number < end:
            findings.add("session-row", f"session {number} is not below the next free number {end}", place)
    return known


def _is_request(value: bytes) -> bool:
    """Inode, directory, name: all three or none."""
    made = any(value[:8])
    return len(value) >= 16 and made == any(value[8:16]) == (len(value) > 16)


def _is_stray(names: NameSpace, ino: int) -> bool:
    key = ino.to_bytes(8, "big")
    return next((found == key for found, _ in names.table(STRAYS) if found >= key), False)
