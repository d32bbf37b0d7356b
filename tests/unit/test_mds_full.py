"""A full image: said in time, nothing half done, removing works, and what was freed can be used again."""

from __future__ import annotations

import errno
import os
import random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import MdstoreError, errno_of
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.check import check
from mdstore.store.store import Store
from tests.model.mds_check import problems

IMAGE = 4 << 20
SEED = 4


class Filled:
    """Files of one size, made until there is no room."""

    def __init__(self, file_size: int) -> None:
        self.random = random.Random(SEED)
        self.device = MemoryDevice(IMAGE)
        self.store = Store.create(self.device)
        MetadataServer.format(self.store, now_ns=1)
        self.server = MetadataServer.mount(self.store, count_references=False)
        self.file_size = file_size
        self.content: dict[bytes, bytes] = {}

    def fill(self, tag: bytes) -> int:
        """Make files until one is refused; how many were made. A file whose bytes were refused is empty."""
        for number in range(1 << 20):
            name = b"%s%06d" % (tag, number)
            if not self.make(name):
                return number
        raise AssertionError("it never was full")

    def make(self, name: bytes) -> bool:
        """Whether there was room."""
        try:
            _, handle = self.server.create(SUPERUSER, ROOT_INO, name, 0o644, os.O_RDWR)
            self.content[name] = b""
            content = self.random.randbytes(self.file_size)
            try:
                self.server.write(handle, 0, content)
                self.content[name] = content
            finally:
                self.server.release(handle)
        except MdstoreError as error:
            if errno_of(error) == errno.ENOSPC:
                return False
            raise
        return True

    def empty(self) -> None:
        for name in list(self.content)[: len(self.content) // 2]:
            self.server.unlink(SUPERUSER, ROOT_INO, name)
            del self.content[name]
        self.server.purge_all()

    def reopen(self) -> None:
        self.server.close()
        assert list(problems(self.store)) == []
        assert not check(self.store, deep=True)
        self.store.close()
        self.device = MemoryDevice.from_bytes(self.device.image())
        self.store = Store.open(self.device)
        self.server = MetadataServer.mount(self.store, count_references=False)

    def compare(self) -> None:
        for name, content in self.content.items():
            ino = self.server.lookup(SUPERUSER, ROOT_INO, name).ino
            handle = self.server.open(SUPERUSER, ino, os.O_RDONLY)
            assert self.server.read(handle, 0, self.file_size + 1) == content, name
            self.server.release(handle)


@pytest.mark.parametrize("file_size", [pytest.param(0, marks=pytest.mark.slow), 100, 20_000, 300_000])
def test_a_full_image_keeps_what_it_took_and_takes_as_much_again_as_is_removed(file_size: int) -> None:
    print(f"seed {SEED}")
    image = Filled(file_size)
    first = image.fill(b"a")
    assert first * max(4096, file_size) > IMAGE // 2 or file_size == 0, "it was called full too early"
    image.server.syncfs()
    image.compare()
    image.empty()
    assert image.fill(b"b") >= first // 4
    image.reopen()
    image.compare()
    image.empty()
    image.reopen()
    image.compare()
