"""Sessions: who uses the name space, and what is kept for them across a crash.

A session lasts when it has a timeout: its row, the requests it was told are done, and the files without a name it has open
survive a restart of the server. One without a timeout (a mount, a command) is over when its server is: nobody could come back.

| state | goes to | when                                                                                |
|-------|---------|-------------------------------------------------------------------------------------|
| open  | stale   | nothing was heard of it for its timeout                                              |
| stale | open    | `resume`                                                                            |
| both  | gone    | `end`; nothing heard for `EVICTED_AFTER` timeouts; at the next opening, if it does not last |

No clock: the time is what `tick` was told last.

Invariants

 N1  a row of the request table or of the open table belongs to a row of the session table
 N2  `Session.completed` is the session's rows of the request table
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from mdstore.errors import Conflict, CorruptionError, InvalidRequest, LimitExceeded, NotFound
from mdstore.limits import SESSION_NAME_MAX, SESSION_REQUESTS_MAX, SESSIONS_MAX
from mdstore.mds.core import Core
from mdstore.mds.damage import note_damage
from mdstore.mds.events import Kind
from mdstore.mds.holds import Holds
from mdstore.mds.layout import (
    INO_KEY,
    NEXT_SESSION,
    NEXT_SESSION_KEY,
    REQUEST_KEY,
    Done,
    SessionRecord,
    SessionState,
    Tab,
    decode_done,
    decode_session,
    encode_done,
    encode_session,
)
from mdstore.mds.purge import Purge
from mdstore.mds.tables import Table

EVICTED_AFTER: Final = 5  # timeouts without a word; in between others may be kept waiting by its locks
EVENT_ROWS: Final = 512  # dropped by one event
REQUESTS_END: Final = 1 << 64  # numbers of requests are u64 on disk
TIMEOUTS_END: Final = 1 << 63  # timeouts are i64 on disk


class SessionInfo(NamedTuple):
    """A session as told to others. `kept`: inodes without a name that it may open again."""

    number: int
    name: bytes
    state: SessionState
    timeout_ns: int
    opened_at: int
    completed: int
    handles: int
    kept: list[int]


class Session:
    """One session. `handles`: number to inode; `references`: inode to how often its number was handed out."""

    __slots__ = ("completed", "handles", "heard_ns", "lifetime", "number", "oldest", "record", "references")

    def __init__(self, number: int, record: SessionRecord) -> None:
        self.number = number
        self.record = record
        self.heard_ns: int | None = None  # None: not since the server was opened, which begins its time anew
        self.completed: SortedDict[int, Done] = SortedDict()
        self.lifetime: dict[int, int] = {}  # requests answered since the server was opened, and the handle they opened
        self.oldest = 0
        self.handles: dict[int, int] = {}
        self.references: dict[int, int] = {}

    @property
    def lasts(self) -> bool:
        return self.record.timeout_ns > 0

    def knows(self, request: int) -> bool:
        """Whether the request was answered already."""
        return request in self.completed or request in self.lifetime


class Sessions:
    """The session table. The caller holds the core's lock. `let_go` closes what a session has open when it ends."""

    def __init__(self, core: Core, holds: Holds, purge: Purge) -> None:
        self._core = core
        self._holds = holds
        self._purge = purge
        self._table = core.tables[Tab.SESSIONS]
        self._requests = core.tables[Tab.REQUESTS]
        self._sessions: dict[int, Session] = {}
        self._now_ns: int | None = None
        self.let_go: Callable[[Session], None] = lambda session: None

    def load(self) -> None:
        """Read the tables, after recovery; where changes are possible, end what does not last. A row that cannot be read is
        damage and passed over."""
        core = self._core
        raw = core.tables[Tab.SERVER].get(NEXT_SESSION_KEY)
        if raw is not None and len(raw) == NEXT_SESSION.size:
            core.next_session = NEXT_SESSION.unpack(raw)[0]
        holds = self._holds
        readers = ((self._table, self._take), (self._requests, self._take_request), (holds.table, holds.take))
        for table, take in readers:
            for key, row in self._rows(table):
                try:
                    take(key, row)
                except CorruptionError as error:
                    note_damage(core, 0, table.object_name + b" " + key.hex().encode(), error)
        if core.journal is not None:
            for session in [session for session in self._sessions.values() if not session.lasts]:
                self.end(session.number)

    def _rows(self, table: Table) -> list[tuple[bytes, bytes]]:
        """All of them; as none where the table cannot be read and nothing is changed: only a writer needs them."""
        try:
            return list(table.rows())
        except CorruptionError as error:
            if self._core.journal is not None:
                raise
            note_damage(self._core, 0, table.object_name, error)
            return []

    def _take(self, key: bytes, row: bytes) -> None:
        if len(key) != INO_KEY.size:
            raise CorruptionError("session table", f"row {key.hex()}", "a key of 8 bytes", len(key))
        number = INO_KEY.unpack(key)[0]
        self._sessions[number] = Session(number, decode_session(row, f"session table, row {number}"))
        self._core.next_session = max(self._core.next_session, number + 1)

    def _take_request(self, key: bytes, row: bytes) -> None:
        session = self._sessions.get(INO_KEY.unpack_from(key)[0]) if len(key) == REQUEST_KEY.size else None
        if session is None:
            raise CorruptionError("request table", f"row {key.hex()}", "a session's request", "none")
        session.completed[REQUEST_KEY.unpack(key)[1]] = decode_done(row, f"request table, row {key.hex()}")

    def forget_all(self) -> dict[int, Session]:
        """Before `load` is called again; what `go_on` wants afterwards."""
        before, self._sessions = self._sessions, {}
        return before

    def go_on(self, before: dict[int, Session], open_handles: Container[int]) -> None:
        """After `load`: what each session had open and was handed, as far as it is still there."""
        for number, session in self._sessions.items():
            if number in before:
                old = before[number]
                session.handles = {handle: ino for handle, ino in old.handles.items() if handle in open_handles}
                session.references, session.lifetime, session.oldest = old.references, old.lifetime, old.oldest

    # -- coming and going ----------------------------------------------------------------------------------------------

    def open(self, name: bytes, timeout_ns: int) -> Session:
        """A new session, under a number that none had before. LimitExceeded, InvalidRequest."""
        core = self._core
        core.assert_writable()
        if len(name) > SESSION_NAME_MAX:
            raise LimitExceeded("SESSION_NAME_MAX", len(name), SESSION_NAME_MAX)
        if len(self._sessions) >= SESSIONS_MAX:
            raise LimitExceeded("SESSIONS_MAX", len(self._sessions) + 1, SESSIONS_MAX)
        if not 0 <= timeout_ns < TIMEOUTS_END:
            raise InvalidRequest(f"a timeout of {timeout_ns} ns makes no sense; 0 is none, 2**63 - 1 the longest")
        session = Session(core.next_session, SessionRecord(SessionState.OPEN, timeout_ns, core.clock(), name))
        core.next_session += 1
        counted = core.put_row(core.tables[Tab.SERVER], NEXT_SESSION_KEY, NEXT_SESSION.pack(core.next_session))
        core.append(Kind.SESSION, counted + self._row(session))
        session.heard_ns = self._now_ns
        self._sessions[session.number] = session
        return session

    def resume(self, number: int, name: bytes) -> Session:
        """The session goes on. NotFound when it has ended, InvalidRequest for another's number."""
        session = self.find(number)
        if session.record.name != name:
            raise InvalidRequest(f"session {number} is not that of {name!r}")
        session.heard_ns = self._now_ns
        if session.record.state == SessionState.STALE:
            self._become(session, SessionState.OPEN)
        return session

    def live(self, number: int) -> Session:
        """The session, which has been heard of now. NotFound, Conflict when it is stale: resume it."""
        session = self.find(number)
        if session.record.state == SessionState.STALE:
            raise Conflict(f"session {number} is stale; resume it and try again")
        session.heard_ns = self._now_ns
        return session

    def find(self, number: int) -> Session:
        """NotFound."""
        session = self._sessions.get(number)
        if session is None:
            raise NotFound("session", number)
        return session

    def end(self, number: int) -> None:
        """Everything it has is given back; what it alone kept is purged. NotFound. Where nothing can be written any more its rows
        stay, for the next opening to end it."""
        core = self._core
        session = self.find(number)
        self.let_go(session)
        if not core.is_writable():
            del self._sessions[number]
            return
        kept = self._holds.of(number)
        dropped = [core.drop_row(self._requests, REQUEST_KEY.pack(number, request)) for request in session.completed]
        dropped += [self._holds.drop(number, ino) for ino in kept]
        dropped.append(core.drop_row(self._table, INO_KEY.pack(number)))  # last: no row is left without its session
        for start in range(0, len(dropped), EVENT_ROWS):
            core.append(Kind.SESSION, b"".join(dropped[start : start + EVENT_ROWS]))
        del self._sessions[number]
        for ino in kept:
            self._purge.let_go(ino)

    def tick(self, now_ns: int) -> None:
        """Time passes: who was not heard of for its timeout is stale, who was not for several is ended."""
        self._now_ns = now_ns
        for session in list(self._sessions.values()):
            if session.heard_ns is None:
                session.heard_ns = now_ns
            silence, timeout = now_ns - session.heard_ns, session.record.timeout_ns
            if not timeout or silence < timeout:
                continue
            if silence >= EVICTED_AFTER * timeout:
                self.end(session.number)
            elif session.record.state == SessionState.OPEN:
                self._become(session, SessionState.STALE)

    def list(self) -> list[SessionInfo]:
        """All sessions by number."""
        return [self.info(session) for _, session in sorted(self._sessions.items())]

    def info(self, session: Session) -> SessionInfo:
        """What `list` tells of one."""
        record = session.record
        return SessionInfo(
            session.number, record.name, record.state, record.timeout_ns, record.opened_at, len(session.completed),
            len(session.handles), self._holds.of(session.number),
        )  # fmt: skip

    # -- requests ------------------------------------------------------------------------------------------------------

    def settle_requests(self, session: Session, number: int, oldest: int) -> None:
        """Before request `number`; the client waits for no reply below `oldest` any more. InvalidRequest, LimitExceeded."""
        floor = max(session.oldest, oldest)
        if not 0 <= number < REQUESTS_END or oldest < 0:
            raise InvalidRequest(f"request {number}, oldest {oldest}: numbers of requests are 0 to 2**64 - 1")
        if number < floor:
            raise InvalidRequest(f"request {number} is below {floor}, which the client called its oldest")
        waiting = max(
            len(session.completed) - session.completed.bisect_left(floor), sum(1 for known in session.lifetime if known >= floor)
        )
        if waiting >= SESSION_REQUESTS_MAX and not session.knows(number):
            raise LimitExceeded("SESSION_REQUESTS_MAX", waiting + 1, SESSION_REQUESTS_MAX)
        if floor > session.oldest:
            session.oldest = floor
            session.lifetime = {known: handle for known, handle in session.lifetime.items() if known >= floor}

    def complete(self, session: Session, number: int, done: Done) -> bytes:
        """The request is done: the records for its event, with those that forget what nobody asks for any more."""
        core = self._core
        records = []
        while session.completed and session.completed.peekitem(0)[0] < session.oldest:
            old = session.completed.popitem(0)[0]
            records.append(core.drop_row(self._requests, REQUEST_KEY.pack(session.number, old)))
        session.completed[number] = done
        records.append(core.put_row(self._requests, REQUEST_KEY.pack(session.number, number), encode_done(done)))
        return b"".join(records)

    def let_go_of(self, session: Session, ino: int) -> None:
        """The session keeps an inode without a name no longer."""
        self._core.assert_writable()
        with self._core.guard:
            record = self._holds.drop(session.number, ino)
            if record:
                self._core.append(Kind.SESSION, record)
                self._purge.let_go(ino)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _become(self, session: Session, state: SessionState) -> None:
        session.record = session.record._replace(state=state)
        if self._core.is_writable():
            self._core.append(Kind.SESSION, self._row(session))

    def _row(self, session: Session) -> bytes:
        return self._core.put_row(self._table, INO_KEY.pack(session.number), encode_session(session.record))
