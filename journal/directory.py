"""Objects as files of a directory, with floors: for logs kept on a file system, and shared by processes of one machine.

One lock file orders writes against floors: a write holds it shared while it checks the floor and changes the object, a floor
is raised with it held alone. So a write happens wholly before a floor rises, and is then seen by whoever raised it, or
not at all. The floors lie beside it, one line `floor prefix` each, the file replaced as a whole.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from journal.errors import JournalClosed, JournalFenced
from journal.medium import Buffer

_LOCK = ".lock"
_FLOORS = ".floors"
_VECTOR = 512  # buffers handed to one pwritev; the kernel takes at most 1024


class DirectoryObjects:
    """`ObjectIO` of one writer over the directory `path`, which is made where it is missing.

    Names are file names: no slash, not beginning with a dot. Durable after `flush`, given that fsync(2) is honest. It stays with
    the process that made it: in a forked child everything but reading raises `JournalClosed`.
    """

    def __init__(self, path: str | os.PathLike[str], *, epoch: int = 0) -> None:
        self.epoch = epoch
        self._path = Path(path)
        self._path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._owner = os.getpid()
        self._mine = threading.Lock()  # flock is per open file: threads of one process need their own order
        self._dirty: set[str] = set()
        self._names_changed = False
        self._flush_failure: OSError | None = None  # the kernel tells of a lost write once: no later flush may say "fine"

    def close(self) -> None:
        os.close(self._lock)

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            descriptor = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._allowed(name):
            self._names_changed |= self.stat(name) is None
            descriptor = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                write_all(descriptor, offset, buffers)
            finally:
                os.close(descriptor)
            self._dirty.add(name)

    def truncate(self, name: str, size: int) -> None:
        with self._allowed(name):
            if (self.stat(name) or 0) > size:
                os.truncate(self._path / name, size)
                self._dirty.add(name)

    def remove(self, name: str) -> None:
        with self._allowed(name):
            (self._path / name).unlink(missing_ok=True)
            self._dirty.discard(name)
            self._names_changed = True

    def stat(self, name: str) -> int | None:
        try:
            return os.stat(self._path / name).st_size
        except FileNotFoundError:
            return None

    def list_names(self, prefix: str) -> list[str]:
        return [name for name in os.listdir(self._path) if name.startswith(prefix) and not name.startswith(".")]

    def flush(self) -> None:
        """Every object written or read under a floor is durable, and so are the names. One fsync for each, and one. What an
        interrupt or a floor keeps from being made durable is so with the next; after a failure every later flush fails."""
        with self._exclusion(fcntl.LOCK_SH):
            if self._flush_failure is not None:
                raise OSError(self._flush_failure.errno, f"an earlier flush failed ({self._flush_failure.strerror})")
            for name in sorted(self._dirty):
                self._refuse_below_floor(name)
                self._sync(name)
                self._dirty.discard(name)
            if self._names_changed:
                self._sync("")
                self._names_changed = False

    def set_floor(self, prefix: str, floor: int) -> None:
        with self._exclusion(fcntl.LOCK_EX):
            self._raise_floor(prefix, floor)

    def set_floor_and_read(self, name: str, floor: int, offset: int, length: int) -> bytes:
        with self._exclusion(fcntl.LOCK_EX):
            self._raise_floor(name, floor)
            self._dirty.add(name)  # whoever wrote it, it is to be durable when this writer goes on from it
            self._names_changed = True
            return self.read(name, offset, length)

    def _raise_floor(self, prefix: str, floor: int) -> None:
        floors = self._floors()
        highest = _highest(floors, prefix)
        if floor < highest:
            raise JournalFenced(prefix, floor, highest)
        if floor == highest:
            return
        floors[prefix] = floor
        text = "".join(f"{value} {name}\n" for name, value in sorted(floors.items()))
        draft = self._path / (_FLOORS + ".new")
        draft.write_text(text)
        self._sync(draft.name)
        draft.replace(self._path / _FLOORS)
        self._sync("")

    def _floors(self) -> dict[str, int]:
        try:
            lines = (self._path / _FLOORS).read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {name: int(value) for value, _, name in (line.partition(" ") for line in lines)}

    def _refuse_below_floor(self, name: str) -> None:
        floor = _highest(self._floors(), name)
        if self.epoch < floor:
            raise JournalFenced(name, self.epoch, floor)

    def _sync(self, name: str) -> None:
        try:
            descriptor = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            self._flush_failure = error
            raise
        finally:
            os.close(descriptor)

    @contextmanager
    def _exclusion(self, kind: int) -> Iterator[None]:
        if os.getpid() != self._owner:  # a fork's child shares the lock, and whoever held `_mine` may not be there
            raise JournalClosed(f"{self._path} was opened by process {self._owner}, which forked this one: open it anew")
        with self._mine:
            fcntl.flock(self._lock, kind)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _allowed(self, name: str) -> Iterator[None]:
        with self._exclusion(fcntl.LOCK_SH):
            self._refuse_below_floor(name)
            yield


def _highest(floors: dict[str, int], name: str) -> int:
    return max((floor for prefix, floor in floors.items() if name.startswith(prefix)), default=0)


def write_all(descriptor: int, offset: int, buffers: Sequence[Buffer]) -> None:
    """pwritev(2) until everything is written."""
    rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while rest:
        written = os.pwritev(descriptor, rest[:_VECTOR], offset)
        offset += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]
