"""Events tell who asked for them, and may be replayed twice."""

from __future__ import annotations

import os

import pytest

from journal import Entry
from mdstore.engines.mem import MemStore
from mdstore.mds.core import Limits
from mdstore.mds.events import ClientRequest, Kind, decode_event
from mdstore.mds.layout import META
from mdstore.mds.replay import Replay
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import NOW, RENAME_EXCHANGE, ROOT_INO, SUPERUSER, SetAttr
from mdstore.tools.journal_events import Filter, line
from tests.model.mds_check import problems
from tests.unit.mds_calls import formatted
from tests.unit.mds_sessions import SECOND, log_of


@pytest.fixture
def store() -> MemStore:
    return formatted()


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
