"""What tests of the metadata server do again and again: a file system in memory, a file made or read, names listed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import MdstoreError, errno_of
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER


def formatted(object_size: int = 64 << 20) -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, object_size=object_size, log_unit=4096, log_object_size=8192)
    return store


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number, os.strerror(errno_of(caught.value))


def make_file(server: MetadataServer, parent: int, name: bytes, content: bytes = b"") -> int:
    attr, handle = server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
    if content:
        server.write(handle, 0, content)
    server.release(handle)
    return attr.ino


def content_of(server: MetadataServer, ino: int) -> bytes:
    handle = server.open(SUPERUSER, ino, os.O_RDONLY)
    data = server.read(handle, 0, 1 << 30)
    server.release(handle)
    return data


def names_in(server: MetadataServer, ino: int = ROOT_INO, page: int = 7) -> list[bytes]:
    handle = server.opendir(SUPERUSER, ino)
    found: list[bytes] = []
    while entries := server.readdir(handle, found[-1] if found else None, page):
        found += [entry.name for entry in entries]
    server.releasedir(handle)
    return found
