"""Where a change ends badly: what stops the server, what does not, and what is saved before it stops."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from journal import JournalError
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, InternalError, MdstoreError, ReadOnly, errno_of
from mdstore.mds.core import Limits
from mdstore.mds.driver import Driver
from mdstore.mds.filedata import FileData
from mdstore.mds.inode import Inode
from mdstore.mds.layout import META, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.store.transaction import Transaction

NEWER = b"much newer bytes"


@pytest.fixture
def store() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, log_unit=4096, log_object_size=8192)
    return store


def make(server: MetadataServer, name: bytes, content: bytes, parent: int = ROOT_INO) -> int:
    """A new file; a handle of it."""
    _, handle = server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
    server.write(handle, 0, content)
    return handle


def content(server: MetadataServer, name: bytes) -> bytes:
    handle = server.open(SUPERUSER, server.lookup(SUPERUSER, ROOT_INO, name).ino, os.O_RDONLY)
    return server.read(handle, 0, 100)


def crashed(store: MemStore) -> MetadataServer:
    return MetadataServer.mount(next(store.durable_prefixes()))


# -- after falling back ------------------------------------------------------------------------------------------------


def test_a_server_that_fell_back_in_the_middle_of_a_change_goes_on_read_only(
    store: MemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change that met the dead log was remembered as begun for ever: the first refusal after the fall-back, EROFS, stopped
    the server, and every later one was EIO, for a reason that hid the medium's failure."""
    server = MetadataServer.mount(store)
    server.fsync(make(server, b"kept", b"content"))

    def gone(*args: object) -> None:
        raise JournalError("disk gone")

    monkeypatch.setattr(server._core.journal, "append", gone)
    with pytest.raises(DeviceFailed) as first:
        server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    server.fall_back(lambda: store.crash())
    for _ in range(3):
        with pytest.raises(ReadOnly, match="disk gone"):
            server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    with pytest.raises(MdstoreError) as stale:
        server.setattr(SUPERUSER, 999, SetAttr(mode=0o600))
    assert errno_of(stale.value) == errno.EROFS
    assert content(server, b"kept") == b"content"
    server.tick(1 << 62)
    assert server.failure is first.value


