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
BACKTRACE: Final = struct.Struct("<BBHIQ")  # version, zero, length of the name, zero, directory; then name, inode record
BACKTRACE_VERSION: Final = 1
BACKTRACE_ATTRIBUTE: Final = b"backtrace"
assert BACKTRACE.size == 16

NEXT_INO_KEY: Final = b"next_ino"
LINK_VALUE: Final = b"\x01"
FIRST_FREE_INO: Final = 16  # 1 is the root, 2 to 15 are kept back


class Tab(IntEnum):
    """Tables, by the number that events use."""

    SERVER = 1
    INODES = 2
    LINKS = 3
    STRAYS = 4
    DAMAGE = 5
    QUOTAS = 6


TABLE_OBJECTS: Final = {
    Tab.SERVER: b"table.server", Tab.INODES: b"table.inodes", Tab.LINKS: b"table.links", Tab.STRAYS: b"table.strays",
    Tab.DAMAGE: b"table.damage", Tab.QUOTAS: b"table.quotas",
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
