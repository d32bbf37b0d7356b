"""The medium fails under a mounted name space: fsync says EIO, changes are refused, what was durable can be read."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.client.mount import mount
from mdstore.client.mount_options import MountOptions, parse_options
from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.mds.driver import Driver
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.store import Store
from tests.posix.calls import make, outcome
from tests.posix.conftest import need_fuse

pytestmark = pytest.mark.fuse


class Mounted:
    """A mounted name space on a medium that can be broken. No time passes for it before `let_time_pass`: a tick between two calls
    of a test would meet the failure first."""

    def __init__(self, mountpoint: Path) -> None:
        need_fuse()
        mountpoint.mkdir()
        self.path = mountpoint
        self.device = FaultyDevice(32 << 20)
        self.store = Store.create(self.device)
        MetadataServer.format(self.store, now_ns=1)
        self.server = MetadataServer.mount(self.store, client=b"test")
        self.fell_back = threading.Event()
        self.driver = Driver(self.server, every_s=0.05, failed=lambda error: self.fall_back())
        options = parse_options("attr_timeout=0,entry_timeout=0,negative_timeout=0", MountOptions())
        self.session = mount(SnapshotVfs(self.server), str(mountpoint), options)
        self.thread = threading.Thread(target=self.session.run)
        self.thread.start()
        self.ticking = False

    def let_time_pass(self) -> None:
        """Until a tick has met the failure, and the name space is served read-only."""
        self.driver.__enter__()
        self.ticking = True
        assert self.fell_back.wait()

    def fall_back(self) -> None:
        image = MemoryDevice.from_bytes(self.device.image())
        self.server.fall_back(lambda: Store.open(image, read_only=True))
        while self.server.background_work():
            pass
        self.fell_back.set()

    def break_medium(self) -> None:
        self.device.inject(Fault("write", self.device.calls("write"), Effect.EIO, sticky=True))

    def end(self) -> None:
        self.session.unmount()
        self.thread.join()
        if self.ticking:
            self.driver.__exit__(None, None, None)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    mounted = Mounted(tmp_path / "mnt")
    try:
        yield mounted
    finally:
        mounted.end()


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_failing_medium_leaves_what_was_durable_readable_and_nothing_changeable(mounted: Mounted) -> None:
    root = mounted.path
    (root / "d").mkdir()
    for number in range(20):
        make(root / "d" / f"f{number}", b"content %d" % number)
        fsync(root / "d" / f"f{number}")
    held = os.open(root / "d" / "f3", os.O_RDWR)
    listing = os.open(root / "d", os.O_RDONLY)
    mounted.break_medium()
    make(root / "d" / "lost", b"never durable")
    lost = os.open(root / "d" / "lost", os.O_RDWR)
    assert outcome(os.fsync, lost) == "EIO"
    mounted.let_time_pass()
    assert sorted(os.listdir(root / "d")) == sorted(f"f{number}" for number in range(20))
    for number in range(20):
        assert (root / "d" / f"f{number}").read_bytes() == b"content %d" % number
        assert os.stat(root / "d" / f"f{number}").st_nlink == 1
    assert os.pread(held, 100, 0) == b"content 3", "an open file stays open"
    assert len(os.listdir(listing)) == 20
    for call, *args in (
        (os.mkdir, root / "new"), (os.unlink, root / "d" / "f1"), (os.rename, root / "d" / "f1", root / "f1"),
        (os.truncate, root / "d" / "f1", 0), (os.chmod, root / "d", 0o700), (os.setxattr, root / "d", "user.a", b"b"),
        (os.link, root / "d" / "f1", root / "g"),
    ):  # fmt: skip
        assert outcome(call, *args) == "EROFS", call  # type: ignore[arg-type]
    assert outcome(os.pwrite, held, b"x", 0) == "EROFS"
    assert outcome(os.fsync, held) == "EIO", "whoever asks is told that something was lost"
    assert outcome(os.fsync, lost) in ("EIO", "EBADF")
    assert outcome(os.stat, root / "d" / "lost") == "ENOENT"
    for fd in (held, lost, listing):
        assert outcome(os.close, fd) in ("OK", "EIO")


def test_a_failure_that_nobody_asked_about_is_met_by_the_driver(mounted: Mounted, caplog: pytest.LogCaptureFixture) -> None:
    make(mounted.path / "kept", b"kept")
    fsync(mounted.path / "kept")
    mounted.break_medium()
    with caplog.at_level(logging.ERROR):
        make(mounted.path / "lost", b"lost")
        mounted.let_time_pass()
    assert os.listdir(mounted.path) == ["kept"]
    with pytest.raises(OSError, match="Read-only") as refused:
        make(mounted.path / "more")
    assert refused.value.errno == errno.EROFS


def test_snapshots_are_read_and_not_changed_after_the_medium_failed(mounted: Mounted) -> None:
    root = mounted.path
    make(root / "f", b"as it was")
    os.mkdir(root / ".snap" / "looked-into")
    os.mkdir(root / ".snap" / "not-yet")
    make(root / "f", b"as it is")
    fsync(root / "f")
    held = os.open(root / ".snap" / "looked-into" / "f", os.O_RDONLY)
    mounted.break_medium()
    make(root / "lost", b"lost")
    mounted.let_time_pass()
    snapshots = root / ".snap"
    assert os.listdir(snapshots) == ["looked-into", "not-yet"]
    for name in os.listdir(snapshots):
        assert (snapshots / name / "f").read_bytes() == b"as it was"
        assert outcome(os.rmdir, snapshots / name) == "EROFS"
    assert os.pread(held, 100, 0) == b"as it was"
    os.close(held)
    assert outcome(os.mkdir, snapshots / "another") == "EROFS"
    assert (root / "f").read_bytes() == b"as it is"
