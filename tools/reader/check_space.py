"""Free space against used space, and uses against reference counts: docs/format/space.md, shares.md.

One sweep over sorted streams: every reference to blocks that the walk saw (a page by its parent, a data extent by its
object or group of clones), the free tree, the spare runs, and what the two counting trees claim. Every block must be held
once, or as often as its count says. Memory: the sorter's bound, and the runs that overlap at one place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Final, NamedTuple

from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.snapshots import DeadRun
from mdstore.tools.reader.sorting import Sorter
from mdstore.tools.reader.superblock import Superblock

RUN: Final = struct.Struct(">QQQ")  # first block, blocks, owner
_SHIFT: Final = 60
FREE: Final = 1  # owner kinds: in the free tree
SPARE: Final = 2  # in a spare run of the superblock
PAGE: Final = 3  # a page of the tree of that id
OVERFLOW: Final = 4  # a large value of the tree of that id
DATA: Final = 5  # an extent of the object of that ordinal number
DEAD: Final = 6  # reached by snapshots alone, the last of them that of this epoch
PAGE_CLAIM: Final = 7  # not an owner: the references tree claims that many extra references
DATA_CLAIM: Final = 8  # not an owner: the shared tree does
_NAMED_MAX: Final = 1000  # findings for which names of objects are looked up in one walk

Records = Iterator[tuple[bytes, bytes]]
Namer = Callable[[set[int]], dict[int, str]]
Observer = Callable[[int, int, int], None]  # first block, blocks, owner code of every run, in order


class _Held(NamedTuple):
    """A run that covers the place the sweep has reached."""

    end: int
    start: int
    code: int

    @property
    def kind(self) -> int:
        return self.code >> _SHIFT

    @property
    def number(self) -> int:
        return self.code & ((1 << _SHIFT) - 1)


def owner(kind: int, number: int = 0) -> int:
    """An owner code: what kind, and which one."""
    return kind << _SHIFT | number


def split_owner(code: int) -> tuple[int, int]:
    """(kind, which one) of an owner code."""
    return code >> _SHIFT, code & ((1 << _SHIFT) - 1)


class Space:
    """Gathers what is used while the trees are walked; `sweep` compares it with what is free and what is counted."""

    def __init__(
        self, superblock: Superblock, image_size: int, findings: Findings, observe: Observer | None = None
    ) -> None:
        self._superblock = superblock
        self._observe = observe
        self._findings = findings
        self.first = superblock.first_block
        self.last = max(self.first, min(superblock.blocks, image_size // superblock.block_size))
        self._used = Sorter(RUN.size)
        self._free_blocks = 0
        self._is_partial = False
        self._segments: list[tuple[int, int, list[_Held]]] = []

    def use(self, start: int, blocks: int, code: int) -> None:
        """One reference to a run of blocks."""
        self._used.add(RUN.pack(start, blocks, code))

    def uses(self) -> Iterator[bytes]:
        """Everything noted, as packed `RUN`s in order. Nothing may be noted afterwards."""
        return iter(self._used)

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
        free: Records,
        references: Records,
        shared: Records,
        name_objects: Namer,
        *,
        dead: Iterator[DeadRun],
        is_partial: bool = False,
    ) -> None:
        """Report every block that nobody holds, that is both held and free, or whose count is wrong.

        is_partial: some of what uses blocks could not be read, so only too many owners are wrong.
        """
        self._is_partial = is_partial
        spare = (RUN.pack(start, blocks, owner(SPARE)) for start, blocks in self._spare_runs())
        claims = self._page_claims(references), self._data_claims(shared)
        streams = (self._used, self._free_runs(free), spare, *claims, self._dead_runs(dead))
        at, active = self.first, list[_Held]()
        for record in merge(*streams):
            start, blocks, code = RUN.unpack(record)
            if self._observe is not None:
                self._observe(start, blocks, code)
            if start != at:
                at = self._advance(at, start, active)
            active.append(_Held(start + blocks, start, code))
            if len(self._segments) >= _NAMED_MAX:
                self._report(name_objects)
        self._advance(at, self.last, active)
        self._report(name_objects)
        if self._free_blocks != self._superblock.free_blocks and not is_partial:
            what = (
                f"superblock says {self._superblock.free_blocks} free blocks, the free tree holds {self._free_blocks}"
            )
            self._findings.add("free-count", what, Place("superblock"))

    def _advance(self, at: int, to: int, active: list[_Held]) -> int:
        """Judge everything between `at` and `to`, where the next run begins."""
        while at < to:
            if len(active) == 1 and active[0].end <= to and active[0].kind < PAGE_CLAIM:  # nearly always
                at = active.pop().end
                continue
            stop = min([to, *(held.end for held in active)])
            self._judge(at, stop, active)
            active[:] = [held for held in active if held.end > stop]
            at = stop
        return at

    def _judge(self, start: int, stop: int, active: list[_Held]) -> None:
        """One stretch of blocks that the same runs cover."""
        owners = [held for held in active if held.kind < PAGE_CLAIM]
        if len(owners) == 1 and len(active) == 1:
            return
        kinds = {held.kind for held in owners}
        claim = sum(held.number for held in active if held.kind >= PAGE_CLAIM)
        is_page = len({(held.start, held.end) for held in owners}) == 1 and kinds <= {PAGE, OVERFLOW}
        if is_page and owners[0].start != start:
            return  # the rest of an overflow run, judged at its first page
        if (is_page or kinds == {DATA}) and len(owners) == 1 + claim:
            return
        if self._is_partial and (not owners or ((is_page or kinds == {DATA}) and len(owners) < 1 + claim)):
            return
        self._segments.append((start, stop, list(active)))

    # -- streams -------------------------------------------------------------------------------------------------------
    def _spare_runs(self) -> Iterator[tuple[int, int]]:
        for start, blocks in sorted(self._superblock.spare_runs):
            if blocks and self.holds(start, blocks):
                yield start, blocks
            else:
                damage = Damage("free-extent", f"spare run of {blocks} blocks at block {start}", owner="superblock")
                self._findings.add_damage(damage)

    def _free_runs(self, free: Records) -> Iterator[bytes]:
        """The free tree's records, checked, as runs."""
        end = 0
        for key, value in free:
            start, blocks = int.from_bytes(key, "big"), int.from_bytes(value, "little")
            place = Place(tree="free", byte=start * self._superblock.block_size)
            if not blocks or not self.holds(start, blocks) or start < end:
                self._findings.add("free-extent", f"free extent of {blocks} blocks at block {start}", place)
                continue
            if start == end:
                self._findings.add("free-adjacent", f"free extent at block {start} touches the one before it", place)
            end = start + blocks
            self._free_blocks += blocks
            yield RUN.pack(start, blocks, owner(FREE))

    def _dead_runs(self, dead: Iterator[DeadRun]) -> Iterator[bytes]:
        """By address: they come snapshot by snapshot."""
        runs = Sorter(RUN.size)
        try:
            for run in dead:
                if not self.holds(run.start, run.blocks):
                    what = f"dead run of {run.blocks} blocks at block {run.start}"
                    self._findings.add("dead-run", what, Place(tree="dead", byte=run.start * self._superblock.block_size))
                    continue
                runs.add(RUN.pack(run.start, run.blocks, owner(DEAD, run.epoch)))
                runs.settle()
            yield from runs
        finally:
            runs.close()

    def _page_claims(self, references: Records) -> Iterator[bytes]:
        for key, value in references:
            start, extra = int.from_bytes(key, "big"), int.from_bytes(value, "little")
            if not extra or not self.holds(start, 1):
                what = f"count of {extra} extra references to page {start}"
                self._findings.add("references", what, Place(tree="references", page=start))
                continue
            yield RUN.pack(start, 1, owner(PAGE_CLAIM, extra))

    def _data_claims(self, shared: Records) -> Iterator[bytes]:
        end, last = 0, 0
        for key, value in shared:
            start = int.from_bytes(key, "big")
            blocks, extra = int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")
            if (
                not blocks
                or not extra
                or not self.holds(start, blocks)
                or start < end
                or (start == end and extra == last)
            ):
                what = f"interval of {blocks} blocks at block {start} with {extra} extra references"
                self._findings.add("references", what, Place(tree="shared", byte=start * self._superblock.block_size))
                continue
            end, last = start + blocks, extra
            yield RUN.pack(start, blocks, owner(DATA_CLAIM, extra))

    # -- words ---------------------------------------------------------------------------------------------------------
    def _report(self, name_objects: Namer) -> None:
        """Say what was gathered, with names where they can be had."""
        segments, self._segments = self._segments, []
        names = name_objects({held.number for _, _, active in segments for held in active if held.kind == DATA})
        for start, stop, active in segments:
            owners = [held for held in active if held.kind < PAGE_CLAIM]
            data = next((names[held.number] for held in owners if held.kind == DATA and held.number in names), None)
            place = Place(data, byte=start * self._superblock.block_size)
            self._findings.add(*_sentence(start, stop, active, owners, names), place)


