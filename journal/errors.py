"""Every exception of the journal, typed by what the caller can do about it.

| class            | the caller should                                                                 |
|------------------|-----------------------------------------------------------------------------------|
| NoJournal        | create one, or check the place: no head was ever written there                     |
| HeadLost         | run head recovery: both head copies are unreadable                                |
| UnsupportedJournal | use the version that wrote it                                                   |
| WrongGeometry    | open it with the geometry it was made with; the head names that                   |
| JournalCorrupt   | stop: bytes known to have been durable are damaged; inspect, then decide          |
| MediumUnreadable | copy the medium, or recover from the copy: it does not give bytes that are needed   |
| JournalTrimmed   | restart from `trimmed`: the position asked for is gone                            |
| JournalFull      | expire and trim, then retry; nothing was appended                                 |
| EntryTooLarge    | send something smaller; nothing was appended                                      |
| JournalReadOnly  | open it for writing, or stop writing                                              |
| JournalClosed    | open it again                                                                     |
| JournalFailed    | reopen: a write or flush failed; what was acknowledged is on the medium           |
| JournalFenced    | stop: another writer has taken over                                               |
| DumpDamaged      | use another copy of the dump; nothing was written                                 |
| LogChanged       | keep what is there: the change cannot be taken back alone; nothing was written    |
| JournalBusy      | try again later: a rewrite of the log is under way                                |
"""

from __future__ import annotations


class JournalError(Exception):
    """Base of everything the journal raises on purpose."""


class NoJournal(JournalError):
    """No head copy holds anything: no journal was created here."""

    def __init__(self, where: str) -> None:
        self.where = where
        super().__init__(f"no journal at {where}: both head copies are empty")


class HeadLost(JournalError):
    """No head copy is intact. `reasons` says what is wrong with each."""

    def __init__(self, where: str, reasons: list[str]) -> None:
        self.where = where
        self.reasons = reasons
        super().__init__(f"no intact journal head at {where}: {'; '.join(reasons)}")


class UnsupportedJournal(JournalError):
    """A head, or an entry, of a format version or with flags this version does not know."""

    def __init__(self, what: str, found: object) -> None:
        self.what = what
        self.found = found
        super().__init__(f"unsupported {what}: {found}")


class WrongGeometry(JournalError):
    """The place is not shaped as the head says: `field` is `found` there and `expected` by the head."""

    def __init__(self, field: str, expected: int, found: int) -> None:
        self.field = field
        self.expected = expected
        self.found = found
        super().__init__(f"the journal was made with {field} {expected}, it is opened with {found}")


class JournalCorrupt(JournalError):
    """Bytes at `position` are not what was made durable there; `evidence` says how that is known."""

    def __init__(self, position: int, found: str, evidence: str) -> None:
        self.position = position
        self.found = found
        self.evidence = evidence
        super().__init__(f"journal damaged at position {position}: {found}; {evidence}")


class MediumUnreadable(JournalError):
    """A medium does not give bytes that it holds (a bad sector). `cause` is the device's own error."""

    def __init__(self, where: str, cause: BaseException) -> None:
        self.where = where
        self.cause = cause
        super().__init__(f"bytes of the log that cannot be read at {where}: {cause}")


class JournalTrimmed(JournalError):
    """`position` is below `trimmed`: the medium may have forgotten it."""

    def __init__(self, position: int, trimmed: int) -> None:
        self.position = position
        self.trimmed = trimmed
        super().__init__(f"position {position} is gone: the journal is trimmed up to {trimmed}")


class JournalFull(JournalError):
    """The entry does not fit. `ceiling` names what was reached, `blocked_by` who keeps the oldest entries alive."""

    def __init__(self, need: int, free: int, ceiling: str = "capacity", blocked_by: str = "") -> None:
        self.need = need
        self.free = free
        self.ceiling = ceiling
        self.blocked_by = blocked_by
        because = f"; the oldest entries are kept by {blocked_by}" if blocked_by else ""
        super().__init__(f"journal full ({ceiling}): {need} needed, {free} left{because}")


class EntryTooLarge(JournalError):
    """A payload over the limit."""

    def __init__(self, size: int, maximum: int) -> None:
        self.size = size
        self.maximum = maximum
        super().__init__(f"entry of {size} bytes, at most {maximum} are allowed")


class JournalReadOnly(JournalError):
    """A write was asked of a journal opened read-only."""


class JournalClosed(JournalError):
    """The journal was closed."""


class DumpDamaged(JournalError):
    """A dump, or an undo file, is not what was written, or is of a log that does not fit this place."""

    def __init__(self, offset: int, reason: str) -> None:
        self.offset = offset
        self.reason = reason
        super().__init__(f"dump damaged at byte {offset}: {reason}")


class LogChanged(JournalError):
    """The log is not as the change left it that was to be taken back: it was written since, or is another one."""

    def __init__(self, where: str) -> None:
        self.where = where
        super().__init__(
            f"the log at {where} was written since the undo file was made, or is another log: what was acknowledged since would "
            "be lost; nothing was changed"
        )


class JournalBusy(JournalError):
    """A rewrite of the log is under way, so what is read now may be about to be replaced."""


class JournalFailed(JournalError):
    """A write or flush of the medium failed. The journal is latched: every later call raises this same error."""

    def __init__(self, operation: str, position: int, cause: BaseException) -> None:
        self.operation = operation
        self.position = position
        self.cause = cause
        super().__init__(f"journal {operation} failed at position {position}: {cause!r}")


class JournalFenced(JournalError):
    """The medium refused a write: `epoch` is below the `floor` another writer has set at `where`. Latched."""

    def __init__(self, where: str, epoch: int, floor: int) -> None:
        self.where = where
        self.epoch = epoch
        self.floor = floor
        super().__init__(f"journal writer fenced at {where}: epoch {epoch} is below the floor {floor}")
