"""Recovery: from the medium to a live store. The life of a recovery is told in docs/ARCHITECTURE.md.

1. Of the superblocks with a right checksum, the newest whose roots can be read is taken; what was passed over is said.
2. The log is read from the position that superblock names; each entry is applied as it was the first time.
3. A large write's blocks were issued before its entry, but not flushed before it. An entry that was itself never known durable
   may therefore name blocks that never arrived: those at the end of the log are verified, and the first that fails ends it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from journal import Entry, Journal, JournalError, RingMedium
from journal.head import COPIES
from mdstore.btree import crc32c_blocks
from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError
from mdstore.store import log, superblock
from mdstore.store.allocator import Run
from mdstore.store.apply import Applier
from mdstore.store.isolation import REMEDY, IsolatingApplier, evidence
from mdstore.store.superblock import Root, Superblock
from mdstore.store.tables import Tables, load


@dataclass(slots=True)
class Recovery:
    """What opening an image found: for people, and for `mdstore fsck`."""

    epoch: int = 0
    clean: bool = False
    entries: int = 0
    log_bytes: int = 0
    tail: str = ""  # why the log ends where it does
    warnings: list[str] = field(default_factory=list)  # superblocks passed over, heads not found, objects set apart, in words
    isolated: list[str] = field(default_factory=list)  # objects set apart by a read-only opening (isolation.py), in words


def recover(
    device: Device, cache_bytes: int, onodes_max: int, *, read_only: bool
) -> tuple[Superblock, Tables, Journal, Recovery]:
    """The store's state on the medium, its log at the valid end, and what was found.

    read_only: where damage keeps every superblock from being used, once more without what only a writer needs (free space,
    counts of references, floors), and with damage inside the object tree left where it is.
    """
    try:
        return _recover(device, cache_bytes, onodes_max, read_only=read_only)
    except CorruptionError as error:
        if not read_only:
            raise
        try:
            return _recover(device, cache_bytes, onodes_max, read_only=True, tolerant=True)
        except CorruptionError:
            raise error from None


def _recover(
    device: Device, cache_bytes: int, onodes_max: int, *, read_only: bool, tolerant: bool = False
) -> tuple[Superblock, Tables, Journal, Recovery]:
    report = Recovery()
    chosen, live, must_reach = choose(device, cache_bytes, onodes_max, report, read_only=read_only, tolerant=tolerant)
    journal = replay(device, chosen, live, report, must_reach, read_only=read_only)
    return chosen, live, journal, report


def choose(
    device: Device, cache_bytes: int, onodes_max: int, report: Recovery, *, read_only: bool = False, tolerant: bool = False
) -> tuple[Superblock, Tables, int]:
    """The newest superblock whose checksum and roots verify, its tables, and how far the log must at least reach.

    A superblock passed over because its *roots* are damaged was durable, so the log from the older one's position must reach
    the position it names; otherwise falling back would lose what was acknowledged, and opening refuses. The log knows nothing
    of snapshots: where the two superblocks name others, only a read-only opening falls back. tolerant: damage to what only a
    writer needs is no reason to pass a superblock over; the report's warnings say what it is.
    """
    good, bad = superblock.read_all(device)
    report.warnings += bad
    if not read_only:
        superblock.check_writable(good[0][0], device)
    must_reach, first_error, tried = 0, None, set()
    passed_over: list[Superblock] = []
    for candidate, where in good:
        if candidate.epoch in tried:
            continue
        tried.add(candidate.epoch)
        tolerated: list[str] | None = [] if tolerant else None
        try:
            superblock.check_device_size(device, candidate, read_only=read_only)
            tables = load(device, candidate, cache_bytes, onodes_max, tolerated=tolerated)
        except CorruptionError as error:
            first_error = first_error or error
            must_reach = max(must_reach, candidate.log_position)
            passed_over.append(candidate)
            report.warnings.append(f"{where} (epoch {candidate.epoch}) passed over: {error}")
            continue
        if not read_only and any(_snapshots(newer) != _snapshots(candidate) for newer in passed_over):
            where = f"epoch {passed_over[0].epoch} of {device.name}"
            expected = f"roots that read (its snapshots are not those of epoch {candidate.epoch}); {REMEDY}"
            raise CorruptionError("superblock", where, expected, first_error)
        report.warnings += tolerated or []
        report.epoch = candidate.epoch
        report.clean = bool(candidate.flags & superblock.FLAG_CLEAN)
        return candidate, tables, must_reach
    assert first_error is not None, "read_all returns at least one superblock or raises"
    raise first_error


def _snapshots(superblock: Superblock) -> bytes | None:
    return superblock.roots.get(Root.SNAPSHOTS)


def ring_of(device: Device, chosen: Superblock) -> RingMedium:
    """The log's medium: the ring of blocks that the superblock names."""
    size = chosen.block_size
    region = log.LogRegion(device, chosen.log_start * size, chosen.log_blocks * size)
    return RingMedium(region, block_size=max(size, _RING_BLOCK_MIN), name=f"log of {device.name}")


