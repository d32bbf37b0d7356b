"""What clients with sessions call: every verb of `Vfs`, for a session, those that change names exactly once.

A client numbers its changing requests upward and says with each which is the oldest it still waits for. A request that was done
before, here or by a server that crashed since, is not done again: what it answered is told once more. What was refused has
changed nothing and is tried anew.

A session sees only handles of its own (EBADF), and what its replies handed out is counted, so that all of it can be given back
when the session ends.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any, Final, Protocol

from mdstore.errors import InvalidRequest, MdstoreError, PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.core import Core
from mdstore.mds.events import Kind
from mdstore.mds.handles import FileHandle, Handles
from mdstore.mds.holds import Holds
from mdstore.mds.layout import NOTHING_MADE, Done
from mdstore.mds.locks import FileLocks
from mdstore.mds.sessions import Session, SessionInfo, Sessions
from mdstore.mds.vfs import Attr, Credentials, Vfs

CHANGES: Final = frozenset((
    "create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "setattr", "setxattr", "removexattr",
))  # fmt: skip
MAKERS: Final = frozenset(("create", "mkdir", "mknod", "symlink"))  # of a new inode
LOOKS: Final = frozenset(("lookup", "getattr", "access", "readlink", "getxattr", "listxattr", "parent_of", "statfs"))
OPENS: Final = frozenset(("open", "opendir"))
WAITS: Final = frozenset(("read", "fsync", "syncfs"))  # for the medium: the server's lock is not held meanwhile
ON_HANDLE: Final = frozenset((
    "read", "write", "fsync", "release", "fallocate", "lseek", "copy_file_range", "readdir", "releasedir", "test_lock",
    "take_lock", "wait_for_lock", "drop_lock",
))  # fmt: skip
CLOSES: Final = frozenset(("release", "releasedir"))
HANDS_OUT: Final = frozenset(("lookup", "create", "mkdir", "mknod", "symlink", "link"))  # an inode's number, counted
VERBS: Final = CHANGES | LOOKS | OPENS | WAITS | ON_HANDLE | {"forget", "cancel_lock"}


class Serving(Vfs, Protocol):
    """A name space that knows what a request made."""

    def open_made(self, cred: Credentials, ino: int, flags: int) -> int:
        """A handle for whoever made the file, whatever its mode says."""


class Clients:
    """The sessions of one server and their requests. Safe to call from many threads."""

    def __init__(
        self, core: Core, cache: Cache, vfs: Serving, sessions: Sessions, holds: Holds, handles: Handles, locks: FileLocks,
        *, counts: bool,
    ) -> None:  # fmt: skip
        """`counts`: whether the numbers that `vfs` hands out are counted."""
        self._core = core
        self._cache = cache
        self._vfs = vfs
        self._sessions = sessions
        self._holds = holds
        self._handles = handles
        self._locks = locks
        self._counts = counts
        sessions.let_go = self._let_go

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open(self, name: bytes, *, timeout_ns: int) -> int:
        """A new session of the client `name`; its number, which no session had before. Durable on return.

        `timeout_ns`: silence after which it is stale; after five times that it is ended. LimitExceeded, InvalidRequest.
        """
        with self._core.guard:
            if not timeout_ns:
                raise InvalidRequest("a session of a client needs a timeout, or it would never end")
            session = self._sessions.open(name, timeout_ns)
            position = self._core.position()
        self._core.flush_log(position)
        return session.number

    def resume(self, number: int, name: bytes) -> SessionInfo:
        """Go on with a session, after a break of the connection or a crash of the server. `kept` in the answer lists inodes
        without a name that it may open again. NotFound when the session has ended; InvalidRequest for another's."""
        with self._core.guard:
            return self._sessions.info(self._sessions.resume(number, name))

    def renew(self, number: int) -> None:
        """A sign of life; every request is one too. NotFound, Conflict when the session is stale."""
        with self._core.guard:
            self._sessions.live(number)

    def end(self, number: int) -> None:
        """Give back everything the session has. Durable with the next flush. NotFound."""
        with self._core.guard:
            self._sessions.end(number)

    def list(self) -> list[SessionInfo]:
        """Every session by number, that of the mount too."""
        with self._core.lock:
            return self._sessions.list()

    def let_go_of(self, number: int, ino: int) -> None:
        """The client does not want to open again an inode without a name that its session keeps."""
        with self._core.guard:
            self._sessions.let_go_of(self._sessions.live(number), ino)

    # -- requests ------------------------------------------------------------------------------------------------------

    def perform(self, number: int, request: int, oldest: int, verb: str, *args: Any, **named: Any) -> Any:
        """Do a changing verb of `Vfs` for a session, unless it was done before; what the verb answers. `request`: the client's
        number, `oldest`: the lowest it still waits for. Durable like any change. Errors: the verb's; NotFound, Conflict (the
        session is stale), LimitExceeded (too many requests not yet called old), InvalidRequest (a number below `oldest`)."""
        if verb not in CHANGES:
            raise InvalidRequest(f"{verb!r} is no verb that changes names; {', '.join(sorted(CHANGES))} are")
        with self._core.lock:
            session = self._sessions.live(number)
            self._sessions.settle_requests(session, request, oldest)
            if session.knows(request):
                return self._repeated(session, request, verb, args)
            reply = self._do_once(session, request, verb, args, named)
            self._note(session, verb, reply)
            session.lifetime[request] = reply[1] if verb == "create" else 0
            return reply

    def _do_once(self, session: Session, request: int, verb: str, args: Any, named: Any) -> Any:
        core = self._core
        maker = verb in MAKERS
        before = core.client, core.request
        core.client, core.request = session.number, request
        first_new = core.next_ino

        def completion() -> bytes:
            made = maker and core.next_ino > first_new
            return self._sessions.complete(session, request, Done(first_new, args[1], args[2]) if made else NOTHING_MADE)

        core.completion = completion
        try:
            return getattr(self._vfs, verb)(*args, **named)
        finally:
            core.completion = None
            core.client, core.request = before

    def _repeated(self, session: Session, request: int, verb: str, args: Any) -> Any:
        """The answer of a request that was done before. ESTALE, ENOENT when what it made is gone since, or, after a restart, was
        moved by another client."""
        ino = self._find(session.completed.get(request, NOTHING_MADE))
        reply: Any = None
        if verb == "create":
            reply = self._created_again(session, request, ino, *args)
        elif verb in MAKERS:
            reply = self._vfs.getattr(ino)
        elif verb in ("link", "setattr"):
            reply = self._vfs.getattr(args[1])
        if verb in HANDS_OUT and request not in session.lifetime:
            self._refer(session, reply[0].ino if verb == "create" else reply.ino)
        session.lifetime[request] = reply[1] if verb == "create" else 0
        return reply

    def _find(self, done: Done) -> int:
        """The number of what a request made, found in memory: an inode in a directory entry may not be found by its number."""
        if done.ino:
            with suppress(PosixError):
                self._cache.at(*done)
        return done.ino

    def _created_again(
        self, session: Session, request: int, ino: int, cred: Credentials, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """The file that was made, or that was there and emptied, and a handle: that of the lost reply, if this server gave it."""
        handle = session.lifetime.get(request, 0)
        if handle in session.handles:
            return self._vfs.getattr(session.handles[handle]), handle
        flags &= ~(os.O_EXCL | os.O_TRUNC | os.O_CREAT)
        if ino:
            handle = self._for(session, "open_made", (cred, ino, flags), {})
        else:
            ino = self._vfs.lookup(cred, parent, name).ino
            self._vfs.forget(ino, 1)
            handle = self._for(session, "open", (cred, ino, flags), {})
        self._note_open(session, handle)
        return self._vfs.getattr(ino), handle

    def call(self, number: int, verb: str, *args: Any, **named: Any) -> Any:
        """Do any other verb of `Vfs` or `Locking` for a session. Errors: the verb's; EBADF for another's handle; those of
        `renew`."""
        if verb not in VERBS or verb in CHANGES:
            raise InvalidRequest(f"{verb!r} is no verb, or changes names and needs a number")
        with self._core.lock:
            session = self._sessions.live(number)
            self._check_handles(session, verb, args)
            if verb == "forget":
                return self._forget(session, *args)
            if verb in CLOSES:
                return self._close(session, args[0])
            if verb not in WAITS:
                return self._answered(session, verb, self._for(session, verb, args, named), named)
        return getattr(self._vfs, verb)(*args, **named)

    def _for(self, session: Session, verb: str, args: Any, named: Any) -> Any:
        core = self._core
        before = core.client, core.request
        core.client, core.request = session.number, 0
        try:
            return getattr(self._vfs, verb)(*args, **named)
        finally:
            core.client, core.request = before

    def _answered(self, session: Session, verb: str, reply: Any, named: Any) -> Any:
        self._note(session, verb, reply)
        if verb == "readdir" and named.get("count_lookups"):
            for entry in reply:
                if entry.attr.ino:
                    self._count(session, entry.attr.ino)
        return reply

    # -- what a session has --------------------------------------------------------------------------------------------

    def _note(self, session: Session, verb: str, reply: Any) -> None:
        """Remember what a verb that was done now hands out."""
        if verb in OPENS:
            self._note_open(session, reply)
        elif verb in HANDS_OUT:
            if verb == "create":
                self._note_open(session, reply[1])
            self._count(session, reply[0].ino if verb == "create" else reply.ino)

    def _count(self, session: Session, ino: int) -> None:
        if self._counts:
            session.references[ino] = session.references.get(ino, 0) + 1

    def _refer(self, session: Session, ino: int) -> None:
        """Count a number that is handed out here, and not by the verb."""
        if self._counts:
            self._core.references[ino] = self._core.references.get(ino, 0) + 1
            self._count(session, ino)

    def _note_open(self, session: Session, handle: int) -> None:
        node = self._handles.node(handle)
        session.handles[handle] = node.ino
        if session.lasts and isinstance(self._handles.get(handle), FileHandle):
            with self._core.guard:
                records = self._holds.opened(session.number, node)
                if records:
                    self._core.append(Kind.SESSION, records)

    def _check_handles(self, session: Session, verb: str, args: Any) -> None:
        if verb not in ON_HANDLE:
            return
        for handle in (args[0], args[2]) if verb == "copy_file_range" else args[:1]:
            if handle not in session.handles:
                raise PosixError(errno.EBADF, handle, "not a handle of this session")

    def _close(self, session: Session, handle: int) -> None:
        """Close a file or directory of the session; the last handle of a file without a name lets go of it. It is closed even
        where that fails."""
        ino = session.handles.pop(handle)
        is_file = isinstance(self._handles.get(handle), FileHandle)
        last = is_file and session.lasts and self._holds.closed(session.number, ino)
        try:
            self._for(session, "release" if is_file else "releasedir", (handle,), {})
        finally:
            if last and self._core.is_writable():
                self._sessions.let_go_of(session, ino)

    def _forget(self, session: Session, ino: int, lookups: int) -> None:
        """Never more than the session was handed. InvalidRequest for less than none."""
        held = session.references.get(ino, 0)
        given_back = min(lookups, held)
        if not held and lookups >= 0:
            return
        self._vfs.forget(ino, given_back)
        session.references[ino] = held - given_back
        if given_back == held:
            del session.references[ino]

    def _let_go(self, session: Session) -> None:
        """The session ends: locks, handles and references go. What cannot be written for it any more is not."""
        self._locks.end_session(session.number, self._handles.inodes_of(session.number))
        for handle, ino in list(session.handles.items()):
            session.handles.pop(handle)
            is_file = isinstance(self._handles.get(handle), FileHandle)
            if is_file and session.lasts:
                self._holds.closed(session.number, ino)
            with suppress(MdstoreError):
                self._for(session, "release" if is_file else "releasedir", (handle,), {})
        for ino, lookups in session.references.items():
            self._vfs.forget(ino, lookups)
        session.references.clear()
