"""Snapshots: each whole in itself, and every block reached by exactly those it should be. docs/format/snapshots.md.

A kept superblock is checked as the newest one is: its trees, counts, and its own partition of space. Then one sweep over sorted
streams compares what each snapshot and the live state reach with the dead runs: a run born in B that died under D is reached by
the snapshots from B to D and not by the live state; what the live state reaches, by every snapshot from one of them on.
Memory: the sorter's bound, and 30 bytes for each snapshot. Data is verified by the first snapshot that could reach it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mdstore.tools.reader.check_space import RUN
from mdstore.tools.reader.check_store import StoreCheck
from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.snapshots import Snapshot, dead_runs, place_in, snapshots_of
from mdstore.tools.reader.sorting import Sorter
from mdstore.tools.reader.store import StoreReader

_REACH: Final = struct.Struct(">QQQQ")  # first block, blocks, epoch of who reaches it (the dead: the last), birth (0: not dead)
_LIVE: Final = 0
_REMEDY: Final = (
    "save what it still has (`mdstore recover --snapshot`), then delete the snapshot "
    "(`mdstore snapshot delete`; one of the store: with --store)"
)
_SETTLE_EVERY: Final = 4096


class _Held(NamedTuple):
    """A run that covers the place the sweep has reached."""

    end: int
    epoch: int
    birth: int


class SnapshotFindings(Findings):
    """Findings inside a snapshot: each says in which. Those of the space it reaches are judged in one sweep for all."""

    def __init__(self, findings: Findings, name: bytes) -> None:
        super().__init__(lambda _: None)
        self._findings = findings
        self._name = name

    def add(self, code: str, what: str, place: Place | None = None, remedy: str | None = None) -> None:
        """Report it with the snapshot's name. Snapshots are never repaired; what the live state shares is reported there too."""
        super().add(code, what, place, remedy)
        self._findings.add(code, what, place_in(self._name, place or Place()), remedy or _REMEDY)


