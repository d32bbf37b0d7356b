"""Work that no interrupt of its caller cuts short: it is done in a thread that nobody else knows of.

An interrupt is what is raised in a thread from outside: KeyboardInterrupt in the main one by a signal, anything in any thread
by PyThreadState_SetAsyncExc. A checkpoint half done could not be told from one that failed. The threads stay for the next
work: starting one costs several times what a checkpoint of a small image in memory does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final, TypeVar

Result = TypeVar("Result")
_IDLE_MOST: Final = 4  # threads that stay
_AT_ONCE: Final = 2  # interrupts at the same moment, besides the first


class _Job:
    """Work for one of the threads, which only one of thread and caller may `claim`."""

    __slots__ = ("claim", "failure", "finished", "result", "wake", "work")

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.claim = threading.Lock()
        self.finished = False
        self.wake = threading.Lock()  # of the caller; held until it is finished
        self.wake.acquire()
        self.result: object = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        if not self.claim.acquire(blocking=False):
            return
        try:
            self.result = self.work()
        except BaseException as error:
            self.failure = error
        self.finished = True
        self.wake.release()


class _Threads:
    """Those of this process. A child that it forks has none of them, and begins anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._idle = 0  # threads that wait for a job that nobody has handed over yet; too few after an interrupt, never too many
        self._own = threading.local()

    @property
    def is_one(self) -> bool:
        """Whether this thread is one of them."""
        return getattr(self._own, "is_one", False)

    def hand_over(self, job: _Job) -> None:
        """RuntimeError: there is no thread to be had."""
        with self._lock:
            has_idle = self._idle > 0
            self._idle -= has_idle
        if not has_idle:
            threading.Thread(target=self._serve, name="mdstore-uninterrupted", daemon=True).start()
        self._jobs.put(job)

    def _serve(self) -> None:
        self._own.is_one = True
        while True:
            self._jobs.get().run()
            with self._lock:
                if self._idle >= _IDLE_MOST:
                    return
                self._idle += 1


_threads = _Threads()


def uninterrupted(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, once it is done; an interrupt meanwhile is raised after it, from what failed. Interrupted
    before it began, it is not begun. It must not take a lock that the caller holds; what the caller holds guards it. Where the
    interpreter ends, which has stopped all other threads, it is done here."""
    if _threads.is_one or sys.is_finalizing():
        return work()
    job = _Job(work)
    interruption: BaseException | None = None
    try:
        _threads.hand_over(job)
    except BaseException as error:
        if job.claim.acquire(blocking=False):  # not begun, and never will be
            if isinstance(error, RuntimeError):
                return work()
            raise
        interruption = error
    while not job.finished:
        try:
            interruption = _finish(job, _AT_ONCE) or interruption
        except BaseException as error:
            interruption = error
    if interruption is not None and job.failure is not None:
        raise interruption from job.failure
    if interruption is not None:
        raise interruption
    if job.failure is not None:
        raise job.failure
    return job.result  # type: ignore[return-value]


def _finish(job: _Job, depth: int) -> BaseException | None:
    """Wait for it; returns the last interrupt, if there was one. The next one may come as this goes back to waiting, where no
    handler is: it is caught one level up, of which there are `depth` and the caller."""
    interruption: BaseException | None = None
    while not job.finished:
        try:
            if depth:
                interruption = _finish(job, depth - 1) or interruption
            else:
                job.wake.acquire()
        except BaseException as error:
            interruption = error
    return interruption


class AutoResetEvent:
    """Has one thread that waits look at what there is to do: what was set before it waits, however often, wakes it once.

    Setting it is one step, which no interrupt divides, and waits for nobody. `threading.Event` takes a lock for it, in Python: an
    interrupt leaves that taken, and a thread that the end of the interpreter stopped has it for good.
    """

    __slots__ = ("_clear",)

    def __init__(self) -> None:
        self._clear = threading.Lock()  # held while it is not set
        self._clear.acquire()

    def set(self) -> None:
        """Wake whoever waits, or who waits next."""
        with suppress(RuntimeError):  # it was set already
            self._clear.release()

    def is_set(self) -> bool:
        """Whether the next `wait` returns at once."""
        return not self._clear.locked()

    def wait(self, timeout_s: float = -1) -> None:
        """Return once it is set, and clear it, or after `timeout_s` (-1: never)."""
        self._clear.acquire(timeout=timeout_s)


def join(thread: threading.Thread) -> None:
    """Wait for its end, but not where the interpreter ends: there it has been stopped for good."""
    if not sys.is_finalizing():
        thread.join()


def _begin_anew() -> None:
    global _threads
    _threads = _Threads()


os.register_at_fork(after_in_child=_begin_anew)
