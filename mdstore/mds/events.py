"""Events: the payload of an entry of the metadata log: docs/format/mds-events.md.

An event is a list of records, each of which says what something is from now on; none says how it changed. So replaying an
event over a state that has it already changes nothing. The entry's type says which operation made it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError
from mdstore.mds.fnode import Fnode, decode_fnode


class Kind(IntEnum):
    """Which operation made an event: the type of its journal entry. On-disk numbers, never reused."""

    CREATE = 1
    MKDIR = 2
    SYMLINK = 3
    MKNOD = 4
    LINK = 5
    UNLINK = 6
    RMDIR = 7
    RENAME = 8
    SETATTR = 9
    SETXATTR = 10
    WRITE = 11  # bytes of files were submitted: new sizes and times
    PURGED = 12  # the bytes of removed files are gone
    STATISTICS = 13  # recursive statistics handed to the parent
    TABLE = 14  # rows of tables only: damage
    SESSION = 15  # a session was opened, went stale, came back or ended, or let go of a file
    REPAIR = 16  # scrub put something right


class Rec(IntEnum):
    """Codes of the records inside an event."""

    DIR_TOUCH = 1
    DIR_SET = 2
    DIR_REMOVE = 3
    ENTRY_SET = 4
    ENTRY_REMOVE = 5
    TABLE_SET = 6
    TABLE_REMOVE = 7
    CLIENT_REQUEST = 8


DIR_TOUCH: Final = struct.Struct("<BBHIQQQQqqQQQq")
DIR_TOUCH_SIZE: Final = 88
DIR_SET: Final = struct.Struct("<BBHIQ")  # code, zero, zero, length of the header that follows, directory
DIR_REMOVE: Final = struct.Struct("<BBHIQ")  # code, zero, zero, zero, directory
ENTRY_SET: Final = struct.Struct("<BBHIQQ")  # code, length of the name, zero, length of the value, directory, version
ENTRY_REMOVE: Final = struct.Struct("<BBHIQQ")  # the same; no value
TABLE_ROW: Final = struct.Struct("<BBHI")  # code, table, length of the key, length of the value
CLIENT_REQUEST: Final = struct.Struct("<BBHIQQ")  # code, zeros, session, request
CLIENT_REQUEST_SIZE: Final = 24
CLIENT_KINDS_END: Final = 11  # kinds below it are operations that somebody asked for
assert DIR_TOUCH.size == DIR_TOUCH_SIZE
assert DIR_SET.size == DIR_REMOVE.size == 16
assert ENTRY_SET.size == ENTRY_REMOVE.size == 24
assert TABLE_ROW.size == 8
assert CLIENT_REQUEST.size == CLIENT_REQUEST_SIZE


class DirTouch(NamedTuple):
    """The counting part of a directory's header, after a change of its entries."""

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
    """A directory's whole header."""

    directory: int
    fnode: Fnode


class DirRemove(NamedTuple):
    directory: int


class EntrySet(NamedTuple):
    directory: int
    version: int
    name: bytes
    value: bytes


class EntryRemove(NamedTuple):
    directory: int
    version: int
    name: bytes


class TableSet(NamedTuple):
    table: int
    key: bytes
    value: bytes


class TableRemove(NamedTuple):
    table: int
    key: bytes


class ClientRequest(NamedTuple):
    """Who asked for the event: a session, and its number of the request."""

    client: int
    request: int


Record = DirTouch | DirSet | DirRemove | EntrySet | EntryRemove | TableSet | TableRemove | ClientRequest


def dir_set(directory: int, fnode: bytes) -> bytes:
    return DIR_SET.pack(Rec.DIR_SET, 0, 0, len(fnode), directory) + fnode


def dir_remove(directory: int) -> bytes:
    return DIR_REMOVE.pack(Rec.DIR_REMOVE, 0, 0, 0, directory)


def entry_set(directory: int, version: int, name: bytes, value: bytes) -> bytes:
    return ENTRY_SET.pack(4, len(name), 0, len(value), directory, version) + name + value


def entry_remove(directory: int, version: int, name: bytes) -> bytes:
    return ENTRY_REMOVE.pack(5, len(name), 0, 0, directory, version) + name


def table_set(table: int, key: bytes, value: bytes) -> bytes:
    return TABLE_ROW.pack(Rec.TABLE_SET, table, len(key), len(value)) + key + value


