"""Recursive statistics and the quotas that stand on them; and what becomes of them where a directory above cannot be read."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, NoSpace, TransactionError
from mdstore.mds.layout import data_object, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.statistics import PAUSE_MAX
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.mds.xattrs import REFUSALS
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems
from tests.unit.mds_calls import formatted, make_file, refused

USER = Credentials(1000, 1000)


@pytest.fixture
def store() -> MemStore:
    return formatted()


def statistics(server: MetadataServer, ino: int) -> tuple[int, ...]:
    kinds = (b"rbytes", b"rfiles", b"rsubdirs", b"rentries")
    return tuple(int(server.getxattr(SUPERUSER, ino, b"mdstore." + kind)) for kind in kinds)


def test_recursive_statistics_are_right_after_every_change_and_after_a_crash(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    first = server.mkdir(SUPERUSER, ROOT_INO, b"first", 0o755).ino
    second = server.mkdir(SUPERUSER, first, b"second", 0o755).ino
    third = server.mkdir(SUPERUSER, second, b"third", 0o755).ino
    ino = make_file(server, third, b"f", b"x" * 1000)
    server.syncfs()
    assert statistics(server, ROOT_INO) == (1000, 1, 3, 4)
    server.link(SUPERUSER, ino, first, b"again")
    assert statistics(server, first) == (1000, 2, 2, 4)
    server.rename(SUPERUSER, second, b"third", ROOT_INO, b"third")
    assert statistics(server, first) == (0, 1, 1, 2)
    assert statistics(server, ROOT_INO) == (1000, 2, 3, 5)
    server.unlink(SUPERUSER, third, b"f")
    assert statistics(server, first) == (1000, 1, 1, 2), "the bytes go where a name is left"
    server.setattr(SUPERUSER, ino, SetAttr(size=400))
    server.syncfs()
    server = MetadataServer.mount(store.crash())
    assert statistics(server, first) == (400, 1, 1, 2)
    assert statistics(server, ROOT_INO) == (400, 1, 3, 4)


def test_bytes_count_from_the_moment_they_are_written(store: MemStore) -> None:
    """They were missing as long as they waited in a buffer, while the file's size had them."""
    server = MetadataServer.mount(store)
    below = server.mkdir(SUPERUSER, ROOT_INO, b"below", 0o755).ino
    attr, handle = server.create(SUPERUSER, below, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"x" * 500)
    assert server.getattr(attr.ino).size == 500
    assert statistics(server, ROOT_INO) == (500, 1, 1, 2)
    server.write(handle, 500, b"x")
    assert statistics(server, below) == (501, 1, 0, 1)


class Refusing:
    """A store without room for the bytes of some files, as long as they are named here."""

    def __init__(self, store: MemStore) -> None:
        self._store = store
        self.files: set[int] = set()
        self.refusals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def submit(self, transaction: Transaction) -> Any:
        names = {data_object(ino, 0) for ino in self.files}
        if any(operand in names for operation in transaction.operations for operand in operation if type(operand) is bytes):
            self.refusals += 1
            raise TransactionError(0, "write", NoSpace("no room"))
        return self._store.submit(transaction)


