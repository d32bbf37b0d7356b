"""Carrying a repair out, finishing one that was interrupted, and taking one back.

The life of a repair
1. `write_file`: what is overwritten and what is written, in a repair file, durable as a whole (READY): the image is untouched.
2. `carry_out`: the writes in their order, with their flushes; then DONE. A crash in between leaves the file READY: carrying it
   out again from its beginning leads to the same bytes, wherever it stopped.
3. `take_back`, whenever: the old bytes of everything that was written; then UNDONE. A crash in between: once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from mdstore.device.protocol import Device
from mdstore.errors import Conflict, InvalidRequest
from mdstore.tools.reader.superblock import SIZE, decode_or_none
from mdstore.tools.repair.record import FileHeader, FileState, Record, RecordKind, RepairFile
from mdstore.tools.repair.shadow import UNIT, Shadow

Tick = Callable[[int], None]
_PIECE: Final = 1 << 20  # bytes of one OLD record at most


def superblock_places(size_bytes: int) -> list[int]:
    """The byte offsets of the four copies on a device of that size."""
    end = size_bytes // SIZE * SIZE
    return [0, SIZE, end - 2 * SIZE, end - SIZE]


def newest_uuid(device: Device) -> bytes:
    """The identity of the image: of the first superblock that can be read, zeros when none can."""
    found = (decode_or_none(device.read(at, SIZE)) for at in superblock_places(device.size_bytes))
    return next((block.uuid for block in found if block is not None), bytes(16))


def write_file(path: str, shadow: Shadow, notes: Iterable[str]) -> RepairFile:
    """A repair file with everything `shadow` holds. Durable as a whole on return; the image is untouched."""
    device = shadow.base
    file = RepairFile.create(path, FileHeader(device.size_bytes, newest_uuid(device)))
    for note in notes:
        file.append(Record(RecordKind.NOTE, 0, note.encode()))
    for at in superblock_places(device.size_bytes):
        file.append(Record(RecordKind.OLD, at, device.read(at, SIZE)))
    for at, data in _joined(shadow.originals()):
        file.append(Record(RecordKind.OLD, at, data))
    for change in shadow.changes():
        file.append(Record(RecordKind.FLUSH, 0, b"") if change is None else Record(RecordKind.NEW, *change))
    file.sync()
    file.mark(RecordKind.READY)
    return file


def carry_out(file: RepairFile, device: Device, tick: Tick = lambda _: None) -> None:
    """Make the image what the repair makes of it. Durable on return. `file` is READY."""
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
    """Make every byte what it was before the repair. Durable on return.

    InvalidRequest when the repair never began or was taken back already; Conflict when the image was written since.
    """
    if file.state() not in (FileState.READY, FileState.DONE):
        raise InvalidRequest(f"{file.path} has nothing to take back: the image was not changed, or was changed back already")
    check_image(file, device)
    for record in file.records():
        if record.kind is RecordKind.OLD:
            device.write(record.offset, [record.payload])
            tick(len(record.payload))
    device.flush()
    file.mark(RecordKind.UNDONE)


# -- whether file and image belong together ----------------------------------------------------------------------------
def check_image(file: RepairFile, device: Device) -> None:
    """Conflict unless the image is the one the file was made for, and nobody but this repair wrote to it since."""
    if device.size_bytes != file.header.image_size:
        what = f"{file.path} is for an image of {file.header.image_size} bytes; {device.name} has {device.size_bytes}"
        raise Conflict(what)
    places = superblock_places(device.size_bytes)
    known: dict[int, set[bytes]] = {at: set() for at in places}
    for record in file.records():
        for at in _covered(record, places):
            known[at].add(record.payload[at - record.offset : at - record.offset + SIZE])
    for at in places:
        found = device.read(at, SIZE)
        if found not in known[at] and decode_or_none(found) is not None:
            what = f"{device.name} was written since {file.path} was made (superblock at byte {at}): the two do not fit together"
            raise Conflict(f"{what}; move the file away to repair the image as it is now")


def _covered(record: Record, places: list[int]) -> Iterator[int]:
    if record.kind in (RecordKind.OLD, RecordKind.NEW):
        end = record.offset + len(record.payload)
        yield from (at for at in places if record.offset <= at and at + SIZE <= end)


def _joined(pieces: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Neighbouring units as one piece."""
    numbered = ((at - index * UNIT, index * UNIT // _PIECE, at, data) for index, (at, data) in enumerate(pieces))
    for _, group in groupby(numbered, key=lambda piece: piece[:2]):
        rows = list(group)
        yield rows[0][2], b"".join(row[3] for row in rows)
