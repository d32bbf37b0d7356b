"""A damaged entry, or one that leads nowhere, hides and endangers nothing beside it.

One damaged entry of ten used to end the listing; the next one called the directory complete with what came before the damage, so
the healthy names behind it were ENOENT, and making one of them anew replaced the old file for good.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from mdstore.client import fuse_protocol as protocol
from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_protocol import Opcode
from mdstore.engines.mem import MemStore
from mdstore.errors import MdstoreError, errno_of
from mdstore.mds.core import Limits
from mdstore.mds.layout import INO_KEY, META, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import RENAME_EXCHANGE, ROOT_INO, SUPERUSER, Attr, DirEntry
from mdstore.store.transaction import Transaction
from mdstore.tools.unreadable import listing
from tests.unit.test_fuse_session import Kernel

NAMES = [b"f%d" % number for number in range(10)]
POSITIONS = [0, 5, 9]
HOWS = ["rubbish", "no inode", "no directory"]
TINY = Limits(cache_bytes=64 * 700)


class Damaged:
    """A directory `d` of ten files of which one entry is damaged, and the server over it."""

    def __init__(self, how: str, at: int) -> None:
        self.store = MemStore()
        self.bad = NAMES[at]
        self.healthy = [name for name in NAMES if name != self.bad]
        MetadataServer.format(self.store, now_ns=1)
        server = MetadataServer.mount(self.store)
        self.directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
        for name in NAMES:
            if name == self.bad and how == "no directory":
                ino = server.mkdir(SUPERUSER, self.directory, name, 0o755).ino
                continue
            attr, handle = server.create(SUPERUSER, self.directory, name, 0o644, os.O_RDWR)
            server.write(handle, 0, b"precious " + name)
            server.release(handle)
            if name == self.bad:
                ino = attr.ino
        if how == "no inode":
            server.link(SUPERUSER, ino, ROOT_INO, b"other")
        server.create(SUPERUSER, ROOT_INO, b"mine", 0o644, os.O_RDWR)
        server.close()
        damage = Transaction()
        if how == "rubbish":
            damage.map_set(META, directory_object(self.directory), {self.bad: b"rubbish"})
        elif how == "no inode":
            damage.map_remove(META, TABLE_OBJECTS[Tab.INODES], [INO_KEY.pack(ino)])
        else:
            damage.remove(META, directory_object(ino))
        self.store.apply(damage)
        self.server = MetadataServer.mount(self.store)

    def names(self, page: int) -> list[bytes]:
        handle = self.server.opendir(SUPERUSER, self.directory)
        found: list[bytes] = []
        while entries := self.server.readdir(handle, found[-1] if found else None, page, count_lookups=True):
            found += [entry.name for entry in entries]
            for name, attr in entries:
                assert (attr.ino == 0) == (name == self.bad)
                if attr.ino:
                    self.server.forget(attr.ino, 1)
        self.server.releasedir(handle)
        return found

    def assert_healthy(self, besides: tuple[bytes, ...] = ()) -> None:
        """Nothing healthy was lost, now and after the server is started anew; the damage is named and counts nothing."""
        self.read_all(besides)
        refused(errno.EIO, lambda: self.server.lookup(SUPERUSER, self.directory, self.bad))
        assert self.server._core.references == {}
        assert (self.directory, self.bad) in [(row.directory, row.name) for row in self.server.damage()]
        assert self.server.failure is None
        self.server.close()
        self.server = MetadataServer.mount(self.store)
        self.read_all(besides)

    def read_all(self, besides: tuple[bytes, ...]) -> None:
        for name in self.healthy:
            if name not in besides:
                attr = self.server.lookup(SUPERUSER, self.directory, name)
                handle = self.server.open(SUPERUSER, attr.ino, os.O_RDONLY)
                assert self.server.read(handle, 0, 99) == b"precious " + name
                self.server.release(handle)
                self.server.forget(attr.ino, 1)


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number


@pytest.fixture(params=[(how, at) for how in HOWS for at in POSITIONS], ids=lambda it: f"{it[0]} at {it[1]}".replace(" ", "-"))
def damaged(request: pytest.FixtureRequest) -> Damaged:
    how, at = request.param
    return Damaged(how, at)


@pytest.mark.parametrize("page", [1, 3, 10, 100])
def test_listings_show_every_name_again_and_again(damaged: Damaged, page: int) -> None:
    for _ in range(3):
        assert damaged.names(page) == NAMES
    damaged.assert_healthy()


def test_what_uses_the_damaged_name_is_eio_and_changes_nothing(damaged: Damaged) -> None:
    server, directory, bad = damaged.server, damaged.directory, damaged.bad
    other = damaged.healthy[4]
    calls: list[Callable[[], object]] = [
        lambda: server.lookup(SUPERUSER, directory, bad),
        lambda: server.create(SUPERUSER, directory, bad, 0o644, os.O_RDWR),
        lambda: server.create(SUPERUSER, directory, bad, 0o644, os.O_RDWR | os.O_EXCL),
        lambda: server.rename(SUPERUSER, directory, bad, directory, b"new"),
        lambda: server.rename(SUPERUSER, directory, other, directory, bad),
        lambda: server.rename(SUPERUSER, ROOT_INO, b"mine", directory, bad),
        lambda: server.rename(SUPERUSER, directory, other, directory, bad, RENAME_EXCHANGE),
        lambda: server.unlink(SUPERUSER, directory, bad),
        lambda: server.rmdir(SUPERUSER, directory, bad),
    ]
    for call in [*calls, *calls]:
        refused(errno.EIO, call)
        assert damaged.names(100) == NAMES
    damaged.assert_healthy()


def test_the_other_names_can_be_used(damaged: Damaged) -> None:
    server, directory = damaged.server, damaged.directory
    first, second, third = damaged.healthy[0], damaged.healthy[4], damaged.healthy[8]
    assert damaged.names(100) == NAMES
    refused(errno.EEXIST, lambda: server.create(SUPERUSER, directory, third, 0o644, os.O_RDWR | os.O_EXCL))
    server.rename(SUPERUSER, directory, first, directory, second)
    server.unlink(SUPERUSER, directory, third)
    attr = server.mkdir(SUPERUSER, directory, b"new", 0o755)
    server.forget(attr.ino, 1)
    assert damaged.names(100) == sorted({*NAMES, b"new"} - {first, third})
    damaged.assert_healthy(besides=(first, second, third))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("removed", [0, 5, 9])
def test_a_directory_with_a_damaged_entry_is_not_empty(damaged: Damaged, listed: bool, removed: int) -> None:
    server, gone = damaged.server, tuple(damaged.healthy[:removed])
    assert not listed or damaged.names(100) == NAMES
    for name in gone:
        server.unlink(SUPERUSER, damaged.directory, name)
    victim = server.mkdir(SUPERUSER, ROOT_INO, b"empty", 0o755).ino
    server.forget(victim, 1)
    for _ in range(2):
        refused(errno.ENOTEMPTY, lambda: server.rmdir(SUPERUSER, ROOT_INO, b"d"))
        refused(errno.ENOTEMPTY, lambda: server.rename(SUPERUSER, ROOT_INO, b"empty", ROOT_INO, b"d"))
    damaged.assert_healthy(besides=gone)


def test_a_count_of_no_entries_is_not_believed(damaged: Damaged) -> None:
    """As a repair of an older version left it: size 0 and ten entries."""
    damaged.server._cache.directory(damaged.directory).size = 0
    refused(errno.ENOTEMPTY, lambda: damaged.server.rmdir(SUPERUSER, ROOT_INO, b"d"))
    damaged.names(100)
    refused(errno.ENOTEMPTY, lambda: damaged.server.rmdir(SUPERUSER, ROOT_INO, b"d"))


@pytest.mark.parametrize("listed", [True, False])
def test_scrub_names_the_damage_and_repairs_nothing_away(damaged: Damaged, listed: bool) -> None:
    server = damaged.server
    assert not listed or damaged.names(100) == NAMES
    for _ in range(2):
        found = [it for it in server.scrub(repair=True).run() if it.ino == damaged.directory and it.check in ("S1", "S5")]
        assert len(found) == 1
        assert not found[0].repaired
        attr = server.getattr(damaged.directory)
        assert attr.size == len(NAMES)
        assert damaged.names(3) == NAMES
    damaged.assert_healthy()


def test_a_small_memory_changes_nothing_of_it(damaged: Damaged) -> None:
    damaged.server = MetadataServer.mount(damaged.store, limits=TINY)
    for number in range(100):
        attr, handle = damaged.server.create(SUPERUSER, ROOT_INO, b"n%d" % number, 0o644, os.O_RDWR)
        damaged.server.release(handle)
        damaged.server.forget(attr.ino, 1)
        assert number % 10 or damaged.names(4) == NAMES
    damaged.assert_healthy()


def test_a_walk_of_the_tree_meets_the_damage_goes_on_and_leaks_nothing(damaged: Damaged) -> None:
    seen = list(listing(damaged.server, damaged.directory))
    assert [entry.name for entry in seen] == NAMES
    assert [entry.name for entry in seen if entry.error is not None] == [damaged.bad]
    assert "damaged" in str(seen[NAMES.index(damaged.bad)].error)
    assert damaged.server._core.references == {}
    damaged.assert_healthy()


def test_a_snapshot_shows_it_likewise(damaged: Damaged) -> None:
    vfs = SnapshotVfs(damaged.server)
    snap = vfs.lookup(SUPERUSER, damaged.directory, b".snap").ino
    top = vfs.mkdir(SUPERUSER, snap, b"s", 0o755).ino
    vfs.forget(top, 1)
    top = vfs.lookup(SUPERUSER, snap, b"s").ino
    handle = vfs.opendir(SUPERUSER, top)
    for _ in range(2):
        page = vfs.readdir(handle, None, 100, count_lookups=True)
        assert [name for name, _ in page] == NAMES
        assert [name for name, attr in page if not attr.ino] == [damaged.bad]
        for _, attr in page:
            if attr.ino:
                vfs.forget(attr.ino, 1)
    refused(errno.EIO, lambda: vfs.lookup(SUPERUSER, top, damaged.bad))
    assert vfs.lookup(SUPERUSER, top, damaged.healthy[8]).size == len(b"precious f0")
    vfs.releasedir(handle)


@pytest.fixture
def kernel(damaged: Damaged) -> Iterator[Kernel]:
    kernel = Kernel(damaged.server, SessionOptions())  # type: ignore[arg-type]
    kernel.start()
    yield kernel
    kernel.end()
    assert kernel.session.unexpected_errors == 0


@pytest.mark.parametrize("size", [416, 900, 4096, 65536])
@pytest.mark.parametrize("plus", [True, False])
def test_requests_of_any_size_list_all_and_count_exactly(damaged: Damaged, kernel: Kernel, size: int, plus: bool) -> None:
    _, reply = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), damaged.directory)
    handle = protocol.OPEN_OUT.unpack_from(reply)[0]
    for _ in range(2):
        names, cookie, counted = [], 0, list[int]()
        while True:
            opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
            error, data = kernel.ask(opcode, protocol.READ_IN.pack(handle, cookie, size, 0, 0, 0), damaged.directory)
            assert error == 0
            if not data:
                break
            at = 0
            while at < len(data):
                ino = 0
                if plus:
                    ino = protocol.ENTRY_OUT.unpack_from(data, at)[0]
                    at += protocol.ENTRY_OUT.size
                shown, cookie, length, _ = protocol.DIRENT.unpack_from(data, at)
                name = data[at + protocol.DIRENT.size : at + protocol.DIRENT.size + length]
                at += protocol.DIRENT.size + (length + 7 & ~7)
                names.append(name)
                assert shown
                counted += [ino] if ino else []
                assert not plus or bool(ino) == (name in damaged.healthy)
        assert names == [b".", b"..", *NAMES]
        assert sorted(damaged.server._core.references) == sorted(counted)
        for ino in counted:
            kernel.send(Opcode.FORGET, protocol.FORGET_IN.pack(1), ino)
        assert kernel.ask(Opcode.GETATTR, protocol.GETATTR_IN.pack(0, 0))[0] == 0  # the forgets were served before
        assert damaged.server._core.references == {}


def test_a_page_that_fails_later_gives_what_was_read_before_and_counts_only_that(
    damaged: Damaged, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = damaged.server
    _, reply = kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), damaged.directory)
    handle = protocol.OPEN_OUT.unpack_from(reply)[0]
    seen: list[Attr] = []
    whole = server.readdir

    def readdir(handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False) -> list[DirEntry]:
        if after is not None:
            raise MdstoreError("the medium does not give the next page")
        page = whole(handle, after, limit, count_lookups=count_lookups)
        seen.extend(attr for _, attr in page if attr.ino)
        return page

    monkeypatch.setattr(server, "readdir", readdir)
    error, data = kernel.ask(Opcode.READDIRPLUS, protocol.READ_IN.pack(handle, 0, 900, 0, 0, 0), damaged.directory)
    assert error == 0
    assert data
    assert sorted(server._core.references) == sorted(attr.ino for attr in seen)
