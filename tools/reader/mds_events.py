"""Events of the metadata log: docs/format/mds-events.md."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from mdstore.tools.reader.mds_directory import Header, decode_header
from mdstore.tools.reader.mds_tables import TABLES
from mdstore.tools.reader.problems import Damage

KINDS: Final = {
    1: "CREATE",
    2: "MKDIR",
    3: "SYMLINK",
    4: "MKNOD",
    5: "LINK",
    6: "UNLINK",
    7: "RMDIR",
    8: "RENAME",
    9: "SETATTR",
    10: "SETXATTR",
    11: "WRITE",
    12: "PURGED",
    13: "STATISTICS",
    14: "TABLE",
    15: "SESSION",
    16: "REPAIR",
}

_TOUCH: Final = struct.Struct("<BBHIQQQQqqQQQq")
_DIRECTORY: Final = struct.Struct("<BBHIQ")
_ENTRY: Final = struct.Struct("<BHBIQQ")
_TABLE: Final = struct.Struct("<BBHI")
_CLIENT: Final = struct.Struct("<BBHIQQ")
assert (_TOUCH.size, _DIRECTORY.size, _ENTRY.size, _TABLE.size, _CLIENT.size) == (88, 16, 24, 8, 24)


class DirTouch(NamedTuple):
    """What a directory's counts, times and statistics are from now on."""

    nlink: int
    directory: int
    version: int
    size: int
    change: int
    mtime: int
    ctime: int
    rbytes: int
    rfiles: int
    rdirs: int
    rctime: int


class DirSet(NamedTuple):
    """A directory's whole header; None: it is gone."""

    directory: int
    header: Header | None


class EntrySet(NamedTuple):
    """An entry's value; None: it is gone."""

    directory: int
    version: int
    name: bytes
    value: bytes | None


class TableSet(NamedTuple):
    """A row of a table; None: it is gone."""

    table: int
    key: bytes
    value: bytes | None


class ClientRequest(NamedTuple):
    """Who asked for the event; it changes nothing."""

    client: int
    request: int


Record: TypeAlias = DirTouch | DirSet | EntrySet | TableSet | ClientRequest


def decode_event(kind: int, payload: bytes) -> list[Record]:
    """The records of one event. Damage (`event`)."""
    if kind not in KINDS:
        raise Damage("event", "kind of an event", "1 .. 16", kind)
    records, at = [], 0
    while at < len(payload):
        decoder = _DECODERS.get(payload[at])
        if decoder is None:
            raise Damage("event", f"record code at offset {at}", "1 .. 8", payload[at])
        record, at = decoder(payload, at)
        records.append(record)
    return records


def _touch(payload: bytes, at: int) -> tuple[Record, int]:
    fields = _unpack(_TOUCH, payload, at)
    _spare(fields[1] or fields[2], at)
    return DirTouch(*fields[3:]), at + _TOUCH.size


def _directory(payload: bytes, at: int) -> tuple[Record, int]:
    code, spare, spare2, length, directory = _unpack(_DIRECTORY, payload, at)
    _spare(spare or spare2, at)
    at += _DIRECTORY.size
    if code == 3:
        _spare(length, at)
        return DirSet(directory, None), at
    data = _take(payload, at, length)
    header = decode_header(data)
    if header.inode.ino != directory:
        raise Damage("event", f"directory header at offset {at}", directory, header.inode.ino)
    return DirSet(directory, header), at + length


def _entry(payload: bytes, at: int) -> tuple[Record, int]:
    code, name_length, spare, length, directory, version = _unpack(_ENTRY, payload, at)
    _spare(spare, at)
    at += _ENTRY.size
    name = _take(payload, at, name_length)
    value = _take(payload, at + name_length, length)
    if code == 5:
        _spare(length, at)
    return EntrySet(directory, version, name, value if code == 4 else None), at + name_length + length


def _table(payload: bytes, at: int) -> tuple[Record, int]:
    code, table, key_length, length = _unpack(_TABLE, payload, at)
    at += _TABLE.size
    if table not in TABLES:
        raise Damage("event", f"table at offset {at}", "1 .. 9", table)
    key = _take(payload, at, key_length)
    value = _take(payload, at + key_length, length)
    if code == 7:
        _spare(length, at)
    return TableSet(table, key, value if code == 6 else None), at + key_length + length


def _client(payload: bytes, at: int) -> tuple[Record, int]:
    fields = _unpack(_CLIENT, payload, at)
    _spare(fields[1] or fields[2] or fields[3], at)
    if not fields[4]:
        raise Damage("event", f"session at offset {at}", "not 0", 0)
    return ClientRequest(*fields[4:]), at + _CLIENT.size


_DECODERS: Final = {1: _touch, 2: _directory, 3: _directory, 4: _entry, 5: _entry, 6: _table, 7: _table, 8: _client}


def _unpack(layout: struct.Struct, payload: bytes, at: int) -> tuple[int, ...]:
    _take(payload, at, layout.size)
    return layout.unpack_from(payload, at)


def _take(payload: bytes, at: int, length: int) -> bytes:
    if at + length > len(payload):
        raise Damage("event", f"record at offset {at}", f"{length} bytes", f"{len(payload) - at} are left")
    return payload[at : at + length]


def _spare(value: int, at: int) -> None:
    if value:
        raise Damage("event", f"spare bytes of the record at offset {at}", 0, value)
