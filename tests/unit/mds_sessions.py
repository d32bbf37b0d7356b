"""What tests of sessions do again and again: a store in memory, a crash, the rows of a table, the events of the log."""

from __future__ import annotations

import os

from mdstore.engines.mem import MemStore
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab
from mdstore.mds.locks import Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER

SECOND = 10**9
Log = list[tuple[int, bytes]]


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


def log_of(server: MetadataServer) -> Log:
    server.syncfs()
    journal = server._core.journal
    assert journal is not None
    return [(entry.type, entry.payload) for entry in journal.entries()]
