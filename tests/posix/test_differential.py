"""Random calls on a mounted name space and on a plain directory side by side: every result and every error must agree.

One integer drives a run; it is printed first and last. The reference subject runs too: tmpfs against the plain directory, so a
difference that lies in the comparison itself shows there.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import rename2

pytestmark = pytest.mark.fuse

STEPS = 400
DIRECTORIES = ["", "d1/", "d2/", "d1/sub/", "d2/sub/"]
NAMES = ["a", "b", "c", "d1", "d2", "sub", "long" * 63]


class Side:
    """One of the two: a directory, and the descriptors opened in it by number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[int] = []

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def close(self) -> None:
        for fd in self.files:
            os.close(fd)
        self.files.clear()


Step = Callable[[Side], Any]


def _open(side: Side, name: str, flags: int) -> str:
    side.files.append(os.open(side.path(name), flags | os.O_NONBLOCK, 0o644))  # a FIFO would wait for its other end
    return "opened"


def _with_file(side: Side, index: int, call: Callable[[int], Any]) -> Any:
    return call(side.files[index % len(side.files)]) if side.files else "none open"


def _close(side: Side, index: int) -> None:
    if side.files:
        os.close(side.files.pop(index % len(side.files)))


def _stat(path: str) -> tuple[int, ...]:
    return _told(os.lstat(path))


def _told(st: os.stat_result) -> tuple[int, ...]:
    """What must be equal everywhere; the size of a directory is each file system's own business."""
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    return st.st_mode, st.st_nlink, st.st_uid, st.st_gid, size


def _steps(rng: random.Random) -> tuple[str, Step]:
    """A random call, with its name."""
    one = rng.choice(DIRECTORIES) + rng.choice(NAMES)
    two = rng.choice(DIRECTORIES) + rng.choice(NAMES)
    number, size = rng.randrange(8), rng.randrange(20_000)
    data, mode = rng.randbytes(rng.randrange(1, 9000)), rng.randrange(0o10000)
    flags = rng.choice([os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL,
                        os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_APPEND])  # fmt: skip
    rename_flags = rng.choice([0, 0, 0, 1, 2])
    xattr = f"user.{rng.choice('xyz')}"
    ids = (rng.choice([-1, 0, 5]), rng.choice([-1, 0, 6]))
    choices: list[tuple[str, Step]] = [
        (f"open {one} {flags:o}", lambda side: _open(side, one, flags)),
        (f"open {two} {flags:o}", lambda side: _open(side, two, flags)),
        (f"close {number}", lambda side: _close(side, number)),
        (f"mkdir {one}", lambda side: os.mkdir(side.path(one), mode & 0o1777)),
        (f"mkdir {two}", lambda side: os.mkdir(side.path(two), 0o755)),
        (f"rmdir {one}", lambda side: os.rmdir(side.path(one))),
        (f"unlink {one}", lambda side: os.unlink(side.path(one))),
        (f"rename {one} {two} {rename_flags}", lambda side: rename2(side.path(one), side.path(two), rename_flags)),
        (f"rename {two} {one}", lambda side: os.rename(side.path(two), side.path(one))),
        (f"link {one} {two}", lambda side: os.link(side.path(one), side.path(two), follow_symlinks=False)),
        (f"symlink {one}", lambda side: os.symlink(two, side.path(one))),
        (f"mkfifo {one}", lambda side: os.mkfifo(side.path(one), mode & 0o777)),
        (f"chmod {one} {mode:o}", lambda side: os.chmod(side.path(one), mode)),
        (f"chown {one} {ids}", lambda side: os.chown(side.path(one), *ids, follow_symlinks=False)),
        (f"truncate {one} {size}", lambda side: os.truncate(side.path(one), size)),
        (f"setxattr {one}", lambda side: os.setxattr(side.path(one), xattr, data[:100])),
        (f"getxattr {one}", lambda side: os.getxattr(side.path(one), xattr)),
        (f"listxattr {one}", lambda side: sorted(os.listxattr(side.path(one)))),
        (f"removexattr {one}", lambda side: os.removexattr(side.path(one), xattr)),
        (f"utime {one}", lambda side: os.utime(side.path(one), ns=(size, size + 1), follow_symlinks=False)),
        (f"stat {one}", lambda side: _stat(side.path(one))),
        (f"listdir {one}", lambda side: sorted(os.listdir(side.path(one)))),
        (f"readlink {one}", lambda side: os.readlink(side.path(one))),
        (f"write {number} {size} {len(data)}", lambda side: _with_file(side, number, lambda fd: os.pwrite(fd, data, size))),
        (f"append {number}", lambda side: _with_file(side, number, lambda fd: os.write(fd, data[:50]))),
        (f"read {number} {size}", lambda side: _with_file(side, number, lambda fd: os.pread(fd, 9000, size))),
        (f"ftruncate {number} {size}", lambda side: _with_file(side, number, lambda fd: os.ftruncate(fd, size))),
        (f"fstat {number}", lambda side: _with_file(side, number, lambda fd: _told(os.fstat(fd)))),
        (f"fsync {number}", lambda side: _with_file(side, number, os.fsync)),
    ]
    return rng.choice(choices)


