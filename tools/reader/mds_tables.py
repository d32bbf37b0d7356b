"""The server record, tables, backtraces, names of data objects: docs/format/mds-tables.md, mds-inode.md."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mdstore.tools.reader.mds_inode import Inode, decode_inode
from mdstore.tools.reader.problems import Damage

DATA: Final = b"data"
LOG: Final = b"log"
LOG_NAME: Final = b"events"
BACKTRACE: Final = b"backtrace"

SERVER: Final = 1
INODES: Final = 2
LINKS: Final = 3
STRAYS: Final = 4
DAMAGE: Final = 5
QUOTAS: Final = 6
SESSIONS: Final = 7
REQUESTS: Final = 8
OPEN: Final = 9
TABLES: Final = {
    SERVER: b"table.server",
    INODES: b"table.inodes",
    LINKS: b"table.links",
    STRAYS: b"table.strays",
    DAMAGE: b"table.damage",
    QUOTAS: b"table.quotas",
    SESSIONS: b"table.sessions",
    REQUESTS: b"table.requests",
    OPEN: b"table.open",
}
NEXT_INO: Final = b"next_ino"
NEXT_SESSION: Final = b"next_session"

_SERVER: Final = struct.Struct("<6sH16sqQQQQ")
_BACKTRACE: Final = struct.Struct("<BBHIQ")
_SESSION: Final = struct.Struct("<BBHIqq")
assert (_SERVER.size, _BACKTRACE.size, _SESSION.size) == (64, 16, 24)


class ServerRecord(NamedTuple):
    """What makes three collections a file system."""

    identity: bytes
    made_at: int
    object_size: int
    log_unit: int
    log_object_size: int


class Backtrace(NamedTuple):
    """Where a file was when the attribute was written; directory 0: several names."""

    directory: int
    name: bytes
    inode: Inode


def decode_server(data: bytes) -> ServerRecord:
    """The map header of `table.server`. Damage (`server-record`)."""
    if len(data) != _SERVER.size:
        raise Damage("server-record", "server record length", _SERVER.size, len(data))
    magic, version, identity, made_at, object_size, unit, log_object_size, spare = _SERVER.unpack(data)
    if magic != b"mdsfs\0" or version != 1 or spare:
        raise Damage("server-record", "server record", "mdsfs, version 1, spare 0", data[:8])
    if not object_size or not unit or not log_object_size or log_object_size % unit:
        raise Damage("server-record", "server record sizes", "sizes that divide", (object_size, unit, log_object_size))
    return ServerRecord(identity, made_at, object_size, unit, log_object_size)


def decode_row(value: bytes, ino: int) -> tuple[int, Inode]:
    """(home, inode) of a row of the inode or stray table. Damage (`table-row`, `inode`)."""
    if len(value) < 8:
        raise Damage("table-row", "row of an inode cut short", "at least 8 bytes", len(value))
    inode = decode_inode(value, 8)
    if inode.ino != ino:
        raise Damage("table-row", "number of the inode in a row", ino, inode.ino)
    return int.from_bytes(value[:8], "little"), inode


def split_link_key(key: bytes) -> tuple[int, int, bytes]:
    """(inode, directory, name) of a key of the link table. Damage (`table-row`)."""
    if len(key) < 17:
        raise Damage("table-row", "key of the link table", "two numbers and a name", key)
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:16], "big"), key[16:]


def number_of(key: bytes) -> int:
    """The number that a key of the inode, stray or quota table is. Damage (`table-row`)."""
    if len(key) != 8:
        raise Damage("table-row", "key of a table", "8 bytes", key)
    return int.from_bytes(key, "big")


class Session(NamedTuple):
    """A client, as its row says. `timeout` in nanoseconds, 0: it ends with its server."""

    state: int
    timeout: int
    opened_at: int
    name: bytes


def decode_session(data: bytes) -> Session:
    """A row of the session table. Damage (`table-row`)."""
    if len(data) < _SESSION.size:
        raise Damage("table-row", "session cut short", f"at least {_SESSION.size} bytes", len(data))
    layout, state, name_length, spare, timeout, opened_at = _SESSION.unpack_from(data)
    if layout != 1 or state not in (1, 2) or spare or timeout < 0 or len(data) != _SESSION.size + name_length:
        raise Damage("table-row", "session", "layout 1, state 1 or 2, spare 0, a name", data[: _SESSION.size])
    return Session(state, timeout, opened_at, data[_SESSION.size :])


def split_session_key(key: bytes) -> tuple[int, int]:
    """(session, request or inode) of a key of the request or open table. Damage (`table-row`)."""
    if len(key) != 16:
        raise Damage("table-row", "key of a session's table", "16 bytes", key)
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")


def decode_backtrace(data: bytes, ino: int) -> Backtrace:
    """The attribute of a file's first object. Damage (`backtrace`)."""
    try:
        return _decode_backtrace(data, ino)
    except Damage as damage:
        raise Damage("backtrace", damage.what, damage.expected, damage.found) from damage


def _decode_backtrace(data: bytes, ino: int) -> Backtrace:
    if len(data) < _BACKTRACE.size:
        raise Damage("backtrace", "backtrace cut short", f"at least {_BACKTRACE.size} bytes", len(data))
    layout, spare, name_length, spare2, directory = _BACKTRACE.unpack_from(data)
    if layout != 1 or spare or spare2:
        raise Damage("backtrace", "backtrace", "layout 1, spare bytes 0", data[:8])
    end = _BACKTRACE.size + name_length
    inode = decode_inode(data, end)
    if inode.ino != ino:
        raise Damage("backtrace", "number of the inode in a backtrace", ino, inode.ino)
    return Backtrace(directory, data[_BACKTRACE.size : end], inode)


def split_data_name(name: bytes) -> tuple[int, int] | None:
    """(inode, number of the object) of an object of `data`, None where its name is none of ours."""
    if len(name) != 25 or name[16:17] != b".":
        return None
    try:
        ino, number = int(name[:16], 16), int(name[17:], 16)
    except ValueError:
        return None
    return (ino, number) if name == b"%016x.%08x" % (ino, number) else None
