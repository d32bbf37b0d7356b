"""The repair file: everything a repair overwrites and everything it writes. Page: docs/format/repair-file.md.

It is complete and durable before the first byte of the image changes. From then on the image can be brought to either side: to
what it was (`OLD` records) or to what the repair makes of it (`NEW` records, in order).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import BinaryIO, Final, NamedTuple

from crc32c import crc32c

from mdstore.errors import DamagedFile, DeviceFailed, NoSpace

MAGIC: Final = b"MDSREPR\0"
VERSION: Final = 2
READ_VERSIONS: Final = (1, 2)
PAYLOAD_MAX: Final = 1 << 26
UNIT: Final = 4096  # OLD, NEW and GONE lie on multiples of it, and end on one or at the end of the image

_HEADER: Final = struct.Struct("<8sIIQ16s20sI")
_RECORD: Final = struct.Struct("<B3sIQII")
_SAME: Final = struct.Struct("<QI")
_GONE: Final = struct.Struct("<Q")
_CRC_AT: Final = 60
HEADER_SIZE: Final = 64
RECORD_SIZE: Final = 24
assert (_HEADER.size, _RECORD.size) == (HEADER_SIZE, RECORD_SIZE)
assert (_SAME.size, _GONE.size) == (12, 8)


class RecordKind(IntEnum):
    """Types of records. On-disk numbers."""

    OLD = 1
    NEW = 2
    FLUSH = 3
    NOTE = 4
    READY = 5
    DONE = 6
    UNDONE = 7
    SAME = 8
    GONE = 9
    UNDOING = 10


class FileState(IntEnum):
    """How far a repair came, as its file tells."""

    PLANNED = 0  # not complete: the image is untouched
    READY = 1  # the image may hold some of the changes
    DONE = 2
    UNDONE = 3  # taken back
    UNDOING = 4  # the image may hold some of the changes no more


class Record(NamedTuple):
    """One record: `offset` is a byte of the image for OLD, NEW, SAME and GONE, else 0."""

    kind: RecordKind
    offset: int
    payload: bytes


class Stretch(NamedTuple):
    """What a SAME record says: bytes that the repair neither changes nor may find changed."""

    offset: int
    length: int
    crc: int


class FileHeader(NamedTuple):
    """What image a repair file belongs to."""

    image_size: int
    uuid: bytes
    version: int = VERSION


def encode_header(header: FileHeader) -> bytes:
    """The file's first 64 bytes."""
    body = _HEADER.pack(MAGIC, header.version, 0, header.image_size, header.uuid, bytes(20), 0)[:_CRC_AT]
    return body + crc32c(body).to_bytes(4, "little")


def decode_header(data: bytes, where: str) -> FileHeader:
    """DamagedFile when it is no repair file, or a damaged one."""
    if len(data) < HEADER_SIZE or data[:8] != MAGIC:
        raise DamagedFile("repair file", where, MAGIC, data[:8])
    _, version, zero, size, uuid, spare, crc = _HEADER.unpack(data[:HEADER_SIZE])
    if crc32c(data[:_CRC_AT]) != crc:
        raise DamagedFile("repair file's header", where, f"{crc:08x}", f"{crc32c(data[:_CRC_AT]):08x}")
    if version not in READ_VERSIONS or zero or any(spare):
        raise DamagedFile("repair file's header", where, f"version {READ_VERSIONS}, zeros", (version, zero))
    return FileHeader(size, uuid, version)


def same_record(stretch: Stretch) -> Record:
    """As a record."""
    return Record(RecordKind.SAME, stretch.offset, _SAME.pack(stretch.length, stretch.crc))


def gone_record(offset: int, length: int) -> Record:
    """Bytes that could not be read when the file was made."""
    return Record(RecordKind.GONE, offset, _GONE.pack(length))


def decode_same(record: Record, where: str) -> Stretch:
    """DamagedFile when its payload is of another length."""
    if len(record.payload) != _SAME.size:
        raise DamagedFile("repair file's SAME record", where, _SAME.size, len(record.payload))
    return Stretch(record.offset, *_SAME.unpack(record.payload))


def decode_gone(record: Record, where: str) -> int:
    """How many bytes. DamagedFile when its payload is of another length."""
    if len(record.payload) != _GONE.size:
        raise DamagedFile("repair file's GONE record", where, _GONE.size, len(record.payload))
    (length,) = _GONE.unpack(record.payload)
    return int(length)


