"""The one place of the metadata server with a clock and a thread: it lets time pass for a server that is told the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from mdstore.errors import MdstoreError

EVERY_S: Final = 0.5


class Ticking(Protocol):
    """What is driven: `MetadataServer.tick`."""

    def tick(self, now_ns: int) -> None: ...


class Driver:
    """Calls `tick` every so often, in a thread of its own, from `__enter__` to `__exit__`.

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
            except MdstoreError as error:
                self.error = error
                if self._failed is not None:
                    self._failed(error)
                return
