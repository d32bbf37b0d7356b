"""The part of the whole-store checker that looks at blocks: each has one owner, and snapshots reach what their epochs say.

C2 no block is used twice; C3 used, dead, free and spare blocks together are the whole space; C9 every dead run is reached by
exactly the snapshots from its birth to its death, and what the live state shares with snapshots by all from one of them on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mdstore.btree import Tree
from mdstore.store.allocator import Run
from mdstore.store.snapshot_table import DeadRun
from mdstore.store.superblock import Superblock
from mdstore.store.tables import Tables

UsedRun = tuple[int, int, str]  # first block, blocks, who uses them


def check_space(tables: Tables, superblock: Superblock, live: list[UsedRun]) -> Iterator[str]:
    """C2 and C3: sorted runs must tile the space from the end of the log to the end of the image."""
    runs = list(live)
    runs += [(start, blocks, "free") for start, blocks in free_runs(tables.free_tree)]
    runs += [(start, blocks, "spare") for start, blocks in tables.spare_runs]
    runs += [(run.start, run.blocks, f"the dead of {run.epoch}") for run in tables.space.snapshots.all_dead()]
    end, owner = superblock.first_block, "the log"
    for start, blocks, what in sorted(runs):
        if start < end:
            yield f"C2 block {start} belongs to {what} and to {owner}"
        elif start > end:
            yield f"C3 blocks {end}..{start - 1} are neither used nor free (leaked)"
        if start + blocks > end:
            end, owner = start + blocks, what
    if end != superblock.blocks:
        yield f"C3 space ends at block {end}, the image at {superblock.blocks}"


def free_runs(tree: Tree) -> Iterator[Run]:
    """The records of a tree of free extents."""
    for key, value in tree.items():
        yield int.from_bytes(key, "big"), int.from_bytes(value, "little")


class _Mark(NamedTuple):
    """A run begins or ends at a block."""

    block: int
    begins: bool
    owner: DeadRun | int  # a dead run; the epoch of a snapshot that reaches the run; or _LIVE


_LIVE = 0  # no snapshot has this epoch


def check_reach(tables: Tables, live: list[UsedRun], reached: dict[int, list[UsedRun]]) -> Iterator[str]:
    """C9. `reached`: what each snapshot that can be opened reaches, by its epoch."""
    epochs = {kept.epoch for kept in tables.space.snapshots}
    marks: list[_Mark] = []
    for dead in tables.space.snapshots.all_dead():
        if dead.epoch not in epochs:
            yield f"C9 blocks {dead.start}+{dead.blocks} are dead under epoch {dead.epoch}, which no snapshot has"
        _mark(marks, dead.start, dead.blocks, dead)
    for start, blocks, _ in live:
        _mark(marks, start, blocks, _LIVE)
    for epoch, runs in reached.items():
        for start, blocks, _ in runs:
            _mark(marks, start, blocks, epoch)
    active: list[DeadRun | int] = []
    position = 0
    for mark in sorted(marks, key=lambda mark: mark.block):
        if mark.block > position:
            problem = _judge(active, sorted(reached))
            if problem:
                yield f"C9 blocks {position}..{mark.block - 1} {problem}"
            position = mark.block
        if mark.begins:
            active.append(mark.owner)
        else:
            active.remove(mark.owner)


def _mark(marks: list[_Mark], start: int, blocks: int, owner: DeadRun | int) -> None:
    marks.append(_Mark(start, True, owner))
    marks.append(_Mark(start + blocks, False, owner))


def _judge(active: list[DeadRun | int], epochs: list[int]) -> str:
    """What is wrong with blocks that these own; empty when nothing is."""
    by = sorted({owner for owner in active if isinstance(owner, int) and owner != _LIVE})
    for dead in (owner for owner in active if isinstance(owner, DeadRun)):
        expected = [epoch for epoch in epochs if dead.birth <= epoch <= dead.epoch]
        return "" if by == expected else f"are dead ({dead}), reached by snapshots {by}, expected {expected}"
    if by and _LIVE not in active:
        return f"are reached by snapshots {by}, and neither live nor dead"
    expected = [epoch for epoch in epochs if by and epoch >= by[0]]
    return "" if by == expected else f"are live, reached by snapshots {by}, expected {expected}"
