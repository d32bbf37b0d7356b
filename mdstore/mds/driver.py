"""The one place of the metadata server with a clock and a thread: it lets time pass for a server that is told the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from mdstore.errors import MdstoreError

EVERY_S: Final = 0.5
WORK_PAUSE_S: Final = 0.01  # between two pieces of background work, which leaves most of the time to everybody else


class Ticking(Protocol):
    """What is driven: `MetadataServer`."""

    def tick(self, now_ns: int) -> None: ...
    def background_work(self) -> bool: ...


class Driver:
    """Calls `tick` every so often, in a thread of its own, from `__enter__` to `__exit__`; in between, background work, piece by
    piece, while there is any.

    A tick that fails ends it: the server is latched then and tells everybody itself; `error` keeps the reason and `failed` is
    told once. What was written before the last tick but one is durable, give or take the time a flush takes.
    """

    def __init__(
        self, server: Ticking, *, every_s: float = EVERY_S, clock: Callable[[], int] = time.time_ns,
        failed: Callable[[MdstoreError], None] | None = None,
    ) -> None:  # fmt: skip
        self.error: MdstoreError | None = None
        self._server = server
        self._every_s = every_s
        self._clock = clock
        self._failed = failed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mdstore-tick", daemon=True)

    def __enter__(self) -> Driver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns when no tick is running any more. Writes nothing: `close` of the server does."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._server.tick(self._clock())
                self._work()
            except MdstoreError as error:
                self.error = error
                if self._failed is not None:
                    self._failed(error)
                return

    def _work(self) -> None:
        """Background work for as long as it is not time for the next tick."""
        pieces = max(1, int(self._every_s / (2 * WORK_PAUSE_S)))
        for _ in range(pieces):
            if not self._server.background_work() or self._ended.wait(WORK_PAUSE_S):
                return
