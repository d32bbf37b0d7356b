"""Damage that a write-back meets: what cannot be written is set apart, and everything else goes on.

One damaged page of one directory made the whole server fall back to read-only.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, NoSpace, PosixError, TransactionError
from mdstore.mds.core import Limits
from mdstore.mds.events import Kind
from mdstore.mds.layout import META, NEXT_INO, NEXT_INO_KEY, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from mdstore.store import Store, Transaction
from tests.model.mds_check import problems
from tests.unit.reader_images import BLOCK
from tests.unit.test_mds_around import NAMES, listed, map_leaves, mounted_with_names
from tests.unit.test_mds_failing_reads import World, made, seen

SEED = int(os.environ.get("APART_SEED", "3"))
LIMITS = Limits(file_buffer=2000, data_buffer=6000, log_bytes=60_000, dirty_entries=4096)
SERVER = TABLE_OBJECTS[Tab.SERVER]
CORRUPT = CorruptionError("a page", "somewhere", "a checksum", "another")
UNREADABLE = DeviceFailed("read", "somewhere", "Input/output error")


class Refusing:
    """A store in which some rows of maps cannot be changed: those whose name's checksum, with a seed, is small enough, but for
    the server's own; and all of the objects in `objects`."""

    def __init__(self, store: MemStore, seed: int, share: float, error: MdstoreError = CORRUPT) -> None:
        self.store = store
        self.seed = seed
        self.share = share
        self.error = error
        self.objects: set[bytes] = set()
        self.refusals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def is_bad(self, name: bytes, key: bytes) -> bool:
        if name in self.objects:
            return True
        return name != SERVER and zlib.crc32(b"%d %s %s" % (self.seed, name, key)) < self.share * (1 << 32)

    def _rows(self, transaction: Transaction) -> Iterator[tuple[int, bytes, bytes]]:
        for index, operation in enumerate(transaction.operations):
            if operation[1] != META:
                continue
            keys: Any = operation[3] if len(operation) > 3 and not isinstance(operation[3], bytes) else [b""]
            for key in keys:
                yield index, operation[2], key[0] if isinstance(key, tuple) else key

    def submit(self, transaction: Transaction) -> Any:
        for index, name, key in self._rows(transaction):
            if (key or name in self.objects) and self.is_bad(name, key):
                self.refusals += 1
                raise TransactionError(index, "map_set", self.error)
        return self.store.submit(transaction)


def mounted(store: Any, limits: Limits = LIMITS) -> World:
    now = [10**9]
    return World(store, MetadataServer.mount(store, clock=lambda: now[0], limits=limits, count_references=False), now)


def crashed(world: World, limits: Limits = LIMITS) -> World:
    """A server over what is durable for certain, in which everything can be written."""
    return mounted(next(world.store.durable_prefixes()), limits)


def carry(server: MetadataServer) -> None:
    """The log is to go."""
    with server._core.guard:
        server._writeback._carry()
        server._writeback._expiry.commit_and_retire()


def some_changes(world: World, random: Random, count: int) -> None:
    """Names made, removed, moved, linked; attributes changed; files written; in directories old and new."""
    server, directories = world.server, [ROOT_INO, world.at(b"d"), world.at(b"e"), world.at(b"d/sub")]
    for number in range(count):
        world.now[0] += 1
        here, there = random.choice(directories), random.choice(directories)
        name, other = b"n%d" % random.randrange(20), b"n%d" % random.randrange(20)
        with suppress(PosixError):
            match random.randrange(8):
                case 0:
                    directories.append(server.mkdir(SUPERUSER, here, b"dir%d" % number, 0o755).ino)
                case 1 | 2:
                    handle = server.create(SUPERUSER, here, name, 0o644, os.O_RDWR)[1]
                    server.write(handle, random.randrange(300), b"bytes %d" % number)
                    server.release(handle)
                case 3:
                    server.unlink(SUPERUSER, here, name)
                case 4:
                    server.link(SUPERUSER, server.lookup(SUPERUSER, here, name).ino, there, other)
                case 5:
                    server.rename(SUPERUSER, here, name, there, other)
                case 6:
                    server.setattr(SUPERUSER, server.lookup(SUPERUSER, here, name).ino, SetAttr(mode=random.randrange(0o1000)))
                case 7:
                    server.symlink(SUPERUSER, here, other, b"target %d" % number)


