"""Files: without a name, across objects, after a crash; who may write; names and attributes at their limits."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.mds.layout import DATA
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
from tests.model.mds_check import problems
from tests.unit.mds_calls import formatted, make_file, names_in, refused

USER = Credentials(1000, 1000)


@pytest.fixture
def store() -> MemStore:
    return formatted()


def test_an_unlinked_open_file_keeps_its_bytes_until_closed_and_then_gives_them_up(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"still here")
    server.fsync(handle)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.write(handle, 10, b" and more")
    assert server.read(handle, 0, 100) == b"still here and more"
    assert server.getattr(attr.ino).nlink == 0
    server.purge_all()
    assert server.read(handle, 0, 100) == b"still here and more"
    server.release(handle)
    assert server.counters()["purge_backlog"] == 1
    server.purge_all()
    assert store.list_objects(DATA) == []
    refused(errno.ESTALE, lambda: server.getattr(attr.ino))


def test_an_unlinked_open_file_of_a_dead_process_is_purged_after_the_restart(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    _, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"x" * 10_000)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.fsync(handle)
    left = store.crash()
    assert left.list_objects(DATA) != []
    server = MetadataServer.mount(left)
    server.purge_all()
    server.close()
    assert left.list_objects(DATA) == []
    assert list(problems(left)) == []


def test_a_file_of_many_objects_is_purged_in_steps() -> None:
    store = formatted(object_size=4096)
    server = MetadataServer.mount(store, count_references=False)
    _, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    for number in range(700):
        server.write(handle, number * 4096, b"x")
    server.release(handle)
    server.syncfs()
    assert len(store.list_objects(DATA)) == 700
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.tick(1)
    assert 0 < len(store.list_objects(DATA)) < 700
    server.purge_all()
    assert store.list_objects(DATA) == []


def test_bytes_cross_objects_and_sizes_pass_four_gigabytes() -> None:
    store = formatted(object_size=1 << 20)
    server = MetadataServer.mount(store)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    far = (5 << 30) - 3
    server.write(handle, far, b"across")
    server.write(handle, (1 << 20) - 2, b"edge")
    server.fsync(handle)
    assert server.getattr(attr.ino).size == far + 6
    assert server.getattr(attr.ino).blocks < 100, "holes take no space"
    assert server.read(handle, far - 2, 100) == b"\0\0across"
    assert server.read(handle, (1 << 20) - 3, 6) == b"\0edge\0"
    assert server.lseek(handle, 0, os.SEEK_DATA) in range((1 << 20) - 4096, 1 << 20)
    assert server.lseek(handle, 3 << 20, os.SEEK_DATA) in range(far - 4096, far + 1)
    assert server.lseek(handle, far, os.SEEK_HOLE) == far + 6
    refused(errno.ENXIO, lambda: server.lseek(handle, far + 6, os.SEEK_DATA))
    refused(errno.EFBIG, lambda: server.write(handle, 1 << 53, b"x"))
    server.setattr(SUPERUSER, attr.ino, SetAttr(size=10))
    server.setattr(SUPERUSER, attr.ino, SetAttr(size=2 << 20))
    assert server.read(handle, 0, 2 << 20) == bytes(2 << 20), "cut bytes never come back"


def test_bytes_that_a_crash_left_behind_the_end_never_show(store: MemStore) -> None:
    """1. written bytes reach the store; 2. the process dies before the event with the size is durable; 3. after the restart the
    file is written again further on: the gap must read as zeros, not as what was left there."""
    server = MetadataServer.mount(store)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"0123456789")
    server.fsync(handle)
    server.write(handle, 10, b"L" * 90)
    server._data.publish(list(server._core.buffered.values()))
    states = [s for s in store.durable_prefixes() if s.stat(DATA, b"%016x.00000000" % attr.ino).size == 100]
    sizes = set()
    for state in states:
        again = MetadataServer.mount(state)
        size = again.lookup(SUPERUSER, ROOT_INO, b"f").size
        sizes.add(size)
        handle = again.open(SUPERUSER, attr.ino, os.O_RDWR)
        again.write(handle, 50, b"new")
        again.fsync(handle)
        expected = b"0123456789" + (b"L" * 90 if size == 100 else bytes(43))
        expected = expected[:50] + b"new" + expected[53:]
        assert again.read(handle, 0, 1000) == expected
    assert 10 in sizes, "a state with bytes behind the end was met"


def test_copy_file_range_and_fallocate(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    _, source = server.create(SUPERUSER, ROOT_INO, b"a", 0o644, os.O_RDWR)
    _, target = server.create(SUPERUSER, ROOT_INO, b"b", 0o644, os.O_RDWR)
    server.write(source, 0, b"0123456789" * 1000)
    assert server.copy_file_range(source, 5, target, 100, 20) == 20
    assert server.read(target, 99, 22) == b"\0" + (b"0123456789" * 4)[5:25]
    refused(errno.EINVAL, lambda: server.copy_file_range(source, 0, source, 5, 10))
    server.fallocate(source, 3, 10, 4086)
    assert server.read(source, 8, 4) == b"89\0\0"
    assert server.read(source, 4096, 4) == (b"0123456789" * 1000)[4096:4100]
    server.fallocate(target, 0, 0, 5000)
    assert server.read(target, 4999, 10) == b"\0"
    refused(errno.EOPNOTSUPP, lambda: server.fallocate(target, 8, 0, 1))


def test_writing_by_another_takes_set_id_bits_and_a_set_group_directory_hands_down_its_group(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o777).ino
    server.setattr(SUPERUSER, directory, SetAttr(mode=0o2777, gid=50))
    attr, handle = server.create(USER, directory, b"f", 0o4777, os.O_RDWR)
    assert (attr.gid, attr.mode & 0o7777) == (50, 0o4777)
    server.write(handle, 0, b"x")
    assert server.getattr(attr.ino).mode & 0o7777 == 0o777
    below = server.mkdir(USER, directory, b"below", 0o755)
    assert below.gid == 50
    assert below.mode & 0o2000


def test_names_at_their_limit(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    for length in (254, 255):
        assert server.mknod(SUPERUSER, ROOT_INO, b"n" * length, 0o644).size == 0
    refused(errno.ENAMETOOLONG, lambda: server.mknod(SUPERUSER, ROOT_INO, b"n" * 256, 0o644))
    every = bytes(value for value in range(1, 256) if value != ord("/"))
    server.mknod(SUPERUSER, ROOT_INO, every[:200], 0o644)
    server.symlink(SUPERUSER, ROOT_INO, b"s", b"t" * 4095)
    refused(errno.ENAMETOOLONG, lambda: server.symlink(SUPERUSER, ROOT_INO, b"s2", b"t" * 4096))
    server.close()
    server = MetadataServer.mount(store)
    assert every[:200] in names_in(server)
    assert server.readlink(server.lookup(SUPERUSER, ROOT_INO, b"s").ino) == b"t" * 4095


def test_attributes_at_their_limits(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, ROOT_INO, b"f")
    server.setxattr(SUPERUSER, ino, b"user." + b"n" * 250, b"v" * 65536)
    refused(errno.ERANGE, lambda: server.setxattr(SUPERUSER, ino, b"user." + b"n" * 251, b""))
    refused(errno.E2BIG, lambda: server.setxattr(SUPERUSER, ino, b"user.a", b"v" * 65537))
    refused(errno.ENOSPC, lambda: server.setxattr(SUPERUSER, ino, b"user.a", b"v" * 65536))
    refused(errno.EOPNOTSUPP, lambda: server.setxattr(SUPERUSER, ino, b"system.other", b"x"))
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    server.setxattr(SUPERUSER, directory, b"user.a", b"v" * 40_000)
    refused(errno.ENOSPC, lambda: server.setxattr(SUPERUSER, directory, b"user.b", b"v" * 10_000))
    server.close()
    server = MetadataServer.mount(store)
    assert server.getxattr(SUPERUSER, directory, b"user.a") == b"v" * 40_000
    assert server.listxattr(server.lookup(SUPERUSER, ROOT_INO, b"f").ino) == [b"user." + b"n" * 250]


# What Linux 6.18 answers for its own tmpfs to get, remove, set: to the superuser; to another, whom the mode allows nothing.
BARE = {
    b"user.": ((errno.EINVAL, errno.EINVAL, errno.EINVAL), (errno.EACCES, errno.EACCES, errno.EACCES)),
    b"trusted.": ((errno.EINVAL, errno.EINVAL, errno.EINVAL), (errno.ENODATA, errno.EPERM, errno.EPERM)),
    b"security.": ((errno.EINVAL, errno.EINVAL, errno.EINVAL), (errno.EINVAL, errno.EPERM, errno.EPERM)),
    b"system.": ((errno.EOPNOTSUPP,) * 3, (errno.EOPNOTSUPP,) * 3),
}


@pytest.mark.parametrize("name", BARE)
def test_a_name_space_alone_is_no_name_of_an_attribute(store: MemStore, name: bytes) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, ROOT_INO, b"f")
    server.setattr(SUPERUSER, ino, SetAttr(mode=0o600))
    for cred, answers in zip((SUPERUSER, USER), BARE[name]):
        get, remove, change = answers
        refused(get, lambda cred=cred: server.getxattr(cred, ino, name))
        refused(remove, lambda cred=cred: server.removexattr(cred, ino, name))
        refused(change, lambda cred=cred: server.setxattr(cred, ino, name, b"v"))
    assert server.listxattr(ino) == []
