"""Reads do not keep others waiting, nor wait for others longer than the medium makes them."""

from __future__ import annotations

import os
import random
import threading

import pytest

from mdstore.engines.mem import MemStore
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr


class SlowStore:
    """A store in memory whose reads of data wait until they are let through."""

    def __init__(self) -> None:
        self.inner = MemStore()
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def read(self, collection: bytes, name: bytes, offset: int, length: int) -> bytes:
        if collection == b"data":
            self.asked.set()
            self.may_answer.wait()
        return self.inner.read(collection, name, offset, length)


class World:
    """A file of ten bytes in a store that is slow from here on, and a thread that reads it."""

    def __init__(self) -> None:
        self.store = SlowStore()
        MetadataServer.format(self.store, now_ns=1)  # type: ignore[arg-type]
        self.server = MetadataServer.mount(self.store)  # type: ignore[arg-type]
        self.attr, self.handle = self.server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
        self.server.write(self.handle, 0, b"0123456789")
        self.server.fsync(self.handle)
        self.answer: list[bytes] = []
        self.thread = threading.Thread(target=lambda: self.answer.append(self.server.read(self.handle, 2, 100)))

    def begin(self) -> None:
        self.store.may_answer.clear()
        self.thread.start()
        self.store.asked.wait()

    def end(self) -> bytes:
        self.store.may_answer.set()
        self.thread.join()
        return self.answer[0]


@pytest.fixture
def world() -> World:
    return World()


def test_others_go_on_while_a_read_waits_for_the_medium(world: World) -> None:
    world.begin()
    made = world.server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    world.server.rename(SUPERUSER, ROOT_INO, b"f", made.ino, b"g")
    assert world.server.getattr(world.attr.ino).size == 10
    assert world.end() == b"23456789"


@pytest.mark.parametrize("change", ["cut", "grown", "written", "zeroed"])
def test_a_read_under_which_the_file_changes_answers_what_was_once_true(world: World, change: str) -> None:
    world.begin()
    if change in ("cut", "grown"):
        world.server.setattr(SUPERUSER, world.attr.ino, SetAttr(size=4 if change == "cut" else 12))
    elif change == "written":
        world.server.write(world.handle, 0, b"abcdefghij")
        world.server.fsync(world.handle)
    else:
        world.server.fallocate(world.handle, 3, 0, 4)
    expected = {"cut": b"23", "grown": b"23456789\0\0", "written": b"cdefghij", "zeroed": b"\0\x00456789"}[change]
    assert world.end() in (b"23456789", expected)


def test_what_memory_has_is_read_without_the_medium(world: World) -> None:
    server = world.server
    world.store.may_answer.clear()
    assert server.read_cached(world.handle, 0, 10) is None, "the store has it"
    assert server.read_cached(world.handle, 10, 10) == b"", "the end is known"
    server.write(world.handle, 4, b"wxyz")
    assert server.read_cached(world.handle, 5, 2) == b"xy"
    assert server.read_cached(world.handle, 3, 2) is None
    _, empty = server.create(SUPERUSER, ROOT_INO, b"hole", 0o644, os.O_RDWR)
    server.fallocate(empty, 0, 0, 5)
    assert server.read_cached(empty, 0, 10) == bytes(5)


def test_a_cached_read_does_not_wait_for_who_holds_the_lock(world: World) -> None:
    server = world.server
    server.write(world.handle, 0, b"buffered!!")
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with server._lock:
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    assert server.read_cached(world.handle, 0, 3) is None
    done.set()
    holder.join()
    assert server.read_cached(world.handle, 0, 3) == b"buf"


def test_background_work_writes_back_in_small_pieces_until_little_is_dirty() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    server._core.limits = server._core.limits.__class__(dirty_entries=10_000, dirty_entries_low=2_500)
    for number in range(60):
        parent = server.mkdir(SUPERUSER, ROOT_INO, b"d%d" % number, 0o755).ino
        for file in range(50):
            server.mknod(SUPERUSER, parent, b"%d" % file, 0o100644)
    before = server._core.changes
    assert server.background_work()
    pieces = 1
    assert before - 2200 < server._core.changes < before - 900, "about a thousand entries"
    while server.background_work():
        pieces += 1
    assert pieces <= 4
    assert server._core.changes < 2_500


@pytest.mark.parametrize("seed", range(3))
def test_a_large_directory_lists_right_while_its_changes_are_written_and_not(seed: int) -> None:
    """Entries stored, changed, removed and made again, in pages of every size, while others come and go."""
    print("seed", seed)
    rng = random.Random(seed)
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, count_references=False)
    stay = {b"%06d" % number for number in rng.sample(range(100_000), 2000)}
    for number, name in enumerate(sorted(stay, key=lambda name: rng.random())):
        server.mknod(SUPERUSER, ROOT_INO, name, 0o100644)
        if number == 1200:
            server.write_back()
            server.drop_caches()
    for name in rng.sample(sorted(stay), 300):
        server.unlink(SUPERUSER, ROOT_INO, name)
        server.mknod(SUPERUSER, ROOT_INO, name, 0o100644)
    for name in rng.sample(sorted(stay), 200):
        server.unlink(SUPERUSER, ROOT_INO, name)
        stay.remove(name)
    handle = server.opendir(SUPERUSER, ROOT_INO)
    found: list[bytes] = []
    passing: list[bytes] = []
    while page := server.readdir(handle, found[-1] if found else None, rng.randrange(1, 200)):
        found += [entry.name for entry in page]
        for _ in range(rng.randrange(4)):
            name = b"%06d" % rng.randrange(100_000)
            if name not in stay and name not in passing:
                server.mknod(SUPERUSER, ROOT_INO, name, 0o100644)
                passing.append(name)
        if passing and rng.random() < 0.5:
            server.unlink(SUPERUSER, ROOT_INO, passing.pop(rng.randrange(len(passing))))
        if rng.random() < 0.1:
            server.write_back()
    assert found == sorted(set(found)), "in order, none twice"
    assert stay <= set(found), "what was there all the while is listed"