@pytest.fixture(scope="module")
def base() -> MemStore:
    return made()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_while_rows_cannot_be_written_nor_by_a_crash_then(base: MemStore, seed: int) -> None:
    random = Random(SEED * 100 + seed)
    share, error = random.choice([0.05, 0.3, 1.0]), random.choice([CORRUPT, UNREADABLE])
    large = replace(LIMITS, log_bytes=200_000)
    world = mounted(Refusing(next(base.durable_prefixes()), seed, share, error), large)
    for number in range(4):
        some_changes(world, random, 60)
        world.server.syncfs()
        before = seen(world)
        world.server.write_back()
        assert world.server.failure is None
        assert seen(world) == before
        if number % 2:
            carry(world.server)
        world.server.assert_state()
        world.server.syncfs()
        again = mounted(Refusing(next(world.store.store.durable_prefixes()), seed, share, error), large)  # type: ignore[attr-defined]
        assert seen(again) == before
        again.server.write_back()
        assert seen(again) == before
    assert world.store.refusals > 10  # type: ignore[attr-defined]
    assert world.server.damage()
    world.server.close()
    whole = mounted(world.store.store)  # type: ignore[attr-defined]
    assert seen(whole) == before
    whole.server.purge_all()
    whole.server.close()
    assert list(problems(whole.store)) == []  # type: ignore[arg-type]


def test_the_log_does_not_grow_for_what_cannot_be_written(base: MemStore) -> None:
    """It is put into the log once more before the log that had it is given up; a crash at any moment loses none of it."""
    random = Random(SEED)
    world = mounted(Refusing(next(base.durable_prefixes()), 1, 0.03))
    highest = 0
    for _ in range(30):
        some_changes(world, random, 60)
        highest = max(highest, world.server._writeback.log_bytes)
    assert world.server._core.apart
    assert world.server._core.counters.event_bytes > 3 * highest
    assert highest < 3 * LIMITS.log_bytes
    world.server.syncfs()
    expected = seen(world)
    for prefix in [*world.store.store.durable_prefixes()][-1:]:  # type: ignore[attr-defined]
        assert seen(mounted(prefix)) == expected


@pytest.mark.parametrize("limit", [{"dirty_entries": 200, "dirty_entries_low": 100}, {"log_bytes": 60_000}])
def test_what_can_be_written_of_something_set_apart_does_not_pile_up(base: MemStore, limit: dict[str, int]) -> None:
    """While nothing else was dirty nothing was tried again: memory grew without bound, and the log was written anew at every
    change."""
    limits = replace(LIMITS, **{"log_bytes": 1 << 20, **limit})
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    world = mounted(store, limits)
    server, directory = world.server, world.at(b"d")
    refused = [server.mknod(SUPERUSER, directory, b"refused", 0o100644).ino]
    store.is_bad = lambda name, key: key == b"refused"  # type: ignore[method-assign]
    server.write_back()
    assert list(server._core.apart) == [directory]
    before, most, highest = server._core.counters.event_bytes, 0, 0
    for number in range(3000):
        server.mknod(SUPERUSER, directory, b"new %d" % number, 0o100644)
        most = max(most, len(server._core.dirty[directory].changed))
        highest = max(highest, server._writeback.log_bytes)
    assert server.failure is None
    assert most <= 2 * limits.dirty_entries
    assert most < 1500
    assert highest < limits.log_bytes + 256 * 1000  # it is looked at every 256 events
    assert server._core.counters.event_bytes - before < 3000 * 600
    server.syncfs()
    assert seen(crashed(world)) == seen(world)
    assert server.lookup(SUPERUSER, directory, b"refused").ino in refused


def test_bytes_of_something_set_apart_are_tried_again_before_the_log_has_them_once_more(base: MemStore) -> None:
    """They were more than the log's limit: all of it was written anew again and again, for changes of what is healthy."""
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    world = mounted(store)
    server, directory, other = world.server, world.at(b"d"), world.at(b"e")
    files = [server.mknod(SUPERUSER, directory, b"new %d" % number, 0o100644).ino for number in range(60)]
    server.write_back()
    store.is_bad = lambda name, key: key == b"new 0"  # type: ignore[method-assign]
    server.setattr(SUPERUSER, files[0], SetAttr(mode=0o600))
    server.write_back()
    assert list(server._core.apart) == [directory]
    for ino in files[1:]:
        server.setxattr(SUPERUSER, ino, b"user.x", bytes(3000), 0)
    before = server._core.counters.event_bytes
    for number in range(2000):
        server.mknod(SUPERUSER, other, b"healthy %d" % number, 0o100644)
    assert server.failure is None
    assert server._core.counters.event_bytes - before < 2000 * 600
    assert list(server._core.dirty[directory].changed) == [b"new 0"]


