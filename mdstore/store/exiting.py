"""The end of the interpreter, where stores are still open.

1. The threads that are no daemons have ended, and what `atexit` was given is called: here each open store ends the checkpoint
   that is under way, and begins none in the background any more (`_settle`). It is not closed: whoever left it may still do that.
2. Then the interpreter stops all threads but one for good, each wherever it is, with whatever locks it holds. A lock that the
   last thread cannot have at once it will never have (`are_free`); whoever would wait for one gives up instead.

A child that was forked has none of the threads, and settles only what it opens itself.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet


class Settling(Protocol):
    """Something with work in the background."""

    def stop(self) -> None:
        """No work is under way when this returns, and none is begun."""


class Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


_open: WeakSet[Settling] = WeakSet()


def watch(thing: Settling) -> None:
    """Have `thing.stop` called before threads are stopped, if it is still alive then."""
    _open.add(thing)


def are_free(locks: Iterable[Lock]) -> bool:
    """Whether this thread could have each of them at once."""
    return all(_is_free(lock) for lock in locks)


def _is_free(lock: Lock) -> bool:
    is_had = lock.acquire(blocking=False)
    if is_had:
        lock.release()
    return is_had


@atexit.register
def _settle() -> None:
    for thing in list(_open):
        thing.stop()


os.register_at_fork(after_in_child=_open.clear)
