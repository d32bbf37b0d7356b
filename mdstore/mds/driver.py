"""The one place of the metadata server with a clock and a thread: it lets time pass for a server that is told the time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from mdstore.store import exiting
from mdstore.store.uninterrupted import AutoResetEvent, join

EVERY_S: Final = 0.5
WORK_PAUSE_S: Final = 0.01  # between two pieces of background work, which leaves most of the time to everybody else
SETTLE_S: Final = 10.0  # that the end of the interpreter waits for a tick, which may wait for a thread that never goes on


class Ticking(Protocol):
    """What is driven: `MetadataServer`."""

    def tick(self, now_ns: int) -> None: ...
    def background_work(self) -> bool: ...


class Driver:
    """Calls `tick` every so often, in a thread of its own, from `__enter__` to `__exit__`; in between, background work, piece by
    piece, while there is any.

    A tick that fails ends it, whatever it fails with: nothing becomes durable by itself any more, so `failed` is told, once, and
    has the server fall back; `error` keeps the reason. What was written before the last tick but one is durable, give or take
    the time a flush takes.

    Left open, it ends with the interpreter: the tick that is under way is waited for before threads are stopped, up to
    `SETTLE_S`, so that the server is found at rest, and can be closed in order.
    """

    def __init__(
        self, server: Ticking, *, every_s: float = EVERY_S, clock: Callable[[], int] = time.time_ns,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:  # fmt: skip
        self.error: Exception | None = None
        self._server = server
        self._every_s = every_s
        self._clock = clock
        self._failed = failed
        self._is_ended = False
        self._woken = AutoResetEvent()
        self._thread = threading.Thread(target=self._run, name="mdstore-tick", daemon=True)

    def __enter__(self) -> Driver:
        if not sys.is_finalizing():  # there is no thread to be had there
            self._thread.start()
        exiting.watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns when no tick is running any more; at the end of the interpreter, which may have stopped one in the middle, and
        inside a tick, which is the last one then, at once. Writes nothing: `close` of the server does."""
        self._end()
        if not self._is_here:
            join(self._thread)

    def stop(self) -> None:
        """See `exiting.Settling`; but what takes too long is left to be stopped. Inside a tick: that is the last one."""
        self._end()
        if self._thread.is_alive() and not self._is_here:
            self._thread.join(SETTLE_S)

    def _end(self) -> None:
        self._is_ended = True
        self._woken.set()

    @property
    def _is_here(self) -> bool:
        """Whether its thread is the one that asks."""
        return threading.current_thread() is self._thread

    def _pause(self, pause_s: float) -> bool:
        """Whether it is to end, after a pause that its end cuts short."""
        if not self._is_ended:
            self._woken.wait(pause_s)
        return self._is_ended

    def _run(self) -> None:
        while not self._pause(self._every_s) and self.turn():
            pass

    def turn(self, pause_s: float = WORK_PAUSE_S) -> bool:
        """One tick, and background work for as long as it is not time for the next. False when it failed. The thread calls it; so
        may whoever has time pass in steps and did not enter the `with` block."""
        try:
            self._server.tick(self._clock())
            for _ in range(max(1, int(self._every_s / (2 * WORK_PAUSE_S)))):
                if not self._server.background_work() or self._pause(pause_s):
                    break
        except Exception as error:  # also what nobody foresaw: a thread that just ends would end durability in silence
            self.error = error
            if self._failed is not None:
                self._failed(error)
            return False
        return True
