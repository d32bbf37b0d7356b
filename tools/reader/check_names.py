"""The name space, first half: one pass over directories, tables and data objects that judges each by itself and
gathers what must be compared across them, to be judged in order by `check_links`.

Memory: two sorters of bounded size, and 16 bytes for each directory.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from mdstore.tools.reader.check_links import (
    BYTES,
    HEADER,
    LINKROW,
    OWN,
    PRIMARY,
    RECORD,
    REMOTE,
    ROW,
    SHARE,
    STATISTIC,
    STRAY,
    SUBDIRECTORY,
    Links,
    Names,
)  # fmt: skip
from mdstore.tools.reader.check_sessions import check_sessions
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.mds_directory import COLLECTION, Header, decode_header, ino_of, object_name
from mdstore.tools.reader.mds_inode import (
    FLAG_DATA,
    ROOT,
    TAG_DIRECTORY,
    TAG_PRIMARY,
    TYPE_REGULAR,
    Inode,
    decode_entry,
    is_name,
)  # fmt: skip
from mdstore.tools.reader.mds_tables import (
    BACKTRACE,
    DAMAGE,
    DATA,
    INODES,
    LINKS,
    NEXT_INO,
    QUOTAS,
    SERVER,
    STRAYS,
    TABLES,
    decode_backtrace,
    decode_row,
    number_of,
    split_data_name,
    split_link_key,
)  # fmt: skip
from mdstore.tools.reader.mds_view import ChangedDirectory, Found, NameSpace
from mdstore.tools.reader.problems import Damage, Findings, Place, readable
from mdstore.tools.reader.sorting import Sorter

_MASK: Final = (1 << 64) - 1
_pack = RECORD.pack
_pack_statistic = STATISTIC.pack


def name_tag(name: bytes) -> int:
    """Two checksums of a name: what records of one size carry instead of it."""
    return crc32c(name) << 32 | zlib.crc32(name)


class NameCheck(Names):
    """One check of one name space. `run` reports everything; `tick` is called with the number of inodes seen."""

    def __init__(self, names: NameSpace, findings: Findings, tick: Callable[[int], None] = lambda _: None) -> None:
        self._names = names
        self._findings = findings
        self._tick = tick
        self._links = Sorter(RECORD.size)
        self._statistics = Sorter(STATISTIC.size)
        self._parents = (array("Q"), array("Q"))
        self.counts = {"directories": 0, "entries": 0, "data_objects": 0}
        self.path_of = lru_cache(4096)(self._path_of)

    def run(self) -> None:
        """Both halves."""
        try:
            has_root = False
            for ino, found, change in self._names.directories():
                has_root = has_root or ino == ROOT
                self._check_directory(ino, found, change)
            if not has_root:
                self._findings.add("directory", "no root directory", Place("directory 1 (/)"))
            self._check_inode_rows()
            self._check_link_rows()
            self._check_other_rows()
            check_sessions(self._names, self._findings)
            self._check_data()
            next_ino = self._next_ino()
            Links(self, self._findings, next_ino).judge(self._links, self._statistics, self._parents)
        finally:
            self._links.close()
            self._statistics.close()

    # -- directories ---------------------------------------------------------------------------------------------------
    def _check_directory(self, ino: int, found: Found | None, change: ChangedDirectory | None) -> None:
        header: Header | None = None
        self.counts["directories"] += 1
        try:
            header = self._names.header(found, change)
            if header.inode.ino != ino:
                raise Damage("directory", "number of the inode in a directory's header", ino, header.inode.ino)
        except Damage as damage:
            self._findings.add_damage(damage.located(owner=f"directory {ino}"))
        files, subdirectories, size, ctime = self._take_entries(ino, found, change)
        self._statistics.add(_pack_statistic(ino, SHARE, size & _MASK, files, subdirectories, ctime))
        self._statistics.settle()
        if header is None:
            self._links.add(_pack(ino, HEADER, _MASK, 0, 0, 0))
            return
        self._take_header(ino, header)
        self._check_counts(ino, header, files + subdirectories, subdirectories)

    def _take_header(self, ino: int, header: Header) -> None:
        self._links.add(_pack(ino, HEADER, header.parent, name_tag(header.name), 0, 0))
        self._parents[0].append(ino)
        self._parents[1].append(header.parent)
        own = (header.rbytes, header.rfiles, header.rdirs, header.rctime)
        self._statistics.add(_pack_statistic(ino, OWN, *own))
        if ino != ROOT:
            accounted = (header.accounted_bytes, header.accounted_files, header.accounted_dirs, header.accounted_ctime)
            self._statistics.add(_pack_statistic(header.parent, SHARE, *accounted))

    def _check_counts(self, ino: int, header: Header, entries: int, subdirectories: int) -> None:
        inode = header.inode
        if inode.size != entries:
            what = f"directory says {inode.size} entries, has {entries}"
            self._findings.add("directory-size", what, self.place(ino))
        if inode.nlink != 2 + subdirectories:
            what = f"directory has link count {inode.nlink}, should be {2 + subdirectories}"
            self._findings.add("link-count", what, self.place(ino))

    def _take_entries(
        self, ino: int, found: Found | None, change: ChangedDirectory | None
    ) -> tuple[int, int, int, int]:
        """Own entries: (files, subdirectories, bytes, 0)."""
        files = subdirectories = size = 0
        add, settle = self._links.add, self._links.settle
        for name, value in self._names.entries(found, change):
            try:
                tag, file_type, target, inode = decode_entry(value)
            except Damage as damage:
                self._findings.add_damage(damage.located(owner=f"{self.path_of(ino)}/{readable(name)}"))
                continue
            if not is_name(name):
                self._findings.add("entry-name", f"entry named {readable(name)!r}", self.place(ino))
            if inode is not None:
                files += 1
                size += inode.size
                add(_pack(target, PRIMARY, ino, name_tag(name), inode.flags & FLAG_DATA, inode.nlink))
            elif tag == TAG_DIRECTORY:
                subdirectories += 1
                add(_pack(target, SUBDIRECTORY, ino, name_tag(name), 0, 0))
            else:
                files += 1
                add(_pack(target, REMOTE, ino, name_tag(name), file_type, 0))
        settle()
        self.counts["entries"] += files + subdirectories
        self._tick(files + subdirectories)
        return files, subdirectories, size, -(1 << 63)

    # -- tables --------------------------------------------------------------------------------------------------------
    def _check_inode_rows(self) -> None:
        for table, kind in ((INODES, ROW), (STRAYS, STRAY)):
            for key, value in self._names.table(table):
                owner = f"{TABLES[table].decode()}, row {key.hex()}"
                try:
                    ino = number_of(key)
                    home, inode = decode_row(value, ino)
                except Damage as damage:
                    self._findings.add_damage(damage.located(owner=owner))
                    continue
                self._links.add(_pack(ino, kind, home, inode.nlink, inode.flags & FLAG_DATA, inode.type))
                self._links.settle()
                self._check_row(table, home, inode, owner)

    def _check_row(self, table: int, home: int, inode: Inode, owner: str) -> None:
        if table == STRAYS:
            if home or inode.nlink or inode.type != TYPE_REGULAR:
                what = f"stray has home {home}, link count {inode.nlink}, mode {inode.mode:o}"
                self._findings.add("stray", what, Place(owner))
        elif home:
            self._statistics.add(_pack_statistic(home, SHARE, inode.size, 0, 0, -(1 << 63)))

    def _check_link_rows(self) -> None:
        for key, value in self._names.table(LINKS):
            try:
                ino, directory, name = split_link_key(key)
                if value != b"\x01":
                    raise Damage("table-row", "value of the link table", "one byte, 1", value)
            except Damage as damage:
                self._findings.add_damage(damage.located(owner=f"table.links, row {key.hex()}"))
                continue
            self._links.add(_pack(ino, LINKROW, directory, name_tag(name), 0, 0))
            self._links.settle()

    def _check_other_rows(self) -> None:
        for key, value in self._names.table(DAMAGE):
            what = f"damage noted: {readable(value)}"
            self._findings.add(
                "damage-row", what, Place(f"directory {int.from_bytes(key[:8], 'big')} {readable(key[8:])}")
            )
        for key, value in self._names.table(QUOTAS):
            owner = f"table.quotas, row {key.hex()}"
            if len(key) != 8 or len(value) != 16:
                self._findings.add("table-row", f"row of {len(key)} and {len(value)} bytes, not 8 and 16", Place(owner))
            elif self._header(number_of(key)) is None:
                self._findings.add("quota-orphan", f"no directory {number_of(key)}", Place(owner))
        for name, _ in self._names.store.objects(COLLECTION):
            if ino_of(name) is None and name not in TABLES.values():
                self._findings.add("foreign-object", "unknown object", Place(f"meta/{readable(name)}"))

    def _next_ino(self) -> int:
        """The next free number: the table's, or one above the highest in the log."""
        value = dict(self._names.table(SERVER)).get(NEXT_INO, b"")
        if len(value) != 8:
            self._findings.add("table-row", f"next_ino of {len(value)} bytes, not 8", Place("table.server"))
        return max(int.from_bytes(value[:8], "little"), self._names.highest_ino + 1)

    # -- bytes of files ------------------------------------------------------------------------------------------------
    def _check_data(self) -> None:
        """One record for each inode that has objects in `data`; they come in the order of inodes."""
        last, objects, directory, tag = 0, 0, 0, 0
        for name, found in self._names.store.objects(DATA):
            parts = split_data_name(name)
            if parts is None:
                self._findings.add("foreign-object", "unknown object", Place(f"data/{readable(name)}"))
                continue
            ino, number = parts
            if ino != last:
                self._take_data(last, objects, directory, tag)
                last, objects, directory, tag = ino, 0, 0, 0
            objects += 1
            if not number:
                directory, tag = self._backtrace(ino, found)
        self._take_data(last, objects, directory, tag)

    def _take_data(self, ino: int, objects: int, directory: int, tag: int) -> None:
        if objects:
            self.counts["data_objects"] += objects
            self._links.add(_pack(ino, BYTES, directory, tag, objects, 0))
            self._links.settle()
            self._tick(objects)

    def _backtrace(self, ino: int, found: Found) -> tuple[int, int]:
        """(directory, name tag) of the backtrace; (0, 0) where it says nothing."""
        data = self._names.store.attributes_of(found).get(BACKTRACE)
        if data is None:
            return 0, 0
        try:
            trace = decode_backtrace(data, ino)
        except Damage as damage:
            self._findings.add_damage(damage.located(owner=f"data, first object of inode {ino}"))
            return 0, 0
        return trace.directory, name_tag(trace.name)

    # -- names for people ----------------------------------------------------------------------------------------------
    def place(self, ino: int) -> Place:
        """A directory, for a finding."""
        return Place(f"directory {ino} ({self.path_of(ino) or '/'})")

    def place_of_entry(self, directory: int, tag: int) -> Place:
        """An entry, for a finding: its name is looked up by its tag."""
        name = next((name for name, _ in self._entries_of(directory) if name_tag(name) == tag), b"?")
        return Place(f"{self.path_of(directory)}/{readable(name)}")

    def _entries_of(self, ino: int) -> list[tuple[bytes, bytes]]:
        found = self._find(ino)
        change = self._names.changed.get(ino)
        if found is None and change is None:
            return []
        return list(self._names.entries(found, change))

    def _find(self, ino: int) -> Found | None:
        """A directory's object; None also where the object tree is damaged there, which is reported by its own check."""
        try:
            return self._names.store.find(COLLECTION, object_name(ino))
        except Damage:
            return None

    def _header(self, ino: int) -> Header | None:
        change = self._names.changed.get(ino)
        if change is not None and (change.header is not None or change.is_rebuilt):
            known: Header | None = change.header
            return known
        found = self._find(ino)
        try:
            return decode_header(self._names.store.header_of(found)) if found is not None else None
        except Damage:
            return None

    def _path_of(self, ino: int) -> str:
        """The path by the headers' own word; `<number>` where it breaks off."""
        parts: list[str] = []
        while ino != ROOT:
            header = self._header(ino)
            if header is None or len(parts) > 200:
                return "/".join([f"<{ino}>", *reversed(parts)])
            parts.append(readable(header.name))
            ino = header.parent
        return "/".join(["", *reversed(parts)])


assert TAG_PRIMARY == 1
