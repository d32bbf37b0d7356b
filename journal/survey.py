"""Looking at a log without trusting its head: what is there, what is damaged, and what head would describe it.

The survey is one pass over the medium, a window at a time; it keeps ranges, not entries, so its memory does not grow
with the log, except by its damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from journal.entry import HEADER_SIZE, MAGIC, Header, decode_header
from journal.errors import HeadLost, JournalError, MediumUnreadable, NoJournal
from journal.head import Head, decode_head, newest_head
from journal.heads import highest_number, write_copies
from journal.medium import Medium
from journal.recovery import emptied
from journal.scan import WINDOW, Read, Rule, Walk, classify_tail, find_headers, payload_intact


@dataclass(frozen=True, slots=True)
class Run:
    """Entries that follow one another without a gap, all good."""

    start: int
    end: int
    entries: int
    first_sequence: int
    next_sequence: int
    generation: int  # of the last one
    log: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A range where no entry is good, with the reason at its first byte; `end` is where the next good entry begins."""

    start: int
    end: int
    reason: str


@dataclass(slots=True)
class Survey:
    """What a survey found. `intact` when the head is good and everything it promises is there."""

    heads: list[str] = field(default_factory=list)  # a sentence for each slot
    head: Head | None = None
    start: int = 0
    end: int = 0  # of the last good entry
    runs: list[Run] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    missing: list[tuple[str, int]] = field(default_factory=list)
    tail: str = ""
    entries: int = 0

    @property
    def intact(self) -> bool:
        return self.head is not None and not self.damage and not self.missing and all("intact" in s for s in self.heads)


def survey(medium: Medium, *, window: int = WINDOW, head: Head | None = None) -> Survey:
    """Everything that can be told about the log on `medium`; raises nothing for damage. `head` is used for the medium's."""
    found = Survey()
    try:
        copies = medium.read_heads()
        found.heads = [_say(copy) for copy in copies]
        found.head = head or newest_head(copies, medium.name)
    except (HeadLost, NoJournal):
        found.head = None
    if found.head is None:
        _survey_headless(medium, found, window)
    else:
        _survey_from(medium, found, found.head, window)
    return found


def _say(copy: bytes) -> str:
    try:
        head = decode_head(copy)
    except JournalError as error:
        return str(error)
    return head if isinstance(head, str) else f"intact, number {head.number}, generation {head.generation}"


def _survey_from(medium: Medium, found: Survey, head: Head, window: int) -> None:
    """From the expire position: runs and the damage between them, up to the tail."""
    rule = Rule(head.log, head.generation, head.generation_start, medium.unit)
    found.start = position = head.expire
    reach = medium.reach(position)
    sequence, generation = None, 0
    while True:
        walk = Walk(medium.read, rule, position, reach, window=window, sequence=sequence, generation=generation,
                    capacity=medium.capacity)  # fmt: skip
        _add_run(found, walk, position, head.log)
        found.end = max(found.end, walk.position)
        following = _resynchronise(medium.read, rule, walk, reach, head.safe)
        if following is None:
            break
        found.damage.append(Damage(walk.position, following.position, walk.broken))
        position, sequence, generation = following.position, None, walk.generation
    tail = classify_tail(medium.read, rule, walk, reach)
    found.tail = f"{tail.kind}: {tail.detail}"
    if walk.position < head.safe and not (found.damage and found.damage[-1].start == walk.position):
        found.damage.append(Damage(walk.position, head.safe, walk.broken or "nothing"))
    if not found.runs and not found.damage and (gone := emptied(medium, head, found.start)) is not None:
        found.damage.append(Damage(found.start, found.start, gone))
    found.missing = _missing(medium, found.start, max(found.end, head.safe))


def _add_run(found: Survey, walk: Walk, position: int, log: int) -> None:
    run = _run_of(walk, position, log)
    if run is not None:
        found.runs.append(run)
        found.entries += run.entries


def _run_of(walk: Walk, position: int, log: int) -> Run | None:
    """Exhausts `walk`; None when there was not even a pad."""
    entries = sum(len(batch) for batch in walk.batches())
    if walk.first_sequence is None or walk.sequence is None:
        return None
    return Run(position, walk.position, entries, walk.first_sequence, walk.sequence, walk.generation, log)


def _resynchronise(read: Read, rule: Rule, walk: Walk, reach: int, safe: int) -> Header | None:
    """The next header that a good walk can begin at, if what lies before it was durable; None: the rest is the tail."""
    first = None
    for header in find_headers(read, walk.position, reach):
        if rule.refuses(header, header.position, None, walk.generation) is not None or header.position == walk.position:
            continue
        first = first or header
        if max(header.safe, safe) > walk.position:
            return first
    return None


def _missing(medium: Medium, start: int, end: int) -> list[tuple[str, int]]:
    look = getattr(medium, "missing", None)
    return list(look(start, end)) if look is not None and end > start else []


def _survey_headless(medium: Medium, found: Survey, window: int) -> None:
    """Without a head: every run of every log from the beginning; ranges in between are not called damage."""
    for run in find_runs(medium, window=window):
        found.runs.append(run)
        found.entries += run.entries
        found.end = max(found.end, run.end)
    found.start = min((run.start for run in found.runs), default=medium.start)
    found.tail = "unknown: no head says where the log ends"


