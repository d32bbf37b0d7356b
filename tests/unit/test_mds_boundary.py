"""What comes in is checked before anything changes; what goes wrong inside a change all the same is never half-written.

`touch -d 2500-01-01` used to put a time into an inode that no record could hold: the inode could not be written any more, the
thread that makes things durable died of it, and a clean unmount lost every byte written since.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from mdstore.client.mount_options import parse_options
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, InternalError, InvalidRequest, MdstoreError, errno_of
from mdstore.limits import DEVICE_NUMBER_MAX, OWNER_MAX, TIME_MAX_NS, TIME_MIN_NS
from mdstore.mds.driver import Driver
from mdstore.mds.inode import Inode
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import NOW, ROOT_INO, SUPERUSER, Credentials, SetAttr
from tests.model.mds_check import problems

BIG = 1 << 70


def formatted() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, log_unit=4096, log_object_size=8192)
    return store


@pytest.fixture
def store() -> MemStore:
    return formatted()


def make_file(server: MetadataServer, name: bytes, content: bytes = b"") -> int:
    attr, handle = server.create(SUPERUSER, ROOT_INO, name, 0o644, os.O_RDWR)
    server.write(handle, 0, content)
    server.release(handle)
    return attr.ino


def content_of(server: MetadataServer, name: bytes) -> bytes:
    handle = server.open(SUPERUSER, server.lookup(SUPERUSER, ROOT_INO, name).ino, os.O_RDONLY)
    return server.read(handle, 0, 1 << 20)


def refused(number: int, call: Callable[..., object], *args: object) -> None:
    with pytest.raises(MdstoreError) as caught:
        call(*args)
    assert errno_of(caught.value) == number


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["atime_ns", "mtime_ns", "ctime_ns"])
@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (TIME_MAX_NS - 1, TIME_MAX_NS - 1), (TIME_MAX_NS, TIME_MAX_NS), (TIME_MAX_NS + 1, TIME_MAX_NS), (1 << 63, TIME_MAX_NS),
        (BIG, TIME_MAX_NS), (TIME_MIN_NS + 1, TIME_MIN_NS + 1), (TIME_MIN_NS, TIME_MIN_NS), (TIME_MIN_NS - 1, TIME_MIN_NS),
        (NOW + 1, TIME_MIN_NS), (NOW - 1, TIME_MIN_NS), (-BIG, TIME_MIN_NS),
    ],
)  # fmt: skip
def test_a_time_out_of_range_becomes_the_nearest_that_is_kept(store: MemStore, field: str, asked: int, kept: int) -> None:
    server = MetadataServer.mount(store)
    made = [make_file(server, b"f", b"bytes"), server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino]
    for ino in made:
        assert getattr(server.setattr(SUPERUSER, ino, SetAttr(**{field: asked})), field) == kept
    handle = server.open(SUPERUSER, made[0], os.O_WRONLY | os.O_APPEND)
    server.write(handle, 0, b" and more")
    server.syncfs()
    again = MetadataServer.mount(store.crash())
    assert content_of(again, b"f") == b"bytes and more"
    assert field == "ctime_ns" or getattr(again.getattr(made[1]), field) == kept


def test_an_owner_or_device_out_of_range_is_refused_and_nothing_changes(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, b"f")
    before = server.getattr(ino), server.counters()["events"]
    for number in (-1, OWNER_MAX + 1, 1 << 32, BIG):
        refused(errno.EINVAL, server.setattr, SUPERUSER, ino, SetAttr(mode=0o600, uid=number))
        refused(errno.EINVAL, server.setattr, SUPERUSER, ROOT_INO, SetAttr(gid=number, mtime_ns=5))
        refused(errno.EINVAL, server.mkdir, Credentials(number, 0), ROOT_INO, b"d", 0o755)
        refused(errno.EINVAL, server.create, Credentials(0, number), ROOT_INO, b"n", 0o755, os.O_RDWR)
    for umask in (-1, 0o1000, 0o77777, BIG):  # it took the file type too: a directory whose record nobody could read again
        refused(errno.EINVAL, server.mkdir, Credentials(0, 0, umask=umask), ROOT_INO, b"d", 0o755)
    for number in (-1, DEVICE_NUMBER_MAX + 1, BIG):
        refused(errno.EINVAL, server.mknod, SUPERUSER, ROOT_INO, b"dev", 0o20644, number)
    assert (server.getattr(ino), server.counters()["events"]) == before
    assert server.setattr(SUPERUSER, ino, SetAttr(uid=OWNER_MAX, gid=OWNER_MAX)).uid == OWNER_MAX
    assert server.mknod(SUPERUSER, ROOT_INO, b"dev", 0o20644, DEVICE_NUMBER_MAX).rdev == DEVICE_NUMBER_MAX
    server.close()
    assert list(problems(store)) == []


def test_a_file_system_for_nobody_is_not_made() -> None:
    store = MemStore()
    refused(errno.EINVAL, lambda: MetadataServer.format(store, now_ns=1, uid=1 << 32))
    MetadataServer.format(store, now_ns=BIG, uid=OWNER_MAX)
    assert MetadataServer.mount(store).getattr(ROOT_INO).mtime_ns == TIME_MAX_NS


@pytest.mark.parametrize("option", ["uid", "gid"])
def test_a_mount_option_names_an_owner_that_can_be(option: str) -> None:
    assert getattr(parse_options(f"{option}={OWNER_MAX}"), option) == OWNER_MAX
    for number in (-1, OWNER_MAX + 1, 99999999999):
        with pytest.raises(InvalidRequest, match=f"{option}={number}"):
            parse_options(f"{option}={number}")


def test_another_type_than_the_verb_takes_is_a_type_error_and_changes_nothing(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    wrong: list[Callable[[Any], object]] = [
        lambda s: s.mkdir(SUPERUSER, ROOT_INO, "text", 0o755),
        lambda s: s.mkdir(SUPERUSER, ROOT_INO, b"n", None),
        lambda s: s.mkdir((0, 0), ROOT_INO, b"n", 0o755),
        lambda s: s.mkdir(Credentials("0", 0), ROOT_INO, b"n", 0o755),  # type: ignore[arg-type]
        lambda s: s.setattr(SUPERUSER, ROOT_INO, SetAttr(mtime_ns=1.5)),  # type: ignore[arg-type]
        lambda s: s.unlink(SUPERUSER, ROOT_INO),
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call(server)
    assert server.counters()["events"] == 0
    assert server.mkdir(cred=SUPERUSER, parent=ROOT_INO, name=b"n", mode=True).mode & 0o777 == 1


# -- what nobody foresaw -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [struct.error("no room"), CorruptionError("entry", "meta", 1, 2), KeyboardInterrupt()])
def test_a_change_that_ends_half_way_is_never_written(
    store: MemStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """unlink had counted its directory one less when the inode's row could not be encoded: the name was gone after an unmount,
    the inode was nobody's."""
    server = MetadataServer.mount(store)
    make_file(server, b"f")
    make_file(server, b"synced by nobody")

    def broken(*args: object) -> bytes:
        raise error

    monkeypatch.setattr(server._names, "lose_name", broken)
    with pytest.raises(InternalError if isinstance(error, struct.error) else type(error)):
        server.unlink(SUPERUSER, ROOT_INO, b"f")
    monkeypatch.undo()
    assert isinstance(server.failure, InternalError)
    refused(errno.EIO, server.mkdir, SUPERUSER, ROOT_INO, b"d", 0o755)
    refused(errno.EIO, server.syncfs)
    with pytest.raises(InternalError):
        server.tick(1 << 62)
    server.close()
    again = MetadataServer.mount(store.crash())
    assert again.lookup(SUPERUSER, ROOT_INO, b"f").nlink == 1
    assert again.lookup(SUPERUSER, ROOT_INO, b"synced by nobody")
    again.close()
    assert list(problems(again.store)) == []


