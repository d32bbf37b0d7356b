"""The pointer: which log is the current one while a log is rewritten (docs/format/journal-pointer.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from crc32c import crc32c

from journal.errors import HeadLost, UnsupportedJournal
from journal.medium import ObjectIO

MAGIC: Final = b"JRNLPNTR"
VERSION: Final = 1
COPIES: Final = 2
LAYOUT_BYTES: Final = 16

_SIDE: Final = struct.Struct("<IIII")  # serial, stripe_unit, stripe_count, object_size / stripe_unit
_BODY: Final = struct.Struct("<8sHHIQ16s16s")
POINTER_SIZE: Final = _BODY.size + 4
assert _SIDE.size == LAYOUT_BYTES
assert POINTER_SIZE == 60


@dataclass(frozen=True, slots=True)
class Side:
    """One log: its serial number, which is part of its objects' names, and its layout. Serial 0: none."""

    serial: int = 0
    stripe_unit: int = 0
    stripe_count: int = 0
    object_units: int = 0

    def encode(self) -> bytes:
        return _SIDE.pack(self.serial, self.stripe_unit, self.stripe_count, self.object_units)


@dataclass(frozen=True, slots=True)
class Pointer:
    """`front` is the log; `back`, when there is one, is to be erased before anything else."""

    front: Side
    back: Side = Side()
    number: int = 0

    def encode(self) -> bytes:
        """The bytes of one copy."""
        body = _BODY.pack(MAGIC, VERSION, 0, 0, self.number, self.front.encode(), self.back.encode())
        return body + crc32c(body).to_bytes(4, "little")


def decode_pointer(data: bytes) -> Pointer | str:
    """The pointer in `data`, or why there is none. `UnsupportedJournal` for another version."""
    if len(data) < POINTER_SIZE or data[:8] != MAGIC:
        return "empty" if not any(data) else "no pointer"
    data = data[:POINTER_SIZE]
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return "wrong checksum"
    _, version, flags, spare, number, front, back = _BODY.unpack_from(data)
    if version != VERSION or flags or spare:
        raise UnsupportedJournal("journal pointer", f"version {version}, flags {flags:#x}")
    return Pointer(Side(*_SIDE.unpack(front)), Side(*_SIDE.unpack(back)), number)


def pointer_name(name: str, slot: int) -> str:
    return f"{name}.pointer{slot}"


def read_pointer(objects: ObjectIO, name: str) -> Pointer | None:
    """The intact copy with the highest number; None when none was ever written; `HeadLost` when none is intact."""
    copies = [decode_pointer(objects.read(pointer_name(name, slot), 0, POINTER_SIZE)) for slot in range(COPIES)]
    intact = [copy for copy in copies if isinstance(copy, Pointer)]
    if intact:
        return max(intact, key=lambda pointer: pointer.number)
    if all(copy == "empty" for copy in copies):
        return None
    raise HeadLost(f"pointer of {name}", [str(copy) for copy in copies])


def write_pointer(objects: ObjectIO, name: str, pointer: Pointer) -> Pointer:
    """Both copies, one after the other, each flushed. Durable on return; returns it with its number."""
    for _ in range(COPIES):
        pointer = replace(pointer, number=pointer.number + 1)
        objects.write(pointer_name(name, pointer.number % COPIES), 0, [pointer.encode()])
        objects.flush()
    return pointer
