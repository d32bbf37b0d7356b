"""Removing files gives their space back in time, however fast files come and go."""

from __future__ import annotations

import os

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store


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
