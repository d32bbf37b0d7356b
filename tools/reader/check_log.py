"""The store's log: heads, framing, contents, and the state after replay. docs/format/journal.md, store-log.md.

Two passes over the ring: the first finds the end of the log and what was known durable there; the second decodes, and
replays into an `Overlay` when one is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from mdstore.tools.reader.data import DataSource
from mdstore.tools.reader.entry import FLAG_CLEAN, Head
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.overlay import Overlay, mapped_blocks
from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.ring import ENDING_SIZE, Ring
from mdstore.tools.reader.scan import ROT, TORN, Entry, Scan, Tail
from mdstore.tools.reader.storelog import ENTRY_TYPE, LoggedTransaction, decode_transaction
from mdstore.tools.reader.superblock import Superblock

_OBJECT = "store log"


@dataclass(frozen=True, slots=True)
class LogState:
    """What the log holds: entries after the checkpoint, bytes, where it ends, and whether all of it was replayed."""

    entries: int = 0
    operations: int = 0
    size: int = 0
    end: int = 0
    is_complete: bool = False


class LogCheck:
    """Checks the log of one image. `overlay` takes the replay; `is_deep` verifies all data that entries name."""

    def __init__(
        self,
        image: Image,
        superblock: Superblock,
        findings: Findings,
        blocks: DataSource | None = None,
        *,
        is_deep: bool = False,
    ) -> None:
        self._image = image
        self._superblock = superblock
        self._findings = findings
        self._blocks = blocks
        self._is_deep = is_deep
        self._durable = 0
        self._operations = 0

    def run(self, overlay: Overlay | None = None) -> LogState:
        """Report every problem; replay into `overlay`."""
        try:
            ring = Ring(self._image, self._superblock)
            head = ring.read_head(self._findings.add_damage)
        except Damage as damage:
            self._findings.add_damage(damage.located(owner=_OBJECT))
            return LogState()
        first = self._find_end(ring, head)
        second = Scan(ring, head, self._superblock.log_position)
        count = 0
        for entry in second.entries():
            if not self._take(ring, entry, overlay):
                break
            count += 1
        end = second.end
        return LogState(count, self._operations, end - self._superblock.log_position, end, count == first.count)

    def _find_end(self, ring: Ring, head: Head) -> Scan:
        """First pass: where the log ends, and how far it is known durable."""
        start = self._superblock.log_position
        if start < head.trimmed:
            what = f"replay begins at {start}, but the log is trimmed up to {head.trimmed}"
            self._findings.add("log-rot", what, Place(_OBJECT, byte=ring.byte_of(start)))
        scan = Scan(ring, head, start)
        for _ in scan.entries():
            pass
        self._durable = max(scan.safe, head.safe)
        tail = scan.tail()
        self._report_tail(ring, tail)
        is_closed = was_closed(self._superblock, head, scan.end)
        self._report_unreadable(ring, tail, is_closed=is_closed)
        if is_emptied(self._superblock, ring, scan.end, is_closed=is_closed):
            what = f"nothing follows the last checkpoint, and the entry is gone that ended the log there, at position {start}"
            self._findings.add("log-gone", what, Place(_OBJECT, byte=ring.byte_of(start - ENDING_SIZE)))
        if self._superblock.is_clean and scan.count and head.flags & FLAG_CLEAN:
            what = f"the image was closed in order, yet {scan.count} entries follow its last checkpoint"
            self._findings.add("log-clean", what, Place(_OBJECT, byte=ring.byte_of(start)))
        return scan

    def _report_tail(self, ring: Ring, tail: Tail) -> None:
        place = Place(_OBJECT, byte=ring.byte_of(tail.end))
        if tail.kind == ROT:
            witness = "the head" if tail.witness == -1 else f"the entry at position {tail.witness}"
            self._findings.add("log-rot", f"no entry at position {tail.end}, though {witness} knew it durable", place)
        elif tail.kind == TORN:
            self._findings.add("log-torn", f"unfinished entry at position {tail.end}", place)

    def _report_unreadable(self, ring: Ring, tail: Tail, *, is_closed: bool) -> None:
        """Nothing needs what lies behind a log that was closed in order; else an entry may lie there."""
        code = "log-unreadable-behind" if is_closed else "log-unreadable"
        for position, end, damage in tail.unreadable:
            what = f"{end - position} bytes of the log from position {position} on do not read ({damage.sentence})"
            self._findings.add(code, what, Place(_OBJECT, byte=ring.byte_of(position)))

    def _take(self, ring: Ring, entry: Entry, overlay: Overlay | None) -> bool:
        """Second pass: one entry; False where the log cannot be followed further."""
        place = Place(f"{_OBJECT}, entry {entry.header.sequence}", byte=ring.byte_of(entry.header.position))
        try:
            if entry.header.type != ENTRY_TYPE:
                raise Damage("log-entry", "type of a log entry", ENTRY_TYPE, entry.header.type)
            transaction = decode_transaction(entry.payload)
            self._operations += len(transaction.operations)
            if not self._data_arrived(entry, transaction, place):
                return False
            if overlay is not None:
                overlay.apply(transaction)
        except Damage as damage:
            self._findings.add_damage(damage.located(owner=place.owner, byte=place.byte))
            return False
        return True

    def _data_arrived(self, entry: Entry, transaction: LoggedTransaction, place: Place) -> bool:
        """Whether the blocks that the entry names are there; verified where the entry is not known durable."""
        is_durable = entry.header.end <= self._durable
        if self._blocks is None or (is_durable and not self._is_deep):
            return True
        damage = mapped_damage(self._blocks, transaction)
        if damage is not None:
            code = "log-mapped" if is_durable else "log-mapped-tail"
            self._findings.add(code, damage.sentence, Place(place.owner, byte=damage.place.byte))
        return damage is None or is_durable


def was_closed(superblock: Superblock, head: Head, end: int) -> bool:
    """Whether the log was closed in order at `end`, so that nothing behind it was ever written: the head says so; or the
    superblock, unless a generation began there since (docs/format/store-log.md)."""
    if head.flags & FLAG_CLEAN:
        return end == head.safe
    return superblock.is_clean and head.safe <= end == superblock.log_position > head.generation_start


def is_emptied(superblock: Superblock, ring: Ring, end: int, *, is_closed: bool) -> bool:
    """Whether a log that holds nothing may have held something: the last checkpoint's own entry is not there either."""
    return superblock.ends_log and end == superblock.log_position and not is_closed and ring.missing_ending() is not None


def mapped_damage(blocks: DataSource, transaction: LoggedTransaction) -> Damage | None:
    """What is wrong with the first block that is, of those that the transaction names."""
    for operation in transaction.operations:
        if operation.name != "WRITE_MAPPED":
            continue
        runs, checksums = cast("tuple[list[list[int]], bytes]", operation.operands[3:5])
        for block, checksum in mapped_blocks(runs, checksums):
            try:
                blocks.read_block(block, checksum)
            except Damage as damage:
                return damage
    return None
