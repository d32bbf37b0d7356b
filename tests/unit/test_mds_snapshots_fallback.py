"""Snapshots after the medium failed and the server went on read-only: they can be looked into as before, and not changed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed, MdstoreError, errno_of
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.store import Store

OLD, NEW = b"old " * 30_000, b"new " * 10
SNAP = b".snap"


def refused(number: int, call: object, *arguments: object) -> None:
    with pytest.raises(MdstoreError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert errno_of(caught.value) == number, repr(caught.value)


class Failing:
    """A directory `d` with a file `f` that said OLD in the snapshots `one` and `two` and says NEW now, on a medium that fails on
    demand. `one` is looked into: `file` and `listing` are open in it, `names` is `.snap` itself."""

    def __init__(self) -> None:
        self.device = FaultyDevice(64 << 20)
        self.store = Store.create(self.device)
        MetadataServer.format(self.store, now_ns=1)
        self.vfs = SnapshotVfs(MetadataServer.mount(self.store, client=b"test"))
        self.d = self.vfs.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
        self.write(OLD)
        self.snapdir = self.vfs.lookup(SUPERUSER, self.d, SNAP).ino
        for name in (b"one", b"two"):
            self.vfs.mkdir(SUPERUSER, self.snapdir, name, 0o755)
        self.write(NEW)
        self.top = self.vfs.lookup(SUPERUSER, self.snapdir, b"one").ino
        self.f = self.vfs.lookup(SUPERUSER, self.top, b"f").ino
        self.file = self.vfs.open(SUPERUSER, self.f, os.O_RDONLY)
        self.listing = self.vfs.opendir(SUPERUSER, self.top)
        self.names = self.vfs.opendir(SUPERUSER, self.snapdir)

    def write(self, data: bytes) -> None:
        _, handle = self.vfs.create(SUPERUSER, self.d, b"f", 0o644, os.O_RDWR | os.O_TRUNC)
        self.vfs.write(handle, 0, data)
        self.vfs.fsync(handle)
        self.vfs.release(handle)

    def break_medium(self) -> None:
        self.device.inject(Fault("write", self.device.calls("write"), Effect.EIO, sticky=True))

    def fall_back(self) -> None:
        self.break_medium()
        self.vfs.mkdir(SUPERUSER, ROOT_INO, b"lost", 0o755)
        refused(errno.EIO, self.vfs.syncfs)
        self.go_on()

    def go_on(self) -> None:
        self.vfs.server.fall_back(lambda: Store.open(MemoryDevice.from_bytes(self.device.image()), read_only=True))
        while self.vfs.server.background_work():
            pass

    def listed(self) -> list[bytes]:
        return [entry.name for entry in self.vfs.readdir(self.names, None, 100)]

    def content(self, snapshot: bytes) -> bytes:
        """What `f` says there, found by names."""
        top = self.vfs.lookup(SUPERUSER, self.snapdir, snapshot).ino
        handle = self.vfs.open(SUPERUSER, self.vfs.lookup(SUPERUSER, top, b"f").ino, os.O_RDONLY)
        try:
            return self.vfs.read(handle, 0, 1 << 20)
        finally:
            self.vfs.release(handle)


@pytest.fixture
def failing() -> Iterator[Failing]:
    failing = Failing()
    yield failing
    assert failing.vfs.server.damage() == []
    failing.vfs.close()


def test_snapshots_are_listed_and_read_after_the_fall_back(failing: Failing) -> None:
    failing.fall_back()
    assert failing.listed() == [b"one", b"two"]
    for name in (b"one", b"two"):
        assert failing.content(name) == OLD
    assert failing.vfs.getattr(failing.snapdir).size == 2
    assert failing.vfs.getattr(failing.f).size == len(OLD)
    refused(errno.ENOENT, failing.vfs.lookup, SUPERUSER, failing.snapdir, b"three")


def test_what_was_open_in_a_snapshot_stays_open(failing: Failing) -> None:
    failing.fall_back()
    vfs = failing.vfs
    another = vfs.open(SUPERUSER, failing.f, os.O_RDONLY)
    assert another != failing.file
    for handle in (failing.file, another):
        assert vfs.read(handle, 0, 1 << 20) == OLD
        vfs.release(handle)
        refused(errno.EBADF, vfs.read, handle, 0, 1)
    assert [entry.name for entry in vfs.readdir(failing.listing, None, 10)] == [b"f"]
    vfs.releasedir(failing.listing)
    vfs.releasedir(failing.names)


def test_no_snapshot_is_made_or_removed_after_the_fall_back(failing: Failing) -> None:
    failing.fall_back()
    vfs = failing.vfs
    refused(errno.EROFS, vfs.mkdir, SUPERUSER, failing.snapdir, b"three", 0o755)
    for name in (b"one", b"two"):
        refused(errno.EROFS, vfs.rmdir, SUPERUSER, failing.snapdir, name)
    refused(errno.EROFS, vfs.unlink, SUPERUSER, failing.top, b"f")
    refused(errno.EROFS, vfs.open, SUPERUSER, failing.f, os.O_RDWR)
    assert failing.listed() == [b"one", b"two"]


def test_a_snapshot_whose_making_failed_is_one_the_image_has_or_none(failing: Failing) -> None:
    failing.break_medium()
    refused(errno.EIO, failing.vfs.mkdir, SUPERUSER, failing.snapdir, b"three", 0o755)
    failing.go_on()
    refused(errno.EROFS, failing.vfs.mkdir, SUPERUSER, ROOT_INO, b"new", 0o755)
    held = [one.name for one in failing.vfs.server.store.snapshots()]
    assert len(failing.listed()) == len(held)
    assert failing.listed()[0] == b"one"
    assert failing.content(b"one") == OLD


def test_a_snapshot_whose_removal_failed_is_there_again(failing: Failing) -> None:
    failing.break_medium()
    refused(errno.EIO, failing.vfs.rmdir, SUPERUSER, failing.snapdir, b"two")
    refused(errno.EIO, failing.vfs.server.tick, 1 << 62)
    failing.go_on()
    assert failing.listed() == [b"one", b"two"]
    assert failing.content(b"two") == OLD


def test_numbers_of_a_snapshot_that_the_opened_store_lacks_are_stale(failing: Failing) -> None:
    """An image taken back to before the snapshot: what was handed out means nothing, and never something else."""
    store = Store.create(MemoryDevice(64 << 20))
    MetadataServer.format(store, now_ns=1)
    failing.break_medium()
    failing.vfs.mkdir(SUPERUSER, ROOT_INO, b"lost", 0o755)
    refused(errno.EIO, failing.vfs.syncfs)
    failing.vfs.server.fall_back(lambda: store)
    refused(errno.ESTALE, failing.vfs.getattr, failing.f)
    refused(errno.ESTALE, failing.vfs.read, failing.file, 0, 1)
    assert failing.listed() == []


def test_a_read_that_meets_the_closed_store_waits_for_the_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "image")
    store = Store.create(FileDevice.create(path, 64 << 20))
    MetadataServer.format(store, now_ns=1)
    vfs = SnapshotVfs(MetadataServer.mount(store))
    _, handle = vfs.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    vfs.write(handle, 0, OLD)
    vfs.release(handle)
    snapdir = vfs.lookup(SUPERUSER, ROOT_INO, SNAP).ino
    top = vfs.mkdir(SUPERUSER, snapdir, b"one", 0o755).ino
    handle = vfs.open(SUPERUSER, vfs.lookup(SUPERUSER, top, b"f").ino, os.O_RDONLY)

    def gone(*arguments: object) -> None:
        raise DeviceFailed("write", path, OSError(errno.EIO, "gone"))

    monkeypatch.setattr(FileDevice, "write", gone)
    vfs.mkdir(SUPERUSER, ROOT_INO, b"lost", 0o755)
    refused(errno.EIO, vfs.syncfs)
    waits = threading.Event()
    settled = vfs.server.settled_store

    def noted() -> object:
        waits.set()
        return settled()

    monkeypatch.setattr(vfs.server, "settled_store", noted)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(vfs.read(handle, 0, 1 << 20)))

    def reopen() -> Store:
        with suppress(DeviceFailed):
            store.close()
        reader.start()
        waits.wait()
        return Store.open(FileDevice.open(path, read_only=True), read_only=True)

    vfs.server.fall_back(reopen)
    reader.join()
    assert found == [OLD]
    vfs.close()
    vfs.server.store.close()  # type: ignore[attr-defined]
