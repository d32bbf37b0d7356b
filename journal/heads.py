"""Writing heads, and the first steps of a generation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from journal.errors import UnsupportedJournal
from journal.head import COPIES, Head, decode_head
from journal.medium import Medium


def write_copies(medium: Medium, head: Head) -> Head:
    """Both copies describe `head`, durably, when this returns; returns it with its new number.

    One copy after the other, each with its own flush: whichever tears, the other one is whole and as good.
    """
    copies = following(head)
    for copy in copies:
        medium.write_head(copy.number % COPIES, copy.encode())
        medium.flush()
    return copies[-1]


def following(head: Head) -> list[Head]:
    """The copies that describe `head`, in the order they are written, numbered behind it."""
    return [replace(head, number=head.number + step) for step in range(1, COPIES + 1)]


def copies_of(medium: Medium, head: Head) -> list[bytes]:
    """What the slots hold once `head` is written behind whatever is there."""
    written = following(replace(head, number=highest_number(medium)))
    return [copy.encode() for copy in sorted(written, key=lambda copy: copy.number % COPIES)]


def highest_number(medium: Medium) -> int:
    """The highest number of any head copy that can be read; 0 where there is none. New copies must be above it."""
    found = 0
    for copy in medium.read_heads():
        try:
            head = decode_head(copy)
        except UnsupportedJournal:
            continue  # another version's: its number means nothing here, and both slots are about to be overwritten
        found = max(found, head.number) if isinstance(head, Head) else found
    return found


class HeadKeeper:
    """The last durable head, and the lock under which heads, and whatever must not overlap with them, are written.

    H1  `durable` is on the medium in both copies
    H2  `begun` is true once a head of this generation is durable, and everything behind `begin` is gone; before, nothing
        of this generation is written
    """

    def __init__(self, medium: Medium, durable: Head, begin: int, dirty_end: int) -> None:
        self.durable = durable
        self.begun = False
        self.begin = begin
        self.written = 0  # copies
        self._medium = medium
        self._dirty_end = dirty_end
        self._lock = threading.Lock()

    def cut(self, begin: int, end: int) -> None:
        """Begin at an earlier position than recovery found; entries up to `end` go with what lies behind it."""
        assert not self.begun, "entries of this generation may follow"
        self.begin = begin
        self._dirty_end = max(self._dirty_end, end)

    def ensure_begun(self, current: Callable[[], Head], trimmed: int) -> None:
        """Before the first write of this generation: what recovery found behind the end is durably gone, then the
        generation is durable. Then the trim that a crash may have cut short is finished."""
        if not self.begun:
            with self._lock:
                self._begin(current, trimmed)

    def _begin(self, current: Callable[[], Head], trimmed: int) -> None:
        if self.begun:
            return
        self._medium.truncate(self.begin, self._dirty_end)
        self._write(current())
        self._medium.trim(trimmed)
        self.begun = True

    def write(self, current: Callable[[], Head]) -> None:
        """Write what `current` says. Two flushes."""
        with self._lock:
            self._write(current())

    def _write(self, head: Head) -> None:
        self.durable = write_copies(self._medium, replace(head, number=self.durable.number))
        self.written += COPIES

    @property
    def busy(self) -> bool:
        """Whether a head is being written, or what must not overlap with one is under way."""
        return self._lock.locked()

    def alone(self, action: Callable[[], None]) -> None:
        """Run `action` while no head is written."""
        with self._lock:
            action()
