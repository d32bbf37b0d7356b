"""What becomes of open images in a process that fork(2) makes: they stay with the parent.

The child has the parent's memory, descriptors and, with them, its lock on the image; what both wrote would be one log with two
writers. So whatever is open is left behind in the child: it raises `Forked`, writes nothing, closes nothing of the parent's, and
waits for no lock, since a thread that held one does not exist there. Costs nothing until somebody forks.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

from mdstore.errors import Forked


class Inheritable(Protocol):
    """Something open that a child must not use."""

    def left_behind(self, error: Forked) -> None:
        """In the child, which has one thread: from now on every call raises `error`."""


_open: WeakSet[Inheritable] = WeakSet()
_owner = os.getpid()


def watch(thing: Inheritable) -> None:
    """Have `thing.left_behind` called in every child forked while it is alive."""
    _open.add(thing)


def never_free(things: Iterable[object]) -> None:
    """Have these outlive the process: freeing them would wait for a lock, or write, as if they were this process's own."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _leave_behind() -> None:
    global _owner
    owner, _owner = _owner, os.getpid()
    failure: BaseException | None = None
    for thing in list(_open):
        _open.discard(thing)
        try:
            thing.left_behind(Forked(owner))
        except BaseException as error:  # the others would stay usable
            failure = error
    if failure is not None:
        raise failure  # which the interpreter reports, and goes on


os.register_at_fork(after_in_child=_leave_behind)
