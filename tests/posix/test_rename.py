"""rename(2) and renameat2(2): every kind of source over every kind of target, with every flag."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, make, outcome, rename2

pytestmark = pytest.mark.fuse

KINDS = ["file", "empty", "full", "link", "missing"]


def _make(path: Path, kind: str) -> None:
    if kind == "file":
        make(path, path.name.encode())
    elif kind in ("empty", "full"):
        path.mkdir()
        if kind == "full":
            make(path / "inside", path.name.encode())
    elif kind == "link":
        os.symlink(path.name, path)


def _expected(source: str, target: str, flags: int) -> str:
    directories = ("empty", "full")
    if source == "missing":
        return "ENOENT"
    if flags == RENAME_EXCHANGE:
        return "ENOENT" if target == "missing" else "OK"
    if target == "missing":
        return "OK"
    if flags == RENAME_NOREPLACE:
        return "EEXIST"
    if (source in directories) != (target in directories):
        return "ENOTDIR" if source in directories else "EISDIR"
    return "ENOTEMPTY" if target == "full" else "OK"


@pytest.mark.parametrize("across", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE], ids=["plain", "noreplace", "exchange"])
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_rename_matrix(root: Path, source: str, target: str, flags: int, across: bool) -> None:
    other = root / "other" if across else root
    other.mkdir(exist_ok=True)
    old, new = root / "old", other / "new"
    _make(old, source)
    _make(new, target)
    inodes = [os.lstat(path).st_ino if os.path.lexists(path) else None for path in (old, new)]
    expected = _expected(source, target, flags)
    assert outcome(rename2, old, new, flags) == expected
    after = [os.lstat(path).st_ino if os.path.lexists(path) else None for path in (old, new)]
    if expected != "OK":
        assert after == inodes
    elif flags == RENAME_EXCHANGE:
        assert after == inodes[::-1]
    else:
        assert after == [None, inodes[0]]
    for path in (root, other):
        subdirectories = sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(path))
        assert os.stat(path).st_nlink == 2 + subdirectories


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
def test_a_directory_cannot_move_into_itself(root: Path, flags: int) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    target = root / "a" / "b" / ("c" if flags == RENAME_EXCHANGE else "new")
    assert outcome(rename2, root / "a", target, flags) == "EINVAL"
    assert (root / "a" / "b" / "c").is_dir()


def test_a_directory_cannot_replace_an_ancestor(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    make(root / "a" / "file")
    assert outcome(os.rename, root / "a" / "b", root / "a") == "ENOTEMPTY"
    assert outcome(os.rename, root / "a" / "file", root / "a") == "ENOTEMPTY"
    assert outcome(rename2, root / "a" / "file", root / "a", RENAME_EXCHANGE) == "EINVAL"


def test_rename_to_another_name_of_the_same_file_changes_nothing(root: Path) -> None:
    make(root / "a", b"one")
    os.link(root / "a", root / "b")
    os.rename(root / "a", root / "b")
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert os.stat(root / "a").st_nlink == 2
    os.rename(root / "a", root / "a")
    assert sorted(os.listdir(root)) == ["a", "b"]


def test_the_dots_cannot_be_renamed(root: Path) -> None:
    (root / "dir").mkdir()
    assert outcome(os.rename, f"{root}/dir/.", root / "new") == "EBUSY"
    assert outcome(os.rename, f"{root}/dir/..", root / "new") == "EBUSY"
    assert outcome(os.rename, root / "dir", f"{root}/dir/.") in ("EBUSY", "EINVAL")


def test_wrong_flags_are_refused(root: Path) -> None:
    make(root / "a")
    assert outcome(rename2, root / "a", root / "b", RENAME_NOREPLACE | RENAME_EXCHANGE) == "EINVAL"
    assert outcome(rename2, root / "a", root / "b", 1 << 10) == "EINVAL"
    assert outcome(rename2, root / "a", root / "b", RENAME_WHITEOUT | RENAME_EXCHANGE) == "EINVAL"


def test_a_moved_directory_knows_its_new_parent_and_keeps_its_content(root: Path) -> None:
    (root / "a" / "moved" / "deep").mkdir(parents=True)
    (root / "b").mkdir()
    make(root / "a" / "moved" / "deep" / "file", b"kept")
    here = os.open(root / "a" / "moved", os.O_RDONLY)
    os.rename(root / "a" / "moved", root / "b" / "there")
    assert os.stat("..", dir_fd=here).st_ino == os.stat(root / "b").st_ino
    assert os.stat("deep/file", dir_fd=here).st_size == 4
    assert (root / "b" / "there" / "deep" / "file").read_bytes() == b"kept"
    assert os.listdir(here) == ["deep"]
    os.close(here)


def test_a_replaced_file_lives_on_for_those_who_have_it_open(root: Path) -> None:
    make(root / "old", b"old")
    make(root / "new", b"new")
    with open(root / "old", "rb") as held:
        os.rename(root / "new", root / "old")
        assert held.read() == b"old"
        assert os.fstat(held.fileno()).st_nlink == 0
    assert (root / "old").read_bytes() == b"new"


def test_exchange_of_directories_swaps_their_parents(root: Path) -> None:
    (root / "a" / "x").mkdir(parents=True)
    (root / "b" / "y").mkdir(parents=True)
    make(root / "a" / "x" / "in-x")
    rename2(root / "a" / "x", root / "b" / "y", RENAME_EXCHANGE)
    assert os.listdir(root / "b" / "y") == ["in-x"]
    assert os.path.samefile(root / "b" / "y" / "..", root / "b")
    assert os.path.samefile(root / "a" / "x" / "..", root / "a")


def test_exchange_of_a_directory_and_a_file_moves_the_link_count(root: Path) -> None:
    (root / "a" / "dir").mkdir(parents=True)
    (root / "b").mkdir()
    make(root / "b" / "file")
    rename2(root / "a" / "dir", root / "b" / "file", RENAME_EXCHANGE)
    assert os.stat(root / "a").st_nlink == 2
    assert os.stat(root / "b").st_nlink == 3
