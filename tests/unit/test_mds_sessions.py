"""Sessions come, go stale, end, and give back all they had; damage and a fallen-back server between."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import Conflict, DeviceFailed, InvalidRequest, NotFound
from mdstore.mds.layout import META, TABLE_OBJECTS, SessionState, Tab
from mdstore.mds.locks import Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.transaction import Transaction
from tests.unit.mds_calls import formatted, refused
from tests.unit.mds_sessions import SECOND, after_crash, held_on, rows


@pytest.fixture
def store() -> MemStore:
    return formatted()


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
