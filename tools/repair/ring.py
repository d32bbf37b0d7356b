"""The store's log: its heads, entries that are damaged, entries that do not fit the state they meet. docs/format/journal.md.

An entry that is taken out is replaced by pads of the same length and sequence numbers, so what lies behind it stays where it is
and is read as before. What is taken out is named by what can still be told of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from crc32c import crc32c

from journal import Head as WrittenHead
from journal import JournalError, RingMedium
from journal.entry import PAD_TYPE, encode_header
from journal.head import decode_head as decode_written
from journal.survey import install_head, recover_head
from mdstore.store import superblock as engine_superblock
from mdstore.store.recovery import ring_of
from mdstore.tools.reader.check_log import is_emptied, mapped_damage, was_closed
from mdstore.tools.reader.entry import HEADER_SIZE, MAGIC, Head, Header, decode_header
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.ring import ENDING, ENDING_SIZE, Ring
from mdstore.tools.reader.scan import CHUNK, ROT, Entry, Scan
from mdstore.tools.reader.storelog import ENTRY_TYPE, LoggedTransaction, decode_transaction
from mdstore.tools.reader.superblock import Superblock
from mdstore.tools.repair.bench import Bench, Step
from mdstore.tools.repair.build import Run
from mdstore.tools.repair.shadow import UNIT

HEAD_CODES: Final = frozenset({"journal-head", "journal-no-head", "log-gone"})
ROT_CODES: Final = frozenset({"log-rot"})
UNREADABLE_CODES: Final = frozenset({"log-unreadable", "log-unreadable-behind"})
REFUSED_CODES: Final = frozenset({"log-replay", "log-entry", "log-mapped"})
_PHASE: Final = "log"
_REFUSALS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Log:
    """The ring as the second reader sees it, and as the journal writes it."""

    ring: Ring
    medium: RingMedium
    superblock: Superblock

    def head(self) -> Head:
        """The head that counts. Damage when there is none."""
        return self.ring.read_head(lambda _: None)

    def scan(self) -> Scan:
        """From where replay begins."""
        return Scan(self.ring, self.head(), self.superblock.log_position)


def open_log(bench: Bench, superblock: Superblock) -> Log:
    """The log of the superblock that counts. Damage when the ring makes no sense."""
    written = next(block for block, _ in engine_superblock.read_all(bench.shadow)[0] if block.epoch == superblock.epoch)
    return Log(Ring(bench.image, superblock), ring_of(bench.shadow, written), superblock)


def mapped_runs(bench: Bench, superblock: Superblock) -> list[Run]:
    """Blocks that the log's entries name: free by the superblock, and yet not to be taken."""
    runs: list[Run] = []
    try:
        for entry in open_log(bench, superblock).scan().entries():
            for operation in decode_transaction(entry.payload).operations:
                if operation.name == "WRITE_MAPPED":
                    runs += [(run[0], run[1]) for run in operation.operands[3]]  # type: ignore[union-attr,index,misc]
    except Damage:
        pass
    return runs


# -- heads -------------------------------------------------------------------------------------------------------------
def mend_heads(bench: Bench) -> Iterator[Step]:
    """Both head copies, from the one that is left or from the entries; and the entry that ends an empty log."""
    superblock = bench.superblock()
    if superblock is None:
        return
    log = open_log(bench, superblock)
    if bench.verdict.codes.keys() & (HEAD_CODES - {"log-gone"}):
        yield _mend_copies(log)
    scan = log.scan()
    for _ in scan.entries():
        pass
    if is_emptied(superblock, log.ring, scan.end, is_closed=was_closed(superblock, log.head(), scan.end)):
        yield _end_log(log)


