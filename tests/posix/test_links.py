"""Hard links, symlinks, and files that have no name left but are open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import link_descriptor, make, outcome

pytestmark = pytest.mark.fuse


def test_all_names_of_a_file_are_one_file(root: Path) -> None:
    make(root / "a", b"one")
    (root / "dir").mkdir()
    os.link(root / "a", root / "dir" / "b")
    (root / "dir" / "b").write_bytes(b"changed")
    os.chmod(root / "dir" / "b", 0o611)
    first, second = os.stat(root / "a"), os.stat(root / "dir" / "b")
    assert (first.st_ino, first.st_nlink, first.st_size, first.st_mode) == (second.st_ino, 2, 7, second.st_mode)
    assert (root / "a").read_bytes() == b"changed"


def test_link_counts_follow_links_and_unlinks(root: Path) -> None:
    make(root / "file")
    fd = os.open(root / "file", os.O_RDONLY)
    for count in range(2, 40):
        os.link(root / "file", root / f"name{count}")
        assert os.fstat(fd).st_nlink == count
    for count in range(39, 1, -1):
        os.unlink(root / f"name{count}")
        assert os.fstat(fd).st_nlink == count - 1
    os.unlink(root / "file")
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_directory_link_counts_follow_subdirectories(root: Path) -> None:
    for count in range(3):
        (root / f"sub{count}").mkdir()
        make(root / f"file{count}")
        assert os.stat(root).st_nlink == 3 + count
    os.rmdir(root / "sub0")
    assert os.stat(root).st_nlink == 4


def test_an_unlinked_open_file_keeps_working(root: Path) -> None:
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before")
    os.unlink(root / "file")
    os.write(fd, b" and after")
    assert os.pread(fd, 100, 0) == b"before and after"
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (3, 0)
    assert os.listdir(root) == []
    make(root / "file", b"another")
    assert os.pread(fd, 100, 0) == b"bef"
    os.close(fd)


def test_an_unlinked_open_file_has_no_way_back(root: Path) -> None:
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
    os.unlink(root / "file")
    assert outcome(link_descriptor, fd, root / "back") == "ENOENT"
    os.close(fd)


def test_a_removed_directory_stays_empty_and_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "dir").mkdir()
    fd = os.open(root / "dir", os.O_RDONLY)
    os.rmdir(root / "dir")
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_nlink == 0
    assert outcome(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
    assert outcome(os.mkdir, "new", dir_fd=fd) == "ENOENT"
    assert outcome(os.symlink, "x", "new", dir_fd=fd) == "ENOENT"
    make(root / "file")
    assert outcome(os.rename, root / "file", "new", dst_dir_fd=fd) == "ENOENT"
    assert outcome(os.link, root / "file", "new", dst_dir_fd=fd) == "ENOENT"
    os.close(fd)


@pytest.mark.parametrize("length", [1, 59, 60, 255, 256, 1024, 4094, 4095])
def test_symlinks_keep_targets_up_to_4095_bytes(root: Path, length: int, kind: str) -> None:
    target = (b"t/" * 2048)[:length]
    link = os.fsencode(root / "link")
    os.symlink(target, link)
    assert os.readlink(link) == target
    assert os.lstat(link).st_size == length


def test_symlinks_are_followed_relative_to_where_they_lie(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    make(root / "a" / "target", b"found")
    os.symlink("../target", root / "a" / "b" / "link")
    os.symlink("b/link", root / "a" / "second")
    assert (root / "a" / "second").read_bytes() == b"found"
    os.rename(root / "a" / "b", root / "b")
    assert outcome(os.stat, root / "b" / "link") == "ENOENT"


def test_a_symlink_is_replaced_not_followed_by_rename_and_unlink(root: Path) -> None:
    make(root / "target", b"kept")
    os.symlink("target", root / "link")
    os.unlink(root / "link")
    assert (root / "target").exists()
    os.symlink("target", root / "link")
    make(root / "new", b"new")
    os.rename(root / "new", root / "link")
    assert not (root / "link").is_symlink()
    assert (root / "target").read_bytes() == b"kept"


def test_a_symlink_itself_can_be_linked_and_owned(root: Path) -> None:
    os.symlink("nowhere", root / "link")
    os.link(root / "link", root / "other", follow_symlinks=False)
    os.chown(root / "link", 5, 6, follow_symlinks=False)
    st = os.lstat(root / "other")
    assert (st.st_nlink, st.st_uid, st.st_gid) == (2, 5, 6)
