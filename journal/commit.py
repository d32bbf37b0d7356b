"""Whose turn it is to write: group commit without a thread of its own.

Whoever waits for a position while nobody writes becomes the leader: it writes everything appended so far, flushes once,
and wakes all whose position is covered. If some wait for more, one of them is made the next leader before it wakes, so
the turn is never lost and never held by two.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable

Callback = Callable[[BaseException | None], None]


class _Parked:
    """A thread that waits, for `position` or to be made leader."""

    __slots__ = ("leader", "position", "wake")

    def __init__(self, position: int) -> None:
        self.position = position
        self.leader = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Turns:
    """Invariants:

    T1  at most one thread is leader; `busy` is true exactly while there is one
    T2  a parked thread is in `_parked` until it is woken, or has left after a timeout; it is woken once
    T3  nobody is parked while `busy` is false
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.busy = False
        self._lock = lock  # guards all of this, and the positions of the journal
        self._parked: list[_Parked] = []
        self._callbacks: list[tuple[int, int, Callback]] = []
        self._count = 0

    def take(self, position: int, timeout: float | None) -> bool:
        """With the lock held: take the turn, or wait for the present leader. Releases the lock in between.

        True: this thread is the leader now and must call `give`. False: the leader before covered `position`, or
        failed. `TimeoutError` when neither happened in time.
        """
        if not self.busy:
            self.busy = True
            return True
        return self._sleep(self._park(position), timeout)

    def _park(self, position: int) -> _Parked:
        me = _Parked(position)
        self._parked.append(me)
        return me

    def _sleep(self, me: _Parked, timeout: float | None) -> bool:
        self._lock.release()
        try:
            woken = me.wake.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        except BaseException:  # interrupted: it must not be made leader later, nor keep the turn it was just given
            self._lock.acquire()
            self._leave(me)
            raise
        self._lock.acquire()
        if not woken and not me.wake.acquire(blocking=False):
            self._parked.remove(me)
            raise TimeoutError(f"position {me.position} is not durable after {timeout} s")
        return me.leader

    def take_now(self) -> bool:
        """With the lock held: take the turn if nobody has it."""
        if self.busy:
            return False
        self.busy = True
        return True

    def give(self, safe: int, error: BaseException | None) -> list[Callback]:
        """With the lock held, by the leader: end the turn. Returns the callbacks that are due, to call without the lock."""
        assert self.busy, "T1: a turn was given that nobody had"
        self.busy = False
        waiting = []
        for parked in self._parked:
            if error is not None or parked.position <= safe:
                parked.wake.release()
            else:
                waiting.append(parked)
        self._parked = waiting
        self._promote()
        return self._due(safe, error)

    def _promote(self) -> None:
        """Make the one who has waited longest the leader."""
        if self._parked:
            following = self._parked.pop(0)
            following.leader = self.busy = True
            following.wake.release()

    def _leave(self, me: _Parked) -> None:
        if me in self._parked:
            self._parked.remove(me)
        elif me.leader:
            self.busy = False
            self._promote()

    def _due(self, safe: int, error: BaseException | None) -> list[Callback]:
        due = []
        while self._callbacks and (error is not None or self._callbacks[0][0] <= safe):
            due.append(heapq.heappop(self._callbacks)[2])
        return due

    def add(self, position: int, callback: Callback) -> None:
        """With the lock held: remember `callback` until `position` is covered."""
        self._count += 1
        heapq.heappush(self._callbacks, (position, self._count, callback))
