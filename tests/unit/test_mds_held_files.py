"""Files without a name are kept for the sessions that have them open, over a crash."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError
from mdstore.mds.core import Limits
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from tests.model.mds_check import problems
from tests.unit.mds_calls import formatted, refused
from tests.unit.mds_sessions import SECOND, after_crash, held_on, rows


@pytest.fixture
def store() -> MemStore:
    return formatted()


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
