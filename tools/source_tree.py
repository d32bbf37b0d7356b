"""Reading a directory of the machine, for import and comparison: entries in byte order, files in pieces, holes skipped.

The one place in the tools that reads other people's files. Paths and names are bytes throughout.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

CHUNK: Final = 1 << 20  # bytes of a file held at once
_NO_XATTRS: Final = (errno.ENOTSUP, errno.EPERM, errno.ENOENT, errno.ENODATA)
XATTR_PREFIX: Final = b"user."  # the others belong to the machine they were set on


class Piece(NamedTuple):
    """Bytes of a file at an offset."""

    offset: int
    data: bytes


def names_in(directory: bytes, exclude: tuple[bytes, ...] = ()) -> list[bytes]:
    """The names in a directory, sorted by their bytes, without those that match a pattern of `exclude`."""
    names = sorted(os.listdir(directory))
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude)] if exclude else names


def pieces(fd: int, size_bytes: int, blocks: int) -> Iterator[Piece]:
    """The bytes of an open file, without its holes where the file system tells them. `blocks` as st_blocks.

    The file is read up to the size it has while it is read; one that shrinks ends early.
    """
    if blocks * 512 >= size_bytes:
        yield from _to_the_end(fd, size_bytes)
        return
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        for at in range(start, end, CHUNK):
            if data := os.pread(fd, min(CHUNK, end - at), at):
                yield Piece(at, data)
        offset = end


def _to_the_end(fd: int, size_bytes: int) -> Iterator[Piece]:
    """One byte more than there should be is asked for, so that one read of a small file tells its end as well."""
    offset, wanted = 0, min(CHUNK, size_bytes + 1)
    while True:
        data = os.pread(fd, wanted, offset)
        if data:
            yield Piece(offset, data)
        if len(data) < wanted:
            return
        offset += len(data)
        wanted = min(CHUNK, max(1, size_bytes + 1 - offset))


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    """The user's extended attributes of a file, none where its file system has none. A symlink is not followed."""
    found: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return found
        raise
    for name in map(os.fsencode, names):
        if name.startswith(XATTR_PREFIX):
            with suppress(FileNotFoundError):
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def same_version(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was left alone between two looks at it."""
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def open_file(path: bytes) -> tuple[int, os.stat_result]:
    """A descriptor for reading a regular file, and its status. Never blocks on what has become a FIFO meanwhile, never
    follows a symlink."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EAGAIN, "it was replaced while it was read", os.fsdecode(path))
    return fd, status
