"""Directories and tables once the events of the metadata log are applied, in memory only.

Memory follows the length of the log: changed entries, changed headers, changed rows.

Invariants
1. A record is applied exactly when its directory's **stored** version is below the record's (docs/format/mds-events.md);
   the stored version is looked up once, when the directory is first named.
2. `header` None in a changed directory means that it is gone, or that nothing has made it (`is_known` False).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Final

from sortedcontainers import SortedDict

from mdstore.tools.reader.mds_directory import COLLECTION, Header, decode_header, ino_of, object_name
from mdstore.tools.reader.mds_events import ClientRequest, DirSet, DirTouch, EntrySet, Record, TableSet
from mdstore.tools.reader.mds_inode import TAG_PRIMARY
from mdstore.tools.reader.mds_tables import INODES, STRAYS, TABLES
from mdstore.tools.reader.onode import Onode
from mdstore.tools.reader.overlay import ObjectState, Overlay
from mdstore.tools.reader.problems import Damage

_FIRST: Final = itemgetter(0)
Found = ObjectState | Onode
Rows = Iterator[tuple[bytes, bytes]]


class ChangedDirectory:
    """A directory that the log names."""

    def __init__(self, header: Header | None) -> None:
        self.header = header
        self.stored_version = header.version if header else 0
        self.is_known = header is not None
        self.entries: SortedDict[bytes, bytes | None] = SortedDict()
        self.is_rebuilt = False  # made by the log: nothing stored below it counts


class NameSpace:
    """The metadata server's state. `apply` events in order, then ask."""

    def __init__(self, store: Overlay) -> None:
        self.store = store
        self.changed: SortedDict[int, ChangedDirectory] = SortedDict()
        self.rows: dict[int, SortedDict[bytes, bytes | None]] = {number: SortedDict() for number in TABLES}
        self.highest_ino = 0

    # -- events --------------------------------------------------------------------------------------------------------
    def apply(self, records: list[Record]) -> None:
        """One event."""
        for record in records:
            if isinstance(record, TableSet):
                self.rows[record.table][record.key] = record.value
                if record.table in (INODES, STRAYS):
                    self.highest_ino = max(self.highest_ino, int.from_bytes(record.key[:8], "big"))
            elif isinstance(record, DirSet):
                self._apply_header(record)
            elif not isinstance(record, ClientRequest):
                directory = self._directory(record.directory)
                self._note_number(record)
                if record.version > directory.stored_version:
                    _apply_change(directory, record)

    def unknown(self) -> list[int]:
        """Directories that events name, the store has not, and no event made or removed: damage."""
        return [ino for ino, directory in self.changed.items() if not directory.is_known]

    def _directory(self, ino: int) -> ChangedDirectory:
        self.highest_ino = max(self.highest_ino, ino)
        if ino not in self.changed:
            found = self.store.find(COLLECTION, object_name(ino))
            try:
                header = decode_header(self.store.header_of(found)) if found is not None else None
            except Damage:  # reported where the directory itself is read
                header = None
            self.changed[ino] = ChangedDirectory(header)
            self.changed[ino].is_known = found is not None
        directory: ChangedDirectory = self.changed[ino]
        return directory

    def _note_number(self, record: DirTouch | EntrySet) -> None:
        """The next free number lies above every number that a record names."""
        if isinstance(record, EntrySet) and record.value:
            at = 9 if record.value[0] == TAG_PRIMARY else 4
            self.highest_ino = max(self.highest_ino, int.from_bytes(record.value[at : at + 8], "little"))

    def _apply_header(self, record: DirSet) -> None:
        directory = self._directory(record.directory)
        header = record.header
        if header is None:
            directory.header = None
            directory.is_known = True
            directory.is_rebuilt = True
            directory.entries.clear()
        elif header.version > directory.stored_version:
            if header.version == 1:
                directory.is_rebuilt = True
                directory.entries.clear()
            directory.header = header
            directory.is_known = True

    # -- queries -------------------------------------------------------------------------------------------------------
    def directories(self) -> Iterator[tuple[int, Found | None, ChangedDirectory | None]]:
        """(number, object, changes) of every directory in the order of their numbers; gone ones left out."""
        stored = ((ino, 1, found) for ino, found in self._stored())
        changed = ((ino, 0, None) for ino in self.changed)
        for ino, group in groupby(merge(stored, changed, key=_FIRST), key=_FIRST):
            parts = list(group)
            found = next((part[2] for part in parts if part[1]), None)
            change = self.changed.get(ino)
            if change is not None and change.header is None and (change.is_rebuilt or found is None):
                continue
            yield ino, found, change

    def _stored(self) -> Iterator[tuple[int, Found]]:
        for name, found in self.store.objects(COLLECTION):
            ino = ino_of(name)
            if ino is not None:
                yield ino, found

    def header(self, found: Found | None, change: ChangedDirectory | None) -> Header:
        """A directory's header as it is now. Damage."""
        if change is not None and change.header is not None:
            return change.header
        assert found is not None
        return decode_header(self.store.header_of(found))

    def entries(self, found: Found | None, change: ChangedDirectory | None) -> Rows:
        """A directory's entries in the order of their names."""
        if change is None:
            assert found is not None
            return self.store.items_of(found)
        stored = self.store.items_of(found) if found is not None and not change.is_rebuilt else iter(())
        return _merged(stored, change.entries)

    def table(self, number: int) -> Rows:
        """Rows of a table in the order of their keys."""
        found = self.store.find(COLLECTION, TABLES[number])
        stored = self.store.items_of(found) if found is not None else iter(())
        return _merged(stored, self.rows[number]) if self.rows[number] else stored


def _apply_change(directory: ChangedDirectory, record: DirTouch | EntrySet) -> None:
    if isinstance(record, EntrySet):
        directory.entries[record.name] = record.value
        return
    header = directory.header
    if header is None:
        return
    inode = header.inode._replace(
        nlink=record.nlink, size=record.size, change=record.change, mtime=record.mtime, ctime=record.ctime
    )
    directory.header = replace(
        header,
        version=record.version,
        rbytes=record.rbytes,
        rfiles=record.rfiles,
        rdirs=record.rdirs,
        rctime=record.rctime,
        inode=inode,
    )


def _merged(stored: Rows, changes: SortedDict[bytes, bytes | None]) -> Rows:
    """Stored records with changes over them; None removes."""
    under = ((key, 1, value) for key, value in stored)
    over = ((key, 0, value) for key, value in changes.items())
    for key, group in groupby(merge(over, under, key=_FIRST), key=_FIRST):
        value = next(group)[2]
        if value is not None:
            yield key, value
