"""The threads that serve what waits for the medium, beside the loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from mdstore.mds.vfs import Credentials

log = logging.getLogger(__name__)

Task = tuple[int, int, int, Credentials, memoryview]
"""Operation code, unique, nodeid, credentials, and a body that belongs to the task."""


class Workers:
    """`count` threads, started with the first task; each task is served by one of them, in no promised order.

    A plain queue and threads rather than an executor: nobody wants a task's result, and a hand-over is on the way of every
    fsync.
    """

    def __init__(self, count: int, serve: Callable[[int, int, int, Credentials, memoryview], None]) -> None:
        self._count = count
        self._serve = serve
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, task: Task) -> None:
        """Hand a task over. From the loop's thread only."""
        if not self._threads:
            for number in range(self._count):
                thread = threading.Thread(target=self._run, name=f"fuse-worker-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put(task)

    def drain(self) -> None:
        """Serve everything handed over so far and end the threads."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self._serve(*task)
            except Exception:
                # A bug in serving itself: the program that asked waits for ever, so the log must say why.
                log.exception("a FUSE worker failed")