def test_more_bytes_than_the_log_can_carry_end_changes_and_none_is_lost(base: MemStore) -> None:
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    world = mounted(store)
    server, directory = world.server, world.at(b"d")
    store.objects = {directory_object(directory)}
    ino, before, names = world.at(b"d/f"), server._core.counters.event_bytes, []
    with suppress(CorruptionError):
        for number in range(2000):
            server.link(SUPERUSER, ino, directory, b"%0200d" % number)
            names.append(b"%0200d" % number)
            server.syncfs()
    assert server.failure is CORRUPT
    assert len(names) > 50
    assert server._core.counters.event_bytes - before < 8 * LIMITS.log_bytes
    again = crashed(world)
    handle = again.server.opendir(SUPERUSER, directory)
    assert {entry.name for entry in again.server.readdir(handle, None, 5000)} >= set(names)


@pytest.mark.parametrize("lower", [{"dirty_entries": 10, "dirty_entries_low": 5}, {"log_bytes": 4096}])
def test_with_limits_lowered_below_what_is_held_back_the_mount_works_until_it_writes_back(
    base: MemStore, lower: dict[str, int]
) -> None:
    """The replay was refused with the error of the page, whatever was tried."""
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    world = mounted(store, replace(LIMITS, log_bytes=1 << 20))
    store.objects = {directory_object(world.at(b"d"))}
    for number in range(300):
        world.server.symlink(SUPERUSER, world.at(b"d"), b"new %d" % number, b"t")
    world.server.write_back()
    world.server.syncfs()
    expected = [entry.name for entry in world.server.readdir(world.server.opendir(SUPERUSER, world.at(b"d")), None, 1000)]
    refusing = Refusing(next(store.store.durable_prefixes()), 1, 0)
    refusing.objects = store.objects
    again = mounted(refusing, replace(LIMITS, **lower))
    assert refusing.refusals or "log_bytes" in lower
    handle = again.server.opendir(SUPERUSER, again.at(b"d"))
    assert [entry.name for entry in again.server.readdir(handle, None, 1000)] == expected
    with pytest.raises(CorruptionError):
        again.server.write_back()
    assert again.server.failure is CORRUPT
    whole = crashed(again)
    whole.server.write_back()
    assert seen(whole) == seen(world)


# -- the next inode number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CORRUPT, UNREADABLE])
def test_where_the_next_number_cannot_be_written_changes_end_and_none_is_given_out_again(
    base: MemStore, error: MdstoreError
) -> None:
    """The table was set apart, and nothing kept the log that had the numbers given out: a new file got the number of another."""
    store = Refusing(next(base.durable_prefixes()), 1, 0, error)
    world = mounted(store)
    server, made_before = world.server, 0
    server.mkdir(SUPERUSER, ROOT_INO, b"before", 0o755)
    server.write_back()
    store.objects = {SERVER}
    with suppress(type(error)):
        for number in range(200):
            server.mknod(SUPERUSER, ROOT_INO, b"%d" % number, 0o100644)
            made_before = number + 1
            server.syncfs()
            if number % 50 == 49:
                server.write_back()
    assert made_before == 50
    assert server.failure is error
    again = crashed(world)
    used = {attr[0].ino for attr in seen(again).values()}
    assert again.server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755).ino > max(used)
    again.server.close()
    assert list(problems(again.store)) == []  # type: ignore[arg-type]


def test_a_next_number_that_the_log_has_counts_where_it_is_the_higher_one(base: MemStore) -> None:
    world = mounted(Refusing(next(base.durable_prefixes()), 1, 0))
    core = world.server._core
    for number in (5000, 7):
        core.append(Kind.TABLE, core.put_row(core.tables[Tab.SERVER], NEXT_INO_KEY, NEXT_INO.pack(number)))
    world.server.syncfs()
    again = crashed(world)
    assert again.server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755).ino == 5000
    again.server.write_back()
    assert crashed(again).server._core.next_ino == 5001


