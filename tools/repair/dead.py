"""What only snapshots reach, listed anew from what they reach. docs/format/snapshots.md.

A run is reached by the snapshots from its birth to that of the epoch under which it died; so the first and the last snapshot that
reach a block are all that needs to be known of it. What a damaged snapshot reaches is not known: what was listed then stays so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from mdstore.tools.reader.page import COMPARE_BYTES, Root
from mdstore.tools.reader.snapshots import DeadRun, Snapshot, dead_runs, snapshots_of
from mdstore.tools.reader.superblock import ROOT_DEAD, ROOT_SNAPSHOTS, Superblock
from mdstore.tools.repair.bench import Bench
from mdstore.tools.repair.build import Run
from mdstore.tools.repair.usage import merged, usage_of

LIKE: Final = Root(4, COMPARE_BYTES, 0, 16, 0, 16, ROOT_DEAD, 0, b"", ())


class Kept(NamedTuple):
    """What one snapshot reaches."""

    snapshot: Snapshot
    runs: list[Run]
    is_partial: bool


def kept_by_snapshots(bench: Bench, superblock: Superblock) -> list[Kept]:
    """Every snapshot with all it reaches, oldest first; those being deleted without. Cost: a walk of each."""
    if ROOT_SNAPSHOTS not in superblock.roots:
        return []
    found = []
    for snapshot in sorted(snapshots_of(bench.reader(superblock)), key=lambda one: one.superblock.epoch):
        if snapshot.is_deleting:
            found.append(Kept(snapshot, [], True))
            continue
        usage = usage_of(bench.reader(snapshot.superblock), bench.ticker("looking at what snapshots use"))
        runs = sorted([*((start, blocks) for start, blocks, _ in usage.runs), *usage.derived])
        found.append(Kept(snapshot, list(merged(runs)), usage.is_partial))
    return found


def listed(bench: Bench, superblock: Superblock) -> list[DeadRun]:
    """The dead runs as the superblock lists them, as far as they can be read."""
    return list(dead_runs(bench.reader(superblock))) if ROOT_DEAD in superblock.roots else []


def not_free(kept: list[Kept], dead: list[DeadRun]) -> list[Run]:
    """Everything that snapshots hold, in order, apart."""
    runs = [run for one in kept for run in one.runs]
    return list(merged(sorted([*runs, *((run.start, run.blocks) for run in dead)])))


def derived(kept: list[Kept], dead: list[DeadRun], live: Iterable[Run]) -> list[DeadRun]:
    """The dead runs as they should be, by snapshot and address. `live`: what the live state reaches, in order, apart."""
    whole = [one for one in kept if not one.snapshot.is_deleting]
    spans = [(start, start + blocks, one.snapshot.superblock.epoch) for one in whole for start, blocks in one.runs]
    spans += [(start, start + blocks, 0) for start, blocks in live]
    made = list(_reached_only(spans))
    if any(one.is_partial for one in kept):
        there = list(_under(dead, sorted(one.snapshot.superblock.epoch for one in kept)))
        made += _others(there, merged(sorted((low, high - low) for low, high, _ in spans)))
    return sorted(made)


def _under(dead: list[DeadRun], epochs: list[int]) -> Iterator[DeadRun]:
    """The listed runs under the newest of these snapshots that can reach them: the one they were listed under may be gone."""
    for run in dead:
        index = bisect_right(epochs, run.epoch) - 1
        if index >= 0 and epochs[index] >= run.birth:
            yield run._replace(epoch=epochs[index])


def _reached_only(spans: list[tuple[int, int, int]]) -> Iterator[DeadRun]:
    """Stretches that epochs reach and 0, the live state, does not."""
    steps = sorted([(low, 1, epoch) for low, _, epoch in spans] + [(high, 0, epoch) for _, high, epoch in spans])
    active: dict[int, int] = {}
    pending: DeadRun | None = None
    for (at, is_start, epoch), following in pairwise([*steps, (0, 0, 0)]):
        active[epoch] = active.get(epoch, 0) + (1 if is_start else -1)
        if not active[epoch]:
            del active[epoch]
        if following[0] <= at or not active or 0 in active:
            continue
        run = DeadRun(max(active), at, following[0] - at, min(active))
        if pending is not None and pending[1] + pending[2] == at and (pending[0], pending[3]) == (run[0], run[3]):
            pending = pending._replace(blocks=pending.blocks + run.blocks)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def _others(dead: list[DeadRun], known: Iterator[Run]) -> Iterator[DeadRun]:
    """Parts of the listed runs that no walk saw."""
    ranges = list(known)
    for run in dead:
        at, end = run.start, run.start + run.blocks
        for start, blocks in ranges:
            if start >= end:
                break
            if start + blocks <= at:
                continue
            if start > at:
                yield run._replace(start=at, blocks=start - at)
            at = max(at, start + blocks)
        if at < end:
            yield run._replace(start=at, blocks=end - at)


def records(runs: Iterable[DeadRun]) -> Iterator[tuple[bytes, bytes]]:
    """As the tree holds them."""
    for run in runs:
        key = run.epoch.to_bytes(8, "big") + run.start.to_bytes(8, "big")
        yield key, run.blocks.to_bytes(8, "little") + run.birth.to_bytes(8, "little")
