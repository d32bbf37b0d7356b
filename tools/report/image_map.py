"""What lies where in an image, summed up in cells: at most `CELLS_MAX` of them, whatever the image's size.

Fed by the sweep of the check (`Space.sweep` hands over every run in order), so it costs no second walk.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import Final

from mdstore.tools.reader import check_space
from mdstore.tools.reader.problems import ERROR, Problem
from mdstore.tools.reader.superblock import ROOT_NAMES, SIZE, Superblock

CELLS_MAX: Final = 4096
PROBLEMS_MAX: Final = 1000  # kept in words; all are counted


class Kind(IntEnum):
    """What a block is used for, in the order in which the report lists it."""

    SUPERBLOCK = 0
    LOG = 1
    TREES = 2  # the store's own: objects, collections, free space, counts ...
    OBJECT_TREES = 3  # of single objects: maps, extents
    LARGE_VALUES = 4
    DATA = 5
    SHARED = 6  # data that clones share
    SNAPSHOTS = 7  # kept by snapshots alone
    FREE = 8
    UNKNOWN = 9  # nobody holds it, or the check could not tell


TITLES: Final = {
    Kind.SUPERBLOCK: "superblocks", Kind.LOG: "log", Kind.TREES: "store trees", Kind.OBJECT_TREES: "object trees",
    Kind.LARGE_VALUES: "large values", Kind.DATA: "data", Kind.SHARED: "shared data", Kind.SNAPSHOTS: "held by snapshots",
    Kind.FREE: "free", Kind.UNKNOWN: "unaccounted",
}  # fmt: skip


class ImageMap:
    """Blocks by kind and cell, free extents by size, and the problems found. Blocks are `superblock.block_size` bytes."""

    def __init__(self, superblock: Superblock, size: int) -> None:
        self.block_size = superblock.block_size
        self.blocks = max(superblock.blocks, -(-size // self.block_size))
        self.cell_blocks = -(-self.blocks // CELLS_MAX)
        self.cells = [[0] * -(-self.blocks // self.cell_blocks) for _ in Kind]
        self.free_extents: Counter[int] = Counter()  # by the power of two that its blocks reach
        self.largest_free = 0
        self.damaged: Counter[int] = Counter()  # findings by cell
        self.problems: list[Problem] = []
        self.problem_count = 0
        self._end = 0  # every block below is counted
        front = -(-2 * SIZE // self.block_size)
        self._add(0, front, Kind.SUPERBLOCK)
        self._add(superblock.log_start, superblock.log_blocks, Kind.LOG)
        self._add(self.blocks - front, front, Kind.SUPERBLOCK)
        self._end = superblock.first_block

    # -- what the check tells ------------------------------------------------------------------------------------------

    def run(self, start: int, blocks: int, code: int) -> None:
        """A run of blocks with its owner, in ascending order of `start`; one that several hold comes several times."""
        kind, number = check_space.split_owner(code)
        if kind == check_space.DATA_CLAIM:
            self._add(start, blocks, Kind.SHARED, instead_of=Kind.DATA)
            return
        if kind == check_space.FREE:
            self.free_extents[blocks.bit_length() - 1] += 1
            self.largest_free = max(self.largest_free, blocks)
        fresh = start + blocks - max(start, self._end)
        if fresh > 0 and kind in _KINDS:
            is_own = kind == check_space.PAGE and number in ROOT_NAMES
            self._add(start + blocks - fresh, fresh, Kind.TREES if is_own else _KINDS[kind])
            self._end = start + blocks

    def problem(self, problem: Problem) -> None:
        """A finding. Its place on the map is that of its page or byte, when it has one."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
        place = problem.place
        block = place.page if place.page is not None else None if place.byte is None else place.byte // self.block_size
        if block is not None and 0 <= block < self.blocks and problem.severity == ERROR:
            self.damaged[block // self.cell_blocks] += 1

    def _add(self, start: int, blocks: int, kind: Kind, instead_of: Kind | None = None) -> None:
        row, size = self.cells[kind], self.cell_blocks
        cell, end = start // size, min(start + blocks, self.blocks)
        while start < end:
            stop = min(end, (cell + 1) * size)
            row[cell] += stop - start
            if instead_of is not None:
                self.cells[instead_of][cell] -= stop - start
            start, cell = stop, cell + 1

    # -- what it comes to ----------------------------------------------------------------------------------------------

    def cell_bounds(self, cell: int) -> tuple[int, int]:
        """(first block, blocks) of a cell."""
        first = cell * self.cell_blocks
        return first, min(self.cell_blocks, self.blocks - first)

    def in_cell(self, cell: int) -> dict[Kind, int]:
        """Blocks by kind; what nobody named is UNKNOWN."""
        found = {kind: max(0, self.cells[kind][cell]) for kind in Kind if self.cells[kind][cell] > 0}
        missing = self.cell_bounds(cell)[1] - sum(found.values())
        if missing > 0:
            found[Kind.UNKNOWN] = missing
        return found

    def totals(self) -> dict[Kind, int]:
        """Blocks of the whole image by kind."""
        sums: Counter[Kind] = Counter()
        for cell in range(len(self.cells[0])):
            sums.update(self.in_cell(cell))
        return {kind: sums[kind] for kind in Kind if sums[kind]}

    def fragmentation(self) -> float:
        """0.0 when all free space is one extent, towards 1.0 the more pieces it lies in: 1 - largest / free."""
        free = sum(self.cells[Kind.FREE])
        return 1 - self.largest_free / free if free else 0.0


_KINDS: Final = {
    check_space.FREE: Kind.FREE, check_space.SPARE: Kind.FREE, check_space.PAGE: Kind.OBJECT_TREES,
    check_space.OVERFLOW: Kind.LARGE_VALUES, check_space.DATA: Kind.DATA,
    check_space.DEAD: Kind.SNAPSHOTS,
}  # fmt: skip
