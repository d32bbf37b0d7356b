"""Removing files gives their space back in time, however fast files come and go."""

from __future__ import annotations

import os

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import Commit
from mdstore.errors import CorruptionError
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store
from mdstore.store.transaction import Op, Transaction


def test_a_small_store_never_runs_full_while_files_come_and_go_without_a_tick() -> None:
    store = Store.create(MemoryDevice(24 << 20))
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    for number in range(200):
        _, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, bytes([number]) * (1 << 20))
        server.release(handle)
        server.unlink(SUPERUSER, ROOT_INO, b"f%d" % number)
    assert server.counters()["purge_backlog"] < 30
    server.close()
    store.close()


def test_many_small_files_are_purged_when_room_is_short() -> None:
    store = Store.create(MemoryDevice(16 << 20))
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    for number in range(3000):
        _, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x" * 9000)
        server.fsync(handle)
        server.release(handle)
        server.unlink(SUPERUSER, ROOT_INO, b"f%d" % number)
    server.close()
    store.close()


def test_background_work_purges_in_steps_until_nothing_waits() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    for number in range(700):
        _, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x")
        server.fsync(handle)
        server.release(handle)
        server.unlink(SUPERUSER, ROOT_INO, b"f%d" % number)
    assert server.counters()["purge_backlog"] == 700
    assert server.background_work()
    assert server.counters()["purge_backlog"] in range(400, 500), "not more than a step at a time"
    while server.background_work():
        pass
    assert server.counters()["purge_backlog"] == 0
    assert server.counters()["purged_files"] == 700
    assert store.list_objects(b"data") == []


class Damaged(MemStore):
    """A store that cannot remove the objects of one file, as where a page of theirs is damaged."""

    prefix = b"none"

    def submit(self, transaction: Transaction) -> Commit:
        for operation in transaction.operations:
            if operation[0] == Op.REMOVE and operation[2].startswith(self.prefix):
                raise CorruptionError("page", operation[2].decode(), "an intact page", "rot")
        return super().submit(transaction)


def test_a_damaged_file_holds_up_neither_the_tick_nor_the_other_files() -> None:
    store = Damaged()
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    inos = []
    for number in range(50):
        attr, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x")
        server.fsync(handle)
        server.release(handle)
        server.unlink(SUPERUSER, ROOT_INO, b"f%d" % number)
        inos.append(attr.ino)
    store.prefix = b"%016x" % inos[20]
    for now_ns in range(0, 100 * 10**9, 10**9):
        server.tick(now_ns)
    assert server.counters()["purged_files"] == 49
    assert server.counters()["purge_backlog"] == 0
    assert [(row.directory, row.name) for row in server.damage()] == [(inos[20], b"")]
    assert {name[:16] for name in store.list_objects(b"data")} == {store.prefix}
    server.close()
    store.prefix = b"none"
    repaired = MetadataServer.mount(store, count_references=False)
    while repaired.background_work():
        pass
    assert store.list_objects(b"data") == []
    repaired.close()
