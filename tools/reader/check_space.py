"""Free space against used space: docs/format/space.md. One sweep over two sorted streams.

Every block of the allocator's space is exactly one of: used by a tree, used by a data extent, in the free tree, in a
spare run. Whatever the sweep finds twice or never is a problem. Memory: the sorter's bound.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Final

from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.sorting import Sorter
from mdstore.tools.reader.superblock import SIZE, Superblock

RUN: Final = struct.Struct(">QQQ")  # first block, blocks, owner
_KIND_SHIFT: Final = 60
FREE: Final = 1  # owner kinds: in the free tree
SPARE: Final = 2  # in a spare run of the superblock
PAGE: Final = 3  # a page of the tree of that id
OVERFLOW: Final = 4  # a large value of the tree of that id
DATA: Final = 5  # an extent of the object of that ordinal number
_NAMED_MAX: Final = 1000  # objects whose names are looked up for messages; the rest keep their ordinal


def owner(kind: int, number: int = 0) -> int:
    """An owner code: what kind, and which one."""
    return kind << _KIND_SHIFT | number


class Space:
    """Gathers what is used while the trees are walked; `sweep` compares it with what is free."""

    def __init__(self, superblock: Superblock, image_size: int) -> None:
        self._superblock = superblock
        self.first = superblock.first_block
        tail = (image_size // SIZE * SIZE - 2 * SIZE) // superblock.block_size
        self.last = max(self.first, min(superblock.blocks, tail))
        self._used = Sorter(RUN.size)
        self.free_blocks = 0

    def use(self, start: int, blocks: int, code: int) -> None:
        """Blocks that something reaches."""
        self._used.add(RUN.pack(start, blocks, code))

    def settle(self) -> None:
        """Keep memory bounded; to be called now and then."""
        self._used.settle()

    def holds(self, start: int, blocks: int) -> bool:
        """Whether the run lies where the allocator may put things."""
        return self.first <= start and start + blocks <= self.last

    def close(self) -> None:
        self._used.close()

    def sweep(
        self,
        free: Iterator[tuple[bytes, bytes]],
        findings: Findings,
        name_objects: Callable[[set[int]], dict[int, str]],
    ) -> None:
        """Report every run that is owned twice or by nobody. `name_objects` gives names for ordinal numbers."""
        overlaps: list[tuple[int, int, int, int]] = []
        at, holder = self.first, 0
        spare = (RUN.pack(start, blocks, owner(SPARE)) for start, blocks in sorted(self._superblock.spare_runs))
        for record in merge(self._used, self._free_runs(free, findings), spare):
            start, blocks, code = RUN.unpack(record)
            if start > at:
                self._report_leak(at, start, findings)
            elif start < at:
                overlaps.append((start, min(at, start + blocks) - start, holder, code))
            if start + blocks > at:
                at, holder = start + blocks, code
            if len(overlaps) >= _NAMED_MAX:
                self._report_overlaps(overlaps, findings, name_objects)
                overlaps = []
        if at < self.last:
            self._report_leak(at, self.last, findings)
        self._report_overlaps(overlaps, findings, name_objects)
        if self.free_blocks != self._superblock.free_blocks:
            what = f"superblock says {self._superblock.free_blocks} free blocks, the free tree holds {self.free_blocks}"
            findings.add("free-count", what, Place("superblock"))

    def _free_runs(self, free: Iterator[tuple[bytes, bytes]], findings: Findings) -> Iterator[bytes]:
        """The free tree's records, checked, as runs."""
        end = 0
        for key, value in free:
            start, blocks = int.from_bytes(key, "big"), int.from_bytes(value, "little")
            place = Place(tree="free", byte=start * self._superblock.block_size)
            if len(key) != 8 or len(value) != 8 or not blocks or not self.holds(start, blocks) or start < end:
                findings.add("free-extent", f"free extent of {blocks} blocks at block {start}", place)
                continue
            if start == end:
                findings.add("free-adjacent", f"free extent at block {start} touches the one before it", place)
            end = start + blocks
            self.free_blocks += blocks
            yield RUN.pack(start, blocks, owner(FREE))

    def _report_leak(self, start: int, end: int, findings: Findings) -> None:
        what = f"blocks {start} .. {end - 1} are neither used nor free"
        findings.add("space-leaked", what, Place(byte=start * self._superblock.block_size))

    def _report_overlaps(
        self,
        overlaps: list[tuple[int, int, int, int]],
        findings: Findings,
        name_objects: Callable[[set[int]], dict[int, str]],
    ) -> None:
        codes = {code for overlap in overlaps for code in overlap[2:]}
        names = name_objects({_number(code) for code in codes if code >> _KIND_SHIFT == DATA}) if overlaps else {}
        for start, blocks, one, other in overlaps:
            kinds = {one >> _KIND_SHIFT, other >> _KIND_SHIFT}
            code = "space-false-free" if kinds & {FREE, SPARE} else "space-shared"
            what = (
                f"blocks {start} .. {start + blocks - 1} belong to {_words(one, names)} and to {_words(other, names)}"
            )
            data = next((item for item in (other, one) if item >> _KIND_SHIFT == DATA), None)
            place = Place(names.get(_number(data)) if data else None, byte=start * self._superblock.block_size)
            findings.add(code, what, place)


def check_runs(runs: tuple[tuple[int, int], ...], space: Space, findings: Findings) -> None:
    """The superblock's spare runs lie where they may."""
    for start, blocks in runs:
        if not blocks or not space.holds(start, blocks):
            findings.add_damage(
                Damage("free-extent", f"spare run of {blocks} blocks at block {start}", owner="superblock")
            )


def _number(code: int) -> int:
    return code & ((1 << _KIND_SHIFT) - 1)


def _words(code: int, names: dict[int, str]) -> str:
    kind, number = code >> _KIND_SHIFT, _number(code)
    if kind == DATA:
        return names.get(number, f"object number {number} of the object tree")
    words = {
        FREE: "the free tree",
        SPARE: "a spare run",
        PAGE: f"tree {number}",
        OVERFLOW: f"a large value of tree {number}",
    }
    return words.get(kind, "the superblock or the log")
