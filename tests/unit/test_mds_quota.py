"""Quotas are never exceeded, however the usage below them is spread."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import PosixError
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from tests.model.mds_check import problems


@pytest.fixture
def store() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    return store


def usage(server: MetadataServer, ino: int) -> tuple[int, int]:
    """Bytes and files below a directory, everything written and handed up."""
    server.write_back()
    rbytes, files = (int(server.getxattr(SUPERUSER, ino, name)) for name in (b"mdstore.rbytes", b"mdstore.rentries"))
    return rbytes, files


def is_let_in(call: Callable[..., object], *args: object) -> bool:
    """Whether no quota refuses it."""
    try:
        call(*args)
    except PosixError as error:
        if error.errno != errno.EDQUOT:
            raise
        return False
    return True


def test_a_quota_of_files_holds_over_many_dirty_directories(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    top = server.mkdir(SUPERUSER, ROOT_INO, b"top", 0o755).ino
    below = [server.mkdir(SUPERUSER, top, b"d%d" % number, 0o755).ino for number in range(100)]
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_files", b"350")
    made = 0
    while is_let_in(server.mkdir, SUPERUSER, below[made % 100], b"s%d" % made, 0o755):
        made += 1
    assert made == 250
    assert usage(server, top) == (0, 350)


def test_a_quota_of_bytes_holds_over_many_files_not_yet_published(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    top = server.mkdir(SUPERUSER, ROOT_INO, b"top", 0o755).ino
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_bytes", b"100000")
    handles = []
    for number in range(70):
        inside = server.mkdir(SUPERUSER, top, b"d%d" % number, 0o755).ino
        handles.append(server.create(SUPERUSER, inside, b"f", 0o644, os.O_RDWR)[1])
    written = 0
    while is_let_in(server.write, handles[written // 1000 % 70], written // 70_000 * 1000, b"x" * 1000):
        written += 1000
    assert written == 100_000
    assert usage(server, top)[0] == 100_000


class Crowd:
    """Random work below and beside a directory that may hold 120 files and 40,000 bytes; `sizes` is what there must be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = MemStore(delayed=True)
        MetadataServer.format(self.store, now_ns=1)
        limits = Limits(dirty_entries=60, dirty_entries_low=20, file_buffer=3000, data_buffer=9000)
        self.server = MetadataServer.mount(self.store, limits=limits, count_references=False)
        self.top = self.server.mkdir(SUPERUSER, ROOT_INO, b"top", 0o755).ino
        inside = [self.server.mkdir(SUPERUSER, self.top, b"d%d" % number, 0o755).ino for number in range(40)]
        self.outside = self.server.mkdir(SUPERUSER, ROOT_INO, b"outside", 0o755).ino
        self.places = [self.top, *inside, self.outside]
        self.server.setxattr(SUPERUSER, self.top, b"mdstore.quota.max_bytes", b"40000")
        self.server.setxattr(SUPERUSER, self.top, b"mdstore.quota.max_files", b"120")
        self.sizes: dict[tuple[int, bytes], int] = {}
        self.made = 0

    def inside(self) -> tuple[int, int]:
        """Bytes and files below the directory."""
        sizes = [size for (parent, _), size in self.sizes.items() if parent != self.outside]
        return sum(sizes), len(sizes) + 40

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.5 or not self.sizes:
            self.create()
            return
        parent, name = self.random.choice(sorted(self.sizes))
        if choice < 0.7:
            self.server.unlink(SUPERUSER, parent, name)
            del self.sizes[parent, name]
        elif choice < 0.85:
            self.made += 1
            target, new = self.random.choice(self.places), b"m%d" % self.made
            self.server.rename(SUPERUSER, parent, name, target, new)
            self.sizes[target, new] = self.sizes.pop((parent, name))
        else:
            length = self.random.randrange(3000)
            self.server.setattr(SUPERUSER, self.server.lookup(SUPERUSER, parent, name).ino, SetAttr(size=length))
            self.sizes[parent, name] = length

    def create(self) -> None:
        self.made += 1
        parent, name, length = self.random.choice(self.places), b"f%d" % self.made, self.random.randrange(2000)
        handle = self.server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)[1]
        self.sizes[parent, name] = 0
        if parent == self.outside or self.inside()[0] + length <= 40_000:
            self.server.write(handle, 0, b"x" * length)
            self.sizes[parent, name] = length
        self.server.release(handle)


@pytest.mark.parametrize("seed", range(4))
def test_random_work_never_exceeds_a_quota_nor_is_refused_below_it(seed: int) -> None:
    print("seed", seed)
    crowd = Crowd(seed)
    refusals = 0
    for step in range(600):
        refusals += not is_let_in(crowd.step)
        size, files = crowd.inside()
        assert (size <= 40_000, files <= 120) == (True, True), f"seed {seed}, step {step}"
    assert refusals > 3
    assert usage(crowd.server, crowd.top) == crowd.inside()
    crowd.server.close()
    assert list(problems(crowd.store)) == []


def test_a_directory_with_news_takes_all_of_it_into_another_quota(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    loose, limited = (server.mkdir(SUPERUSER, ROOT_INO, name, 0o755).ino for name in (b"loose", b"limited"))
    server.setxattr(SUPERUSER, limited, b"mdstore.quota.max_files", b"5")
    moved = server.mkdir(SUPERUSER, loose, b"moved", 0o755).ino
    deep = server.mkdir(SUPERUSER, moved, b"deep", 0o755).ino
    for number in range(4):
        server.mkdir(SUPERUSER, deep, b"%d" % number, 0o755)
    with pytest.raises(PosixError) as refused:
        server.rename(SUPERUSER, loose, b"moved", limited, b"moved")
    assert refused.value.errno == errno.EDQUOT
    server.rmdir(SUPERUSER, deep, b"0")
    server.rename(SUPERUSER, loose, b"moved", limited, b"moved")
    assert usage(server, limited) == (0, 5)
