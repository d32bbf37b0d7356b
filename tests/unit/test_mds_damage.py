"""What damage touches, and what want of space refuses."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError
from mdstore.mds.layout import META, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.transaction import Transaction
from tests.unit.mds_calls import formatted, make_file, names_in, refused


@pytest.fixture
def store() -> MemStore:
    return formatted()


def test_a_damaged_directory_answers_eio_below_it_and_leaves_a_row_and_the_rest_works(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    bad = server.mkdir(SUPERUSER, ROOT_INO, b"bad", 0o755).ino
    good = server.mkdir(SUPERUSER, ROOT_INO, b"good", 0o755).ino
    make_file(server, bad, b"f")
    make_file(server, good, b"f")
    server.close()
    store.apply(Transaction().map_set_header(META, directory_object(bad), b"rubbish"))
    store.apply(Transaction().map_set(META, directory_object(good), {b"f2": b"\1rubbish"}))
    server = MetadataServer.mount(store)
    for call in (
        lambda: server.lookup(SUPERUSER, bad, b"f"),
        lambda: server.opendir(SUPERUSER, bad),
        lambda: server.lookup(SUPERUSER, good, b"f2"),
    ):
        refused(errno.EIO, call)
    assert server.lookup(SUPERUSER, good, b"f").size == 0
    make_file(server, good, b"new")
    server.close()
    server = MetadataServer.mount(store)
    assert [(row.directory, row.name) for row in server.damage()] == [(bad, b""), (good, b"f2")]
    assert "rubbish" in server.damage()[0].message or "directory header" in server.damage()[0].message
    assert server.forget_damage(bad, b"")
    assert not server.forget_damage(bad, b"")


def test_a_damaged_log_is_named_and_nothing_is_changed(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    for number in range(50):
        make_file(server, ROOT_INO, b"f%d" % number)
        server.syncfs()
    left = store.crash()
    name = left.list_objects(b"log", b"events.0", b"events.1")[0]
    left.apply(Transaction().write(b"log", name, 300, b"\xee" * 40))
    with pytest.raises(CorruptionError, match="log"):
        MetadataServer.mount(left)


def test_no_space_is_said_before_anything_changes_and_removing_works(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    make_file(server, ROOT_INO, b"f", b"x" * 5000)
    server.syncfs()
    free = {"size_bytes": 1 << 40, "free_bytes": 1 << 20}
    store.statistics = lambda: free  # type: ignore[method-assign,assignment,return-value]
    server._space.look()
    refused(errno.ENOSPC, lambda: server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755))
    handle = server.open(SUPERUSER, server.lookup(SUPERUSER, ROOT_INO, b"f").ino, os.O_RDWR)
    refused(errno.ENOSPC, lambda: server.write(handle, 0, b"y" * 100))
    server.release(handle)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    free["free_bytes"] = 1 << 30
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    assert names_in(server) == [b"d"]
