"""The name space, second half: everything said about one inode, side by side, and everything said about one
directory's statistics. Both come sorted by number, so memory is that of one inode.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from itertools import groupby
from typing import Final, Protocol

from mdstore.tools.reader.mds_inode import ROOT
from mdstore.tools.reader.problems import Findings, Place
from mdstore.tools.reader.sorting import Sorter

RECORD: Final = struct.Struct(">QBQQQQ")  # inode, kind, four numbers as below
HEADER: Final = 1  # a directory's header: parent (all ones: unreadable), name tag
PRIMARY: Final = 2  # an entry that owns it: directory, name tag, data flag, link count
ROW: Final = 3  # inode table: home, link count, data flag, type
STRAY: Final = 4  # stray table
SUBDIRECTORY: Final = 5  # an entry that leads to a directory: directory, name tag
REMOTE: Final = 6  # an entry that leads to a row: directory, name tag, type
LINKROW: Final = 7  # link table: directory, name tag
BYTES: Final = 8  # objects in `data`: backtrace's directory and name tag, objects

STATISTIC: Final = struct.Struct(">QBQQQq")  # directory, kind, bytes, files, directories, ctime
OWN: Final = 1  # what its header says
SHARE: Final = 2  # what goes into it

_MASK: Final = (1 << 64) - 1
_NUMBER: Final = struct.Struct(">Q")
Fact = tuple[int, int, int, int, int, int]
Facts = dict[int, list[Fact]]


class Names(Protocol):
    """What turns numbers into words."""

    def place(self, ino: int) -> Place: ...
    def place_of_entry(self, directory: int, tag: int) -> Place: ...


class Links:
    """Judges the gathered records."""

    def __init__(self, names: Names, findings: Findings, next_ino: int) -> None:
        self._names = names
        self._findings = findings
        self._next_ino = next_ino

    def judge(self, links: Sorter, statistics: Sorter, parents: tuple[array[int], array[int]]) -> None:
        """Everything."""
        unpack = RECORD.unpack
        plain_next = self._next_ino
        for number, group in groupby(links, key=lambda record: record[:8]):
            facts = list(group)
            if len(facts) == 1 and facts[0][8] == PRIMARY and _NUMBER.unpack(number)[0] < plain_next:
                if facts[0][-8:] != b"\0\0\0\0\0\0\0\x01":
                    self._judge_inode([unpack(fact) for fact in facts])
                continue
            self._judge_inode([unpack(fact) for fact in facts])
        self._judge_statistics(statistics)
        self._judge_reach(*parents)

    # -- one inode -----------------------------------------------------------------------------------------------------
    def _judge_inode(self, records: list[Fact]) -> None:
        ino = records[0][0]
        facts: Facts = {}
        for record in records:
            facts.setdefault(record[1], []).append(record)
        owners = [record for kind in (HEADER, PRIMARY, ROW, STRAY) for record in facts.get(kind, ())]
        if len(owners) > 1:
            where = ", ".join(str(self._owner_place(owner)) for owner in owners)
            self._add("inode-duplicate", f"inode {ino} stands in {len(owners)} places: {where}", ino)
        if owners and ino >= self._next_ino:
            self._add("inode-number", f"inode {ino} is not below the next free number {self._next_ino}", ino)
        self._judge_directory(ino, facts)
        self._judge_names(ino, facts)
        self._judge_bytes(ino, facts, owners)

    def _judge_directory(self, ino: int, facts: Facts) -> None:
        headers, entries = facts.get(HEADER, []), facts.get(SUBDIRECTORY, [])
        if not headers:
            for entry in entries:
                self._findings.add("entry-dangling", f"no directory {ino}", self._names.place_of_entry(*entry[2:4]))
            return
        if ino == ROOT or headers[0][2] == _MASK:
            if ino == ROOT and entries:
                self._findings.add(
                    "directory-links", "an entry leads to the root", self._names.place_of_entry(*entries[0][2:4])
                )
            return
        if not entries:
            self._findings.add("directory-orphan", f"no entry leads to directory {ino}", self._names.place(ino))
        elif len(entries) > 1:
            where = ", ".join(str(self._names.place_of_entry(*entry[2:4])) for entry in entries)
            self._findings.add(
                "directory-links", f"{len(entries)} entries lead to directory {ino}: {where}", self._names.place(ino)
            )
        elif entries[0][2:4] != headers[0][2:4]:
            hangs = self._names.place_of_entry(*entries[0][2:4])
            what = f"directory {ino} says its parent is {headers[0][2]}, its entry is {hangs}"
            self._findings.add("directory-parent", what, self._names.place(ino))

    def _judge_names(self, ino: int, facts: Facts) -> None:
        for entry in facts.get(PRIMARY, ()):
            if entry[5] != 1:
                place = self._names.place_of_entry(*entry[2:4])
                self._findings.add("link-count", f"inode {ino} has link count {entry[5]}, should be 1", place)
        rows, remotes = facts.get(ROW, []), facts.get(REMOTE, [])
        if not rows:
            for entry in remotes:
                self._findings.add("entry-dangling", f"no inode {ino}", self._names.place_of_entry(*entry[2:4]))
        for row in rows:
            self._judge_row(ino, row, remotes)
        self._judge_link_rows(ino, remotes, facts.get(LINKROW, []))

    def _judge_row(self, ino: int, row: Fact, remotes: list[Fact]) -> None:
        home, nlink, file_type = row[2], row[3], row[5]
        if not remotes:
            self._add("inode-orphan", f"no name leads to inode {ino}", ino)
        elif nlink != len(remotes):
            self._add("link-count", f"inode {ino} has link count {nlink}, should be {len(remotes)}", ino)
        if home and all(entry[2] != home for entry in remotes):
            self._add("link-home", f"inode {ino} says its home is directory {home}, which has no entry for it", ino)
        for entry in remotes:
            if entry[4] != file_type:
                what = f"entry says type {entry[4]}, inode {ino} is of type {file_type}"
                self._findings.add("entry-type", what, self._names.place_of_entry(*entry[2:4]))

    def _judge_link_rows(self, ino: int, remotes: list[Fact], rows: list[Fact]) -> None:
        entries = {entry[2:4] for entry in remotes}
        listed = {row[2:4] for row in rows}
        for directory, tag in sorted(entries - listed):
            place = self._names.place_of_entry(directory, tag)
            self._findings.add("link-table", f"name of inode {ino} without its row in the link table", place)
        for directory, _ in sorted(listed - entries):
            self._add(
                "link-table",
                f"row of the link table for inode {ino} in directory {directory}, which has no such entry",
                ino,
            )

    def _judge_bytes(self, ino: int, facts: Facts, owners: list[Fact]) -> None:
        held = facts.get(BYTES)
        if not held:
            return
        directory, tag, objects = held[0][2:5]
        place = Place(f"data, {objects} objects of inode {ino}")
        if not owners:
            self._findings.add("data-orphan", f"no inode {ino}", place)
        elif owners[0][1] == HEADER:
            self._findings.add("data-orphan", f"inode {ino} is a directory", place)
        elif owners[0][1] in (PRIMARY, ROW) and not owners[0][4]:
            self._findings.add("data-flag", f"inode {ino} has objects with bytes, but not the flag", place)
        if owners and owners[0][1] == PRIMARY and directory and (directory, tag) != owners[0][2:4]:
            what = f"the backtrace of inode {ino} names another place (directory {directory})"
            self._findings.add("backtrace-old", what, self._names.place_of_entry(*owners[0][2:4]))

    def _owner_place(self, owner: Fact) -> Place:
        if owner[1] == PRIMARY:
            return self._names.place_of_entry(*owner[2:4])
        if owner[1] == HEADER:
            return self._names.place(owner[0])
        return Place("table.inodes" if owner[1] == ROW else "table.strays")

    def _add(self, code: str, what: str, ino: int) -> None:
        self._findings.add(code, what, Place(f"inode {ino}"))

    # -- statistics and reach ------------------------------------------------------------------------------------------
    def _judge_statistics(self, statistics: Iterable[bytes]) -> None:
        for ino, group in groupby(map(STATISTIC.unpack, statistics), key=lambda fact: int(fact[0])):
            own: tuple[int, ...] | None = None
            sums = [0, 0, 0]
            ctime = -(1 << 63)
            for _, kind, size, files, directories, latest in group:
                if kind == OWN:
                    own = (size, files, directories, latest)
                    continue
                sums = [sums[0] + size, sums[1] + files, sums[2] + directories]
                ctime = max(ctime, latest)
            if own is not None:
                self._compare(ino, own, sums, ctime)

    def _compare(self, ino: int, own: tuple[int, ...], sums: list[int], ctime: int) -> None:
        for name, says, should in zip(("rbytes", "rfiles", "rdirs"), own, sums, strict=False):
            if says != should & _MASK:
                self._findings.add("statistics", f"{name} is {says}, should be {should}", self._names.place(ino))
        if own[3] < ctime:
            self._findings.add("statistics", f"rctime {own[3]} is below {ctime} of an entry", self._names.place(ino))

    def _judge_reach(self, inos: array[int], parents: array[int]) -> None:
        """Every directory's parents lead to the root: loops are what the entries alone do not show."""
        state = bytearray(len(inos))  # 0 unknown, 1 on the way, 2 settled
        for start in range(len(inos)):
            way, at = [], start
            while at >= 0 and not state[at]:
                state[at] = 1
                way.append(at)
                at = -1 if inos[at] == ROOT else _index(inos, parents[at])
            if at >= 0 and state[at] == 1:
                what = f"following the parents of directory {inos[start]} leads in a circle"
                self._findings.add("directory-loop", what, self._names.place(inos[start]))
            for index in way:
                state[index] = 2


def _index(inos: array[int], ino: int) -> int:
    at = bisect_left(inos, ino)
    return at if at < len(inos) and inos[at] == ino else -1
