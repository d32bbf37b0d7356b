"""Reading a log that another process is writing, strictly read-only.

A follower holds no lock and writes nothing, not even a floor. It trusts an entry once the log itself proves it durable: a
later entry, or a head, says that all up to its end is safe. So it never shows what a crash could take back, and it lags by
at most what was appended since the writer's last flush but one, or since its last head, whichever is later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from journal.entry import Entry
from journal.errors import JournalCorrupt, JournalTrimmed
from journal.head import Head, check_geometry, newest_head
from journal.medium import Medium
from journal.scan import WINDOW, Rule, Walk


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a follower is behind: bytes known durable, and bytes seen but not yet known durable."""

    durable_bytes: int
    unproven_bytes: int


class Follower:
    """Follows the log on `medium` from `position`, by default its head's expire position.

    F1  everything below `position` was handed out, once and in order, and is durable
    F2  `position` is an entry boundary
    """

    def __init__(self, medium: Medium, *, position: int | None = None, window_bytes: int = WINDOW) -> None:
        self.medium = medium
        self.position = 0
        self.restarts = 0
        self._window = window_bytes
        self._sequence: int | None = None
        self._generation = 0
        self._seen = 0
        self.head = newest_head(medium.read_heads(), medium.name)
        check_geometry(self.head, medium.describe())
        self.restart(position)

    def restart(self, position: int | None = None) -> None:
        """Begin again at the head's expire position, or at `position`: after `JournalTrimmed`, with an empty state."""
        self.head = newest_head(self.medium.read_heads(), self.medium.name)
        self.position = self._seen = self.head.expire if position is None else position
        self._sequence, self._generation = None, 0
        self.restarts += 1

    def poll(self) -> Iterator[list[Entry]]:
        """Batches of what has become durable since the last time; ends when there is no more for now.

        `JournalTrimmed`: the log was trimmed past this follower, which has to `restart`. `JournalCorrupt`: what the head
        says is durable cannot be read. Cost: the head slots, and the new part of the log.
        """
        self.head = head = newest_head(self.medium.read_heads(), self.medium.name)
        if self.position < head.trimmed:
            raise JournalTrimmed(self.position, head.trimmed)
        rule = Rule(head.log, head.generation, head.generation_start, self.medium.unit)
        walk = Walk(
            self.medium.read, rule, self.position, self.medium.probe(self.position), window=self._window,
            sequence=self._sequence, generation=self._generation, capacity=self.medium.capacity,
        )  # fmt: skip
        waiting: list[Entry] = []
        for batch in walk.batches():
            waiting += batch
            proven = self._proven(waiting, max(walk.safe, head.safe))
            if proven:
                yield self._hand_out(waiting, proven)
                waiting = waiting[proven:]
        self._seen = walk.position
        self._check_end(walk, head)

    def _proven(self, waiting: list[Entry], safe: int) -> int:
        """How many of `waiting` end at or below `safe`."""
        return sum(entry.end <= safe for entry in waiting)

    def _hand_out(self, waiting: list[Entry], count: int) -> list[Entry]:
        last = waiting[count - 1]
        self.position, self._sequence, self._generation = last.end, last.sequence + 1, last.generation
        return waiting[:count]

    def _check_end(self, walk: Walk, head: Head) -> None:
        """The walk must have got as far as the head says is durable, unless the log was trimmed under it."""
        if walk.position >= head.safe:
            return
        now = newest_head(self.medium.read_heads(), self.medium.name)
        if self.position < now.expire:
            raise JournalTrimmed(self.position, now.expire - now.expire % self.medium.period)
        raise JournalCorrupt(walk.position, walk.broken, f"the head says that all below {head.safe} is durable")

    @property
    def lag(self) -> Lag:
        """As of the last `poll`."""
        return Lag(max(0, self.head.safe - self.position), max(0, self._seen - self.position))
