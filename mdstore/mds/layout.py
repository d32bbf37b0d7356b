"""Where the metadata server keeps what: docs/format/mds-tables.md.

Three collections: `meta` (one map object per directory, one per table), `data` (bytes of files), `log` (events).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError, NotAnImage, UnsupportedFormat

META: Final = b"meta"
DATA: Final = b"data"
LOG: Final = b"log"
LOG_NAME: Final = "events"

SERVER_MAGIC: Final = b"mdsfs\0"
SERVER_VERSION: Final = 1
SERVER: Final = struct.Struct("<6sH16sqQQQQ")  # magic, version, identity, made at, object size, log unit, log object, zero
SERVER_SIZE: Final = 64
assert SERVER.size == SERVER_SIZE

INO_KEY: Final = struct.Struct(">Q")  # keys sort as numbers
HOME: Final = struct.Struct("<Q")  # in front of the record of an inode that has no directory entry of its own
NEXT_INO: Final = struct.Struct("<Q")
NEXT_SESSION: Final = struct.Struct("<Q")
SESSION: Final = struct.Struct("<BBHIqq")  # version, state, length of the name, zero, timeout, opened at; then the name
SESSION_VERSION: Final = 1
REQUEST_KEY: Final = struct.Struct(">QQ")  # session, request; and session, inode
REQUEST_VALUE: Final = struct.Struct("<QQ")  # inode made, directory; then the name it was made under
BACKTRACE: Final = struct.Struct("<BBHIQ")  # version, zero, length of the name, zero, directory; then name, inode record
BACKTRACE_VERSION: Final = 1
BACKTRACE_ATTRIBUTE: Final = b"backtrace"
assert BACKTRACE.size == 16
assert SESSION.size == 24

NEXT_INO_KEY: Final = b"next_ino"
NEXT_SESSION_KEY: Final = b"next_session"
LINK_VALUE: Final = b"\x01"
HELD_VALUE: Final = b"\x01"
FIRST_FREE_INO: Final = 16  # 1 is the root, 2 to 15 are kept back


class Tab(IntEnum):
    """Tables, by the number that events use."""

    SERVER = 1
    INODES = 2
    LINKS = 3
    STRAYS = 4
    DAMAGE = 5
    QUOTAS = 6
    SESSIONS = 7
    REQUESTS = 8
    OPEN = 9


TABLE_OBJECTS: Final = {
    Tab.SERVER: b"table.server", Tab.INODES: b"table.inodes", Tab.LINKS: b"table.links", Tab.STRAYS: b"table.strays",
    Tab.DAMAGE: b"table.damage", Tab.QUOTAS: b"table.quotas",
    Tab.SESSIONS: b"table.sessions", Tab.REQUESTS: b"table.requests", Tab.OPEN: b"table.open",
}  # fmt: skip


class ServerRecord(NamedTuple):
    """The header of the server table: what a file system was made with. Sizes in bytes, `made_at` in nanoseconds."""

    identity: bytes
    made_at: int
    object_size: int
    log_unit: int
    log_object_size: int


def encode_server(record: ServerRecord) -> bytes:
    return SERVER.pack(
        SERVER_MAGIC, SERVER_VERSION, record.identity, record.made_at, record.object_size, record.log_unit,
        record.log_object_size, 0,
    )  # fmt: skip


def decode_server(raw: bytes) -> ServerRecord:
    """NotAnImage when it is no file system, UnsupportedFormat for another version, CorruptionError for nonsense."""
    if len(raw) != SERVER_SIZE or raw[:6] != SERVER_MAGIC:
        raise NotAnImage("the store holds no file system (no server record in meta/table.server)")
    _, version, identity, made_at, object_size, log_unit, log_object, zero = SERVER.unpack(raw)
    if version != SERVER_VERSION:
        raise UnsupportedFormat(f"file system of format version {version}; this one reads version {SERVER_VERSION}")
    if zero or not object_size or not log_unit or log_object % log_unit or not log_object:
        raise CorruptionError("server record", "meta/table.server", "sizes and zeros", raw)
    return ServerRecord(identity, made_at, object_size, log_unit, log_object)


def directory_object(ino: int) -> bytes:
    """The name of a directory's object in `meta`."""
    return b"%016x" % ino


