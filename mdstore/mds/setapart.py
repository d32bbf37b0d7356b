"""Directories and tables of which damage refuses some entries: set apart, so that everything else goes on.

What can be written of one is, and what cannot stays in memory and in the log, where it is put once more when the log before is to
go. It is tried again when it has grown, before the log has it once more, and by `WriteBack.everything`. Where that is more than
the limits allow, all changes end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NoReturn

from mdstore.errors import MdstoreError
from mdstore.mds.core import Core
from mdstore.mds.damage import note_damage
from mdstore.mds.events import Kind, dir_remove, dir_set, entry_remove, entry_set
from mdstore.mds.inode import Directory
from mdstore.mds.tables import ROW_BYTES, Apart, Held, Table, held_in

CARRIED_TOGETHER: Final = 256  # records of one event


class SetApart:
    """What is set apart: `Core.apart`, and `Table.apart`. The caller holds the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._untold: list[tuple[Directory | Table, MdstoreError]] = []  # not in the damage table yet

    def add(self, part: Directory | Table, cause: MdstoreError) -> None:
        """It stays dirty, its changes stay in the log, and nobody waits for it. As long as they are few: else all changes end."""
        core, apart = self._core, Apart(cause, held_in(part.changed))
        if isinstance(part, Table):
            part.apart = apart
        else:
            core.apart[part.ino] = apart
        self._untold.append((part, cause))
        if self._holds_too_much():
            self.end_changes(cause)

    def end_changes(self, cause: MdstoreError) -> NoReturn:
        """The log is whole: all that it has is saved."""
        with suppress(MdstoreError):
            self._core.flush_log()
        raise self._core.fail(cause)

    def _holds_too_much(self) -> bool:
        """Whether what is set apart is more than memory may hold back, or than the log may carry: that would be rewritten for
        ever. Not in a replay: the limits were others when it was logged, and memory has to hold what the log does."""
        core = self._core
        if core.replaying:
            return False
        held = Held(0, 0)
        for ino in core.apart:
            directory = core.dirty[ino]
            held += Held(1, len(directory.encode_header()) + ROW_BYTES) + held_in(directory.changed)
        for table in core.tables.values():
            if table.apart is not None:
                held += held_in(table.changed)
        return held.entries > core.limits.dirty_entries or held.size > core.limits.log_bytes // 2

    def try_grown(self) -> bool:
        """Most of what was changed since in something set apart can be written: whether there is such a thing. All is tried
        where it became too much."""
        core = self._core
        if self._holds_too_much():
            self.try_again()
            return True
        grown = [ino for ino, apart in core.apart.items() if apart.has_grown(core.dirty[ino].changed)]
        tables = [table for table in core.tables.values() if table.apart is not None and table.apart.has_grown(table.changed)]
        for ino in grown:
            del core.apart[ino]
        for table in tables:
            table.apart = None
        return bool(grown or tables)

    def tell(self) -> None:
        """Put what was set apart lately into the damage table."""
        while self._untold:
            part, cause = self._untold[-1]
            ino, name = (part.ino, b"") if isinstance(part, Directory) else (0, part.object_name)
            note_damage(self._core, ino, name, cause)
            self._untold.pop()

    def try_again(self) -> None:
        """What was set apart is to be written like everything else."""
        self._core.apart.clear()
        for table in self._core.tables.values():
            table.apart = None

    def carry(self) -> None:
        """Put what is set apart into the log once more, all that is not written, so that the log before may go: once all of it is
        there."""
        core = self._core
        for ino in list(core.apart):
            directory, position = core.dirty[ino], core.position()
            gone = directory.nlink == 0
            core.append(Kind.REPAIR, dir_remove(ino) if gone else dir_set(ino, directory.encode_header()))
            version = directory.version
            self._append_some(
                entry_remove(ino, version, name) if raw is None else entry_set(ino, version, name, raw)
                for name, raw in directory.changed.items()
            )
            core.unlogged = True  # C2: an interrupt between these may not let the log go
            del core.dirty[ino]
            directory.since = position
            core.dirty[ino] = directory
            core.unlogged = False
        for table in core.tables.values():
            if table.apart is not None:
                position = core.position()
                self._append_some(table.record(key, raw) for key, raw in table.changed.items())
                table.since = position

    def _append_some(self, records: Iterator[bytes]) -> None:
        while some := b"".join(islice(records, CARRIED_TOGETHER)):
            self._core.append(Kind.REPAIR, some)
