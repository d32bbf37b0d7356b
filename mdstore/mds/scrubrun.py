"""A scrub beside everything else: started, watched and stopped by whoever asks, worked on in small pieces.

| state    | goes to            | when                                                     |
|----------|--------------------|----------------------------------------------------------|
| none     | running            | `start`; also from the three states below                |
| running  | finished           | everything was looked at; a row of the server table says so |
| running  | stopped            | `stop`                                                   |
| running  | failed             | the log or the store failed                              |
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from mdstore.errors import Conflict, MdstoreError
from mdstore.mds.core import Core
from mdstore.mds.events import Kind
from mdstore.mds.layout import Tab
from mdstore.mds.scrub import Problem, Scrub

LAST_SCRUB_KEY: Final = b"last_scrub"
LAST_SCRUB: Final = struct.Struct("<qQQQQ")  # finished at, directories, entries, problems, repaired
PROBLEMS_KEPT: Final = 100
assert LAST_SCRUB.size == 40


class LastScrub(NamedTuple):
    """The row about the scrub that was finished last."""

    finished_at: int
    directories: int
    entries: int
    problems: int
    repaired: int


class ScrubRun:
    """At most one scrub at a time. `make(repair)` makes one. Safe to call from many threads."""

    def __init__(self, core: Core, make: Callable[[bool], Scrub]) -> None:
        self._core = core
        self._make = make
        self._scrub: Scrub | None = None
        self._state = "none"
        self._repair = False
        self._begin()

    def _begin(self) -> None:
        self._kept: list[Problem] = []
        self._counts: Counter[str] = Counter()
        self._repaired = 0
        self._error = ""

    def start(self, *, repair: bool) -> None:
        """Begin from the root. Conflict while one is running; ReadOnly for a repair of what cannot be changed."""
        with self._core.lock:
            if self._scrub is not None:
                raise Conflict("a scrub is running; stop it, or wait for its end")
            if repair:
                self._core.assert_writable()
            self._begin()
            self._scrub = self._make(repair)
            self._repair = repair
            self._state = "running"

    def stop(self) -> None:
        """Let go of the running scrub, if there is one; what it repaired stays so."""
        with self._core.lock:
            self._end("stopped")

    def step(self) -> bool:
        """Work on it for one page of entries; False when nothing runs. Cost: some milliseconds under the lock."""
        with self._core.guard:
            scrub = self._scrub
            if scrub is None:
                return False
            try:
                more = scrub.step()
                self._note(scrub)
                if not more:
                    self._finish(scrub)
            except MdstoreError as error:
                self._error = str(error)
                self._end("failed")
        return self._scrub is not None

    def _note(self, scrub: Scrub) -> None:
        for problem in scrub.take():
            self._counts[problem.check] += 1
            self._repaired += problem.repaired
            if len(self._kept) < PROBLEMS_KEPT:
                self._kept.append(problem)

    def _finish(self, scrub: Scrub) -> None:
        core, done = self._core, scrub.progress
        if core.is_writable():
            last = (core.clock(), done.directories, done.entries, self._counts.total(), self._repaired)
            core.append(Kind.TABLE, core.put_row(core.tables[Tab.SERVER], LAST_SCRUB_KEY, LAST_SCRUB.pack(*last)))
        self._progress = done
        self._end("finished")

    def _end(self, state: str) -> None:
        scrub, self._scrub = self._scrub, None
        if scrub is not None:
            self._progress = scrub.progress
            self._state = state
            scrub.close()

    def status(self) -> dict[str, Any]:
        """Plain values: state, progress, problems by check, the first of them in words, and the last finished one."""
        with self._core.lock:
            found: dict[str, Any] = {"state": self._state, "repair": self._repair}
            if self._state != "none":
                progress = self._progress if self._scrub is None else self._scrub.progress
                found.update(progress._asdict())
                found.update(problems=self._counts.total(), repaired=self._repaired, by_check=dict(sorted(self._counts.items())))
                found["first_problems"] = [problem._asdict() for problem in self._kept]
            if self._error:
                found["error"] = self._error
            with suppress(MdstoreError):  # of a store that failed; the state says so
                last = self.last()
                found["last"] = None if last is None else last._asdict()
            return found

    def last(self) -> LastScrub | None:
        """The scrub that was finished last, by this server or one before it."""
        raw = self._core.tables[Tab.SERVER].get(LAST_SCRUB_KEY)
        return LastScrub(*LAST_SCRUB.unpack(raw)) if raw is not None and len(raw) == LAST_SCRUB.size else None
