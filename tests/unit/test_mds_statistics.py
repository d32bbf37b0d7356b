"""Recursive statistics and the quotas that stand on them."""

from __future__ import annotations

import errno
import os

import pytest

from mdstore.engines.mem import MemStore
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
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