@pytest.mark.parametrize("table", [Tab.INODES, Tab.LINKS, Tab.STRAYS, Tab.DAMAGE])
def test_a_table_that_cannot_be_written_keeps_nothing_else_from_it(base: MemStore, table: Tab) -> None:
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    store.objects = {TABLE_OBJECTS[table], TABLE_OBJECTS[Tab.INODES]}
    world = mounted(store)
    world.open(b"d/f")
    world.server.unlink(SUPERUSER, world.at(b"d"), b"f")
    for seed in range(5):
        some_changes(world, Random(seed), 60)
        world.server.syncfs()
    expected = seen(world)
    world.server.write_back()
    assert world.server.failure is None
    assert store.refusals
    assert all(not directory.changed for directory in world.server._core.dirty.values())
    told = [(row.directory, row.name) for row in world.server.damage()]
    assert {(0, name) for name in store.objects} >= set(told) > set()
    assert (0, TABLE_OBJECTS[table]) in told or table == Tab.DAMAGE
    assert seen(mounted(next(store.store.durable_prefixes()))) == expected
    world.server.close()
    assert seen(mounted(store.store)) == expected


def test_names_of_a_directory_never_written_are_eio_where_it_cannot_be(base: MemStore) -> None:
    """It could take names for ever, all of which memory and log would have to keep."""
    store = Refusing(next(base.durable_prefixes()), 1, 0)
    world = mounted(store)
    new = world.server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755).ino
    world.server.mkdir(SUPERUSER, new, b"kept", 0o755)
    store.objects = {directory_object(new)}
    world.server.write_back()
    assert world.server.lookup(SUPERUSER, new, b"kept")
    with pytest.raises(CorruptionError):
        world.server.mkdir(SUPERUSER, new, b"more", 0o755)
    store.objects.clear()
    world.server.write_back()
    world.server.mkdir(SUPERUSER, new, b"more", 0o755)
    assert world.server.failure is None
    assert not world.server._core.apart


def test_more_than_memory_may_hold_back_ends_changes(base: MemStore) -> None:
    world = mounted(Refusing(next(base.durable_prefixes()), 1, 1.0))
    world.server._core.limits = Limits(file_buffer=2000, data_buffer=6000, dirty_entries=100)
    some_changes(world, Random(SEED), 200)
    with pytest.raises(CorruptionError):
        world.server.write_back()
    assert world.server.failure is not None


@pytest.mark.parametrize("error", [NoSpace("no room"), PosixError(5, "x")])
def test_what_is_no_damage_ends_changes_as_before(base: MemStore, error: MdstoreError) -> None:
    world = mounted(Refusing(next(base.durable_prefixes()), 1, 1.0, error))
    world.server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755)
    with pytest.raises(TransactionError):
        world.server.write_back()
    assert world.server.failure is not None


# -- an image ----------------------------------------------------------------------------------------------------------


def test_changes_in_the_log_for_a_page_damaged_since_stay_there_and_the_mount_goes_on(tmp_path: Path) -> None:
    device, store, server, directory = mounted_with_names()
    page, hidden = map_leaves(device.image(), tmp_path / "image", directory_object(directory))[5]
    for name in NAMES:
        server.setattr(SUPERUSER, server.lookup(SUPERUSER, directory, name).ino, SetAttr(mode=0o600))
    server.unlink(SUPERUSER, directory, hidden[0])
    server.mkdir(SUPERUSER, ROOT_INO, b"other", 0o755)
    server.syncfs()
    content = bytearray(device.image())  # killed
    content[page * BLOCK + 100 : page * BLOCK + 108] = b"\xff" * 8
    expected = [name for name in NAMES if name != hidden[0]]
    for _ in range(3):
        device = MemoryDevice.from_bytes(bytes(content))
        store = Store.open(device, background=False)
        server = MetadataServer.mount(store)
        server.write_back()
        assert server.failure is None
        assert {row.directory for row in server.damage()} == {directory}
        names, error = listed(server, server.opendir(SUPERUSER, directory), 50)
        assert names == expected
        assert error is not None
        assert all(server.lookup(SUPERUSER, directory, name).mode & 0o777 == 0o600 for name in expected)
        assert server.lookup(SUPERUSER, ROOT_INO, b"other")
        with pytest.raises(PosixError, match="exists"):
            server.mkdir(SUPERUSER, directory, hidden[1], 0o755)
        server.close()
        store.close()
        content = bytearray(device.image())
