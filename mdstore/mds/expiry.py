"""Letting the log forget: which of what is written back is durable, and what of the log nobody needs any more."""

from __future__ import annotations

from collections import deque

from journal import JournalError
from mdstore.engines.protocol import Commit
from mdstore.mds.core import Core
from mdstore.mds.tables import Table


class Expiry:
    """The commits of write-back, and the end of the log that they allow. The caller holds the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pending: deque[tuple[list[Commit], int]] = deque()
        self._commits: list[Commit] = []

    @property
    def log_bytes(self) -> int:
        """Log that a crash at this moment would have to replay."""
        journal = self._core.journal
        return 0 if journal is None else journal.write - journal.expire

    def dirty_tables(self) -> list[Table]:
        """The tables that are not written back."""
        return [table for table in self._core.tables.values() if table.since >= 0]

    def submitted(self, commit: Commit) -> None:
        """Write-back waits for one more."""
        self._commits.append(commit)

    def note(self) -> None:
        """Once the commits so far are durable, nothing before the oldest change still in memory is needed."""
        core = self._core
        if core.replaying or core.journal is None:
            self._commits = self._commits[-1:] if core.ordered else self._commits
            return
        oldest = [directory.since for directory in list(core.dirty.values())[:1]]
        oldest += [table.since for table in self.dirty_tables()]
        commits = self._commits[-1:] if core.ordered else self._commits
        self._pending.append((commits, min(oldest, default=core.position())))
        self._commits = []  # interrupted before it, they are waited for twice

    def retire(self) -> None:
        """Tell the log what it may forget; whole periods of it are given up. Waits for nothing, except that giving up a period
        writes the log's heads."""
        core, journal = self._core, self._core.journal
        if journal is None:
            return
        expire = -1
        while self._pending:
            commits, position = self._pending[0]
            if position > journal.safe or not all(commit.durable for commit in commits):
                break
            self._pending.popleft()
            expire = position
        written = all(commit.durable for commit in self._commits)  # of a replay, or of a step that was interrupted behind them
        if written and not self._pending and not core.dirty and not self.dirty_tables():
            expire = journal.safe  # also what replay found to be in the objects already
        if expire <= journal.expire:
            return
        try:
            journal.set_expire(expire)
            journal.trim()
        except JournalError as error:
            raise core.fail(error) from error

    def commit_and_retire(self) -> None:
        """Everything written back, and everything in the log, is durable when this returns."""
        core = self._core
        core.flush_log()
        if self._commits:
            self.note()
        for commits, _ in self._pending:
            for commit in commits:
                commit.wait()
        self.retire()

    def blocked_by(self) -> str:
        """What keeps the oldest log from being forgotten."""
        for directory in self._core.dirty.values():
            cause = self._core.apart.get(directory.ino)
            why = "" if cause is None else f", which cannot be written: {cause.error}"
            return f"directory {directory.ino:#x} with {len(directory.changed)} changed entries{why}"
        return "write-back not durable yet" if self._pending else "nothing"
