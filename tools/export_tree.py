"""Export: a file or directory of a `Vfs` as files of the machine, with content, modes, times, links and the user's attributes.

Names come from an image that may be hostile: a name that is no single path component is refused, and nothing is ever written
through a symlink. Memory: one path, one piece of one file, and one entry for each file with several names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from mdstore.errors import CorruptionError, PosixError
from mdstore.mds.vfs import SUPERUSER, Attr, Vfs
from mdstore.tools.locate import entries, opened_file
from mdstore.tools.output import Progress, explain, shown

CHUNK: Final = 1 << 20
_XATTRS_REFUSED: Final = (errno.ENOTSUP, errno.EPERM, errno.ENOSPC)


@dataclass(slots=True)
class Exported:
    """What was written. `troubles` were left out, each with a line that says why."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0
    specials: int = 0
    bytes: int = 0
    troubles: int = 0

    def as_row(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class Exporter:
    """One export. `replace`: files in the way are replaced, directories are filled up; otherwise both are refused."""

    def __init__(
        self, vfs: Vfs, *, replace: bool, superuser: bool, progress: Progress, complain: Callable[[str], None]
    ) -> None:
        """superuser: owners are set and devices are made."""
        self._vfs = vfs
        self._replace = replace
        self._superuser = superuser
        self._progress = progress
        self._complain = complain
        self._written: dict[int, bytes] = {}  # inode with several names: where its first one was written
        self.done = Exported()

    def run(self, source: Attr, target: bytes) -> Exported:
        """Write `source` as `target`. What was written is not flushed: `sync` makes it durable.

        Errors: OSError of the machine (EEXIST where something is in the way); CorruptionError and the like of the image.
        """
        if not stat.S_ISDIR(source.mode):
            self._write(source, target)
            return self.done
        if not os.path.isdir(target):
            self._make_directory(target)
        stack = [(target, source, entries(self._vfs, source.ino))]
        while stack:
            path, attr, rest = stack[-1]
            entry = next(rest, None)
            if entry is None:
                stack.pop()
                self._dress(attr, path)
                continue
            below = path + b"/" + _checked(entry.name, path)
            if stat.S_ISDIR(entry.attr.mode):
                self._make_directory(below)
                stack.append((below, entry.attr, entries(self._vfs, entry.attr.ino)))
            else:
                self._write(entry.attr, below)
        return self.done

    def _make_directory(self, path: bytes) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise
        self.done.directories += 1

    def _write(self, attr: Attr, path: bytes) -> None:
        if self._replace and os.path.lexists(path):
            os.unlink(path)
        first = self._written.get(attr.ino)
        if first is not None:
            os.link(first, path, follow_symlinks=False)
            self.done.links += 1
        elif not self._make(attr, path):
            return
        elif attr.nlink > 1:
            self._written[attr.ino] = path
        self._progress.step(1, 0)

    def _make(self, attr: Attr, path: bytes) -> bool:
        """Whether it was made: what only the superuser makes is left out for others."""
        kind = stat.S_IFMT(attr.mode)
        if kind == stat.S_IFREG:
            self._write_file(attr, path)
            self.done.files += 1
        elif kind == stat.S_IFLNK:
            os.symlink(self._vfs.readlink(attr.ino), path)
            self.done.symlinks += 1
        elif kind in (stat.S_IFCHR, stat.S_IFBLK) and not self._superuser:
            self.done.troubles += 1
            self._complain(f"{shown(path)}: only the superuser makes devices; left out")
            return False
        else:
            os.mknod(path, kind | 0o600, attr.rdev)
            self.done.specials += 1
        self._dress(attr, path)
        return True

    def _write_file(self, attr: Attr, path: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with opened_file(self._vfs, attr.ino) as handle:
                if attr.blocks * 512 >= attr.size:
                    self._write_range(handle, fd, 0, attr.size)
                else:
                    self._write_between_holes(handle, fd, attr.size)
            os.ftruncate(fd, attr.size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from error
        finally:
            os.close(fd)

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
            data = self._vfs.read(handle, start, min(CHUNK, end - start))
            if not data:
                return
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, start)
                view, start = view[written:], start + written
            self.done.bytes += len(data)
            self._progress.step(0, len(data))

    def _dress(self, attr: Attr, path: bytes) -> None:
        """Owner first (it clears setuid bits), then attributes and mode, the times last."""
        if self._superuser:
            os.chown(path, attr.uid, attr.gid, follow_symlinks=False)
        if not stat.S_ISLNK(attr.mode):
            self._dress_xattrs(attr.ino, path)
            os.chmod(path, stat.S_IMODE(attr.mode))
        os.utime(path, ns=(attr.atime_ns, attr.mtime_ns), follow_symlinks=False)

    def _dress_xattrs(self, ino: int, path: bytes) -> None:
        for name in self._vfs.listxattr(ino):
            try:
                os.setxattr(path, name, self._vfs.getxattr(SUPERUSER, ino, name), follow_symlinks=False)
            except OSError as error:
                if error.errno not in _XATTRS_REFUSED:
                    raise
                self.done.troubles += 1
                self._complain(f"{explain(error)}: attribute {shown(name)} left out")


def _checked(name: bytes, directory: bytes) -> bytes:
    """A name from the image, once it is known to be one component of a path."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise CorruptionError("directory entry", shown(directory), "a name without slashes", name)
    return name
