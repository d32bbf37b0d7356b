"""How a command reaches a name space: in the image itself, or, while that is mounted, through the mount.

The same few calls either way. A mounted server is asked through the attributes of the root directory (docs/howto/mount.md).
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from mdstore.client.mount import image_at
from mdstore.client.mount_syscalls import FILE_SYSTEM_TYPE, mount_table, mounted_at
from mdstore.errors import PosixError
from mdstore.mds.control import DAMAGE, FORGET, SCRUB
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.tools.images import opened_image
from mdstore.tools.output import CommandFailed, shown

LOOK_EVERY_S: Final = 0.1
_NO_SUCH_DAMAGE: Final = "there is no such damage; `mdstore damage list` shows what there is"
Told = Callable[[dict[str, Any]], None]


class Reached(Protocol):
    """A name space, mounted or not."""

    def ask(self, attribute: bytes) -> dict[str, Any]:
        """What an attribute of `mdstore.mds.control` tells."""

    def tell(self, attribute: bytes, value: bytes) -> None:
        """Set one. CommandFailed, or what `mdstore.mds.control` raises."""

    def scrub(self, told: Told, *, repair: bool) -> dict[str, Any]:
        """Scrub to the end, telling how far it is; the last status."""


class InImage:
    """A name space opened by this process."""

    def __init__(self, server: MetadataServer) -> None:
        self._server = server

    def ask(self, attribute: bytes) -> dict[str, Any]:
        return _document(self._server.getxattr(SUPERUSER, ROOT_INO, attribute))

    def tell(self, attribute: bytes, value: bytes) -> None:
        try:
            self._server.setxattr(SUPERUSER, ROOT_INO, attribute, value)
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            raise CommandFailed(f"{shown(value)}: {_NO_SUCH_DAMAGE}") from error

    def scrub(self, told: Told, *, repair: bool) -> dict[str, Any]:
        scrubbing = self._server.scrubbing
        scrubbing.start(repair=repair)
        while scrubbing.step():
            told(scrubbing.status())
        return scrubbing.status()


class ThroughMount:
    """A name space that another process serves at `directory`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def ask(self, attribute: bytes) -> dict[str, Any]:
        try:
            return _document(os.getxattr(self._directory, attribute))
        except OSError as error:
            raise self._refused(error) from error

    def tell(self, attribute: bytes, value: bytes) -> None:
        try:
            os.setxattr(self._directory, attribute, value)
        except OSError as error:
            raise self._refused(error) from error

    def scrub(self, told: Told, *, repair: bool) -> dict[str, Any]:
        self.tell(SCRUB, b"repair" if repair else b"start")
        while True:
            status = self.ask(SCRUB)
            if status["state"] != "running":
                return status
            told(status)
            time.sleep(LOOK_EVERY_S)

    def _refused(self, error: OSError) -> CommandFailed:
        if error.errno == errno.EROFS and os.statvfs(self._directory).f_flag & os.ST_RDONLY:
            words = "it is mounted read-only, and the kernel passes on nothing that is told: unmount it, then give the image file"
            return CommandFailed(f"{shown(self._directory)}: {words}")
        reasons = {
            errno.EPERM: "only root may ask this of a mounted image",
            errno.ENOENT: _NO_SUCH_DAMAGE,
            errno.EAGAIN: "a scrub is running already; --stop ends it",
            errno.EROFS: "its medium failed, and it is served read-only since; unmount it and see to its medium",
            errno.ENOTCONN: "its server has gone; mount it again",
            errno.EOPNOTSUPP: "its server is of an older version",
        }
        reason = reasons.get(error.errno or 0) or error.strerror or str(error)
        return CommandFailed(f"{shown(self._directory)}: {reason}")


@contextmanager
def reached(image: str, *, read_only: bool) -> Iterator[Reached]:
    """The name space in the image, or behind the mount, whose directory may be given too. `read_only` concerns the image."""
    directory = _mounted(image)
    if directory is not None:
        yield ThroughMount(directory)
        return
    with opened_image(image, read_only=read_only) as server:
        yield InImage(server)


def _mounted(image: str) -> str | None:
    path = os.path.realpath(image)
    here = mounted_at(path)
    if here is not None and here.fs_type == FILE_SYSTEM_TYPE:
        return path
    ours = [point for point in mount_table() if point.fs_type == FILE_SYSTEM_TYPE]
    named = [point for point in ours if _leads_to(point.source, path)]
    for point in named:
        served = image_at(point.path)
        if served is None or _leads_to(served, path):
            return point.path
    for point in ours:  # mounted with `fsname=`, the table does not name the image
        if not os.path.isabs(point.source) and _leads_to(image_at(point.path), path):
            return point.path
    return None


def _leads_to(image: str | None, path: str) -> bool:
    """Whether an image that a mount names is the file at `path`: it was mounted through a symbolic link, perhaps."""
    return image is not None and os.path.isabs(image) and os.path.realpath(image) == path


def _document(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(raw)
    return found


def damage_of(space: Reached) -> tuple[list[dict[str, Any]], int]:
    """Rows of the damage table, and how many more there are."""
    found = space.ask(DAMAGE)
    return found["damage"], found["more"]


def forget_damage(space: Reached, directory: int, name: bytes) -> None:
    """Drop a row. CommandFailed, or PosixError ENOENT, when there is none."""
    space.tell(FORGET, b"%d/" % directory + name)


def stop_scrub(space: Reached) -> bool:
    """End a running scrub; False where none is running, as in an image that is not mounted."""
    if space.ask(SCRUB)["state"] != "running":
        return False
    space.tell(SCRUB, b"stop")
    return True
