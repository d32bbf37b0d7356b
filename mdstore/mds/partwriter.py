"""From what is dirty to transactions: directories, tables and backtraces, each clean once the last of it was submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from mdstore.errors import MdstoreError, TransactionError
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.expiry import Expiry
from mdstore.mds.inode import Directory
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, META, Tab, directory_object
from mdstore.mds.purge import Purge
from mdstore.mds.setapart import SetApart
from mdstore.mds.tables import Table
from mdstore.store.transaction import Transaction

ENTRY_BYTES: Final = 1024  # a changed entry in a transaction takes no more, but for rare large attributes
ENTRY_SHARE: Final = 32  # of the free blocks, that many for one changed entry: it may rewrite a path of a tree


class Trace(NamedTuple):
    """A backtrace that a data object should have."""

    object_name: bytes
    value: bytes


Part = Directory | Table | Trace  # what is clean, or not, as a whole


class Refused(Exception):
    """A transaction met damage, and changed nothing."""

    def __init__(self, cause: MdstoreError) -> None:
        super().__init__(cause)
        self.cause = cause


class PartWriter:
    """The caller holds the core's lock. `unsettled` gets the directories written during a replay before their statistics were
    handed up."""

    def __init__(self, core: Core, purge: Purge, expiry: Expiry, apart: SetApart, unsettled: dict[int, None]) -> None:
        self._core = core
        self._purge = purge
        self._expiry = expiry
        self._apart = apart
        self._unsettled = unsettled
        self._many = core.store.capabilities.multi_object_transactions
        self._at_once = 1

    def measure(self) -> None:
        """Before `write`: how many changed entries may stand in one transaction, by its size, and, where space is short, by what
        the store may have to keep free for it."""
        free_blocks = int(self._core.store.statistics()["free_bytes"]) >> 12
        self._at_once = max(8, min(self._core.transaction_bytes // ENTRY_BYTES, free_blocks // ENTRY_SHARE))

    def write(self, parts: list[Part]) -> None:
        """Each is clean once the transaction with the last of it was submitted. Those of one that damage refuses are written by
        themselves, and set apart where that is refused, too."""
        transaction, waiting, rows = self._empty(), list[Part](), 0
        for number, part in enumerate(parts, 1):
            waiting.append(part)
            rows += 1 if isinstance(part, Trace) else len(part.changed) + 1
            try:
                transaction = self._add(part, transaction)
                if number < len(parts) and self._many and rows < self._at_once and not self._core.is_full(transaction):
                    continue
                self._submit(transaction)
            except Refused:
                for each in waiting:
                    self._write_alone(each)
            else:
                for each in waiting:
                    self._clean(each)
            transaction, waiting, rows = self._empty(), [], 0

    def _add(self, part: Part, transaction: Transaction) -> Transaction:
        """Add what writes `part`; where that is very much, part of it is submitted first, and the rest returned."""
        if isinstance(part, Trace):
            transaction.setattr(DATA, part.object_name, BACKTRACE_ATTRIBUTE, part.value)
            return transaction
        if isinstance(part, Table):
            return self._rows(transaction, part.object_name, part.changed, may_remove=True)
        name = directory_object(part.ino)
        if part.nlink == 0:
            if part.stored:
                transaction.remove(META, name)
            return transaction
        if not part.stored and len(part.changed) > self._at_once:  # a crash must find a header: of no version, so all is replayed
            transaction.map_set_header(META, name, part.encode_header(version=0))
            transaction = self._submit(transaction)
            part.stored = True
        transaction = self._rows(transaction, name, part.changed, may_remove=part.stored)
        transaction.map_set_header(META, name, part.encode_header())
        return transaction

    def _rows(
        self, transaction: Transaction, name: bytes, changed: Mapping[bytes, bytes | None], *, may_remove: bool
    ) -> Transaction:
        """Set and remove keys of one map, in several transactions where they are many; the last is not submitted. `may_remove`:
        the map is there already."""
        at_once = self._at_once
        items = sorted((key, raw) for key, raw in changed.items() if raw is not None)
        gone = [key for key, raw in changed.items() if raw is None] if may_remove or items else []
        for start in range(0, len(items), at_once):
            transaction.map_set(META, name, items[start : start + at_once])
            if len(items) - start > at_once:
                transaction = self._submit(transaction)
        for start in range(0, len(gone), at_once):
            transaction.map_remove(META, name, gone[start : start + at_once])
            if len(gone) - start > at_once:
                transaction = self._submit(transaction)
        return transaction

    def _clean(self, part: Part) -> None:
        """All of it was submitted."""
        if isinstance(part, Table):
            part.changed.clear()
            part.since = -1
        elif isinstance(part, Directory):
            self._clean_directory(part)

    def _clean_directory(self, directory: Directory) -> None:
        core = self._core
        directory.stored = directory.nlink > 0
        directory.stored_version = directory.version
        del core.dirty[directory.ino]
        directory.since = -1
        if directory.complete and len(directory.entries) != directory.size:
            directory.complete = False  # some entries were in memory only as the bytes that are forgotten now
        directory.changed = {}
        directory.listing = None
        if core.replaying and directory.unsettled:
            self._unsettled[directory.ino] = None
        if directory.nlink == 0:
            self._purge.released(directory)

    def _empty(self) -> Transaction:
        return Transaction(epoch=self._core.epoch)

    def _submit(self, transaction: Transaction) -> Transaction:
        """Submit it, and begin the next. `Refused`, nothing changed, where it meets damage."""
        if transaction.operations:
            try:
                self._expiry.submitted(self._core.store.submit(transaction))
            except TransactionError as error:
                if isinstance(error.cause, UNREADABLE):
                    raise Refused(error.cause) from error
                raise self._core.fail(error) from error
            except MdstoreError as error:
                raise self._core.fail(error) from error
        return self._empty()

    # -- what cannot be written ----------------------------------------------------------------------------------------

    def _write_alone(self, part: Part) -> None:
        """Something that stood in a transaction with it, or it itself, is damaged: write what can be."""
        try:
            self._submit(self._add(part, self._empty()))
        except Refused as refused:
            if isinstance(part, Trace):
                return  # a hint
            if isinstance(part, Table) and part.number == Tab.SERVER:
                self._apart.end_changes(refused.cause)
            if isinstance(part, Table) or (part.nlink and part.stored):
                self._write_fitting(part)
            if isinstance(part, Table) and not part.changed:  # read a moment later
                self._clean(part)
            else:
                self._apart.add(part, refused.cause)
        else:
            self._clean(part)

    def _write_fitting(self, part: Directory | Table) -> None:
        """Write every row that can be. A directory's header stays as it is, so that replay passes over none of the others."""
        name = part.object_name if isinstance(part, Table) else directory_object(part.ino)
        left = set(self._write_rows(name, list(part.changed.items())))
        for key in [key for key in part.changed if key not in left]:
            del part.changed[key]
        if isinstance(part, Directory):
            part.listing = None
            part.complete = part.complete and len(part.entries) == part.size

    def _write_rows(self, name: bytes, rows: list[tuple[bytes, bytes | None]]) -> list[bytes]:
        """Write rows of a map, as many together as can be; the keys of those that cannot."""
        try:
            self._submit(self._rows(self._empty(), name, dict(rows), may_remove=True))
        except Refused:
            if len(rows) == 1:
                return [rows[0][0]]
            middle = len(rows) // 2
            return self._write_rows(name, rows[:middle]) + self._write_rows(name, rows[middle:])
        return []
