"""The store's write-ahead log: one journal entry per transaction, in a ring of blocks. Page: docs/format/store-log.md.

The payload is MessagePack: [version, epoch or nil, operations]; an operation is [opcode, operand ...] as `Op` and
`Transaction` say. A write of many whole blocks goes to fresh blocks first and is logged as WRITE_MAPPED, with their checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from crc32c import crc32c

from journal import (
    Entry,
    HeadLost,
    JournalClosed,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    MediumUnreadable,
    RingMedium,
)
from journal.entry import HEADER_SIZE, Header, decode_header
from journal.medium import Medium
from mdstore.btree import PackedPairs
from mdstore.device.protocol import Buffer, Device
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, StoreClosed
from mdstore.limits import COLLECTION_NAME_MAX, GIB, MIB, OBJECT_NAME_MAX
from mdstore.store.transaction import Op, Operation

VERSION = 1
ENTRY_TRANSACTION = 1
ENTRY_OVERHEAD = 256  # journal header and this module's own framing, generously

LOG_BYTES_MAX = 128 * MIB
_OPERANDS: dict[int, int] = {
    Op.NOOP: 0, Op.CREATE_COLLECTION: 1, Op.REMOVE_COLLECTION: 1, Op.SPLIT: 4, Op.MERGE: 2,
    Op.CREATE: 2, Op.TOUCH: 2, Op.WRITE: 4, Op.ZERO: 4,
    Op.TRUNCATE: 3, Op.REMOVE: 2, Op.SETATTR: 4, Op.RMATTR: 3, Op.CLONE: 3, Op.CLONE_RANGE: 6, Op.RENAME: 4,
    Op.ALLOC_HINT: 5, Op.WRITE_MAPPED: 5, Op.MAP_SET: 3, Op.MAP_REMOVE: 3, Op.MAP_REMOVE_RANGE: 4, Op.MAP_CLEAR: 2,
    Op.MAP_SET_HEADER: 3, Op.SET_FLOOR: 4, Op.REVISION: 1, Op.REMOVE_REVISION: 3, Op.TRIM_REVISIONS: 3,
}  # fmt: skip
assert set(_OPERANDS) == set(Op), "every operation has its number of operands"


def _encode_packed(pairs: object) -> msgspec.Raw:
    """What the encoder does with operands that it does not know: there are only packed pairs."""
    assert isinstance(pairs, PackedPairs)
    return msgspec.Raw(pairs.encoded())


HEADS_REMEDY = "`mdstore repair` goes on with the state of the last checkpoint, which what the log held since may have changed"
_ONE_ELEMENT = b"\x91"  # MessagePack: an array of one
_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_packed)
_decoder = msgspec.msgpack.Decoder()


class LogRegion:
    """The part of a device that holds the ring: what the journal's ring medium asks for."""

    def __init__(self, device: Device, offset: int, size_bytes: int) -> None:
        self._device = device
        self._offset = offset
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._device.read(self._offset + offset, length)
        except DeviceFailed as error:
            raise MediumUnreadable(f"byte {self._offset + offset}", error) from error

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._device.write(self._offset + offset, buffers)

    def flush(self) -> None:
        """One flush of the device: the log's bytes, and every large write issued before, are durable after it."""
        self._device.flush()


