"""Who asks: credentials from a request's header, completed with supplementary groups only where they decide.

The kernel has checked the permission bits itself (`default_permissions`), with the right groups; the name space checks again
with what it is told. Reading a process's groups costs some 30 microseconds, so a request is first served without them, and
again with them where it was refused: a refused request has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mdstore.mds.vfs import Credentials

GROUPS_LIFETIME_S: Final = 1.0  # how long a process's groups are believed; the kernel's own check is never stale
CACHE_MAX: Final = 4096

_Key = tuple[int, int, int]


class CredentialCache:
    """`Credentials` by (uid, gid, pid). `clock` counts seconds, `read_groups(pid)` tells a process's groups."""

    def __init__(
        self,
        read_groups: Callable[[int], tuple[int, ...]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_groups = read_groups or process_groups
        self._clock = clock
        self._plain: dict[_Key, Credentials] = {}
        self._complete: dict[_Key, tuple[float, Credentials]] = {}

    def of(self, uid: int, gid: int, pid: int) -> Credentials:
        """What is known of the caller without asking anybody."""
        key = (uid, gid, pid)
        if key in self._complete:
            deadline, cred = self._complete[key]
            if self._clock() < deadline:
                return cred
            del self._complete[key]
        found = self._plain.get(key)
        if found is None:
            if len(self._plain) >= CACHE_MAX:
                self._plain.clear()
            found = self._plain[key] = Credentials(uid, gid, (), pid)
        return found

    def complete(self, cred: Credentials) -> Credentials:
        """The same caller with its supplementary groups; the same object where it has none or is gone."""
        if cred.uid == 0 or cred.groups or cred.pid == 0:
            return cred
        groups = self._read_groups(cred.pid)
        if not groups:
            return cred
        complete = cred._replace(groups=groups)
        if len(self._complete) >= CACHE_MAX:
            self._complete.clear()
        self._complete[(cred.uid, cred.gid, cred.pid)] = (self._clock() + GROUPS_LIFETIME_S, complete)
        return complete


class Masks:
    """Credentials with a umask, which come again and again."""

    def __init__(self) -> None:
        self._known: dict[tuple[Credentials, int], Credentials] = {}
        self._plain: Credentials | None = None  # the one asked for last, usually the one asked for next
        self._umask = 0
        self._masked: Credentials

    def of(self, cred: Credentials, umask: int) -> Credentials:
        """The same caller, with that umask."""
        if cred is not self._plain or umask != self._umask:
            self._plain, self._umask, self._masked = cred, umask, self._find(cred, umask)
        return self._masked

    def _find(self, cred: Credentials, umask: int) -> Credentials:
        key = (cred, umask)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= CACHE_MAX:
                self._known.clear()
            found = self._known[key] = cred._replace(umask=umask & 0o777)
        return found


def process_groups(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process, from /proc; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return tuple(int(word) for word in line.split()[1:])
    except OSError:
        return ()  # it ended meanwhile, or /proc is not mounted: it is refused what only a group would allow
    return ()
