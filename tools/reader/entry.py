"""Entries and heads of a journal: docs/format/journal.md and journal-head.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.problems import Damage

MAGIC: Final = b"\xf3\x6a\x72\x6e"
HEADER_SIZE: Final = 52
PAYLOAD_MAX: Final = 1 << 30
TYPE_PAD: Final = 65535
HEAD_MAGIC: Final = b"JRNLHEAD"
HEAD_SIZE: Final = 132
FLAG_CLEAN: Final = 1
FLAG_UNSPLIT: Final = 2

_HEADER: Final = struct.Struct("<4sBBHIIIQQQII")
_HEAD: Final = struct.Struct("<8sHHIIIQQQQQQQQQIIQ16sI")
assert _HEADER.size == HEADER_SIZE
assert _HEAD.size == HEAD_SIZE


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an entry, checksum and constants right. Field names are those of the page."""

    type: int
    length: int
    log: int
    generation: int
    sequence: int
    position: int
    safe: int
    payload_crc: int

    @property
    def end(self) -> int:
        """The position at which the next entry begins."""
        return self.position + HEADER_SIZE + self.length


@dataclass(frozen=True, slots=True)
class Head:
    """A copy of the journal's head. Field names are those of the page."""

    flags: int
    log: int
    generation: int
    number: int
    trimmed: int
    expire: int
    safe: int
    next_sequence: int
    generation_start: int
    epoch: int
    capacity: int
    object_size: int
    unit: int
    stripe_count: int

    @property
    def is_clean(self) -> bool:
        """The log was closed and ends exactly at `safe`."""
        return bool(self.flags & FLAG_CLEAN)


def decode_header(data: bytes, at: int = 0) -> Header | None:
    """The header at `at`, or None when no intact one of this version is there."""
    if data[at : at + 4] != MAGIC or len(data) - at < HEADER_SIZE:
        return None
    fields = _HEADER.unpack_from(data, at)
    if crc32c(data[at : at + HEADER_SIZE - 4]) != fields[11]:
        return None
    _, version, flags, kind, length, *_ = fields
    if version != 1 or flags != 0 or kind == 0 or length > PAYLOAD_MAX:
        return None
    return Header(kind, *fields[4:11])


def decode_head(data: bytes) -> Head | None:
    """One copy of the head; None where the slot holds zeros only; Damage (`journal-head`) otherwise."""
    if len(data) < HEAD_SIZE:
        if not any(data):
            return None
        raise Damage("journal-head", "journal head cut short", HEAD_SIZE, len(data))
    if not any(data[:HEAD_SIZE]):
        return None
    fields = _HEAD.unpack_from(data)
    if fields[0] != HEAD_MAGIC:
        raise Damage("journal-head", "journal head magic", HEAD_MAGIC, fields[0])
    if crc32c(data[: HEAD_SIZE - 4]) != fields[19]:
        raise Damage(
            "journal-head", "journal head checksum", f"{fields[19]:08x}", f"{crc32c(data[: HEAD_SIZE - 4]):08x}"
        )
    if fields[1] != 1 or fields[2] & ~(FLAG_CLEAN | FLAG_UNSPLIT):
        raise Damage("journal-head", "journal head version and flags", "version 1", f"{fields[1]}, {fields[2]:#x}")
    if fields[5] or fields[17] or any(fields[18]):
        raise Damage("journal-head", "journal head spare fields", "zeros", "other values")
    head = Head(fields[2], fields[3], fields[4], *fields[6:17])
    if not (head.trimmed <= head.expire <= head.safe and head.generation_start <= head.safe):
        raise Damage(
            "journal-head",
            "journal head positions",
            "trimmed <= expire <= safe, generation_start <= safe",
            f"{head.trimmed}, {head.expire}, {head.safe}, {head.generation_start}",
        )
    return head
