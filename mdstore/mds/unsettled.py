"""Directories whose statistics wait to be handed up, by the directory that must be read for it."""

from __future__ import annotations

from collections.abc import Iterator


class Unsettled:
    """Each waits for one: for its parent, or for itself where it cannot be read. The caller holds the core's lock.

    `fresh`: since it was last set to False one is waited for that nobody waited for before.
    """

    __slots__ = ("_behind", "_waits_for", "fresh")

    def __init__(self) -> None:
        self._waits_for: dict[int, int] = {}
        self._behind: dict[int, dict[int, None]] = {}
        self.fresh = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waits_for)

    def __iter__(self) -> Iterator[int]:
        """Those that wait."""
        return iter(self._waits_for)

    def add(self, ino: int, awaited: int) -> None:
        """It waits for that one, and for no other any more."""
        if self._waits_for.get(ino) == awaited:
            return
        self.discard(ino)
        self._waits_for[ino] = awaited
        self.fresh |= awaited not in self._behind
        self._behind.setdefault(awaited, {})[ino] = None

    def discard(self, ino: int) -> None:
        """It waits no more; nothing where it did not."""
        awaited = self._waits_for.pop(ino, None)
        if awaited is not None:
            behind = self._behind[awaited]
            del behind[ino]
            if not behind:
                del self._behind[awaited]

    def awaited(self) -> list[int]:
        """Those that are waited for, each once, the longest awaited first."""
        return list(self._behind)

    def behind(self, awaited: int) -> list[int]:
        """Those that wait for that one."""
        return list(self._behind.get(awaited, ()))

    def clear(self) -> None:
        """Nobody waits."""
        self._waits_for.clear()
        self._behind.clear()
