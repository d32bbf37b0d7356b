"""The end of the interpreter, where stores and metadata servers are still open.

1. The threads that are no daemons have ended, and what `atexit` was given is called: here each open store ends the checkpoint
   that is under way, and begins none in the background any more (`_settle`). It is not closed: whoever left it may still do that.
2. Then the interpreter stops all threads but one for good, each wherever it is, with whatever locks it holds. A lock that the
   last thread cannot have at once it will never have (`are_free`); whoever would wait for one gives up instead. So the first
   call from there on of a store, a view of a snapshot or a metadata server (`EndingLock`) looks whether a thread was stopped
   inside: then it, and every later one, raises DeviceFailed, and the logs stay as they are, with all that was acknowledged.

A child that was forked has none of the threads, and settles only what it opens itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import RLock
from collections.abc import Callable, Iterable
from typing import Final, Protocol
from weakref import WeakMethod, WeakValueDictionary

from mdstore.errors import MdstoreError

STOPPED: Final = "the interpreter ended while a thread was inside; what was acknowledged is in the log: open the image again"


class Settling(Protocol):
    """Something with work in the background."""

    def stop(self) -> None:
        """No work is under way when this returns, and none is begun."""


class Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


_open: WeakValueDictionary[int, Settling] = WeakValueDictionary()
_is_settled = False


def watch(thing: Settling) -> None:
    """Have `thing.stop` called before threads are stopped, if it is still alive then."""
    _open[id(thing)] = thing
    if _is_settled:
        thing.stop()


def are_free(locks: Iterable[Lock]) -> bool:
    """Whether this thread could have each of them at once."""
    return all(_is_free(lock) for lock in locks)


def _is_free(lock: Lock) -> bool:
    is_had = RLock.acquire(lock, blocking=False) if isinstance(lock, RLock) else lock.acquire(blocking=False)
    if is_had:
        lock.release()
    return is_had


class EndingLock(RLock):  # type: ignore[misc]  # final by its stub, a base by its flags: nothing else costs as little
    """The lock that every call of something takes first. Until the end it costs what an RLock costs.

    is_at_rest: whether no thread was stopped inside. give_up: nothing is waited for any more by what the lock guards; returns
    the error that this call, and every later one, raises. Both are methods of the lock's owner, which the lock keeps alive: the
    two are a cycle, which the garbage collector frees. With `keeps_owner=False` the owner goes when its last user does. Then the
    lock does not find it where it is finalized as garbage, because weak references are cleared before that; so that is for an
    owner to which whoever is inside refers: no thread was stopped inside one that is garbage.
    """

    __slots__ = ("_error", "_give_up", "_has_met", "_is_at_rest")

    def __init__(
        self, is_at_rest: Callable[[], bool], give_up: Callable[[], MdstoreError], *, keeps_owner: bool = True
    ) -> None:
        self._is_at_rest = (lambda: is_at_rest) if keeps_owner else WeakMethod(is_at_rest)
        self._give_up = (lambda: give_up) if keeps_owner else WeakMethod(give_up)
        self._has_met = False
        self._error: MdstoreError | None = None

    def meet_end(self) -> None:
        """By the last thread: raise, where it could not have the lock, or what is taken under it."""
        if not self._has_met:
            self._has_met = True  # first: what is at rest now is so until the end, but for this thread
            is_at_rest, give_up = self._is_at_rest(), self._give_up()
            if is_at_rest is not None and give_up is not None and not is_at_rest():
                self._error = give_up()
        if self._error is not None:
            raise self._error.with_traceback(None)


def _acquire(lock: EndingLock, blocking: bool = True, timeout: float = -1) -> bool:
    if sys.is_finalizing():
        lock.meet_end()
    return RLock.acquire(lock, blocking, timeout)


@atexit.register
def _guard_locks() -> None:
    """From here on each `EndingLock` meets the end."""
    EndingLock.acquire = EndingLock.__enter__ = _acquire  # type: ignore[method-assign, assignment]


@atexit.register
def _settle() -> None:
    """All of them, whatever one fails with, and whoever opens another one meanwhile."""
    global _is_settled
    _is_settled = True
    failure: BaseException | None = None
    for known in _open.valuerefs():  # a copy, made in one step
        thing = known()
        try:
            if thing is not None:
                thing.stop()
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure  # which the interpreter reports, and goes on


def _begin_anew() -> None:
    global _is_settled
    _is_settled = False
    _open.clear()


os.register_at_fork(after_in_child=_begin_anew)
