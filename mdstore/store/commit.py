"""The handle of a submitted transaction."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from opcode import opmap
from time import perf_counter
from typing import Any, Final

from journal import Journal, JournalError
from mdstore.store.latency import Latencies
from mdstore.store.log import typed
from mdstore.store.operands import check_callback
from mdstore.store.uninterrupted import AutoResetEvent, join

Callback = Callable[[BaseException | None], None]
_RESUME: Final = opmap["RESUME"]  # a function's first instruction that can be interrupted


class Commit:
    """Applied when the caller gets it; durable when `wait` returns."""

    __slots__ = ("_committer", "_journal", "position")

    def __init__(self, journal: Journal, committer: Committer, position: int) -> None:
        self._journal = journal
        self._committer = committer
        self.position = position  # in the log: everything up to it becomes durable together

    @property
    def durable(self) -> bool:
        return self._journal.safe >= self.position

    def wait(self, timeout: float | None = None) -> None:
        """Return when the transaction survives a crash. Whoever waits first writes and flushes for all who wait.

        Cost: at most one vectored write and one flush, shared. DeviceFailed when the medium failed, or where the end of the
        interpreter stopped a thread inside; TimeoutError.
        """
        if self._journal.safe < self.position:
            self._committer.wait(self.position, timeout)

    def add_done_callback(self, callback: Callback) -> None:
        """Call `callback(None)` once durable, or `callback(error)`: at once when that is known, else from the thread that
        flushes (from one of the store's own where that is in the middle of a change or a checkpoint): it may use the store.
        Nobody needs to wait for it to happen. What it raises goes to `threading.excepthook`: it concerns nobody else. Only what
        is no Exception (Ctrl-C, SystemExit) is raised in a thread of the caller's that flushed, once all others were called.
        Once it has begun it is never called again, whatever ends it. DeviceFailed, and it is never called, where the end of the
        interpreter stopped a thread inside."""
        check_callback(callback)
        self._committer.add(self.position, callback)
        if not self.durable:
            self._committer.kick()

    def __await__(self) -> Generator[Any, None, None]:
        """`await` it in a task: durable then, as after `wait`. Tasks share flushes, made in a thread beside their loop."""
        if self.durable:
            return
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[None] = loop.create_future()
        self.add_done_callback(lambda error: _tell(loop, outcome, error))
        yield from outcome


def _tell(loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[None], error: BaseException | None) -> None:
    """From whatever thread flushed."""
    with suppress(RuntimeError):  # the loop was closed: nobody awaits any more
        loop.call_soon_threadsafe(_settle, outcome, error)


def _settle(outcome: asyncio.Future[None], error: BaseException | None) -> None:
    if outcome.done():
        return  # the task was cancelled; the transaction is not
    if error is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(error)


class _Telling:
    """One callback, and whether it has begun: the journal calls this again where it was interrupted."""

    __slots__ = ("_callback", "_committer", "has_begun")

    def __init__(self, callback: Callback, committer: Committer) -> None:
        self._callback = callback
        self._committer = committer
        self.has_begun = False

    def __call__(self, error: BaseException | None) -> None:
        if not self.has_begun:
            self._committer.call_back(self, typed(error) if isinstance(error, JournalError) else error)

    def tell(self, error: BaseException | None) -> None:
        """Call it; what it raises is raised."""
        if self.has_begun:
            return
        try:
            self._callback(error)
        except BaseException as raised:
            self.has_begun = True  # without a call before it: no second interrupt comes between
            if not isinstance(raised, Exception) and _came_first(raised):
                self.has_begun = False
            raise
        self.has_begun = True


def _came_first(interruption: BaseException) -> bool:
    """Whether it came before the first step of what was called where it is handled: at the function's beginning, which is an
    instruction of its own, or right behind that, where nothing else can raise. Functions of C let nothing in before their end."""
    here = interruption.__traceback__
    called = here.tb_next if here is not None else None
    if called is None:
        return False
    begins = called.tb_frame.f_code.co_code[::2].find(_RESUME)
    return called.tb_lasti <= 2 * (begins + 1)


class _Inside(threading.local):
    """How many callbacks, and calls of the log, a thread is inside of."""

    callbacks = 0
    calls = 0


class Committer:
    """A thread, started when first needed, that flushes the log for those who wait by callback instead of in a thread, and calls
    them back where the thread that flushed may not: `is_busy` says so of the one that asks."""

    def __init__(self, journal: Journal, is_busy: Callable[[], bool], meet_end: Callable[[], None]) -> None:
        self._journal = journal
        self._is_busy = is_busy
        self.meet_end = meet_end  # of the interpreter, see `Store.meet_end`
        self._put_off: deque[tuple[_Telling, BaseException | None]] = deque()
        self._wanted = AutoResetEvent()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.lock = threading.RLock()
        self._inside = _Inside()
        self.waits = Latencies()

    def wait(self, position: int, timeout: float | None = None) -> None:
        """Everything below that position of the log is durable when this returns: see `Commit.wait`."""
        self.meet_end()
        began = perf_counter()
        self._inside.calls += 1
        try:
            self._journal.wait(position, timeout)
        except JournalError as error:
            raise typed(error) from error
        finally:
            self._inside.calls -= 1
        self.waits.add(perf_counter() - began)

    def flush(self) -> None:
        """Everything in the log is durable when this returns."""
        self.meet_end()
        self._inside.calls += 1
        try:
            self._journal.flush()
        except JournalError as error:
            raise typed(error) from error
        finally:
            self._inside.calls -= 1

    def add(self, position: int, callback: Callback) -> None:
        """See `Commit.add_done_callback`."""
        self.meet_end()
        self._inside.calls += 1
        try:
            self._journal.add_waiter(position, _Telling(callback, self))
        finally:
            self._inside.calls -= 1

    def call_back(self, callback: _Telling, error: BaseException | None) -> None:
        """Call it, in this thread or, where that is busy, in the committer's."""
        if self._is_busy():
            with self.lock:
                put_off = not self._stopping
                if put_off:
                    self._put_off.append((callback, error))
            if put_off:
                with suppress(RuntimeError):  # no thread to be had now: the next kick starts one, or `stop` calls
                    self._wake()
                return
        self._call(callback, error)

    def _call(self, callback: _Telling, error: BaseException | None) -> None:
        """An interrupt is the thread's own."""
        self._inside.callbacks += 1
        try:
            callback.tell(error)
        except Exception as failure:
            _report(failure)
        finally:
            self._inside.callbacks -= 1

    @property
    def is_inside(self) -> bool:
        """Whether this thread is inside a callback, or in the middle of a call that may hold a lock."""
        inside = self._inside
        return inside.callbacks > 0 or inside.calls > 0 or self.lock._is_owned()  # type: ignore[attr-defined]

    def kick(self) -> None:
        """Have everything appended so far made durable soon, or told that it will not be."""
        if not self._wake():
            self._flush()

    def _wake(self) -> bool:
        """Have the thread look at what there is to do; False: it was stopped. RuntimeError: there is none to be had."""
        if sys.is_finalizing():
            return False  # also one that is started now would wait for ever
        with self.lock:
            stopped = self._stopping
            if self._thread is None and not stopped:
                thread = threading.Thread(target=self._run, name="mdstore-commit", daemon=True)
                thread.start()
                self._thread = thread
        self._wanted.set()
        return not stopped

    def _flush(self) -> None:
        with suppress(JournalError):  # the waiters' callbacks are told, and the journal stays latched
            self._journal.flush()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            try:
                self._call_put_off()
                if not self._stopping:
                    self._flush()
            except BaseException as failure:  # a callback's SystemExit; without this thread nobody would be called any more
                with suppress(BaseException):  # the hook's own, SystemExit too
                    _report(failure)
                if self._put_off or self._stopping:
                    self._wanted.set()
                continue
            if self._stopping:
                self._wanted.set()  # for one that was started beside it, by a caller that was interrupted
                return

    def _call_put_off(self) -> None:
        while self._put_off:
            due = self._put_off[0]
            del self._put_off[0]  # no call between the two: no other thread, and no interrupt
            try:
                self._call(*due)
            except BaseException:
                if not due[0].has_begun:
                    self._put_off.appendleft(due)
                raise

    def stop(self) -> None:
        """Whoever waits by callback and can be told has been told when this returns."""
        with self.lock:
            self._stopping = True
            thread = self._thread
        self._wanted.set()
        if thread is not None:
            join(thread)
        self._call_put_off()


def _report(failure: BaseException) -> None:
    """What a callback raised, where it concerns nobody. A hook that fails itself concerns `sys.excepthook`, as in any thread."""
    told = (type(failure), failure, failure.__traceback__, threading.current_thread())
    try:
        threading.excepthook(threading.ExceptHookArgs(told))
    except Exception as another:
        with suppress(Exception):
            sys.excepthook(type(another), another, another.__traceback__)
