"""How long callers waited for durability: the last of them, for `Store.statistics`."""

from __future__ import annotations

from typing import Final

KEPT: Final = 2048


class Latencies:
    """A ring of the last `KEPT` durations in seconds. Any thread may add; a race may lose one, never more."""

    __slots__ = ("_durations", "_next", "count", "worst")

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._next = 0
        self.count = 0
        self.worst = 0.0  # of all since the store was opened

    def add(self, seconds: float) -> None:
        """Cost: a few hundred nanoseconds beside a wait for a flush."""
        self.count += 1
        if seconds > self.worst:
            self.worst = seconds
        if len(self._durations) < KEPT:
            self._durations.append(seconds)
        else:
            self._durations[self._next % KEPT] = seconds
            self._next += 1

    def percentiles(self, *fractions: float) -> list[float]:
        """The durations below which that part of the kept ones lies; 0.0 where there is none. Cost: a sort."""
        ordered = sorted(self._durations)
        if not ordered:
            return [0.0] * len(fractions)
        return [ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] for fraction in fractions]
