"""Changing a log by hand: each function plans first, writes an undo dump, and only then touches the medium.

Nobody may have the log open for writing meanwhile. All of them keep the log a valid one: what is taken out is replaced by
pads of the same length and sequence numbers, so what lies behind stays where it is and stays reachable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from crc32c import crc32c

from journal.dump import KIND_LOG, KIND_UNDO, apply_dump, check_dump, heads_of, write_dump
from journal.entry import HEADER_SIZE, PAD_TYPE, Entry, Header, decode_header, encode_header
from journal.errors import HeadLost, JournalCorrupt, NoJournal
from journal.head import Head, check_geometry, newest_head
from journal.heads import copies_of
from journal.medium import Medium
from journal.scan import WINDOW, Rule, Walk
from journal.survey import install_head, survey


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done: bytes that become pads, where the log is cut, and the head that is written at the end."""

    pads: tuple[tuple[int, int, int, int], ...] = ()  # (position, end, first sequence, how many)
    cut: int | None = None
    head: Head | None = None

    @property
    def summary(self) -> list[str]:
        """Sentences for a person."""
        said = [f"replace {end - low} bytes at {low} by {count} pads" for low, end, _, count in self.pads]
        if self.cut is not None:
            said.append(f"remove everything from {self.cut} on")
        if self.head is not None:
            said.append(f"write a head: expire {self.head.expire}, safe {self.head.safe}, generation {self.head.generation}")
        return said


def export_log(medium: Medium, out: BinaryIO, *, force: bool = False, left: Sequence[bytes] = ()) -> int:
    """Dump the live log; returns its bytes. `JournalCorrupt` when it is damaged, unless `force`. Memory: one window.

    `left`: as for `write_dump`."""
    head = newest_head(medium.read_heads(), medium.name)
    found = survey(medium)
    if found.damage and not force:
        first = found.damage[0]
        raise JournalCorrupt(first.start, first.reason, "a dump would lack it; repair the log first, or force it")
    low = head.expire - head.expire % medium.period
    return write_dump(medium, out, KIND_LOG, [(low, max(found.end, head.safe))], left)


def replace_log(medium: Medium, source: BinaryIO, undo: BinaryIO) -> int:
    """Put the log dumped to `source` in place of the one there is, which first goes to `undo`; returns the bytes written.

    Durable on return. `apply_dump(medium, undo)` brings the old log back, unless both its heads were lost: then only its bytes.
    `DumpDamaged`, `WrongGeometry`, before anything is written.
    """
    dump = check_dump(source)
    check_geometry(dump.head(), medium.describe())
    low = medium.lowest()
    try:
        newest_head(medium.read_heads(), medium.name)
    except (NoJournal, HeadLost):
        write_dump(medium, undo, KIND_UNDO, [(low, medium.reach(low))], dump.heads)
    else:
        export_log(medium, undo, force=True, left=dump.heads)
    undo.flush()
    source.seek(0)
    return apply_dump(medium, source, replaces=True)


def replace_heads(medium: Medium, head: Head, undo: BinaryIO) -> Head:
    """`install_head`; first the copies there are go to `undo`."""
    write_dump(medium, undo, KIND_UNDO, [], copies_of(medium, head))
    undo.flush()
    return install_head(medium, head)


def read_entries(medium: Medium, head: Head, *, window: int = WINDOW) -> Iterator[Entry]:
    """The entries of the live log as far as they are good, then the end; damage is no error. Memory: one window."""
    rule = Rule(head.log, head.generation, head.generation_start, medium.unit)
    yield from Walk(medium.read, rule, head.expire, medium.reach(head.expire), window=window, capacity=medium.capacity)


def plan_splice(medium: Medium, chosen: Callable[[Entry], bool]) -> Change:
    """Every entry that `chosen` picks becomes a pad."""
    head = newest_head(medium.read_heads(), medium.name)
    picked = (entry for entry in read_entries(medium, head) if chosen(entry))
    return Change(pads=tuple((entry.position, entry.end, entry.sequence, 1) for entry in picked))


def plan_repair(medium: Medium) -> Change:
    """Every damaged range becomes pads, so that what lies behind it can be reached; what cannot be bridged is cut off."""
    found = survey(medium)
    if found.head is None:
        raise JournalCorrupt(medium.start, "no head", "recover the head first")
    before = {run.end: run for run in found.runs}
    behind = {run.start: run for run in found.runs}
    pads: list[tuple[int, int, int, int]] = []
    for damage in found.damage:
        last, following = before.get(damage.start), behind.get(damage.end)
        if following is None:
            cut = _cut_head(found.head, damage.start, last.next_sequence if last else None)
            return Change(tuple(pads), damage.start, cut)
        first = last.next_sequence if last is not None else following.first_sequence - 1
        count, size = following.first_sequence - first, damage.end - damage.start
        if count < 1 or count * HEADER_SIZE > size:
            raise JournalCorrupt(damage.start, f"{size} bytes", f"{count} entries are missing there, which do not fit")
        pads.append((damage.start, damage.end, first, count))
    return Change(tuple(pads))


