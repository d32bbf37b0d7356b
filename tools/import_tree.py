"""Import: a directory of the machine into a `Vfs`, so that it can be stopped anywhere and run again.

Invariants
1. A copy's time of change is set last, in one step with its mode and owner, and only once its bytes are durable. Until then
   it differs from the source's, so a file whose type, size and time of change are the source's is complete, and a second run
   passes it by.
2. What is acknowledged was durable before the acknowledgement was written: the line follows `syncfs`.
3. Memory: one sorted list of names for each directory on the way down, one entry for each file with several names, a batch
   of entries to finish, and one piece of one file. Lookup references are kept for these and no others.

Entries are finished (1) in batches of 256, so that bytes go to the image in few large transactions with one flush for all.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TextIO

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.vfs import SUPERUSER, Attr, Vfs
from mdstore.tools.import_entry import Imported, Maker, rdev_of
from mdstore.tools.output import Progress, Silent, explain, json_name
from mdstore.tools.source_tree import names_in

BATCH: Final = 256  # entries finished, and acknowledged, together
BATCH_SECONDS: Final = 0.2


class Acknowledger:
    """Writes down what is durable: a JSON string for each path, after `sync` returned, every 256 paths or 0.2 seconds.

    A process that is killed leaves at most one line cut off at the end, which a reader must drop.
    """

    def __init__(self, sync: Callable[[], None], out: TextIO, clock: Callable[[], float]) -> None:
        self._sync = sync
        self._out = out
        self._clock = clock
        self._pending: list[str] = []
        self._since = clock()

    def complete(self, path: bytes) -> None:
        """`path` (relative to the source) is in the image with all its attributes."""
        self._pending.append(json.dumps(json_name(path)))
        if len(self._pending) >= BATCH or self.is_late():
            self.settle()

    def is_late(self) -> bool:
        """Whether somebody has waited long enough for the next line."""
        return self._clock() - self._since >= BATCH_SECONDS

    def settle(self) -> None:
        """Make what is pending durable and say so."""
        if self._pending:
            self._sync()
            self._out.write("\n".join(self._pending) + "\n")
            self._out.flush()
            self._pending.clear()
        self._since = self._clock()


@dataclass(slots=True)
class _Directory:
    """A directory on the way down: what is left of it, and whether its copy was made by this run."""

    path: bytes  # relative to the source
    ino: int
    status: os.stat_result
    names: Iterator[bytes]
    fresh: bool


class _Unfinished(NamedTuple):
    """An entry whose bytes are in the image; its attributes follow when they are durable. `status` None: it has them."""

    path: bytes
    attr: Attr
    status: os.stat_result | None
    new: bool
    keep_reference: bool


class Importer:
    """One run of an import. `complain` is told, a line each, what could not be read; the run goes on without it."""

    def __init__(
        self, vfs: Vfs, source: bytes, *, exclude: tuple[bytes, ...] = (), avoid: tuple[int, int] | None = None,
        acknowledger: Acknowledger | None = None, progress: Progress | None = None, complain: Callable[[str], None],
    ) -> None:  # fmt: skip
        """exclude: patterns of names to leave out. avoid: (st_dev, st_ino) of the image, should it lie in the source."""
        self._vfs = vfs
        self._source = source
        self._exclude = exclude
        self._avoid = avoid
        self._acknowledger = acknowledger
        self._progress = progress or Silent()
        self._complain = complain
        self._stack: list[_Directory] = []
        self._unfinished: list[_Unfinished] = []
        self._linked: dict[tuple[int, int], int] = {}  # (st_dev, st_ino) of a file with several names: its copy's inode
        self.done = Imported()
        self._maker = Maker(vfs, self.done, self._progress, complain)

    def run(self, target: Attr) -> Imported:
        """Copy everything below the source into the directory `target`, and the source's own attributes onto it.

        Everything is durable on return. Errors: OSError when the source itself cannot be read; PosixError with the path
        (ENOSPC, EFBIG, or EISDIR and ENOTDIR where a file and a directory meet under one name); those of the image.
        """
        status = os.stat(self._source)
        names = names_in(self._source, self._exclude)
        self._stack.append(_Directory(b"", target.ino, status, iter(names), fresh=False))
        while self._stack:
            directory = self._stack[-1]
            name = next(directory.names, None)
            if name is None:
                self._leave(self._stack.pop())
            else:
                self._enter(directory, name)
            if len(self._unfinished) >= BATCH or self._is_late():
                self._finish()
        self._finish()
        self._vfs.syncfs()
        if self._acknowledger is not None:
            self._acknowledger.settle()
        for ino in self._linked.values():
            self._vfs.forget(ino, 1)
        return self.done

    # -- directories ---------------------------------------------------------------------------------------------------

    def _enter(self, directory: _Directory, name: bytes) -> None:
        path = directory.path + b"/" + name if directory.path else name
        with self._telling(path):
            status = os.lstat(self._at(path))
            existing = self._existing(directory, name)
            if stat.S_ISDIR(status.st_mode):
                self._descend(directory.ino, name, path, status, existing)
            elif (status.st_dev, status.st_ino) != self._avoid:
                self._copy(directory.ino, name, path, status, existing)

    @contextmanager
    def _telling(self, path: bytes) -> Iterator[None]:
        """Errors of the image name the path and end the run; those of the source are told, and the run goes on."""
        try:
            yield
        except PosixError as error:
            raise PosixError(error.errno, path, error.reason) from error
        except MdstoreError as error:
            if error.errno == errno.ENOSPC:
                raise PosixError(errno.ENOSPC, path) from error
            raise
        except OSError as error:
            self.done.troubles += 1
            self._complain(f"{explain(error)}; left out")

    def _descend(self, parent: int, name: bytes, path: bytes, status: os.stat_result, existing: Attr | None) -> None:
        names = iter(names_in(self._at(path), self._exclude))
        if existing is None:
            ino = self._vfs.mkdir(SUPERUSER, parent, name, 0o700).ino
            self._stack.append(_Directory(path, ino, status, names, fresh=True))
            self.done.directories += 1
            return
        if not stat.S_ISDIR(existing.mode):
            raise PosixError(errno.ENOTDIR, path, "the image holds something else under that name: remove it first")
        self._stack.append(_Directory(path, existing.ino, status, names, fresh=False))

    def _leave(self, directory: _Directory) -> None:
        """All entries are there: now nothing changes the directory's times any more."""
        attr = self._vfs.getattr(directory.ino)
        self._unfinished.append(_Unfinished(directory.path, attr, directory.status, False, not directory.path))

    def _existing(self, directory: _Directory, name: bytes) -> Attr | None:
        """What an earlier run, or somebody else, left under that name; with a lookup reference."""
        if directory.fresh:
            return None
        try:
            return self._vfs.lookup(SUPERUSER, directory.ino, name)
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    # -- everything else -----------------------------------------------------------------------------------------------

    def _copy(self, parent: int, name: bytes, path: bytes, status: os.stat_result, existing: Attr | None) -> None:
        if existing is not None and stat.S_ISDIR(existing.mode):
            raise PosixError(errno.EISDIR, path, "the image holds a directory under that name: remove it first")
        identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
        origin = self._linked.get(identity) if identity is not None else None
        last_reference = identity is None or origin is not None
        if existing is not None and (existing.ino == origin or (origin is None and self._is_complete(existing, path, status))):
            self._unfinished.append(_Unfinished(path, existing, status, False, not last_reference))
            self.done.skipped += 1
            ino = existing.ino
        else:
            if existing is not None:
                self._vfs.unlink(SUPERUSER, parent, name)
                self._vfs.forget(existing.ino, 1)
            ino = self._make(parent, name, path, status, origin, not last_reference)
        if identity is not None:
            self._linked.setdefault(identity, ino)

    def _make(
        self, parent: int, name: bytes, path: bytes, status: os.stat_result, origin: int | None, keep_reference: bool
    ) -> int:
        """A copy of its own, or another name of the copy that is there already; its inode."""
        if origin is None:
            attr, status = self._maker.make(parent, name, self._at(path), status)
            self._unfinished.append(_Unfinished(path, attr, status, True, keep_reference))
        else:
            attr = self._vfs.link(SUPERUSER, origin, parent, name)
            self._unfinished.append(_Unfinished(path, attr, None, False, keep_reference))
            self.done.links += 1
        return attr.ino

    def _is_complete(self, existing: Attr, path: bytes, status: os.stat_result) -> bool:
        if stat.S_IFMT(existing.mode) != stat.S_IFMT(status.st_mode) or existing.mtime_ns != status.st_mtime_ns:
            return False
        if stat.S_ISREG(status.st_mode):
            return existing.size == status.st_size
        if stat.S_ISLNK(status.st_mode):
            return self._vfs.readlink(existing.ino) == os.readlink(self._at(path))
        return existing.rdev == rdev_of(status)

    # -- finishing -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Make the bytes of the batch durable; then, and only then, complete its entries (invariant 1)."""
        with self._telling(self._unfinished[0].path if self._unfinished else b""):
            self._vfs.syncfs()
        for entry in self._unfinished:
            with self._telling(entry.path):
                self._finish_one(entry)
        self._unfinished.clear()

    def _finish_one(self, entry: _Unfinished) -> None:
        if entry.status is not None:
            source = self._at(entry.path) if entry.path else self._source
            self._maker.dress(entry.attr, source, entry.status, new=entry.new)
        if not entry.keep_reference:
            self._vfs.forget(entry.attr.ino, 1)
        self._progress.step(1, 0)
        if entry.path and self._acknowledger is not None:
            self._acknowledger.complete(entry.path)

    def _is_late(self) -> bool:
        return self._acknowledger is not None and self._acknowledger.is_late()

    def _at(self, path: bytes) -> bytes:
        return self._source + b"/" + path
