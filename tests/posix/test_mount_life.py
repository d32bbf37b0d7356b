"""From mount to umount, whoever ends it: signals, umount(8), kill -9, busy mounts, the background, every wrong mountpoint."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdstore.client import mount_syscalls
from mdstore.client.mount import MountRefused, MountSession, check_mountpoint, mount, unmount
from mdstore.client.mount_options import MountOptions, parse_options
from mdstore.errors import PosixError
from mdstore.mds.vfs import SUPERUSER
from tests.model.memory_vfs import MemoryVfs
from tests.posix.calls import OTHER, in_child, make, outcome, outcome_as
from tests.posix.conftest import Server, need_fuse

pytestmark = pytest.mark.fuse

NOBODY = 65534  # fusermount3 wants a user that has a name


class WatchedVfs(MemoryVfs):
    """Counts closings."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Served:
    """A mount served by a thread of this process, so that both ends can be looked at."""

    def __init__(self, vfs: MemoryVfs, mountpoint: Path, options: str = "") -> None:
        self.vfs = vfs
        self.path = mountpoint
        self.session: MountSession = mount(vfs, mountpoint, parse_options(options, MountOptions(allow_other=True)))
        self.thread = threading.Thread(target=self.session.run)
        self.thread.start()

    def count(self, opcode: int) -> int:
        return self.session.fuse.counts[opcode]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(vfs, options)` mounts at a fresh directory; everything is unmounted at the end."""
    need_fuse()
    begun: list[Served] = []

    def begin(vfs: MemoryVfs, options: str = "") -> Served:
        path = tmp_path / f"mount{len(begun)}"
        path.mkdir()
        begun.append(Served(vfs, path, options))
        return begun[-1]

    yield begin
    for served in begun:
        served.session.unmount()
        served.thread.join()
        assert served.session.fuse.unexpected_errors == 0
        assert mount_syscalls.mounted_at(str(served.path)) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_ends_the_server_cleanly(tmp_path: Path, number: int) -> None:
    with Server("memory", tmp_path / "mount") as server:
        make(server.mountpoint / "file", b"x")
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait() == 0
        assert mount_syscalls.mounted_at(str(server.mountpoint)) is None
        assert server.log() == ""


def test_umount_from_outside_ends_the_server(tmp_path: Path) -> None:
    with Server("memory", tmp_path / "mount") as server:
        make(server.mountpoint / "file")
        unmount(server.mountpoint)
        assert server.process is not None
        assert server.process.wait() == 0


def test_a_busy_mount_is_detached_and_served_until_its_last_user_lets_go(tmp_path: Path) -> None:
    with Server("memory", tmp_path / "mount", "busy_timeout=86400") as server:
        assert server.process is not None
        with open(server.mountpoint / "file", "w+b") as file:
            file.write(b"still")
            file.flush()
            server.process.terminate()
            _until_unmounted(server.mountpoint)
            file.write(b" served")
            file.seek(0)
            assert file.read() == b"still served"
            assert server.process.poll() is None
        assert server.process.wait() == 0
        assert "is busy" in server.log()


def test_a_second_signal_ends_a_busy_mount_at_once(tmp_path: Path) -> None:
    with Server("memory", tmp_path / "mount", "busy_timeout=86400") as server:
        assert server.process is not None
        fd = os.open(server.mountpoint / "file", os.O_CREAT | os.O_RDWR)
        server.process.terminate()
        _until_unmounted(server.mountpoint)
        server.process.terminate()
        assert server.process.wait() == 0
        assert outcome(os.fsync, fd) in ("ENOTCONN", "ECONNABORTED")
        assert outcome(os.close, fd) in ("OK", "ENOTCONN")


def test_a_busy_mount_is_given_up_after_its_time(tmp_path: Path) -> None:
    with Server("memory", tmp_path / "mount", "busy_timeout=0") as server:
        assert server.process is not None
        fd = os.open(server.mountpoint / "file", os.O_CREAT | os.O_RDWR)
        server.process.terminate()
        assert server.process.wait() == 0
        assert outcome(os.close, fd) in ("OK", "ENOTCONN")
        assert "still in use" in server.log()


def test_a_mountpoint_left_by_a_killed_server_is_cleaned_at_the_next_mount(tmp_path: Path) -> None:
    with Server("memory", tmp_path / "mount") as first:
        assert first.process is not None
        first.process.kill()
        first.process.wait()
        assert outcome(os.stat, first.mountpoint) == "ENOTCONN"
        command = [sys.executable, "-m", "tests.posix.serve", "memory", str(first.mountpoint)]
        second = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
        )
        try:
            assert second.stdout is not None
            assert second.stdout.readline() == "ready\n"
            make(first.mountpoint / "file", b"works")
        finally:
            second.terminate()
            _, said = second.communicate()
        assert "left mounted by a server that ended" in said
        assert second.returncode == 0


def test_wrong_mountpoints_are_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path / "file")
    for path, number, words in (
        (tmp_path / "missing", errno.ENOENT, "no such directory"),
        (tmp_path / "file", errno.ENOTDIR, "not a directory"),
        (tmp_path / "file" / "below", errno.ENOTDIR, "Not a directory"),
    ):
        with pytest.raises(MountRefused, match=words) as caught:
            check_mountpoint(path)
        assert caught.value.errno == number
        assert str(path) in str(caught.value)


def test_a_second_mount_at_the_same_place_is_refused(serve: Serve, tmp_path: Path) -> None:
    served = serve(MemoryVfs(), "fsname=first.img")
    with pytest.raises(MountRefused, match=r"first\.img is mounted there already") as caught:
        mount(MemoryVfs(), served.path)
    assert caught.value.errno == errno.EBUSY


def test_a_directory_that_is_not_empty_can_be_mounted_over(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "mount0").mkdir()
    make(tmp_path / "mount0" / "hidden")
    vfs = MemoryVfs()
    session = mount(vfs, tmp_path / "mount0")
    thread = threading.Thread(target=session.run)
    thread.start()
    try:
        assert os.listdir(tmp_path / "mount0") == []
    finally:
        session.unmount()
        thread.join()
    assert os.listdir(tmp_path / "mount0") == ["hidden"]
    os.unlink(tmp_path / "mount0" / "hidden")
    os.rmdir(tmp_path / "mount0")


def test_unmounting_what_is_not_mounted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountRefused, match="no mdstore name space"):
        unmount(tmp_path)


def test_a_missing_device_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mount_syscalls, "DEVICE", str(tmp_path / "no-such-device"))
    with pytest.raises(mount_syscalls.FuseUnavailable, match="modprobe fuse"):
        mount_syscalls.open_device()


def test_the_name_space_is_closed_once_whatever_ends_the_mount(serve: Serve) -> None:
    ends: list[Callable[[Served], None]] = [
        lambda served: served.session.unmount(), lambda served: unmount(served.path), lambda served: served.session.fuse.stop(),
    ]  # fmt: skip
    for end in ends:
        vfs = WatchedVfs()
        served = serve(vfs)
        make(served.path / "file", b"x")
        end(served)
        served.thread.join()
        assert vfs.closed == 1
        assert mount_syscalls.mounted_at(str(served.path)) is None


def test_a_read_only_mount_refuses_changes(serve: Serve) -> None:
    served = serve(MemoryVfs(), "ro")
    assert outcome(os.mkdir, served.path / "dir") == "EROFS"
    assert os.listdir(served.path) == []


def test_without_allow_other_only_the_mounting_user_comes_in(serve: Serve, tmp_path: Path) -> None:
    need_fuse()
    (tmp_path / "private").mkdir()
    os.chmod(tmp_path / "private", 0o777)
    session = mount(MemoryVfs(), tmp_path / "private", MountOptions())
    thread = threading.Thread(target=session.run)
    thread.start()
    try:
        make(tmp_path / "private" / "file")
        assert outcome_as(OTHER, tmp_path, os.stat, "private/file") == "EACCES"
    finally:
        session.unmount()
        thread.join()


def test_an_ordinary_user_mounts_through_fusermount(reachable: Path) -> None:
    need_fuse()
    if not os.path.exists("/usr/bin/fusermount3"):
        pytest.skip("fusermount3 is not installed")
    before = os.stat(mount_syscalls.DEVICE).st_mode
    (reachable / "mount").mkdir()
    for path in (reachable, reachable / "mount"):
        os.chown(path, NOBODY, NOBODY)
    try:
        os.chmod(mount_syscalls.DEVICE, 0o666)
        assert in_child(NOBODY, NOBODY, [], reachable, _mount_work_unmount) == ["made by the user"]
        assert mount_syscalls.mounted_at(str(reachable / "mount")) is None
    finally:
        os.chmod(mount_syscalls.DEVICE, before & 0o7777)


def _mount_work_unmount() -> list[str]:
    session = mount(MemoryVfs(), "mount", MountOptions(uid=NOBODY, gid=NOBODY))
    thread = threading.Thread(target=session.run)
    thread.start()
    try:
        make("mount/made by the user")
        return os.listdir("mount")
    finally:
        session.unmount()
        thread.join()


def test_changes_from_elsewhere_are_seen_after_a_notification(serve: Serve) -> None:
    """Another front changes the name space beneath the kernel's caches."""
    vfs = MemoryVfs()
    served = serve(vfs)
    make(served.path / "file", b"old")
    assert (served.path / "file").read_bytes() == b"old"
    assert outcome(os.stat, served.path / "later") == "ENOENT"
    ino = os.stat(served.path / "file").st_ino
    handle = vfs.open(SUPERUSER, ino, os.O_RDWR)
    vfs.write(handle, 0, b"new!")
    vfs.release(handle)
    vfs.mkdir(SUPERUSER, 1, b"later", 0o755)
    assert (served.path / "file").read_bytes() == b"old"
    served.session.fuse.notifier.inval_inode(ino)
    served.session.fuse.notifier.inval_entry(1, b"later")
    served.session.fuse.notifier.close()
    assert (served.path / "file").read_bytes() == b"new!"
    assert (served.path / "later").is_dir()


def test_references_return_to_none_when_the_kernel_forgets(serve: Serve) -> None:
    vfs = MemoryVfs()
    served = serve(vfs)
    for index in range(300):
        make(served.path / f"file{index}", b"x")
    os.listdir(served.path)
    with os.scandir(served.path) as entries:
        assert sum(entry.stat().st_size for entry in entries) == 300
    for index in range(300):
        os.unlink(served.path / f"file{index}")
    served.session.unmount()
    served.thread.join()
    vfs.assert_state()
    assert vfs.getattr(1).nlink == 2


def test_seeking_a_directory_to_nowhere_is_refused(serve: Serve) -> None:
    served = serve(MemoryVfs(), "nolistcache")
    make(served.path / "file")
    fd = os.open(served.path, os.O_RDONLY)
    os.lseek(fd, 123456789, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(4096)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.getdents64(fd, buffer, 4096) == -1  # listdir would rewind first
    assert ctypes.get_errno() == errno.EINVAL
    os.close(fd)


def test_no_flush_is_sent_where_no_lock_wants_it(serve: Serve) -> None:
    flush = 25
    for options, expected in (("", 1), ("locks=server", 20)):
        served = serve(MemoryVfs(), options)
        for index in range(20):
            os.close(os.open(served.path / f"file{index}", os.O_CREAT | os.O_WRONLY))
        assert served.count(flush) == expected


def test_repeated_stats_and_listings_ask_the_server_nothing(serve: Serve) -> None:
    served = serve(MemoryVfs())
    for index in range(200):
        make(served.path / f"file{index}")
    for _ in range(2):  # the first time fills the kernel's caches, the second its listing
        names = os.listdir(served.path)
        sizes = [os.stat(served.path / name).st_size for name in names]
    before = sum(served.session.fuse.counts)
    assert len(os.listdir(served.path)) == len(sizes)
    sizes = [os.stat(served.path / name).st_size for name in names]
    missing = [outcome(os.stat, served.path / "not there") for _ in range(50)]
    assert set(missing) == {"ENOENT"}
    assert sum(served.session.fuse.counts) - before <= 4  # opendir, releasedir, one lookup of the missing name


def test_a_large_write_is_one_request(serve: Serve) -> None:
    served = serve(MemoryVfs())
    fd = os.open(served.path / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * (1 << 20))
    assert served.count(16) == 1
    os.close(fd)


def test_writeback_gathers_small_writes(serve: Serve) -> None:
    served = serve(MemoryVfs(), "writeback")
    with open(served.path / "file", "wb", buffering=0) as file:
        for index in range(1000):
            file.write(b"%04d" % index)
    assert served.count(16) <= 4
    with open(served.path / "file", "ab", buffering=0) as file:
        file.write(b"end")
    assert (served.path / "file").read_bytes() == b"".join(b"%04d" % index for index in range(1000)) + b"end"
    assert os.stat(served.path / "file").st_size == 4003
    handle = served.vfs.open(SUPERUSER, os.stat(served.path / "file").st_ino, os.O_RDONLY)
    assert served.vfs.read(handle, 3996, 100) == b"0999end"
    served.vfs.release(handle)


def _until_unmounted(path: Path) -> None:
    """The mount table announces each change."""
    with open("/proc/self/mountinfo", "rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI | select.POLLERR)
        while mount_syscalls.mounted_at(str(path)) is not None:
            poll.poll(1000)


def test_the_background_returns_when_the_mount_works_and_prints_what_went_wrong(tmp_path: Path) -> None:
    need_fuse()
    path = tmp_path / "mount"
    path.mkdir()
    good = subprocess.run(
        [sys.executable, "-c", _BACKGROUND, str(path)],
        cwd=Path(__file__).parents[2], capture_output=True, check=False,
    )  # fmt: skip
    try:
        assert (good.returncode, good.stderr) == (0, b"opened\n")
        make(path / "file", b"served by a process of its own")
        assert (path / "file").read_bytes() == b"served by a process of its own"
    finally:
        unmount(path)
    bad = subprocess.run(
        [sys.executable, "-c", _BACKGROUND, str(tmp_path / "missing")],
        cwd=Path(__file__).parents[2], capture_output=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    assert b"there is no such directory" in bad.stderr


_BACKGROUND = """
import sys
from mdstore.client.mount import in_background, mount
from tests.model.memory_vfs import MemoryVfs

def serve(ready):
    print("opened", file=sys.stderr)
    session = mount(MemoryVfs(), sys.argv[1])
    ready()
    session.run()
    return 0

sys.exit(in_background(serve))
"""


def test_errors_of_unmounting_name_the_mountpoint(tmp_path: Path) -> None:
    need_fuse()
    with pytest.raises(PosixError, match=str(tmp_path)):
        mount_syscalls.unmount(str(tmp_path))