def encode_record(record: Record) -> bytes:
    """A record's bytes: 24, then the payload."""
    head = _RECORD.pack(record.kind, bytes(3), len(record.payload), record.offset, crc32c(record.payload), 0)
    return head[:20] + crc32c(head[:20]).to_bytes(4, "little") + record.payload


def read_records(stream: BinaryIO) -> Iterator[tuple[int, Record]]:
    """(position behind it, record) of every whole record after the header. Stops at the first that is none: a write cut short."""
    at = HEADER_SIZE
    stream.seek(at)
    while True:
        head = stream.read(RECORD_SIZE)
        if len(head) < RECORD_SIZE or crc32c(head[:20]) != int.from_bytes(head[20:], "little"):
            return
        kind, spare, length, offset, crc, _ = _RECORD.unpack(head)
        if any(spare) or length > PAYLOAD_MAX or kind not in RecordKind._value2member_map_:
            return
        payload = stream.read(length)
        if len(payload) < length or crc32c(payload) != crc:
            return
        at += RECORD_SIZE + length
        yield at, Record(RecordKind(kind), offset, payload)
        stream.seek(at)


_MARKS: Final = {
    RecordKind.READY: FileState.READY,
    RecordKind.DONE: FileState.DONE,
    RecordKind.UNDOING: FileState.UNDOING,
    RecordKind.UNDONE: FileState.UNDONE,
}


@contextmanager
def naming(path: str) -> Iterator[None]:
    """What goes wrong in writing the repair file says that it is this file, not the image: NoSpace, DeviceFailed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"no room for the repair file {path} ({reason}): name a place with more room (--file), or make room there"
            raise NoSpace(what) from error
        raise DeviceFailed("write", f"the repair file {path}", reason) from error


class RepairFile:
    """An open repair file. Appends go to its end; nothing is durable before `sync`."""

    def __init__(self, stream: BinaryIO, path: str, header: FileHeader) -> None:
        self._stream = stream
        self.path = path
        self.header = header

    @classmethod
    def create(cls, path: str, header: FileHeader) -> RepairFile:
        """A new file that must not exist; its name is durable on return."""
        stream = open(path, "x+b")  # noqa: SIM115 (closed by `close`)
        stream.write(encode_header(header))
        made = cls(stream, path, header)
        made.sync()
        descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return made

    @classmethod
    def open(cls, path: str) -> RepairFile:
        """An existing one. DamagedFile when it is none."""
        stream = open(path, "r+b")  # noqa: SIM115 (closed by `close`)
        try:
            return cls(stream, path, decode_header(stream.read(HEADER_SIZE), path))
        except BaseException:
            stream.close()
            raise

    def records(self) -> Iterator[Record]:
        """All records in order."""
        for _, record in read_records(self._stream):
            yield record

    def placed(self) -> Iterator[tuple[int, Record]]:
        """(where its payload begins in the file, record) of all records in order."""
        for end, record in read_records(self._stream):
            yield end - len(record.payload), record

    def payload(self, at: int, length: int) -> bytes:
        """Bytes of the file, of a record that `placed` gave. DamagedFile when they are gone meanwhile."""
        self._stream.seek(at)
        data = self._stream.read(length)
        if len(data) != length:
            raise DamagedFile("repair file", f"{self.path}, byte {at}", f"{length} bytes", len(data))
        return data

    def state(self) -> FileState:
        """How far the repair came. Cost: reads the file."""
        state = FileState.PLANNED
        for record in self.records():
            state = _MARKS.get(record.kind, state)
        return state

    def append(self, record: Record) -> None:
        """At the end of the file. `seal` and `mark` make it durable."""
        self._stream.seek(0, os.SEEK_END)
        self._stream.write(encode_record(record))

    def mark(self, kind: RecordKind) -> None:
        """Append a mark behind the last whole record, durable on return. NoSpace, DeviceFailed."""
        end = max((position for position, _ in read_records(self._stream)), default=HEADER_SIZE)
        with naming(self.path):
            self._stream.seek(end)
            self._stream.truncate()
            self._stream.write(encode_record(Record(kind, 0, b"")))
            self.sync()

    def sync(self) -> None:
        """Everything appended is durable."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
