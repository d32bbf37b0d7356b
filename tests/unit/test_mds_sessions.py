"""Sessions: requests done exactly once, files without a name kept for who has them open, and the end of it all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from journal import Entry
from mdstore.engines.mem import MemStore
from mdstore.errors import (
    Conflict,
    CorruptionError,
    DeviceFailed,
    InvalidRequest,
    LimitExceeded,
    MdstoreError,
    NotFound,
    errno_of,
)
from mdstore.limits import SESSION_REQUESTS_MAX
from mdstore.mds.core import Limits
from mdstore.mds.events import ClientRequest, Kind, decode_event
from mdstore.mds.layout import META, TABLE_OBJECTS, SessionState, Tab
from mdstore.mds.locks import Lock
from mdstore.mds.replay import Replay
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import NOW, RENAME_EXCHANGE, ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.store.transaction import Transaction
from mdstore.tools.journal_events import Filter, line
from tests.model.mds_check import problems

SECOND = 10**9
Log = list[tuple[int, bytes]]


@pytest.fixture
def store() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, log_unit=4096, log_object_size=8192)
    return store


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number


def after_crash(server: MetadataServer, store: MemStore) -> tuple[MetadataServer, MemStore]:
    """What a crash leaves of what is durable, opened again."""
    server.syncfs()
    left = store.crash()
    return MetadataServer.mount(left), left


def held_on(server: MetadataServer, session: int) -> tuple[int, int]:
    """A file without a name that the session has open, and locked: inode and handle."""
    attr, handle = server.clients.perform(session, 1, 1, "create", SUPERUSER, ROOT_INO, b"gone", 0o644, os.O_RDWR)
    server.clients.perform(session, 2, 1, "unlink", SUPERUSER, ROOT_INO, b"gone")
    assert server.clients.call(session, "take_lock", handle, Lock(1, 0, 9, exclusive=True))
    assert server.clients.resume(session, b"client").kept == [attr.ino]
    return attr.ino, handle


def rows(server: MetadataServer, store: MemStore, table: Tab) -> list[bytes]:
    server.write_back()
    return [key for key, _ in store.map_items(META, TABLE_OBJECTS[table])]


# -- exactly once ------------------------------------------------------------------------------------------------------


def test_a_request_that_was_done_is_answered_again_and_not_done_again(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    made = server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    attr, handle = server.clients.perform(session, 2, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_EXCL)
    server.clients.perform(session, 3, 1, "rename", SUPERUSER, ROOT_INO, b"d", ROOT_INO, b"e")
    assert server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755).ino == made.ino
    again = server.clients.perform(session, 2, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_EXCL)
    assert (again[0].ino, again[1]) == (attr.ino, handle), "the handle that the lost reply told of"
    server.clients.perform(session, 3, 1, "rename", SUPERUSER, ROOT_INO, b"d", ROOT_INO, b"e")
    refused(errno.EEXIST, lambda: server.clients.perform(session, 4, 1, "mkdir", SUPERUSER, ROOT_INO, b"e", 0o755))
    server, left = after_crash(server, store)
    server.clients.resume(session, b"client")
    assert server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755).ino == made.ino
    found, handle = server.clients.perform(session, 2, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_EXCL)
    assert found.ino == attr.ino
    assert server.clients.call(session, "write", handle, 0, b"x") == 1
    server.clients.perform(session, 3, 1, "rename", SUPERUSER, ROOT_INO, b"d", ROOT_INO, b"e")
    assert [info.completed for info in server.clients.list()] == [3], "what was refused was not done"
    server.close()
    assert list(problems(left)) == []


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_request_is_done_once_however_much_of_it_a_crash_left(store: MemStore, acknowledged: bool) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    server.clients.perform(session, 1, 1, "symlink", SUPERUSER, ROOT_INO, b"l", b"target")
    if acknowledged:
        server.syncfs()
    server = MetadataServer.mount(store.crash())
    server.clients.resume(session, b"client")
    attr = server.clients.perform(session, 1, 1, "symlink", SUPERUSER, ROOT_INO, b"l", b"target")
    assert server.lookup(SUPERUSER, ROOT_INO, b"l").ino == attr.ino


def test_a_crash_between_the_events_of_one_request_leaves_it_to_be_done(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"bytes")
    session = server.clients.open(b"client", timeout_ns=SECOND)
    change = SetAttr(size=2, mode=0o600)
    server.clients.perform(session, 1, 1, "setattr", SUPERUSER, attr.ino, change)
    assert events_of(server)[-2:] == [(Kind.SETATTR, 0), (Kind.SETATTR, 1)], "the cut, and then the rest with its row"


def events_of(server: MetadataServer) -> list[tuple[int, int]]:
    """(kind, rows set in the request table) of every event in the log."""
    found = []
    for kind, payload in log_of(server):
        records = list(decode_event(payload, "log"))
        found.append((kind, sum(getattr(record, "table", 0) == Tab.REQUESTS for record in records)))
    return found


def log_of(server: MetadataServer) -> Log:
    server.syncfs()
    journal = server._core.journal
    assert journal is not None
    return [(entry.type, entry.payload) for entry in journal.entries()]


def test_what_the_client_calls_old_is_forgotten_and_refused(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    for number in range(1, 6):
        server.clients.perform(session, number, 1, "mkdir", SUPERUSER, ROOT_INO, b"%d" % number, 0o755)
    assert server.clients.list()[0].completed == 5
    server.clients.perform(session, 6, 5, "mkdir", SUPERUSER, ROOT_INO, b"6", 0o755)
    assert server.clients.list()[0].completed == 2
    assert len(rows(server, store, Tab.REQUESTS)) == 2
    with pytest.raises(InvalidRequest, match="below 5"):
        server.clients.perform(session, 4, 5, "mkdir", SUPERUSER, ROOT_INO, b"4", 0o755)


def test_a_client_that_never_calls_anything_old_is_stopped(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    ino = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    for number in range(SESSION_REQUESTS_MAX):
        server.clients.perform(session, number, 0, "setattr", SUPERUSER, ino, SetAttr(mode=0o700))
    with pytest.raises(LimitExceeded, match="SESSION_REQUESTS_MAX"):
        server.clients.perform(session, SESSION_REQUESTS_MAX, 0, "rmdir", SUPERUSER, ROOT_INO, b"d")
    server.clients.perform(session, SESSION_REQUESTS_MAX - 1, 0, "setattr", SUPERUSER, ino, SetAttr(mode=0o700))
    server.clients.perform(session, SESSION_REQUESTS_MAX, SESSION_REQUESTS_MAX, "rmdir", SUPERUSER, ROOT_INO, b"d")
    assert server.clients.list()[0].completed == 1


def test_events_tell_who_asked(store: MemStore) -> None:
    server = MetadataServer.mount(store, client=b"mount /mnt")
    mine = server.clients.list()[0].number
    theirs = server.clients.open(b"client", timeout_ns=SECOND)
    server.mkdir(SUPERUSER, ROOT_INO, b"mine", 0o755)
    server.clients.perform(theirs, 77, 70, "mkdir", SUPERUSER, ROOT_INO, b"theirs", 0o755)
    asked = [
        record
        for kind, payload in log_of(server)
        for record in decode_event(payload, "log")
        if isinstance(record, ClientRequest)
    ]
    assert [record.client for record in asked] == [mine, theirs]
    assert asked[1].request == 77


# -- coming and going --------------------------------------------------------------------------------------------------


def test_a_silent_session_is_stale_then_ended_by_ticks_alone(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=10 * SECOND)
    server.tick(100 * SECOND)
    server.tick(109 * SECOND)
    assert server.clients.list()[0].state == SessionState.OPEN
    server.clients.renew(session)
    server.tick(118 * SECOND)
    assert server.clients.list()[0].state == SessionState.OPEN
    server.tick(119 * SECOND)
    assert server.clients.list()[0].state == SessionState.STALE
    with pytest.raises(Conflict, match="resume"):
        server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    server, _ = after_crash(server, store)
    assert server.clients.list()[0].state == SessionState.STALE
    with pytest.raises(InvalidRequest, match="is not that of"):
        server.clients.resume(session, b"somebody else")
    server.tick(200 * SECOND)  # its time begins anew with the server's first
    server.clients.resume(session, b"client")
    server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    server.tick(249 * SECOND)
    assert server.clients.list()[0].state == SessionState.STALE
    server.tick(250 * SECOND)
    assert server.clients.list() == []
    with pytest.raises(NotFound):
        server.clients.resume(session, b"client")
    assert rows(server, server._core.store, Tab.REQUESTS) == []  # type: ignore[arg-type]


def test_no_number_is_given_to_two_sessions(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    first = server.clients.open(b"client", timeout_ns=SECOND)
    server.clients.end(first)
    server.close()
    server = MetadataServer.mount(store)
    second = server.clients.open(b"client", timeout_ns=SECOND)
    server = MetadataServer.mount(store.crash())
    assert [info.number for info in server.clients.list()] == [second]
    assert server.clients.open(b"client", timeout_ns=SECOND) == second + 1 == first + 2


def test_a_mounts_session_ends_with_the_mount_or_at_the_next(store: MemStore) -> None:
    server = MetadataServer.mount(store, client=b"mount /mnt")
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    server.syncfs()
    left = store.crash()
    assert [info.name for info in MetadataServer.mount(left, read_only=True).clients.list()] == [b"mount /mnt"]
    server = MetadataServer.mount(left, client=b"mount /other")
    assert [info.name for info in server.clients.list()] == [b"mount /other"]
    server.close()
    assert MetadataServer.mount(left).clients.list() == []


def test_the_end_of_a_session_gives_back_all_it_had(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    one, two = (server.clients.open(name, timeout_ns=SECOND) for name in (b"one", b"two"))
    attr, handle = server.clients.perform(one, 1, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    other = server.clients.call(two, "open", SUPERUSER, attr.ino, os.O_RDWR)
    assert server.clients.call(one, "take_lock", handle, Lock(9, 0, 9, exclusive=True))
    assert server.clients.call(one, "take_lock", handle, Lock(0, 0, 9, exclusive=True), flock=True)
    wanted = Lock(9, 0, 9, exclusive=True)  # the same number of another client's process
    assert not server.clients.call(two, "take_lock", other, wanted)
    granted: list[str] = []
    server.clients.call(two, "wait_for_lock", other, wanted, 1, lambda: granted.append("posix"))
    server.clients.call(two, "wait_for_lock", other, wanted, 2, lambda: granted.append("flock"), flock=True)
    refused(errno.EBADF, lambda: server.clients.call(two, "read", handle, 0, 1))
    server.clients.end(one)
    assert granted == ["posix", "flock"]
    server.clients.call(two, "release", other)
    assert server.counters()["open_handles"] == 0
    server.clients.end(two)
    assert server.counters()["references"] == 0
    assert server.clients.list() == []


# -- files without a name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"bytes"])
def test_an_unlinked_file_survives_a_crash_while_its_session_lasts(store: MemStore, content: bytes) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    attr, handle = server.clients.perform(session, 1, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o640, os.O_RDWR)
    server.clients.call(session, "write", handle, 0, content)
    server.clients.perform(session, 2, 1, "unlink", SUPERUSER, ROOT_INO, b"f")
    server, left = after_crash(server, store)
    server.purge_all()
    assert server.clients.resume(session, b"client").kept == [attr.ino]
    handle = server.clients.call(session, "open", SUPERUSER, attr.ino, os.O_RDWR)
    assert server.clients.call(session, "read", handle, 0, 100) == content
    assert server.getattr(attr.ino).mode & 0o777 == 0o640
    server.clients.call(session, "write", handle, 0, b"more of it")
    server, left = after_crash(server, left)
    server.clients.resume(session, b"client")
    handle = server.clients.call(session, "open", SUPERUSER, attr.ino, os.O_RDWR)
    assert server.clients.call(session, "read", handle, 0, 100) == b"more of it"
    server.clients.call(session, "release", handle)
    assert server.clients.list()[0].kept == []
    server.purge_all()
    refused(errno.ESTALE, lambda: server.getattr(attr.ino))
    server.close()
    assert list(problems(left)) == []
    assert list(left.map_items(META, TABLE_OBJECTS[Tab.STRAYS])) == []
    assert list(left.map_items(META, TABLE_OBJECTS[Tab.OPEN])) == []


@pytest.mark.parametrize("how", ["ended", "evicted", "let go"])
def test_an_unlinked_file_goes_when_nobody_comes_for_it(store: MemStore, how: str) -> None:
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=SECOND)
    attr, handle = server.clients.perform(session, 1, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o640, os.O_RDWR)
    server.clients.call(session, "write", handle, 0, b"bytes")
    server.clients.perform(session, 2, 1, "unlink", SUPERUSER, ROOT_INO, b"f")
    server, left = after_crash(server, store)
    if how == "ended":
        server.clients.end(session)
    elif how == "let go":
        server.clients.let_go_of(session, attr.ino)
    else:
        server.tick(SECOND)
        server.tick(100 * SECOND)
    server.purge_all()
    server.close()
    assert [table for table in (Tab.STRAYS, Tab.OPEN) if list(left.map_items(META, TABLE_OBJECTS[table]))] == []
    assert list(problems(left)) == []


def test_a_file_opened_after_its_last_name_went_is_kept_too(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    attr, mine = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(mine, 0, b"bytes")
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    session = server.clients.open(b"client", timeout_ns=SECOND)
    handle = server.clients.call(session, "open", SUPERUSER, attr.ino, os.O_RDONLY)
    second = server.clients.call(session, "open", SUPERUSER, attr.ino, os.O_RDONLY)
    server.clients.call(session, "release", handle)
    server.release(mine)
    server.forget(attr.ino, 1)
    server, _ = after_crash(server, store)
    assert server.clients.resume(session, b"client").kept == [attr.ino], f"handle {second} was open still"


def test_damaged_rows_of_sessions_stop_nobody_and_are_noted(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    kept = server.clients.open(b"kept", timeout_ns=SECOND)
    lost = server.clients.open(b"lost", timeout_ns=SECOND)
    server.clients.perform(lost, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    server.close()
    key = lost.to_bytes(8, "big")
    store.apply(Transaction().map_set(META, TABLE_OBJECTS[Tab.SESSIONS], {key: b"nonsense"}))
    server = MetadataServer.mount(store)
    assert [info.number for info in server.clients.list()] == [kept]
    assert len(server.damage()) == 2, "the session, and the request that belongs to nobody now"
    assert server.clients.open(b"new", timeout_ns=SECOND) == lost + 1


# -- replay ------------------------------------------------------------------------------------------------------------


def everything(server: MetadataServer) -> None:
    """Make an event of every kind."""
    clients = server.clients
    session = clients.open(b"client", timeout_ns=SECOND)
    ended = clients.open(b"ended", timeout_ns=SECOND)
    numbers = iter(range(1, 1000))

    def do(verb: str, *args: object) -> object:
        return clients.perform(session, next(numbers), 5, verb, SUPERUSER, *args)

    next(numbers), next(numbers), next(numbers), next(numbers)
    for name in (b"a", b"b"):
        ino = server.mkdir(SUPERUSER, ROOT_INO, name, 0o755).ino
        do("mkdir", ino, b"sub", 0o755)
        do("symlink", ino, b"s", b"target")
        do("mknod", ino, b"p", 0o010644, 0)
    attr, handle = server.create(SUPERUSER, ino, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"bytes" * 100)
    server.fsync(handle)
    do("link", attr.ino, ROOT_INO, b"hard")
    do("setxattr", attr.ino, b"user.k", b"v")
    do("setattr", attr.ino, SetAttr(size=7, mtime_ns=NOW))
    do("rename", ROOT_INO, b"hard", ino, b"harder")
    do("rename", ino, b"p", ino, b"s", RENAME_EXCHANGE)
    do("unlink", ino, b"f")
    do("rmdir", ino, b"sub")
    clients.perform(session, next(numbers), 5, "create", SUPERUSER, ROOT_INO, b"kept", 0o644, os.O_RDWR)
    do("unlink", ROOT_INO, b"kept")
    gone, unlinked = server.create(SUPERUSER, ROOT_INO, b"gone", 0o644, os.O_RDWR)
    server.write(unlinked, 0, b"x")
    server.fsync(unlinked)
    server.unlink(SUPERUSER, ROOT_INO, b"gone")
    server.release(unlinked)
    server.forget(gone.ino, 1)
    server.purge_all()
    server.getxattr(SUPERUSER, ROOT_INO, b"mdstore.rbytes")
    clients.end(ended)
    server._core.append(Kind.TABLE, server._core.put_row(server._core.damage, bytes(8) + b"n", b"found"))
    server._core.append(Kind.REPAIR, server._changes.inode(server._cache.node(ino), 5))


@pytest.mark.parametrize("limits", [Limits(), Limits(dirty_entries=3, dirty_entries_low=1, cache_bytes=64 * 700)])
def test_every_kind_of_event_may_be_replayed_twice(
    store: MemStore, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    server = MetadataServer.mount(store, clock=lambda: 5)
    everything(server)
    assert {kind for kind, _ in log_of(server)} == set(Kind)
    expected = state_after_mounting(store.crash(), limits)
    visit = Replay.visit

    def each_twice(self: Replay, batch: list[Entry]) -> None:
        for entry in batch:
            visit(self, [entry])
            visit(self, [entry])

    def batch_twice(self: Replay, batch: list[Entry]) -> None:
        visit(self, batch)
        visit(self, batch)

    for again in (each_twice, batch_twice):
        monkeypatch.setattr(Replay, "visit", again)
        assert state_after_mounting(store.crash(), limits) == expected


def state_after_mounting(store: MemStore, limits: Limits) -> dict[bytes, object]:
    """Everything in the directory and table objects once what the log holds is written back."""
    server = MetadataServer.mount(store, limits=limits, clock=lambda: 5)
    server.close()
    assert list(problems(store)) == []
    return {name: (store.map_header(META, name), list(store.map_items(META, name))) for name in store.list_objects(META)}


def test_the_log_can_be_searched_for_what_a_client_asked_for(store: MemStore) -> None:
    server = MetadataServer.mount(store, client=b"mount /mnt")
    mine = server.clients.list()[0].number
    theirs = server.clients.open(b"client", timeout_ns=SECOND)
    server.mkdir(SUPERUSER, ROOT_INO, b"mine", 0o755)
    server.clients.perform(theirs, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"theirs", 0o755)
    server.syncfs()
    journal = server._core.journal
    assert journal is not None
    entries = list(journal.entries())
    kinds = {client: [entry.type for entry in entries if Filter(client=client)(entry)] for client in (mine, theirs)}
    assert kinds == {mine: [Kind.SESSION, Kind.MKDIR], theirs: [Kind.SESSION, Kind.MKDIR]}
    assert "request 1 of client" in line([entry for entry in entries if Filter(client=theirs)(entry)][1], events=True)


def test_a_create_that_found_its_file_is_answered_again_with_the_same_handle(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    server.release(server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)[1])
    client = server.clients.open(b"c", timeout_ns=10**9)
    arguments = (SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    first = server.clients.perform(client, 1, 1, "create", *arguments)
    again = server.clients.perform(client, 1, 1, "create", *arguments)
    assert first == again
    for request in range(2, 200):
        handle = server.clients.perform(client, request, request, "create", *arguments)[1]
        server.clients.call(client, "release", handle)
    assert len(server._sessions.find(client).lifetime) < 3, "what the client calls old is forgotten"


def test_a_create_of_a_file_its_maker_may_not_write_is_answered_again_after_a_crash() -> None:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, root_mode=0o777)
    server = MetadataServer.mount(store)
    client = server.clients.open(b"c", timeout_ns=10**9)
    arguments = (Credentials(1000, 1000), ROOT_INO, b"f", 0o444, os.O_RDWR | os.O_EXCL)
    made = server.clients.perform(client, 1, 1, "create", *arguments)[0]
    server.syncfs()
    after = MetadataServer.mount(store.crash())
    after.clients.resume(client, b"c")
    found, handle = after.clients.perform(client, 1, 1, "create", *arguments)
    assert found.ino == made.ino
    assert after.clients.call(client, "write", handle, 0, b"mine") == 4


@pytest.mark.parametrize(("request_", "oldest"), [(1 << 64, 1), (-1, 0), (1, 1 << 63), (3, -1)])
def test_a_number_that_makes_no_sense_changes_nothing(store: MemStore, request_: int, oldest: int) -> None:
    server = MetadataServer.mount(store)
    client = server.clients.open(b"c", timeout_ns=10**9)
    with pytest.raises(InvalidRequest):
        server.clients.perform(client, request_, oldest, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    assert server.getattr(ROOT_INO).size == 0
    server.clients.perform(client, 2, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    assert server.getattr(ROOT_INO).size == 1


def test_locks_and_what_sessions_had_open_can_be_given_back_after_falling_back() -> None:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, client=b"mount")
    found, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    client = server.clients.open(b"c", timeout_ns=10**9)
    theirs = server.clients.call(client, "open", SUPERUSER, found.ino, os.O_RDONLY)
    server.fsync(handle)
    other = server.open(SUPERUSER, found.ino, os.O_RDWR)
    mine, another = Lock(7, 0, 9, True, 1), Lock(8, 0, 9, True, 1)
    assert server.take_lock(handle, mine)
    assert server.take_lock(handle, mine, flock=True)
    left = store.crash()
    server.fall_back(lambda: left, DeviceFailed("write", "the medium", OSError(5, "told to fail")))
    assert server.take_lock(handle, mine), "it is the same owner"
    assert not server.take_lock(other, another)
    server.drop_lock(handle, 7)
    server.release(handle)
    assert server.take_lock(other, another)
    assert server.take_lock(other, another, flock=True)
    assert server.clients.call(client, "read", theirs, 0, 10) == b""
    server.clients.call(client, "release", theirs)
    server.release(other)
    assert server.counters()["open_handles"] == 0


def test_a_close_that_meets_trouble_closes_all_the_same(store: MemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # The session had lost the handle before writing back failed, and the server kept it: the file was never removed.
    server = MetadataServer.mount(store, limits=Limits(dirty_entries=1))
    session = server.clients.open(b"client", timeout_ns=SECOND)
    ino, handle = held_on(server, session)
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)

    def damaged() -> None:
        raise CorruptionError("a page", "page 7", "its checksum", "another")

    with monkeypatch.context() as patched:
        patched.setattr(server._writeback, "relieve", damaged)
        refused(errno.EIO, lambda: server.clients.call(session, "release", handle))
    refused(errno.EBADF, lambda: server.clients.call(session, "release", handle))
    assert server.counters()["open_handles"] == 0
    assert server._locks.table(flock=False).is_empty()
    assert server.clients.resume(session, b"client").kept == []
    assert rows(server, store, Tab.OPEN) == []
    server.clients.call(session, "forget", ino, 1)
    assert server.counters()["purge_backlog"] == 1
    server.purge_all()
    assert server.failure is None


def test_sessions_of_a_server_that_fell_back_go_on_and_end(store: MemStore) -> None:
    # Each of these wanted to write a row, and was refused half-way: EROFS.
    server = MetadataServer.mount(store)
    one, two = (server.clients.open(name, timeout_ns=SECOND) for name in (b"client", b"two"))
    ino, handle = held_on(server, one)
    server.tick(0)
    server.tick(SECOND)
    server.syncfs()
    left = store.crash()
    server.fall_back(lambda: left, DeviceFailed("write", "the medium", OSError(5, "told to fail")))
    for number, name in ((one, b"client"), (two, b"two")):
        assert server.clients.resume(number, name).state == SessionState.OPEN
    other = server.clients.call(two, "open", SUPERUSER, ino, os.O_RDONLY)
    assert not server.clients.call(two, "take_lock", other, Lock(2, 0, 9, exclusive=True))
    server.clients.call(one, "release", handle)
    assert server.clients.call(two, "take_lock", other, Lock(2, 0, 9, exclusive=True))
    refused(errno.EROFS, lambda: server.clients.let_go_of(one, ino))
    server.clients.end(two)
    assert server._locks.table(flock=False).is_empty()
    assert server.counters()["open_handles"] == 0
    assert [info.number for info in server.clients.list()] == [one]
    assert [info.number for info in MetadataServer.mount(left).clients.list()] == [one, two], "nothing was written"