def plan_truncate(medium: Medium, position: int) -> Change:
    """Cut the log at `position`, which must be an entry boundary of its good part."""
    head = newest_head(medium.read_heads(), medium.name)
    boundaries = (entry for entry in read_entries(medium, head) if entry.end == position)
    last = next(boundaries, None)
    if last is None and position != head.expire:
        raise ValueError(f"{position} is not the end of an entry")
    sequence = last.sequence + 1 if last is not None else None
    return Change(cut=position, head=_cut_head(head, position, sequence))


def _cut_head(head: Head, position: int, next_sequence: int | None = None) -> Head:
    return replace(
        head, safe=position, expire=min(head.expire, position), generation=head.generation + 1, generation_start=position,
        next_sequence=next_sequence if next_sequence is not None else head.next_sequence, clean=True,
    )  # fmt: skip


def plan_reset(medium: Medium) -> Change:
    """An empty log that begins at the next period behind everything there is, with a new generation."""
    head = newest_head(medium.read_heads(), medium.name)
    found = survey(medium)
    end = max(found.end, head.safe)
    if medium.capacity is None:
        end = max(end, medium.reach(head.expire))
    start = -(-end // medium.period) * medium.period
    empty = replace(
        head, trimmed=start, expire=start, safe=start, generation=head.generation + 1, generation_start=start,
        next_sequence=head.next_sequence + -(-(start - head.safe) // HEADER_SIZE), clean=True,
    )  # fmt: skip
    return Change(cut=start, head=empty)


def apply_change(medium: Medium, change: Change, undo: BinaryIO) -> None:
    """Do what was planned. First everything it overwrites goes to `undo`, which the caller makes durable in `undo.flush`.

    Durable on return. `apply_dump(medium, undo)` takes it back.
    """
    head = newest_head(medium.read_heads(), medium.name)
    ranges = [(low, end) for low, end, _, _ in change.pads]
    last = 0
    if change.cut is not None:
        last = max(change.cut, _last_of(medium, head))
        ranges.append((change.cut, last))
    left = copies_of(medium, change.head) if change.head is not None else heads_of(medium)
    write_dump(medium, undo, KIND_UNDO, ranges, left)
    undo.flush()
    for low, end, sequence, count in change.pads:
        medium.write(low, list(pad_entries(medium, head, low, end, sequence, count)))
    medium.flush()
    if change.cut is not None:
        medium.truncate(change.cut, last)
    if change.head is not None:
        install_head(medium, change.head)


def _last_of(medium: Medium, head: Head) -> int:
    """Behind everything that a cut could remove: the end that a survey finds, tail included."""
    if medium.capacity is None:
        return medium.reach(head.expire)
    return max(survey(medium).end, head.safe)


def pad_entries(medium: Medium, head: Head, low: int, end: int, sequence: int, count: int) -> Iterable[bytes]:
    """`count` pad entries that fill `[low, end)`, the last one taking what is left."""
    generation = _generation_at(medium, head, low)
    for number in range(count):
        last = number == count - 1
        size = end - low if last else HEADER_SIZE
        fill = bytes(size - HEADER_SIZE)
        its = head.generation if low >= head.generation_start else generation
        yield encode_header(PAD_TYPE, len(fill), head.log, its, sequence + number, low, head.expire, crc32c(fill))
        yield fill
        low += size


def _generation_at(medium: Medium, head: Head, position: int) -> int:
    """Of the entry at `position` where its header can still be read, else of the last good entry before it."""
    header = decode_header(medium.read(position, HEADER_SIZE))
    if isinstance(header, Header) and header.log == head.log and header.position == position:
        return header.generation
    generation = 0
    for entry in read_entries(medium, head):
        if entry.position >= position:
            break
        generation = entry.generation
    return generation


def plan_header(medium: Medium, fields: dict[str, int]) -> Change:
    """A head with some fields set by hand. `ValueError` for a field that cannot be set, or positions out of order."""
    head = newest_head(medium.read_heads(), medium.name)
    allowed: Sequence[str] = ("trimmed", "expire", "safe", "next_sequence", "generation", "generation_start", "epoch")
    unknown = set(fields) - set(allowed)
    if unknown:
        raise ValueError(f"cannot set {', '.join(sorted(unknown))}; only {', '.join(allowed)}")
    for name, value in fields.items():
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} {value} is no number of 64 bits")
    made = replace(head, clean=False, **fields)  # type: ignore[arg-type]
    if not (made.trimmed <= made.expire <= made.safe and made.generation_start <= made.safe):
        raise ValueError(f"positions out of order: trimmed {made.trimmed}, expire {made.expire}, safe {made.safe}")
    return Change(head=made)
