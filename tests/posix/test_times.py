"""Times: what each call changes, to the nanosecond."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import make, outcome

pytestmark = pytest.mark.fuse

LONG_AGO = 1_000_000_000_123_456_789
Stat = tuple[int, int, int]


def _times(path: Path | int) -> Stat:
    st = os.lstat(path) if isinstance(path, Path) else os.fstat(path)
    return st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns


REALTIME_COARSE = 5  # CLOCK_REALTIME_COARSE of Linux, which the time module has no name for


def _a_stamp_of_now_is_in(values: Stat, earliest: int) -> bool:
    """Whether all of them are of the time since `earliest`, a reading of `_earliest_stamp`."""
    latest = time.time_ns()
    return all(earliest <= value <= latest for value in values)


def _earliest_stamp() -> int:
    """What the slower of the two clocks that file systems stamp with says: the kernel's own is never ahead of the other."""
    return time.clock_gettime_ns(REALTIME_COARSE)


def _aged(path: Path) -> Path:
    """Access and modification long ago; the change time is now, and the clock has moved on when this returns."""
    os.utime(path, ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)
    changed = os.lstat(path).st_ctime_ns
    while time.clock_gettime_ns(REALTIME_COARSE) <= changed:  # what kernels stamp with, some milliseconds a step
        time.sleep(0.001)
    return path


@pytest.mark.parametrize(
    ("atime", "mtime"),
    [
        (0, 0), (1, 2), (LONG_AGO, LONG_AGO + 1), (-1, -2_000_000_001), (4_000_000_000_999_999_999, 1 << 60),
        (999_999_999, 1_000_000_000),
    ],
)
def test_times_are_kept_to_the_nanosecond(root: Path, atime: int, mtime: int) -> None:
    make(root / "file")
    os.utime(root / "file", ns=(atime, mtime))
    assert _times(root / "file")[:2] == (atime, mtime)


def test_a_symlinks_own_times_can_be_set(root: Path) -> None:
    make(root / "file")
    os.symlink("file", root / "link")
    target = _times(root / "file")
    os.utime(root / "link", ns=(5, 6), follow_symlinks=False)
    assert _times(root / "link")[:2] == (5, 6)
    assert _times(root / "file") == target


def test_now_means_the_servers_clock(root: Path) -> None:
    make(root / "file")
    _aged(root / "file")
    before = _earliest_stamp()
    os.utime(root / "file")
    assert _a_stamp_of_now_is_in(_times(root / "file"), before)


def _write(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")


ON_FILE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("write", _write, "mc"),
    ("truncate", lambda path: os.truncate(path, 3), "mc"),
    ("open with O_TRUNC", lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), "mc"),
    ("chmod", lambda path: os.chmod(path, 0o600), "c"),
    ("chown", lambda path: os.chown(path, 1, 1), "c"),
    ("link", lambda path: os.link(path, path.with_name("other")), "c"),
    ("rename", lambda path: path.rename(path.with_name("other")).rename(path), "c"),
    ("setxattr", lambda path: os.setxattr(path, "user.x", b"1"), "c"),
    ("stat", os.stat, ""),
    ("open", lambda path: os.close(os.open(path, os.O_RDWR)), ""),
]


@pytest.mark.parametrize(("call", "changed"), [case[1:] for case in ON_FILE], ids=[case[0] for case in ON_FILE])
def test_what_a_call_changes_on_its_file(root: Path, call: Callable[[Path], Any], changed: str) -> None:
    make(root / "file", b"some content")
    before = _times(_aged(root / "file"))
    call(root / "file")
    after = _times(root / "file")
    assert {letter for letter, old, new in zip("amc", before, after) if new > old} == set(changed)
    assert all(new >= old for old, new in zip(before, after))


ON_DIRECTORY: list[tuple[str, Callable[[Path], Any]]] = [
    ("create", lambda path: make(path / "new")),
    ("mkdir", lambda path: os.mkdir(path / "new")),
    ("mkfifo", lambda path: os.mkfifo(path / "new")),
    ("symlink", lambda path: os.symlink("x", path / "new")),
    ("link", lambda path: os.link(path / "file", path / "new")),
    ("unlink", lambda path: os.unlink(path / "file")),
    ("rmdir", lambda path: os.rmdir(path / "sub")),
    ("rename within", lambda path: os.rename(path / "file", path / "new")),
    ("rename out", lambda path: os.rename(path / "file", path.with_name("out"))),
    ("rename in", lambda path: os.rename(path.with_name("outside"), path / "in")),
]


@pytest.mark.parametrize("call", [case[1] for case in ON_DIRECTORY], ids=[case[0] for case in ON_DIRECTORY])
def test_changing_entries_changes_the_directorys_times(root: Path, call: Callable[[Path], Any]) -> None:
    (root / "dir" / "sub").mkdir(parents=True)
    make(root / "dir" / "file")
    make(root / "outside")
    before = _times(_aged(root / "dir"))
    call(root / "dir")
    after = _times(root / "dir")
    assert after[1] > before[1]
    assert after[2] > before[2]
    assert after[0] == before[0]


def test_writing_a_file_leaves_its_directory_alone(root: Path) -> None:
    (root / "dir").mkdir()
    make(root / "dir" / "file")
    before = _times(_aged(root / "dir"))
    _write(root / "dir" / "file")
    os.chmod(root / "dir" / "file", 0o600)
    assert _times(root / "dir") == before


def test_an_unlinked_names_file_is_changed(root: Path) -> None:
    make(root / "file")
    os.link(root / "file", root / "other")
    before = _times(_aged(root / "file"))
    os.unlink(root / "other")
    assert _times(root / "file")[2] > before[2]


def test_new_things_carry_the_present(root: Path) -> None:
    before = _earliest_stamp()
    make(root / "file")
    (root / "dir").mkdir()
    os.symlink("x", root / "link")
    for name in ("file", "dir", "link"):
        assert _a_stamp_of_now_is_in(_times(root / name), before)


def test_refused_calls_change_no_times(root: Path) -> None:
    (root / "dir").mkdir()
    make(root / "dir" / "file")
    before = _times(_aged(root / "dir"))
    assert outcome(os.mkdir, root / "dir" / "file") == "EEXIST"
    assert outcome(os.unlink, root / "dir" / "missing") == "ENOENT"
    assert outcome(os.rmdir, root / "dir") == "ENOTEMPTY"
    assert _times(root / "dir") == before
