"""Whose turn it is to write: group commit without a thread of its own.

Whoever waits for a position while nobody writes becomes the leader: it writes everything appended so far, flushes once,
and has all woken whose position is covered. If some wait for more, one of them is made the next leader, so the turn is
never lost and never held by two.

Waking is a chain: the leader wakes one thread, whoever wakes first wakes the next. Woken all at once they would only queue
for the interpreter's lock, and sleep a second time there. The next leader is the first of the chain: the others come back,
append and wait again while it writes, so the groups of two following flushes are about equal. Woken last, it would
find everybody behind it, and the one who had just led would at once lead a flush for itself alone.

An interrupt (KeyboardInterrupt, any exception raised in a thread from outside) may come behind every call and at the beginning of
every function, also here. So each change of what several threads look at is made between two such places, or is such that
`abandon`, which an interrupted thread ends with, finds what is left to do.
"""

from __future__ import annotations

import threading
from _thread import LockType
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable
from typing import Final

Callback = Callable[[BaseException | None], None]
FOR_EVER: Final = -1.0


class Parked:
    """A thread on its way to the turn, or to `position`, whichever comes first."""

    __slots__ = ("leader", "left", "position", "wake")

    wake: LockType  # once it is parked; held until it is woken

    def __init__(self, position: int) -> None:
        self.position = position
        self.leader = False
        self.left = False  # with an exception, all of `abandon` done


class Due:
    """A callback whose position is covered, and what it is to be told."""

    __slots__ = ("callback", "error", "is_again")

    def __init__(self, callback: Callback, error: BaseException | None) -> None:
        self.callback = callback
        self.error = error
        self.is_again = False  # it was interrupted once


class Turns:
    """Invariants:

    T1  at most one thread is leader: that of `_owner`
    T2  a thread is in `_parked` from `take` until it is made leader, is covered, or leaves; after the first two it is
        woken, once
    T3  nobody is parked while there is no leader
    T4  while somebody is covered and not woken, there is a thread, woken and not yet back, that will wake the next
    T5  whoever called `take` ends with `give`, with a `sleep` that returns False, or with `abandon`
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._owner: Parked | None = None
        self._lock = lock  # guards all of this but `_covered`, and the positions of the journal
        self._parked: list[Parked] = []
        self._covered: deque[LockType] = deque()  # the wakes that are due, the oldest first
        # Taking a wake out and releasing it is one step of the interpreter: an interrupt between the two would break the chain.
        self._wakes = map(LockType.release, iter(self._covered.popleft, None))
        self._callbacks: list[tuple[int, int, Callback]] = []  # in order
        self._due: deque[Due] = deque()
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether somebody leads, or was made leader."""
        return self._owner is not None

    def take(self, me: Parked) -> bool:
        """With the lock held: take the turn, or stand in line behind the present leader.

        True: this thread is the leader now and must call `give`. Otherwise it must call `sleep`, without the lock.
        """
        if self._owner is None:
            self._owner = me
            return True
        wake = threading.Lock()
        wake.acquire()
        me.wake = wake
        self._parked.append(me)
        return False

    def sleep(self, me: Parked, timeout: float | None) -> bool:
        """Without the lock: wait for the present leader.

        True: this thread is the leader now and must call `give`. False: the leader before covered its position, or
        failed. `TimeoutError` when neither happened in time.
        """
        if not me.wake.acquire(timeout=FOR_EVER if timeout is None else max(0.0, timeout)):
            self._give_up(me, timeout)
        self._wake_next()
        return me.leader

    def _give_up(self, me: Parked, timeout: float | None) -> None:
        """`TimeoutError`, unless it was made leader or covered meanwhile and only its wake is still on the way."""
        with self._lock:
            if me in self._parked:
                self._parked.remove(me)
                raise TimeoutError(f"position {me.position} is not durable after {timeout} s")

    def is_of(self, me: Parked) -> bool:
        """Whether that thread leads, or was made leader."""
        return me is self._owner

    def abandon(self, me: Parked, safe: int, error: BaseException | None) -> None:
        """Without the lock, by a thread that leaves with an exception: it is not made leader later, keeps no turn that it was
        given or had taken, and has the next one woken whom it may have been about to wake. Interrupted, it is to be called
        again, until `me.left`."""
        with self._lock:
            if me in self._parked:
                self._parked.remove(me)
            elif me is self._owner:
                self.give(safe, error)
        self._wake_next()
        try:
            self.call_due()
        except Exception:  # a callback's own, which keeps no other one from being called
            me.left = not self._due
            raise
        me.left = True

    def _wake_next(self) -> None:
        if self._covered:
            try:  # once for every commit: `suppress` takes three times as long
                next(self._wakes)
            except IndexError:  # somebody else was quicker
                pass

    def give(self, safe: int, error: BaseException | None) -> None:
        """With the lock held, by the leader: end the turn. `call_due` must follow, without the lock."""
        assert self._owner is not None, "T1: a turn was given that nobody had"
        parked = self._parked
        if parked:
            covered = [each.wake for each in parked if error is not None or each.position <= safe]
            self._parked = [each for each in parked if error is None and each.position > safe]
            self._covered.extend(covered)
        if self._callbacks:
            self._set_due(safe, error)
        self._hand_on()

    def _hand_on(self) -> None:
        """Make the one who has waited longest the leader; it begins the chain. Without one the turn is free."""
        if self._parked:
            following = self._parked[0]
            self._owner = following
            following.leader = True
            del self._parked[0]
            following.wake.release()
        else:
            self._owner = None
            self._wake_next()

    # -- callbacks -----------------------------------------------------------------------------------------------------

    def add(self, position: int, callback: Callback) -> None:
        """With the lock held: remember `callback` until `position` is covered."""
        self._count += 1
        insort(self._callbacks, (position, self._count, callback))

    def _set_due(self, safe: int, error: BaseException | None) -> None:
        every = self._callbacks
        count = len(every) if error is not None else bisect_right(every, safe, key=_position)
        now = [Due(callback, error) for _, _, callback in every[:count]]
        self._callbacks = every[count:]
        self._due += now

    def call_due(self) -> None:
        """Without the lock: call the callbacks that are due. One that was interrupted is called again by `abandon`, once: it may
        be its own SystemExit, which it would raise for ever."""
        due: Due | None = None
        try:
            while self._due:
                with self._lock:
                    if not self._due:
                        return
                    due = self._due[0]
                    del self._due[0]
                due.callback(due.error)
                due = None
        except BaseException as error:
            if due is not None and not due.is_again and not isinstance(error, Exception):
                due.is_again = True
                self._due.appendleft(due)
            raise


def _position(waiting: tuple[int, int, Callback]) -> int:
    return waiting[0]