def data_object(ino: int, number: int) -> bytes:
    """The name of piece `number` of a file in `data`."""
    return b"%016x.%08x" % (ino, number)


def encode_backtrace(directory: int, name: bytes, inode: bytes) -> bytes:
    """The attribute that says whose bytes these are: enough to rebuild the name space from the data alone."""
    return BACKTRACE.pack(BACKTRACE_VERSION, 0, len(name), 0, directory) + name + inode


def decode_backtrace(raw: bytes, where: str) -> tuple[int, bytes, bytes]:
    """Directory, name and inode record. CorruptionError when the shape is wrong."""
    if len(raw) < BACKTRACE.size:
        raise CorruptionError("backtrace", where, f"at least {BACKTRACE.size} bytes", len(raw))
    version, zero, length, zero_too, directory = BACKTRACE.unpack_from(raw)
    if version != BACKTRACE_VERSION or zero or zero_too or BACKTRACE.size + length > len(raw):
        raise CorruptionError("backtrace", where, "version 1, zeros, a name", raw[: BACKTRACE.size])
    at = BACKTRACE.size + length
    return directory, raw[BACKTRACE.size : at], raw[at:]


class SessionState(IntEnum):
    """What a session is, as its row says. On-disk numbers."""

    OPEN = 1
    STALE = 2  # not heard of for its timeout; it may resume until it is evicted


class SessionRecord(NamedTuple):
    """A row of the session table. `timeout_ns` 0: the session ends with the server that made it."""

    state: SessionState
    timeout_ns: int
    opened_at: int
    name: bytes


def encode_session(record: SessionRecord) -> bytes:
    head = SESSION.pack(SESSION_VERSION, record.state, len(record.name), 0, record.timeout_ns, record.opened_at)
    return head + record.name


def decode_session(raw: bytes, where: str) -> SessionRecord:
    """The reverse of `encode_session`. CorruptionError names `where`."""
    if len(raw) < SESSION.size:
        raise CorruptionError("session", where, f"at least {SESSION.size} bytes", len(raw))
    version, state, name_length, zero, timeout_ns, opened_at = SESSION.unpack_from(raw)
    known = state in (SessionState.OPEN, SessionState.STALE)
    if version != SESSION_VERSION or zero or not known or timeout_ns < 0 or len(raw) != SESSION.size + name_length:
        raise CorruptionError("session", where, "version 1, a state, zeros, a name", raw[: SESSION.size])
    return SessionRecord(SessionState(state), timeout_ns, opened_at, raw[SESSION.size :])


class Done(NamedTuple):
    """What is remembered of a request that is done: what it made, and where; zeros and no name when it made nothing."""

    ino: int
    directory: int
    name: bytes


NOTHING_MADE: Final = Done(0, 0, b"")


def encode_done(done: Done) -> bytes:
    return REQUEST_VALUE.pack(done.ino, done.directory) + done.name


def decode_done(raw: bytes, where: str) -> Done:
    """The reverse of `encode_done`. CorruptionError names `where`."""
    if len(raw) < REQUEST_VALUE.size:
        raise CorruptionError("request", where, f"at least {REQUEST_VALUE.size} bytes", len(raw))
    ino, directory = REQUEST_VALUE.unpack_from(raw)
    done = Done(ino, directory, raw[REQUEST_VALUE.size :])
    if bool(done.ino) != bool(done.directory) or bool(done.ino) != bool(done.name):
        raise CorruptionError("request", where, "an inode with its place, or nothing", raw)
    return done
