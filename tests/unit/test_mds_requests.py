"""Requests of sessions are done exactly once, whatever replies and crashes come between."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import InvalidRequest, LimitExceeded
from mdstore.limits import SESSION_REQUESTS_MAX
from mdstore.mds.events import Kind, decode_event
from mdstore.mds.layout import Tab
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
from tests.model.mds_check import problems
from tests.unit.mds_calls import formatted, refused
from tests.unit.mds_sessions import SECOND, after_crash, log_of, rows


@pytest.fixture
def store() -> MemStore:
    return formatted()


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
