"""Export: a file or directory of a `Vfs` as files of the machine, with content, modes, times, links and the user's attributes.

Names come from an image that may be hostile: one that is no single path component is left out, and nothing is ever written
through a symlink. What cannot be read is left out, and nothing else: a file is written whole or not at all, and what it was to
replace stays as it is then. Memory: one path, one piece of one file, and one entry for each file with several names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.vfs import SUPERUSER, Attr, Vfs
from mdstore.tools.locate import opened_file
from mdstore.tools.output import Progress, shown
from mdstore.tools.unreadable import UNREADABLE, Descent, LeftOut, Listed, SecondNames, listing

CHUNK: Final = 1 << 20
PIECE: Final = 4096  # of a damaged file, read by itself
RANGES_SHOWN: Final = 8
_XATTRS_REFUSED: Final = (errno.ENOTSUP, errno.EPERM, errno.ENOSPC)


@dataclass(slots=True)
class Exported:
    """What was written. `troubles` were left out, each with a line that says why; `left_out` are those that cannot be read: a
    path of the image and the reason for each. `partial`: files of which pieces are zeros because they cannot be read."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0
    specials: int = 0
    bytes: int = 0
    troubles: int = 0
    partial: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Place(NamedTuple):
    """Where a file is being written (`at`), what it will be called (`target`), and what it is called in the image (`path`)."""

    at: bytes
    target: bytes
    path: bytes