def least_log(block_size: int) -> int:
    """Bytes of the smallest log that takes a transaction of `log.LEAST_ENTRY` bytes: heads, and a ring of whole blocks."""
    period = max(block_size, _RING_BLOCK_MIN)
    return (COPIES + 2 - -log.LEAST_ENTRY // period) * period


_RING_BLOCK_MIN = 512  # a head slot; smaller blocks are for tests of tiny trees


def replay(device: Device, chosen: Superblock, tables: Tables, report: Recovery, must_reach: int, *, read_only: bool) -> Journal:
    """Apply the log to the tables and return the journal, positioned at the valid end."""
    replayer = _Replayer(tables, report, isolating=read_only)
    tables.objects.replaying = True
    try:
        journal = Journal.open(
            ring_of(device, chosen), start=chosen.log_position, read_only=read_only, visit=replayer.visit,
            log=chosen.log_identity, closed_at=chosen.log_position if report.clean else None,
        )  # fmt: skip
        _check_ending(journal, chosen)
        if journal.head_was_lost:
            report.warnings.append("both heads of the log are lost: it was found by a search for its entries")
        first_lost = replayer.finish()
        if first_lost is not None:
            report.tail = f"the entry at {first_lost.position} names blocks that never arrived"
            report.warnings.append(_TAIL_LOST.format(first_lost.position))
            journal.cut_tail(first_lost.position, first_lost.sequence)
        else:
            report.tail = f"{journal.tail.kind}: {journal.tail.detail}"
    except JournalError as error:
        raise log.typed(error) from error
    if journal.write < must_reach:
        where = f"position {journal.write}"
        raise CorruptionError("log", where, f"entries up to {must_reach}, which a damaged superblock had absorbed", "its end")
    report.isolated = list(tables.objects.isolated)
    report.warnings += [f"set apart: {sentence}" for sentence in report.isolated]
    tables.objects.replaying = read_only  # a read-only store never takes a block
    report.log_bytes = journal.write - chosen.log_position
    return journal


def _check_ending(journal: Journal, chosen: Superblock) -> None:
    """Nothing follows the last checkpoint, and the log was not closed: then the entry is there that the checkpoint ended it with.
    A ring whose body was emptied beside whole heads would pass for one in which nothing had been appended since."""
    position = chosen.log_position
    if journal.write != position or journal.was_closed or not chosen.flags & superblock.FLAG_LOG_ENDS:
        return
    assert isinstance(journal.medium, RingMedium), "the store's log is a ring"
    found = log.missing_ending(journal.medium, position, chosen.log_identity)
    if found is not None:
        expected = f"the entry that the last checkpoint ended the log with: entries behind it may be lost too; {log.HEADS_REMEDY}"
        raise CorruptionError("log", f"position {position - log.ENDING_BYTES}", expected, found)


_TAIL_LOST = (
    "the log ends before position {}: the data of the entry there is not what was written. A crash before it was acknowledged "
    "leaves that; so would damage to the medium since"
)


class _Replayer:
    """Applies entries in order; holds back those whose mapped blocks may never have arrived until a later entry tells."""

    def __init__(self, tables: Tables, report: Recovery, *, isolating: bool) -> None:
        self._tables = tables
        self._report = report
        self._applier: Applier | IsolatingApplier = Applier(tables.collections, tables.objects, tables.floors)
        if isolating:
            self._applier = IsolatingApplier(self._applier, tables.collections, tables.objects)
        self._held: deque[tuple[Entry, list[list[object]]]] = deque()
        self._known_durable = 0  # every entry that ends here or before was durable, blocks and all

    def visit(self, batch: list[Entry]) -> None:
        for entry in batch:
            self._known_durable = entry.safe
            self._drain(self._is_durable)
            operations = log.decode(entry)
            if self._held or log.mapped_writes(operations):
                self._held.append((entry, operations))
            else:
                self._apply(entry, operations)

    def finish(self) -> Entry | None:
        """Apply what is held back as far as its blocks are there; the first entry whose blocks are not, if any."""
        self._drain(self._arrived)
        return self._held[0][0] if self._held else None

    def _drain(self, ready: Callable[[Entry], bool]) -> None:
        while self._held and ready(self._held[0][0]):
            self._apply(*self._held.popleft())

    def _is_durable(self, entry: Entry) -> bool:
        return entry.end <= self._known_durable

    def _arrived(self, entry: Entry) -> bool:
        """Read twice before it is cut off for good: a bit may have flipped on its way here."""
        written = log.mapped_writes(self._held[0][1])
        return all(self._holds(runs, checksums) or self._holds(runs, checksums) for runs, checksums in written)

    def _holds(self, runs: list[Run], checksums: bytes) -> bool:
        space = self._tables.space
        return b"".join(crc32c_blocks(space.read(start, blocks), space.block_size) for start, blocks in runs) == checksums

    def _apply(self, entry: Entry, operations: list[list[object]]) -> None:
        for runs, _ in log.mapped_writes(operations):
            for start, blocks in runs:
                self._tables.allocator.take(start, blocks)
        where = f"position {entry.position}, sequence {entry.sequence}"
        try:
            self._applier.apply(operations)  # type: ignore[arg-type]
        except CorruptionError as error:
            raise CorruptionError("place that the log changes", where, REMEDY, evidence(error)) from error
        except DeviceFailed:
            raise
        except (AssertionError, MdstoreError, LookupError, ValueError, TypeError) as error:
            raise CorruptionError("log entry", where, "operations that fit the state they meet", repr(error)) from error
        self._report.entries += 1