def log_size(size_bytes: int, block_size: int) -> int:
    """Bytes of log for an image of that size: a sixteenth, within reason, whole blocks."""
    size = min(LOG_BYTES_MAX, max(size_bytes // 16, 8 * max(block_size, 512)))
    if size_bytes >= GIB:
        size = max(size, 64 * MIB)
    return size - size % block_size


def encode(operations: Sequence[Operation], epoch: int | None) -> bytes:
    """The payload of a transaction's entry. Pairs of a map are in its bytes already, and are copied."""
    if len(operations) == 1 and operations[0][0] == Op.MAP_SET:
        *names, pairs = operations[0]
        assert isinstance(pairs, PackedPairs)
        prefix = _encoder.encode((VERSION, epoch, ((*names, ()),)))
        return pairs.encoded(prefix[:-1])
    return _encoder.encode((VERSION, epoch, operations))


LEAST_ENTRY: Final = ENTRY_OVERHEAD + len(
    encode(((int(Op.CREATE), bytes(COLLECTION_NAME_MAX), bytes(OBJECT_NAME_MAX)),), None)
)  # of a transaction that any log must take: it makes the object with the longest name


def largest_entry(medium: Medium) -> int:
    """The most that a log there ever has room for: a period stays empty, and trimming leaves part of another behind."""
    return (medium.capacity or 0) - 2 * medium.period


ENDING: Final = encode(((int(Op.NOOP),),), None)  # the payload of the entry that a checkpoint ends the log with
ENDING_BYTES: Final = HEADER_SIZE + len(ENDING)


def missing_ending(medium: RingMedium, position: int, identity: int) -> str | None:
    """What is found where the entry should be that ends the log at `position`; None when it is there. Reads that entry."""
    try:
        data = medium.read(position - ENDING_BYTES, ENDING_BYTES)
    except MediumUnreadable as error:
        return f"unreadable bytes: {error.cause}"
    header = decode_header(data)
    if not isinstance(header, Header):
        return header
    is_it = header.log == identity and header.position == position - ENDING_BYTES and data[HEADER_SIZE:] == ENDING
    return None if is_it and header.payload_crc == crc32c(ENDING) else "another entry"


def map_set_prefix(collection: bytes, name: bytes) -> bytes:
    """What the payload of every transaction that sets one key of this map begins with; `encode_pair` completes it."""
    row = (int(Op.MAP_SET), collection, name, ())
    return _encoder.encode((VERSION, None, (row,)))[:-1] + _ONE_ELEMENT


def encode_pair(key: bytes, value: bytes) -> bytes:
    """What follows `map_set_prefix`."""
    return _encoder.encode((key, value))


def decode(entry: Entry) -> list[list[Any]]:
    """The operations of an entry. CorruptionError when the (checksummed) payload is not one of this version's."""
    where = f"log position {entry.position}"
    if entry.type != ENTRY_TRANSACTION:
        raise CorruptionError("log entry", where, f"type {ENTRY_TRANSACTION}", entry.type)
    try:
        version, _, operations = _decoder.decode(entry.payload)
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise CorruptionError("log entry", where, "MessagePack of three parts", error) from None
    if version != VERSION or not isinstance(operations, list):
        raise CorruptionError("log entry", where, f"version {VERSION}", version)
    for operation in operations:
        if not isinstance(operation, list) or _OPERANDS.get(operation[0] if operation else 0) != len(operation) - 1:
            raise CorruptionError("log entry", where, "operations with their operands", str(operation)[:80])
    return operations


def mapped_writes(operations: Sequence[Sequence[Any]]) -> list[tuple[list[tuple[int, int]], bytes]]:
    """(runs, checksums) of every WRITE_MAPPED among the operations."""
    return [(operation[4], operation[5]) for operation in operations if operation[0] == Op.WRITE_MAPPED]


def typed(error: JournalError) -> MdstoreError:
    """The store's error for a journal's."""
    if isinstance(error, JournalClosed):
        return StoreClosed(str(error))
    if isinstance(error, JournalFailed):
        cause = error.cause
        if isinstance(cause, MdstoreError):
            return cause
        return DeviceFailed(error.operation, f"log position {error.position}", cause)
    if isinstance(error, JournalCorrupt):
        return CorruptionError("log", f"position {error.position}", error.evidence, error.found)
    if isinstance(error, MediumUnreadable) and isinstance(error.cause, MdstoreError):
        return error.cause
    if isinstance(error, HeadLost):
        return CorruptionError("log", error.where, f"a head; {HEADS_REMEDY}", "; ".join(error.reasons))
    return CorruptionError("log", "its head or entries", "a readable log", error)


def closed() -> StoreClosed:
    return StoreClosed("the store is closed")