def test_a_refused_change_is_not_a_failure(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    refused(errno.ENOENT, server.unlink, SUPERUSER, ROOT_INO, b"nothing")
    assert server.failure is None


def test_close_saves_what_can_be_saved_and_tells(store: MemStore) -> None:
    """One inode that no record can hold must not take the others' bytes along."""
    server = MetadataServer.mount(store)
    for number in range(5):
        make_file(server, b"f%d" % number, b"content %d" % number)
    node: Inode = server._cache.node(server.lookup(SUPERUSER, ROOT_INO, b"f2").ino)
    node.mtime = BIG
    with pytest.raises(MdstoreError, match="1 files could not be saved") as caught:
        server.close()
    assert errno_of(caught.value) == errno.EIO
    again = MetadataServer.mount(store.crash())
    assert [content_of(again, b"f%d" % number) for number in (0, 1, 3, 4)] == [b"content %d" % n for n in (0, 1, 3, 4)]
    assert again.lookup(SUPERUSER, ROOT_INO, b"f2").size == 0
    again.close()
    assert [it for it in problems(again.store) if "belongs to nobody" not in it] == []


def test_whatever_a_tick_meets_is_told_and_the_server_goes_on_read_only(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    make_file(server, b"kept", b"content")
    server.syncfs()
    make_file(server, b"bad", b"bytes")
    server._cache.node(server.lookup(SUPERUSER, ROOT_INO, b"bad").ino).mtime = BIG
    told: list[Exception] = []
    driver = Driver(server, clock=lambda: 1 << 62, failed=told.append)
    assert driver.turn(pause_s=0) is False
    assert told == [driver.error]
    assert isinstance(driver.error, InternalError)
    server.fall_back(lambda: store.crash(), driver.error)
    assert content_of(server, b"kept") == b"content"
    refused(errno.EROFS, server.mkdir, SUPERUSER, ROOT_INO, b"d", 0o755)
    assert server.failure is driver.error
    assert "unforeseen" in str(server.counters()["failure"])