class Exporter:
    """One export. `replace`: files in the way are replaced, directories are filled up; otherwise both are refused. `partial`: a
    file that cannot be read whole is written with zeros for what cannot; otherwise it is left out."""

    def __init__(
        self, vfs: Vfs, *, replace: bool, superuser: bool, progress: Progress, complain: Callable[[str], None],
        partial: bool = False, names: SecondNames | None = None,
    ) -> None:  # fmt: skip
        """superuser: owners are set and devices are made. names: see `listing`."""
        self._vfs = vfs
        self._replace = replace
        self._superuser = superuser
        self._progress = progress
        self._complain = complain
        self._partial = partial
        self._names = names
        self._left_out = LeftOut(complain)
        self._lost: list[tuple[int, int, MdstoreError]] = []  # ranges of the file under way that do not read
        self._written: dict[int, bytes] = {}  # inode with several names: where its first one was written
        self.done = Exported()

    def run(self, source: Attr, target: bytes, path: bytes = b"/") -> Exported:
        """Write `source`, known as `path` in the image, as `target`. What was written is not flushed: `sync` makes it durable.

        What cannot be read is named and left out. Errors: OSError of the machine (EEXIST where something is in the way).
        """
        path = path.rstrip(b"/")
        if not stat.S_ISDIR(source.mode):
            self._write(source, target, path)
            return self.done
        if not os.path.isdir(target):
            self._make_directory(target)
        stack = [(target, path, source, listing(self._vfs, source.ino, self._names))]
        descent = Descent(self._vfs, source.ino)
        while stack:
            into, above, attr, rest = stack[-1]
            entry = next(rest, None)
            if entry is None:
                stack.pop()
                descent.leave()
                self._dress(attr, _Place(into, into, above))
            elif self._can_be_written(descent.looked_at(entry), above):
                target, path = into + b"/" + entry.name, above + b"/" + entry.name
                if stat.S_ISDIR(entry.attr.mode):
                    self._make_directory(target)
                    descent.enter(entry.attr.ino)
                    stack.append((target, path, entry.attr, listing(self._vfs, entry.attr.ino, self._names)))
                else:
                    self._write(entry.attr, target, path)
        return self.done

    def _can_be_written(self, entry: Listed, directory: bytes) -> bool:
        """Whether it reads; told where not."""
        if entry.error is None:
            return True
        self.done.troubles += 1
        self.done.left_out.append(self._left_out.note_listed(directory, entry))
        return False

    def _leave_out(self, path: bytes, error: MdstoreError, what: str = "left out") -> None:
        self.done.troubles += 1
        self.done.left_out.append(self._left_out.note(path or b"/", error, what))

    def _make_directory(self, path: bytes) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise
        self.done.directories += 1

    def _write(self, attr: Attr, target: bytes, path: bytes) -> None:
        """A file at the place that is free, or beside what it replaces, whose place it takes once it is whole."""
        place = _Place(_beside(target) if self._replace and os.path.lexists(target) else target, target, path)
        is_free = not os.path.lexists(place.at)
        first = self._written.get(attr.ino)
        try:
            if first is not None:
                os.link(first, place.at, follow_symlinks=False)
                self.done.links += 1
            elif not self._make(attr, place):
                return
            if place.at != target:
                os.rename(place.at, target)
        except BaseException as error:
            if is_free:
                _remove(place.at)
            if isinstance(error, OSError) and place.at != target:
                raise OSError(error.errno, error.strerror, os.fsdecode(target)) from error
            if not isinstance(error, UNREADABLE):
                raise
            self._leave_out(path, error)
            return
        if first is None and attr.nlink > 1:
            self._written[attr.ino] = target
        self._progress.step(1, 0)

    def _make(self, attr: Attr, place: _Place) -> bool:
        """Whether it was made: what only the superuser makes is left out for others."""
        kind = stat.S_IFMT(attr.mode)
        if kind == stat.S_IFREG:
            self._write_file(attr, place)
            self.done.files += 1
        elif kind == stat.S_IFLNK:
            os.symlink(self._vfs.readlink(attr.ino), place.at)
            self.done.symlinks += 1
        elif kind in (stat.S_IFCHR, stat.S_IFBLK) and not self._superuser:
            self.done.troubles += 1
            self._complain(f"{shown(place.target)}: only the superuser makes devices; left out")
            return False
        else:
            os.mknod(place.at, kind | 0o600, attr.rdev)
            self.done.specials += 1
        self._dress(attr, place)
        return True

    def _write_file(self, attr: Attr, place: _Place) -> None:
        fd = os.open(place.at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._lost.clear()
        try:
            with opened_file(self._vfs, attr.ino) as handle:
                if attr.blocks * 512 >= attr.size:
                    self._write_range(handle, fd, 0, attr.size)
                else:
                    self._write_between_holes(handle, fd, attr.size)
            os.ftruncate(fd, attr.size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(place.target)) from error
        finally:
            os.close(fd)
        if self._lost:
            self.done.partial += 1
            self._leave_out(place.path, self._lost[0][2], f"zeros instead of bytes {_ranges(self._lost)}")

    def _write_between_holes(self, handle: int, fd: int, size_bytes: int) -> None:
        end = 0
        while end < size_bytes:
            start = self._seek(handle, end, os.SEEK_DATA, size_bytes)
            end = self._seek(handle, start, os.SEEK_HOLE, size_bytes) if start < size_bytes else size_bytes
            self._write_range(handle, fd, start, end)

    def _seek(self, handle: int, offset: int, whence: int, size_bytes: int) -> int:
        try:
            return self._vfs.lseek(handle, offset, whence)
        except PosixError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return size_bytes
            if error.errno == errno.EOPNOTSUPP:  # holes are not told: all is data
                return offset if whence == os.SEEK_DATA else size_bytes
            raise

    def _write_range(self, handle: int, fd: int, start: int, end: int) -> None:
        while start < end:
            try:
                data = self._vfs.read(handle, start, min(CHUNK, end - start))
            except UNREADABLE:
                if not self._partial:
                    raise
                data = self._pieces(handle, start, min(start + CHUNK, end))
            if not data:
                return
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, start)
                view, start = view[written:], start + written
            self.done.bytes += len(data)
            self._progress.step(0, len(data))

    def _pieces(self, handle: int, start: int, end: int) -> bytes:
        """What reads of a range, zeros where it does not, which is noted."""
        found = bytearray()
        for at in range(start, end, PIECE):
            stop = min(at + PIECE, end)
            try:
                found += self._vfs.read(handle, at, stop - at).ljust(stop - at, b"\0")
            except UNREADABLE as error:
                found += bytes(stop - at)
                if self._lost and self._lost[-1][1] == at:
                    self._lost[-1] = (self._lost[-1][0], stop, self._lost[-1][2])
                else:
                    self._lost.append((at, stop, error))
        return bytes(found)

    def _dress(self, attr: Attr, place: _Place) -> None:
        """Owner first (it clears setuid bits), then attributes and mode, the times last."""
        if self._superuser:
            os.chown(place.at, attr.uid, attr.gid, follow_symlinks=False)
        if not stat.S_ISLNK(attr.mode):
            try:
                self._dress_xattrs(attr.ino, place)
            except UNREADABLE as error:
                self._leave_out(place.path, error, "its attributes left out")
            os.chmod(place.at, stat.S_IMODE(attr.mode))
        os.utime(place.at, ns=(attr.atime_ns, attr.mtime_ns), follow_symlinks=False)

    def _dress_xattrs(self, ino: int, place: _Place) -> None:
        for name in self._vfs.listxattr(ino):
            try:
                os.setxattr(place.at, name, self._vfs.getxattr(SUPERUSER, ino, name), follow_symlinks=False)
            except UNREADABLE as error:
                self._leave_out(place.path, error, f"attribute {shown(name)} left out")
            except OSError as error:
                if error.errno not in _XATTRS_REFUSED:
                    raise
                self.done.troubles += 1
                self._complain(f"{shown(place.target)}: {error.strerror}: attribute {shown(name)} left out")


def _ranges(lost: list[tuple[int, int, MdstoreError]]) -> str:
    """The bytes of a file that do not read, first and last of each range; the first few ranges."""
    text = ", ".join(f"{start}..{end - 1}" for start, end, _ in lost[:RANGES_SHOWN])
    return f"{text} and {len(lost) - RANGES_SHOWN} more ranges" if len(lost) > RANGES_SHOWN else text


def _beside(target: bytes) -> bytes:
    """A free name in the same directory. IsADirectoryError: a directory is not replaced."""
    if stat.S_ISDIR(os.lstat(target).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(target))
    above = os.path.dirname(target)
    return next(path for number in count() if not os.path.lexists(path := above + b"/.mdstore-export-%d" % number))


def _remove(path: bytes) -> None:
    with suppress(OSError):
        os.unlink(path)
