"""Names: what may be one, what exists, and the errno of each call that meets the wrong thing."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import make, outcome

pytestmark = pytest.mark.fuse


def _zoo(root: Path) -> None:
    """One of each: file, dir (with a child), empty, link (to file), dangling, loop, fifo, long."""
    make(root / "file", b"content")
    (root / "dir").mkdir()
    make(root / "dir" / "child")
    (root / "empty").mkdir()
    os.symlink("file", root / "link")
    os.symlink("nowhere", root / "dangling")
    os.symlink("loop", root / "loop")
    os.mkfifo(root / "fifo")


LONG = "x" * 256
R, W, C, X = os.O_RDONLY, os.O_WRONLY, os.O_CREAT, os.O_EXCL

ERRNO_MATRIX: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (os.stat, ("missing",), "ENOENT"), (os.stat, ("file/below",), "ENOTDIR"), (os.stat, (LONG,), "ENAMETOOLONG"),
    (os.stat, ("dangling",), "ENOENT"), (os.stat, ("loop",), "ELOOP"), (os.lstat, ("loop",), "OK"),
    (os.stat, ("",), "ENOENT"), (os.open, ("missing", R), "ENOENT"), (os.open, ("dir", W), "EISDIR"),
    (os.open, ("dir", R | os.O_DIRECTORY), "OK"), (os.open, ("file", R | os.O_DIRECTORY), "ENOTDIR"),
    (os.open, ("file", W | C | X), "EEXIST"), (os.open, ("dir", R | C | X), "EEXIST"),
    (os.open, ("dir", R | C), "EISDIR"), (os.open, ("missing/new", W | C), "ENOENT"),
    (os.open, ("file/new", W | C), "ENOTDIR"), (os.open, (LONG, W | C), "ENAMETOOLONG"),
    (os.open, ("file", W | os.O_TRUNC), "OK"), (os.open, ("link", R | os.O_NOFOLLOW), "ELOOP"),
    (os.open, ("dangling", W | C | X), "EEXIST"), (os.open, ("loop", R), "ELOOP"), (os.mkdir, ("file",), "EEXIST"),
    (os.mkdir, ("dir",), "EEXIST"), (os.mkdir, ("dangling",), "EEXIST"), (os.mkdir, ("missing/new",), "ENOENT"),
    (os.mkdir, ("file/new",), "ENOTDIR"), (os.mkdir, (LONG,), "ENAMETOOLONG"), (os.mkdir, (".",), "EEXIST"),
    (os.mkdir, ("..",), "EEXIST"), (os.mkdir, ("loop/new",), "ELOOP"), (os.mkdir, ("new/",), "OK"),
    (os.rmdir, ("missing",), "ENOENT"), (os.rmdir, ("file",), "ENOTDIR"), (os.rmdir, ("dir",), "ENOTEMPTY"),
    (os.rmdir, ("empty",), "OK"), (os.rmdir, (".",), "EINVAL"), (os.rmdir, ("dir/..",), "ENOTEMPTY"),
    (os.rmdir, ("link",), "ENOTDIR"), (os.unlink, ("missing",), "ENOENT"), (os.unlink, ("dir",), "EISDIR"),
    (os.unlink, ("empty",), "EISDIR"), (os.unlink, ("file/below",), "ENOTDIR"), (os.unlink, (LONG,), "ENAMETOOLONG"),
    (os.unlink, ("link",), "OK"), (os.unlink, ("loop",), "OK"), (os.unlink, ("fifo",), "OK"),
    (os.unlink, ("file/",), "ENOTDIR"), (os.link, ("file", "new"), "OK"), (os.link, ("file", "dir"), "EEXIST"),
    (os.link, ("dir", "new"), "EPERM"), (os.link, ("missing", "new"), "ENOENT"),
    (os.link, ("file", LONG), "ENAMETOOLONG"), (os.link, ("file", "missing/new"), "ENOENT"),
    (os.link, ("file", "file/new"), "ENOTDIR"), (os.link, ("fifo", "new"), "OK"),
    (os.symlink, ("target", "file"), "EEXIST"), (os.symlink, ("target", "missing/new"), "ENOENT"),
    (os.symlink, ("target", LONG), "ENAMETOOLONG"), (os.symlink, ("x" * 4096, "new"), "ENAMETOOLONG"),
    (os.symlink, ("", "new"), "ENOENT"), (os.symlink, ("target", "file/new"), "ENOTDIR"),
    (os.readlink, ("file",), "EINVAL"), (os.readlink, ("dir",), "EINVAL"), (os.readlink, ("missing",), "ENOENT"),
    (os.readlink, ("loop",), "OK"), (os.mkfifo, ("file",), "EEXIST"), (os.mkfifo, ("missing/new",), "ENOENT"),
    (os.mkfifo, (LONG,), "ENAMETOOLONG"), (os.truncate, ("missing", 0), "ENOENT"),
    (os.truncate, ("dir", 0), "EISDIR"), (os.truncate, ("file", -1), "EINVAL"), (os.truncate, ("fifo", 0), "EINVAL"),
    (os.truncate, ("file", 3), "OK"), (os.listdir, ("file",), "ENOTDIR"), (os.listdir, ("missing",), "ENOENT"),
    (os.chdir, ("file",), "ENOTDIR"), (os.chmod, ("missing", 0o600), "ENOENT"), (os.chmod, ("loop", 0o600), "ELOOP"),
    (os.chown, ("missing", 1, 1), "ENOENT"), (os.utime, ("missing",), "ENOENT"),
    (os.rename, ("missing", "new"), "ENOENT"), (os.rename, ("file", LONG), "ENAMETOOLONG"),
    (os.rename, ("file", "missing/new"), "ENOENT"), (os.rename, ("file", "fifo/new"), "ENOTDIR"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "args", "expected"),
    ERRNO_MATRIX,
    ids=[f"{call.__name__}-{'-'.join(str(a)[:9] for a in args)}-{expected}" for call, args, expected in ERRNO_MATRIX],
)
def test_each_call_answers_with_its_errno(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], args: tuple[Any, ...], expected: str
) -> None:
    _zoo(root)
    monkeypatch.chdir(root)
    assert outcome(call, *args) == expected


def test_names_of_every_byte_are_kept(root: Path) -> None:
    path = os.fsencode(root)
    names = {bytes([value]) for value in range(1, 256)} - {b"/", b"."}
    for name in names:
        os.mkdir(path + b"/" + name)
    assert set(os.listdir(path)) == names
    for name in names:
        os.rmdir(path + b"/" + name)
    assert os.listdir(path) == []


@pytest.mark.parametrize("character", ["x", "é", "\N{SNOWMAN}"])
def test_a_name_of_255_bytes_works_in_every_call(root: Path, character: str) -> None:
    name = (character * 255).encode()[:255]
    other = name[:-1] + b"~"
    path, moved = os.fsencode(root) + b"/" + name, os.fsencode(root) + b"/" + other
    os.mkdir(path)
    os.rename(path, moved)
    assert os.listdir(os.fsencode(root)) == [other]
    os.rmdir(moved)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.link(path, moved)
    assert os.stat(moved).st_nlink == 2
    os.unlink(path)
    os.symlink(name, path)
    assert os.readlink(path) == name


def test_a_path_of_many_components_is_walked(root: Path) -> None:
    deep = root
    for _ in range(60):
        deep /= "directory"
        deep.mkdir()
    make(deep / "file", b"deep")
    assert (deep / "file").read_bytes() == b"deep"
    assert os.path.samefile(deep / ("../" * 60), root)


def test_special_files_keep_type_and_device_number(root: Path) -> None:
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.mknod(root / "plain", stat.S_IFREG | 0o640)
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(root, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
    assert os.stat(root / "char").st_rdev == os.makedev(1, 3)
    assert stat.S_ISCHR(os.stat(root / "char").st_mode)
    assert os.stat(root / "block").st_rdev == os.makedev(259, 70000)
    assert stat.S_ISSOCK(os.stat(root / "sock").st_mode)
    assert os.stat(root / "plain").st_size == 0


def test_a_fifo_carries_bytes_between_processes(root: Path) -> None:
    os.mkfifo(root / "fifo")
    child = os.fork()
    if child == 0:
        with open(root / "fifo", "wb") as file:
            file.write(b"through")
        os._exit(0)
    with open(root / "fifo", "rb") as file:
        assert file.read() == b"through"
    os.waitpid(child, 0)


def test_the_file_system_tells_its_sizes(root: Path) -> None:
    told = os.statvfs(root)
    assert told.f_namemax == 255
    assert 0 < told.f_bavail <= told.f_bfree <= told.f_blocks
    assert told.f_bsize >= 512


def test_a_missing_name_that_was_looked_up_can_be_made_and_found(root: Path) -> None:
    for _ in range(3):
        assert outcome(os.stat, root / "name") == "ENOENT"
        make(root / "name", b"there")
        assert (root / "name").read_bytes() == b"there"
        os.unlink(root / "name")


def test_umask_applies_to_everything_made(root: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(root / "dir", 0o777)
        os.mkfifo(root / "fifo", 0o666)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(root / name).st_mode) for name in ("file", "dir", "fifo")}
    assert modes == {"file": 0o640, "dir": 0o750, "fifo": 0o640}


def test_ioctl_and_unknown_requests_are_refused_not_hung(root: Path) -> None:
    make(root / "file")
    with open(root / "file", "rb") as file, pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        fcntl.ioctl(file.fileno(), 0x5401, bytes(64))
    assert caught.value.errno == errno.ENOTTY