def _end_log(log: Log) -> Step:
    """The entry that says that nothing is missing before the superblock's position: from now on nothing is known to be."""
    head, position = log.head(), log.superblock.log_position
    sequence = max(1, head.next_sequence + max(0, position - head.safe) // HEADER_SIZE - 1)
    start = position - ENDING_SIZE
    header = encode_header(ENTRY_TYPE, len(ENDING), head.log, head.generation, sequence, start, start, crc32c(ENDING))
    log.medium.write(start, [header, ENDING])
    log.medium.flush()
    lost = [f"every transaction since the checkpoint of epoch {log.superblock.epoch}, if there was one"]
    return Step(_PHASE, f"end the log at position {position}, where the last checkpoint did", ["the log is empty"], lost)


def _mend_copies(log: Log) -> Step:
    head = log.head()
    heads = [decode_written(copy) for copy in log.medium.read_heads()]
    written = (copy for copy in heads if isinstance(copy, WrittenHead) and (copy.number, copy.log) == (head.number, head.log))
    intact = next(written, None)
    if intact is None:
        return _head_from_entries(log)
    number = intact.number
    install_head(log.medium, intact)
    return Step(_PHASE, "write both copies of the log's head from the one that is left", [f"its number is {number}"])


def _head_from_entries(log: Log) -> Step:
    identity = int.from_bytes(log.superblock.uuid[:4], "little") | 1
    start = log.superblock.log_position
    try:
        found = recover_head(log.medium)
    except JournalError:
        found = None
    if found is None or found.log != identity or found.safe < start:
        generation = found.generation + 1 if found is not None and found.log == identity else 1
        next_sequence = found.next_sequence if found is not None else 1
        head = WrittenHead(
            log=identity, generation=generation, trimmed=start, expire=start, safe=start, next_sequence=next_sequence,
            generation_start=start, capacity=log.ring.body_size,
        )  # fmt: skip
        details = ["no entry is left: the log is empty"]
        lost = [f"every transaction since the checkpoint of epoch {log.superblock.epoch}, if there was one"]
    else:
        head, lost = replace(found, trimmed=start, expire=start), []
        details = [f"its newest entry ends at position {found.safe}, generation {found.generation}"]
    install_head(log.medium, head)
    return Step(_PHASE, "make a head for the log from its entries", details, lost)


# -- bad sectors -------------------------------------------------------------------------------------------------------
def fill_unreadable(bench: Bench) -> Iterator[Step]:
    """Zeros where the ring does not read: the write sets a bad sector right, or fails, and says so."""
    superblock = bench.superblock()
    if superblock is None:
        return
    log = open_log(bench, superblock)
    scan = log.scan()
    for _ in scan.entries():
        pass
    is_closed = was_closed(superblock, log.head(), scan.end)
    for position, end, damage in scan.tail().unreadable:
        for at in sorted({log.ring.byte_of(at) // UNIT * UNIT for at in (*range(position, end, UNIT), end - 1)}):
            if not _reads(bench, at):
                bench.shadow.write(at, [bytes(min(UNIT, bench.image.size - at))])
        title = f"write zeros over {end - position} bytes of the log at position {position}, which do not read"
        lost = [] if is_closed else ["whatever transactions of the log lay there, if there were any"]
        yield Step(_PHASE, title, [damage.sentence], lost)
    bench.shadow.flush()


def _reads(bench: Bench, at: int) -> bool:
    """Whether a unit does; what lies behind the image's end cannot be written either."""
    if at >= bench.image.size:
        return True
    try:
        bench.image.read(at, min(UNIT, bench.image.size - at))
    except Damage:
        return False
    return True


# -- damaged entries ---------------------------------------------------------------------------------------------------
def skip_damaged(bench: Bench) -> Iterator[Step]:
    """Pads in place of damaged entries, so that those behind are reached; the end of the log where nothing is."""
    superblock = bench.superblock()
    if superblock is None:
        return
    log = open_log(bench, superblock)
    while True:
        scan = log.scan()
        for _ in scan.entries():
            pass
        if scan.tail().kind != ROT:
            return
        yield _skip_one(log, scan)


def _skip_one(log: Log, scan: Scan) -> Step:
    head, at, last = log.head(), scan.end, scan.last
    following = _next_good(log, head, at, last)
    if following is None:
        return _cut(log, head, at, last)
    count = following.sequence - last.sequence - 1 if last is not None else 1
    generation = head.generation if at >= head.generation_start else (last or following).generation
    _write_pads(log, head, at, following.position, following.sequence - count, count, generation)
    title = f"skip {count} damaged log {'entry' if count == 1 else 'entries'} at position {at}"
    details = [f"{following.position - at} bytes become pads; replay goes on at position {following.position}"]
    lost = [f"{count} transaction(s) of the log, sequence {following.sequence - count} .. {following.sequence - 1}"]
    return Step(_PHASE, title, details, lost)


def _next_good(log: Log, head: Head, at: int, last: Header | None) -> Header | None:
    """The first whole entry behind `at` that may follow `last`, with room for the lost ones between."""
    for header in _headers_behind(log, head, at):
        if last is not None and (header.sequence <= last.sequence + 1 or header.generation < last.generation):
            continue
        count = header.sequence - last.sequence - 1 if last is not None else 1
        if header.position - at < count * HEADER_SIZE:
            continue
        if next(Scan(log.ring, head, header.position).entries(), None) is not None:
            return header
    return None


def _headers_behind(log: Log, head: Head, at: int) -> Iterator[Header]:
    """Intact headers of this log at their own positions, from `at` + 1 on, in order."""
    position, stop = at + 1, log.ring.horizon(at)
    while position < stop:
        data = log.ring.read(position, min(CHUNK + HEADER_SIZE, stop - position))
        found = data.find(MAGIC)
        while 0 <= found < CHUNK:
            header = decode_header(data, found)
            if (
                header is not None
                and (header.position, header.log) == (position + found, head.log)
                and header.generation <= head.generation
            ):
                yield header
            found = data.find(MAGIC, found + 1)
        position += CHUNK


def _write_pads(log: Log, head: Head, low: int, end: int, sequence: int, count: int, generation: int) -> None:
    for number in range(count):
        size = end - low if number == count - 1 else HEADER_SIZE
        fill = bytes(size - HEADER_SIZE)
        header = encode_header(PAD_TYPE, len(fill), head.log, generation, sequence + number, low, head.expire, crc32c(fill))
        log.medium.write(low, [header, fill])
        low += size
    log.medium.flush()


def _cut(log: Log, head: Head, at: int, last: Header | None) -> Step:
    """Nothing good lies behind: the log ends here."""
    log.medium.truncate(at, log.ring.horizon(at) - ENDING_SIZE)  # but for the entry that ended the log before
    ends = WrittenHead(
        log=head.log, generation=head.generation + 1, trimmed=min(head.trimmed, at), expire=min(head.expire, at), safe=at,
        next_sequence=last.sequence + 1 if last is not None else head.next_sequence, generation_start=at,
        epoch=head.epoch, capacity=head.capacity,
    )  # fmt: skip
    install_head(log.medium, ends)
    lost = [f"every transaction of the log from sequence {ends.next_sequence} on"]
    return Step(_PHASE, f"end the log at position {at}", ["nothing behind can be read, though some of it was durable"], lost)


# -- entries that do not fit -------------------------------------------------------------------------------------------
def skip_refused(bench: Bench) -> Iterator[Step]:
    """Pads in place of entries that make no sense, do not fit the state they meet, or name data that is damaged."""
    superblock = bench.superblock()
    if superblock is None:
        return
    log = open_log(bench, superblock)
    for _ in range(_REFUSALS_MAX):
        refused = _first_refused(bench, log)
        if refused is None:
            return
        entry, why, lost = refused
        header, head = entry.header, log.head()
        _write_pads(log, head, header.position, header.end, header.sequence, 1, header.generation)
        yield Step(_PHASE, f"skip the log entry at position {header.position}", [why], lost)


def _first_refused(bench: Bench, log: Log) -> tuple[Entry, str, list[str]] | None:
    reader = bench.reader(log.superblock)
    overlay = Overlay(reader)
    scan = log.scan()
    durable = _durable_end(log)
    for entry in scan.entries():
        lost = [f"transaction with sequence {entry.header.sequence}"]
        try:
            if entry.header.type != ENTRY_TYPE:
                raise Damage("log-entry", "type of a log entry", ENTRY_TYPE, entry.header.type)
            transaction = decode_transaction(entry.payload)
            lost = [f"transaction with sequence {entry.header.sequence}: {_words(transaction)}"]
            damage = mapped_damage(reader, transaction) if entry.header.end <= durable else None
            if damage is not None:
                raise damage
            overlay.apply(transaction)
        except Damage as damage:
            return entry, damage.sentence, lost
    return None


def _durable_end(log: Log) -> int:
    scan = log.scan()
    for _ in scan.entries():
        pass
    return max(scan.safe, log.head().safe)


def _words(transaction: LoggedTransaction) -> str:
    parts = []
    for operation in transaction.operations[:8]:
        names = [readable(part) for part in operation.operands[:2] if isinstance(part, bytes)]
        parts.append(" ".join([operation.name.lower(), "/".join(names)]))
    more = len(transaction.operations) - 8
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")
