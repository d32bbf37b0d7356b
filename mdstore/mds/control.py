"""What the superuser asks of a server through the root directory's attributes: how a command reaches a mounted name space.

| attribute             | read                                                  | written                         |
|-----------------------|-------------------------------------------------------|---------------------------------|
| mdstore.status        | what was done, what is in memory, the purge backlog   |                                 |
| mdstore.sessions      | every session                                         |                                 |
| mdstore.damage        | the damage table                                      |                                 |
| mdstore.damage.forget |                                                       | `DIRECTORY/NAME`: a row to drop |
| mdstore.scrub         | the running scrub, or the last one                    | `start`, `repair` or `stop`     |

What is read is one JSON document; of rows as many as fit, and how many more there are. Names are text with surrogate escapes
for bytes that are not UTF-8.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any, Final

from mdstore.errors import PosixError
from mdstore.limits import XATTR_VALUE_MAX
from mdstore.mds.core import Core
from mdstore.mds.damage import forget_damage, list_damage
from mdstore.mds.scrubrun import ScrubRun
from mdstore.mds.sessions import Sessions
from mdstore.mds.vfs import ROOT_INO, Credentials

STATUS: Final = b"mdstore.status"
SESSIONS: Final = b"mdstore.sessions"
DAMAGE: Final = b"mdstore.damage"
FORGET: Final = b"mdstore.damage.forget"
SCRUB: Final = b"mdstore.scrub"
ROOM: Final = XATTR_VALUE_MAX - 1024  # for the rows of one answer


class Control:
    """The attributes above. The caller holds the core's lock."""

    def __init__(self, core: Core, sessions: Sessions, scrubbing: ScrubRun, counters: Callable[[], dict[str, int | str]]) -> None:
        self._core = core
        self._sessions = sessions
        self._scrubbing = scrubbing
        self._readers: dict[bytes, Callable[[], Any]] = {
            STATUS: counters, SESSIONS: self._all_sessions, DAMAGE: self._damage, SCRUB: scrubbing.status,
        }  # fmt: skip
        self._writers: dict[bytes, Callable[[bytes], None]] = {FORGET: self._forget, SCRUB: self._scrub}

    def is_ours(self, ino: int, name: bytes) -> bool:
        """Whether the attribute is one of the table."""
        return ino == ROOT_INO and (name in self._readers or name in self._writers)

    def read(self, cred: Credentials, name: bytes) -> bytes:
        """The document. EPERM for anybody but the superuser, ENODATA for what is only written."""
        _require_superuser(cred, name)
        reader = self._readers.get(name)
        if reader is None:
            raise PosixError(errno.ENODATA, name)
        return json.dumps(reader()).encode()

    def write(self, cred: Credentials, name: bytes, value: bytes) -> None:
        """Do it. EPERM, EINVAL, ENOENT for a row that is not there; errors of what is done."""
        _require_superuser(cred, name)
        writer = self._writers.get(name)
        if writer is None:
            raise PosixError(errno.EPERM, name, "this is told, not set")
        writer(value)

    # -- read ----------------------------------------------------------------------------------------------------------

    def _all_sessions(self) -> Any:
        rows = [
            {**info._asdict(), "name": os.fsdecode(info.name), "state": info.state.name.lower()}
            for info in self._sessions.list()
        ]
        return _fitting("sessions", rows)

    def _damage(self) -> Any:
        rows = [
            {"directory": row.directory, "name": os.fsdecode(row.name), "message": row.message}
            for row in list_damage(self._core)
        ]
        return _fitting("damage", rows)

    # -- written -------------------------------------------------------------------------------------------------------

    def _forget(self, value: bytes) -> None:
        number, slash, name = value.partition(b"/")
        if not slash or not number.isdigit() or len(number) > 20:
            raise PosixError(errno.EINVAL, FORGET, "say DIRECTORY/NAME")
        self._core.assert_writable()
        if not forget_damage(self._core, int(number), name):
            raise PosixError(errno.ENOENT, value, "no such damage")

    def _scrub(self, value: bytes) -> None:
        if value == b"stop":
            self._scrubbing.stop()
        elif value in (b"start", b"repair"):
            self._scrubbing.start(repair=value == b"repair")
        else:
            raise PosixError(errno.EINVAL, SCRUB, "say start, repair or stop")


def _require_superuser(cred: Credentials, name: bytes) -> None:
    if cred.uid:
        raise PosixError(errno.EPERM, name, "for the superuser")


def _fitting(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As many rows as an attribute's value holds, and how many are left out."""
    size = 0
    for number, row in enumerate(rows):
        size += len(json.dumps(row)) + 2
        if size > ROOM:
            return {kind: rows[:number], "more": len(rows) - number}
    return {kind: rows, "more": 0}