def _sentence(
    start: int, stop: int, active: list[_Held], owners: list[_Held], names: dict[int, str]
) -> tuple[str, str]:
    """(code, what) of one stretch."""
    where = f"blocks {start} .. {stop - 1}"
    claims = [held for held in active if held.kind >= PAGE_CLAIM]
    if not owners and not claims:
        return "space-leaked", f"{where} are neither used nor free"
    words = " and ".join(_words(held, names) for held in owners[:4]) + (" and others" if len(owners) > 4 else "")
    kinds = {held.kind for held in owners}
    if DEAD in kinds and len(owners) > 1:
        return "dead-run", f"{where} belong to {words}"
    if kinds & {FREE, SPARE} and len(owners) > 1:
        return "space-false-free", f"{where} belong to {words}"
    if len(owners) > 1 and not claims:
        return "space-shared", f"{where} belong to {words}"
    count = 1 + sum(held.number for held in claims)
    return "references", f"{where} have {len(owners)} references ({words or 'none'}), counted are {count}"


def _words(held: _Held, names: dict[int, str]) -> str:
    if held.kind == DATA:
        return names.get(held.number, f"object number {held.number} of the object tree")
    words = {FREE: "the free tree", SPARE: "a spare run", PAGE: f"tree {held.number}", DEAD: f"the dead of epoch {held.number}"}
    return words.get(held.kind, f"a large value of tree {held.number}")
