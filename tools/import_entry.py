"""Making one copy: a file, symlink or special file of the machine becomes an inode of a `Vfs`, with all its attributes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from mdstore.mds.vfs import SUPERUSER, Attr, SetAttr, Vfs
from mdstore.tools.output import Progress, shown
from mdstore.tools.source_tree import open_file, pieces, same_version, xattrs_of

_TRIES: Final = 3  # for a file that is written to while it is read


@dataclass(slots=True)
class Imported:
    """What one run did. `skipped` were complete already; `troubles` could not be read, or not in one piece."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0
    specials: int = 0
    bytes: int = 0
    skipped: int = 0
    troubles: int = 0

    def as_row(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class _Target(NamedTuple):
    ino: int
    handle: int


class Maker:
    """Makes copies and counts them in `done`. Half a file is never left behind by a source that cannot be read."""

    def __init__(self, vfs: Vfs, done: Imported, progress: Progress, complain: Callable[[str], None]) -> None:
        self._vfs = vfs
        self._done = done
        self._progress = progress
        self._complain = complain

    def make(self, parent: int, name: bytes, source: bytes, status: os.stat_result) -> tuple[Attr, os.stat_result]:
        """A new copy, still to be dressed: its inode, with one lookup reference held, and the source's status as it was when
        the bytes were read. OSError: the source cannot be read."""
        if stat.S_ISREG(status.st_mode):
            attr, status = self._make_file(parent, name, source)
            self._done.files += 1
        elif stat.S_ISLNK(status.st_mode):
            attr = self._vfs.symlink(SUPERUSER, parent, name, os.readlink(source))
            self._done.symlinks += 1
        else:
            attr = self._vfs.mknod(SUPERUSER, parent, name, stat.S_IFMT(status.st_mode) | 0o600, rdev_of(status))
            self._done.specials += 1
        return attr, status

    def dress(self, attr: Attr, source: bytes, status: os.stat_result, *, new: bool = False) -> None:
        """Give a copy the source's attributes where they differ; the time of change in the last step, with mode and owner."""
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            self._dress_xattrs(attr.ino, source, new=new)
        wanted = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        if not new and (attr.mode, attr.uid, attr.gid, attr.mtime_ns) == wanted:
            return
        mode = None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
        change = SetAttr(mode, status.st_uid, status.st_gid, None, status.st_atime_ns, status.st_mtime_ns)
        self._vfs.setattr(SUPERUSER, attr.ino, change)

    def _dress_xattrs(self, ino: int, source: bytes, *, new: bool) -> None:
        wanted = xattrs_of(source)
        present = set() if new else set(self._vfs.listxattr(ino))
        for name in present - wanted.keys():
            self._vfs.removexattr(SUPERUSER, ino, name)
        for name, value in wanted.items():
            if name not in present or self._vfs.getxattr(SUPERUSER, ino, name) != value:
                self._vfs.setxattr(SUPERUSER, ino, name, value)

    def _make_file(self, parent: int, name: bytes, source: bytes) -> tuple[Attr, os.stat_result]:
        """The file's bytes, and its status as it was when they were read."""
        fd, status = open_file(source)
        try:
            attr, handle = self._vfs.create(SUPERUSER, parent, name, 0o600, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                status = self._fill(_Target(attr.ino, handle), fd, status, source)
            except OSError:
                self._vfs.unlink(SUPERUSER, parent, name)
                self._vfs.forget(attr.ino, 1)
                raise
            finally:
                self._vfs.release(handle)
        finally:
            os.close(fd)
        return attr, status

    def _fill(self, target: _Target, fd: int, status: os.stat_result, source: bytes) -> os.stat_result:
        """Copy the bytes, again when the file was changed meanwhile. The status that goes with what was copied; for a file that
        kept changing, one that is outdated already, so that the next run copies it again."""
        before = status
        for attempt in range(_TRIES):
            if attempt:
                self._set_size(target, 0)
            self._write_pieces(target, fd, status)
            before, status = status, os.fstat(fd)
            if same_version(before, status):
                return before
        self._done.troubles += 1
        self._complain(f"{shown(source)}: it kept changing while it was read; run the import again")
        return before

    def _write_pieces(self, target: _Target, fd: int, status: os.stat_result) -> None:
        end = 0
        for piece in pieces(fd, status.st_size, status.st_blocks):
            written = self._vfs.write(target.handle, piece.offset, piece.data)
            assert written == len(piece.data), "a write to an image is whole or fails"
            end = piece.offset + written
            self._done.bytes += written
            self._progress.step(0, written)
        if end < status.st_size:
            self._set_size(target, status.st_size)

    def _set_size(self, target: _Target, size_bytes: int) -> None:
        self._vfs.setattr(SUPERUSER, target.ino, SetAttr(size=size_bytes, handle=target.handle))


def rdev_of(status: os.stat_result) -> int:
    """The device number of a device, 0 for anything else (whose st_rdev means nothing)."""
    return status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
