"""Every exception of mdstore, typed by what the caller can do about it.

| class               | the caller should                                                        |
|---------------------|--------------------------------------------------------------------------|
| NotFound            | treat it as an answer: the thing named is not there                       |
| AlreadyExists       | treat it as an answer: the thing named is there already                   |
| Conflict            | look again and retry                                                     |
| InvalidRequest      | correct the call; nothing was changed (an argument of a wrong type: TypeError) |
| LimitExceeded       | send something smaller; the limit and its value are named                |
| NoSpace             | free space or grow the image; nothing was changed                        |
| ReadOnly            | reopen writable, or stop writing                                         |
| CorruptionError     | stop relying on the thing named; run `mdstore fsck`, then repair          |
| DamagedFile         | take another copy of the file, or make it anew                           |
| NotAnImage          | check the path; nothing of ours is there                                 |
| UnsupportedOperation| do without, or use an engine whose `capabilities` name it                 |
| UnsupportedFormat   | use the version of mdstore that wrote it, or upgrade                     |
| ImageBusy           | stop the process named, or wait for it                                   |
| SnapshotBusy        | close whatever reads the snapshot, then try again                         |
| StoreClosed         | open it again; `Forked`: in the process that uses it                      |
| DeviceFailed        | reopen the store; what was acknowledged is on the medium                  |
| InternalError       | open it again, report the bug; nothing half-done was written               |
| FencedError         | stop: another writer has taken over                                      |
| PosixError          | hand its errno to the program that asked                                 |

Every class maps to one errno through `errno_of`, so a mount, a service and a command agree.
"""

from __future__ import annotations

import errno
import os


class MdstoreError(Exception):
    """Base of everything mdstore raises on purpose."""

    errno: int = errno.EIO


class NotFound(MdstoreError):
    """A named thing does not exist: `kind` says which sort (object, collection, attribute, key, path)."""

    errno = errno.ENOENT

    def __init__(self, kind: str, name: object) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"no {kind} {_show(name)}")


class AlreadyExists(MdstoreError):
    """A thing that was to be made exists already."""

    errno = errno.EEXIST

    def __init__(self, kind: str, name: object) -> None:
        self.kind = kind
        self.name = name
        hint = "; open it, or give another name" if kind == "file" else ""
        super().__init__(f"{kind} {_show(name)} exists already{hint}")


class Conflict(MdstoreError):
    """The state moved under the caller: look again and retry."""

    errno = errno.EAGAIN


class InvalidRequest(MdstoreError):
    """The call itself is wrong; nothing was changed."""

    errno = errno.EINVAL


class NotEmpty(InvalidRequest):
    """A collection that still holds objects cannot be removed."""

    errno = errno.ENOTEMPTY


class LimitExceeded(InvalidRequest):
    """A size is over its limit. Fields: `limit` (its name in `mdstore.limits`), `value`, `maximum`."""

    errno = errno.E2BIG

    def __init__(self, limit: str, value: int, maximum: int) -> None:
        self.limit = limit
        self.value = value
        self.maximum = maximum
        super().__init__(f"{show_number(value)} is over the limit of {maximum} ({limit})")


class TransactionError(MdstoreError):
    """Operation `index` of a transaction was refused; no operation of it was applied. `cause` is the typed reason."""

    def __init__(self, index: int, operation: str, cause: MdstoreError) -> None:
        self.index = index
        self.operation = operation
        self.cause = cause
        self.errno = cause.errno
        super().__init__(f"operation {index} ({operation}) refused: {cause}; nothing of the transaction was applied")


class NoSpace(MdstoreError):
    """The image is full. Raised before anything is changed; removing and truncating still work."""

    errno = errno.ENOSPC


class ReadOnly(MdstoreError):
    """A write was asked of something opened, or fallen back to, read-only."""

    errno = errno.EROFS