def find_runs(medium: Medium, *, window: int = WINDOW) -> Iterator[Run]:
    """Runs of good entries anywhere on the medium, of any log, in the order of where they lie."""
    position, high = _where_entries_may_lie(medium, window)
    while (header := next(find_headers(medium.read, position, high, window=window), None)) is not None:
        rule = Rule(header.log, 1 << 32, 1 << 64, medium.unit)
        walk = Walk(medium.read, rule, header.position, high, window=window, generation=header.generation)
        run = _run_of(walk, header.position, header.log)
        if run is not None:
            yield run
        position = max(walk.position, header.position + 1)


def _where_entries_may_lie(medium: Medium, window: int) -> tuple[int, int]:
    """Everything kept; of a ring, the lap that ends with the end of the newest entry."""
    if medium.capacity is None:
        low = medium.lowest()
        return low, medium.reach(low)
    newest = max(_ring_headers(medium, medium.capacity, window), key=lambda h: (h.generation, h.position), default=None)
    end = newest.end if newest is not None else medium.start
    return max(medium.start, end - medium.capacity), end


def _ring_headers(medium: Medium, capacity: int, window: int) -> Iterator[Header]:
    """Headers of any lap that lie where their position says."""
    for base in range(medium.start, medium.start + capacity, window):
        data = medium.read(base, min(window, medium.start + capacity - base) + HEADER_SIZE - 1)
        offset = data.find(MAGIC)
        while offset >= 0:
            header = decode_header(data, offset)
            if isinstance(header, Header) and (header.position - base - offset) % capacity == 0:
                yield header
            offset = data.find(MAGIC, offset + 1)


def recover_head(medium: Medium, *, after_damage: bool = False, window: int = WINDOW) -> Head:
    """A head made from what a search of the medium finds, of the log with the newest entry.

    Its expire position is where the first entry still there begins (which may be one the owner had expired), or with
    `after_damage` where the last unbroken run begins. Writes nothing, see `install_head`. `NoJournal` when there is not
    one entry. Cost: reads everything, twice.
    """
    runs = list(find_runs(medium, window=window))
    if not runs:
        raise NoJournal(medium.name)
    newest = max(runs, key=lambda run: (run.generation, run.end))
    ours = [run for run in runs if run.log == newest.log and run.end <= newest.end]
    first = newest if after_damage else ours[0]
    return Head(
        log=newest.log, generation=newest.generation, trimmed=first.start - first.start % medium.period,
        expire=first.start, safe=newest.end, next_sequence=newest.next_sequence,
        generation_start=newest.end, clean=False, allow_split=True, epoch=getattr(medium, "epoch", 0),
        **medium.describe(),
    )  # fmt: skip


def find_head(medium: Medium, start: int | None, log: int | None) -> tuple[Head, bool]:
    """The newest head, and whether both copies were lost and it was made by `search_head`. `NoJournal`, `HeadLost` where that
    cannot be done."""
    try:
        return newest_head(medium.read_heads(), medium.name, log), False
    except (NoJournal, HeadLost):
        if start is None or log is None or medium.capacity is None:
            raise
    try:
        return search_head(medium, start, log), True
    except MediumUnreadable as error:
        raise HeadLost(medium.name, ["both copies", str(error)]) from error


def search_head(medium: Medium, start: int, log: int, *, window: int = WINDOW) -> Head:
    """What the lost head of a ring would say as far as its entries tell, for an owner who knows the log's identity, and where
    the first entry it needs begins, from a durable record of its own. For reading only: `generation_start` lies beyond
    everything, so that entries of every generation count in their order. `HeadLost` when nothing shows that this is where the log
    ends: neither an entry behind `start`, nor a whole one that ends there, which an emptied ring would lack.

    `safe` is the highest position that any entry knew durable, so a walk that ends before it is damage. Only what the heads
    alone knew is lost: that the very last entry of an earlier generation had been durable. Writes nothing. Cost: reads the ring.
    """
    capacity = medium.capacity
    assert capacity is not None, "only a ring has entries of one lap at most"
    generation, safe, last, follows = 0, start, None, False
    for header in _ring_headers(medium, capacity, window):
        if header.log != log:
            continue
        generation, safe = max(generation, header.generation), max(safe, header.safe)
        follows = follows or header.position >= start
        if header.end <= start and (last is None or header.end > last.end):
            last = header
    if not follows and not (last is not None and last.end == start and payload_intact(medium.read, last, window)):
        nobody = f"no entry begins at {start}, none ends there: nothing says that none is lost"
        raise HeadLost(medium.name, ["both copies", nobody])
    next_sequence = 1 if last is None else last.sequence + 1 + -(-(start - last.end) // HEADER_SIZE)
    return Head(
        log=log, generation=generation, number=highest_number(medium), trimmed=start - start % medium.period, expire=start,
        safe=safe, next_sequence=next_sequence, generation_start=start + 2 * capacity, capacity=capacity,
    )  # fmt: skip


def install_head(medium: Medium, head: Head) -> Head:
    """Write both copies of `head`, numbered above whatever is there. Durable on return."""
    return write_copies(medium, replace(head, number=highest_number(medium)))

