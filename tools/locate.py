"""Paths of a command line, resolved against any `Vfs`.

Paths are bytes, `/` separates, a leading slash changes nothing (a command's paths start at the image's root), `.` and `..`
mean what they mean elsewhere, and `..` never leaves the root. Symlinks on the way are followed inside the image.
What `resolve`, `resolve_parent` and `make_directories` return carries one lookup reference, so that its number stays good;
a command resolves a few paths and ends, so only one that removes what it resolved has to `forget`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mdstore import limits
from mdstore.errors import PosixError
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Attr, Vfs

SYMLINKS_MAX: Final = 40  # followed for one path, as Linux does: ELOOP


def image_path(text: str) -> bytes:
    """A path as typed, as bytes starting with a slash; ENAMETOOLONG when no path can be that long."""
    raw = os.fsencode(text)
    if len(raw) > limits.PATH_MAX:
        raise PosixError(errno.ENAMETOOLONG, raw[:40] + b"...")
    return b"/" + raw.strip(b"/")


def resolve(vfs: Vfs, path: bytes, *, follow: bool = True) -> Attr:
    """The attributes of what `path` names. `follow`: a symlink at its end is followed as well.

    Errors carry `path`: ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP. Cost: a lookup for each component.
    """
    parts = _parts(path)
    way, followed = [vfs.getattr(ROOT_INO)], 0  # the directories from the root to here
    while parts:
        name = parts.pop()
        if name == b"..":
            way = way[:-1] or way
            continue
        child = _lookup(vfs, way[-1], name, path)
        if not stat.S_ISLNK(child.mode) or not (parts or follow):
            way.append(child)
            continue
        followed += 1
        if followed > SYMLINKS_MAX:
            raise PosixError(errno.ELOOP, path)
        target = vfs.readlink(child.ino)
        parts += _parts(target)
        way = way[:1] if target.startswith(b"/") else way
    return way[-1]


def resolve_parent(vfs: Vfs, path: bytes) -> tuple[Attr, bytes]:
    """The directory that holds (or would hold) the last component of `path`, and that component. EBUSY for the root."""
    head, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise PosixError(errno.EBUSY if not name else errno.EINVAL, path or b"/", "it has no name that could be changed")
    parent = resolve(vfs, head or b"/")
    if not stat.S_ISDIR(parent.mode):
        raise PosixError(errno.ENOTDIR, head)
    return parent, name


def make_directories(vfs: Vfs, path: bytes, mode: int = 0o755) -> Attr:
    """The directory `path`, made with its parents where it is not there yet. ENOTDIR when something else is in the way."""
    at = vfs.getattr(ROOT_INO)
    for name in reversed(_parts(path)):
        try:
            at = _lookup(vfs, at, name, path)
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            at = vfs.mkdir(SUPERUSER, at.ino, name, mode)
        if not stat.S_ISDIR(at.mode):
            raise PosixError(errno.ENOTDIR, path)
    return at


@contextmanager
def opened_file(vfs: Vfs, ino: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A handle on a file, released at the end."""
    handle = vfs.open(SUPERUSER, ino, flags)
    try:
        yield handle
    finally:
        vfs.release(handle)


def _parts(path: bytes) -> list[bytes]:
    """Components, last first, so that the next one is popped off the end."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _lookup(vfs: Vfs, parent: Attr, name: bytes, path: bytes) -> Attr:
    if not stat.S_ISDIR(parent.mode):
        raise PosixError(errno.ENOTDIR, path)
    try:
        return vfs.lookup(SUPERUSER, parent.ino, name)
    except PosixError as error:
        raise PosixError(error.errno, path) from error