class CorruptionError(MdstoreError):
    """Bytes on the medium are not what was written there.

    Fields give the evidence: `what` (page, superblock, log entry, data block ...), `where` (address, tree, level, object),
    `expected` and `found`.
    """

    errno = errno.EIO
    remedy = "run `mdstore fsck` on the image"

    def __init__(self, what: str, where: str, expected: object = "", found: object = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        evidence = f": expected {_show(expected)}, found {_show(found)}" if expected != "" or found != "" else ""
        super().__init__(f"damaged {what} at {where}{evidence}; {self.remedy}")


class DamagedFile(CorruptionError):
    """The same of a file that is no image: a dump, a repair file, a crash log."""

    remedy = "the file is not whole: take another copy, or make it anew"


class NotAnImage(MdstoreError):
    """The file or device holds no mdstore image."""

    errno = errno.EINVAL


class UnsupportedOperation(MdstoreError):
    """The engine has no such thing; its `capabilities` say so."""

    errno = errno.EOPNOTSUPP


class UnsupportedFormat(MdstoreError):
    """The image was written by a version, or with a feature, that this version cannot handle."""

    errno = errno.EOPNOTSUPP


class NewerFormat(UnsupportedFormat):
    """A superblock whose checksum is right, and whose version or features are not known here: no damage to be read past.
    `epoch`: its number; None where the version is another, so that nothing else of it can be read."""

    def __init__(self, message: str, epoch: int | None) -> None:
        super().__init__(message)
        self.epoch = epoch


class ImageBusy(MdstoreError):
    """Another process has the image open. `holder` names it."""

    errno = errno.EBUSY

    def __init__(self, path: str, holder: str) -> None:
        self.path = path
        self.holder = holder
        super().__init__(f"{path} is open in {holder}; stop it (or unmount the image) and try again")


class SnapshotBusy(MdstoreError):
    """A snapshot that is to be deleted is still being read. Fields: `name`, `readers` (how many have it open)."""

    errno = errno.EBUSY

    def __init__(self, name: bytes, readers: int) -> None:
        self.name = name
        self.readers = readers
        super().__init__(f"snapshot {_show(name)} is being read ({readers} times open); close that and try again")


class DeviceFailed(MdstoreError):
    """A read, write or flush of the medium failed. After a failed write or flush the store is latched until reopened."""

    errno = errno.EIO

    def __init__(self, operation: str, where: str, cause: BaseException | str) -> None:
        self.operation = operation
        self.where = where
        self.cause = cause
        reason = str(cause) or repr(cause)  # many exceptions, KeyboardInterrupt among them, say nothing but their name
        super().__init__(f"{operation} failed at {where}: {reason}")


class InternalError(MdstoreError):
    """A change met an error that nobody foresaw, and stopped what made it before anything half-done was written: a bug. What was
    acknowledged as durable is on the medium; opening again gives the last whole state."""

    errno = errno.EIO

    def __init__(self, where: str, cause: BaseException) -> None:
        self.where = where
        self.cause = cause
        super().__init__(f"{where} stopped at an unforeseen error, before anything half-done was written: "
                         f"{type(cause).__name__}: {_show(cause)}")  # fmt: skip


class StoreClosed(MdstoreError):
    """The store, tree or handle was closed."""

    errno = errno.EBADF


class Forked(StoreClosed):
    """An image that process `owner` had opened when it forked this one: it stays the parent's. Open it here, once the parent has
    closed it, or hand the work to the parent."""

    def __init__(self, owner: int) -> None:
        self.owner = owner
        super().__init__(f"opened by process {owner}, which forked this one: it cannot be used here; open the image anew instead")


class FencedError(MdstoreError):
    """A write carried an epoch below the floor another writer has set: this writer has been replaced and must stop."""

    errno = errno.ESHUTDOWN

    def __init__(self, where: str, epoch: int, floor: int) -> None:
        self.where = where
        self.epoch = epoch
        self.floor = floor
        super().__init__(f"fenced at {where}: epoch {epoch} is below the floor {floor}")


class PosixError(MdstoreError):
    """A name-space operation failed as POSIX says it must. `errno` is the POSIX number, `subject` the path or inode."""

    def __init__(self, number: int, subject: object = "", reason: str = "") -> None:
        super().__init__(number, subject, reason)
        self.errno = number
        self.subject = subject
        self.reason = reason

    def __str__(self) -> str:
        """Made when it is asked for: most of these are an answer (no such name), not a message to anyone."""
        parts = [errno.errorcode.get(self.errno, str(self.errno)), os.strerror(self.errno)]
        if self.reason:
            parts.append(self.reason)
        if self.subject != "":
            parts.append(_show(self.subject))
        return ": ".join(parts)


def show_number(value: int) -> str:
    """A number for people, whatever its size: Python writes none of thousands of digits."""
    return str(value) if value.bit_length() <= 128 else f"of {value.bit_length()} bits"


def errno_of(error: BaseException) -> int:
    """The errno a mount, service or command answers with for `error`; EIO for what is not ours."""
    if isinstance(error, MdstoreError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO


def _show(name: object) -> str:
    """Bytes readable where they are text and escaped where they are not; never longer than a few lines."""
    text = repr(name.decode("utf-8", "backslashreplace")) if isinstance(name, bytes) else str(name)
    return text if len(text) <= 300 else text[:297] + "..."
