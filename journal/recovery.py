"""From a head to the valid end of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from journal.entry import HEADER_SIZE, Entry
from journal.errors import JournalCorrupt, MediumUnreadable
from journal.head import Head, check_geometry
from journal.medium import Medium
from journal.scan import UNREADABLE, Read, Rule, Tail, Walk, classify_tail

MEASURED_BYTES: Final = 1 << 20
CLOSED: Final = "the log was closed here"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening found. `end` is where the next entry goes."""

    trimmed: int
    expire: int
    end: int
    next_sequence: int
    generation: int
    tail: Tail
    bytes_per_second: float = 0.0  # of the walk and its visitor; 0 where too little was read to tell

    @classmethod
    def empty(cls, start: int) -> Recovered:
        """A log that was just created."""
        return cls(start, start, start, 1, 0, Tail("clean", start, "nothing follows", start))


def recover(
    medium: Medium,
    head: Head,
    start: int | None,
    window: int,
    visit: Callable[[list[Entry]], None] | None,
    clock: Callable[[], float],
    read: Read | None = None,
    closed_at: int | None = None,
) -> Recovered:
    """Walk from `start` to the first position with no valid entry, and make sure that nothing durable is missing there.

    `JournalCorrupt` when something is, or cannot be read; `WrongGeometry`. Reads everything up to the medium's reach once, unless
    the head, or `closed_at`, says that the log was closed and ends where the walk did: bytes behind it need not even be readable.
    """
    check_geometry(head, medium.describe())
    read = read or medium.read
    begin = head.expire if start is None else start
    rule = Rule(head.log, head.generation, head.generation_start, medium.unit)
    reach = medium.reach(begin)
    walk = Walk(read, rule, begin, reach, window=window, capacity=medium.capacity)
    closed = _closed(head, closed_at)
    began = clock()
    for batch in walk.batches():
        if visit is not None:
            visit(batch)
    seconds = clock() - began
    measured = walk.position - begin >= MEASURED_BYTES and seconds > 0
    return Recovered(
        trimmed=max(head.trimmed, begin - begin % medium.period),
        expire=begin,
        end=walk.position,
        next_sequence=_next_sequence(head, walk, begin),
        generation=max(head.generation, walk.generation),
        tail=_judge(medium, read, rule, walk, head, begin, reach, closed),
        bytes_per_second=(walk.position - begin) / seconds if measured else 0.0,
    )


def _next_sequence(head: Head, walk: Walk, begin: int) -> int:
    """The walk's, or one that is certainly higher than any used before `begin`."""
    if walk.sequence is not None:
        return walk.sequence
    return head.next_sequence + -(-max(0, begin - head.safe) // HEADER_SIZE)


def emptied(medium: Medium, head: Head, begin: int) -> str | None:
    """Why a log in which nothing follows `begin` may have lost what did: the object is gone in which the entry before ended, and
    those that followed may have gone with it. None when it is there, or need not be."""
    look = getattr(medium, "missing", None)
    if look is None or begin <= head.trimmed or (head.clean and begin == head.safe):
        return None
    gone = [name for name, _ in look(begin - 1, begin)]
    return f"object {gone[0]} is missing" if gone else None


def _closed(head: Head, closed_at: int | None) -> int | None:
    """Where the log was closed in order, with nothing written since. The owner's record of that says so as long as no generation
    began there: before its first entry is written, a new one is durable in both heads, with the position it begins at."""
    if head.clean:
        return head.safe
    return closed_at if closed_at is not None and head.safe <= closed_at > head.generation_start else None


def _judge(
    medium: Medium, read: Read, rule: Rule, walk: Walk, head: Head, begin: int, reach: int, closed: int | None
) -> Tail:
    if walk.position == closed:
        return Tail("clean", walk.position, CLOSED, walk.position)
    gone = emptied(medium, head, begin) if walk.position == begin else None
    if gone is not None:
        raise JournalCorrupt(begin, gone, "an entry ended in it, and nobody can say that none followed")
    tail = _tail(read, rule, walk, reach)
    if walk.position < head.safe:
        raise JournalCorrupt(walk.position, tail.detail, f"all below {head.safe} is known to have been durable")
    if tail.kind == "rot":
        evidence = f"the entry at {tail.witness} says that all below {tail.witness_safe} was durable"
        raise JournalCorrupt(walk.position, tail.detail, evidence)
    return tail


def _tail(read: Read, rule: Rule, walk: Walk, reach: int) -> Tail:
    """`JournalCorrupt` where it cannot be read whether anything is lost: a log closed in order does not come here."""
    unclosed = "the log was not closed in order: a durable entry may lie there; copy the medium (ddrescue) and open the copy"
    if walk.broken.startswith(UNREADABLE):
        raise JournalCorrupt(walk.position, walk.broken, unclosed)
    try:
        return classify_tail(read, rule, walk, reach)
    except MediumUnreadable as error:
        raise JournalCorrupt(walk.position, f"{UNREADABLE} behind it: {error.cause}", unclosed) from error
