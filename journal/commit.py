"""Whose turn it is to write: group commit without a thread of its own.

Whoever waits for a position while nobody writes becomes the leader: it writes everything appended so far, flushes once,
and has all woken whose position is covered. If some wait for more, one of them is made the next leader, so the turn is
never lost and never held by two.

Waking is a chain: the leader wakes one thread, whoever wakes first wakes the next. Woken all at once they would only queue
for the interpreter's lock, and sleep a second time there. The next leader is the first of the chain: the others come back,
append and wait again while it writes, so the groups of two following flushes are about equal. Woken last, it would
find everybody behind it, and the one who had just led would at once lead a flush for itself alone.
"""

from __future__ import annotations

import heapq
import threading
from _thread import LockType
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

Callback = Callable[[BaseException | None], None]
FOR_EVER: Final = -1.0


class Parked:
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
    T2  a thread is in `_parked` from `take` until it is made leader, is covered, or leaves; after the first two it is
        woken, once
    T3  nobody is parked while `busy` is false
    T4  while somebody is covered and not woken, there is a thread, woken and not yet back, that will wake the next
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.busy = False
        self._lock = lock  # guards all of this but `_covered`, and the positions of the journal
        self._parked: list[Parked] = []
        self._covered: deque[LockType] = deque()  # the wakes that are due, the oldest first
        # Taking a wake out and releasing it is one step of the interpreter: an interrupt between the two would break the chain.
        self._wakes = map(LockType.release, iter(self._covered.popleft, None))
        self._callbacks: list[tuple[int, int, Callback]] = []
        self._count = 0

    def take(self, position: int) -> Parked | None:
        """With the lock held: take the turn, or stand in line behind the present leader.

        None: this thread is the leader now and must call `give`. Otherwise it must call `sleep`, without the lock.
        """
        if not self.busy:
            self.busy = True
            return None
        me = Parked(position)
        self._parked.append(me)
        return me

    def sleep(self, me: Parked, timeout: float | None) -> bool:
        """Without the lock: wait for the present leader.

        True: this thread is the leader now and must call `give`. False: the leader before covered its position, or
        failed. `TimeoutError` when neither happened in time.
        """
        try:
            if not me.wake.acquire(timeout=FOR_EVER if timeout is None else max(0.0, timeout)):
                self._give_up(me, timeout)
            self._wake_next()
        except BaseException:  # too late, or interrupted: it must not be made leader later, nor keep the turn it was just given
            self._leave(me)
            self._wake_next()
            raise
        return me.leader

    def _give_up(self, me: Parked, timeout: float | None) -> None:
        """`TimeoutError`, unless it was made leader or covered meanwhile and only its wake is still on the way."""
        with self._lock:
            if me in self._parked:
                raise TimeoutError(f"position {me.position} is not durable after {timeout} s")

    def _leave(self, me: Parked) -> None:
        with self._lock:
            if me in self._parked:
                self._parked.remove(me)
            elif me.leader:
                self.busy = False
                self._promote()

    def _wake_next(self) -> None:
        if self._covered:
            with suppress(IndexError):  # somebody else was quicker
                next(self._wakes)

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
        if self._parked:
            waiting = []
            for parked in self._parked:
                if error is not None or parked.position <= safe:
                    self._covered.append(parked.wake)
                else:
                    waiting.append(parked)
            self._parked = waiting
            self._promote()
        if not self.busy:  # else the next leader begins the chain
            self._wake_next()
        return self._due(safe, error)

    def _promote(self) -> None:
        """Make the one who has waited longest the leader."""
        if self._parked:
            following = self._parked.pop(0)
            following.leader = self.busy = True
            following.wake.release()

    def _due(self, safe: int, error: BaseException | None) -> list[Callback]:
        due = []
        while self._callbacks and (error is not None or self._callbacks[0][0] <= safe):
            due.append(heapq.heappop(self._callbacks)[2])
        return due

    def add(self, position: int, callback: Callback) -> None:
        """With the lock held: remember `callback` until `position` is covered."""
        self._count += 1
        heapq.heappush(self._callbacks, (position, self._count, callback))