@pytest.mark.parametrize("refused_files", [1, 3, REFUSALS])
def test_bytes_of_files_that_find_room_count_beside_those_that_find_none(store: MemStore, refused_files: int) -> None:
    """The first file that found none kept the bytes of all behind it from being counted."""
    refusing = Refusing(store)
    server = MetadataServer.mount(refusing)  # type: ignore[arg-type]
    inodes = []
    for number in range(40):
        attr, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x" * 100)
        inodes.append(attr.ino)
    refusing.files.update(inodes[:: 40 // refused_files][:refused_files])
    assert statistics(server, ROOT_INO)[0] == 100 * (40 - refused_files)
    assert refusing.refusals
    refusing.files.clear()
    assert statistics(server, ROOT_INO)[0] == 4000
    server.close()
    assert list(problems(store)) == []


def test_a_full_store_is_not_asked_for_every_file(store: MemStore) -> None:
    refusing = Refusing(store)
    server = MetadataServer.mount(refusing)  # type: ignore[arg-type]
    for number in range(300):
        attr, handle = server.create(SUPERUSER, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x" * 100)
        refusing.files.add(attr.ino)
    assert server.getxattr(SUPERUSER, ROOT_INO, b"mdstore.rbytes") == b"0"
    assert 0 < refusing.refusals < 60
    assert server.failure is None


def test_a_quota_refuses_what_would_pass_it_and_survives(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    top = server.mkdir(SUPERUSER, ROOT_INO, b"top", 0o777).ino
    deep = server.mkdir(SUPERUSER, top, b"deep", 0o777).ino
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_bytes", b"1000")
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_files", b"3")
    refused(errno.EPERM, lambda: server.setxattr(USER, top, b"mdstore.quota.max_files", b"9"))
    _, handle = server.create(USER, deep, b"a", 0o644, os.O_RDWR)
    server.write(handle, 0, b"x" * 900)
    refused(errno.EDQUOT, lambda: server.write(handle, 900, b"x" * 101))
    server.write(handle, 900, b"x" * 100)
    make_file(server, deep, b"b")
    refused(errno.EDQUOT, lambda: make_file(server, deep, b"c"))
    refused(errno.EDQUOT, lambda: server.mkdir(USER, top, b"c", 0o755))
    outside = make_file(server, ROOT_INO, b"outside", b"y" * 10)
    refused(errno.EDQUOT, lambda: server.rename(SUPERUSER, ROOT_INO, b"outside", top, b"inside"))
    server.release(handle)
    server.close()
    server = MetadataServer.mount(store)
    refused(errno.EDQUOT, lambda: make_file(server, deep, b"c"))
    server.removexattr(SUPERUSER, top, b"mdstore.quota.max_files")
    make_file(server, deep, b"c")
    assert outside


# -- reads that fail ---------------------------------------------------------------------------------------------------


class Unreadable:
    """A store in which the headers of some directories cannot be read, as long as they are named here."""

    def __init__(self, store: MemStore, error: MdstoreError) -> None:
        self._store = store
        self._error = error
        self.directories: set[int] = set()
        self.refusals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def map_header(self, collection: bytes, name: bytes) -> bytes:
        if name in {directory_object(ino) for ino in self.directories}:
            self.refusals += 1
            raise self._error
        return self._store.map_header(collection, name)


ERRORS = [DeviceFailed("read", "page 9", "Input/output error"), CorruptionError("page", "address 9", 1, 2)]


def deep_tree(store: MemStore, error: MdstoreError, depth: int = 4) -> tuple[Unreadable, MetadataServer, list[int]]:
    """Directories one in the other, from the root down, that nobody has in memory but the root."""
    server = MetadataServer.mount(store, count_references=False)
    inodes = [ROOT_INO]
    for number in range(depth):
        inodes.append(server.mkdir(SUPERUSER, inodes[-1], b"d%d" % number, 0o755).ino)
    server.close()
    unreadable = Unreadable(store, error)
    return unreadable, MetadataServer.mount(unreadable, count_references=False), inodes  # type: ignore[arg-type]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("with_quota", [False, True])
@pytest.mark.parametrize("later", ["asked", "tick", "write_back", "close"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_parent_that_could_not_be_read_once_counts_what_lies_below_once_it_can(
    store: MemStore, level: int, later: str, with_quota: bool, error: MdstoreError
) -> None:
    """What was written back meanwhile was never handed up: a directory that nothing changed in any more was counted nowhere."""
    unreadable, server, inodes = deep_tree(store, error)
    if with_quota:
        server.setxattr(SUPERUSER, ROOT_INO, b"mdstore.quota.max_files", b"9")
    make_file(server, inodes[4], b"f", b"x" * 100)
    make_file(server, inodes[4], b"g")
    server.syncfs()
    server._cache.drop_all()
    unreadable.directories.add(inodes[level])
    server.write_back()
    server._cache.drop_all()
    assert unreadable.refusals
    assert server.failure is None
    unreadable.directories.clear()
    if later == "asked":
        assert statistics(server, ROOT_INO) == (100, 2, 4, 6)
        server.close()
    elif later == "tick":
        server.tick(1)
        server.syncfs()
        store = store.crash()
    elif later == "write_back":
        server.write_back()
        store = store.crash()
    else:
        server.close()
    again = MetadataServer.mount(store)
    for number, ino in enumerate(inodes):
        assert statistics(again, ino) == (100, 2, 4 - number, 6 - number), number
    again.close()
    assert list(problems(store)) == []


@pytest.mark.parametrize("error", ERRORS)
def test_a_quota_above_a_directory_that_could_not_be_read_once_holds(store: MemStore, error: MdstoreError) -> None:
    """What was not handed up was forgotten, and the quota let in as much again."""
    unreadable, server, inodes = deep_tree(store, error)
    server.setxattr(SUPERUSER, inodes[1], b"mdstore.quota.max_files", b"5")  # two directories among them
    for name in (b"a", b"b"):
        make_file(server, inodes[4], name)
    server.syncfs()
    server._cache.drop_all()
    unreadable.directories.add(inodes[3])
    server.write_back()
    server._cache.drop_all()
    unreadable.directories.clear()
    assert unreadable.refusals
    refused(errno.EDQUOT, lambda: make_file(server, inodes[1], b"c"))
    assert statistics(server, inodes[1])[1:3] == (2, 3)


@pytest.mark.parametrize("error", ERRORS)
def test_a_parent_that_stays_unreadable_costs_one_look_and_stops_nothing(store: MemStore, error: MdstoreError) -> None:
    unreadable, server, _, _ = held_up(store, error, 50)
    for _ in range(3):
        server.write_back()
        before = unreadable.refusals
        server.tick(1)
        assert unreadable.refusals - before <= 2
    server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755)
    assert server.failure is None
    server.close()
    unreadable.directories.clear()
    again = MetadataServer.mount(store, count_references=False)
    assert list(again.scrub().run()) == []
    assert statistics(again, ROOT_INO)[1] == 50, "who comes by a directory that is not handed up sees to it"
    again.close()
    assert list(problems(store)) == []


def held_up(store: MemStore, error: MdstoreError, count: int) -> tuple[Unreadable, MetadataServer, int, list[int]]:
    """A directory that cannot be read, and in it others with a new file each, written back."""
    server = MetadataServer.mount(store, count_references=False)
    above = server.mkdir(SUPERUSER, ROOT_INO, b"above", 0o755).ino
    below = [server.mkdir(SUPERUSER, above, b"d%d" % number, 0o755).ino for number in range(count)]
    server.close()
    unreadable = Unreadable(store, error)
    server = MetadataServer.mount(unreadable, count_references=False)  # type: ignore[arg-type]
    unreadable.directories.add(above)
    for ino in below:
        make_file(server, ino, b"f")
    server.write_back()
    return unreadable, server, above, below


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_those_in_a_directory_that_stays_unreadable_cost_a_tick_nothing(
    store: MemStore, error: MdstoreError, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tick looked at all of them, under the lock."""
    unreadable, server, above, below = held_up(store, error, 100)
    if not in_memory:
        server._cache.drop_all()
    looks: list[int] = []
    look = server._cache.directory
    monkeypatch.setattr(server._cache, "directory", lambda ino: looks.append(ino) or look(ino))
    server.tick(1)
    assert looks in ([], [above]), "those in it are not looked at"
    ticks = 10 * PAUSE_MAX
    for tick in range(ticks):
        server.tick(2 + tick)
    assert set(looks) == {above}
    assert len(looks) <= ticks // PAUSE_MAX + PAUSE_MAX.bit_length() + 2, "and it itself ever more seldom"
    unreadable.directories.clear()
    for tick in range(PAUSE_MAX + 1):
        server.tick(2 + ticks + tick)
    assert not server._core.unsettled
    assert server._cache.directory(ROOT_INO).rfiles == len(below)
    server.close()
    assert list(problems(store)) == []


def test_another_directory_that_cannot_be_read_is_looked_at_by_the_next_tick(store: MemStore) -> None:
    """However long ticks have looked at the first one in vain."""
    first = MetadataServer.mount(store, count_references=False)
    other = first.mkdir(SUPERUSER, ROOT_INO, b"other", 0o755).ino
    deep = first.mkdir(SUPERUSER, other, b"deep", 0o755).ino
    first.close()
    unreadable, server, above, _ = held_up(store, ERRORS[0], 1)
    for tick in range(3 * PAUSE_MAX):
        server.tick(1 + tick)
    unreadable.directories.add(other)
    make_file(server, deep, b"g")
    server.write_back()
    assert set(server._core.unsettled.awaited()) == {above, other}
    unreadable.directories.discard(other)
    server.tick(1 + 3 * PAUSE_MAX)
    assert server._core.unsettled.awaited() == [above]
    assert server._cache.directory(ROOT_INO).rfiles == 1


@pytest.mark.parametrize("error", ERRORS)
def test_a_quota_costs_one_look_at_a_directory_that_stays_unreadable(store: MemStore, error: MdstoreError) -> None:
    """Each check looked at it once for every directory in it."""
    unreadable, server, _, below = held_up(store, error, 50)
    server.setxattr(SUPERUSER, ROOT_INO, b"mdstore.quota.max_files", b"125")
    for number in range(20):
        before = unreadable.refusals
        server.mkdir(SUPERUSER, ROOT_INO, b"new%d" % number, 0o755)
        assert unreadable.refusals - before <= 1
    unreadable.directories.clear()
    refused(errno.EDQUOT, lambda: [make_file(server, ROOT_INO, b"f%d" % number) for number in range(12)])
    assert statistics(server, ROOT_INO)[3] == 51 + 50 + 20 + 4
    assert len(below) == 50


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_found_waiting_while_others_are_handed_up_is_not_forgotten(store: MemStore, error: MdstoreError) -> None:
    """Who was found by the look at how deep another one lies was struck off with those that were done."""
    now = 1_000_000_000

    def mounted(over: Any) -> MetadataServer:
        return MetadataServer.mount(over, count_references=False, clock=lambda: now)

    server = mounted(store)
    above = server.mkdir(SUPERUSER, ROOT_INO, b"above", 0o755).ino
    waiting = server.mkdir(SUPERUSER, above, b"waiting", 0o755).ino
    upper = server.mkdir(SUPERUSER, waiting, b"upper", 0o755).ino
    lower = server.mkdir(SUPERUSER, upper, b"lower", 0o755).ino
    file = make_file(server, lower, b"f")
    server._statistics.settle()
    now += 2_000_000_000
    make_file(server, upper, b"g")
    server.close()
    unreadable = Unreadable(store, error)
    server = mounted(unreadable)
    unreadable.directories.add(above)
    make_file(server, waiting, b"h")
    server.close()
    server = mounted(store)
    now -= 1_000_000_000
    server.lookup(SUPERUSER, lower, b"f")
    server.setattr(SUPERUSER, file, SetAttr(mode=0o600))  # later than anything in `lower`, but not in `upper`: no news further up
    assert waiting not in server._core.nodes
    server._statistics.settle()
    assert waiting in server._core.nodes
    server.tick(1)
    assert server._cache.directory(ROOT_INO).rfiles == 3
    server.close()
    assert list(problems(store)) == []
