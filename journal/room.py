"""How much of the log is kept, why, and how much may be appended.

Everything here is guarded by the journal's lock, except for `Hold.release`.
"""

from __future__ import annotations

from typing import Final

from journal.ceilings import Ceilings, Holds, Segments
from journal.errors import JournalFull
from journal.medium import Medium

NO_LIMIT: Final = (1 << 64) - 1


class Room:
    """Invariants:

    R1  trimmed <= expire, and no hold lies below expire (J1, J7)
    R2  `limit` is the position that `write` may not pass: the ring's capacity less one period (J5), or a ceiling
    """

    def __init__(self, medium: Medium, ceilings: Ceilings, trimmed: int, expire: int, replay_rate: float) -> None:
        self.trimmed = trimmed
        self.expire = expire
        self.holds = Holds()
        self.segments = Segments(ceilings.max_segments)
        self.replay_rate = replay_rate  # bytes per second
        self.limit = NO_LIMIT
        self._ceiling = "none"  # what sets the limit
        self._ceilings = ceilings
        self._medium = medium
        self._set_limit()

    def _set_limit(self) -> None:
        limit, ceiling = NO_LIMIT, "none"
        capacity, period = self._medium.capacity, self._medium.period
        if capacity is not None:
            limit, ceiling = self.trimmed - self.trimmed % period + capacity - period, "capacity"
        allowed, name = self._ceilings.tightest(self.replay_rate)
        if allowed is not None and self.expire + allowed < limit:
            limit, ceiling = self.expire + allowed, name
        self.limit, self._ceiling = limit, ceiling

    def expire_to(self, position: int, safe: int) -> None:
        """`ValueError` when it lies below the present one, above what is durable, or beyond a hold."""
        hold = self.holds.oldest()
        highest = safe if hold is None else min(safe, hold.position)
        if not self.expire <= position <= highest:
            because = f"held by {hold.reason}" if hold and highest < safe else "durable"
            raise ValueError(f"expire {position} is not between {self.expire} and {highest} ({because})")
        self.expire = position
        self.segments.expire(position)
        self._set_limit()

    def trim_to(self, target: int) -> None:
        """The medium has given up everything below `target`."""
        self.trimmed = max(self.trimmed, target)
        self._set_limit()

    @property
    def blocked_by(self) -> str:
        """The reason of the oldest hold, or ""."""
        hold = self.holds.oldest()
        return hold.reason if hold is not None else ""

    def require(self, position: int, need: int) -> None:
        """`JournalFull` when `need` bytes do not fit behind `position`."""
        if position + need > self.limit:
            raise JournalFull(need, max(0, self.limit - position), self._ceiling, self.blocked_by)

    def assert_state(self, position: int) -> None:
        if self._medium.capacity is not None:
            assert position - self.trimmed <= self._medium.capacity - self._medium.period, "J5"
        hold = self.holds.oldest()
        assert hold is None or self.expire <= hold.position, "J7"
