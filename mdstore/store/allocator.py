"""Free space: in memory an ordered map of free extents, on disk a tree (start block -> blocks). Page: docs/format/space.md.

Invariants
1. A block is in exactly one of: free, limbo, in use. `free` holds no two adjacent extents.
2. A freed block goes to limbo. It becomes free only when the superblock that no longer reaches it is durable and no reader
   that reaches it is left (mdstore/store/limbo.py; the owner calls `release` then).
3. The tree of superblock E lists every block that E does not reach: what was free or in limbo when E was frozen.

The search is C-LOOK: from the cursor upwards, the tail of an extent that spans the cursor included, wrapping once; the cursor
is kept in the superblock. Worst case O(log n) per run handed out. Large data goes to whole stripes where the medium has any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

from sortedcontainers import SortedDict, SortedSet

from mdstore.errors import CorruptionError, NoSpace
from mdstore.store.limbo import Death, Limbo

Run = tuple[int, int]  # (first block, blocks)

_LOOK_AHEAD = 8  # extents tried from the cursor on before the best fit is taken


class Stripes(NamedTuple):
    """What the medium below writes whole: `blocks` from block `first` on, and so forth in both directions."""

    blocks: int
    first: int = 0

    def next_start(self, block: int) -> int:
        """The first block at or after `block` at which a stripe begins."""
        return block + (self.first - block) % self.blocks

    def whole_in(self, start: int, blocks: int) -> int:
        """How many stripes lie in the run with all their blocks."""
        return max(0, (start + blocks - self.next_start(start)) // self.blocks)

    def touched_by(self, start: int, blocks: int) -> int:
        """How many stripes have a block in the run."""
        return -(-(start + blocks - self.first) // self.blocks) - (start - self.first) // self.blocks


class Allocator:
    """Free extents of one image. Not thread-safe: the store's lock guards it."""

    def __init__(self, cursor: int = 0, stripes: Stripes | None = None) -> None:
        self.stripes = stripes
        self.whole_stripes = self.partial_stripes = 0  # that `allocate_data` has taken
        self._by_start: SortedDict = SortedDict()
        self._by_size: SortedSet = SortedSet()
        self._limbo = Limbo()
        self._allocated: list[Run] = []  # since the tree was last brought up to date
        self._freed: list[Death] = []
        self._grown: list[Run] = []
        self._sealing: dict[int, list[Run]] = {}  # freed, by birth, and known to the tree of the superblock being made
        self.cursor = cursor
        self.free_blocks = 0
        self.limbo_blocks = 0

    # -- taking --------------------------------------------------------------------------------------------------------

    def allocate(self, blocks: int) -> list[Run]:
        """Runs that hold exactly `blocks` blocks, as few and as near after the cursor as there are. NoSpace otherwise."""
        if blocks > self.free_blocks:
            raise NoSpace(f"{blocks} blocks are needed, {self.free_blocks} are free")
        runs: list[Run] = []
        while blocks:
            start, length = self._choose(blocks)
            runs.append(self._take_run(start, min(blocks, length)))
            blocks -= runs[-1][1]
        return runs

    def _take_run(self, start: int, blocks: int) -> Run:
        self._cut(start, blocks)
        self._allocated.append((start, blocks))
        self.cursor = start + blocks
        return start, blocks

    def allocate_data(self, blocks: int) -> list[Run]:
        """`allocate`, with as much as there is of it on whole stripes, each beginning where one of the medium does."""
        stripes, runs, left = self.stripes, [], blocks
        if stripes is None or blocks > self.free_blocks:
            return self.allocate(blocks)
        while left >= stripes.blocks:
            run = self._choose_stripes(stripes, left // stripes.blocks)
            if run is None:
                break
            runs.append(self._take_run(*run))
            left -= run[1]
        if left:
            runs += self.allocate(left)
        for run in runs:
            whole = stripes.whole_in(*run)
            self.whole_stripes += whole
            self.partial_stripes += stripes.touched_by(*run) - whole
        return runs

    def _choose_stripes(self, stripes: Stripes, count: int) -> Run | None:
        """Up to `count` whole stripes that lie together: all of them near the cursor, or in the smallest extent that surely holds
        them, or as many as the largest extent has; None when that has none."""
        index = max(0, self._by_start.bisect_right(self.cursor) - 1)
        for start, length in islice(self._by_start.items()[index : index + _LOOK_AHEAD], _LOOK_AHEAD):
            skipped = max(0, self.cursor - start)
            if stripes.whole_in(start + skipped, length - skipped) >= count:
                return stripes.next_start(start + skipped), count * stripes.blocks
        fit = self._by_size.bisect_left(((count + 1) * stripes.blocks - 1, 0))
        length, start = self._by_size[fit] if fit < len(self._by_size) else self._by_size[-1]
        count = min(count, stripes.whole_in(start, length))
        return (stripes.next_start(start), count * stripes.blocks) if count else None

    def reserve(self, blocks: int) -> list[Run]:
        """`allocate_data`, for what no logged transaction names yet: a superblock made meanwhile still calls these blocks free,
        so that a crash leaks none and replay may take them. Then `claim` them, or `hand_over` gives them back."""
        runs = self.allocate_data(blocks)
        del self._allocated[-len(runs) :]
        self.limbo_blocks += blocks
        return runs

    def claim(self, runs: Iterable[Run]) -> None:
        """What `reserve` gave is in use from now on: the transaction that names it is being applied."""
        for start, blocks in runs:
            self._allocated.append((start, blocks))
            self.limbo_blocks -= blocks

    def take(self, start: int, blocks: int) -> None:
        """Take exactly these blocks (replay of a write that named them). CorruptionError unless all are free."""
        index = self._by_start.bisect_right(start) - 1
        extent = self._by_start.peekitem(index) if index >= 0 else (0, 0)
        if not extent[0] <= start or start + blocks > extent[0] + extent[1]:
            raise CorruptionError("free space", f"blocks {start}..{start + blocks - 1}", "free", "in use")
        self._cut(start, blocks)
        self._allocated.append((start, blocks))

    def _choose(self, blocks: int) -> Run:
        """An extent (or the part of one from the cursor on) that holds `blocks`; the largest there is when none does."""
        index = max(0, self._by_start.bisect_right(self.cursor) - 1)
        for start, length in islice(self._by_start.items()[index : index + _LOOK_AHEAD], _LOOK_AHEAD):
            skipped = max(0, self.cursor - start)
            if length - skipped >= blocks:
                return start + skipped, length - skipped
        fit = self._by_size.bisect_left((blocks, 0))
        length, start = self._by_size[fit] if fit < len(self._by_size) else self._by_size[-1]
        return start, length

    def _cut(self, start: int, blocks: int) -> None:
        """Remove start..start+blocks from the free extent that holds it."""
        index = self._by_start.bisect_right(start) - 1
        first, length = self._by_start.peekitem(index)
        assert first <= start, "the extent found holds the range"
        assert start + blocks <= first + length, "the extent found holds the range"
        self._drop(first, length)
        if first < start:
            self._keep(first, start - first)
        if start + blocks < first + length:
            self._keep(start + blocks, first + length - start - blocks)
        self.free_blocks -= blocks

    # -- giving back ---------------------------------------------------------------------------------------------------

    def free(self, start: int, blocks: int, birth: int) -> None:
        """The live state stopped reaching these blocks, which nothing reached before epoch `birth`. They stay in limbo until a
        checkpoint that knows is durable, and longer where a reader reaches them."""
        self._freed.append((start, blocks, birth))
        self.limbo_blocks += blocks

    def grow(self, start: int, blocks: int) -> None:
        """These blocks are new: free for the tree that is made next, and to be taken once the caller hands them over."""
        self._grown.append((start, blocks))
        self.limbo_blocks += blocks

    def seal_limbo(self, epoch: int) -> None:
        """What `take_changes` handed out as freed is no longer reached by superblock `epoch` (not yet durable)."""
        if self._sealing:
            self._limbo.seal(epoch, self._sealing)
            self._sealing = {}

    def held_blocks(self, pins: Sequence[int]) -> int:
        """How many of `limbo_blocks` wait for the readers of these epochs alone, ascending: the next checkpoint leaves them."""
        return self._limbo.held_blocks(pins)

    def release(self, durable_epoch: int, pins: Sequence[int]) -> list[Run]:
        """Free what no superblock from `durable_epoch` on reaches, and no reader of the epochs `pins` (ascending); the runs."""
        released = self.leave_limbo(durable_epoch, pins)
        self.hand_over(released)
        return released

    def leave_limbo(self, durable_epoch: int, pins: Sequence[int]) -> list[Run]:
        """The runs that `release` would free, in no order, taken out of limbo but not free yet: the caller hands them over."""
        return self._limbo.leave(durable_epoch, pins)

    def hand_over(self, runs: Iterable[Run]) -> None:
        """Free what `leave_limbo` or `borrow` gave."""
        for start, blocks in runs:
            self.add_free(start, blocks)
            self.limbo_blocks -= blocks

    def borrow(self, start: int, blocks: int) -> list[Run]:
        """Take whatever of this range is free, without the tree of free extents learning of it; `hand_over` gives it back."""
        end = start + blocks
        index = self._by_start.bisect_right(start) - 1
        extents = [self._by_start.peekitem(index)] if index >= 0 else []
        extents += [(first, self._by_start[first]) for first in self._by_start.irange(start + 1, end - 1)]
        pieces = []
        for first, length in extents:
            low, high = max(start, first), min(end, first + length)
            if low < high:
                pieces.append((low, high - low))
        for low, count in pieces:
            self._cut(low, count)
            self.limbo_blocks += count
        return pieces

    def add_free(self, start: int, blocks: int) -> None:
        """Put blocks among the free ones, merged with their neighbours. CorruptionError when some are free already."""
        index = self._by_start.bisect_right(start)
        if index < len(self._by_start):
            after, after_length = self._by_start.peekitem(index)
            _must_not_overlap(start + blocks <= after, start, blocks)
            if after == start + blocks:
                self._drop(after, after_length)
                blocks += after_length
                self.free_blocks -= after_length
        if index:
            before, before_length = self._by_start.peekitem(index - 1)
            _must_not_overlap(before + before_length <= start, start, blocks)
            if before + before_length == start:
                self._drop(before, before_length)
                start, blocks = before, before_length + blocks
                self.free_blocks -= before_length
        self._keep(start, blocks)
        self.free_blocks += blocks

    def _keep(self, start: int, blocks: int) -> None:
        self._by_start[start] = blocks
        self._by_size.add((blocks, start))

    def _drop(self, start: int, blocks: int) -> None:
        del self._by_start[start]
        self._by_size.remove((blocks, start))

    # -- the tree's changes --------------------------------------------------------------------------------------------

    def take_changes(self) -> tuple[list[Run], list[Run]]:
        """(allocated, freed) since the last call, each merged and in order: what the tree of free extents has to learn,
        the allocated ones first."""
        freed = merge_deaths(self._freed)
        changes = merge_runs(self._allocated), merge_runs([run[:2] for run in freed] + self._grown)
        for start, blocks, birth in freed:
            self._sealing.setdefault(birth, []).append((start, blocks))
        self._allocated, self._freed, self._grown = [], [], []
        return changes

    def load(self, extents: Iterable[Run]) -> None:
        """Fill an empty allocator with ascending, disjoint extents. Cost O(n log n)."""
        rows = list(extents)
        self._by_start.update(rows)
        self._by_size.update((blocks, start) for start, blocks in rows)
        self.free_blocks = sum(blocks for _, blocks in rows)

    def extents(self) -> list[Run]:
        """The free extents in order (limbo not among them)."""
        return list(self._by_start.items())

    def fragmentation(self) -> float:
        """0.0 when all free space is one extent, towards 1.0 the more pieces it lies in: 1 - largest / free."""
        if not self.free_blocks:
            return 0.0
        return float(1 - self._by_size[-1][0] / self.free_blocks)


def merge_runs(runs: Iterable[Run]) -> list[Run]:
    """Disjoint runs in order, neighbours merged. CorruptionError when two overlap."""
    merged: list[Run] = []
    for start, blocks in sorted(runs):
        if merged:
            last, length = merged[-1]
            _must_not_overlap(last + length <= start, start, blocks)
            if last + length == start:
                merged[-1] = (last, length + blocks)
                continue
        merged.append((start, blocks))
    return merged


def merge_deaths(deaths: Iterable[Death]) -> list[Death]:
    """By birth, those of one birth as `merge_runs` gives them."""
    return [
        (start, blocks, birth)
        for birth, group in groupby(sorted(deaths, key=_birth), key=_birth)
        for start, blocks in merge_runs((start, blocks) for start, blocks, _ in group)
    ]


_birth = itemgetter(2)


def _must_not_overlap(holds: bool, start: int, blocks: int) -> None:
    if not holds:
        raise CorruptionError("free space", f"blocks {start}..{start + blocks - 1}", "freed once", "freed twice")
