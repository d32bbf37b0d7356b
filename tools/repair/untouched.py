"""Whether anybody but the repair wrote to an image since its repair file was made.

What changes an image that is in use, changes one of these first:
1. its superblocks: all four places are OLD records, so they are compared byte by byte;
2. its log: whatever is acknowledged is an entry in the ring. Where the repair writes there, bytes are compared; of all the rest
   of the ring the file holds checksums (SAME records). Wherever the log of a half-repaired image ends, an entry behind it shows.
So every byte that the repair found or wrote must still be what it found or wrote, and the rest of the ring what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from crc32c import crc32c

from mdstore.device.protocol import Device
from mdstore.errors import Conflict, DamagedFile, DeviceFailed
from mdstore.tools.reader.superblock import SIZE, Superblock, decode_or_none
from mdstore.tools.repair.record import (
    UNIT,
    FileState,
    Record,
    RecordKind,
    RepairFile,
    Stretch,
    decode_gone,
    decode_same,
    same_record,
)
from mdstore.tools.repair.shadow import Shadow

_PIECE: Final = 1 << 20  # bytes of one checksum, or of one comparison's read
_ZEROS: Final = -1  # in place of where the bytes lie in the file: they could not be read
_Known = dict[int, list[int]]  # unit: where in the file the bytes lie that it may hold, oldest first


def superblock_places(size_bytes: int) -> list[int]:
    """The byte offsets of the four copies on a device of that size."""
    end = size_bytes // SIZE * SIZE
    return [0, SIZE, end - 2 * SIZE, end - SIZE]


def first_uuid(device: Device) -> bytes:
    """The identity of the image: of the first superblock that can be read, zeros when none can."""
    return next((block.uuid for block in _superblocks(device)), bytes(16))


def _superblocks(device: Device) -> Iterator[Superblock]:
    for at in superblock_places(device.size_bytes):
        try:
            found = decode_or_none(device.read(at, SIZE))
        except DeviceFailed:
            continue
        if found is not None:
            yield found


# -- what is noted -----------------------------------------------------------------------------------------------------
def stretches(device: Device, shadow: Shadow, places: list[int]) -> Iterator[Record]:
    """SAME records of the ring, as the superblocks before and after the repair know it, without what OLD and NEW records cover,
    and without what the medium does not give."""
    covered = {at // UNIT for at, _ in shadow.changed_places()} | {at // UNIT for at in places}
    rings = {_ring(block, device.size_bytes) for medium in (device, shadow) for block in _superblocks(medium)}
    for low, high in sorted(rings):
        units = (unit for unit in range(low // UNIT, -(-high // UNIT)) if unit not in covered)
        for first, last in _runs(units):
            start, stop = max(low, first * UNIT), min(high, last * UNIT)
            yield from (same_record(found) for found in _summed(device, start, stop))


def _ring(superblock: Superblock, size_bytes: int) -> tuple[int, int]:
    low, high = superblock.log_start * superblock.block_size, superblock.first_block * superblock.block_size
    return min(low, size_bytes), min(high, size_bytes)


def _runs(units: Iterator[int]) -> Iterator[tuple[int, int]]:
    """(first unit, behind the last) of neighbours, of at most `_PIECE` bytes."""
    at_most = _PIECE // UNIT
    numbered = enumerate(units)
    for _, group in groupby(numbered, key=lambda pair: (pair[1] - pair[0], pair[1] // at_most)):
        rows = [unit for _, unit in group]
        yield rows[0], rows[-1] + 1


def _summed(device: Device, start: int, stop: int) -> Iterator[Stretch]:
    try:
        yield Stretch(start, stop - start, crc32c(device.read(start, stop - start)))
    except DeviceFailed:
        if stop - start <= UNIT:
            return
        for low in range(start // UNIT * UNIT, stop, UNIT):
            yield from _summed(device, max(low, start), min(low + UNIT, stop))


# -- what is compared --------------------------------------------------------------------------------------------------
def check_image(file: RepairFile, device: Device) -> None:
    """Conflict unless the image is the one the file was made for, and nobody but this repair wrote to it since.

    DamagedFile; DeviceFailed when a place cannot be read that could be then. Cost: reads what the repair writes, and the ring.
    """
    if device.size_bytes != file.header.image_size:
        what = f"{file.path} is for an image of {file.header.image_size} bytes; {device.name} has {device.size_bytes}"
        raise Conflict(what)
    uuids = [block.uuid for block in _superblocks(device)]
    if uuids and any(file.header.uuid) and file.header.uuid not in uuids:
        raise Conflict(f"{file.path} is for the image {file.header.uuid.hex()}; {device.name} is another one, {uuids[0].hex()}")
    known, same = _read(file)
    # Version 1 has no mark for a taking back that was interrupted.
    is_settled = file.state() is FileState.DONE and file.header.version > 1
    for first, last in _runs(iter(sorted(known))):
        _compare(file, device, known, range(first, last), is_settled=is_settled)
    for stretch in same:
        if crc32c(device.read(stretch.offset, stretch.length)) != stretch.crc:
            raise _written_since(file, device, stretch.offset)


def _read(file: RepairFile) -> tuple[_Known, list[Stretch]]:
    known: _Known = {}
    same: list[Stretch] = []
    for at, record in file.placed():
        if record.kind is RecordKind.SAME:
            same.append(decode_same(record, file.path))
        elif record.kind is RecordKind.GONE:
            for unit in _units(file, record.offset, decode_gone(record, file.path)):
                known.setdefault(unit, []).append(_ZEROS)
        elif record.kind in (RecordKind.OLD, RecordKind.NEW):
            for number, unit in enumerate(_units(file, record.offset, len(record.payload))):
                known.setdefault(unit, []).append(at + number * UNIT)
    return known, same


def _units(file: RepairFile, offset: int, length: int) -> range:
    end, size = offset + length, file.header.image_size
    if offset % UNIT or (end % UNIT and end != size) or end > size:
        raise DamagedFile("repair file's record", file.path, f"whole units of {UNIT} bytes below {size}", (offset, length))
    return range(offset // UNIT, -(-end // UNIT))


def _compare(file: RepairFile, device: Device, known: _Known, units: range, *, is_settled: bool) -> None:
    size = file.header.image_size
    low, high = units.start * UNIT, min(units.stop * UNIT, size)
    try:
        found = device.read(low, high - low)
    except DeviceFailed:
        if len(units) > 1:
            for unit in units:
                _compare(file, device, known, range(unit, unit + 1), is_settled=is_settled)
            return
        if _ZEROS not in known[units.start] or is_settled:
            raise
        return
    for unit in units:
        there = found[unit * UNIT - low : unit * UNIT - low + UNIT]
        choices = known[unit][-1:] if is_settled else known[unit]
        if not _is_one_of(file, there, choices):
            raise _written_since(file, device, unit * UNIT)


def _is_one_of(file: RepairFile, there: bytes, choices: list[int]) -> bool:
    """Whether every byte is what one of the choices has there: a write that was cut short leaves a mixture."""
    seen = []
    for at in reversed(choices):
        choice = bytes(len(there)) if at == _ZEROS else file.payload(at, len(there))
        if choice == there:
            return True
        seen.append(choice)
    if len(seen) < 2:
        return False
    return all(byte in column for byte, column in zip(there, zip(*seen, strict=True), strict=True))


def _written_since(file: RepairFile, device: Device, at: int) -> Conflict:
    what = f"{device.name} was written since {file.path} was made, or is another image (byte {at}): the two do not fit together"
    return Conflict(f"{what}; move the file away to repair the image as it is now")