class SnapshotsCheck:
    """All snapshots of the superblock that `reader` reads. `note_live` is to be fed before `run`."""

    def __init__(
        self, reader: StoreReader, findings: Findings, *, is_deep: bool, tick: Callable[[int], None] = lambda _: None
    ) -> None:
        self._reader = reader
        self._findings = findings
        self._is_deep = is_deep
        self._tick = tick
        self._reach = Sorter(_REACH.size)
        self._is_partial = False
        self.snapshots: list[Snapshot] = []
        self.pages = 0

    def note_live(self, runs: Iterator[bytes], is_partial: bool) -> None:
        """What the live state reaches: packed `RUN`s in order."""
        self._note(runs, _LIVE)
        self._is_partial = self._is_partial or is_partial

    def run(self) -> None:
        """Check every snapshot, then the sweep."""
        try:
            tolerant = StoreReader(self._reader.image, self._reader.superblock, on_damage=self._lost)
            self.snapshots = sorted(snapshots_of(tolerant), key=lambda found: found.superblock.epoch)
            self._note_dead(tolerant)
            is_cut = not self._reader.superblock.ends_in(self._reader.image.size)
            self._is_partial = self._is_partial or is_cut  # what was reached there is not known
            before = 0
            for found in self.snapshots:
                if not found.is_deleting:
                    self._check(found, before)
                    before = found.superblock.epoch
            self._sweep()
        finally:
            self._reach.close()

    def _lost(self, damage: Damage) -> None:
        """Records of the live trees: a page that cannot be read was reported by the walk already."""
        if damage.code in ("snapshot", "dead-run"):
            self._findings.add_damage(damage)
        self._is_partial = True

    def _check(self, found: Snapshot, verified_epoch: int) -> None:
        reader = StoreReader(self._reader.image, found.superblock)
        check = StoreCheck(
            reader, SnapshotFindings(self._findings, found.name), is_deep=self._is_deep, tick=self._tick,
            verified_epoch=verified_epoch,
        )  # fmt: skip
        check.on_uses = lambda runs, is_partial: self._note_snapshot(found.superblock.epoch, runs, is_partial)
        check.run()
        self.pages += check.counts.pages

    def _note_snapshot(self, epoch: int, runs: Iterator[bytes], is_partial: bool) -> None:
        self._note(runs, epoch)
        self._is_partial = self._is_partial or is_partial

    # -- streams -------------------------------------------------------------------------------------------------------
    def _note(self, runs: Iterator[bytes], epoch: int) -> None:
        """Runs in order, one for all references to the same blocks: what overlaps or touches is joined."""
        first = end = 0
        for count, packed in enumerate(runs):
            start, blocks, _ = RUN.unpack(packed)
            if start > end:
                self._add(first, end, epoch)
                first = start
            end = max(end, start + blocks)
            if not count % _SETTLE_EVERY:
                self._reach.settle()
        self._add(first, end, epoch)

    def _add(self, first: int, end: int, epoch: int) -> None:
        if end > first:
            self._reach.add(_REACH.pack(first, end - first, epoch, 0))

    def _note_dead(self, reader: StoreReader) -> None:
        epochs = {found.superblock.epoch for found in self.snapshots}
        for count, run in enumerate(dead_runs(reader)):
            if run.epoch not in epochs and not self._is_partial:
                where = f"blocks {run.start} .. {run.start + run.blocks - 1}"
                self._report("dead-run", f"{where} are dead under epoch {run.epoch}, which no snapshot has", run.start)
            self._reach.add(_REACH.pack(run.start, run.blocks, run.epoch, run.birth))
            if not count % _SETTLE_EVERY:
                self._reach.settle()

    # -- the sweep -----------------------------------------------------------------------------------------------------
    def _sweep(self) -> None:
        epochs = [found.superblock.epoch for found in self.snapshots if not found.is_deleting]
        active: list[_Held] = []
        at = 0
        for packed in self._reach:
            start, blocks, epoch, birth = _REACH.unpack(packed)
            at = self._advance(at, start, active, epochs)
            active.append(_Held(start + blocks, epoch, birth))
        self._advance(at, max([at, *(held.end for held in active)]), active, epochs)

    def _advance(self, at: int, to: int, active: list[_Held], epochs: list[int]) -> int:
        while at < to:
            stop = min([to, *(held.end for held in active)])
            problem = self._judge(active, epochs)
            if problem:
                self._report("dead-run", f"blocks {at} .. {stop - 1} {problem}", at)
            active[:] = [held for held in active if held.end > stop]
            at = stop
        return at

    def _judge(self, active: list[_Held], epochs: list[int]) -> str:
        """What is wrong with a stretch that these hold; empty when nothing is."""
        by = sorted(held.epoch for held in active if not held.birth and held.epoch != _LIVE)
        dead = [held for held in active if held.birth]
        is_live = any(not held.birth and held.epoch == _LIVE for held in active)
        if dead:
            expected = [epoch for epoch in epochs if dead[0].birth <= epoch <= dead[0].epoch]
            words = f"died under epoch {dead[0].epoch}, born in {dead[0].birth}"
        elif is_live:
            expected = [epoch for epoch in epochs if by and epoch >= by[0]]
            words = "are in use"
        else:
            expected, words = [], "are neither in use nor listed as dead"
        if by == expected or (self._is_partial and (set(by) < set(expected) or not (dead or is_live))):
            return ""
        return f"{words}, and are reached by the snapshots of epochs {_shown(by)} instead of {_shown(expected)}"

    def _report(self, code: str, what: str, block: int) -> None:
        self._findings.add(code, what, Place(tree="dead", byte=block * self._reader.block_size))


def _shown(epochs: list[int]) -> str:
    if not epochs:
        return "none"
    return ", ".join(map(str, epochs[:6])) + (f" and {len(epochs) - 6} more" if len(epochs) > 6 else "")
