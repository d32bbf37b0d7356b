"""Entries of a log in words, and choosing among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from journal import Entry
from mdstore.errors import CorruptionError
from mdstore.mds.events import (
    ClientRequest,
    DirRemove,
    DirSet,
    DirTouch,
    EntryRemove,
    EntrySet,
    Kind,
    Record,
    TableRemove,
    TableSet,
    decode_event,
)
from mdstore.mds.layout import Tab
from mdstore.mds.records import entry_ino
from mdstore.tools.output import json_name, shown


@dataclass(frozen=True, slots=True)
class Filter:
    """All that are given must hold. `low` and `high` are positions; `path` a part of a name."""

    low: int | None = None
    high: int | None = None
    types: frozenset[int] = frozenset()
    path: bytes | None = None
    inode: int | None = None
    client: int | None = None

    @property
    def empty(self) -> bool:
        return self == Filter()

    def __call__(self, entry: Entry) -> bool:
        if self.low is not None and entry.position < self.low:
            return False
        if self.high is not None and entry.position >= self.high:
            return False
        if self.types and entry.type not in self.types:
            return False
        if self.path is None and self.inode is None and self.client is None:
            return True
        records = records_of(entry)
        if self.path is not None and not any(self.path in name for name in names_of(records)):
            return False
        if self.client is not None and self.client not in clients_of(records):
            return False
        return self.inode is None or self.inode in inodes_of(records)


def type_number(text: str) -> int:
    """`CREATE`, `create` or `3`. ValueError with the names there are."""
    if text.isdigit():
        return int(text)
    try:
        return Kind[text.upper()].value
    except KeyError:
        raise ValueError(f"no event type {text!r}; there are {', '.join(kind.name for kind in Kind)}") from None


def type_name(entry: Entry, *, events: bool) -> str:
    try:
        return Kind(entry.type).name if events else str(entry.type)
    except ValueError:
        return str(entry.type)


def records_of(entry: Entry) -> list[Record]:
    """The records of an event as far as they can be read."""
    records: list[Record] = []
    try:
        records.extend(decode_event(entry.payload, f"log position {entry.position}"))
    except CorruptionError:
        pass  # the entry's checksum is right, so another version wrote it: what was read so far is what there is to show
    return records


def names_of(records: Iterable[Record]) -> list[bytes]:
    return [record.name for record in records if isinstance(record, EntrySet | EntryRemove)]


def inodes_of(records: Iterable[Record]) -> set[int]:
    """Every inode an event speaks of: directories, what entries name, rows of tables keyed by inode."""
    found: set[int] = set()
    for record in records:
        if isinstance(record, EntrySet):
            found |= {record.directory, entry_ino(record.value)}
        elif isinstance(record, EntryRemove | DirTouch | DirSet | DirRemove):
            found.add(record.directory)
        elif isinstance(record, TableSet | TableRemove) and len(record.key) == 8 and record.table not in _NO_INODES:
            found.add(int.from_bytes(record.key, "big"))
    return found


_SESSION_TABLES = {Tab.SESSIONS, Tab.REQUESTS, Tab.OPEN}
_NO_INODES = {Tab.SERVER, Tab.SESSIONS}  # tables whose keys are something else


def clients_of(records: Iterable[Record]) -> set[int]:
    """The session that asked for an event, and those whose rows it changes."""
    found: set[int] = set()
    for record in records:
        if isinstance(record, ClientRequest):
            found.add(record.client)
        elif isinstance(record, TableSet | TableRemove) and record.table in _SESSION_TABLES:
            found.add(int.from_bytes(record.key[:8], "big"))
    return found


def line(entry: Entry, *, events: bool) -> str:
    """One line for a person."""
    front = f"{entry.position:>12}  {entry.sequence:>8}  {type_name(entry, events=events):<10} {len(entry.payload):>8} B"
    return f"{front}  {_words(records_of(entry))}" if events else front


def _words(records: list[Record]) -> str:
    words = []
    for record in records:
        if isinstance(record, EntrySet):
            words.append(f"{record.directory:x}/{shown(record.name)} -> {entry_ino(record.value):x}")
        elif isinstance(record, EntryRemove):
            words.append(f"{record.directory:x}/{shown(record.name)} removed")
        elif isinstance(record, DirRemove):
            words.append(f"directory {record.directory:x} removed")
        elif isinstance(record, ClientRequest):
            words.append(f"request {record.request} of client {record.client}")
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


def entry_json(entry: Entry, *, events: bool) -> dict[str, Any]:
    """Everything of an entry; the payload in hexadecimal where it is not an event."""
    found: dict[str, Any] = {
        "position": entry.position, "end": entry.end, "sequence": entry.sequence, "generation": entry.generation,
        "safe": entry.safe, "type": type_name(entry, events=events), "bytes": len(entry.payload),
    }  # fmt: skip
    if events:
        found["records"] = [_record(record) for record in records_of(entry)]
    else:
        found["payload"] = entry.payload.hex()
    return found


def _record(record: Record) -> dict[str, Any]:
    shown_as: dict[str, Any] = {"record": type(record).__name__}
    for name, value in zip(record._fields, record, strict=True):
        if isinstance(value, bytes):
            shown_as[name] = json_name(value) if name == "name" else value.hex()
        elif isinstance(value, int):
            shown_as[name] = value
        else:
            shown_as[name] = str(value)
    return shown_as


@dataclass(slots=True)
class Summary:
    """Counts by type; memory independent of the log's length."""

    entries: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None

    def add(self, entries: Iterator[Entry], *, events: bool) -> None:
        for entry in entries:
            name = type_name(entry, events=events)
            self.entries[name] += 1
            self.bytes[name] += entry.end - entry.position
            self.first = entry.position if self.first is None else self.first
            self.last = entry.position