def table_remove(table: int, key: bytes) -> bytes:
    return TABLE_ROW.pack(Rec.TABLE_REMOVE, table, len(key), 0) + key


def client_request(client: int, request: int) -> bytes:
    return CLIENT_REQUEST.pack(8, 0, 0, 0, client, request)


def decode_event(payload: bytes, where: str) -> Iterator[Record]:
    """The records of an event in order. CorruptionError with the offset when one does not fit or is not known."""
    at = 0
    end = len(payload)
    while at < end:
        code = payload[at]
        reader = _READERS.get(code)
        if reader is None or end - at < _SIZES[code]:
            raise CorruptionError("event", f"{where} offset {at}", "a known record", payload[at : at + 24])
        record, at = reader(payload, at, where)
        if at > end:
            raise CorruptionError("event", where, f"{at} bytes", end)
        yield record


def _read_dir_touch(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, zero, zero_too, *fields = DIR_TOUCH.unpack_from(payload, at)
    _expect_zero(zero | zero_too, where, at)
    return DirTouch(*fields), at + DIR_TOUCH_SIZE


def _read_dir_set(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, zero, zero_too, length, directory = DIR_SET.unpack_from(payload, at)
    _expect_zero(zero | zero_too, where, at)
    start = at + DIR_SET.size
    return DirSet(directory, decode_fnode(payload[start : start + length], f"{where} offset {start}")), start + length


def _read_dir_remove(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, *zeros, directory = DIR_REMOVE.unpack_from(payload, at)
    _expect_zero(sum(zeros), where, at)
    return DirRemove(directory), at + DIR_REMOVE.size


def _read_entry_set(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, name_length, zero, length, directory, version = ENTRY_SET.unpack_from(payload, at)
    _expect_zero(zero, where, at)
    start = at + 24
    middle = start + name_length
    if not name_length or not length:
        raise CorruptionError("event", f"{where} offset {at}", "a name and a value", (name_length, length))
    return EntrySet(directory, version, payload[start:middle], payload[middle : middle + length]), middle + length


def _read_entry_remove(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, name_length, zero, zero_too, directory, version = ENTRY_REMOVE.unpack_from(payload, at)
    _expect_zero(zero | zero_too, where, at)
    start = at + 24
    return EntryRemove(directory, version, payload[start : start + name_length]), start + name_length


def _read_table(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    code, table, key_length, length = TABLE_ROW.unpack_from(payload, at)
    start = at + TABLE_ROW.size
    middle = start + key_length
    key = payload[start:middle]
    if code == Rec.TABLE_REMOVE:
        _expect_zero(length, where, at)
        return TableRemove(table, key), middle
    return TableSet(table, key, payload[middle : middle + length]), middle + length


def _read_client_request(payload: bytes, at: int, where: str) -> tuple[Record, int]:
    _, zero, zero_too, zero_three, client, request = CLIENT_REQUEST.unpack_from(payload, at)
    _expect_zero(zero | zero_too | zero_three, where, at)
    if not client:
        raise CorruptionError("event", f"{where} offset {at}", "a session", client)
    return ClientRequest(client, request), at + CLIENT_REQUEST_SIZE


def _expect_zero(bits: int, where: str, at: int) -> None:
    if bits:
        raise CorruptionError("event", f"{where} offset {at}", "zeros in reserved bytes", bits)


_READERS: dict[int, Callable[[bytes, int, str], tuple[Record, int]]] = {
    Rec.DIR_TOUCH: _read_dir_touch, Rec.DIR_SET: _read_dir_set, Rec.DIR_REMOVE: _read_dir_remove,
    Rec.ENTRY_SET: _read_entry_set, Rec.ENTRY_REMOVE: _read_entry_remove,
    Rec.TABLE_SET: _read_table, Rec.TABLE_REMOVE: _read_table, Rec.CLIENT_REQUEST: _read_client_request,
}  # fmt: skip
_SIZES: dict[int, int] = {
    Rec.DIR_TOUCH: DIR_TOUCH.size, Rec.DIR_SET: DIR_SET.size, Rec.DIR_REMOVE: DIR_REMOVE.size,
    Rec.ENTRY_SET: ENTRY_SET.size, Rec.ENTRY_REMOVE: ENTRY_REMOVE.size,
    Rec.TABLE_SET: TABLE_ROW.size, Rec.TABLE_REMOVE: TABLE_ROW.size, Rec.CLIENT_REQUEST: CLIENT_REQUEST_SIZE,
}  # fmt: skip