def _outcome(side: Side, step: Step) -> Any:
    try:
        return step(side)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _tree(root: Path) -> dict[str, Any]:
    """Everything below, by path: attributes, content, targets, and which names are one file."""
    found: dict[str, Any] = {}
    first_name: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            st, key = os.lstat(path), os.path.relpath(path, root)
            same = first_name.setdefault(st.st_ino, key) if not stat.S_ISDIR(st.st_mode) else key
            content: bytes | str = b""
            if stat.S_ISREG(st.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            found[key] = (_told(st), same, content)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_random_calls_end_alike_on_both_sides(root: Path, tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    plain = tmp_path / "plain"
    plain.mkdir()
    plain.chmod(0o777)
    sides = [Side(root), Side(plain)]
    try:
        for number in range(STEPS):
            name, step = _steps(rng)
            ours, theirs = (_outcome(side, step) for side in sides)
            assert ours == theirs, f"seed {seed}, step {number}: {name}"
        assert _tree(root) == _tree(plain), f"seed {seed}"
    finally:
        for side in sides:
            side.close()
    print("seed", seed, "ended alike")


def _file_step(rng: random.Random) -> Step:
    """A random call on one of two files."""
    name = rng.choice("ab")
    size, data = rng.randrange(50_000), rng.randbytes(rng.randrange(1, 30_000))
    index = rng.randrange(9)
    choices: list[Step] = [
        lambda side: _open(side, name, os.O_RDWR | os.O_CREAT),
        lambda side: _open(side, name, os.O_RDWR | os.O_CREAT | os.O_APPEND),
        lambda side: _open(side, name, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
        lambda side: os.rename(side.path("a"), side.path("b")),
        lambda side: os.unlink(side.path(name)),
        lambda side: _close(side, index),
        lambda side: _with_file(side, index, lambda fd: os.pwrite(fd, data, size)),
        lambda side: _with_file(side, index, lambda fd: os.write(fd, data)),
        lambda side: _with_file(side, index, lambda fd: os.pread(fd, len(data), size)),
        lambda side: _with_file(side, index, lambda fd: os.ftruncate(fd, size)),
        lambda side: _with_file(side, index, lambda fd: _told(os.fstat(fd))),
    ]
    return rng.choice(choices)


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_on_one_file_end_alike(root: Path, tmp_path: Path, seed: int) -> None:
    """Many descriptors on few files: what one does the others see."""
    print("seed", seed)
    rng = random.Random(1000 + seed)
    sides = [Side(root), Side(tmp_path)]
    for number in range(300):
        step = _file_step(rng)
        ours, theirs = (_outcome(side, step) for side in sides)
        assert ours == theirs, f"seed {seed}, step {number}"
    for side in sides:
        side.close()
    assert _tree(root) == _tree(tmp_path)
