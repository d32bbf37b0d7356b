"""Directories far larger than the cache: cursors stay right while entries come and go, names are found, memory stays bounded.

Names are numbers in decimal, so a row of flags is the model of the directory: which numbers there are, in their order. Every page
that readdir gives must be exactly what the flags say behind the cursor at that moment.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import PosixError
from mdstore.mds.cache import NODE_BYTES
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems
from tests.unit.reader_images import BLOCK, check

PAGE = 1024
REGULAR = 0o100644
SMALL = Limits(cache_bytes=1000 * NODE_BYTES, dirty_entries=512, dirty_entries_low=128)


def name_of(number: int) -> bytes:
    return b"%08d" % number


class Large:
    """A directory of `entries` names, the even numbers, and its flags."""

    def __init__(self, store: ObjectStore, entries: int, limits: Limits, seed: int) -> None:
        MetadataServer.format(store, now_ns=1)
        self.store, self.limits, self.random = store, limits, random.Random(seed)
        self.server = MetadataServer.mount(store, limits=limits, count_references=False)
        self.ino = self.server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
        self.there = bytearray(2 * entries)
        self.most_cached = self.most_dirty = 0
        for number in range(0, 2 * entries, 2):
            self.add(number)

    def add(self, number: int) -> None:
        self.server.mknod(SUPERUSER, self.ino, name_of(number), REGULAR)
        self.there[number] = 1

    def remove(self, number: int) -> None:
        self.server.unlink(SUPERUSER, self.ino, name_of(number))
        self.there[number] = 0

    def turn(self, number: int) -> None:
        """Remove what is there, add what is not."""
        (self.remove if self.there[number] else self.add)(number)

    def after(self, number: int) -> list[int]:
        """The page behind a number that the flags say."""
        found: list[int] = []
        while len(found) < PAGE and (number := self.there.find(1, number + 1)) >= 0:
            found.append(number)
        return found

    def page(self, handle: int, cursor: int) -> list[int]:
        """The page behind a number, which need not be there; held against the flags."""
        page = self.server.readdir(handle, name_of(cursor) if cursor >= 0 else None, PAGE)
        found = [int(entry.name) for entry in page]
        assert found == self.after(cursor), f"behind {cursor}"
        return found

    def churn(self, cursor: int) -> None:
        """Names come and go before and behind the cursor, the next ones and the last ones among them."""
        last = len(self.there) - 1
        near = [self.random.randrange(max(0, cursor - 50), min(last, cursor + 50) + 1) for _ in range(4)]
        far = [self.random.randrange(last + 1) for _ in range(4)]
        for number in {*near, *far}:
            self.turn(number)

    def look_up(self, count: int) -> None:
        """Names that are there and names that are not."""
        for _ in range(count):
            number = self.random.randrange(len(self.there))
            outcome = 0
            try:
                self.server.lookup(SUPERUSER, self.ino, name_of(number))
            except PosixError as error:
                outcome = error.errno
            assert outcome == (0 if self.there[number] else errno.ENOENT), number

    def measure(self) -> None:
        counters = self.server.counters()
        self.most_cached = max(self.most_cached, int(counters["inodes_cached"]))
        self.most_dirty = max(self.most_dirty, int(counters["dirty_entries"]))

    def read_through(self, remove_every: int) -> None:
        """Read from the first to the last name, removing every so many of those read, while others come and go."""
        handle, elsewhere = (self.server.opendir(SUPERUSER, self.ino) for _ in range(2))
        cursor = -1
        while page := self.page(handle, cursor):
            for number in page[::remove_every]:
                self.remove(number)
            cursor = page[-1]
            self.churn(cursor)
            self.measure()
            if self.random.random() < 0.05:
                self.page(elsewhere, self.random.randrange(len(self.there)))
        self.server.releasedir(handle)
        self.server.releasedir(elsewhere)

    def assert_bounded(self) -> None:
        """Memory held the budget, but for a page that was being read, all the time."""
        assert self.most_cached <= self.limits.cache_bytes // NODE_BYTES + PAGE
        assert self.most_dirty <= self.limits.dirty_entries + PAGE

    def remount(self) -> None:
        self.server.close()
        self.server = MetadataServer.mount(self.store, limits=self.limits, count_references=False)
        assert self.server.getattr(self.ino).size == self.there.count(1)


def test_a_directory_larger_than_the_cache_is_read_and_removed_while_it_changes() -> None:
    seed = 1
    large = Large(MemStore(), 20_000, SMALL, seed)
    large.read_through(3)
    large.look_up(2000)
    large.remount()
    large.read_through(7)
    with pytest.raises(PosixError) as refused:
        large.server.rmdir(SUPERUSER, ROOT_INO, b"d")
    assert refused.value.errno == errno.ENOTEMPTY
    while large.there.count(1):  # what comes while it is read stays
        large.read_through(1)
        for number in large.after(-1):
            large.remove(number)
    large.assert_bounded()
    assert large.server.counters()["evicted"] > 10 * SMALL.cache_bytes // NODE_BYTES
    large.server.rmdir(SUPERUSER, ROOT_INO, b"d")
    large.server.close()


def test_names_of_a_directory_in_memory_are_sorted_once_however_much_it_changes_while_it_is_read() -> None:
    # Above 20,000 names each change threw the order away and each page sorted all of them again: 13 s instead of 0.2 for 80,000.
    large = Large(MemStore(), 25_000, Limits(), seed=3)
    assert large.server._cache.directory(large.ino).complete
    large.page(large.server.opendir(SUPERUSER, large.ino), -1)
    names = large.server._cache.directory(large.ino).names
    large.read_through(5)
    assert large.server._cache.directory(large.ino).names is names
    assert names is not None
    assert [int(name) for name in names] == [number for number, there in enumerate(large.there) if there]
    large.server.close()


@pytest.mark.slow
def test_a_directory_of_a_million_entries(tmp_path: Path) -> None:
    entries = 1_000_000
    with Store.create(FileDevice.create(str(tmp_path / "image"), 1 << 30)) as store:
        large = Large(store, entries, Limits(), seed=2)
        assert large.server.getattr(large.ino).size == entries
        large.look_up(2000)
        large.read_through(4)
        large.look_up(2000)
        large.assert_bounded()
        assert large.most_cached < entries // 8
        large.remount()
        large.look_up(2000)
        large.page(large.server.opendir(SUPERUSER, large.ino), entries)
        large.server.close()


# -- written back in several transactions ------------------------------------------------------------------------------
# The header came with the last of them: a crash before that left a directory object without one, and the image could never be
# mounted again.

FIRST = {b"n%02d" % number for number in range(60)}


def half_written(store: ObjectStore) -> tuple[MetadataServer, int]:
    """A server with a directory of 60 new names in its log, which it writes back ten at a time."""
    MetadataServer.format(store, now_ns=1, object_size=8192, log_unit=4096, log_object_size=65536)
    server = MetadataServer.mount(store, count_references=False)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    for name in FIRST:
        server.mknod(SUPERUSER, directory, name, REGULAR)
    server.syncfs()
    server._core.transaction_bytes = 10 << 10
    return server, directory


def test_a_crash_between_two_transactions_of_a_new_directory_leaves_all_of_it() -> None:
    store = MemStore(delayed=True)
    server, directory = half_written(store)
    server._writeback.step(1 << 30)
    states = list(store.durable_prefixes())
    assert len(states) > 8
    for state in states:
        again = MetadataServer.mount(state, count_references=False)
        for name in (b"n07", b"n41"):
            again.unlink(SUPERUSER, directory, name)
        again.close()
        whole = MetadataServer.mount(state, count_references=False)
        names = [entry.name for entry in whole.readdir(whole.opendir(SUPERUSER, directory), None, 100)]
        assert names == sorted(FIRST - {b"n07", b"n41"})
        whole.close()
        assert list(problems(state)) == []


@pytest.mark.parametrize("done", range(8))
def test_the_second_reader_finds_nothing_wrong_with_such_an_image(tmp_path: Path, done: int) -> None:
    class Crash(Exception):
        """After `done` transactions of the write-back."""

    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    server, _ = half_written(store)
    submit, left = server._writeback._writer._submit, [done]

    def submit_some(transaction: Transaction) -> Transaction:
        if not left[0]:
            raise Crash
        left[0] -= 1
        return submit(transaction)

    server._writeback._writer._submit = submit_some  # type: ignore[method-assign]
    try:
        server._writeback.step(1 << 30)
    except Crash:
        pass
    store.sync()
    assert [problem for problem in check(device.image(), tmp_path) if problem.severity != "note"] == []
