"""Which log a `mdstore journal` command means, and opening its medium without opening the log.

| target           | the log                                                             |
|------------------|---------------------------------------------------------------------|
| `IMAGE`          | the metadata server's events                                        |
| `IMAGE` `--ring` | the store's own write-ahead log; read-only: the superblock rules it |
| `dir:PATH/NAME`  | a striped log of that name in a directory of objects                |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

from journal import Head, HeadLost, JournalError, Layout, Medium, NoJournal, StripedMedium
from journal.directory import DirectoryObjects
from journal.head import COPIES, decode_head, newest_head
from journal.survey import find_head
from mdstore.device.file import FileDevice
from mdstore.device.protocol import Device
from mdstore.errors import DeviceFailed, InvalidRequest, NotAnImage, NotFound
from mdstore.mds.layout import LOG, LOG_NAME, META, TABLE_OBJECTS, Tab, decode_server
from mdstore.mds.objectio import StoreObjects
from mdstore.store import superblock
from mdstore.store.recovery import ring_of
from mdstore.tools.images import opened_store
from mdstore.tools.output import CommandFailed, shown
from mdstore.tools.reader.snapshots import offered

_DIRECTORY = re.compile(r"dir:(.+)/([^/]+)")
_OBJECT = re.compile(r"([^.].*)\.(?:head[01]|[0-9a-f]{8,})")  # an object of a log, and the log's name


@dataclass(frozen=True, slots=True)
class Target:
    """A log's medium; `head` is set where something else than the log's own head says where it begins."""

    medium: Medium
    events: bool  # the entries are metadata events
    head: Head | None = None
    unreadable: list[tuple[int, int]] = field(default_factory=list)  # bytes of the image: first, behind the last

    def current_head(self) -> Head:
        """Errors: `NoJournal`, `HeadLost`."""
        return self.head or newest_head(self.medium.read_heads(), self.medium.name)


@contextmanager
def opened_log(target: str, *, ring: bool, read_only: bool, is_there: bool = True) -> Iterator[Target]:
    """The log that `target` names; it may be one that is yet to come when not `is_there`. What goes wrong with the log itself
    is one line, as everything a person can mend."""
    try:
        matched = _DIRECTORY.fullmatch(target)
        if matched is not None:
            yield _directory_log(Path(matched[1]), matched[2], is_there=is_there)
        elif ring:
            with _ring(target, read_only=read_only) as found:
                yield found
        else:
            with opened_store(target, read_only=read_only) as store:
                yield _events(store)
    except JournalError as error:
        raise CommandFailed(str(error)) from error


def _directory_log(path: Path, name: str, *, is_there: bool) -> Target:
    """The layout is in the head; a log that lost both must have the default one."""
    if not path.is_dir():
        raise CommandFailed(f"{path} is no directory")
    there = sorted({matched[1] for found in os.listdir(path) if (matched := _OBJECT.fullmatch(found)) is not None})
    if is_there and name not in there:
        raise CommandFailed(f"no log '{shown(name)}'; {offered([shown(found) for found in there], shown(str(path)))}")
    objects = DirectoryObjects(path, epoch=(1 << 63) - 1)
    plain = StripedMedium(objects, name)
    heads = [head for copy in plain.read_heads() if isinstance(head := decode_head(copy), Head)]
    layout = Layout(heads[0].unit, heads[0].stripe_count, heads[0].object_size) if heads else None
    return Target(StripedMedium(objects, name, layout), events=False)


def _events(store: object) -> Target:
    try:
        server = decode_server(store.map_header(META, TABLE_OBJECTS[Tab.SERVER]))  # type: ignore[attr-defined]
    except NotFound:
        raise NotAnImage("the store holds no file system, so no events; --ring shows the store's own log") from None
    layout = Layout(stripe_unit=server.log_unit, object_size=server.log_object_size)
    objects = StoreObjects(store, LOG)  # type: ignore[arg-type]
    return Target(StripedMedium(objects, LOG_NAME, layout), events=True)


class _PatientDevice:
    """A device that is only read, around what the medium does not give: bytes that begin no entry stand for that, and
    `unreadable` gets the place. Before byte `patient_from` lie the heads: the ring itself tells of those that do not read."""

    def __init__(self, device: FileDevice) -> None:
        self.name = device.name
        self.patient_from = 0
        self.unreadable: list[tuple[int, int]] = []
        self._device = device

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._device.read(offset, length)
        except (DeviceFailed, InvalidRequest) as error:
            if offset < self.patient_from:
                raise DeviceFailed("read", f"byte {offset}", str(error)) from error
        return b"".join(
            self._piece(max(at, offset), min(at + _SECTOR, offset + length))
            for at in range(offset // _SECTOR * _SECTOR, offset + length, _SECTOR)
        )

    def _piece(self, low: int, high: int) -> bytes:
        try:
            return self._device.read(low, high - low)
        except (DeviceFailed, InvalidRequest):
            self._note(low, high)
            return _NO_ENTRY * (high - low)

    def _note(self, low: int, high: int) -> None:
        """What overlaps or touches is one range."""
        near = [one for one in self.unreadable if one[0] <= high and low <= one[1]]
        rest = [one for one in self.unreadable if one not in near]
        self.unreadable[:] = sorted([*rest, (min([low, *(one[0] for one in near)]), max([high, *(one[1] for one in near)]))])


def _ring_head(medium: Medium, chosen: superblock.Superblock) -> Head | None:
    """The ring's head, from the superblock's position on; made from the entries where both copies are lost. None where nothing
    shows where the log ends: what lies there is looked at without."""
    start = chosen.log_position
    try:
        head, _ = find_head(medium, start, chosen.log_identity)
    except (NoJournal, HeadLost):
        return None
    return replace(head, expire=start, trimmed=start, safe=max(start, head.safe))


_SECTOR: Final = 512
_NO_ENTRY: Final = b"\xee"  # neither the magic of an entry nor the zeros of a clean end


@contextmanager
def _ring(image: str, *, read_only: bool) -> Iterator[Target]:
    if not read_only:
        raise CommandFailed("the store's own log cannot be changed by hand: the superblock and the log belong together")
    device = FileDevice.open(image, read_only=True)
    try:
        chosen = superblock.read_all(device)[0][0][0]
        patient = _PatientDevice(device)
        medium = ring_of(cast("Device", patient), chosen)  # which asks for no more of it
        patient.patient_from = chosen.log_start * chosen.block_size + COPIES * medium.period
        yield Target(medium, events=False, head=_ring_head(medium, chosen), unreadable=patient.unreadable)
    finally:
        device.close()