def test_the_first_failure_stays_the_one_that_is_told(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    first = server._core.fail(DeviceFailed("write", "disk", "gone"))
    server.fall_back(lambda: store.crash())
    server._core.fail(DeviceFailed("read", "disk", "gone, too"))
    assert server.failure is first


# -- a damaged home directory ------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(store: MemStore) -> MemStore:
    """`d/f` is `g`, too; the directory `d`, which counts its bytes, cannot be read."""
    server = MetadataServer.mount(store)
    d = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    server.release(make(server, b"f", b"old", d))
    server.link(SUPERUSER, server.lookup(SUPERUSER, d, b"f").ino, ROOT_INO, b"g")
    server.close()
    store.apply(Transaction().map_set_header(META, directory_object(d), b"garbage"))
    return store


def opened(server: MetadataServer) -> tuple[int, int]:
    ino = server.lookup(SUPERUSER, ROOT_INO, b"g").ino
    return ino, server.open(SUPERUSER, ino, os.O_RDWR)


def test_fsync_of_a_link_whose_home_is_damaged_keeps_what_it_says(damaged: MemStore) -> None:
    """The buffer was dropped before the directory was read: the second fsync said yes, and a crash left the old bytes."""
    server = MetadataServer.mount(damaged)
    ino, handle = opened(server)
    server.write(handle, 0, NEWER)
    server.fsync(handle)
    assert content(crashed(damaged), b"g") == NEWER
    server.setattr(SUPERUSER, ino, SetAttr(mode=0o4700))
    server.syncfs()
    again = crashed(damaged)
    assert again.lookup(SUPERUSER, ROOT_INO, b"g").mode == 0o104700
    assert server.failure is None
    assert server.damage()


def test_a_tick_publishes_every_file_beside_one_that_is_damaged(damaged: MemStore) -> None:
    server = MetadataServer.mount(damaged)
    handles = [make(server, b"p", b"healthy"), opened(server)[1], make(server, b"q", b"healthy")]
    server.write(handles[1], 0, NEWER)
    driver = Driver(server, clock=lambda: 1 << 62)
    assert driver.turn(pause_s=0)
    again = crashed(damaged)
    assert [content(again, name) for name in (b"p", b"g", b"q")] == [b"healthy", NEWER, b"healthy"]


def test_what_can_be_saved_is_saved_before_falling_back(store: MemStore) -> None:
    """One file that could not be published kept the bytes of all others, and the log, from the medium."""
    server = MetadataServer.mount(store)
    server.fsync(make(server, b"synced", b"synced"))
    make(server, b"healthy", b"healthy")
    bad = server._handles.node(make(server, b"bad", b"bad"))
    bad.mtime = 1 << 70  # no record can hold it
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    server.fall_back(lambda: store.crash(), OSError("the driver's"))
    assert content(server, b"healthy") == b"healthy"
    assert server.lookup(SUPERUSER, ROOT_INO, b"d")
    assert content(server, b"bad") == b""


# -- what nobody foresaw, outside of the verbs that always change something ---------------------------------------------


def once_broken(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """The next call of that method of an inode fails."""
    real = getattr(Inode, method)
    calls = []

    def broken(self: Inode) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise error
        return real(self)

    monkeypatch.setattr(Inode, method, broken)


def test_seek_that_cannot_publish_stops_the_server_as_fsync_does(store: MemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raised the bare error, nothing was latched, and the fsync after it said yes to bytes that a crash lost."""
    server = MetadataServer.mount(store)
    handle = make(server, b"f", b"one")
    server.fsync(handle)
    server.write(handle, 3, b"two")
    once_broken(monkeypatch, "entry_value", struct.error("no room"))
    with pytest.raises(InternalError):
        server.lseek(handle, 0, os.SEEK_DATA)
    with pytest.raises(InternalError):
        server.fsync(handle)
    assert content(crashed(store), b"f") == b"one"


Change = Callable[[MetadataServer], object]


def statistics(server: MetadataServer) -> object:
    return server.getxattr(SUPERUSER, ROOT_INO, b"mdstore.rbytes")


def scrub(server: MetadataServer) -> object:
    server.scrubbing.start(repair=True)
    while server.scrubbing.step():
        pass
    assert server.scrubbing.status()["state"] == "failed"
    return server.tick(0)


def session(server: MetadataServer) -> object:
    return server.clients.open(b"client", timeout_ns=1)


def end(server: MetadataServer) -> object:
    return server.clients.end(server.clients.list()[0].number)


@pytest.mark.parametrize("change", [statistics, scrub, session, end])
def test_every_change_stops_the_server_where_it_ends_half_way(
    store: MemStore, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    server = MetadataServer.mount(store)
    d = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    make(server, b"f", b"bytes", server.mkdir(SUPERUSER, d, b"sub", 0o755).ino)
    server.clients.open(b"another", timeout_ns=1)
    server.syncfs()

    def broken(kind: int, payload: bytes, *, completes: bool = True) -> None:
        raise struct.error("no room")

    monkeypatch.setattr(server._core, "append", broken)
    with pytest.raises(InternalError):
        change(server)
    monkeypatch.undo()
    assert isinstance(server.failure, InternalError)
    with pytest.raises(InternalError):
        server.syncfs()


# -- before anything changed -------------------------------------------------------------------------------------------


WRONG: list[Callable[[Any, int], object]] = [
    lambda s, h: s.fsync([]),
    lambda s, h: s.fsync("x", data_only=True),
    lambda s, h: s.release({}),
    lambda s, h: s.lseek(h, "x", os.SEEK_DATA),
    lambda s, h: s.tick("x"),
    lambda s, h: s.forget_damage("x", b""),
    lambda s, h: s.forget_damage(1, "x"),
    lambda s, h: s.clients.open(5, timeout_ns=7),
    lambda s, h: s.clients.end([]),
    lambda s, h: s.clients.perform(s.clients.list()[0].number, 1, 0, "mkdir", SUPERUSER, ROOT_INO, "text", 0o755),
]


@pytest.mark.parametrize("call", range(len(WRONG)))
def test_a_wrong_type_is_a_type_error_and_stops_nothing(store: MemStore, call: int) -> None:
    server = MetadataServer.mount(store)
    handle = make(server, b"f", b"one")
    server.clients.open(b"client", timeout_ns=1)
    with pytest.raises(TypeError):
        WRONG[call](server, handle)
    assert server.failure is None
    server.fsync(handle)
    assert content(crashed(store), b"f") == b"one"


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), TypeError("odd")])
def test_what_ends_before_a_change_begins_stops_nothing(
    store: MemStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    server = MetadataServer.mount(store)
    handle = make(server, b"f", b"one")
    ino = server.lookup(SUPERUSER, ROOT_INO, b"f").ino

    def broken(*args: object) -> None:
        raise error

    for part, method, call in (
        (server._files, "open", lambda: server.open(SUPERUSER, ino, os.O_RDONLY)),
        (server._files, "publish", lambda: server.fsync(handle)),
        (server._names, "_place", lambda: server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)),
        (server._data, "allocated", lambda: server.write(handle, 0, b"One") and server.fsync(handle)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(part, method, broken)
            if method == "allocated":
                server._handles.node(handle).become_sparse()  # so that its objects are looked at
            with pytest.raises(type(error)):
                call()
    assert server.failure is None
    server.fsync(handle)
    assert content(crashed(store), b"f") == b"One"


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), TypeError("odd")])
def test_what_ends_after_a_change_has_begun_stops_the_server(
    store: MemStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    server = MetadataServer.mount(store)
    make(server, b"f", b"one")
    once_broken(monkeypatch, "entry_value", error)
    with pytest.raises((InternalError, KeyboardInterrupt)):
        server.create(SUPERUSER, ROOT_INO, b"new", 0o644, os.O_RDWR)
    assert isinstance(server.failure, InternalError)


def test_a_refused_fallocate_leaves_the_set_id_bits(store: MemStore) -> None:
    """EDQUOT came after they were dropped: gone from memory, there again after a crash."""
    server = MetadataServer.mount(store)
    server.setattr(SUPERUSER, ROOT_INO, SetAttr(mode=0o777))
    server.setxattr(SUPERUSER, ROOT_INO, b"mdstore.quota.max_bytes", b"100000")
    attr, handle = server.create(Credentials(5, 5), ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.setattr(SUPERUSER, attr.ino, SetAttr(mode=0o6755))
    with pytest.raises(MdstoreError) as refused:
        server.fallocate(handle, 0, 0, 1 << 20)
    assert errno_of(refused.value) == errno.EDQUOT
    assert server.getattr(attr.ino).mode == 0o106755
    server.fallocate(handle, 0, 0, 100)
    server.syncfs()
    assert server.getattr(attr.ino).mode == 0o100755 == crashed(store).lookup(SUPERUSER, ROOT_INO, b"f").mode


def test_who_writes_on_while_nothing_can_be_published_is_refused_in_time(
    store: MemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that filled the buffer raised, and its bytes were there all the same."""
    server = MetadataServer.mount(store, limits=Limits(file_buffer=1000, data_buffer=5000))
    bad, other = make(server, b"bad", b"begun"), make(server, b"other", b"")
    node = server._handles.node(bad)
    real = FileData._fill

    def unreadable(self: FileData, batch: Any, file: Inode) -> None:
        if file is node:
            raise CorruptionError("a page", "somewhere", "a checksum", "another")
        real(self, batch, file)

    with monkeypatch.context() as patch:
        patch.setattr(FileData, "_fill", unreadable)
        assert server.write(bad, 5, bytes(2000)) == 2000
        for _ in range(3):
            for number in range(5):  # of who shares nothing with it none is refused
                assert server.write(other, number * 500, bytes(500)) == 500
            with pytest.raises(CorruptionError):
                server.write(bad, 2005, b"more")
            with pytest.raises(CorruptionError):
                server.fsync(bad)
            assert server.getattr(node.ino).size == 2005
        server.fsync(other)
        assert server.counters()["buffered_bytes"] == 2005
    assert server.write(bad, 2005, b"more") == 4
    server.fsync(bad)
    again = crashed(store)
    assert [again.lookup(SUPERUSER, ROOT_INO, name).size for name in (b"bad", b"other")] == [2009, 2500]
