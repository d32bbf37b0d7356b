"""The name space as a whole, in memory: what every directory, table and data object says, and where it is stored.

It is read through the second reader, the metadata server's events applied, so it is the name space as the next mount would see
it. `mend` changes it; `writing` brings the store to it.

Memory: some 2 KB for each inode (measured: 50,000 files, 127 MB in all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mdstore.tools.reader.mds_directory import Header
from mdstore.tools.reader.mds_inode import ROOT, Entry, Inode, decode_entry, is_name
from mdstore.tools.reader.mds_tables import (
    BACKTRACE,
    DATA,
    INODES,
    LINKS,
    NEXT_INO,
    SERVER,
    STRAYS,
    TABLES,
    Backtrace,
    decode_backtrace,
    decode_row,
    number_of,
    split_data_name,
    split_link_key,
)
from mdstore.tools.reader.mds_view import ChangedDirectory, Found, NameSpace
from mdstore.tools.reader.problems import Damage, readable

Place = tuple[int, bytes]  # directory's number, name in it
PRIMARY: Final = 1
REMOTE: Final = 2
DIRECTORY: Final = 3


@dataclass(slots=True)
class Slot:
    """An entry of a directory. `inode` is set with tag PRIMARY alone."""

    tag: int
    ino: int
    file_type: int
    inode: Inode | None
    raw: bytes  # as stored; empty when it was made or changed here


@dataclass(slots=True)
class Folder:
    """A directory. `header` None: it has none that can be read."""

    ino: int
    header: Header | None
    entries: dict[bytes, Slot] = field(default_factory=dict)
    is_stored: bool = False


@dataclass(slots=True)
class Row:
    """A row of the inode table."""

    home: int
    inode: Inode


@dataclass(slots=True)
class Bytes:
    """What `data` holds of one inode. `end`: behind the last byte that an object has; `held`: bytes of all objects."""

    objects: int = 0
    end: int = 0
    held: int = 0
    trace: Backtrace | None = None
    is_trace_damaged: bool = False


@dataclass(slots=True)
class Model:
    """Everything. Rows of tables that are not taken apart are in `others`, by table."""

    object_size: int
    now_ns: int
    folders: dict[int, Folder] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    strays: dict[int, Inode] = field(default_factory=dict)
    links: set[tuple[int, int, bytes]] = field(default_factory=set)  # inode, directory, name
    data: dict[int, Bytes] = field(default_factory=dict)
    others: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    next_ino: int = 16
    moves: dict[int, int] = field(default_factory=dict)  # objects of `data` that get another inode's number: from, to
    damaged: list[str] = field(default_factory=list)  # what could not be read, in words

    def path_of(self, ino: int) -> str:
        """A directory's path, by the headers' own word; `<number>` where it breaks off."""
        parts: list[str] = []
        while ino != ROOT:
            folder = self.folders.get(ino)
            if folder is None or folder.header is None or len(parts) > 200:
                return "/".join([f"<{ino}>", *reversed(parts)])
            parts.append(readable(folder.header.name))
            ino = folder.header.parent
        return "/".join(["", *reversed(parts)])

    def path(self, place: Place) -> str:
        """An entry's path."""
        return f"{self.path_of(place[0])}/{readable(place[1])}"

    def move_data(self, ino: int, number: int) -> None:
        """The bytes of inode `ino` become those of `number`."""
        self.moves[ino] = number
        self.data[number] = self.data.pop(ino)
        self.data[number].is_trace_damaged = True  # it names the old number

    def fresh_ino(self) -> int:
        """A number that no inode has."""
        number = self.next_ino
        self.next_ino += 1
        return number


def read_model(names: NameSpace, object_size: int, now_ns: int, tick: Callable[[int], None]) -> Model:
    """The whole name space. What cannot be read is left out and noted in `damaged`."""
    model = Model(object_size, now_ns)
    for ino, found, change in names.directories():
        model.folders[ino] = _folder(names, model, ino, found, change)
        tick(1 + len(model.folders[ino].entries))
    for ino in names.unknown():
        model.folders[ino] = _folder(names, model, ino, None, names.changed[ino])
    _read_inodes(names, model)
    _read_links(names, model)
    for table in TABLES.keys() - {INODES, LINKS, STRAYS}:
        model.others[table] = dict(names.table(table))
    _read_data(names, model, tick)
    model.next_ino = max(_next_ino(names, model), 16)
    return model


def _folder(
    names: NameSpace, model: Model, ino: int, found: Found | None, change: ChangedDirectory | None
) -> Folder:
    folder = Folder(ino, None, is_stored=found is not None)
    try:
        if found is not None or (change is not None and change.header is not None):
            folder.header = names.header(found, change)
            if folder.header.inode.ino != ino:
                raise Damage("directory", "number of the inode in a directory's header", ino, folder.header.inode.ino)
    except Damage as damage:
        folder.header = None
        model.damaged.append(f"header of directory {ino}: {damage.sentence}")
    for name, value in names.entries(found, change):
        try:
            folder.entries[name] = slot_of(decode_entry(value), value)
        except Damage as damage:
            model.damaged.append(f"entry {readable(name)} of directory {ino}: {damage.sentence}")
    return folder


def slot_of(entry: Entry, raw: bytes) -> Slot:
    """An entry as it is stored."""
    return Slot(entry.tag, entry.ino, entry.file_type, entry.inode, raw)


def _read_inodes(names: NameSpace, model: Model) -> None:
    for table in (INODES, STRAYS):
        for key, value in names.table(table):
            try:
                ino = number_of(key)
                home, inode = decode_row(value, ino)
            except Damage as damage:
                model.damaged.append(f"{TABLES[table].decode()}, row {key.hex()}: {damage.sentence}")
                continue
            if table == INODES:
                model.rows[ino] = Row(home, inode)
            else:
                model.strays[ino] = inode


def _read_links(names: NameSpace, model: Model) -> None:
    for key, value in names.table(LINKS):
        try:
            link = split_link_key(key)
            if value != b"\x01" or not is_name(link[2]):
                raise Damage("table-row", "row of the link table", "one byte, 1", value)
        except Damage as damage:
            model.damaged.append(f"table.links, row {key.hex()}: {damage.sentence}")
            continue
        model.links.add(link)


def _read_data(names: NameSpace, model: Model, tick: Callable[[int], None]) -> None:
    store = names.store
    for name, found in store.objects(DATA):
        parts = split_data_name(name)
        if parts is None:
            continue
        ino, number = parts
        held = model.data.setdefault(ino, Bytes())
        size = store.size_of(found)
        held.objects += 1
        held.held += size
        held.end = max(held.end, number * model.object_size + size)
        raw = store.attributes_of(found).get(BACKTRACE) if not number else None
        if raw is not None:
            try:
                held.trace = decode_backtrace(raw, ino)
            except Damage:
                held.is_trace_damaged = True
        tick(1)


def _next_ino(names: NameSpace, model: Model) -> int:
    """Above everything that is named anywhere, and not below what the table says."""
    value = model.others[SERVER].get(NEXT_INO, b"")
    numbers = [int.from_bytes(value, "little") - 1 if len(value) == 8 else 15, names.highest_ino]
    numbers += [max(found, default=0) for found in (model.folders, model.rows, model.strays, model.data)]
    numbers += [max((slot.ino for slot in folder.entries.values()), default=0) for folder in model.folders.values()]
    return max(numbers) + 1
