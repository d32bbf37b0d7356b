"""Carrying a repair out, finishing one that was interrupted, and taking one back.

The life of a repair
1. `write_file`: what is overwritten and what is written, in a repair file, durable as a whole (READY): the image is untouched.
2. `carry_out`: the writes in their order, with their flushes; then DONE. A crash in between leaves the file READY: carrying it
   out again from its beginning leads to the same bytes, wherever it stopped.
3. `take_back`, whenever: UNDOING; the old bytes of everything that was written; then UNDONE. A crash in between: once more.

Both look first whether anybody else wrote to the image (untouched.py): what was acknowledged since would be gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Final, NamedTuple

from mdstore.device.protocol import Device
from mdstore.errors import DeviceFailed, InvalidRequest
from mdstore.tools.reader.superblock import SIZE
from mdstore.tools.repair.record import (
    UNIT,
    FileHeader,
    FileState,
    Record,
    RecordKind,
    RepairFile,
    decode_gone,
    gone_record,
    naming,
)
from mdstore.tools.repair.shadow import Shadow
from mdstore.tools.repair.untouched import check_image, first_uuid, stretches, superblock_places

Tick = Callable[[int], None]
_PIECE: Final = 1 << 20  # bytes of one OLD record at most


class _Piece(NamedTuple):
    at: int
    length: int
    data: bytes | None  # None: the medium does not give it


def write_file(path: str, shadow: Shadow, notes: Iterable[str]) -> RepairFile:
    """A repair file with everything `shadow` holds. Durable as a whole on return; the image is untouched.

    NoSpace, DeviceFailed (of the file, or of the image): no file is left then."""
    with naming(path):
        file = RepairFile.create(path, FileHeader(shadow.size_bytes, first_uuid(shadow)))
    try:
        with naming(path):
            for record in _contents(shadow, notes):
                file.append(record)
            file.sync()
        file.mark(RecordKind.READY)
    except BaseException:
        with suppress(OSError):  # of what is still to be written
            file.close()
        os.unlink(path)
        raise
    return file


def _contents(shadow: Shadow, notes: Iterable[str]) -> Iterator[Record]:
    """Everything before READY."""
    device = shadow.base
    for note in notes:
        yield Record(RecordKind.NOTE, 0, note.encode())
    places = superblock_places(device.size_bytes)
    yield from _kept(device, ((at, SIZE) for at in places))
    yield from _kept(device, shadow.changed_places())
    yield from stretches(device, shadow, places)
    for change in shadow.changes():
        yield Record(RecordKind.FLUSH, 0, b"") if change is None else Record(RecordKind.NEW, *change)


def _kept(device: Device, places: Iterable[tuple[int, int]]) -> Iterator[Record]:
    """What the image has at these (offset, length); neighbours as one record."""
    pieces = (_Piece(at, length, _read_or_none(device, at, length)) for at, length in places)
    for group in _joined(pieces):
        if group[0].data is None:
            yield gone_record(group[0].at, group[0].length)
        else:
            yield Record(RecordKind.OLD, group[0].at, b"".join(piece.data or b"" for piece in group))


def _read_or_none(device: Device, at: int, length: int) -> bytes | None:
    """None when the medium does not give it."""
    try:
        return device.read(at, length)
    except DeviceFailed:
        return None


def carry_out(file: RepairFile, device: Device, tick: Tick = lambda _: None) -> None:
    """Make the image what the repair makes of it. Durable on return. `file` is READY.

    Conflict, before anything is written, when anybody else wrote to the image since the file was made."""
    check_image(file, device)
    for record in file.records():
        if record.kind is RecordKind.NEW:
            device.write(record.offset, [record.payload])
            tick(len(record.payload))
        elif record.kind is RecordKind.FLUSH:
            device.flush()
    device.flush()
    file.mark(RecordKind.DONE)


def take_back(file: RepairFile, device: Device, tick: Tick = lambda _: None) -> None:
    """Make every byte what it was before the repair; zeros, where it could not be read then. Durable on return.

    InvalidRequest when the repair never began or was taken back already; Conflict, before anything is written, when anybody else
    wrote to the image since the file was made.
    """
    if file.state() not in (FileState.READY, FileState.DONE, FileState.UNDOING):
        raise InvalidRequest(f"{file.path} has nothing to take back: the image was not changed, or was changed back already")
    check_image(file, device)
    file.mark(RecordKind.UNDOING)
    for record in file.records():
        if record.kind is RecordKind.OLD:
            device.write(record.offset, [record.payload])
            tick(len(record.payload))
        elif record.kind is RecordKind.GONE:
            device.write(record.offset, [bytes(decode_gone(record, file.path))])
    device.flush()
    file.mark(RecordKind.UNDONE)


def _joined(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Neighbouring units together; one that could not be read stays by itself."""
    numbered = (
        ((piece.at - index * UNIT, index * UNIT // _PIECE, index if piece.data is None else -1), piece)
        for index, piece in enumerate(pieces)
    )
    for _, group in groupby(numbered, key=lambda row: row[0]):
        yield [piece for _, piece in group]
