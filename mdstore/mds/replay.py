"""After a crash: the events of the log over what the directory objects say.

Records say what something is, so applying them in order leads to the state before the crash from any state in between. What
an object has already is skipped by its version. Memory is bounded: changed entries are written back during replay, as at any
other time; what a crash in the middle leaves is replayed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from journal import Entry, Journal
from journal.medium import Medium
from mdstore.errors import CorruptionError, NotFound
from mdstore.mds.core import Core
from mdstore.mds.events import (
    CLIENT_REQUEST_SIZE,
    DIR_TOUCH,
    DIR_TOUCH_SIZE,
    ENTRY_SET,
    ClientRequest,
    DirRemove,
    DirSet,
    DirTouch,
    EntryRemove,
    EntrySet,
    Rec,
    Record,
    TableRemove,
    TableSet,
    decode_event,
)
from mdstore.mds.fnode import decode_fnode
from mdstore.mds.inode import Directory
from mdstore.mds.layout import META, NEXT_INO, NEXT_INO_KEY, Tab, directory_object
from mdstore.mds.records import INO_END, entry_ino
from mdstore.mds.writeback import WriteBack

Progress = Callable[[int, int], None]  # told (bytes of log replayed, bytes to replay in all as far as known)
PROGRESS_EVENTS: Final = 4096  # between two calls of it, at most


@dataclass(slots=True)
class RecoveryReport:
    """What opening found and did. `tail`: what followed the last whole entry of the log ("clean" after a clean close)."""

    events: int = 0
    bytes: int = 0  # of the log, from the first event replayed to the end of the last
    skipped: int = 0  # records the objects had already
    seconds: float = 0.0  # of the whole opening; `replay_seconds` of it went by until the last event was replayed
    replay_seconds: float = 0.0
    tail: str = ""
    tail_detail: str = ""


class Replay:
    """Applies batches of entries; hand `visit` to `Journal.open`. `medium` is what the log lies in."""

    def __init__(
        self, core: Core, writeback: WriteBack, medium: Medium, *, read_only: bool, progress: Progress | None = None
    ) -> None:
        self._read_only = read_only
        self._medium = medium
        self._progress = progress
        self._first = self._reach = -1
        self._core = core
        self._writeback = writeback
        self.report = RecoveryReport()

    def visit(self, batch: list[Entry]) -> None:
        """Apply entries in their order. CorruptionError for an event that makes no sense."""
        if self._first < 0:
            self._first = batch[0].position
            self._reach = self._medium.reach(self._first) if self._progress is not None else 0
        for start in range(0, len(batch), PROGRESS_EVENTS):
            self._apply(batch[start : start + PROGRESS_EVENTS])

    def _apply(self, batch: list[Entry]) -> None:
        core = self._core
        ceiling = 1 << 62 if self._read_only else core.limits.dirty_entries
        for entry in batch:
            self._event(entry.payload, entry.position)
            if core.changes >= ceiling:
                self._write_back()
        self.report.events += len(batch)
        self.report.bytes = batch[-1].end - self._first
        if self._progress is not None:
            self._progress(self.report.bytes, max(self.report.bytes, self._reach - self._first))

    def _write_back(self) -> None:
        """Bound memory: everything seen so far goes into the objects. The log keeps it too, until replay is over."""
        self._writeback.step(1 << 62)
        self._core.nodes.clear()
        self._core.nodes.update(self._core.dirty)

    def finish(self, journal: Journal) -> None:
        """After the last entry: directories that no event made and no object holds are damage, not directories."""
        if self._progress is not None and self._first >= 0:
            self._progress(self.report.bytes, self.report.bytes)
        self.report.tail = journal.tail.kind
        self.report.tail_detail = journal.tail.detail
        for directory in [d for d in self._core.dirty.values() if d.nlink and not d.mode]:
            raise CorruptionError("metadata log", f"directory {directory.ino:#x}", "an event that makes it", "none")

    # -- events --------------------------------------------------------------------------------------------------------

    def _event(self, payload: bytes, position: int) -> None:
        """The two commonest records are read here, all others by their readers."""
        if payload[:1] == b"\x01" and len(payload) > DIR_TOUCH_SIZE + ENTRY_SET.size and payload[DIR_TOUCH_SIZE] == 4:
            _, zero, zero_too, *touch = DIR_TOUCH.unpack_from(payload)
            _, name_length, _, length, ino, version = ENTRY_SET.unpack_from(payload, DIR_TOUCH_SIZE)
            start = DIR_TOUCH_SIZE + ENTRY_SET.size
            middle = start + name_length
            end = middle + length
            left = len(payload) - end
            alone = left == 0 or (left == CLIENT_REQUEST_SIZE and payload[end] == Rec.CLIENT_REQUEST)
            if alone and ino == touch[1] and not zero | zero_too:
                self._touch(touch, position)
                self._entry(ino, version, payload[start:middle], payload[middle:end], position)
                return
        for record in decode_event(payload, f"position {position}"):
            self._record(record, position)

    def _record(self, record: Record, position: int) -> None:
        if isinstance(record, DirTouch):
            self._touch(record, position)
        elif isinstance(record, EntrySet):
            self._entry(record.directory, record.version, record.name, record.value, position)
        elif isinstance(record, EntryRemove):
            self._entry(record.directory, record.version, record.name, None, position)
        elif isinstance(record, DirSet):
            self._header(record, position)
        elif isinstance(record, DirRemove):
            self._remove(record, position)
        elif isinstance(record, ClientRequest):
            return  # for people; what is remembered of requests is rows of a table
        else:
            self._row(record, position)

    def _touch(self, fields: Any, position: int) -> None:
        directory = self._directory(fields[1])
        if fields[2] <= directory.stored_version:
            self.report.skipped += 1
            return
        (directory.nlink, _, directory.version, directory.size, directory.change, directory.mtime, directory.ctime,
         directory.rbytes, directory.rfiles, directory.rdirs, directory.rctime) = fields  # fmt: skip
        self._mark(directory, position)

    def _entry(self, ino: int, version: int, name: bytes, value: bytes | None, position: int) -> None:
        core = self._core
        if value is not None:
            self._passed(entry_ino(value))
        directory = self._directory(ino)
        if version <= directory.stored_version:
            self.report.skipped += 1
            return
        directory.changed[name] = value
        core.changes += 1
        self._mark(directory, position)

    def _passed(self, ino: int) -> None:
        """A number that was given out. One that cannot have been is damage, and keeps no number from those that follow."""
        if ino < INO_END:
            self._core.next_ino = max(self._core.next_ino, ino + 1)

    def _header(self, record: DirSet, position: int) -> None:
        core = self._core
        self._passed(record.directory)
        directory = self._directory(record.directory)
        if record.fnode.version <= directory.stored_version:
            self.report.skipped += 1
            return
        if not directory.stored and not directory.mode and record.fnode.version == 1:
            directory.complete = True  # it was made here, so the log has all of it
        directory.take_header(record.fnode)
        core.changes += 1
        self._mark(directory, position)

    def _remove(self, record: DirRemove, position: int) -> None:
        directory = self._directory(record.directory)
        directory.nlink = 0
        directory.changed.clear()
        self._mark(directory, position)

    def _row(self, record: TableSet | TableRemove, position: int) -> None:
        try:
            table = self._core.tables[Tab(record.table)]
        except ValueError:
            raise CorruptionError("event", f"position {position}", "a known table", record.table) from None
        table.changed[record.key] = value = record.value if isinstance(record, TableSet) else None
        if table.number == Tab.SERVER and record.key == NEXT_INO_KEY and value is not None and len(value) == NEXT_INO.size:
            self._core.next_ino = max(self._core.next_ino, NEXT_INO.unpack(value)[0])
        if table.since < 0:
            table.since = position
        self._core.changes += 1

    def _mark(self, directory: Directory, position: int) -> None:
        if directory.since < 0:
            directory.since = position
            self._core.dirty[directory.ino] = directory

    def _directory(self, ino: int) -> Directory:
        """The directory as stored, or an empty one that the log is about to make or remove."""
        node = self._core.nodes.get(ino)
        if isinstance(node, Directory):
            return node
        try:
            raw = self._core.store.map_header(META, directory_object(ino))
            directory = Directory.from_header(decode_fnode(raw, f"meta/{ino:016x}"))
            directory.stored = True
            directory.stored_version = directory.version
            if directory.unsettled:  # written by a replay that a crash cut short
                self._writeback.unsettled[ino] = None
        except NotFound:
            directory = Directory(ino, 0, 0, 0, 0, 0, b"")
        self._core.nodes[ino] = directory
        return directory
