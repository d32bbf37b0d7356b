"""How long a log may get, and who keeps it long."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from journal.errors import JournalFull

REPLAY_BYTES_PER_SECOND = 20_000_000  # where nothing was measured: 100,000 events of 200 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Hard limits; an append, or the begin of a segment, that would pass one is refused. None: no limit.

    max_bytes: of the live log, from the expire position to the end. max_segments: begun and not expired.
    max_replay_seconds: what replaying the live log would take, at the speed measured when the log was opened.
    """

    max_bytes: int | None = None
    max_segments: int | None = None
    max_replay_seconds: float | None = None

    def tightest(self, replay_rate: float) -> tuple[int | None, str]:
        """The least number of live bytes that a ceiling allows, and its name."""
        limits = [(self.max_bytes, "bytes")]
        if self.max_replay_seconds is not None:
            limits.append((int(self.max_replay_seconds * replay_rate), "replay seconds"))
        known = [(limit, name) for limit, name in limits if limit is not None]
        return min(known) if known else (None, "")


class Hold:
    """A reason why nothing from `position` on may expire. Made by `Journal.hold`; released once."""

    __slots__ = ("_holds", "position", "reason", "released")

    def __init__(self, holds: Holds, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        self.released = False
        self._holds = holds

    def release(self) -> None:
        """The reason is gone. Again: nothing."""
        if not self.released:
            self.released = True
            self._holds.drop()

    def __lt__(self, other: Hold) -> bool:
        return self.position < other.position


class Holds:
    """All holds of a journal, the oldest first. Guarded by the journal's lock, except for `release`."""

    def __init__(self) -> None:
        self._heap: list[Hold] = []
        self.count = 0

    def add(self, position: int, reason: str) -> Hold:
        hold = Hold(self, position, reason)
        heapq.heappush(self._heap, hold)
        self.count += 1
        return hold

    def drop(self) -> None:
        self.count -= 1

    def oldest(self) -> Hold | None:
        while self._heap and self._heap[0].released:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def __iter__(self) -> Iterator[Hold]:
        return iter(sorted(hold for hold in self._heap if not hold.released))


class Segments:
    """Where the owner's segments begin. The first one is the oldest that is not wholly expired."""

    def __init__(self, maximum: int | None) -> None:
        self._starts: deque[int] = deque()
        self._maximum = maximum

    def __len__(self) -> int:
        return len(self._starts)

    def begin(self, position: int, blocked_by: str) -> None:
        """`JournalFull` when there are as many as allowed."""
        if self._maximum is not None and len(self._starts) >= self._maximum:
            raise JournalFull(1, 0, "segments", blocked_by)
        assert not self._starts or self._starts[-1] <= position, "segments begin in order"
        self._starts.append(position)

    def expire(self, position: int) -> None:
        """Forget those that end at or below `position`; the last one ends nowhere yet."""
        while len(self._starts) > 1 and self._starts[1] <= position:
            self._starts.popleft()

    def starts(self) -> list[int]:
        return list(self._starts)
